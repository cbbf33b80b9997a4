//! A run directory with its enclaves and programs, and the proof at its end
//! that nothing of it is left.

use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{
    BUSYBOX, Ended, build, enclavectl, finish, require_programs, unique_dir, wait,
};

/// Longest wait for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time a destroy may take: half a second of grace, then SIGKILL, and
/// room for a machine that does other things besides.
pub(crate) const PROMPT: Duration = Duration::from_secs(3);
/// Pause between two looks at something without a descriptor to wait on.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// One test's run directory.
pub(crate) struct Stage {
    pub(crate) home: PathBuf,
}

impl Stage {
    /// A run directory without enclaves.
    pub(crate) fn empty() -> Self {
        require_programs();
        Self {
            home: unique_dir("hostile"),
        }
    }

    /// A run directory with the enclave `t`.
    pub(crate) fn new() -> Self {
        let stage = Self::empty();
        stage.create("t");
        stage
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.home.join("run")
    }

    pub(crate) fn ctl(&self, args: &[&str]) -> Command {
        let mut command = enclavectl(&self.run_dir());
        command.args(args);
        command
    }

    /// `enclavectl ARGS` to its end.
    pub(crate) fn ended(&self, args: &[&str]) -> Ended {
        finish(&mut self.ctl(args), b"")
    }

    /// `enclavectl ARGS`, which must succeed; its output.
    #[track_caller]
    pub(crate) fn succeeds(&self, args: &[&str]) -> String {
        let ended = self.ended(args);
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
        ended.stdout
    }

    /// `enclavectl ARGS`, which must end with `code` and say why in three
    /// lines; what it says.
    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str], code: i32) -> String {
        let ended = self.ended(args);
        assert_eq!(ended.code, code, "{args:?}: {}", ended.stderr);
        let lines = ended.stderr.lines().count();
        assert!((2..=3).contains(&lines), "{args:?}: {}", ended.stderr);
        assert!(
            ended.stderr.starts_with("enclavectl: "),
            "{args:?}: {}",
            ended.stderr
        );
        ended.stderr
    }

    #[track_caller]
    pub(crate) fn create(&self, name: &str) {
        self.succeeds(&light(&["create", name]));
    }

    /// Destroys `name`, which must be prompt whatever its programs do.
    #[track_caller]
    pub(crate) fn destroy(&self, name: &str) {
        let begin = Instant::now();
        self.succeeds(&["destroy", name]);
        let took = begin.elapsed();
        assert!(took < PROMPT, "destroy took {took:?}");
    }

    /// `enclavectl run NAME -- PROGRAM ARGS` to its end.
    pub(crate) fn run(&self, name: &str, program: &Path, args: &[&str]) -> Ended {
        finish(&mut self.run_command(name, program, args), b"")
    }

    fn run_command(&self, name: &str, program: &Path, args: &[&str]) -> Command {
        let mut command = self.ctl(&["run", name, "--"]);
        command.arg(program).args(args);
        command
    }

    /// The same, not waited for.
    pub(crate) fn start(&self, name: &str, program: &Path, args: &[&str]) -> Program {
        Program::start(self.run_command(name, program, args))
    }

    /// Runs a good program; the enclave must be as good as new.
    #[track_caller]
    pub(crate) fn still_runs(&self, name: &str) {
        let ended = self.run(name, Path::new(BUSYBOX), &["echo", "all is well"]);
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (0, "all is well\n"),
            "{}",
            ended.stderr
        );
        assert_eq!(self.state(name), "idle");
    }

    /// What `list` says of `name`: its row.
    #[track_caller]
    pub(crate) fn row(&self, name: &str) -> Value {
        let text = self.succeeds(&["list", "--json"]);
        let list: Value = serde_json::from_str(&text).unwrap();
        let rows = list["enclaves"].as_array().unwrap();
        rows.iter()
            .find(|row| row["name"] == name)
            .unwrap_or_else(|| panic!("{name} is not listed: {text}"))
            .clone()
    }

    #[track_caller]
    pub(crate) fn state(&self, name: &str) -> String {
        self.row(name)["state"].as_str().unwrap().to_owned()
    }

    /// Process id of the enclave's VMM.
    pub(crate) fn vmm(&self, name: &str) -> Pid {
        pid(&self.row(name)["pid"])
    }

    /// Has the broker forget the arenas that have ended.
    #[track_caller]
    pub(crate) fn give_up_retained(&self) {
        self.succeeds(&["snap", "rm", "--all"]);
    }

    /// The broker's status.
    pub(crate) fn broker(&self) -> Value {
        let text = self.succeeds(&["broker", "status", "--json"]);
        serde_json::from_str::<Value>(&text).unwrap()["broker"].clone()
    }
}

pub(crate) fn pid(value: &Value) -> Pid {
    let number = value.as_i64().and_then(|pid| i32::try_from(pid).ok());
    Pid::from_raw(number.unwrap()).unwrap()
}

/// `args` for an enclave that takes little of the host.
pub(crate) fn light<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let more = [
        "--cores",
        "1",
        "--share-cores",
        "--mem",
        "128M",
        "--no-prefault",
        "--backing",
        "small",
    ];
    args.iter().copied().chain(more).collect()
}

impl Drop for Stage {
    fn drop(&mut self) {
        let destroyed = self.ended(&["destroy", "--all"]);
        // There may be none any more; what counts is looked at below.
        self.ended(&["broker", "stop", "--force"]);
        let left = self.leftovers();
        if thread::panicking() {
            eprintln!("left: {left:?}");
        } else {
            assert_eq!(destroyed.code, 0, "destroy --all: {}", destroyed.stderr);
            assert_eq!(left, Vec::<String>::new());
        }
        fs::remove_dir_all(&self.home).ok();
    }
}

impl Stage {
    /// Processes of this run directory, and files somebody still locks, once
    /// whatever is ending has ended. Memory objects need no look of their own:
    /// only these processes ever get them.
    fn leftovers(&self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE / 4;
        loop {
            let mut left = self.processes();
            left.extend(locked_below(&self.run_dir()));
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn processes(&self) -> Vec<String> {
        let mut wanted = b"ENCLAVE_RUNDIR=".to_vec();
        wanted.extend_from_slice(self.run_dir().as_os_str().as_bytes());
        let belongs = |process: &PathBuf| {
            let environ = fs::read(process.join("environ")).unwrap_or_default();
            environ.split(|&byte| byte == 0).any(|one| one == wanted)
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.map(|entry| entry.path())
            .filter(belongs)
            .map(|process| {
                let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                format!("{} {}", process.display(), name.trim())
            })
            .collect()
    }
}

/// Files below `directory` that somebody holds a lock on.
fn locked_below(directory: &Path) -> Vec<String> {
    let mut locked = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            locked.extend(locked_below(&path));
        } else if kind.is_file()
            && File::open(&path)
                .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
        {
            locked.push(format!("{} is locked", path.display()));
        }
    }
    locked
}

/// A program that is read while it runs.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Program {
    /// Starts `command` with all three streams; its errors are shown when the
    /// test fails.
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Read on when nobody listens: a full pipe would stop it.
                sender.send(line).ok();
            }
        });
        Self {
            child,
            stdin,
            lines,
        }
    }

    /// The next line; `None` at the end of the output.
    #[track_caller]
    pub(crate) fn next(&self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line within {PATIENCE:?}"),
        }
    }

    /// Reads to the first line that starts with `start`.
    #[track_caller]
    pub(crate) fn await_line(&self, start: &str) -> String {
        let mut seen = Vec::new();
        while let Some(line) = self.next() {
            if line.trim_start().starts_with(start) {
                return line;
            }
            seen.push(line);
        }
        panic!("it ended without a line {start}: {seen:#?}");
    }

    /// What is left of the output, to its end.
    pub(crate) fn rest(&self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }

    pub(crate) fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end: its exit code, signals as a shell tells them.
    pub(crate) fn code(&mut self) -> i32 {
        wait(&mut self.child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits until `reached` says so.
#[track_caller]
pub(crate) fn eventually(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(LOOK_AGAIN);
    }
}

/// A program of `guests/programs/hostile`.
pub(crate) fn hostile(name: &str) -> PathBuf {
    // Without a frame to spare and unoptimised, its faults stay what they are.
    let compiler = [
        "gcc",
        "-O0",
        "-fno-stack-protector",
        "-static",
        "-no-pie",
        "-Wall",
        "-Wextra",
    ];
    build(
        &format!("hostile/{name}.c"),
        &format!("hostile-{name}"),
        &compiler,
    )
}
