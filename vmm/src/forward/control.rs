//! Calls about descriptors themselves and the session's own state.
//!
//! Handlers of the table in [`super::calls`]: fcntl, ioctl, duplicates, pipes,
//! locks, working directory, umask. None of them changes flags of a
//! descriptor that the program shares with its caller.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::files::status;
use super::path::{GuestPath, PATH_MAX};
use super::table::{Description, HostFile, Object, Origin, TABLE_SLOTS, Wait};
use super::{Reply, Request, Session, encode, stream};

/// Status flags F_SETFL can change.
const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOATIME;
/// Time between two tries for a lock that somebody else holds.
const LOCK_RETRY: Duration = Duration::from_millis(10);
/// Requests as the program makes them (asm-generic/ioctls.h): the type of
/// libc's constants differs between C libraries.
const TCGETS: u32 = 0x5401;
const FIONREAD: u32 = 0x541b;
const TIOCGWINSZ: u32 = 0x5413;

/// `fcntl(fd, command, argument)`.
pub(super) fn fcntl(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let fd = request.int(0);
    let description = Arc::clone(session.table.get(fd)?);
    let value = match request.int(1) {
        libc::F_GETFD => i32::from(session.table.close_on_exec(fd)?),
        libc::F_SETFD => {
            let close_on_exec = request.int(2) & libc::FD_CLOEXEC != 0;
            session.table.set_close_on_exec(fd, close_on_exec)?;
            0
        }
        libc::F_GETFL => status(&description),
        libc::F_SETFL => set_status(&description, request.int(2))?,
        command @ (libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) => {
            let from = usize::try_from(request.int(2)).map_err(|_| Errno::INVAL)?;
            if from >= TABLE_SLOTS {
                return Err(Errno::INVAL);
            }
            let close_on_exec = command == libc::F_DUPFD_CLOEXEC;
            session.table.insert(description, from, close_on_exec)?
        }
        _ => return Err(Errno::INVAL),
    };
    Ok(Reply::value(i64::from(value)))
}

/// `ioctl(fd, request, structure at 4096)`: terminal queries only. A terminal
/// belongs to the caller; programs cannot change it.
pub(super) fn ioctl(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let description = session.table.get(request.int(0))?;
    let file = description.host(Errno::NOTTY)?;
    if request.unsigned(1) == FIONREAD {
        let bytes = rustix::io::ioctl_fionread(&file.fd)?;
        let bytes = u32::try_from(bytes).unwrap_or(i32::MAX.unsigned_abs());
        return Ok(Reply::structure(bytes.to_le_bytes().to_vec()));
    }
    let is_standard = matches!(file.origin, Origin::Input | Origin::Output);
    if !is_standard || !rustix::termios::isatty(&file.fd) {
        return Err(Errno::NOTTY);
    }
    let bytes = match request.unsigned(1) {
        TCGETS => encode::termios(&rustix::termios::tcgetattr(&file.fd)?),
        TIOCGWINSZ => encode::winsize(rustix::termios::tcgetwinsize(&file.fd)?),
        _ => return Err(Errno::INVAL),
    };
    Ok(Reply::structure(bytes))
}

/// `dup(fd)`.
pub(super) fn dup(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let description = Arc::clone(session.table.get(request.int(0))?);
    let fd = session.table.insert(description, 0, false)?;
    Ok(Reply::value(i64::from(fd)))
}

/// `dup2(old, new)`.
pub(super) fn dup2(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let (old, new) = (request.int(0), request.int(1));
    let description = Arc::clone(session.table.get(old)?);
    if old != new {
        session.table.place(new, description, false)?;
    }
    Ok(Reply::value(i64::from(new)))
}

/// `dup3(old, new, flags)`.
pub(super) fn dup3(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let (old, new, flags) = (request.int(0), request.int(1), request.int(2));
    if flags & !libc::O_CLOEXEC != 0 || old == new {
        return Err(Errno::INVAL);
    }
    let description = Arc::clone(session.table.get(old)?);
    session.table.place(new, description, flags != 0)?;
    Ok(Reply::value(i64::from(new)))
}

/// `pipe(two numbers at 4096)`.
pub(super) fn pipe(session: &mut Session, _: &Request<'_>) -> Result<Reply, Errno> {
    make_pipe(session, 0)
}

/// `pipe2(two numbers at 4096, flags)`.
pub(super) fn pipe2(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let flags = request.int(1);
    if flags & !(libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 {
        return Err(Errno::INVAL);
    }
    make_pipe(session, flags)
}

/// `flock(fd, operation)`.
pub(super) fn flock(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let file = session.table.get(request.int(0))?.host(Errno::INVAL)?;
    let operation = request.int(1);
    let waits = operation & libc::LOCK_NB == 0;
    let operation = match operation & !libc::LOCK_NB {
        libc::LOCK_SH => FlockOperation::NonBlockingLockShared,
        libc::LOCK_EX => FlockOperation::NonBlockingLockExclusive,
        libc::LOCK_UN => FlockOperation::NonBlockingUnlock,
        _ => return Err(Errno::INVAL),
    };
    loop {
        match rustix::fs::flock(&file.fd, operation) {
            Ok(()) => return Ok(Reply::value(0)),
            Err(Errno::INTR) => {}
            // The host's own wait could not be cancelled.
            Err(Errno::AGAIN) if waits => stream::pause(request.cancel, Some(LOCK_RETRY))?,
            Err(errno) => return Err(errno),
        }
    }
}

/// `getcwd(_, size)`.
pub(super) fn getcwd(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let mut bytes = session.cwd.clone();
    bytes.push(0);
    match usize::try_from(request.args[1]) {
        Ok(size) if size < bytes.len() => Err(Errno::RANGE),
        _ => Ok(Reply::bytes(bytes)),
    }
}

/// `chdir(path)`.
pub(super) fn chdir(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let path = session.path(request, libc::AT_FDCWD, 0)?;
    enter(session, &path)
}

/// `fchdir(fd)`.
pub(super) fn fchdir(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let path = GuestPath::join(b"/", session.directory_of(request.int(0))?);
    enter(session, &path)
}

/// `umask(mask)`.
pub(super) fn umask(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let old = std::mem::replace(&mut session.umask, request.unsigned(0) & 0o777);
    Ok(Reply::value(i64::from(old)))
}

fn enter(session: &mut Session, path: &GuestPath) -> Result<Reply, Errno> {
    if path.as_bytes().len() >= PATH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    session.directory(path)?;
    session.cwd = path.as_bytes().to_vec();
    Ok(Reply::value(0))
}

/// O_NONBLOCK is a matter between program and session; the other flags are
/// the host's, and can change only on files that the program opened itself.
fn set_status(description: &Description, wanted: i32) -> Result<i32, Errno> {
    let now = status(description);
    if now & libc::O_PATH != 0 {
        return Err(Errno::BADF);
    }
    let next = (now & !SETTABLE) | (wanted & SETTABLE);
    if (now ^ next) & !libc::O_NONBLOCK != 0 {
        let file = description.host(Errno::INVAL)?;
        if !matches!(file.origin, Origin::Export { .. }) {
            return Err(Errno::PERM);
        }
        let host = (next | libc::O_NONBLOCK).cast_unsigned();
        rustix::fs::fcntl_setfl(&file.fd, OFlags::from_bits_retain(host))?;
    }
    description
        .flags
        .store(next.cast_unsigned(), Ordering::Relaxed);
    Ok(0)
}

fn make_pipe(session: &mut Session, flags: i32) -> Result<Reply, Errno> {
    let close_on_exec = flags & libc::O_CLOEXEC != 0;
    let status = flags & libc::O_NONBLOCK;
    let host_flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    let (reader, writer) = rustix::pipe::pipe_with(host_flags)?;
    let describe = |fd, access: i32| {
        let file = HostFile {
            fd,
            wait: Wait::Private,
            origin: Origin::Other,
        };
        Description::new(Object::Host(file), (status | access).cast_unsigned(), None)
    };
    let reader = describe(reader, libc::O_RDONLY);
    let writer = describe(writer, libc::O_WRONLY);
    let first = session.table.insert(reader, 0, close_on_exec)?;
    match session.table.insert(writer, 0, close_on_exec) {
        Ok(second) => Ok(Reply::structure(encode::two_fds(first, second))),
        Err(errno) => {
            session.table.remove(first)?;
            Err(errno)
        }
    }
}
