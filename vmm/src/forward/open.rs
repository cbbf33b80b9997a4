//! Opening files.
//!
//! Handlers of the table in [`super::calls`]. It takes two steps: first the
//! place is opened without opening the file, so that a device node is refused
//! before its driver hears of it, then the file itself, never in a way that
//! waits (a FIFO without a partner).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::exports::{Device, Place, Root};
use super::path::GuestPath;
use super::table::{Description, HostFile, Object, Origin, Wait};
use super::{Reply, Request, Session, stream};

/// Flags that go to the host as the program gave them. Direct access is not
/// among them: the bounce area knows no alignment.
const HOST_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_SYNC
    | libc::O_NOATIME;
/// Flags that F_GETFL tells.
const STATUS_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME;
/// What F_GETFL shows for every file opened on x86-64.
const LARGEFILE: i32 = 0o100_000;
/// Mode bits a program can give: never set-user-id or set-group-id, which
/// would lend the VMM's user to others on the host.
pub(super) const MODE_BITS: u32 = 0o1777;
/// Time between two tries to open a FIFO that nobody reads yet.
const FIFO_RETRY: Duration = Duration::from_millis(10);

/// `open(path, flags, mode)`.
pub(super) fn open(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    open_path(
        session,
        request,
        libc::AT_FDCWD,
        request.int(1),
        request.unsigned(2),
    )
}

/// `openat(dirfd, path, flags, mode)`.
pub(super) fn openat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    open_path(
        session,
        request,
        request.int(0),
        request.int(2),
        request.unsigned(3),
    )
}

/// `creat(path, mode)`.
pub(super) fn creat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
    open_path(session, request, libc::AT_FDCWD, flags, request.unsigned(1))
}

fn open_path(
    session: &mut Session,
    request: &Request<'_>,
    dirfd: i32,
    flags: i32,
    mode: u32,
) -> Result<Reply, Errno> {
    if flags & libc::O_ACCMODE == libc::O_ACCMODE || flags & libc::O_DIRECT != 0 {
        return Err(Errno::INVAL);
    }
    if flags & libc::O_TMPFILE == libc::O_TMPFILE {
        return Err(Errno::OPNOTSUPP);
    }
    let path = session.path(request, dirfd, 0)?;
    let description = match session.exports.place(&path) {
        Place::Inside(root, rest) if flags & libc::O_PATH != 0 => {
            open_only_place(root, &rest, flags, &path)?
        }
        Place::Inside(root, rest) => {
            let mode = mode & !session.umask & MODE_BITS;
            open_inside(root, &rest, flags, mode, &path, request)?
        }
        Place::Device(device) => open_device(device, flags)?,
        Place::Listing(entries) => {
            if flags & (libc::O_CREAT | libc::O_EXCL) == libc::O_CREAT | libc::O_EXCL {
                return Err(Errno::EXIST);
            }
            if flags & (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) != 0 {
                return Err(Errno::ISDIR);
            }
            let object = Object::Listing {
                entries,
                next: 0.into(),
            };
            describe(object, flags, Some(&path))
        }
        Place::Nowhere { beside: true } if flags & libc::O_CREAT != 0 => return Err(Errno::ROFS),
        Place::Program | Place::Nowhere { .. } => return Err(Errno::NOENT),
    };
    let close_on_exec = flags & libc::O_CLOEXEC != 0;
    let fd = session.table.insert(description, 0, close_on_exec)?;
    Ok(Reply::value(i64::from(fd)))
}

/// O_PATH: a place to start from, good for `*at`, fstat and fchdir.
fn open_only_place(
    root: &Root,
    rest: &[u8],
    flags: i32,
    path: &GuestPath,
) -> Result<Arc<Description>, Errno> {
    let kept = flags & (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW);
    let fd = root.open(rest, oflags(kept), Mode::empty())?;
    let is_dir = kind_of(&fd)? == FileType::Directory;
    let object = Object::Host(HostFile {
        fd,
        wait: Wait::Never,
        origin: Origin::Export {
            writable: root.is_writable(),
        },
    });
    let directory = is_dir.then(|| path.as_bytes().to_vec());
    Ok(Description::new(object, kept.cast_unsigned(), directory))
}

fn open_inside(
    root: &Root,
    rest: &[u8],
    flags: i32,
    mode: u32,
    path: &GuestPath,
    request: &Request<'_>,
) -> Result<Arc<Description>, Errno> {
    let host_flags = oflags(flags & HOST_FLAGS) | OFlags::NOCTTY | OFlags::NONBLOCK;
    let creates = flags & libc::O_CREAT != 0;
    let exclusive = creates && flags & libc::O_EXCL != 0;
    let follow = flags & libc::O_NOFOLLOW == 0 && !exclusive;
    let fd = match root.open_place(rest, follow) {
        Ok(_) if exclusive => return Err(Errno::EXIST),
        Ok(found) => {
            let kind = kind_of(&found)?;
            let writes = flags & (libc::O_ACCMODE | libc::O_TRUNC) != 0;
            match kind {
                FileType::Directory if creates => return Err(Errno::ISDIR),
                FileType::CharacterDevice | FileType::BlockDevice => return Err(Errno::NXIO),
                FileType::RegularFile if writes && !root.is_writable() => return Err(Errno::ROFS),
                FileType::Fifo if writes && !root.is_writable() => return Err(Errno::ROFS),
                _ => {}
            }
            let waits = kind == FileType::Fifo && flags & libc::O_NONBLOCK == 0;
            open_waiting(root, rest, host_flags, waits, request)?
        }
        Err(Errno::NOENT) if creates => {
            if !root.is_writable() {
                // A missing directory on the way comes first.
                root.open_parent(rest)?;
                return Err(Errno::ROFS);
            }
            create(root, rest, host_flags, exclusive, Mode::from_raw_mode(mode))?
        }
        Err(errno) => return Err(errno),
    };
    // Looked at again: the name may lead elsewhere by now.
    let kind = kind_of(&fd)?;
    let wait = match kind {
        FileType::RegularFile | FileType::Directory => Wait::Never,
        FileType::Fifo => Wait::Private,
        _ => return Err(Errno::NXIO),
    };
    let object = Object::Host(HostFile {
        fd,
        wait,
        origin: Origin::Export {
            writable: root.is_writable(),
        },
    });
    let directory = (kind == FileType::Directory).then_some(path);
    Ok(describe(object, flags, directory))
}

/// Opens an existing file; a FIFO for writing waits for its reader here,
/// because the host's own wait cannot be cancelled.
fn open_waiting(
    root: &Root,
    rest: &[u8],
    flags: OFlags,
    waits: bool,
    request: &Request<'_>,
) -> Result<OwnedFd, Errno> {
    loop {
        match root.open(rest, flags, Mode::empty()) {
            Err(Errno::NXIO) if waits => stream::pause(request.cancel, Some(FIFO_RETRY))?,
            other => return other,
        }
    }
}

/// Makes the file with exactly `mode`, whatever the VMM's own umask; falls
/// back to opening it where it appears meanwhile or a link leads to it.
fn create(
    root: &Root,
    rest: &[u8],
    flags: OFlags,
    exclusive: bool,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    match root.open(rest, flags | OFlags::CREATE | OFlags::EXCL, mode) {
        Err(Errno::EXIST) if !exclusive => root.open(rest, flags | OFlags::CREATE, mode),
        Ok(fd) => {
            settle_mode(&fd, mode)?;
            Ok(fd)
        }
        other => other,
    }
}

/// Gives a new file or directory the mode its program asked for.
pub(super) fn settle_mode(fd: &OwnedFd, mode: Mode) -> Result<(), Errno> {
    let now = Mode::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    let permissions = Mode::RWXU | Mode::RWXG | Mode::RWXO;
    if now & permissions == mode & permissions {
        return Ok(());
    }
    rustix::fs::fchmod(fd, mode | (now & Mode::SGID))
}

fn open_device(device: Device, flags: i32) -> Result<Arc<Description>, Errno> {
    if flags & (libc::O_CREAT | libc::O_EXCL) == libc::O_CREAT | libc::O_EXCL {
        return Err(Errno::EXIST);
    }
    if flags & libc::O_DIRECTORY != 0 {
        return Err(Errno::NOTDIR);
    }
    let access = oflags(flags & (libc::O_ACCMODE | libc::O_PATH));
    let host_flags = access | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, device.path(), host_flags, Mode::empty())?;
    let object = Object::Host(HostFile {
        fd,
        wait: Wait::Never,
        origin: Origin::Other,
    });
    Ok(describe(object, flags, None))
}

fn describe(object: Object, flags: i32, directory: Option<&GuestPath>) -> Arc<Description> {
    let status = (flags & STATUS_FLAGS) | LARGEFILE;
    let directory = directory.map(|path| path.as_bytes().to_vec());
    Description::new(object, status.cast_unsigned(), directory)
}

fn oflags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags.cast_unsigned())
}

/// What kind of file `fd` has open.
pub(super) fn kind_of(fd: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}
