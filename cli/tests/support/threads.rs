//! Who of a process's threads woke up, by the host's own count.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

/// Voluntary context switches of the threads of a process but vCPUs: each is a
/// thread that went to sleep, so that something woke it up before.
pub(crate) fn sleeps(pid: &Value) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim_start_matches(':').trim().to_owned()
        };
        let name = field("Name");
        if !name.starts_with("vcpu") {
            let count = field("voluntary_ctxt_switches").parse().unwrap();
            found.insert(format!("{name} {}", field("Pid")), count);
        }
    }
    found
}

/// Whether all threads of a process but vCPUs sleep, and are counted so.
pub(crate) fn is_quiet(pid: &Value) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let mut stats = stats.into_iter();
    stats.all(|stat| stat.contains("(vcpu0)") || stat.contains(") S "))
}
