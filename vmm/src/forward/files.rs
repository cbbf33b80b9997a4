//! Opening, reading, writing and positioning.
//!
//! Handlers of the table in [`super::calls`]. Opening takes two steps: first
//! the place is opened without opening the file, so that a device node is
//! refused before its driver hears of it, then the file itself, never in a way
//! that waits (a FIFO without a partner).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::exports::{Device, Place, Root};
use super::path::GuestPath;
use super::table::{Description, HostFile, Object, Origin, Wait};
use super::{Reply, Request, SECOND, Session, encode, stream};

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
/// Longest piece of a directory handed out at once.
const DIRENTS_MAX: usize = 64 << 10;
/// Time between two tries to open a FIFO that nobody reads yet.
const FIFO_RETRY_MS: i64 = 10;

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

/// `close(fd)`.
pub(super) fn close(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    session.table.remove(request.int(0))?;
    Ok(Reply::value(0))
}

/// `read(fd, _, count)`.
pub(super) fn read(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let description = session.table.get(request.int(0))?;
    let file = readable(description)?;
    let mut data = vec![0; request.length(2)];
    let count = stream::read(file, is_nonblocking(description), &mut data, request.cancel)?;
    data.truncate(count);
    Ok(Reply::bytes(data))
}

/// `write(fd, _, count)`.
pub(super) fn write(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let description = session.table.get(request.int(0))?;
    let count = write_teed(session, description, request.data(2), request)?;
    Ok(Reply::count(count))
}

/// `pread64(fd, _, count, offset)`.
pub(super) fn pread64(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let offset = u64::try_from(request.long(3)).map_err(|_| Errno::INVAL)?;
    let file = readable(session.table.get(request.int(0))?)?;
    seekable(file)?;
    let mut data = vec![0; request.length(2)];
    let count = rustix::io::retry_on_intr(|| rustix::io::pread(&file.fd, &mut *data, offset))?;
    data.truncate(count);
    Ok(Reply::bytes(data))
}

/// `pwrite64(fd, _, count, offset)`.
pub(super) fn pwrite64(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let offset = u64::try_from(request.long(3)).map_err(|_| Errno::INVAL)?;
    let file = writable(session.table.get(request.int(0))?)?;
    seekable(file)?;
    let data = request.data(2);
    let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(&file.fd, data, offset))?;
    Ok(Reply::count(count))
}

/// `lseek(fd, offset, whence)`.
pub(super) fn lseek(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let description = session.table.get(request.int(0))?;
    let offset = request.long(1);
    let positive = || u64::try_from(offset).map_err(|_| Errno::INVAL);
    let file = match &description.object {
        Object::Host(file) => file,
        Object::Listing { entries, next } => {
            if request.int(2) != libc::SEEK_SET {
                return Err(Errno::INVAL);
            }
            let at = usize::try_from(positive()?).map_err(|_| Errno::INVAL)?;
            next.store(at.min(entries.len()), Ordering::Relaxed);
            return Ok(Reply::value(offset));
        }
    };
    let target = match request.int(2) {
        libc::SEEK_SET => SeekFrom::Start(positive()?),
        libc::SEEK_CUR => SeekFrom::Current(offset),
        libc::SEEK_END => SeekFrom::End(offset),
        libc::SEEK_DATA => SeekFrom::Data(positive().map_err(|_| Errno::NXIO)?),
        libc::SEEK_HOLE => SeekFrom::Hole(positive().map_err(|_| Errno::NXIO)?),
        _ => return Err(Errno::INVAL),
    };
    let at = rustix::fs::seek(&file.fd, target)?;
    Ok(Reply::value(at.cast_signed()))
}

/// `sendfile(out, in, offset at 4096 or null, count)`: from a file that has a
/// position only, as on Linux.
pub(super) fn sendfile(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let source = readable(session.table.get(request.int(1))?)?;
    let target = session.table.get(request.int(0))?;
    if source.wait != Wait::Never || status(target) & libc::O_APPEND != 0 {
        return Err(Errno::INVAL);
    }
    let given = if request.is_null(2) {
        None
    } else {
        Some(encode::i64_at(request.input, SECOND).ok_or(Errno::FAULT)?)
    };
    let start = match given {
        Some(offset) => u64::try_from(offset).map_err(|_| Errno::INVAL)?,
        None => rustix::fs::tell(&source.fd).map_err(|_| Errno::INVAL)?,
    };
    let mut data = vec![0; request.length(3)];
    let count = rustix::io::retry_on_intr(|| rustix::io::pread(&source.fd, &mut *data, start))?;
    let count = write_teed(session, target, &data[..count], request)?;
    let end = start.saturating_add(u64::try_from(count).unwrap_or(0));
    if given.is_none() {
        rustix::fs::seek(&source.fd, SeekFrom::Start(end))?;
        return Ok(Reply::count(count));
    }
    Ok(Reply {
        result: Reply::count(count).result,
        ..Reply::structure(end.to_le_bytes().to_vec())
    })
}

/// `getdents64(fd, _, count)`.
pub(super) fn getdents64(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let description = session.table.get(request.int(0))?;
    let length = request.length(2).min(DIRENTS_MAX);
    let mut data = Vec::new();
    match &description.object {
        Object::Listing { entries, next } => {
            let first = next.load(Ordering::Relaxed);
            for (at, entry) in entries.iter().enumerate().skip(first) {
                let kind = match entry.is_dir {
                    true => FileType::Directory,
                    false => FileType::CharacterDevice,
                };
                let after = u64::try_from(at + 1).unwrap_or(u64::MAX);
                let bytes = encode::dirent(entry.ino, after, kind, &entry.name);
                if data.len() + bytes.len() > length {
                    if data.is_empty() {
                        return Err(Errno::INVAL);
                    }
                    break;
                }
                data.extend_from_slice(&bytes);
                next.store(at + 1, Ordering::Relaxed);
            }
        }
        Object::Host(file) => {
            let mut buffer = vec![MaybeUninit::uninit(); length];
            let mut entries = RawDir::new(&file.fd, &mut buffer);
            while let Some(entry) = entries.next() {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                let (ino, after) = (entry.ino(), entry.next_entry_cookie());
                data.extend_from_slice(&encode::dirent(ino, after, entry.file_type(), name));
                if entries.is_buffer_empty() {
                    break;
                }
            }
        }
    }
    Ok(Reply::bytes(data))
}

/// `fsync(fd)`.
pub(super) fn fsync(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let file = session.table.get(request.int(0))?.host(Errno::INVAL)?;
    rustix::io::retry_on_intr(|| rustix::fs::fsync(&file.fd))?;
    Ok(Reply::value(0))
}

/// `fdatasync(fd)`.
pub(super) fn fdatasync(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let file = session.table.get(request.int(0))?.host(Errno::INVAL)?;
    rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&file.fd))?;
    Ok(Reply::value(0))
}

/// `truncate(path, length)`.
pub(super) fn truncate(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let length = u64::try_from(request.long(1)).map_err(|_| Errno::INVAL)?;
    let path = session.path(request, libc::AT_FDCWD, 0)?;
    let file = match session.exports.place(&path) {
        Place::Inside(root, rest) => {
            // Only a file has a length; anything else must not be opened.
            match kind_of(&root.open_place(&rest, true)?)? {
                FileType::RegularFile => {}
                FileType::Directory => return Err(Errno::ISDIR),
                _ => return Err(Errno::INVAL),
            }
            if !root.is_writable() {
                return Err(Errno::ROFS);
            }
            root.open(&rest, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty())?
        }
        Place::Device(_) => return Err(Errno::INVAL),
        Place::Listing(_) => return Err(Errno::ISDIR),
        Place::Program | Place::Nowhere { .. } => return Err(Errno::NOENT),
    };
    rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&file, length))?;
    Ok(Reply::value(0))
}

/// `ftruncate(fd, length)`.
pub(super) fn ftruncate(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let length = u64::try_from(request.long(1)).map_err(|_| Errno::INVAL)?;
    let file = session.table.get(request.int(0))?.host(Errno::INVAL)?;
    rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&file.fd, length))?;
    Ok(Reply::value(0))
}

/// `fadvise64(fd, …)`: advice is taken and not followed.
pub(super) fn fadvise64(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    if let Object::Host(file) = &session.table.get(request.int(0))?.object {
        seekable(file)?;
    }
    Ok(Reply::value(0))
}

/// Status flags of a description.
pub(super) fn status(description: &Description) -> i32 {
    description.flags.load(Ordering::Relaxed).cast_signed()
}

/// The host file if it may be read.
fn readable(description: &Description) -> Result<&HostFile, Errno> {
    let status = status(description);
    if status & libc::O_ACCMODE == libc::O_WRONLY || status & libc::O_PATH != 0 {
        return Err(Errno::BADF);
    }
    description.host(Errno::ISDIR)
}

/// The host file if it may be written.
fn writable(description: &Description) -> Result<&HostFile, Errno> {
    if status(description) & libc::O_ACCMODE == libc::O_RDONLY {
        return Err(Errno::BADF);
    }
    description.host(Errno::BADF)
}

fn is_nonblocking(description: &Description) -> bool {
    status(description) & libc::O_NONBLOCK != 0
}

/// Refuses what has no position before a call with a position can wait on it.
fn seekable(file: &HostFile) -> Result<(), Errno> {
    match file.wait {
        Wait::Never => Ok(()),
        Wait::Private | Wait::Shared => Err(Errno::SPIPE),
    }
}

fn write_teed(
    session: &Session,
    target: &Description,
    data: &[u8],
    request: &Request<'_>,
) -> Result<usize, Errno> {
    let file = writable(target)?;
    let count = stream::write(file, is_nonblocking(target), data, request.cancel)?;
    if let (Origin::Output, Some(tee)) = (file.origin, &session.tee) {
        tee(&data[..count]);
    }
    Ok(count)
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
            Err(Errno::NXIO) if waits => stream::pause(request.cancel, FIFO_RETRY_MS)?,
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
