//! Calls about what a file is: stat, access, mode, times, link target.
//!
//! Handlers of the table in [`super::calls`]. A path is opened once, beneath
//! its export and without opening the file itself; the call then acts on that
//! descriptor, through `/proc/self/fd` where Linux offers no other way, so
//! that nothing can change between the check and the act.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::exports::{Device, Place, inode_of};
use super::open::{MODE_BITS, kind_of};
use super::path::c_string;
use super::table::{Description, Object, Origin};
use super::{Reply, Request, SECOND, Session, encode};

/// Something a path leads to.
enum Target {
    /// In an export, opened as a place.
    File { fd: OwnedFd, writable: bool },
    /// A device, opened as a place.
    Device(OwnedFd),
    /// A synthetic directory with this inode number.
    Listing(u64),
}

/// `stat(path)`.
pub(super) fn stat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    stat_path(session, request, libc::AT_FDCWD, true)
}

/// `lstat(path)`.
pub(super) fn lstat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    stat_path(session, request, libc::AT_FDCWD, false)
}

/// `fstat(fd)`.
pub(super) fn fstat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    stat_descriptor(session.table.get(request.int(0))?)
}

/// `newfstatat(dirfd, path, _, flags)`.
pub(super) fn newfstatat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let flags = request.int(3);
    let known = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_EMPTY_PATH;
    if flags & !known != 0 {
        return Err(Errno::INVAL);
    }
    let dirfd = request.int(0);
    if flags & libc::AT_EMPTY_PATH != 0 && c_string(request.input, 0)?.is_empty() {
        if dirfd != libc::AT_FDCWD {
            return stat_descriptor(session.table.get(dirfd)?);
        }
        return stat_target(&target_at(session, &session.cwd, true)?);
    }
    stat_path(
        session,
        request,
        dirfd,
        flags & libc::AT_SYMLINK_NOFOLLOW == 0,
    )
}

/// `statx`: refused, C libraries then use newfstatat.
pub(super) fn statx(_: &mut Session, _: &Request<'_>) -> Result<Reply, Errno> {
    Err(Errno::NOSYS)
}

/// `access(path, mode)`.
pub(super) fn access(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    check_access(session, request, libc::AT_FDCWD, request.unsigned(1), 0)
}

/// `faccessat(dirfd, path, mode)`.
pub(super) fn faccessat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    check_access(session, request, request.int(0), request.unsigned(2), 0)
}

/// `faccessat2(dirfd, path, mode, flags)`.
pub(super) fn faccessat2(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let (mode, flags) = (request.unsigned(2), request.int(3));
    check_access(session, request, request.int(0), mode, flags)
}

/// `readlink(path, _, size)`.
pub(super) fn readlink(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    read_link(session, request, libc::AT_FDCWD, request.int(2))
}

/// `readlinkat(dirfd, path, _, size)`.
pub(super) fn readlinkat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    read_link(session, request, request.int(0), request.int(3))
}

/// `chmod(path, mode)`.
pub(super) fn chmod(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    change_mode(session, request, libc::AT_FDCWD, request.unsigned(1))
}

/// `fchmodat(dirfd, path, mode)`.
pub(super) fn fchmodat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    change_mode(session, request, request.int(0), request.unsigned(2))
}

/// `fchmod(fd, mode)`.
pub(super) fn fchmod(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let mode = permitted_mode(request.unsigned(1))?;
    let description = session.table.get(request.int(0))?;
    let fd = changeable(description)?;
    rustix::fs::fchmod(fd, mode)?;
    Ok(Reply::value(0))
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

/// `statfs(path)`.
pub(super) fn statfs(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let bytes = match target(session, request, libc::AT_FDCWD, true)? {
        Target::File { fd, writable } => encode::statfs(&rustix::fs::fstatfs(fd)?, !writable),
        Target::Device(fd) => encode::statfs(&rustix::fs::fstatfs(fd)?, false),
        Target::Listing(_) => encode::statfs_listing(),
    };
    Ok(Reply::structure(bytes))
}

/// `fstatfs(fd)`.
pub(super) fn fstatfs(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let bytes = match &session.table.get(request.int(0))?.object {
        Object::Host(file) => {
            let read_only = file.origin == Origin::Export { writable: false };
            encode::statfs(&rustix::fs::fstatfs(&file.fd)?, read_only)
        }
        Object::Listing { .. } => encode::statfs_listing(),
    };
    Ok(Reply::structure(bytes))
}

impl Target {
    /// The descriptor, if the program may change the inode behind it.
    fn changeable(&self) -> Result<BorrowedFd<'_>, Errno> {
        match self {
            Self::File { fd, writable: true } => Ok(fd.as_fd()),
            Self::File { .. } | Self::Listing(_) => Err(Errno::ROFS),
            Self::Device(_) => Err(Errno::PERM),
        }
    }
}

fn target(
    session: &Session,
    request: &Request<'_>,
    dirfd: i32,
    follow: bool,
) -> Result<Target, Errno> {
    let path = session.path(request, dirfd, 0)?;
    place_target(session, &path, follow)
}

fn target_at(session: &Session, path: &[u8], follow: bool) -> Result<Target, Errno> {
    let path = super::path::GuestPath::join(b"/", path);
    place_target(session, &path, follow)
}

fn place_target(
    session: &Session,
    path: &super::path::GuestPath,
    follow: bool,
) -> Result<Target, Errno> {
    match session.exports.place(path) {
        Place::Inside(root, rest) => Ok(Target::File {
            fd: root.open_place(&rest, follow)?,
            writable: root.is_writable(),
        }),
        Place::Device(_) if path.wants_directory() => Err(Errno::NOTDIR),
        Place::Device(device) => Ok(Target::Device(device_place(device)?)),
        Place::Listing(_) => Ok(Target::Listing(inode_of(path.as_bytes()))),
        Place::Program | Place::Nowhere { .. } => Err(Errno::NOENT),
    }
}

fn device_place(device: Device) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, device.path(), flags, Mode::empty())
}

fn stat_path(
    session: &Session,
    request: &Request<'_>,
    dirfd: i32,
    follow: bool,
) -> Result<Reply, Errno> {
    stat_target(&target(session, request, dirfd, follow)?)
}

fn stat_target(target: &Target) -> Result<Reply, Errno> {
    let bytes = match target {
        Target::File { fd, .. } | Target::Device(fd) => encode::stat(&rustix::fs::fstat(fd)?),
        Target::Listing(ino) => encode::stat_listing(*ino),
    };
    Ok(Reply::structure(bytes))
}

fn stat_descriptor(description: &Description) -> Result<Reply, Errno> {
    let bytes = match &description.object {
        Object::Host(file) => encode::stat(&rustix::fs::fstat(&file.fd)?),
        Object::Listing { .. } => {
            let path = description.directory.as_deref().unwrap_or(b"/");
            encode::stat_listing(inode_of(path))
        }
    };
    Ok(Reply::structure(bytes))
}

fn check_access(
    session: &Session,
    request: &Request<'_>,
    dirfd: i32,
    mode: u32,
    flags: i32,
) -> Result<Reply, Errno> {
    let access = Access::from_bits(mode).ok_or(Errno::INVAL)?;
    let known = libc::AT_EACCESS | libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    if flags & !known != 0 {
        return Err(Errno::INVAL);
    }
    let effective = match flags & libc::AT_EACCESS {
        0 => AtFlags::empty(),
        _ => AtFlags::EACCESS,
    };
    let by_descriptor = |fd: BorrowedFd<'_>| {
        let (descriptors, name) = session.exports.descriptor(fd);
        rustix::fs::accessat(descriptors, name, access, effective)
    };
    if flags & libc::AT_EMPTY_PATH != 0 && c_string(request.input, 0)?.is_empty() {
        by_descriptor(session.table.get(dirfd)?.host(Errno::ACCESS)?.fd.as_fd())?;
        return Ok(Reply::value(0));
    }
    match target(
        session,
        request,
        dirfd,
        flags & libc::AT_SYMLINK_NOFOLLOW == 0,
    )? {
        Target::File {
            writable: false, ..
        }
        | Target::Listing(_)
            if access.contains(Access::WRITE_OK) =>
        {
            return Err(Errno::ROFS);
        }
        Target::File { fd, .. } | Target::Device(fd) => by_descriptor(fd.as_fd())?,
        Target::Listing(_) => {}
    }
    Ok(Reply::value(0))
}

fn read_link(
    session: &Session,
    request: &Request<'_>,
    dirfd: i32,
    size: i32,
) -> Result<Reply, Errno> {
    let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
    if size == 0 {
        return Err(Errno::INVAL);
    }
    let path = session.path(request, dirfd, 0)?;
    let mut bytes = match session.exports.place(&path) {
        Place::Program if session.program.is_empty() => return Err(Errno::NOENT),
        Place::Program => session.program.clone(),
        _ => match place_target(session, &path, false)? {
            Target::File { fd, .. } if kind_of(&fd)? == FileType::Symlink => {
                rustix::fs::readlinkat(&fd, "", Vec::new())?.into_bytes()
            }
            _ => return Err(Errno::INVAL),
        },
    };
    bytes.truncate(size);
    Ok(Reply::bytes(bytes))
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

/// The host descriptor, if the program may change the inode behind it: only a
/// file of a writable export. Standard descriptors belong to the caller.
fn changeable(description: &Description) -> Result<BorrowedFd<'_>, Errno> {
    let file = description.host(Errno::ROFS)?;
    match file.origin {
        Origin::Export { writable: true } => Ok(file.fd.as_fd()),
        Origin::Export { writable: false } => Err(Errno::ROFS),
        Origin::Input | Origin::Output | Origin::Other => Err(Errno::PERM),
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
