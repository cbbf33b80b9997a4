//! Operating enclaves: what happened to them, waiting for them, watching them,
//! what holds their VMM back, and that nothing is left a second after the end.
//!
//! Needs /dev/kvm, the kernel image and the other programs of this workspace
//! next to `enclavectl`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "nothing is compiled here")]
mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{BUSYBOX, Ended, enclavectl, finish, unique_dir};

/// One enclave of its own.
struct Stage {
    home: PathBuf,
}

impl Stage {
    fn new() -> Self {
        support::require_programs();
        let home = unique_dir("operating");
        let stage = Self { home };
        let created = stage.ctl(&[
            "create",
            "e1",
            "--mem",
            "64M",
            "--share-cores",
            "--no-prefault",
            "--timeline",
        ]);
        assert_eq!(created.code, 0, "{}", created.stderr);
        stage
    }

    fn run_dir(&self) -> PathBuf {
        self.home.join("run")
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.run_dir()).args(args), b"")
    }

    fn json(&self, args: &[&str]) -> Value {
        let ended = self.ctl(args);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// What each event was, oldest first.
    fn events(&self) -> Vec<String> {
        let ended = self.ctl(&["events", "e1", "--json"]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended.stdout.lines().map(event).collect()
    }

    fn vmm(&self) -> Pid {
        let list = self.json(&["list", "--json"]);
        let pid = list["enclaves"][0]["pid"].as_i64().unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    /// A child of `enclavectl` with its output to read.
    fn start(&self, args: &[&str]) -> Child {
        let mut command = enclavectl(&self.run_dir());
        command.args(args).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.ctl(&["destroy", "--all"]);
        self.ctl(&["broker", "stop", "--force"]);
        drop(fs::remove_dir_all(&self.home));
    }
}

/// The kind of event of a line.
fn event(line: &str) -> String {
    let value: Value = serde_json::from_str(line).unwrap();
    assert_eq!(value["event"]["enclave"], "e1");
    assert!(value["event"]["unix_ms"].as_u64().unwrap() > 1_600_000_000_000);
    value["event"]["event"].as_str().unwrap().to_owned()
}

#[test]
fn every_step_of_a_life_is_one_event() {
    let stage = Stage::new();
    assert_eq!(stage.ctl(&["run", "e1", "--", BUSYBOX, "true"]).code, 0);
    assert_eq!(stage.ctl(&["destroy", "e1"]).code, 0);
    let refused = stage.ctl(&["create", "e1", "--mem", "64M", "--cores", "4095-4095"]);
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    let expected = [
        "created",
        "program-started",
        "program-ended",
        "destroyed",
        "create-failed",
    ];
    assert_eq!(stage.events(), expected);
    let text = stage.ctl(&["events"]).stdout;
    assert!(
        text.contains(" e1 program-ended run 1: exit code 0\n"),
        "{text}"
    );
    assert_eq!(stage.ctl(&["events", "other"]).stdout, "");
}

#[test]
fn a_follower_hears_of_a_vmm_that_was_killed() {
    let stage = Stage::new();
    let mut follower = stage.start(&["events", "--follow", "--json"]);
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(event(&lines.next().unwrap().unwrap()), "created");
    kill_process(stage.vmm(), Signal::KILL).unwrap();
    assert_eq!(event(&lines.next().unwrap().unwrap()), "died");
    assert_eq!(
        stage
            .ctl(&["wait", "e1", "--for", "dead", "--timeout", "9"])
            .code,
        0
    );
    let never = stage.ctl(&["wait", "e1", "--for", "idle", "--timeout", "9"]);
    assert_eq!(never.code, 1);
    assert!(
        never.stderr.contains("it is dead: killed"),
        "{}",
        never.stderr
    );
    assert_eq!(stage.ctl(&["destroy", "e1"]).code, 0);
    assert_eq!(event(&lines.next().unwrap().unwrap()), "destroyed");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn waiting_ends_with_the_state_or_with_the_time() {
    let stage = Stage::new();
    for state in ["idle", "ready"] {
        assert_eq!(stage.ctl(&["wait", "e1", "--for", state]).code, 0);
    }
    let late = stage.ctl(&["wait", "e1", "--for", "running", "--timeout", "0"]);
    assert_eq!(late.code, 7);
    assert!(late.stderr.contains("it is still idle"), "{}", late.stderr);
    let mut program = stage.start(&["run", "e1", "--", BUSYBOX, "sleep", "60"]);
    assert_eq!(
        stage
            .ctl(&["wait", "e1", "--for", "running", "--timeout", "9"])
            .code,
        0
    );
    let mut waiting = stage.start(&["wait", "e1", "--for", "gone", "--json"]);
    assert_eq!(stage.ctl(&["destroy", "e1"]).code, 0);
    assert_eq!(support::wait(&mut waiting), 0);
    assert_ne!(support::wait(&mut program), 0);
}

#[test]
fn what_is_counted_is_there_for_people_and_for_monitoring() {
    let stage = Stage::new();
    assert_eq!(stage.ctl(&["run", "e1", "--", BUSYBOX, "ls", "/"]).code, 0);
    let metrics = stage.ctl(&["stats", "--format", "openmetrics"]).stdout;
    let forwarded = metrics
        .lines()
        .find_map(|line| line.strip_prefix("enclave_forwarded_total{enclave=\"e1\"} "));
    assert!(forwarded.unwrap().parse::<u64>().unwrap() > 0, "{metrics}");
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    let top = stage.ctl(&["top", "--count", "1"]).stdout;
    assert!(top.starts_with("NAME  STATE  EXITS/S"), "{top}");
    assert!(top.contains("\ne1    idle"), "{top}");
    assert!(!top.contains('\x1b'), "no terminal, no control characters");
}

#[test]
fn a_shell_completes_names_that_exist_now() {
    let stage = Stage::new();
    let candidates = |words: &[&str]| {
        let mut command = enclavectl(&stage.run_dir());
        command
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
            .arg("--")
            .args(words);
        finish(&mut command, b"").stdout
    };
    let found = |words: &[&str]| candidates(words).contains("e1");
    assert!(found(&["enclavectl", "inspect", ""]));
    assert!(found(&["enclavectl", "destroy", "e"]));
    assert!(!found(&["enclavectl", "destroy", "x"]));
    assert!(candidates(&["enclavectl", "ins"]).contains("inspect"));
    assert_eq!(stage.ctl(&["destroy", "e1"]).code, 0);
    assert!(!found(&["enclavectl", "inspect", ""]));
    let script = stage.ctl(&["completion", "bash"]).stdout;
    assert!(script.contains("enclavectl"), "{script}");
}

#[test]
fn every_verb_has_a_manual_page() {
    let stage = Stage::new();
    let man = stage.home.join("man");
    fs::create_dir(&man).unwrap();
    let dir = man.to_str().unwrap();
    assert_eq!(stage.ctl(&["man", dir]).code, 0);
    for page in [
        "enclavectl.1",
        "enclavectl-create.1",
        "enclavectl-snap-read.1",
    ] {
        let text = fs::read_to_string(man.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    assert_eq!(stage.ctl(&["man", "/nonexistent/man"]).code, 3);
}

#[test]
fn every_thread_of_a_vmm_is_confined_and_says_so() {
    let stage = Stage::new();
    let before = stage.json(&["inspect", "e1"]);
    let confinement = &before["enclave"]["live"]["confinement"];
    let threads = confinement["threads"].as_array().unwrap();
    assert!(threads.iter().any(|thread| thread["name"] == "vcpu0"));
    for thread in threads {
        assert_eq!(thread["filtered"], true, "{thread}");
        assert_eq!(thread["no_new_privs"], true, "{thread}");
        let capabilities = thread["capabilities"].as_str().unwrap();
        assert_eq!(capabilities.trim_start_matches('0'), "", "{thread}");
    }
    assert_eq!(confinement["dumpable"], false);
    assert_eq!(confinement["limits"]["core_bytes"], 0);
    // Not what it says of itself: what the host kernel says.
    let status = format!("/proc/{}/status", stage.vmm().as_raw_nonzero());
    let status = fs::read_to_string(status).unwrap();
    assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
    assert!(status.contains("\nCapEff:\t0000000000000000\n"), "{status}");
    let doctor = stage.ctl(&["doctor"]).stdout;
    assert!(doctor.contains("ok    confined    1 enclaves"), "{doctor}");
}

#[test]
fn everything_is_given_back_within_a_second() {
    let stage = Stage::new();
    let mut program = stage.start(&["run", "e1", "--", BUSYBOX, "sleep", "60"]);
    assert_eq!(
        stage
            .ctl(&["wait", "e1", "--for", "running", "--timeout", "9"])
            .code,
        0
    );
    let pid = stage.vmm();
    let begin = Instant::now();
    assert_eq!(stage.ctl(&["destroy", "e1"]).code, 0);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    // Whoever adopted it may be slow to take its exit status: it has nothing.
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    assert!(status.is_err() || status.unwrap().contains("\nState:\tZ"));
    assert!(!stage.run_dir().join("enclaves/e1").exists());
    assert_ne!(support::wait(&mut program), 0);
}

#[test]
fn a_timeline_has_every_phase_in_order() {
    let stage = Stage::new();
    assert_eq!(stage.ctl(&["destroy", "e1"]).code, 0);
    let create = ["create", "e1", "--mem", "64M", "--share-cores"];
    let started = stage.json(&[&create[..], &["--json"]].concat());
    let phases = started["enclave"]["report"]["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().map(|it| it[0].as_str().unwrap()).collect();
    let expected = [
        "vm",
        "memory-prefault",
        "memslots",
        "broker",
        "interrupts",
        "probe",
        "kernel",
        "booted",
    ];
    assert_eq!(names, expected);
    let times: Vec<u64> = phases.iter().map(|it| it[1].as_u64().unwrap()).collect();
    assert!(times.is_sorted() && times[0] > 0, "{times:?}");
    let ran = stage.ctl(&["run", "e1", "--timeline", "--", BUSYBOX, "true"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let seen = stage.json(&["inspect", "e1", "--json"]);
    let start = &seen["enclave"]["live"]["report"]["first_program"];
    let start = start.as_array().unwrap();
    let times: Vec<u64> = start.iter().map(|it| it[1].as_u64().unwrap()).collect();
    assert!(times.is_sorted() && times[2] > 0, "{times:?}");
    for (told, name) in start.iter().zip(["fetched", "loaded", "first-instruction"]) {
        assert_eq!(told[0], name);
        assert!(ran.stderr.contains(&format!("\n{name} ")), "{}", ran.stderr);
    }
    assert_eq!(stage.ctl(&["destroy", "e1"]).code, 0);
    let text = stage.ctl(&[&create[..], &["--timeline"]].concat()).stdout;
    assert!(text.contains("\nPHASE  "), "{text}");
    for name in expected {
        assert!(text.contains(&format!("\n{name} ")), "{text}");
    }
}
