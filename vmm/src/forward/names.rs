//! Calls that make, remove and rename names.
//!
//! Handlers of the table in [`super::calls`]. Each opens the directory that
//! holds the name beneath its export and acts on the last component there;
//! none of these host calls follows a link in the last component. An export
//! itself behaves like a mount point: it can be neither removed nor renamed.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::exports::{Place, Root};
use super::open::{MODE_BITS, settle_mode};
use super::path::{GuestPath, Tail};
use super::{Reply, Request, SECOND, Session};

/// A name below an export: where, in which open directory, which.
struct Leaf<'a> {
    root: &'a Root,
    parent: OwnedFd,
    name: Vec<u8>,
}

/// `unlink(path)`.
pub(super) fn unlink(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    remove(session, request, libc::AT_FDCWD, AtFlags::empty())
}

/// `rmdir(path)`.
pub(super) fn rmdir(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    remove(session, request, libc::AT_FDCWD, AtFlags::REMOVEDIR)
}

/// `unlinkat(dirfd, path, flags)`.
pub(super) fn unlinkat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let flags = match request.int(2) {
        0 => AtFlags::empty(),
        libc::AT_REMOVEDIR => AtFlags::REMOVEDIR,
        _ => return Err(Errno::INVAL),
    };
    remove(session, request, request.int(0), flags)
}

/// `mkdir(path, mode)`.
pub(super) fn mkdir(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    make_directory(session, request, libc::AT_FDCWD, request.unsigned(1))
}

/// `mkdirat(dirfd, path, mode)`.
pub(super) fn mkdirat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    make_directory(session, request, request.int(0), request.unsigned(2))
}

/// `rename(old, new)`.
pub(super) fn rename(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let here = libc::AT_FDCWD;
    move_name(session, request, here, here, RenameFlags::empty())
}

/// `renameat(olddir, old, newdir, new)`.
pub(super) fn renameat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let (from, to) = (request.int(0), request.int(2));
    move_name(session, request, from, to, RenameFlags::empty())
}

/// `renameat2(olddir, old, newdir, new, flags)`. A whiteout is refused: it is
/// a device node.
pub(super) fn renameat2(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let flags = RenameFlags::from_bits_retain(request.unsigned(4));
    let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
    if !known.contains(flags) {
        return Err(Errno::INVAL);
    }
    move_name(session, request, request.int(0), request.int(2), flags)
}

/// `link(old, new)`.
pub(super) fn link(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    add_link(session, request, libc::AT_FDCWD, libc::AT_FDCWD)
}

/// `linkat(olddir, old, newdir, new, flags)`, without flags.
pub(super) fn linkat(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    if request.int(4) != 0 {
        return Err(Errno::INVAL);
    }
    add_link(session, request, request.int(0), request.int(2))
}

/// `symlink` and `symlinkat`: a link could lead other users of the exported
/// directory anywhere, so programs make none (as on a FAT file system).
pub(super) fn symlink(_: &mut Session, _: &Request<'_>) -> Result<Reply, Errno> {
    Err(Errno::PERM)
}

fn remove(
    session: &Session,
    request: &Request<'_>,
    dirfd: i32,
    flags: AtFlags,
) -> Result<Reply, Errno> {
    let path = session.path(request, dirfd, 0)?;
    let removes_dir = flags == AtFlags::REMOVEDIR;
    let busy = match (removes_dir, path.tail()) {
        (true, Tail::Dot) => return Err(Errno::INVAL),
        (true, Tail::DotDot) => return Err(Errno::NOTEMPTY),
        (false, Tail::Dot | Tail::DotDot) => return Err(Errno::ISDIR),
        (true, _) => Errno::BUSY,
        (false, _) => Errno::ISDIR,
    };
    let leaf = leaf(session, &path, busy)?;
    leaf.writable()?;
    rustix::fs::unlinkat(&leaf.parent, &*leaf.name, flags)?;
    Ok(Reply::value(0))
}

fn make_directory(
    session: &Session,
    request: &Request<'_>,
    dirfd: i32,
    mode: u32,
) -> Result<Reply, Errno> {
    let path = session.path(request, dirfd, 0)?;
    if matches!(path.tail(), Tail::Dot | Tail::DotDot) {
        return Err(Errno::EXIST);
    }
    let leaf = leaf(session, &path, Errno::EXIST)?;
    if !leaf.root.is_writable() {
        let found = rustix::fs::statat(&leaf.parent, &*leaf.name, AtFlags::SYMLINK_NOFOLLOW);
        return Err(found.map_or(Errno::ROFS, |_| Errno::EXIST));
    }
    let mode = Mode::from_raw_mode(mode & !session.umask & MODE_BITS);
    rustix::fs::mkdirat(&leaf.parent, &*leaf.name, mode)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The mode is settled where the new directory can be opened; without the
    // right to read it, what the VMM's umask left stays.
    if let Ok(made) = rustix::fs::openat(&leaf.parent, &*leaf.name, flags, Mode::empty()) {
        settle_mode(&made, mode)?;
    }
    Ok(Reply::value(0))
}

fn move_name(
    session: &Session,
    request: &Request<'_>,
    from: i32,
    to: i32,
    flags: RenameFlags,
) -> Result<Reply, Errno> {
    let old = session.path(request, from, 0)?;
    let new = session.path(request, to, SECOND)?;
    for path in [&old, &new] {
        if matches!(path.tail(), Tail::Dot | Tail::DotDot) {
            return Err(Errno::BUSY);
        }
    }
    let old = leaf(session, &old, Errno::BUSY)?;
    let new = leaf(session, &new, Errno::BUSY)?;
    same_export(&old, &new)?;
    rustix::fs::renameat_with(&old.parent, &*old.name, &new.parent, &*new.name, flags)?;
    Ok(Reply::value(0))
}

fn add_link(session: &Session, request: &Request<'_>, from: i32, to: i32) -> Result<Reply, Errno> {
    let old = session.path(request, from, 0)?;
    let new = session.path(request, to, SECOND)?;
    if matches!(new.tail(), Tail::Dot | Tail::DotDot) {
        return Err(Errno::EXIST);
    }
    let wants_directory = old.wants_directory();
    let mut old = leaf(session, &old, Errno::PERM)?;
    let new = leaf(session, &new, Errno::EXIST)?;
    // With its slash the host would follow a link here.
    if wants_directory {
        while old.name.last() == Some(&b'/') {
            old.name.pop();
        }
        let stat = rustix::fs::statat(&old.parent, &*old.name, AtFlags::SYMLINK_NOFOLLOW)?;
        return Err(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Errno::PERM,
            _ => Errno::NOTDIR,
        });
    }
    same_export(&old, &new)?;
    let none = AtFlags::empty();
    rustix::fs::linkat(&old.parent, &*old.name, &new.parent, &*new.name, none)?;
    Ok(Reply::value(0))
}

/// Opens the directory that holds `path`; `root_itself` is the answer for an
/// export or a synthetic directory.
fn leaf<'a>(session: &'a Session, path: &GuestPath, root_itself: Errno) -> Result<Leaf<'a>, Errno> {
    match session.exports.place(path) {
        Place::Inside(root, rest) => match root.open_parent(&rest)? {
            Some((parent, name)) => Ok(Leaf {
                root,
                parent,
                name: name.to_vec(),
            }),
            None => Err(root_itself),
        },
        Place::Listing(_) => Err(root_itself),
        Place::Nowhere { beside: true } => Err(Errno::ROFS),
        Place::Device(_) => Err(match root_itself {
            Errno::EXIST => Errno::EXIST,
            _ => Errno::ROFS,
        }),
        Place::Program | Place::Nowhere { .. } => Err(Errno::NOENT),
    }
}

impl Leaf<'_> {
    fn writable(&self) -> Result<(), Errno> {
        match self.root.is_writable() {
            true => Ok(()),
            false => Err(Errno::ROFS),
        }
    }
}

fn same_export(old: &Leaf<'_>, new: &Leaf<'_>) -> Result<(), Errno> {
    if !old.root.is_same(new.root) {
        return Err(Errno::XDEV);
    }
    old.writable()
}
