//! `freeze` and `thaw` on real enclaves: nothing runs, everything stays, and
//! whatever happens meanwhile is made up for afterwards.
//!
//! Needs /dev/kvm, musl-gcc, and `xasm-bench` from `cargo xtask image`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "some helpers are for other tests")]
#[path = "support/producer.rs"]
mod producer;
#[expect(dead_code, reason = "needs no busybox")]
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Instant;

use producer::{Below, PATIENCE, Producer};
use serde_json::Value;
use support::{Ended, build, enclavectl, finish, require_programs, unique_dir, wait};
use xemem_host::Stream;
use xemem_host::wire::Policy;

/// An enclave `t`, gone at the end.
struct Host(PathBuf);

impl Host {
    fn new() -> Self {
        require_programs();
        let this = Self(unique_dir("freeze"));
        let create = ["create", "t", "--mem", "64M", "--share-cores"];
        let made = this.ctl(&[&create[..], &["--no-prefault", "--backing", "small"]].concat());
        assert_eq!(made.code, 0, "{}", made.stderr);
        this
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.0).args(args), b"")
    }

    /// Expects the exit code; what was said.
    #[track_caller]
    fn told(&self, args: &[&str], code: i32) -> String {
        let ended = self.ctl(args);
        assert_eq!(ended.code, code, "{args:?}: {}", ended.stderr);
        ended.stderr
    }

    fn state(&self) -> String {
        let listed = self.ctl(&["list", "--json"]).stdout;
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let state = listed["enclaves"][0]["state"].as_str();
        state.unwrap_or("gone").to_owned()
    }

    /// Asks until it is in that state.
    #[track_caller]
    fn becomes(&self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.state() != wanted {
            assert!(Instant::now() < deadline, "it is {}", self.state());
        }
    }

    fn pid(&self) -> i32 {
        let inspected = self.ctl(&["inspect", "t", "--json"]).stdout;
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        let pid = inspected["enclave"]["live"]["effective"]["pid"].as_i64();
        i32::try_from(pid.unwrap()).unwrap()
    }

    /// Clock ticks that the vCPU thread has run for.
    fn vcpu_ticks(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let read = |task: fs::DirEntry, file| fs::read_to_string(task.path().join(file)).unwrap();
        let is_vcpu = |task: &fs::DirEntry| {
            fs::read_to_string(task.path().join("comm"))
                .unwrap()
                .starts_with("vcpu")
        };
        let task = tasks.flatten().find(is_vcpu).unwrap();
        let stat = read(task, "stat");
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let field = |nr: usize| {
            fields
                .split(' ')
                .nth(nr - 3)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        field(14) + field(15)
    }

    /// A program that computes for ever, once it does.
    fn spin(&self) -> Child {
        let program = build("c/spin.c", "spin", &["musl-gcc", "-O1", "-static"]);
        let mut client = enclavectl(&self.0)
            .args(["run", "t", "--"])
            .arg(program)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = client.stdout.as_mut().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "spinning\n");
        client
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for args in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            self.ctl(args);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    let process = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(process, signal).unwrap();
}

#[test]
fn nothing_runs_in_a_frozen_enclave_and_everything_in_a_thawed_one() {
    let host = Host::new();
    let mut client = host.spin();
    host.told(&["freeze", "t"], 0);
    assert_eq!(host.state(), "frozen");
    let before = host.vcpu_ticks();
    let begin = Instant::now();
    while begin.elapsed().as_millis() < 300 {
        assert_eq!(host.state(), "frozen");
    }
    assert!(host.vcpu_ticks() <= before + 1, "a spinning program ran on");
    host.told(&["thaw", "t"], 0);
    assert_eq!(host.state(), "running");
    let deadline = Instant::now() + PATIENCE;
    while host.vcpu_ticks() < before + 5 {
        assert!(Instant::now() < deadline, "it does not go on");
    }
    host.told(&["destroy", "t"], 0);
    assert_ne!(wait(&mut client), 0);
}

#[test]
fn freezing_twice_and_what_a_frozen_enclave_cannot_do_is_answered() {
    let host = Host::new();
    assert!(host.told(&["thaw", "t"], 4).contains("it is not frozen"));
    host.told(&["freeze", "t"], 0);
    let twice = host.told(&["freeze", "t"], 4);
    assert!(twice.contains("it is frozen already"), "{twice}");
    assert!(twice.contains("try: enclavectl thaw t"), "{twice}");
    let refused = host.told(&["run", "t", "--", "/bin/true"], 125);
    assert!(refused.contains("the enclave is frozen"), "{refused}");
    host.told(&["thaw", "t"], 0);
    assert!(host.told(&["thaw", "t"], 4).contains("it is not frozen"));
    assert_eq!(host.state(), "idle");
    host.told(&["freeze", "none"], 3);
}

#[test]
fn a_kill_that_comes_while_it_is_frozen_takes_effect_when_it_is_thawed() {
    let host = Host::new();
    let mut client = host.spin();
    host.told(&["freeze", "t"], 0);
    signal(
        i32::try_from(client.id()).unwrap(),
        rustix::process::Signal::KILL,
    );
    wait(&mut client);
    assert_eq!(host.state(), "frozen");
    host.told(&["thaw", "t"], 0);
    host.becomes("idle");
    let mut next = host.spin();
    host.told(&["destroy", "t"], 0);
    wait(&mut next);
}

#[test]
fn a_frozen_enclave_can_be_destroyed_and_killed() {
    let host = Host::new();
    let mut client = host.spin();
    host.told(&["freeze", "t"], 0);
    host.told(&["destroy", "t"], 0);
    assert_eq!(host.state(), "gone");
    wait(&mut client);
    drop(host);
    let host = Host::new();
    host.told(&["freeze", "t"], 0);
    signal(host.pid(), rustix::process::Signal::KILL);
    host.becomes("dead");
    host.told(&["destroy", "t"], 0);
    assert_eq!(host.state(), "gone");
}

#[test]
fn what_was_published_stays_readable_and_the_next_step_comes_after_thawing() {
    let mut program = Producer::new(Below::Enclave, 4, "discard-newest 0");
    assert!(program.ask("step q").starts_with("ok"));
    let ctl = |run_dir: &PathBuf, args: &[&str]| finish(enclavectl(run_dir).args(args), b"");
    let names = ctl(&program.run_dir, &["list", "--quiet"]).stdout;
    let name = names.trim().to_owned();
    let mut attached = program.reader(Policy::Latest);
    assert_eq!(ctl(&program.run_dir, &["freeze", &name]).code, 0);
    // One that was attached before, and one that comes now.
    let first = attached.next(Some(PATIENCE)).unwrap().unwrap().generation();
    let mut late: Stream = program.reader(Policy::Latest);
    let second = late.next(Some(PATIENCE)).unwrap().unwrap().generation();
    assert_eq!((first, second), (1, 1));
    program.tell("step q");
    assert_eq!(ctl(&program.run_dir, &["thaw", &name]).code, 0);
    assert!(program.answer().starts_with("ok"));
    let next = attached.next(Some(PATIENCE)).unwrap().unwrap().generation();
    assert_eq!(next, 2);
}
