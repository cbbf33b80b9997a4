//! The porter: removes the socket of a broker whose user may not.
//!
//! The run directory is root's, so that nobody else decides who listens in it,
//! and neither keeper nor broker are root any more. The first keeper starts the
//! porter before it becomes another user. It waits for the lock of the run
//! directory, removes the socket, which is nobody's while it has the lock, and
//! ends. It holds no capability, hears nothing and reads nothing. Without it a
//! socket stays behind that refuses connections; the next broker replaces it.

use crate::server::{ServerError, signals};
use crate::user;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, lstat, open, unlink};
use std::path::Path;

/// Waits for the end of the broker of `socket` and removes what is left.
pub(super) fn wait_and_remove(socket: &Path) -> Result<(), ServerError> {
    user::drop_capabilities().map_err(ServerError::system("drop capabilities"))?;
    // Whoever ends a broker's group of processes ends it by ending the others.
    let _signals = signals::termination().map_err(ServerError::system("hold signals back"))?;
    let path = socket.with_extension("lock");
    let failed = |what| move |errno| ServerError::path(what, socket, errno);
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = open(&path, flags, Mode::empty()).map_err(failed("open the lock of"))?;
    let locked = rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive));
    locked.map_err(failed("wait for the lock of"))?;
    let is_socket =
        lstat(socket).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
    if is_socket {
        // Somebody may have tidied up meanwhile.
        let _ = unlink(socket);
    }
    Ok(())
}
