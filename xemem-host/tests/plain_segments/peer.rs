//! The other process: this program once more, told what to do line by line.
//!
//! One line in, one line out; the words are in [`crate::roles`].

use crate::roles;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Tells the program to be the other process, and where the broker is.
const SOCKET: &str = "XEMEM_TEST_SOCKET";
/// Begins each answer: the test harness prints lines of its own.
pub(crate) const ANSWER: &str = "@";
/// The test below.
const TEST: &str = "peer::the_other_process_does_as_told_and_refuses_nonsense";

/// A process of our own making; killed when dropped.
pub(crate) struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    pub(crate) fn start(socket: &Path) -> Self {
        let exe = std::env::current_exe().expect("our own program");
        let mut child = Command::new(exe)
            .args([TEST, "--exact", "--nocapture", "--test-threads=1"])
            .env(SOCKET, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Self {
            child,
            stdin,
            stdout,
        }
    }

    /// Gives an order and does not wait for the answer.
    pub(crate) fn tell(&mut self, order: &str) {
        writeln!(self.stdin, "{order}").expect("it listens");
    }

    /// The answer to the order before.
    pub(crate) fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).expect("it speaks");
            assert!(read > 0, "the other process ended");
            // The harness ends none of its own lines before the first answer.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim_end().to_owned();
            }
        }
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.answer()
    }

    pub(crate) fn number(&mut self, order: &str) -> u64 {
        let answer = self.ask(order);
        answer
            .parse()
            .unwrap_or_else(|_| panic!("{order}: {answer}"))
    }

    /// Kills it, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::KILL).expect("killed");
        let status = self.child.wait().expect("reaped");
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    }

    /// Lets it end; it must not have been ended by anything else.
    pub(crate) fn finish(mut self) {
        self.tell("end");
        let status = self.child.wait().expect("reaped");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_other_process_does_as_told_and_refuses_nonsense() {
    if let Some(socket) = std::env::var_os(SOCKET) {
        roles::play(Path::new(&socket));
        return;
    }
    let process = crate::broker_process::BrokerProcess::start();
    let mut peer = Peer::start(&process.socket());
    assert_eq!(peer.ask("dance"), "cannot dance");
    assert_eq!(peer.ask("attach nothing ro 0 1"), "error ENOENT");
    peer.finish();
}
