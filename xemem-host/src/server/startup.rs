//! One broker per run directory: lock, socket, and who was there first.
//!
//! ```text
//!  xemem.lock  flock, held for life: whoever has it is the broker
//!  xemem.sock  bound by the holder of the lock only, so one that is there
//!              when the lock is won belongs to nobody any more
//! ```

use super::ServerError;
use crate::client::Broker as Client;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, lstat, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// How long to wait for a broker that starts or ends at this moment.
const TRANSITION: Duration = Duration::from_secs(5);
/// Pause between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Our place in the file system; given up when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    /// Device and inode of the socket, to know it again.
    identity: Option<(u64, u64)>,
    /// Held for as long as this value lives.
    lock: OwnedFd,
    is_ours: bool,
}

impl Place {
    /// The place of `path`, whose `lock` was handed over.
    /// One that this user cannot look at is not this user's to remove.
    pub(crate) fn taken_over(path: &Path, lock: OwnedFd) -> Self {
        Self {
            path: path.to_owned(),
            identity: identity(path),
            lock,
            is_ours: true,
        }
    }

    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Somebody else has it now: it stays when this value goes.
    pub(crate) fn leave(mut self) {
        self.is_ours = false;
    }
}

/// What came of trying to be the broker.
#[derive(Debug)]
pub(crate) enum Claim {
    /// We are: the listening socket, and where it is.
    Ours(OwnedFd, Place),
    /// Another one is, and answers.
    Theirs,
}

/// Tries to become the broker of `socket`.
pub(crate) fn claim(socket: &Path) -> Result<Claim, ServerError> {
    let lock_path = socket.with_extension("lock");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR;
    let lock = rustix::fs::open(&lock_path, flags, mode)
        .map_err(|errno| ServerError::path("open the lock file", &lock_path, errno))?;
    let begin = Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                return listen_at(socket, lock).map(|(fd, place)| Claim::Ours(fd, place));
            }
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(ServerError::path("lock", &lock_path, errno)),
        }
        // The other one is serving, or between lock and socket for a moment.
        if Client::connect(socket).is_ok() {
            return Ok(Claim::Theirs);
        }
        if begin.elapsed() > TRANSITION {
            return Err(ServerError::path(
                "win from its holder",
                &lock_path,
                Errno::BUSY,
            ));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn listen_at(path: &Path, lock: OwnedFd) -> Result<(OwnedFd, Place), ServerError> {
    let failed = |what| move |errno| ServerError::path(what, path, errno);
    match lstat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {
            unlink(path).map_err(failed("remove the stale socket"))?;
        }
        Ok(_) => return Err(ServerError::NotSocket(path.to_owned())),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed("look at")(errno)),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(failed("make a socket for"))?;
    let address = SocketAddrUnix::new(path).map_err(failed("name a socket"))?;
    // Everybody may connect; what they may do then depends on who they are.
    let mask = rustix::process::umask(Mode::empty());
    let bound = bind(&fd, &address);
    rustix::process::umask(mask);
    bound.map_err(failed("bind"))?;
    listen(&fd, BACKLOG).map_err(failed("listen at"))?;
    Ok((fd, Place::taken_over(path, lock)))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    lstat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

impl Drop for Place {
    /// Removes the socket if it is still ours: the lock is held to the end,
    /// but an administrator may have put something else there.
    fn drop(&mut self) {
        let ours = self.is_ours && self.identity.is_some() && identity(&self.path) == self.identity;
        if ours {
            let _ = unlink(&self.path);
        }
    }
}
