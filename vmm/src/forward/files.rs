//! Reading, writing, positioning and directories.
//!
//! Handlers of the table in [`super::calls`] that act on an open descriptor.
//! Data is cut to the bounce area; what may wait goes through
//! [`super::stream`].

use std::mem::MaybeUninit;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;

use super::exports::Place;
use super::open::kind_of;
use super::table::{Description, HostFile, Object, Origin, Wait};
use super::{Reply, Request, SECOND, Session, encode, stream};

/// Longest piece of a directory handed out at once.
const DIRENTS_MAX: usize = 64 << 10;
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

/// `getrandom(_, count, flags)`: from the host's generator.
pub(super) fn getrandom(_: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let known = libc::GRND_NONBLOCK | libc::GRND_RANDOM | libc::GRND_INSECURE;
    if request.unsigned(2) & !known != 0 {
        return Err(Errno::INVAL);
    }
    let mut data = vec![0; request.length(1)];
    let none = GetRandomFlags::empty();
    let count = rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut *data, none))?;
    data.truncate(count);
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

/// `fallocate(fd, mode, offset, length)`.
pub(super) fn fallocate(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let number = |at| u64::try_from(request.long(at)).map_err(|_| Errno::INVAL);
    let (offset, length) = (number(2)?, number(3)?);
    let mode = FallocateFlags::from_bits(request.unsigned(1)).ok_or(Errno::OPNOTSUPP)?;
    let file = writable(session.table.get(request.int(0))?)?;
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(&file.fd, mode, offset, length))?;
    Ok(Reply::value(0))
}

/// `fadvise64(fd, offset, length, advice)`: advice is taken and not followed.
pub(super) fn fadvise64(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    if !(libc::POSIX_FADV_NORMAL..=libc::POSIX_FADV_NOREUSE).contains(&request.int(3)) {
        return Err(Errno::INVAL);
    }
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
