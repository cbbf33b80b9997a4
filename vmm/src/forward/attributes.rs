//! Calls that change what a file is: mode, owner, times.
//!
//! Handlers of the table in [`super::calls`]. Only files of writable exports
//! change: standard descriptors belong to the caller of the program, devices
//! to the host. Modes and times are set through `/proc/self/fd`, where Linux
//! offers no form for a descriptor that only marks a place.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use super::open::MODE_BITS;
use super::path::c_string;
use super::target::{changeable, target};
use super::{Reply, Request, SECOND, Session, encode};

/// `chmod(path, mode)`.
pub(super) fn chmod(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    change_mode(session, request, libc::AT_FDCWD, request.unsigned(1))
}

/// `fchmod(fd, mode)`.
pub(super) fn fchmod(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let mode = permitted_mode(request.unsigned(1))?;
    let description = session.table.get(request.int(0))?;
    let fd = changeable(description)?;
    rustix::fs::fchmod(fd, mode)?;
    Ok(Reply::value(0))
}

/// `fchmodat(dirfd, path, mode)`.
pub(super) fn fchmodat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    change_mode(session, request, request.int(0), request.unsigned(2))
}

/// `chown(path, owner, group)`.
pub(super) fn chown(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let wanted = [request.unsigned(1), request.unsigned(2)];
    same_owner(
        target(session, request, libc::AT_FDCWD, true)?.changeable()?,
        wanted,
    )
}

/// `lchown(path, owner, group)`.
pub(super) fn lchown(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let wanted = [request.unsigned(1), request.unsigned(2)];
    same_owner(
        target(session, request, libc::AT_FDCWD, false)?.changeable()?,
        wanted,
    )
}

/// `fchownat(dirfd, path, owner, group, flags)`.
pub(super) fn fchownat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let flags = request.int(4);
    if flags & !libc::AT_SYMLINK_NOFOLLOW != 0 {
        return Err(Errno::INVAL);
    }
    let wanted = [request.unsigned(2), request.unsigned(3)];
    same_owner(
        target(session, request, request.int(0), flags == 0)?.changeable()?,
        wanted,
    )
}

/// `fchown(fd, owner, group)`.
pub(super) fn fchown(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let fd = changeable(session.table.get(request.int(0))?)?;
    same_owner(fd, [request.unsigned(1), request.unsigned(2)])
}

/// `utimensat(dirfd, path, times at 4096 or null, flags)`; an empty path means
/// `dirfd` itself.
pub(super) fn utimensat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let flags = request.int(3);
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let times = match request.is_null(2) {
        true => now(),
        false => times_at(request.input).ok_or(Errno::FAULT)?,
    };
    if c_string(request.input, 0)?.is_empty() {
        let fd = changeable(session.table.get(request.int(0))?)?;
        rustix::fs::futimens(fd, &times)?;
        return Ok(Reply::value(0));
    }
    let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
    let target = target(session, request, request.int(0), follow)?;
    let (descriptors, name) = session.exports.descriptor(target.changeable()?);
    rustix::fs::utimensat(descriptors, name, &times, AtFlags::empty())?;
    Ok(Reply::value(0))
}

/// Succeeds when nothing would change: files belong to whom the host says,
/// and copying programs ask for what is already so.
fn same_owner(fd: BorrowedFd<'_>, wanted: [u32; 2]) -> Result<Reply, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    let is_kept = |wanted: u32, owner: u32| wanted == u32::MAX || wanted == owner;
    if is_kept(wanted[0], stat.st_uid) && is_kept(wanted[1], stat.st_gid) {
        return Ok(Reply::value(0));
    }
    Err(Errno::PERM)
}

fn change_mode(
    session: &Session,
    request: &Request<'_>,
    dirfd: i32,
    mode: u32,
) -> Result<Reply, Errno> {
    let mode = permitted_mode(mode)?;
    let target = target(session, request, dirfd, true)?;
    let (descriptors, name) = session.exports.descriptor(target.changeable()?);
    rustix::fs::chmodat(descriptors, name, mode, AtFlags::empty())?;
    Ok(Reply::value(0))
}

fn permitted_mode(mode: u32) -> Result<Mode, Errno> {
    match mode & 0o7777 & !MODE_BITS {
        0 => Ok(Mode::from_raw_mode(mode & MODE_BITS)),
        _ => Err(Errno::PERM),
    }
}

fn now() -> Timestamps {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_NOW,
    };
    Timestamps {
        last_access: now,
        last_modification: now,
    }
}

fn times_at(input: &[u8]) -> Option<Timestamps> {
    let time = |at| {
        Some(Timespec {
            tv_sec: encode::i64_at(input, at)?,
            tv_nsec: encode::i64_at(input, at + 8)?,
        })
    };
    Some(Timestamps {
        last_access: time(SECOND)?,
        last_modification: time(SECOND + 16)?,
    })
}
