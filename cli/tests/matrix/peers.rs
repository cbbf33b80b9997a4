//! The enclaves, the broker, and the programs that stand at either end of a cell.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xemem_host::Broker;

use crate::broker::kill_with_keeper;
use crate::linux_peer::SOCKET;
use crate::support::{BUSYBOX, Ended, enclavectl, finish, require_programs, unique_dir, wait};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Linux,
    Enclave(&'static str),
}

/// Enclaves `a` and `b`, and huge pages if they can be had.
pub(crate) struct Stage {
    run_dir: PathBuf,
    huge_pages: u64,
}

impl Stage {
    pub(crate) fn new(ring: &str, huge_pages: u64) -> Self {
        require_programs();
        let this = Self {
            run_dir: unique_dir("matrix"),
            huge_pages: change_pool(huge_pages.cast_signed()),
        };
        for name in ["a", "b"] {
            let options = "--cores 1 --share-cores --mem 64M --no-prefault --backing small --ring";
            let options = options.split(' ').chain([ring]);
            let arguments: Vec<&str> = ["create", name].into_iter().chain(options).collect();
            let ended = this.enclavectl(&arguments);
            assert_eq!(ended.code, 0, "{}", ended.stderr);
        }
        this
    }

    /// Whether two segments of two pages can be made of them.
    pub(crate) fn has_huge_pages(&self) -> bool {
        self.huge_pages >= 8
    }

    pub(crate) fn enclavectl(&self, arguments: &[&str]) -> Ended {
        finish(enclavectl(&self.run_dir).args(arguments), b"")
    }

    /// A program with one argument, to its end.
    pub(crate) fn run(&self, enclave: &str, program: &Path, argument: &str) -> Ended {
        self.enclavectl(&["run", enclave, "--", program.to_str().unwrap(), argument])
    }

    /// A program written for XPMEM, which attaches segment `segid`.
    pub(crate) fn xpmem_program(&self, segid: u64) -> Ended {
        let include = repository().join("xemem-host/xpmem/include");
        let library = made("libxpmem.so.0");
        let program = compile("importer", &include, &[], &library);
        let mut command = Command::new(&program);
        command
            .arg(segid.to_string())
            .env("LD_LIBRARY_PATH", library.parent().unwrap())
            .env("ENCLAVE_RUNDIR", &self.run_dir)
            .env("XPMEM_DEBUG", "1")
            .env_remove("XEMEM_SOCKET");
        finish(&mut command, b"")
    }

    /// The enclave is as good as new.
    #[track_caller]
    pub(crate) fn still_runs(&self, enclave: &str) {
        let ended = self.enclavectl(&["run", enclave, "--", BUSYBOX, "echo", "well"]);
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (0, "well\n"),
            "{}",
            ended.stderr
        );
        assert_eq!(self.fact(enclave, "imports"), 0);
    }

    /// The first value under `key` in what `inspect` says.
    pub(crate) fn fact(&self, enclave: &str, key: &str) -> Value {
        let text = self.enclavectl(&["inspect", enclave, "--json"]).stdout;
        find(&serde_json::from_str(&text).unwrap(), key).unwrap()
    }

    /// Open descriptors and mappings of shared objects of the enclave's VMM.
    pub(crate) fn holdings(&self, enclave: &str) -> (usize, usize) {
        let pid = self.fact(enclave, "pid");
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let shared = maps.lines().filter(|line| line.contains("memfd:"));
        (fds, shared.count())
    }

    /// Looks until it is so; some things end by themselves.
    #[track_caller]
    pub(crate) fn eventually(&self, what: &str, is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < end, "not in time: {what}");
            std::thread::yield_now();
        }
    }

    /// The broker's process, as a number.
    pub(crate) fn broker(&self) -> Value {
        self.broker_pid().as_raw_nonzero().get().into()
    }

    /// Signals of the first segment there is, and how often it was throttled.
    pub(crate) fn signals(&self) -> (u64, u64) {
        let mut broker = Broker::connect(&self.run_dir.join("xemem.sock")).unwrap();
        let list = broker.list().unwrap();
        (list[0].signals, list[0].throttled)
    }

    /// The process of the broker.
    fn broker_pid(&self) -> Pid {
        let mut broker = Broker::connect(&self.run_dir.join("xemem.sock")).unwrap();
        let pid = i32::try_from(broker.status().unwrap().pid).unwrap();
        Pid::from_raw(pid).unwrap()
    }

    /// Kills the broker, and waits for the next one.
    pub(crate) fn kill_broker(&self) {
        let before = self.broker_pid();
        kill_process(before, Signal::KILL).unwrap();
        self.eventually("another broker", || self.broker_pid() != before);
    }

    /// Kills the broker and its keeper: there is no next one.
    pub(crate) fn kill_broker_and_keeper(&self) {
        let mut broker = Broker::connect(&self.run_dir.join("xemem.sock")).unwrap();
        kill_with_keeper(self.broker_pid());
        while broker.status().is_ok() {}
    }

    /// A program that does what it is told.
    pub(crate) fn peer(&self, at: Where) -> Peer {
        let mut command = match at {
            Where::Enclave(name) => {
                let mut command = enclavectl(&self.run_dir);
                command.args(["run", name, "--"]).arg(guest_program());
                command
            }
            Where::Linux => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command
                    .args(["the_other_process_does_as_told", "--exact", "--nocapture"])
                    .arg("--test-threads=1")
                    .env(SOCKET, self.run_dir.join("xemem.sock"))
                    .env("ENCLAVE_RUNDIR", &self.run_dir)
                    .env("XASM_BACKEND", "linux");
                command
            }
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Peer {
            orders: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for arguments in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            self.enclavectl(arguments);
        }
        let _ = fs::remove_dir_all(&self.run_dir);
        change_pool(-self.huge_pages.cast_signed());
    }
}

/// Adds pages to the pool of the host, as far as it lets us; how many came.
fn change_pool(by: i64) -> u64 {
    if by == 0 {
        return 0;
    }
    let Ok(file) = fs::OpenOptions::new().read(true).write(true).open(POOL) else {
        return 0;
    };
    // Others change it by difference, too, under this lock.
    file.lock().unwrap();
    let pages = || -> i64 { fs::read_to_string(POOL).unwrap().trim().parse().unwrap() };
    let before = pages();
    let wanted = before.saturating_add(by).max(0).to_string();
    let _ = (&file).write_all(wanted.as_bytes());
    (pages() - before).unsigned_abs()
}

/// An end of a cell; ends with its input.
pub(crate) struct Peer {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Gives an order and does not wait.
    pub(crate) fn tell(&mut self, order: &str) {
        let orders = self.orders.as_mut().unwrap();
        writeln!(orders, "{order}").unwrap();
        orders.flush().unwrap();
    }

    /// Its answer: a number, or an errno.
    pub(crate) fn ask(&mut self, order: &str) -> Result<u64, i32> {
        self.tell(order);
        self.answer(order)
    }

    /// The answer to the order given before.
    pub(crate) fn answer(&mut self, order: &str) -> Result<u64, i32> {
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).unwrap();
            assert!(read > 0, "{order}: the program ended");
            // A test harness prints lines of its own.
            let Some((_, answer)) = line.split_once('@') else {
                continue;
            };
            let (word, number) = answer.trim_end().split_once(' ').unwrap();
            return match word {
                "ok" => Ok(number.parse().unwrap()),
                _ => Err(number.parse().unwrap()),
            };
        }
    }

    /// Its answer, which has to be a number.
    #[track_caller]
    pub(crate) fn number(&mut self, order: &str) -> u64 {
        let answer = self.ask(order);
        answer.unwrap_or_else(|errno| panic!("{order}: errno {errno}"))
    }

    /// What is done without a word.
    #[track_caller]
    pub(crate) fn done(&mut self, order: &str) {
        assert_eq!(self.number(order), 0, "{order}");
    }

    /// Kills it, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        assert_eq!(wait(&mut self.child), 137);
    }

    /// Has `enclavectl run` end the program, by SIGTERM.
    pub(crate) fn kill_politely(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert_eq!(wait(&mut self.child), 143);
    }

    /// It was ended by somebody else.
    pub(crate) fn has_ended(&mut self) {
        assert_ne!(wait(&mut self.child), 0);
    }

    /// Refused.
    #[track_caller]
    pub(crate) fn refused(&mut self, order: &str, errno: i32) {
        assert_eq!(self.ask(order), Err(errno), "{order}");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.orders = None;
        if std::thread::panicking() {
            // It may wait for what does not come any more.
            let _ = self.child.kill();
        }
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            wait(&mut self.child);
        }
    }
}

fn find(value: &Value, key: &str) -> Option<Value> {
    match value {
        Value::Object(map) => map
            .get(key)
            .cloned()
            .or_else(|| map.values().find_map(|v| find(v, key))),
        Value::Array(list) => list.iter().find_map(|v| find(v, key)),
        _ => None,
    }
}

/// `peer.c`, built once.
fn guest_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let include = repository().join("guests/libxasm/include");
        compile("peer", &include, &["-static"], &made("libxasm.a"))
    })
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What `cargo xtask image` made.
fn made(name: &str) -> PathBuf {
    let out = std::env::var_os("XASM_OUT");
    let file = out
        .map_or_else(|| repository().join("out"), PathBuf::from)
        .join(name);
    let shown = file.display();
    assert!(file.is_file(), "{shown} is missing; try: cargo xtask image");
    file
}

/// A C program of this test, linked with `library`.
fn compile(name: &str, include: &Path, options: &[&str], library: &Path) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = target.join(format!("matrix-{name}"));
    let fresh = target.join(format!("matrix-{name}.{}", std::process::id()));
    let source = repository().join(format!("cli/tests/matrix/{name}.c"));
    let mut command = Command::new("cc");
    command
        .args(["-O2", "-Wall", "-Wextra", "-Werror"])
        .args(options)
        .arg(source)
        .arg("-I")
        .arg(include)
        .arg(library)
        .arg("-o")
        .arg(&fresh);
    let ended = finish(&mut command, b"");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    fs::rename(fresh, &program).unwrap();
    program
}
