//! `xasm-bench`, in an enclave or as a process of Linux (from `cargo xtask image`; folder `$XASM_OUT`,
//! else `out/`), told what to do line by line. Part of each test crate that
//! names it, beside `support`; ends program, enclave and broker when dropped.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use xemem_host::Stream;
use xemem_host::wire::Policy;

use crate::support::{enclavectl, finish, require_programs, unique_dir, wait};

/// Longest wait for anything that should happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a chunk.
pub(crate) const CHUNK: u64 = 4096;

/// What is below the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    Enclave,
    Linux,
}

/// A program that does what it is told.
pub(crate) struct Producer {
    pub(crate) run_dir: PathBuf,
    /// Waited for when it is taken.
    pub(crate) program: Option<Child>,
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Producer {
    /// With an arena `q` of two chunks.
    pub(crate) fn new(below: Below, banks: u32, policy: &str) -> Self {
        let mut this = Self::bare(below);
        let made = this.ask(&format!("make q {} {CHUNK} {banks} {policy}", 2 * CHUNK));
        assert!(made.starts_with("ok "), "{made}");
        this
    }

    /// Without any arena.
    pub(crate) fn bare(below: Below) -> Self {
        require_programs();
        let run_dir = unique_dir("queue");
        let mut command = match below {
            Below::Enclave => in_enclave(&run_dir),
            Below::Linux => on_linux(&run_dir),
        };
        let mut program = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = program.stdin.take();
        let replies = BufReader::new(program.stdout.take().unwrap());
        Self {
            run_dir,
            program: Some(program),
            requests,
            replies,
        }
    }

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

    /// Newest generation, dropped, discarded, waited.
    pub(crate) fn stats(&mut self) -> [u64; 4] {
        let line = self.ask("stats q");
        let words = line.strip_prefix("ok ").unwrap().split(' ');
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }

    pub(crate) fn reader(&self, policy: Policy) -> Stream {
        let socket = self.run_dir.join("xemem.sock");
        Stream::attach(&socket, "q", policy, PATIENCE).unwrap()
    }

    pub(crate) fn listed(&self) -> serde_json::Value {
        let listed = finish(
            enclavectl(&self.run_dir).args(["snap", "ls", "--json"]),
            b"",
        );
        let value: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
        value["arenas"][0].clone()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // End of input ends the program.
        self.requests = None;
        if let Some(mut program) = self.program.take() {
            wait(&mut program);
        }
        for arguments in [&["destroy", "--all"][..], &["broker", "stop", "--force"]] {
            finish(enclavectl(&self.run_dir).args(arguments), b"");
        }
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}

/// The program in a new enclave.
fn in_enclave(run_dir: &Path) -> Command {
    let create = "create q --cores 1 --share-cores --mem 64M --no-prefault --backing small";
    let created = finish(enclavectl(run_dir).args(create.split(' ')), b"");
    assert_eq!(created.code, 0, "{}", created.stderr);
    let mut command = enclavectl(run_dir);
    command.args(["run", "q", "--"]).arg(bench());
    command
}

/// The same file as a process of Linux; it starts the broker itself.
fn on_linux(run_dir: &Path) -> Command {
    let enclavectl = Path::new(env!("CARGO_BIN_EXE_enclavectl"));
    let mut command = Command::new(bench());
    command
        .env("ENCLAVE_RUNDIR", run_dir)
        .env("XASM_BACKEND", "linux")
        .env("PATH", enclavectl.parent().unwrap());
    command
}

pub(crate) fn bench() -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let out = std::env::var_os("XASM_OUT").map_or_else(|| repository.join("out"), PathBuf::from);
    let program = out.join("xasm-bench");
    assert!(
        program.is_file(),
        "{} is missing; try: cargo xtask image",
        program.display()
    );
    program
}

/// The first word of what a reader sees.
pub(crate) fn word(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes.get(..8).unwrap().try_into().unwrap())
}
