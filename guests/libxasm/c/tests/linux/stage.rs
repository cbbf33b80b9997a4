//! A broker in this process, in a directory of its own, and programs that find
//! it there.

use crate::programs::Program;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use xemem_host::broker::Retention;
use xemem_host::server::{Options, Server};
use xemem_host::wire::Policy;
use xemem_host::{Broker, Stream};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    directory: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("xasm-linux-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).expect("a fresh directory");
        let options = Options {
            linger: Duration::from_secs(3600),
            rings_per_second: 100_000,
            retention: Retention::NONE,
            owner_uid: None,
        };
        let server = Server::start(&directory.join("xemem.sock"), options)
            .expect("it starts")
            .expect("it is the only one");
        let server = std::thread::spawn(move || server.run().expect("it serves"));
        Self {
            directory,
            server: Some(server),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("xemem.sock")
    }

    /// A command that publishes here, and starts no broker of its own.
    pub(crate) fn command(&self, program: &Program) -> Command {
        let mut command = program.command();
        command
            .env("ENCLAVE_RUNDIR", &self.directory)
            .env("XASM_BACKEND", "linux")
            .env("PATH", "/usr/bin:/bin");
        command
    }

    pub(crate) fn reader(&self, name: &str, policy: Policy) -> Stream {
        Stream::attach(&self.socket(), name, policy, PATIENCE).expect("an arena")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let ended = Broker::connect(&self.socket()).and_then(|mut broker| broker.shutdown(true));
        if let Some(server) = self.server.take() {
            let joined = server.join();
            // A second panic would hide the first.
            if !std::thread::panicking() {
                ended.expect("it can be told to end");
                joined.expect("it served");
            }
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A program that says something and then waits for a line.
pub(crate) struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            input,
            output,
        }
    }

    /// The next line, or what is left of it.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }

    pub(crate) fn go_on(&mut self) {
        let input = self.input.as_mut().expect("it listens");
        input.write_all(b"\n").expect("it listens");
    }

    pub(crate) fn finish(mut self) -> ExitStatus {
        self.input = None;
        self.child.wait().expect("it ends")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended, but for a test that fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
