//! Cores that an enclave has alone, as far as this host allows it: what `create`
//! and `inspect` say is what the kernel says, and everything comes back, by
//! `destroy` or by the next command after a kill.
//!
//! Needs /dev/kvm and two cores. Isolated partitions of cgroup v2 are tested in
//! the emulated machine, `ci/xtask/src/hw_lane/steps/45-isolation.sh`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "runs no guest programs")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{Ended, enclavectl, finish, require_programs, unique_dir};

struct Host(PathBuf);

impl Host {
    fn new() -> Self {
        require_programs();
        Self(unique_dir("isolation"))
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.0).args(args), b"")
    }

    fn create(&self, name: &str, more: &[&str]) -> Ended {
        let mut args = vec!["create", name, "--cores", "1", "--mem", "64M"];
        args.extend(["--backing", "small", "--no-prefault", "--json"]);
        args.extend(more);
        self.ctl(&args)
    }

    fn inspect(&self, name: &str) -> Value {
        let ended = self.ctl(&["inspect", name, "--json"]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["enclave"].take()
    }

    fn has_ledger(&self) -> bool {
        self.0.join("ledger/isolation.json").exists()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for arguments in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            self.ctl(arguments);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The group of a process's enclave, wherever groups are mounted.
fn group(name: &str, pid: i64) -> Option<PathBuf> {
    let group = format!("xasm-{name}-{pid}");
    ["/sys/fs/cgroup", "/sys/fs/cgroup/cpuset"]
        .map(|base| Path::new(base).join(&group))
        .into_iter()
        .find(|path| path.exists())
}

/// What `inspect` says has to be what the kernel's files say.
fn is_true(inspected: &Value, name: &str) {
    let pid = inspected["live"]["effective"]["pid"].as_i64().unwrap();
    let isolation = &inspected["isolation"];
    let read = |file: &str| {
        let path = group(name, pid)?.join(file);
        Some(fs::read_to_string(path).ok()?.trim().to_owned())
    };
    match isolation["held"]["kind"].as_str().unwrap() {
        "isolated" => assert_eq!(read("cpuset.cpus.partition").unwrap(), "isolated"),
        "partition" => assert_eq!(read("cpuset.cpus.partition").unwrap(), "root"),
        "exclusive" => {
            assert_eq!(read("cpuset.cpu_exclusive").unwrap(), "1");
            assert_eq!(read("tasks").unwrap().lines().count(), 1, "the vCPU alone");
        }
        _ => {
            let reason = isolation["held"]["reason"].as_str().unwrap();
            assert!(!reason.is_empty() && !isolation["advice"].as_str().unwrap().is_empty());
        }
    }
    let core = isolation["cores"][0].as_u64().unwrap();
    assert_eq!(&inspected["placement"]["vcpus"][0]["allowed"][0], core);
    for text in isolation["interrupts"].as_array().unwrap() {
        let number = text.as_str().unwrap().split(' ').next().unwrap().to_owned();
        let effective = format!("/proc/irq/{number}/effective_affinity_list");
        let effective = fs::read_to_string(effective).unwrap();
        assert_eq!(effective.trim(), core.to_string(), "interrupt {number}");
    }
    // The VMM's other threads leave the core to the vCPU.
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap();
        let status = read("status");
        let allowed = status.lines().find(|l| l.starts_with("Cpus_allowed_list"));
        let on_core = allowed.unwrap().ends_with(&format!("\t{core}"));
        assert_eq!(on_core, read("comm").starts_with("vcpu"), "{status}");
    }
}

#[test]
fn what_is_told_of_isolation_is_so_and_a_killed_enclave_gives_it_back() {
    let host = Host::new();
    let made = host.create("a1", &[]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let document: Value = serde_json::from_str(&made.stdout).unwrap();
    let inspected = host.inspect("a1");
    is_true(&inspected, "a1");
    let told = &document["enclave"]["isolation"];
    assert_eq!(told["held"], inspected["isolation"]["held"]);
    assert_eq!(told["cores"], inspected["isolation"]["cores"]);

    let pid = inspected["live"]["effective"]["pid"].as_i64().unwrap();
    let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while group("a1", pid).is_some() || host.has_ledger() {
        let listed = host.ctl(&["list"]);
        assert_eq!(listed.code, 0, "{}", listed.stderr);
        assert!(std::time::Instant::now() < deadline, "{}", listed.stdout);
    }
    // Its place is free for the next.
    let again = host.create("a1", &[]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    is_true(&host.inspect("a1"), "a1");
    let pid = host.inspect("a1")["live"]["effective"]["pid"]
        .as_i64()
        .unwrap();
    assert_eq!(host.ctl(&["destroy", "a1"]).code, 0);
    assert!(group("a1", pid).is_none() && !host.has_ledger());
}

#[test]
fn isolation_that_is_required_is_had_whole_or_there_is_no_enclave() {
    let host = Host::new();
    let made = host.create("a1", &["--isolation", "require"]);
    if made.code == 0 {
        let inspected = host.inspect("a1");
        is_true(&inspected, "a1");
        let kind = inspected["isolation"]["held"]["kind"].as_str().unwrap();
        assert!(["isolated", "partition"].contains(&kind), "{kind}");
        assert_eq!(
            inspected["isolation"]["interrupts"],
            Value::Array(Vec::new())
        );
        return;
    }
    assert_eq!(made.code, 6, "{}", made.stderr);
    assert!(
        made.stderr.contains("isolate the cores of enclave a1"),
        "{}",
        made.stderr
    );
    assert!(made.stderr.contains("try: "), "{}", made.stderr);
    assert_eq!(host.ctl(&["list", "--quiet"]).stdout, "");
    assert!(!host.has_ledger());
}

#[test]
fn cores_are_left_alone_where_nobody_asked() {
    let host = Host::new();
    for more in [&["--isolation", "off"][..], &["--share-cores"]] {
        assert_eq!(host.create("a1", more).code, 0);
        let inspected = host.inspect("a1");
        assert_eq!(inspected["isolation"]["held"]["kind"], "affinity");
        let pid = inspected["live"]["effective"]["pid"].as_i64().unwrap();
        assert!(group("a1", pid).is_none() && !host.has_ledger());
        assert_eq!(host.ctl(&["destroy", "a1"]).code, 0);
    }
    let both = host.create("a1", &["--share-cores", "--isolation", "require"]);
    assert_eq!(both.code, 2, "{}", both.stderr);
}
