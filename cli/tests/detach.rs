//! Programs that go on when nobody waits for them, and waiting for them later.
//!
//! Needs /dev/kvm and musl-gcc.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "needs no busybox")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use support::{Ended, build, enclavectl, finish, require_programs, unique_dir, wait};

/// An enclave `t`, gone at the end.
struct Host(PathBuf);

impl Host {
    fn new() -> Self {
        require_programs();
        let this = Self(unique_dir("detach"));
        let create = ["create", "t", "--mem", "128M", "--share-cores"];
        let made = this.ctl(&[&create[..], &["--no-prefault", "--backing", "small"]].concat());
        assert_eq!(made.code, 0, "{}", made.stderr);
        this
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.0).args(args), b"")
    }

    /// Starts a program and leaves it; its run.
    #[track_caller]
    fn detach(&self, program: &Path, args: &[&str]) -> String {
        let path = program.to_str().unwrap();
        let run = ["run", "t", "--detach", "--", path];
        let ended = self.ctl(&[&run[..], args].concat());
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended.stdout.trim_end().to_owned()
    }

    /// Waits for it; its exit code and what was said.
    fn wait(&self, run: &str) -> (i32, String) {
        let ended = self.ctl(&["wait", "t", "--run", run]);
        (ended.code, ended.stderr)
    }

    #[track_caller]
    fn refused(&self, args: &[&str], code: i32, why: &str) {
        let said = self.ctl(args);
        assert_eq!(said.code, code, "{args:?}: {}", said.stderr);
        let lines: Vec<&str> = said.stderr.lines().collect();
        assert_eq!(lines.len(), 3, "{}", said.stderr);
        assert!(lines[1].contains(why), "{}", said.stderr);
        assert!(lines[2].starts_with("  try: "), "{}", said.stderr);
    }

    fn ps(&self) -> Vec<Value> {
        let told = self.ctl(&["ps", "t", "--json"]);
        let told: Value = serde_json::from_str(&told.stdout).unwrap();
        told["processes"].as_array().unwrap().clone()
    }

    /// Sends run `run` a signal, once it is loaded.
    #[track_caller]
    fn kill(&self, run: &str, signal: &str) {
        let run: u64 = run.parse().unwrap();
        let pid = loop {
            let all = self.ps();
            let of_run = all.iter().find(|process| process["run"] == run);
            match of_run.unwrap()["pid"].as_u64().unwrap() {
                0 => {}
                pid => break pid,
            }
        };
        let killed = self.ctl(&["kill", &format!("t:{pid}"), "--signal", signal]);
        assert_eq!(killed.code, 0, "{}", killed.stderr);
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

fn program(source: &str) -> PathBuf {
    let name = format!("detached-{source}");
    build(
        &format!("c/{source}.c"),
        &name,
        &["musl-gcc", "-O1", "-static"],
    )
}

/// Never ends by itself, and lets others run.
fn sleeper() -> PathBuf {
    program("sleeper")
}

#[test]
fn a_detached_program_goes_on_and_tells_its_end_before_and_after_it() {
    let host = Host::new();
    let sleeps = host.detach(&sleeper(), &["7"]);
    assert_eq!(host.ps().len(), 1);
    let mut waiting = enclavectl(&host.0);
    waiting.args(["wait", "t", "--run", &sleeps]);
    let mut waiting = waiting.stderr(Stdio::null()).spawn().unwrap();
    let late = host.ctl(&["wait", "t", "--run", &sleeps, "--timeout", "0"]);
    assert_eq!(late.code, 124, "{}", late.stderr);
    host.kill(&sleeps, "USR1");
    assert_eq!(wait(&mut waiting), 7);
    for _ in 0..2 {
        assert_eq!(host.wait(&sleeps).0, 7);
    }
    let args = host.detach(&program("args"), &["one", "two"]);
    let told = host.ctl(&["wait", "t", "--run", &args, "--json"]);
    assert_eq!(told.code, 3, "{}", told.stderr);
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(told["outcome"]["code"], 3);
    let logs = host.ctl(&["logs", "t"]).stdout;
    assert!(logs.contains("two"), "{logs}");
    assert!(logs.contains("woken"), "{logs}");
}

#[test]
fn one_that_dies_says_by_which_signal() {
    let host = Host::new();
    let faults = host.detach(&program("segv"), &[]);
    let (code, said) = host.wait(&faults);
    assert_eq!(code, 128 + 11, "{said}");
    assert!(said.contains("SIGSEGV"), "{said}");
    let sleeps = host.detach(&sleeper(), &["0"]);
    host.kill(&sleeps, "KILL");
    assert_eq!(host.wait(&sleeps).0, 128 + 9);
}

#[test]
fn twelve_run_at_once_and_each_has_its_own_end() {
    let host = Host::new();
    let codes = 20..32;
    let runs: Vec<(String, i32)> = codes
        .map(|code| (host.detach(&sleeper(), &[&code.to_string()]), code))
        .collect();
    assert_eq!(host.ps().len(), 12);
    let path = sleeper();
    let one_more = ["run", "t", "--detach", "--", path.to_str().unwrap()];
    assert_eq!(host.ctl(&one_more).code, 125);
    for (run, code) in runs {
        host.kill(&run, "USR1");
        assert_eq!(host.wait(&run).0, code);
    }
}

#[test]
fn what_cannot_be_waited_for_or_run_is_refused() {
    let host = Host::new();
    host.refused(
        &["wait", "t", "--run", "1"],
        125,
        "there has been no such run",
    );
    host.refused(&["wait", "nobody", "--run", "1"], 125, "there is none");
    for nonsense in [
        &["wait", "t", "--run", "x"][..],
        &["wait", "t", "--run", "1", "--for", "idle"],
        &["wait", "t"],
    ] {
        assert_eq!(host.ctl(nonsense).code, 2, "{nonsense:?}");
    }
    host.refused(
        &["run", "t", "--detach", "--", "/no/such/program"],
        127,
        "No such file",
    );
    let sleeps = host.detach(&sleeper(), &["0"]);
    let mut waiting = enclavectl(&host.0);
    waiting.args(["wait", "t", "--run", &sleeps]);
    let mut waiting = waiting.stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(host.ctl(&["destroy", "t"]).code, 0);
    assert_ne!(wait(&mut waiting), 0);
}
