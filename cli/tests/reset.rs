//! `reset` on real enclaves: a fresh kernel with the same resources, whatever the old
//! one did.
//!
//! Needs /dev/kvm, musl-gcc, and `xasm-bench` from `cargo xtask image`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "some helpers are for other tests")]
#[path = "support/producer.rs"]
mod producer;
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use producer::{Below, PATIENCE, Producer, word};
use serde_json::{Value, json};
use support::{BUSYBOX, Ended, build, enclavectl, finish, require_programs, unique_dir, wait};
use xemem_host::wire::Policy;

/// An enclave `t`, gone at the end.
struct Host(PathBuf);

impl Host {
    fn new(more: &[&str]) -> Self {
        require_programs();
        let this = Self(unique_dir("reset"));
        let create = ["create", "t", "--mem", "64M", "--share-cores", "--backing"];
        let made = this.ctl(&[&create[..], &["small"], more].concat());
        assert_eq!(made.code, 0, "{}", made.stderr);
        this
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.0).args(args), b"")
    }

    #[track_caller]
    fn told(&self, args: &[&str], code: i32) -> String {
        let ended = self.ctl(args);
        assert_eq!(ended.code, code, "{args:?}: {}", ended.stderr);
        ended.stdout + &ended.stderr
    }

    fn reset(&self) {
        self.told(&["reset", "t"], 0);
    }

    /// Starts a program and waits for its first line.
    fn start(&self, program: PathBuf, args: &[&str]) -> (Child, BufReader<ChildStdout>) {
        let mut client = enclavectl(&self.0)
            .args(["run", "t", "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap());
        lines.read_line(&mut String::new()).unwrap();
        (client, lines)
    }

    fn live(&self) -> Value {
        let inspected = self.ctl(&["inspect", "t", "--json"]).stdout;
        let mut inspected: Value = serde_json::from_str(&inspected).unwrap();
        inspected["enclave"]["live"].take()
    }

    /// What has to stay: process, cores, memory, descriptors and mappings of memory.
    fn held(&self) -> Value {
        let live = self.live();
        let pid = live["effective"]["pid"].as_i64().unwrap();
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let ram = maps.lines().filter(|line| line.contains("xasm-ram"));
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
        json!([pid, live["effective"]["cores"], fds, ram.count(), tasks])
    }

    /// Threads that have just ended are there for a moment.
    #[track_caller]
    fn holds(&self, before: &Value) {
        let deadline = Instant::now() + PATIENCE;
        while self.held() != *before {
            assert!(Instant::now() < deadline, "{} {before}", self.held());
        }
    }

    /// That it works.
    #[track_caller]
    fn works(&self) {
        let said = self.told(&["run", "t", "--", BUSYBOX, "echo", "works"], 0);
        assert!(said.contains("works"), "{said}");
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

fn program(name: &str) -> PathBuf {
    let gcc = ["musl-gcc", "-O1", "-static"];
    build(&format!("c/{name}.c"), &format!("reset-{name}"), &gcc)
}

#[test]
fn a_program_that_never_ends_is_over_and_all_resources_stay() {
    for more in [&["--cores", "2"][..], &["--no-prefault"]] {
        let host = Host::new(more);
        host.works();
        let before = host.held();
        let (mut client, _lines) = host.start(program("steps"), &["999999999999"]);
        host.reset();
        assert_eq!(wait(&mut client), 125);
        host.holds(&before);
        host.works();
        let ps: Value = serde_json::from_str(&host.ctl(&["ps", "t", "--json"]).stdout).unwrap();
        assert_eq!(ps["processes"], json!([]));
        assert!(host.told(&["events"], 0).contains(" t reset"));
    }
}

#[test]
fn nothing_of_the_old_program_is_left_to_the_new_one() {
    for more in [&[][..], &["--no-prefault"]] {
        let host = Host::new(more);
        host.told(&["update", "t", "--add-mem", "128M"], 0);
        let secret = program("secret");
        let secret = secret.to_str().unwrap();
        host.told(&["run", "t", "--", secret, "fill"], 0);
        host.reset();
        // Looks at all memory that it can get, before its kernel clears any.
        host.told(&["run", "t", "--", secret, "look"], 0);
        assert_eq!(host.live()["effective"]["added_bytes"], 128 << 20);
        host.told(&["update", "t", "--remove-mem", "128M"], 0);
    }
}

#[test]
fn cores_and_memory_that_were_added_stay() {
    let host = Host::new(&["--cores", "1-1", "--max-cores", "2"]);
    host.told(&["update", "t", "--add-cores", "1"], 0);
    host.told(&["update", "t", "--add-mem", "256M"], 0);
    let before = host.held();
    host.reset();
    host.holds(&before);
    assert_eq!(host.live()["effective"]["added_bytes"], 256 << 20);
    host.works();
    host.told(&["update", "t", "--remove-cores", "1"], 0);
    host.told(&["update", "t", "--remove-mem", "256M"], 0);
    host.reset();
    assert_eq!(host.live()["effective"]["cores"], json!([1]));
    host.works();
}

#[test]
fn a_kernel_that_has_failed_is_replaced() {
    let host = Host::new(&["--ring", "3"]);
    // In ring-3 mode a program can overwrite its kernel.
    let scribble = build(
        "hostile/scribble.c",
        "reset-scribble",
        &["gcc", "-O1", "-static"],
    );
    let scribbled = host.ctl(&["run", "t", "--", scribble.to_str().unwrap()]);
    drop(scribbled);
    host.reset();
    host.works();
    assert_eq!(host.live()["machine"]["state"], "idle");
}

#[test]
fn who_has_attached_a_snapshot_reads_on_and_the_next_program_publishes_anew() {
    let mut program = Producer::new(Below::Enclave, 4, "discard-newest 0");
    assert!(program.ask("step q").starts_with("ok"));
    let mut stream = program.reader(Policy::Latest);
    let held = stream.next(Some(PATIENCE)).unwrap().unwrap();
    let content = word(held.as_slice());
    let name = finish(enclavectl(&program.run_dir).args(["list", "-q"]), b"").stdout;
    let reset = finish(
        enclavectl(&program.run_dir).args(["reset", name.trim()]),
        b"",
    );
    assert_eq!(reset.code, 0, "{}", reset.stderr);
    wait(&mut program.program.take().unwrap());
    assert_eq!(word(held.as_slice()), content);
    let mut next = enclavectl(&program.run_dir);
    next.args(["run", name.trim(), "--"]).arg(producer::bench());
    let orders = format!("make q {} 4096 4 discard-newest 0\nstep q\nstep q\n", 8192);
    let published = finish(&mut next, orders.as_bytes());
    assert_eq!(published.code, 0, "{}", published.stderr);
    let answers = published.stdout.lines();
    assert_eq!(answers.filter(|line| line.starts_with("ok")).count(), 3);
    assert_eq!(word(held.as_slice()), content);
}

#[test]
fn fifty_times_nothing_grows() {
    let host = Host::new(&["--no-prefault"]);
    host.reset();
    host.works();
    let before = host.held();
    let mut times = Vec::new();
    for _ in 0..50 {
        let begin = Instant::now();
        host.reset();
        times.push(begin.elapsed());
    }
    host.works();
    host.holds(&before);
    times.sort_unstable();
    println!("reset: median {:?}", times[times.len() / 2]);
    assert!(times[25] < Duration::from_secs(5));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let host = Host::new(&["--no-prefault"]);
    host.told(&["freeze", "t"], 0);
    let said = host.told(&["reset", "t"], 4);
    assert!(said.contains("frozen") && said.contains("thaw t"), "{said}");
    host.told(&["thaw", "t"], 0);
    host.told(&["reset", "nobody"], 3);
    std::thread::scope(|scope| {
        let resets = [(); 4].map(|()| scope.spawn(|| host.ctl(&["reset", "t"]).code));
        let codes = resets.map(|reset| reset.join().unwrap());
        assert!(codes.iter().all(|code| [0, 4].contains(code)), "{codes:?}");
        assert!(codes.contains(&0), "{codes:?}");
    });
    host.works();
}
