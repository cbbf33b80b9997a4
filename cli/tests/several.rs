//! Several enclaves at once, and many one after the other.
//!
//! Enclaves are created, used and destroyed from threads of their own, in
//! whatever order comes of it, and all compute what one alone does; so does one
//! beside others that crash, loop, flood and take all memory. A long row
//! of them (`XASM_ROUNDS=10000` for as many as were promised) leaves not one
//! descriptor, page, file or process more than there was. `xasm-bench` comes
//! from `cargo xtask image` (folder `$XASM_OUT`, else `out/`). Needs /dev/kvm.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use xemem_host::{Broker, Role};

use support::{BUSYBOX, Ended, build, enclavectl, finish, require_programs, unique_dir, wait};

/// Enclaves at once, on however few cores.
const AT_ONCE: usize = 6;
/// How often each of them is created anew.
const LIVES: usize = 3;
/// Enclaves one after the other, unless `XASM_ROUNDS` says otherwise.
const ROUNDS: usize = 60;
/// What each of them does with an arena.
const SHARED: &[u8] = b"make q 65536 4096 4 discard-newest 0\nstep q\nend q\n";

/// A run directory whose enclaves and broker end with it.
struct Host(PathBuf);

impl Host {
    fn new() -> Self {
        require_programs();
        Self(unique_dir("several"))
    }

    fn run_dir(&self) -> PathBuf {
        self.0.join("run")
    }

    fn call(&self, args: &[&str], stdin: &[u8]) -> Ended {
        finish(enclavectl(&self.run_dir()).args(args), stdin)
    }

    #[track_caller]
    fn told(&self, args: &[&str], stdin: &[u8]) -> String {
        let ended = self.call(args, stdin);
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
        ended.stdout
    }

    #[track_caller]
    fn create(&self, name: &str, backing: &str) {
        let create = ["create", name, "--mem", "32M", "--share-cores"];
        let rest = ["--no-prefault", "--backing", backing];
        let export = format!("{}=/data", self.0.display());
        let all = [&create[..], &rest, &["--export", &export]].concat();
        self.told(&all, b"");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for args in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            self.call(args, b"");
        }
        fs::remove_dir_all(&self.0).ok();
    }
}

fn xasm_bench() -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let out = std::env::var_os("XASM_OUT").map_or_else(|| repository.join("out"), PathBuf::from);
    let program = out.join("xasm-bench");
    assert!(program.is_file(), "no xasm-bench; try: cargo xtask image");
    program.to_str().unwrap().to_owned()
}

/// A file that enclaves see as `/data/content`, and its checksum.
fn content(host: &Host) -> String {
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let path = host.0.join("content");
    fs::write(&path, &content).unwrap();
    let printed = finish(Command::new(BUSYBOX).arg("sha256sum").arg(path), b"").stdout;
    printed.split_once(' ').unwrap().0.to_owned()
}

/// The same computed in enclave `name`.
#[track_caller]
fn sum_in(host: &Host, name: &str) -> String {
    let run = ["run", name, "--", BUSYBOX, "sha256sum", "/data/content"];
    let printed = host.told(&run, b"");
    printed.split_once(' ').unwrap().0.to_owned()
}

#[test]
fn enclaves_come_and_go_at_once_and_compute_what_one_alone_does() {
    let host = Host::new();
    let expected = content(&host);
    let live = |nr: usize| {
        let name = format!("e{nr}");
        for _ in 0..LIVES {
            host.create(&name, "small");
            assert_eq!(sum_in(&host, &name), expected, "{name}");
            host.told(&["destroy", &name], b"");
        }
    };
    thread::scope(|scope| {
        for nr in 0..AT_ONCE {
            scope.spawn(move || live(nr));
        }
    });
    assert_eq!(
        host.told(&["list"], b"").lines().count(),
        1,
        "a heading only"
    );
}

#[test]
fn neighbours_that_misbehave_change_no_result() {
    let host = Host::new();
    let expected = content(&host);
    let segv = build("c/segv.c", "segv-several", &["gcc", "-static", "-O0"]);
    let segv = segv.to_str().unwrap();
    let doubling = "BEGIN { s = \"memory\"; while (1) s = s s }";
    let neighbours: [(&str, &[&str]); 3] = [
        ("crashing", &[segv, "wild"]),
        ("flooding", &[BUSYBOX, "seq", "300000"]),
        ("hungry", &[BUSYBOX, "awk", doubling]),
    ];
    for (name, _) in neighbours {
        host.create(name, "small");
    }
    host.create("looping", "small");
    host.create("victim", "small");
    let mut looping = enclavectl(&host.run_dir())
        .args([
            "run",
            "looping",
            "--",
            BUSYBOX,
            "awk",
            "BEGIN { while (1) x++ }",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let enough = AtomicBool::new(false);
    let again = |name: &'static str, program: &[&str]| {
        let run = [&["run", name, "--"], program].concat();
        let mut codes = Vec::new();
        while codes.is_empty() || !enough.load(Ordering::Relaxed) {
            codes.push(host.call(&run, b"").code);
        }
        codes
    };
    thread::scope(|scope| {
        let again = &again;
        let ends = neighbours.map(|(name, program)| scope.spawn(move || again(name, program)));
        for _ in 0..5 {
            assert_eq!(sum_in(&host, "victim"), expected);
        }
        enough.store(true, Ordering::Relaxed);
        let [crashing, flooding, hungry] = ends.map(|end| end.join().unwrap());
        assert!(
            crashing.iter().all(|&code| code == 128 + 11),
            "{crashing:?}"
        );
        assert!(flooding.iter().all(|&code| code == 0), "{flooding:?}");
        assert!(hungry.iter().all(|&code| code == 1), "{hungry:?}");
    });
    assert!(looping.try_wait().unwrap().is_none(), "it loops");
    kill_process(Pid::from_child(&looping), Signal::TERM).unwrap();
    wait(&mut looping);
    // And all are as good as before.
    for name in ["crashing", "flooding", "hungry", "looping", "victim"] {
        assert_eq!(sum_in(&host, name), expected, "{name}");
    }
}

/// What could be left behind.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    broker_descriptors: usize,
    files: Vec<PathBuf>,
    huge_pages_free: Vec<String>,
    processes: usize,
}

impl Left {
    /// Asks over a connection that stays until nobody else is connected. Also
    /// returns the keeper's descriptors, of which some may still be on the way.
    fn look(host: &Host, broker: &mut Broker) -> (Self, usize) {
        let status = loop {
            let status = broker.status().unwrap();
            if status.clients == 1 {
                break status;
            }
        };
        let pid = status.pid.to_string();
        let about = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let keeper = about.lines().find_map(|line| line.strip_prefix("PPid:"));
        let descriptors = |pid: &str| {
            let folder = fs::read_dir(format!("/proc/{}/fd", pid.trim())).unwrap();
            folder.count()
        };
        let mut files = Vec::new();
        all_below(&host.run_dir(), &mut files);
        // The log of events starts anew at its bound and keeps the one before.
        files.retain(|file| !file.ends_with("events.jsonl.1"));
        files.sort();
        let left = Self {
            broker_descriptors: descriptors(&pid),
            files,
            huge_pages_free: huge_pages_free(),
            processes: processes_of(&host.run_dir()),
        };
        (left, descriptors(keeper.unwrap()))
    }
}

fn all_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_below(&path, found);
        }
        found.push(path);
    }
}

fn huge_pages_free() -> Vec<String> {
    let pools = fs::read_dir("/sys/kernel/mm/hugepages").unwrap();
    let free = pools.map(|pool| pool.unwrap().path().join("free_hugepages"));
    free.map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Processes that were given this run directory.
fn processes_of(run_dir: &Path) -> usize {
    let wanted = run_dir.to_str().unwrap().as_bytes();
    let has_it = |entry: std::io::Result<fs::DirEntry>| {
        let command = fs::read(entry.unwrap().path().join("cmdline"));
        command.is_ok_and(|line| line.windows(wanted.len()).any(|part| part == wanted))
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| has_it(entry).then_some(()))
        .count()
}

#[test]
fn a_long_row_of_enclaves_leaves_nothing_behind() {
    let host = Host::new();
    let bench = xasm_bench();
    let rounds = std::env::var("XASM_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let round = || {
        host.create("row", "auto");
        let found = host.told(&["run", "row", "--", &bench], SHARED);
        assert!(found.lines().all(|line| line.starts_with("ok")), "{found}");
        host.told(&["destroy", "row"], b"");
        // Its last generation would stay for a while.
        host.told(&["snap", "rm", "--all"], b"");
    };
    for _ in 0..3 {
        round();
    }
    let mut broker = Broker::connect_as(&host.run_dir().join("xemem.sock"), Role::Consumer);
    let broker = broker.as_mut().unwrap();
    let (before, kept) = Left::look(&host, broker);
    for _ in 0..rounds {
        round();
    }
    let (after, still_kept) = Left::look(&host, broker);
    assert_eq!(after, before);
    assert!(still_kept < kept + rounds / 2, "{kept}, then {still_kept}");
}
