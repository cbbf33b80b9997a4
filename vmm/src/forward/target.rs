//! What a path or descriptor leads to, opened without opening the file.
//!
//! Used by the handlers of [`super::stat`] and [`super::attributes`]. A path is
//! walked once, beneath its export; what follows acts on the descriptor, so
//! that nothing can change between a check and an act.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::exports::{Device, Place, inode_of};
use super::path::GuestPath;
use super::table::{Description, Origin};
use super::{Request, Session};

/// Something a path leads to.
pub(super) enum Target {
    /// In an export, opened as a place.
    File { fd: OwnedFd, writable: bool },
    /// A device, opened as a place.
    Device(OwnedFd),
    /// A synthetic directory with this inode number.
    Listing(u64),
}

impl Target {
    /// The descriptor, if the program may change the inode behind it.
    pub(super) fn changeable(&self) -> Result<BorrowedFd<'_>, Errno> {
        match self {
            Self::File { fd, writable: true } => Ok(fd.as_fd()),
            Self::File { .. } | Self::Listing(_) => Err(Errno::ROFS),
            Self::Device(_) => Err(Errno::PERM),
        }
    }
}

/// Opens the path at 0, seen from `dirfd`.
pub(super) fn target(
    session: &Session,
    request: &Request<'_>,
    dirfd: i32,
    follow: bool,
) -> Result<Target, Errno> {
    let path = session.path(request, dirfd, 0)?;
    place_target(session, &path, follow)
}

/// Opens an absolute guest path.
pub(super) fn target_at(session: &Session, path: &[u8], follow: bool) -> Result<Target, Errno> {
    let path = GuestPath::join(b"/", path);
    place_target(session, &path, follow)
}

/// Opens a normalised guest path.
pub(super) fn place_target(
    session: &Session,
    path: &GuestPath,
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

/// The host descriptor, if the program may change the inode behind it: only a
/// file of a writable export. Standard descriptors belong to the caller.
pub(super) fn changeable(description: &Description) -> Result<BorrowedFd<'_>, Errno> {
    let file = description.host(Errno::ROFS)?;
    match file.origin {
        Origin::Export { writable: true } => Ok(file.fd.as_fd()),
        Origin::Export { writable: false } => Err(Errno::ROFS),
        Origin::Input | Origin::Output | Origin::Other => Err(Errno::PERM),
    }
}
