//! Enclaves that share cores, and programs in them that do what they are told,
//! line by line. Part of each test crate that names it, beside `support`; ends
//! programs, enclaves and broker when dropped.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Ended, enclavectl, finish, require_programs, unique_dir, wait};

/// Longest wait that a request asks for, in milliseconds.
pub(crate) const PATIENCE: u32 = 60_000;

/// A run directory and its enclaves.
pub(crate) struct Enclaves {
    pub(crate) run_dir: PathBuf,
}

impl Enclaves {
    /// Creates those of `names` in mode `ring`.
    pub(crate) fn new(ring: &str, names: &[&str]) -> Self {
        require_programs();
        let this = Self {
            run_dir: unique_dir("enclaves"),
        };
        for name in names {
            this.create(name, ring);
        }
        this
    }

    pub(crate) fn create(&self, name: &str, ring: &str) {
        let options = "--cores 1 --share-cores --mem 64M --no-prefault --backing small --ring";
        let options = options.split(' ').chain([ring]);
        let arguments: Vec<&str> = ["create", name].into_iter().chain(options).collect();
        self.succeeds(&arguments);
    }

    pub(crate) fn ended(&self, arguments: &[&str]) -> Ended {
        finish(enclavectl(&self.run_dir).args(arguments), b"")
    }

    #[track_caller]
    pub(crate) fn succeeds(&self, arguments: &[&str]) -> String {
        let ended = self.ended(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
        ended.stdout
    }

    /// `xasm-bench` in `enclave`.
    pub(crate) fn bench(&self, enclave: &str) -> Program {
        self.start(enclave, &made("xasm-bench"), &[])
    }

    pub(crate) fn start(&self, enclave: &str, program: &Path, arguments: &[&str]) -> Program {
        let mut child = enclavectl(&self.run_dir)
            .args(["run", enclave, "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Program {
            requests: child.stdin.take(),
            replies: BufReader::new(child.stdout.take().unwrap()),
            child: Some(child),
        }
    }

    /// The first value under `key` in what `inspect` says.
    pub(crate) fn fact(&self, enclave: &str, key: &str) -> Value {
        let text = self.succeeds(&["inspect", enclave, "--json"]);
        find(&serde_json::from_str(&text).unwrap(), key).unwrap()
    }
}

impl Drop for Enclaves {
    fn drop(&mut self) {
        for arguments in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            self.ended(arguments);
        }
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}

/// The first value under `key` anywhere in `value`.
pub(crate) fn find(value: &Value, key: &str) -> Option<Value> {
    match value {
        Value::Object(map) => map
            .get(key)
            .cloned()
            .or_else(|| map.values().find_map(|v| find(v, key))),
        Value::Array(list) => list.iter().find_map(|v| find(v, key)),
        _ => None,
    }
}

/// A program that does what it is told; end of input ends it.
pub(crate) struct Program {
    /// Until it has been waited for.
    child: Option<Child>,
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Program {
    pub(crate) fn tell(&mut self, request: &str) {
        let requests = self.requests.as_mut().unwrap();
        writeln!(requests, "{request}").unwrap();
        requests.flush().unwrap();
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn ask(&mut self, request: &str) -> String {
        self.tell(request);
        self.answer()
    }

    /// The numbers of an answer that has to be one.
    #[track_caller]
    pub(crate) fn numbers(&mut self) -> Vec<u64> {
        let line = self.answer();
        let words = line.strip_prefix("ok").unwrap_or_else(|| panic!("{line}"));
        let words = words.split_ascii_whitespace();
        words.map(|word| word.parse().unwrap()).collect()
    }

    /// Ends it, as soon as it has done what it was told.
    pub(crate) fn end_input(&mut self) {
        self.requests = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Waits for its end: exit code, signals as a shell tells them.
    pub(crate) fn code(&mut self) -> i32 {
        wait(&mut self.child.take().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(mut child) = self.child.take() {
            if thread::panicking() {
                // It may wait for what does not come any more.
                let _ = child.kill();
            }
            wait(&mut child);
        }
    }
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What `cargo xtask image` made.
pub(crate) fn made(name: &str) -> PathBuf {
    let out = std::env::var_os("XASM_OUT");
    let file = out
        .map_or_else(|| repository().join("out"), PathBuf::from)
        .join(name);
    let shown = file.display();
    assert!(file.is_file(), "{shown} is missing; try: cargo xtask image");
    file
}

/// Looks until it is so; the broker notices some things by itself.
#[track_caller]
pub(crate) fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_millis(PATIENCE.into());
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::yield_now();
    }
}
