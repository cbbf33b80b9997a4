//! The cpuset that keeps others off an enclave's cores: made, entered, read
//! back, removed.
//!
//! Version 2 has isolated partitions: nobody outside is scheduled on the cores,
//! and the kernel does not balance load there. The group is a threaded child of
//! the root, so that the vCPU threads alone go in; that needs the process to be
//! in the root group itself. Version 1 has exclusive sets, which no other *set*
//! may overlap; tasks of the root set may still run there, and the report says
//! so. Called by [`super::settle`], with the rights of whoever runs `enclavectl`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::parse_cpu_list;
use crate::topology::cpu_list;

/// Beginning of a group's name.
const PREFIX: &str = "xasm-";

/// A way to keep others off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// cgroup v2 with a cpuset controller, mounted here.
    Partition(PathBuf),
    /// cgroup v1 cpusets, mounted here.
    Exclusive(PathBuf),
    /// Nothing but the affinity of threads; why.
    Affinity(String),
}

/// What a group was found to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Held {
    /// An isolated partition (v2): nobody else runs on the cores.
    Isolated,
    /// A partition with its own scheduling domain (v2 before Linux 6.0): nobody
    /// else runs on the cores.
    Partition,
    /// An exclusive set (v1): no other set has the cores, but tasks of the root
    /// set may use them.
    Exclusive,
    /// Only the vCPU threads are kept on their cores; the kernel says why, or we.
    Affinity {
        /// Such as "isolated invalid (Cpu list in cpuset.cpus not exclusive)".
        reason: String,
    },
}

/// What the host offers, told from the mounts below `root`.
#[must_use]
pub fn offer(root: &Path) -> Offer {
    let mounts = fs::read_to_string(root.join("proc/self/mounts")).unwrap_or_default();
    let inside = |place: &str| root.join(place.trim_start_matches('/'));
    let mut why = "no cpusets are mounted".to_owned();
    let mut exclusive = None;
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, place, kind, options, ..] = words[..] else {
            continue;
        };
        let is_v1 = kind == "cgroup" && options.split(',').any(|option| option == "cpuset");
        if kind == "cgroup2" {
            let path = inside(place);
            let controllers = read(&path.join("cgroup.controllers")).unwrap_or_default();
            if !controllers.split(' ').any(|name| name == "cpuset") {
                why = "cgroup v2 is mounted without the cpuset controller".to_owned();
            } else if path.join("cgroup.type").exists() {
                // Only the root of all groups has no type.
                why = format!("{place} is not the root of the host's groups");
            } else {
                return Offer::Partition(path);
            }
        } else if is_v1 {
            exclusive = Some(inside(place));
        }
    }
    exclusive.map_or(Offer::Affinity(why), Offer::Exclusive)
}

impl Offer {
    /// The group of an enclave; `None` where there are none.
    pub(super) fn group(&self, enclave: &str, pid: i32) -> Option<PathBuf> {
        match self {
            Self::Partition(base) | Self::Exclusive(base) => {
                Some(base.join(format!("{PREFIX}{enclave}-{pid}")))
            }
            Self::Affinity(_) => None,
        }
    }

    /// Makes the group of `cores` at `path` with `threads` of process `pid` in it.
    /// May be repeated.
    ///
    /// # Errors
    /// The file that the kernel refused; then there is no group.
    pub(super) fn enter(
        &self,
        root: &Path,
        path: &Path,
        cores: &BTreeSet<usize>,
        pid: i32,
        threads: &[i32],
    ) -> io::Result<()> {
        let entered = match self {
            Self::Partition(base) => partition(root, base, path, cores, pid, threads),
            Self::Exclusive(base) => exclusive(base, path, cores, threads),
            Self::Affinity(_) => Ok(()),
        };
        if entered.is_err() {
            self.leave(path, threads);
        }
        entered
    }

    /// Takes threads out of a group again and removes it.
    fn leave(&self, path: &Path, threads: &[i32]) {
        self.put_out(threads);
        let _ = fs::remove_dir(path);
    }

    /// Takes all threads but `threads` out of the group at `path`: a vCPU whose core
    /// has gone could not go to another one from there.
    pub(super) fn keep(&self, path: &Path, threads: &[i32]) {
        let inside = read(&path.join("cgroup.threads")).or_else(|| read(&path.join("tasks")));
        let inside = inside.unwrap_or_default();
        let mut inside: Vec<i32> = inside.lines().filter_map(|tid| tid.parse().ok()).collect();
        inside.retain(|tid| !threads.contains(tid));
        self.put_out(&inside);
    }

    fn put_out(&self, threads: &[i32]) {
        let (base, file) = match self {
            Self::Partition(base) => (base, "cgroup.threads"),
            Self::Exclusive(base) => (base, "tasks"),
            Self::Affinity(_) => return,
        };
        for tid in threads {
            // One that has ended is out of it.
            let _ = put(&base.join(file), tid);
        }
    }

    /// Removes groups of processes that are gone, of any run directory. Whether
    /// all could be.
    pub(super) fn sweep(&self, root: &Path) -> bool {
        let (Self::Partition(base) | Self::Exclusive(base)) = self else {
            return true;
        };
        let mut all = true;
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.strip_prefix(PREFIX).and_then(|n| n.rsplit_once('-'));
            let Some(pid) = pid.and_then(|(_, pid)| pid.parse::<i32>().ok()) else {
                continue;
            };
            if has_ended(root, pid) {
                all &= fs::remove_dir(entry.path()).is_ok();
            }
        }
        all
    }
}

fn partition(
    root: &Path,
    base: &Path,
    path: &Path,
    cores: &BTreeSet<usize>,
    pid: i32,
    threads: &[i32],
) -> io::Result<()> {
    put(&base.join("cgroup.subtree_control"), "+cpuset")?;
    make(path)?;
    if read(&path.join("cgroup.type")).as_deref() != Some("threaded") {
        put(&path.join("cgroup.type"), "threaded")?;
    }
    put(&path.join("cpuset.cpus"), cpu_list(cores))?;
    let of_process = read(&root.join(format!("proc/{pid}/cgroup"))).unwrap_or_default();
    let place = of_process.lines().find_map(|line| line.strip_prefix("0::"));
    if place.is_some_and(|place| place.ends_with(".service")) {
        let why = "its process belongs to a systemd service, which would lose it";
        return Err(io::Error::other(why));
    }
    if place.is_some_and(|place| place != "/") {
        put(&base.join("cgroup.procs"), pid)?;
    }
    for tid in threads {
        put(&path.join("cgroup.threads"), tid)?;
    }
    let file = path.join("cpuset.cpus.partition");
    if read(&file).is_some_and(|now| now == "isolated" || now == "root") {
        return Ok(());
    }
    // Linux before 6.0 knows "root" alone.
    put(&file, "isolated").or_else(|_| put(&file, "root"))
}

fn exclusive(base: &Path, path: &Path, cores: &BTreeSet<usize>, threads: &[i32]) -> io::Result<()> {
    let mems = read(&base.join("cpuset.effective_mems")).unwrap_or_else(|| "0".to_owned());
    make(path)?;
    put(&path.join("cpuset.cpus"), cpu_list(cores))?;
    put(&path.join("cpuset.mems"), mems)?;
    put(&path.join("cpuset.cpu_exclusive"), 1)?;
    put(&path.join("cpuset.sched_load_balance"), 0)?;
    for tid in threads {
        put(&path.join("tasks"), tid)?;
    }
    Ok(())
}

/// What the kernel says of the group at `path` now, with `threads` in it.
pub(super) fn read_back(path: &Path, threads: &[i32]) -> Held {
    let affinity = |reason: String| Held::Affinity { reason };
    let inside = read(&path.join("cgroup.threads")).or_else(|| read(&path.join("tasks")));
    let Some(inside) = inside else {
        return affinity("it has no group".to_owned());
    };
    let inside: Vec<&str> = inside.lines().collect();
    if let Some(out) = threads
        .iter()
        .find(|tid| !inside.contains(&&*tid.to_string()))
    {
        return affinity(format!("thread {out} is not in {}", path.display()));
    }
    match read(&path.join("cpuset.cpus.partition")).as_deref() {
        Some("isolated") => return Held::Isolated,
        Some("root") => return Held::Partition,
        Some(other) => return affinity(other.to_owned()),
        None => {}
    }
    match read(&path.join("cpuset.cpu_exclusive")).as_deref() {
        Some("1") => Held::Exclusive,
        _ => affinity("its set is not exclusive".to_owned()),
    }
}

/// Whether the group at `path` was given just these cores.
pub(super) fn has_cores(path: &Path, cores: &BTreeSet<usize>) -> bool {
    let given = read(&path.join("cpuset.cpus"));
    given.and_then(|text| parse_cpu_list(&text)).as_ref() == Some(cores)
}

/// Whether the process is gone, or is only waited for by its parent.
fn has_ended(root: &Path, pid: i32) -> bool {
    let Some(stat) = read(&root.join(format!("proc/{pid}/stat"))) else {
        return true;
    };
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('Z' | 'X'))
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(named(path, &error)),
        _ => Ok(()),
    }
}

fn put(path: &Path, text: impl std::fmt::Display) -> io::Result<()> {
    fs::write(path, text.to_string()).map_err(|error| named(path, &error))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn host(mounts: &str, files: &[(&str, &str)]) -> Scratch {
        let scratch = Scratch::new("groups");
        for (path, text) in files.iter().chain(&[("proc/self/mounts", mounts)]) {
            let path = scratch.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        scratch
    }

    const V2: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
    const HYBRID: &str = "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
                          cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";

    #[test]
    fn the_best_that_is_mounted_is_offered() {
        let controllers = ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io\n");
        let v2 = host(V2, &[controllers]);
        let place = v2.path().join("sys/fs/cgroup");
        assert_eq!(offer(v2.path()), Offer::Partition(place));
        let hybrid = host(
            HYBRID,
            &[("sys/fs/cgroup/unified/cgroup.controllers", "\n")],
        );
        let place = hybrid.path().join("sys/fs/cgroup/cpuset");
        assert_eq!(offer(hybrid.path()), Offer::Exclusive(place));
        let why = |host: &Scratch| match offer(host.path()) {
            Offer::Affinity(why) => why,
            other => panic!("{other:?}"),
        };
        let container = host(
            V2,
            &[controllers, ("sys/fs/cgroup/cgroup.type", "domain\n")],
        );
        assert!(why(&container).contains("not the root"));
        assert!(why(&host(V2, &[])).contains("without the cpuset controller"));
        assert!(why(&host("x\n", &[])).contains("no cpusets"));
    }

    #[test]
    fn what_the_kernel_says_of_a_group_is_believed_and_not_what_was_asked() {
        let group = |files: &[(&str, &str)]| {
            let scratch = host("", files);
            read_back(scratch.path(), &[12])
        };
        let threads = ("cgroup.threads", "11\n12\n");
        let partition = |text| group(&[threads, ("cpuset.cpus.partition", text)]);
        assert_eq!(partition("isolated\n"), Held::Isolated);
        assert_eq!(partition("root\n"), Held::Partition);
        let reason = "isolated invalid (Cpu list in cpuset.cpus not exclusive)";
        let invalid = Held::Affinity {
            reason: reason.to_owned(),
        };
        assert_eq!(partition(&format!("{reason}\n")), invalid);
        let exclusive = |value| group(&[("tasks", "12"), ("cpuset.cpu_exclusive", value)]);
        assert_eq!(exclusive("1\n"), Held::Exclusive);
        assert!(matches!(exclusive("0\n"), Held::Affinity { .. }));
        let elsewhere = group(&[
            ("cgroup.threads", "1\n"),
            ("cpuset.cpus.partition", "isolated"),
        ]);
        assert!(matches!(elsewhere, Held::Affinity { reason } if reason.contains("thread 12")));
        assert!(matches!(group(&[]), Held::Affinity { .. }));
    }

    #[test]
    fn a_thread_without_a_core_is_put_out_of_the_group() {
        let scratch = host(
            "",
            &[("set/tasks", ""), ("set/xasm-a1-7/tasks", "11\n12\n")],
        );
        let base = scratch.path().join("set");
        let offer = Offer::Exclusive(base.clone());
        offer.keep(&base.join("xasm-a1-7"), &[11, 12]);
        assert_eq!(read(&base.join("tasks")).unwrap(), "");
        offer.keep(&base.join("xasm-a1-7"), &[11]);
        assert_eq!(read(&base.join("tasks")).unwrap(), "12");
    }

    #[test]
    fn groups_of_the_dead_are_removed_and_no_others() {
        let scratch = host(
            "",
            &[("proc/7/stat", "7 (x) S 1"), ("proc/6/stat", "6 (x) Z 1")],
        );
        let base = scratch.path().join("set");
        for name in [
            "xasm-a1-7",
            "xasm-a-2-8",
            "xasm-a3-6",
            "xasm-odd",
            "others-9",
        ] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        assert!(Offer::Exclusive(base.clone()).sweep(scratch.path()));
        let mut left: Vec<_> = fs::read_dir(&base)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["others-9", "xasm-a1-7", "xasm-odd"]);
    }
}
