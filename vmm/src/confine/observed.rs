//! What confines a process, read back from the host kernel.
//!
//! Used by `inspect` (the VMM about itself) and `doctor` (about every live
//! enclave). From `/proc/PID`, so that it is what holds and not what was asked
//! for; only Landlock and the dumpable flag cannot be seen there and are told
//! by the process itself.

use std::path::Path;

use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
use serde::{Deserialize, Serialize};

/// Limits in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of heap, stacks and private mappings; `None`: no limit.
    pub data_bytes: Option<u64>,
    /// Descriptors.
    pub files: Option<u64>,
    /// Bytes of a core file.
    pub core_bytes: Option<u64>,
}

/// One thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadFilter {
    /// Its name.
    pub name: String,
    /// Does a filter decide on its system calls?
    pub filtered: bool,
    /// How many.
    pub filters: u32,
    /// Its effective capabilities, as a hexadecimal mask.
    pub capabilities: String,
    /// Can no program give it rights?
    pub no_new_privs: bool,
}

/// What holds for a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Every thread of it.
    pub threads: Vec<ThreadFilter>,
    /// Version of Landlock in force; 0: none.
    pub landlock: u32,
    /// Can its user dump and trace it?
    pub dumpable: bool,
    /// Its limits.
    pub limits: Limits,
}

impl Confinement {
    /// Of this process.
    #[must_use]
    pub fn of_self() -> Self {
        Self {
            threads: threads(Path::new("/proc/self")),
            landlock: super::landlock_version(),
            dumpable: !matches!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable)),
            limits: Limits {
                data_bytes: getrlimit(Resource::Data).current,
                files: getrlimit(Resource::Nofile).current,
                core_bytes: getrlimit(Resource::Core).current,
            },
        }
    }

    /// What is missing, in words; empty when everything holds that the host
    /// kernel has.
    #[must_use]
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = gaps_of(&self.threads);
        if self.dumpable {
            gaps.push("it can be dumped by its user".to_owned());
        }
        if self.limits.data_bytes.is_none() {
            gaps.push("its memory is not bounded".to_owned());
        }
        gaps
    }
}

/// What threads lack.
fn gaps_of(threads: &[ThreadFilter]) -> Vec<String> {
    let mut gaps = Vec::new();
    if threads.is_empty() {
        gaps.push("its threads cannot be looked at".to_owned());
    }
    for thread in threads {
        let name = &thread.name;
        if !thread.filtered {
            gaps.push(format!("thread {name} may make every system call"));
        }
        if !thread.no_new_privs {
            gaps.push(format!("thread {name} may gain rights"));
        }
        if !thread.capabilities.trim_start_matches('0').is_empty() {
            gaps.push(format!(
                "thread {name} has capabilities {}",
                thread.capabilities
            ));
        }
    }
    gaps
}

/// The threads of the process whose directory is `process`.
#[must_use]
fn threads(process: &Path) -> Vec<ThreadFilter> {
    let Ok(tasks) = std::fs::read_dir(process.join("task")) else {
        return Vec::new();
    };
    let mut threads: Vec<(u64, ThreadFilter)> = tasks
        .flatten()
        .filter_map(|task| {
            let number = task.file_name().to_str()?.parse().ok()?;
            // A thread that has ended meanwhile needs no filter.
            let status = std::fs::read_to_string(task.path().join("status")).ok()?;
            Some((number, thread(&status)))
        })
        .collect();
    threads.sort_by_key(|(number, _)| *number);
    threads.into_iter().map(|(_, thread)| thread).collect()
}

/// One thread from its `status` file (proc_pid_status(5)).
fn thread(status: &str) -> ThreadFilter {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
            .trim()
    };
    ThreadFilter {
        name: field("Name").to_owned(),
        // 2: SECCOMP_MODE_FILTER.
        filtered: field("Seccomp") == "2",
        filters: field("Seccomp_filters").parse().unwrap_or(0),
        capabilities: field("CapEff").to_owned(),
        no_new_privs: field("NoNewPrivs") == "1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFINED: &str = "Name:\tvcpu0\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n\
        Seccomp:\t2\nSeccomp_filters:\t3\n";

    #[test]
    fn a_thread_is_read_from_its_status() {
        let seen = thread(CONFINED);
        assert_eq!((seen.name.as_str(), seen.filters), ("vcpu0", 3));
        assert!(seen.filtered && seen.no_new_privs);
        assert_eq!(gaps_of(&[seen]), Vec::<String>::new());
    }

    #[test]
    fn each_gap_is_named() {
        let gaps = gaps_of(&[thread("Name:\tx\nCapEff:\t0000000000000400\nSeccomp:\t0\n")]);
        assert_eq!(gaps.len(), 3, "{gaps:?}");
        assert!(gaps.iter().all(|gap| gap.contains("thread x")), "{gaps:?}");
        assert_eq!(gaps_of(&[]).len(), 1);
    }

    #[test]
    fn this_process_is_seen_as_free_as_it_is() {
        let seen = Confinement::of_self();
        assert!(!seen.threads.is_empty());
        assert_eq!(seen.landlock, 0);
        assert!(!seen.gaps().is_empty());
    }
}
