//! Several processes in one enclave: each with its own memory, results and end.
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
use std::process::{Child, ChildStdout, Stdio};
use std::time::Instant;

use producer::{PATIENCE, bench};
use serde_json::Value;
use support::{Ended, build, enclavectl, finish, require_programs, unique_dir, wait};

/// An enclave `t`, gone at the end.
struct Host(PathBuf);

/// A program under way, whose output is read line by line.
struct Program {
    client: Child,
    lines: BufReader<ChildStdout>,
}

impl Program {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Its number, which it says first.
    fn pid(&mut self) -> String {
        let line = self.line();
        line.strip_prefix("process ").unwrap().to_owned()
    }

    /// Ends its input; its exit code.
    fn end(mut self) -> i32 {
        drop(self.client.stdin.take());
        wait(&mut self.client)
    }
}

impl Host {
    fn new(ring: &str, cores: &str) -> Self {
        require_programs();
        let this = Self(unique_dir("processes"));
        let create = [
            "create",
            "t",
            "--mem",
            "128M",
            "--share-cores",
            "--ring",
            ring,
        ];
        let rest = ["--no-prefault", "--backing", "small", "--cores", cores];
        let made = this.ctl(&[&create[..], &rest].concat());
        assert_eq!(made.code, 0, "{}", made.stderr);
        this
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.0).args(args), b"")
    }

    fn start(&self, options: &[&str], program: &PathBuf, args: &[&str]) -> Program {
        let mut client = enclavectl(&self.0)
            .args(["run", "t"])
            .args(options)
            .arg("--")
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap());
        Program { client, lines }
    }

    fn sibling(&self, args: &[&str]) -> Program {
        self.start(&[], &siblings(), args)
    }

    fn ps(&self) -> Vec<Value> {
        let told = self.ctl(&["ps", "t", "--json"]);
        assert_eq!(told.code, 0, "{}", told.stderr);
        let told: Value = serde_json::from_str(&told.stdout).unwrap();
        told["processes"].as_array().unwrap().clone()
    }

    #[track_caller]
    fn becomes(&self, what: &str, is_so: impl Fn(&[Value]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.ps()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.ps());
        }
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

fn siblings() -> PathBuf {
    build("c/siblings.c", "siblings", &["musl-gcc", "-O1", "-static"])
}

fn spin() -> PathBuf {
    build("c/spin.c", "spin", &["musl-gcc", "-O1", "-static"])
}

/// What Linux computes.
fn expected(rounds: &str, seed: &str) -> String {
    let mut command = std::process::Command::new(siblings());
    let ended = finish(command.args(["turns", rounds, seed]), b"");
    ended.stdout.lines().last().unwrap().to_owned()
}

fn each_computes_what_it_computes_alone(ring: &str, cores: &str) {
    const ROUNDS: &str = "60";
    let host = Host::new(ring, cores);
    let seeds = ["1", "2", "3"];
    let mut programs = seeds.map(|seed| host.sibling(&["turns", ROUNDS, seed]));
    let mut pids: Vec<String> = programs.iter_mut().map(Program::pid).collect();
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), seeds.len(), "numbers are given once");
    for (mut program, seed) in programs.into_iter().zip(seeds) {
        assert_eq!(program.line(), expected(ROUNDS, seed), "seed {seed}");
        assert_eq!(program.end(), 0);
    }
    assert!(host.ps().is_empty());
}

#[test]
fn each_computes_what_it_computes_alone_in_ring_3_mode() {
    each_computes_what_it_computes_alone("3", "1");
}

#[test]
fn each_computes_what_it_computes_alone_in_ring_0_mode() {
    each_computes_what_it_computes_alone("0", "1");
}

#[test]
fn each_computes_what_it_computes_alone_on_two_cores() {
    each_computes_what_it_computes_alone("3", "2");
}

fn one_ends_alone(ring: &str) {
    let host = Host::new(ring, "1");
    let mut first = host.sibling(&["hungry"]);
    let first_pid = first.pid();
    first.line();
    assert_eq!(first.end(), 0);
    let mut waiting = host.start(&[], &bench(), &[]);
    host.becomes("one runs", |list| list.len() == 1 && list[0]["pid"] != 0);
    // One that faults, one that is killed while it has the core, one that is killed
    // while it has not.
    let segv = build("c/segv.c", "segv", &["musl-gcc", "-O1", "-static"]);
    let faulted = host.ctl(&["run", "t", "--", segv.to_str().unwrap(), "null"]);
    assert_eq!(faulted.code, 139, "{}", faulted.stderr);
    let mut spinning = host.start(&[], &spin(), &[]);
    assert_eq!(spinning.line(), "spinning");
    let list = host.ps();
    assert_eq!(list.len(), 2, "{list:?}");
    assert_eq!(list[1]["state"], "running", "{list:?}");
    let first_pid: u64 = first_pid.parse().unwrap();
    assert!(list.iter().all(|one| one["pid"] != first_pid));
    let ambiguous = host.ctl(&["kill", "t"]);
    assert_eq!(ambiguous.code, 2, "{}", ambiguous.stderr);
    let nobody = host.ctl(&["kill", "t:99999"]);
    assert_eq!(nobody.code, 3, "{}", nobody.stderr);
    let of = |one: &Value| format!("t:{}", one["pid"]);
    assert_eq!(
        host.ctl(&["kill", &of(&list[0]), "--signal", "KILL"]).code,
        0
    );
    assert_eq!(wait(&mut waiting.client), 137);
    assert_eq!(host.ps().len(), 1);
    assert_eq!(host.ctl(&["kill", &of(&list[1])]).code, 0);
    assert_eq!(wait(&mut spinning.client), 143);
    assert!(host.ps().is_empty());
    let next = host.ctl(&["run", "t", "--", segv.to_str().unwrap(), "divide"]);
    assert_eq!(next.code, 136, "{}", next.stderr);
}

#[test]
fn one_ends_alone_in_ring_3_mode() {
    one_ends_alone("3");
}

#[test]
fn one_ends_alone_in_ring_0_mode() {
    one_ends_alone("0");
}

#[test]
fn a_limit_leaves_memory_to_others() {
    let host = Host::new("3", "1");
    let program = siblings();
    let mut hungry = host.start(&["--limit-mem", "24M"], &program, &["hungry"]);
    hungry.pid();
    let told = hungry.line();
    let (had, why) = told.split_once(" MiB, ").unwrap();
    let had: u64 = had.parse().unwrap();
    assert!((8..24).contains(&had), "{told}");
    assert_eq!(why, "ENOMEM");
    let mut second = host.sibling(&["turns", "3", "7"]);
    second.pid();
    assert_eq!(second.line(), expected("3", "7"));
    assert_eq!(second.end(), 0);
    assert_eq!(hungry.end(), 0);
    // One that does not fit its own limit never starts.
    let small = host.ctl(&[
        "run",
        "t",
        "--limit-mem",
        "64K",
        "--",
        program.to_str().unwrap(),
    ]);
    assert_eq!(small.code, 126, "{}", small.stderr);
    assert!(small.stderr.contains("limit"), "{}", small.stderr);
}

#[test]
fn one_more_than_there_is_room_for_is_refused() {
    const MOST: usize = 12;
    let host = Host::new("3", "1");
    let start = |_| host.start(&["--stack", "256K"], &bench(), &[]);
    let programs: Vec<Program> = (0..MOST).map(start).collect();
    let is_up = |list: &[Value]| list.iter().filter(|one| one["pid"] != 0).count() == MOST;
    host.becomes("all run", is_up);
    let program = siblings();
    let refused = host.ctl(&["run", "t", "--", program.to_str().unwrap()]);
    assert_eq!(refused.code, 125, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("already runs 12"),
        "{}",
        refused.stderr
    );
    for program in programs {
        assert_eq!(program.end(), 0);
    }
    assert!(host.ps().is_empty());
}

/// Publishes in `ring` mode while an intruder tries what it can.
fn an_intruder_reaches_nothing(ring: &str) {
    let host = Host::new(ring, "1");
    let mut victim = host.start(&[], &bench(), &[]);
    let mut ask = |request: &str| {
        use std::io::Write as _;
        let input = victim.client.stdin.as_mut().unwrap();
        writeln!(input, "{request}").unwrap();
        victim.line()
    };
    assert_eq!(ask("make q 8192 4096 3 discard-newest 0"), "ok 4096");
    assert_eq!(ask("step q"), "ok 1");
    let pid = host.ps()[0]["pid"].to_string();
    let mut intruder = host.sibling(&["intrude", &pid]);
    intruder.pid();
    let told: Vec<String> = std::iter::from_fn(|| Some(intruder.line()))
        .take_while(|line| !line.is_empty())
        .collect();
    let wanted = [
        "kill: No such process",
        "tgkill: No such process",
        "affinity: No such process",
        "prlimit: No such process",
        "woken: 0",
        "futex: Operation timed out",
    ];
    assert_eq!(told, wanted);
    assert_eq!(wait(&mut intruder.client), 139);
    assert_eq!(ask("step q"), "ok 2");
    assert_eq!(host.ps().len(), 1);
    // A third one attaches what the first publishes.
    let mut reader = host.start(&[], &bench(), &[]);
    let mut read = |request: &str| {
        use std::io::Write as _;
        let input = reader.client.stdin.as_mut().unwrap();
        writeln!(input, "{request}").unwrap();
        reader.line()
    };
    assert_eq!(read("attach q latest 0"), "ok 8192 4096");
    let shown = read("next q 0");
    assert!(shown.starts_with("ok 1 2 "), "{shown}");
    for step in 3..=12 {
        assert_eq!(ask("step q"), format!("ok {step}"));
        let shown = read("next q 60000");
        assert!(shown.starts_with(&format!("ok 1 {step} ")), "{shown}");
    }
    drop(reader.client.stdin.take());
    assert_eq!(wait(&mut reader.client), 0);
    assert_eq!(ask("step q"), "ok 13");
    drop(victim.client.stdin.take());
    assert_eq!(wait(&mut victim.client), 0);
}

#[test]
fn an_intruder_reaches_nothing_in_ring_3_mode() {
    an_intruder_reaches_nothing("3");
}

#[test]
fn an_intruder_reaches_nothing_in_ring_0_mode() {
    an_intruder_reaches_nothing("0");
}
