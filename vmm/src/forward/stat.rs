//! Calls that tell what a file is: stat, statfs, access, link targets.
//!
//! Handlers of the table in [`super::calls`]. Access is asked of the kernel
//! through `/proc/self/fd`, because it offers no form for a descriptor alone.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Access, AtFlags, FileType, Stat};
use rustix::io::Errno;

use super::exports::{Place, inode_of};
use super::open::kind_of;
use super::path::c_string;
use super::table::{Description, Object, Origin};
use super::target::{Target, place_target, target, target_at};
use super::{Reply, Request, Session, encode};

/// What is known of a file.
enum Told {
    Host(Stat),
    /// A synthetic directory, by its inode number.
    Listing(u64),
}

impl Told {
    fn stat(&self) -> Reply {
        Reply::structure(match self {
            Self::Host(stat) => encode::stat(stat),
            Self::Listing(ino) => encode::stat_listing(*ino),
        })
    }

    fn statx(&self) -> Reply {
        Reply::structure(match self {
            Self::Host(stat) => encode::statx(stat),
            Self::Listing(ino) => encode::statx_listing(*ino),
        })
    }
}

/// `stat(path)`.
pub(super) fn stat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    Ok(stat_path(session, request, libc::AT_FDCWD, true)?.stat())
}

/// `lstat(path)`.
pub(super) fn lstat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    Ok(stat_path(session, request, libc::AT_FDCWD, false)?.stat())
}

/// `fstat(fd)`.
pub(super) fn fstat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    Ok(stat_descriptor(session.table.get(request.int(0))?)?.stat())
}

/// `newfstatat(dirfd, path, _, flags)`.
pub(super) fn newfstatat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    Ok(stat_at(session, request, request.int(3))?.stat())
}

/// `statx(dirfd, path, flags, mask, _)`: everything that `newfstatat` knows,
/// whatever was asked for.
pub(super) fn statx(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    /// How fresh it must be: it always is.
    const SYNC_TYPE: i32 = libc::AT_STATX_FORCE_SYNC | libc::AT_STATX_DONT_SYNC;
    const RESERVED: u32 = 1 << 31;
    let (flags, mask) = (request.int(2), request.unsigned(3));
    if mask & RESERVED != 0 || flags & SYNC_TYPE == SYNC_TYPE {
        return Err(Errno::INVAL);
    }
    Ok(stat_at(session, request, flags & !SYNC_TYPE)?.statx())
}

/// Of a path at 0 from the directory in argument 0.
fn stat_at(session: &Session, request: &Request<'_>, flags: i32) -> Result<Told, Errno> {
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
    let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
    stat_path(session, request, dirfd, follow)
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

fn stat_path(
    session: &Session,
    request: &Request<'_>,
    dirfd: i32,
    follow: bool,
) -> Result<Told, Errno> {
    stat_target(&target(session, request, dirfd, follow)?)
}

fn stat_target(target: &Target) -> Result<Told, Errno> {
    Ok(match target {
        Target::File { fd, .. } | Target::Device(fd) => Told::Host(rustix::fs::fstat(fd)?),
        Target::Listing(ino) => Told::Listing(*ino),
    })
}

fn stat_descriptor(description: &Description) -> Result<Told, Errno> {
    Ok(match &description.object {
        Object::Host(file) => Told::Host(rustix::fs::fstat(&file.fd)?),
        Object::Listing { .. } => {
            let path = description.directory.as_deref().unwrap_or(b"/");
            Told::Listing(inode_of(path))
        }
    })
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
