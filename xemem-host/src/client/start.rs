//! Starting a broker on demand.
//!
//! Many clients may try at once: all start one, one wins the lock, the others
//! end at once, and every client finds the winner. A broker that was about to
//! end for want of clients is replaced: that is the one retry.

use super::apart;
use super::connection::{ANSWER_WITHIN, time_left};
use super::{Broker, ClientError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

/// File name of the log, beside the socket.
const LOG_NAME: &str = "xemem.log";
/// What a broker says once it serves.
const READY: &[u8] = b"ready\n";

/// Whose child a broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// Ours.
    Us,
    /// Not ours: see [`Broker::connect_or_start_apart`].
    Nobody,
}

pub(super) fn connect_or_start(
    socket: &Path,
    exe: &Path,
    parent: Parent,
) -> Result<Broker, ClientError> {
    for _ in 0..2 {
        match Broker::connect(socket) {
            Err(error) if is_absent(&error) => start(socket, exe, parent)?,
            connected => return connected,
        }
    }
    Broker::connect(socket)
}

/// Whether a fresh broker could mend that.
fn is_absent(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { source, .. } => {
            matches!(
                *source,
                Errno::NOENT | Errno::CONNREFUSED | Errno::CONNRESET
            )
        }
        ClientError::BrokerGone => true,
        _ => false,
    }
}

/// Starts a broker and waits until it, or another one, serves.
fn start(socket: &Path, exe: &Path, parent: Parent) -> Result<(), ClientError> {
    let failed = |why: String| ClientError::Start {
        exe: exe.to_owned(),
        why,
    };
    let socket = std::path::absolute(socket).map_err(|error| failed(error.to_string()))?;
    let mut command = Command::new(exe);
    command
        .arg("--detach")
        .arg("--socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_of(&socket).map_or_else(Stdio::null, Stdio::from));
    if parent == Parent::Nobody {
        apart::set_apart(&mut command);
    }
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    if parent == Parent::Nobody {
        // It ends at once. A program that waits for any child may be faster.
        let _ = child.wait();
    }
    let mut said = Vec::new();
    let heard = child.stdout.take().map(|out| listen(out, &mut said));
    if said == READY {
        if parent == Parent::Us {
            reap_later(child);
        }
        return Ok(());
    }
    if parent == Parent::Nobody {
        let log = socket.with_file_name(LOG_NAME);
        return Err(failed(format!("it did not serve; see {}", log.display())));
    }
    if let Some(Err(Errno::TIMEDOUT)) = heard {
        // One that hangs is no use to anybody, and has nobody's memory yet.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    let log = socket.with_file_name(LOG_NAME);
    let log = log.display();
    match heard {
        Some(Err(errno)) => Err(failed(errno.to_string())),
        _ => Err(failed(format!("it ended with {status}; see {log}"))),
    }
}

/// Takes in what the broker says until it lets go of the pipe: ready, or dead.
fn listen(mut out: ChildStdout, said: &mut Vec<u8>) -> Result<(), Errno> {
    let deadline = Instant::now().checked_add(ANSWER_WITHIN);
    let mut piece = [0; 16];
    // A word more than it should say is enough to know that it is something else.
    while said.len() <= READY.len() {
        let mut fds = [PollFd::new(&out, PollFlags::IN)];
        match poll(&mut fds, time_left(deadline).as_ref()) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        }
        match out.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => said.extend(piece.iter().take(count)),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }
    Ok(())
}

/// The broker outlives its starter or not: in the latter case somebody has to
/// take its exit status.
fn reap_later(mut child: Child) {
    let reaper = std::thread::Builder::new().name("broker-reaper".to_owned());
    // Without the thread there is a zombie until we end: no harm.
    let _ = reaper.spawn(move || child.wait());
}

fn log_of(socket: &Path) -> Option<File> {
    let path = socket.with_file_name(LOG_NAME);
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    let flags = rustix::fs::OFlags::NOFOLLOW.bits();
    let flags = i32::try_from(flags).unwrap_or(0);
    options.custom_flags(flags).open(path).ok()
}
