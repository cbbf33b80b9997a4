//! Starting a broker on demand.
//!
//! Many clients may try at once: all start one, one wins the lock, the others
//! end at once, and every client finds the winner. A broker that was about to
//! end for want of clients is replaced: that is the one retry.

use super::{Broker, ClientError};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// File name of the log, beside the socket.
const LOG_NAME: &str = "xemem.log";
/// What a broker says once it serves.
const READY: &[u8] = b"ready\n";

pub(super) fn connect_or_start(socket: &Path, exe: &Path) -> Result<Broker, ClientError> {
    for _ in 0..2 {
        match Broker::connect(socket) {
            Err(error) if is_absent(&error) => start(socket, exe)?,
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
fn start(socket: &Path, exe: &Path) -> Result<(), ClientError> {
    let failed = |why: String| ClientError::Start {
        exe: exe.to_owned(),
        why,
    };
    let socket = std::path::absolute(socket).map_err(|error| failed(error.to_string()))?;
    let mut child = Command::new(exe)
        .arg("--detach")
        .arg("--socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_of(&socket).map_or_else(Stdio::null, Stdio::from))
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut said = Vec::new();
    let heard = child.stdout.take().map(|mut out| {
        // Ends when the broker lets go of the pipe: ready, or dead.
        out.read_to_end(&mut said)
    });
    if said == READY {
        reap_later(child);
        return Ok(());
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    let log = socket.with_file_name(LOG_NAME);
    let log = log.display();
    match heard {
        Some(Err(error)) => Err(failed(error.to_string())),
        _ => Err(failed(format!("it ended with {status}; see {log}"))),
    }
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
