//! What keeps a VMM from harming the host, had somebody taken it over: what the
//! host kernel offers, and what holds for every live enclave.
//!
//! Called by `doctor`. The second is what each VMM reads back from the host
//! kernel about its own threads, not what it asked for.

use std::fs;
use std::path::Path;

use enclave_vmm::confine::{Confinement, landlock_of_host};

use super::{Check, fail, ok, warn};
use crate::cmd::show::inspections;
use crate::locate;

/// Does the kernel below `root` have what VMMs confine themselves with?
pub(super) fn of_host(root: &Path) -> Check {
    let actions = root.join("proc/sys/kernel/seccomp/actions_avail");
    let actions = fs::read_to_string(actions).unwrap_or_default();
    let traps = actions.split_whitespace().any(|action| action == "trap");
    told(traps, landlock_of_host())
}

fn told(traps: bool, landlock: u32) -> Check {
    let name = "confinement";
    match (traps, landlock) {
        (false, _) => fail(
            name,
            "no seccomp filters: an enclave is not created without them",
            "boot a kernel with CONFIG_SECCOMP_FILTER=y",
        ),
        (true, 0) => warn(
            name,
            "seccomp filters, but no Landlock (or its first version): a VMM that somebody took over reaches its user's files",
            "boot with landlock in lsm= (Linux 5.19 or later)",
        ),
        (true, version) => ok(name, format!("seccomp filters, Landlock version {version}")),
    }
}

/// One line for all live enclaves; none when there are none.
pub(super) fn of_enclaves() -> Option<Check> {
    let run = locate::run_dir().ok()?;
    let enclaves: Vec<(String, Confinement)> = inspections(&run, None)
        .ok()?
        .into_iter()
        .map(|(name, inspection)| (name, inspection.confinement))
        .collect();
    live(&enclaves)
}

fn live(enclaves: &[(String, Confinement)]) -> Option<Check> {
    if enclaves.is_empty() {
        return None;
    }
    let name = "confined";
    let gaps: Vec<String> = enclaves
        .iter()
        .flat_map(|(enclave, seen)| {
            let gaps = seen.gaps().into_iter();
            gaps.map(move |gap| format!("{enclave}: {gap}"))
        })
        .collect();
    let threads: usize = enclaves.iter().map(|(_, seen)| seen.threads.len()).sum();
    if gaps.is_empty() {
        let count = enclaves.len();
        let text = format!("{count} enclaves, all {threads} threads of their VMMs");
        return Some(ok(name, text));
    }
    let fix = "enclavectl destroy NAME, then create it with this version";
    Some(warn(name, gaps.join("; "), fix))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_told_with_a_fix() {
        assert_eq!(told(true, 6).verdict, Verdict::Ok);
        assert_eq!(told(true, 0).verdict, Verdict::Warn);
        assert_eq!(told(false, 6).verdict, Verdict::Fail);
        let none = of_host(Path::new("/nonexistent"));
        assert_eq!(none.verdict, Verdict::Fail);
        assert!(!none.fix.is_empty());
    }

    #[test]
    fn an_enclave_that_is_not_confined_is_named() {
        assert_eq!(live(&[]), None);
        let free = [("a1".to_owned(), Confinement::of_self())];
        let check = live(&free).unwrap();
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.text.contains("a1: "), "{}", check.text);
    }
}
