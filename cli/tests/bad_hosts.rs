//! Hosts that fail an enclave while it is made: a full disk, another who wants the
//! last core at the same moment, signals and kills at any moment. Whatever comes of
//! it is whole or nothing, and the next one finds the host as it was.
//!
//! Needs /dev/kvm; a full disk needs root, for a small file system of its own.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "runs no guest programs")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Ended, enclavectl, finish, require_programs, unique_dir};

/// Longest wait for anything that should happen at once.
const PATIENCE: Duration = Duration::from_secs(60);
/// Creates that are cut off, unless `XASM_ROUNDS` says otherwise.
const ROUNDS: u32 = 24;

fn rounds() -> u32 {
    let rounds = std::env::var("XASM_ROUNDS").ok();
    rounds.map_or(ROUNDS, |rounds| rounds.parse().unwrap())
}

/// A run directory whose enclaves and broker end with it.
struct Host {
    run_dir: PathBuf,
    /// Unmounted at the end.
    mounted: bool,
}

impl Host {
    fn new() -> Self {
        require_programs();
        Self {
            run_dir: unique_dir("bad"),
            mounted: false,
        }
    }

    fn ctl(&self, args: &[&str]) -> Ended {
        finish(enclavectl(&self.run_dir).args(args), b"")
    }

    fn create(&self, name: &str, more: &[&str]) -> Command {
        let mut command = enclavectl(&self.run_dir);
        command.args(["create", name, "--cores", "1", "--mem", "64M"]);
        command.args(["--backing", "small", "--no-prefault"]);
        command.args(more);
        command
    }

    /// State of an enclave, "gone" for none.
    fn state(&self, name: &str) -> String {
        let listed = self.ctl(&["list", "--json"]);
        assert_eq!(listed.code, 0, "{}", listed.stderr);
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
        let rows = listed["enclaves"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == name);
        row.map_or_else(
            || "gone".to_owned(),
            |row| row["state"].as_str().unwrap().to_owned(),
        )
    }

    /// Nothing of the enclave is left once it is destroyed, and one of its name
    /// can be made.
    fn is_as_it_was(&self, name: &str, more: &[&str]) {
        self.ctl(&["destroy", "--ignore-missing", name]);
        assert_eq!(self.state(name), "gone");
        assert!(!self.run_dir.join("enclaves").join(name).exists());
        assert!(!self.run_dir.join("ledger/isolation.json").exists());
        let made = finish(&mut self.create(name, more), b"");
        assert_eq!(made.code, 0, "{}", made.stderr);
        assert_eq!(self.ctl(&["destroy", name]).code, 0);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for arguments in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            self.ctl(arguments);
        }
        if self.mounted {
            let deadline = Instant::now() + PATIENCE;
            // The broker lets go of it a moment after it was told.
            while !run("umount", &[self.run_dir.to_str().unwrap()]) && Instant::now() < deadline {}
        }
        let _ = fs::remove_dir_all(&self.run_dir);
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stderr(Stdio::null());
    command.status().unwrap().success()
}

fn signal(child: &Child, signal: Signal) {
    // One that has ended is not waited for yet: its number is still its own.
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_once_there_is_room() {
    let mut host = Host::new();
    let path = host.run_dir.to_str().unwrap().to_owned();
    assert!(
        run(
            "mount",
            &["-t", "tmpfs", "-o", "size=96k,mode=755", "xasm-test", &path]
        ),
        "this test mounts a small file system: run it as root"
    );
    host.mounted = true;
    // The broker has its files before the disk is full.
    host.is_as_it_was("a1", &["--share-cores"]);
    let filler = Path::new(&path).join("filler");
    let mut refused = 0;
    for kib in (0..96).rev().step_by(4) {
        // Every amount of room from none up, until it is enough.
        let room = fs::write(&filler, vec![1; kib << 10]);
        let made = finish(&mut host.create("a1", &["--share-cores"]), b"");
        if made.code == 0 {
            assert_eq!(host.ctl(&["destroy", "a1"]).code, 0);
        } else {
            refused += u32::from(made.stderr.contains("No space left"));
            assert!(
                made.stderr.contains("No space left") || made.stderr.contains("try: "),
                "{}",
                made.stderr
            );
            assert_eq!(made.stderr.lines().count() % 3, 0, "{}", made.stderr);
            // Whatever it could not remove for want of room counts for nobody.
            assert!(["gone", "dead"].contains(&&*host.state("a1")));
        }
        drop(room);
        fs::remove_file(&filler).unwrap();
    }
    assert!(refused > 0, "the disk was never full");
    host.is_as_it_was("a1", &["--share-cores"]);
}

#[test]
fn of_two_who_want_the_last_core_one_gets_it() {
    let host = Host::new();
    let cores = std::thread::available_parallelism().unwrap().get();
    // All but two cores are somebody's, so that one is left to be had.
    let taken: Vec<String> = (2..cores).map(|nr| format!("t{nr}")).collect();
    for name in &taken {
        let made = finish(&mut host.create(name, &["--isolation", "off"]), b"");
        assert_eq!(made.code, 0, "{}", made.stderr);
    }
    for _ in 0..rounds() / 4 {
        let racers = ["a1", "a2", "a3"].map(|name| {
            let mut command = host.create(name, &["--isolation", "off"]);
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        });
        let ended = racers.map(|racer| racer.wait_with_output().unwrap());
        let codes = ended.each_ref().map(|ended| ended.status.code().unwrap());
        let winners = codes.iter().filter(|code| **code == 0).count();
        assert_eq!(winners, 1, "{codes:?}");
        for loser in ended.iter().filter(|ended| !ended.status.success()) {
            let told = String::from_utf8_lossy(&loser.stderr);
            assert!([Some(4), Some(6)].contains(&loser.status.code()), "{told}");
            assert!(told.contains("core"), "{told}");
        }
        let all: Vec<&str> = ["destroy", "--ignore-missing", "a1", "a2", "a3"].into();
        assert_eq!(host.ctl(&all).code, 0);
    }
}

/// The VMM that makes `name`, as soon as its lock file says who it is.
fn vmm(host: &Host, name: &str) -> Option<Pid> {
    let lock = host.run_dir.join("enclaves").join(name).join("lock");
    let text = fs::read_to_string(lock).ok()?;
    let record: Value = serde_json::from_str(text.lines().next()?).ok()?;
    Pid::from_raw(i32::try_from(record["pid"].as_i64()?).ok()?)
}

#[test]
fn creates_that_are_cut_off_at_any_moment_leave_what_destroy_removes() {
    let host = Host::new();
    let alone = &["--isolation", "auto"][..];
    let begin = Instant::now();
    host.is_as_it_was("a1", alone);
    let whole = begin.elapsed() / 2;
    for round in 0..rounds() {
        // The moment moves through all of a create, whatever phase it is in.
        let moment = whole * round / rounds();
        let what = [Signal::KILL, Signal::TERM, Signal::INT][round as usize % 3];
        let mut command = host.create("a1", alone);
        let mut creator = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = creator.stderr.take().unwrap();
        let begin = Instant::now();
        while begin.elapsed() < moment {
            std::hint::spin_loop();
        }
        // In turn: the command, its VMM, both.
        let of_vmm = vmm(&host, "a1");
        if round % 2 == 0 || of_vmm.is_none() {
            signal(&creator, what);
        }
        if round % 4 != 0
            && let Some(pid) = of_vmm
        {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, what);
        }
        creator.wait().unwrap();
        // A VMM has it, too, until it has taken its name: none is on its way now.
        std::io::copy(&mut said, &mut std::io::sink()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut state = host.state("a1");
        while state == "creating" {
            assert!(Instant::now() < deadline, "a VMM without a creator stays");
            state = host.state("a1");
        }
        assert!(
            ["gone", "dead", "idle"].contains(&&*state),
            "round {round}: {state}"
        );
        host.is_as_it_was("a1", alone);
    }
}
