//! Objects of plain segments: memfds that importers may write, or not.
//!
//! ```text
//!  make:  memfd, final size, sealed against resizing; the exporter's descriptor
//!  seal:  O_RDONLY descriptor for importers who may only read, mode 0400, then
//!           nobody may write: FUTURE_WRITE and SEAL, writable descriptor closed
//!           somebody may:     SEAL; writers get the writable descriptor
//! ```
//!
//! What a read-only descriptor of an object that others may write is worth is
//! in `docs/threat-model.md`.

use super::objects::{SIZE_SEALS, object, read_only_twin, seal};
use crate::wire::{Access, Hugetlb};
use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE};
use rustix::fs::{Mode, SealFlags, fchmod, fcntl_get_seals};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Seals of an object with writers: none of them may seal others out.
const SHARED_SEALS: SealFlags = SIZE_SEALS.union(SealFlags::SEAL);
/// Seals of an object without.
const READ_SEALS: SealFlags = SHARED_SEALS.union(SealFlags::FUTURE_WRITE);

/// The object of one plain segment.
#[derive(Debug)]
pub(super) enum PlainObject {
    /// The exporter's descriptor; nobody else has one yet.
    Open(OwnedFd),
    /// What importers get.
    Sealed {
        readers: OwnedFd,
        writers: Option<OwnedFd>,
    },
}

impl PlainObject {
    /// Makes the object; returns the bytes of a page behind it, too.
    pub(super) fn make(size_bytes: u64, hugetlb: Hugetlb) -> Result<(Self, u64), Errno> {
        let name = "xemem-segment";
        let (fd, page_bytes) = match hugetlb {
            Hugetlb::No => object(name, size_bytes, PAGE_SIZE)?,
            Hugetlb::Yes => object(name, size_bytes, LARGE_PAGE_SIZE)?,
            Hugetlb::Auto => object(name, size_bytes, LARGE_PAGE_SIZE)
                .or_else(|_| object(name, size_bytes, PAGE_SIZE))?,
        };
        Ok((Self::Open(fd), page_bytes))
    }

    /// Makes the importers' descriptors; `writable` if any may write.
    pub(super) fn seal(self, writable: bool) -> Result<Self, Errno> {
        let Self::Open(fd) = self else {
            return Err(Errno::BUSY);
        };
        let readers = read_only_twin(&fd)?;
        fchmod(&fd, Mode::RUSR)?;
        let seals = if writable { SHARED_SEALS } else { READ_SEALS };
        seal(&fd, seals)?;
        // The exporter may have added seals of its own that shut writers out:
        // its own loss. None may be missing.
        if !fcntl_get_seals(&readers)?.contains(seals) {
            return Err(Errno::PERM);
        }
        let writers = writable.then_some(fd);
        Ok(Self::Sealed { readers, writers })
    }

    /// The exporter's descriptor, until the object is sealed.
    pub(super) fn exporters(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Open(fd) => Some(fd.as_fd()),
            Self::Sealed { .. } => None,
        }
    }

    /// The descriptor for importers with `access`, once the object is sealed.
    pub(super) fn importers(&self, access: Access) -> Option<BorrowedFd<'_>> {
        match (self, access) {
            (Self::Open(_), _) => None,
            (Self::Sealed { readers, .. }, Access::ReadOnly) => Some(readers.as_fd()),
            (Self::Sealed { writers, .. }, Access::ReadWrite) => {
                writers.as_ref().map(OwnedFd::as_fd)
            }
        }
    }
}
