//! `update` on real enclaves: memory comes and goes while a program computes, and
//! what is refused changes nothing.
//!
//! Needs /dev/kvm and musl-gcc. `XASM_ROUNDS` sets the rounds of adding and
//! removing (default 100).

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "needs no busybox")]
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Ended, build, enclavectl, finish, require_programs, unique_dir, wait};

/// An enclave `t` of 64 MiB, gone at the end.
struct Host(PathBuf);

/// A program in it that does what it is told.
struct Told {
    client: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Told {
    #[track_caller]
    fn tell(&mut self, line: &str, answer: &str) {
        writeln!(self.stdin, "{line}").unwrap();
        let mut said = String::new();
        self.stdout.read_line(&mut said).unwrap();
        assert_eq!(said.trim_end(), answer, "{line}");
    }

    #[track_caller]
    fn end(mut self) {
        writeln!(self.stdin, "end").unwrap();
        assert_eq!(wait(&mut self.client), 0);
    }
}

impl Host {
    fn new() -> Self {
        require_programs();
        let this = Self(unique_dir("update"));
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

    /// Expects a refusal in three lines: with `why` in the second, a command in
    /// the third.
    #[track_caller]
    fn refused(&self, args: &[&str], code: i32, why: &str) {
        let said = self.told(args, code);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 3, "{said}");
        assert!(lines[1].contains(why), "{said}");
        assert!(lines[2].starts_with("  try: "), "{said}");
    }

    fn run(&self) -> Told {
        let program = build("c/grow.c", "grow", &["musl-gcc", "-O1", "-static"]);
        let mut client = enclavectl(&self.0)
            .args(["run", "t", "--"])
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = client.stdin.take().unwrap();
        let stdout = BufReader::new(client.stdout.take().unwrap());
        Told {
            client,
            stdin,
            stdout,
        }
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ctl(args).stdout).unwrap()
    }

    /// What the ledger and the VMM say it has, in MiB.
    #[track_caller]
    fn has(&self, mib: u64) {
        let listed = self.json(&["list", "--json"]);
        assert_eq!(listed["enclaves"][0]["mem_bytes"], mib << 20);
        let inspected = self.json(&["inspect", "t", "--json"]);
        let added = &inspected["enclave"]["live"]["effective"]["added_bytes"];
        assert_eq!(*added, (mib - 64) << 20);
        let dump = self.json(&["debug", "dump", "t", "--json"]);
        let slots = dump["dump"]["slots"].as_array().unwrap();
        let ram = slots.iter().filter(|slot| slot["holds"] == "ram");
        let bytes: u64 = ram.map(|slot| slot["bytes"].as_u64().unwrap()).sum();
        assert_eq!(bytes, mib << 20);
    }

    fn pid(&self) -> i64 {
        let inspected = self.json(&["inspect", "t", "--json"]);
        let pid = inspected["enclave"]["live"]["effective"]["pid"].as_i64();
        pid.unwrap()
    }

    /// Memory objects that the VMM has mapped.
    fn objects(&self) -> usize {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        maps.lines()
            .filter(|line| line.contains("memfd:xasm-ram"))
            .count()
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

fn rounds() -> usize {
    let given = std::env::var("XASM_ROUNDS").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(100)
}

#[test]
fn a_program_uses_what_is_added_while_it_computes() {
    let host = Host::new();
    let mut program = host.run();
    program.tell("total", "64");
    program.tell("take 200", "not taken: Out of memory");
    host.told(&["update", "t", "--add-mem", "256M"], 0);
    host.has(320);
    program.tell("total", "320");
    program.tell("take 200", "taken");
    host.refused(
        &["update", "t", "--remove-mem", "256M"],
        4,
        "the program uses 204800 KiB",
    );
    host.has(320);
    program.tell("check", "right");
    program.tell("free", "freed");
    host.told(&["update", "t", "--remove-mem", "256M"], 0);
    host.has(64);
    program.tell("total", "64");
    program.tell("take 200", "not taken: Out of memory");
    program.end();
}

#[test]
fn only_blocks_that_are_free_go_and_the_rest_keeps_its_contents() {
    let host = Host::new();
    host.told(&["update", "t", "--add-mem", "384M"], 0);
    let mut program = host.run();
    program.tell("take 100", "taken");
    host.refused(
        &["update", "t", "--remove-mem", "384M"],
        4,
        "2 of its 3 added blocks are free, 3 are to go",
    );
    host.has(448);
    host.told(&["update", "t", "--remove-mem", "256M"], 0);
    program.tell("check", "right");
    host.told(&["update", "t", "--add-mem", "128M"], 0);
    program.tell("check", "right");
    program.tell("total", "320");
    program.end();
    // Its end freed what it had.
    host.told(&["update", "t", "--remove-mem", "256M"], 0);
    host.has(64);
}

#[test]
fn rounds_of_adding_and_removing_lose_no_page() {
    let host = Host::new();
    let mut program = host.run();
    program.tell("take 32", "taken");
    let objects = host.objects();
    for _ in 0..rounds() {
        host.told(&["update", "t", "--add-mem", "128M"], 0);
        host.told(&["update", "t", "--remove-mem", "128M"], 0);
    }
    program.tell("check", "right");
    program.tell("total", "64");
    program.end();
    assert_eq!(host.objects(), objects);
    host.has(64);
}

#[test]
fn an_idle_enclave_grows_and_shrinks() {
    let host = Host::new();
    host.told(&["update", "t", "--add-mem", "128M"], 0);
    let mut program = host.run();
    program.tell("total", "192");
    program.tell("take 120", "taken");
    program.end();
    host.told(&["update", "t", "--remove-mem", "128M"], 0);
    host.has(64);
    let events = host.ctl(&["events", "t"]).stdout;
    assert!(events.contains("memory-added 128M, 192M now"), "{events}");
    assert!(events.contains("memory-removed 128M, 64M now"), "{events}");
}

#[test]
fn sizes_that_cannot_be_are_refused_in_three_lines() {
    let host = Host::new();
    let update = |flag, size| ["update", "t", flag, size];
    for (size, why) in [
        ("64M", "no whole number of blocks"),
        ("0", "no whole number of blocks"),
        ("129M", "no whole number of blocks"),
    ] {
        host.refused(&update("--add-mem", size), 2, why);
        host.refused(&update("--remove-mem", size), 2, why);
    }
    host.refused(&update("--add-mem", "100T"), 6, "MiB of memory wanted");
    host.refused(&update("--remove-mem", "128M"), 2, "0 were added");
    for size in ["", "-1", "12Q", "18446744073709551616", "99999999999T"] {
        host.told(&update("--add-mem", size), 2);
    }
    host.told(&["update", "t"], 2);
    let both = ["update", "t", "--add-mem", "128M", "--remove-mem", "128M"];
    host.told(&both, 2);
    host.has(64);
}

#[test]
fn frozen_and_unknown_enclaves_are_refused() {
    let host = Host::new();
    host.told(&["freeze", "t"], 0);
    let add = ["update", "t", "--add-mem", "128M"];
    host.refused(&add, 4, "it is frozen");
    host.refused(&["update", "t", "--remove-mem", "128M"], 4, "it is frozen");
    host.told(&["thaw", "t"], 0);
    host.told(&add, 0);
    host.refused(&["update", "u", "--add-mem", "128M"], 3, "u");
    host.has(192);
}

/// Kills `pid` so long after now, which falls into any part of a change.
fn kill_after(pid: Pid, delay: Duration) {
    let then = Instant::now() + delay;
    while Instant::now() < then {
        std::hint::spin_loop();
    }
    // One that has ended is not waited for yet, or is the VMM, which waits.
    kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn a_command_that_is_killed_leaves_the_change_whole_or_not_made() {
    let host = Host::new();
    let mut program = host.run();
    program.tell("take 20", "taken");
    let mut has = 64;
    for n in 0..24 {
        let (flag, then) = if has == 64 {
            ("--add-mem", 192)
        } else {
            ("--remove-mem", 64)
        };
        let mut change = enclavectl(&host.0);
        change.args(["update", "t", flag, "128M"]);
        let mut change = change.stderr(Stdio::null()).spawn().unwrap();
        kill_after(Pid::from_child(&change), Duration::from_micros(500 * n));
        change.wait().unwrap();
        // The next one is refused as long as that one is under way.
        let deadline = Instant::now() + Duration::from_secs(20);
        while host.ctl(&["update", "t", "--remove-mem", "1280M"]).code == 4 {
            assert!(Instant::now() < deadline, "a change does not end");
        }
        let listed = host.json(&["list", "--json"]);
        let now = listed["enclaves"][0]["mem_bytes"].as_u64().unwrap() >> 20;
        assert!(now == has || now == then, "{now} MiB after {flag}");
        host.has(now);
        has = now;
    }
    program.tell("check", "right");
    program.tell("total", &has.to_string());
    program.end();
}

#[test]
fn a_vmm_that_is_killed_in_a_change_leaves_nothing() {
    for n in 0..12 {
        let host = Host::new();
        let pid = Pid::from_raw(i32::try_from(host.pid()).unwrap()).unwrap();
        let mut change = enclavectl(&host.0);
        change.args(["update", "t", "--add-mem", "256M"]);
        let mut change = change.stderr(Stdio::null()).spawn().unwrap();
        kill_after(pid, Duration::from_millis(n));
        change.wait().unwrap();
        let listed = host.json(&["list", "--json"]);
        assert_eq!(listed["enclaves"][0]["state"], "dead");
        host.refused(&["update", "t", "--add-mem", "128M"], 3, "");
        host.told(&["destroy", "t"], 0);
        let left = fs::read_dir(host.0.join("enclaves")).unwrap().count();
        assert_eq!(left, 0);
    }
}
