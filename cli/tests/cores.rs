//! `update` of cores on real enclaves: cores come and go while threads compute, and
//! what is refused changes nothing.
//!
//! Needs /dev/kvm and gcc. `XASM_ROUNDS` sets the rounds of adding and removing
//! (default 50). Cores are shared, so that two are enough.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "needs no busybox")]
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Ended, build, enclavectl, finish, require_programs, unique_dir, wait};

/// An enclave `t` of one core with room for two, gone at the end.
struct Host(PathBuf);

/// Threads in it that do what they are told.
struct Crew {
    client: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Crew {
    #[track_caller]
    fn tell(&mut self, line: &str, answer: &str) {
        writeln!(self.stdin, "{line}").unwrap();
        let mut said = String::new();
        self.stdout.read_line(&mut said).unwrap();
        assert_eq!(said.trim_end(), answer, "{line}");
    }

    /// Ends it; nothing it computed was wrong.
    #[track_caller]
    fn end(mut self) {
        self.tell("end", "0 wrong");
        assert_eq!(wait(&mut self.client), 0);
    }
}

impl Host {
    fn new(ring: &str, more: &[&str]) -> Self {
        require_programs();
        let this = Self(unique_dir("cores"));
        let create = ["create", "t", "--mem", "64M", "--share-cores", "--ring"];
        let room = [ring, "--no-prefault", "--backing", "small"];
        let made = this.ctl(&[&create[..], &room, more].concat());
        assert_eq!(made.code, 0, "{}", made.stderr);
        this
    }

    fn with_room(ring: &str) -> Self {
        Self::new(ring, &["--cores", "1-1", "--max-cores", "2"])
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.0).args(args), b"")
    }

    /// Expects the exit code; what was said.
    #[track_caller]
    fn told(&self, args: &[&str], code: i32) -> String {
        let ended = self.ctl(args);
        assert_eq!(ended.code, code, "{args:?}: {}", ended.stderr);
        ended.stdout
    }

    /// Expects a refusal in three lines: with `why` in the second, a command in
    /// the third; it still has `cores`.
    #[track_caller]
    fn refused(&self, args: &[&str], code: i32, why: &str, cores: &[usize]) {
        let said = self.ctl(args);
        assert_eq!(said.code, code, "{args:?}: {}", said.stderr);
        let lines: Vec<&str> = said.stderr.lines().collect();
        assert_eq!(lines.len(), 3, "{}", said.stderr);
        assert!(lines[1].contains(why), "{}", said.stderr);
        assert!(lines[2].starts_with("  try: "), "{}", said.stderr);
        self.has(cores);
    }

    fn run(&self) -> Crew {
        let gcc = ["gcc", "-O2", "-static", "-pthread"];
        let mut client = enclavectl(&self.0)
            .args(["run", "t", "--"])
            .arg(build("c/crew.c", "crew", &gcc))
            .arg("4")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = client.stdin.take().unwrap();
        let stdout = BufReader::new(client.stdout.take().unwrap());
        Crew {
            client,
            stdin,
            stdout,
        }
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ctl(args).stdout).unwrap()
    }

    /// What the ledger, the VMM and its threads say it has.
    #[track_caller]
    fn has(&self, cores: &[usize]) {
        let listed = self.json(&["list", "--json"]);
        assert_eq!(listed["enclaves"][0]["cores"], json!(cores));
        let inspected = self.json(&["inspect", "t", "--json"]);
        let live = &inspected["enclave"]["live"];
        assert_eq!(live["effective"]["cores"], json!(cores));
        let pid = live["effective"]["pid"].as_i64().unwrap();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")));
        let names = names.map(|name| name.unwrap_or_default());
        let vcpus = names.filter(|name| name.starts_with("vcpu")).count();
        assert_eq!(vcpus, cores.len());
    }

    fn pid(&self) -> Pid {
        let inspected = self.json(&["inspect", "t", "--json"]);
        let pid = inspected["enclave"]["live"]["effective"]["pid"].as_i64();
        Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()).unwrap()
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

fn rounds() -> u32 {
    let rounds = std::env::var("XASM_ROUNDS").ok();
    rounds.and_then(|text| text.parse().ok()).unwrap_or(50)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn cores_come_and_go_while_threads_compute() {
    for (ring, rounds) in [("3", rounds()), ("0", rounds().min(10))] {
        let host = Host::with_room(ring);
        let mut crew = host.run();
        crew.tell("cores", "1 of 1");
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for (times, change) in times.iter_mut().zip(["--add-cores", "--remove-cores"]) {
                let begin = Instant::now();
                host.told(&["update", "t", change, "1"], 0);
                times.push(begin.elapsed());
            }
            if round % 10 == 0 {
                host.told(&["update", "t", "--add-cores", "0-0"], 0);
                host.has(&[0, 1]);
                crew.tell("cores", "2 of 2");
                crew.tell("rounds", "going");
                host.told(&["update", "t", "--remove-cores", "0-0"], 0);
                host.has(&[1]);
                crew.tell("cores", "1 of 1");
                crew.tell("rounds", "going");
            }
        }
        crew.end();
        let [add, remove] = times.map(median);
        println!("ring {ring}, {rounds} rounds: add {add:?}, remove {remove:?}");
    }
}

#[test]
fn a_program_that_ends_or_starts_meanwhile_is_not_disturbed() {
    let host = Host::with_room("auto");
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for _ in 0..20 {
                host.told(&["update", "t", "--add-cores", "1"], 0);
                host.told(&["update", "t", "--remove-cores", "1"], 0);
            }
        });
        while !changes.is_finished() {
            let mut crew = host.run();
            crew.tell("rounds", "going");
            crew.end();
        }
    });
    host.has(&[1]);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let host = Host::with_room("auto");
    let add = |cores| ["update", "t", "--add-cores", cores];
    let remove = |cores| ["update", "t", "--remove-cores", cores];
    host.refused(&remove("1"), 2, "the first one stays", &[1]);
    host.refused(&remove("1-1"), 2, "core 1 is its first one", &[1]);
    host.refused(&remove("0-0"), 2, "core 0 is not one of its cores", &[1]);
    host.refused(&remove("0"), 2, "0 cores", &[1]);
    host.refused(&add("0"), 2, "0 cores", &[1]);
    host.refused(&add("1-1"), 2, "core 1 is one of its cores already", &[1]);
    host.refused(&add("99-99"), 6, "core 99 does not exist", &[1]);
    host.refused(&add("4000"), 2, "4000 cores", &[1]);
    host.refused(&add("2"), 6, "2 wanted, 1 of ", &[1]);
    host.told(&["freeze", "t"], 0);
    host.refused(&add("1"), 4, "it is frozen", &[1]);
    host.told(&["thaw", "t"], 0);
    for nonsense in ["x", "1,", "-1", "5-2"] {
        let said = host.ctl(&["update", "t", &format!("--add-cores={nonsense}")]);
        assert_eq!(said.code, 2, "{}", said.stderr);
    }
    host.told(&add("1"), 0);
    let mut crew = host.run();
    crew.tell("pin 1", "done");
    let why = "may run on core 0 alone";
    host.refused(&remove("1"), 4, why, &[0, 1]);
    crew.tell("unpin", "done");
    host.told(&remove("1"), 0);
    crew.tell("pin 1", "refused");
    crew.end();
}

#[test]
fn without_room_or_with_cores_of_its_own_it_is_refused() {
    let host = Host::new("auto", &["--cores", "1-1"]);
    let add = ["update", "t", "--add-cores", "0-0"];
    host.refused(&add, 6, "room for 1", &[1]);
    host.told(&["destroy", "t"], 0);
    let create = ["create", "t", "--mem", "64M", "--cores", "1-1"];
    let room = ["--max-cores", "2", "--no-prefault", "--backing", "small"];
    host.told(&[&create[..], &room].concat(), 0);
    host.refused(&add, 6, "the last core from the host", &[1]);
    let other = ["create", "u", "--mem", "64M", "--cores", "1-1"];
    let said = host.ctl(&[&other[..], &["--share-cores"]].concat());
    assert_eq!(said.code, 4, "{}", said.stderr);
    let small = ["create", "v", "--mem", "64M", "--cores", "2"];
    let said = host.ctl(&[&small[..], &["--max-cores", "1"]].concat());
    assert_eq!(said.code, 2, "{}", said.stderr);
    let said = host.ctl(&[&small[..], &["--max-cores", "33"]].concat());
    assert_eq!(said.code, 2, "{}", said.stderr);
}

#[test]
fn a_core_that_has_gone_is_anothers_to_take() {
    let host = Host::with_room("auto");
    host.told(&["update", "t", "--add-cores", "1"], 0);
    let own = ["create", "u", "--mem", "64M", "--cores", "0-0"];
    let own = [&own[..], &["--no-prefault", "--backing", "small"]].concat();
    let said = host.ctl(&own);
    assert_eq!(said.code, 4, "{}", said.stderr);
    host.told(&["update", "t", "--remove-cores", "1"], 0);
    host.told(&[&own[..], &["--share-cores"]].concat(), 0);
    host.told(&["destroy", "u"], 0);
    let events = host.told(&["events"], 0);
    assert!(events.contains("cores-added cores 0-1 now"), "{events}");
    assert!(events.contains("cores-removed cores 1 now"), "{events}");
}

#[test]
fn killing_client_or_vmm_in_the_middle_leaves_the_ledger_right() {
    let host = Host::with_room("auto");
    let mut crew = host.run();
    crew.tell("rounds", "going");
    for step in 0..12 {
        let change = ["--add-cores", "--remove-cores"][step % 2];
        let mut client = enclavectl(&host.0);
        client.args(["update", "t", change, "1"]);
        let mut client = client.stderr(Stdio::null()).spawn().unwrap();
        // Anywhere between its start and its end.
        std::thread::sleep(Duration::from_micros(600 * step as u64));
        kill_process(Pid::from_child(&client), Signal::KILL).unwrap();
        wait(&mut client);
        // The VMM carries out what it has taken, one after the other.
        let settled = host.ctl(&["update", "t", "--add-mem", "128M"]);
        assert!([0, 4].contains(&settled.code), "{}", settled.stderr);
        let listed = host.json(&["list", "--json"])["enclaves"][0]["cores"].clone();
        assert!(listed == json!([1]) || listed == json!([0, 1]), "{listed}");
    }
    crew.tell("rounds", "going");
    crew.end();
    let mut client = enclavectl(&host.0);
    client.args(["update", "t", "--add-cores", "1"]);
    let mut client = client.stderr(Stdio::null()).spawn().unwrap();
    kill_process(host.pid(), Signal::KILL).unwrap();
    wait(&mut client);
    host.ctl(&["destroy", "t"]);
    let both = ["create", "t", "--mem", "64M", "--cores", "2"];
    let both = [&both[..], &["--no-prefault", "--backing", "small"]].concat();
    host.told(&[&both[..], &["--share-cores"]].concat(), 0);
    host.has(&[0, 1]);
}
