//! Plain segments: make, attach, detach.
//!
//! An exporter's [`Segment`] and an importer's [`PlainAttachment`] hold a
//! mapping each; the ids stay with the [`Broker`] connection, and end with it.
//! Dropping either unmaps; what was mapped stays readable whatever happens to
//! the broker and to the other side.

use super::{Broker, ClientError, Signals, field};
use crate::shared::SharedMemory;
use crate::wire::{Access, ApId, Hugetlb, NO_GROUP, Reply, Request, SegId, SegmentInfo, Target};
use crate::wire::{Memory, SegmentMake};
use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE};
use enclave_abi::arena::NAME_BYTES;
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use std::os::fd::{AsFd, OwnedFd};

/// What an exporter wants of a plain segment.
#[derive(Clone, Debug)]
pub struct SegmentRequest {
    /// Name; empty = none yet.
    pub name: String,
    /// Bytes, whole pages; 0 = for signals only.
    pub size_bytes: u64,
    /// Who may read and write: unix mode bits for this user, `gid`, others.
    pub mode: u32,
    /// Group of the permit; `None` = the exporter's primary one.
    pub gid: Option<u32>,
    /// Page size wanted; 2 MiB pages need whole numbers of them.
    pub hugetlb: Hugetlb,
    /// Whether it can be signalled.
    pub signallable: bool,
}

impl Default for SegmentRequest {
    /// No name, no memory, no signals; open to this user alone.
    fn default() -> Self {
        Self {
            name: String::new(),
            size_bytes: 0,
            mode: 0o600,
            gid: None,
            hugetlb: Hugetlb::No,
            signallable: false,
        }
    }
}

/// A new plain segment that nobody can find yet.
#[derive(Debug)]
pub struct SegmentGrant {
    /// Its segid.
    pub segid: SegId,
    /// Its bytes.
    pub size_bytes: u64,
    /// Bytes of a host page behind it: 4 KiB or 2 MiB.
    pub page_bytes: u64,
    /// The object, read-write; `None` if it is for signals only. Map and fill
    /// it, call [`Broker::mapped`], then close it.
    pub memfd: Option<OwnedFd>,
}

/// A plain segment as its exporter holds it.
#[derive(Debug)]
pub struct Segment {
    /// Its segid.
    pub segid: SegId,
    /// Bytes of a host page behind it.
    pub page_bytes: u64,
    /// The memory, read-write; `None` if it is for signals only, or where
    /// [`Broker::make_over`] found it.
    pub memory: Option<SharedMemory>,
    /// Where importers' signals arrive; `None` if it is not signallable.
    pub signals: Option<Signals>,
}

/// A granted piece of a plain segment, before it is mapped.
#[derive(Debug)]
pub struct Piece {
    /// The segment.
    pub segid: SegId,
    /// Where the piece begins in it, in bytes.
    pub offset: u64,
    /// Bytes of the piece.
    pub len: u64,
    /// Bytes of the whole segment.
    pub size_bytes: u64,
    /// Bytes of a host page behind it.
    pub page_bytes: u32,
    /// What the descriptor allows.
    pub access: Access,
    /// The object of the whole segment; it cannot shrink.
    pub memfd: OwnedFd,
}

/// An attached piece of a plain segment.
#[derive(Debug)]
pub struct PlainAttachment {
    /// The access it came by.
    pub apid: ApId,
    /// The segment.
    pub segid: SegId,
    /// Where the piece begins in it, in bytes.
    pub offset: u64,
    /// The piece.
    pub memory: SharedMemory,
}

impl Broker {
    /// Makes a plain segment of fresh memory, maps it, allocates every page and
    /// lets it be found. To fill it before anybody can see it, use
    /// [`Broker::segment_make`] and [`Broker::mapped`].
    ///
    /// # Errors
    /// EINVAL for a size or mode there is not; EEXIST if the name is taken;
    /// EPERM for a [`crate::wire::Role::Consumer`]; ENOMEM, ENOSPC when short.
    pub fn make_segment(&mut self, request: &SegmentRequest) -> Result<Segment, ClientError> {
        let grant = self.segment_make(request)?;
        let segid = grant.segid;
        let made = self.map_segment(grant, request.signallable);
        if made.is_err() {
            // Half made is no use to anybody; a broker that is gone has ended it.
            let _ = self.remove(segid);
        }
        made
    }

    fn map_segment(&mut self, grant: SegmentGrant, sig: bool) -> Result<Segment, ClientError> {
        let segid = grant.segid;
        let signals = match sig {
            true => Some(self.subscribe(Target::Segment(segid))?),
            false => None,
        };
        let memory = match &grant.memfd {
            Some(memfd) => {
                let (len, page) = (grant.size_bytes, grant.page_bytes);
                let memory = map(memfd, 0, len, page, Access::ReadWrite)?;
                memory.populate().map_err(|source| {
                    let what = "allocate the segment";
                    ClientError::System { what, source }
                })?;
                Some(memory)
            }
            None => None,
        };
        self.mapped(segid)?;
        Ok(Segment {
            segid,
            page_bytes: grant.page_bytes,
            memory,
            signals,
        })
    }

    /// Asks for a plain segment; it cannot be found before [`Broker::mapped`].
    ///
    /// # Errors
    /// As [`Broker::make_segment`].
    pub fn segment_make(&mut self, request: &SegmentRequest) -> Result<SegmentGrant, ClientError> {
        let name = match request.name.as_str() {
            "" => [0; NAME_BYTES],
            name => field(name)?,
        };
        let (reply, fds) = self.call(&Request::SegmentMake(SegmentMake {
            name,
            size_bytes: request.size_bytes,
            mode: request.mode,
            gid: request.gid.unwrap_or(NO_GROUP),
            hugetlb: request.hugetlb,
            signallable: request.signallable,
        }))?;
        let Reply::Made {
            segid,
            size_bytes,
            page_bytes,
        } = reply
        else {
            return Err(ClientError::Answer);
        };
        if size_bytes != request.size_bytes || !is_page(page_bytes) {
            return Err(ClientError::Answer);
        }
        let memfd = fds.into_iter().next();
        if let Some(memfd) = &memfd {
            check_object(memfd, size_bytes)?;
        }
        Ok(SegmentGrant {
            segid,
            size_bytes,
            page_bytes,
            memfd,
        })
    }

    /// Asks for `len` bytes at `offset` of a plain segment; the same apid may
    /// do so many times. Maps nothing: for callers that choose the address.
    ///
    /// # Errors
    /// EINVAL for a piece outside the segment, empty, or that does not begin
    /// at a page of it, and for an arena; EIDRM if the segment has ended; EBADF
    /// for an apid of another connection.
    pub fn attach_piece(
        &mut self,
        apid: ApId,
        offset: u64,
        len: u64,
    ) -> Result<Piece, ClientError> {
        let request = Request::SegmentAttach { apid, offset, len };
        let (reply, fds) = self.call(&request)?;
        let (Reply::Memory(memory), Ok([memfd])) = (reply, <[OwnedFd; 1]>::try_from(fds)) else {
            return Err(ClientError::Answer);
        };
        let Memory {
            segid,
            size_bytes,
            page_bytes,
            access,
        } = memory;
        let end = offset.checked_add(len).filter(|end| *end <= size_bytes);
        let page = u64::from(page_bytes);
        if end.is_none() || !is_page(page) || !size_bytes.is_multiple_of(page) {
            return Err(ClientError::Answer);
        }
        check_object(&memfd, size_bytes)?;
        Ok(Piece {
            segid,
            offset,
            len,
            size_bytes,
            page_bytes,
            access,
            memfd,
        })
    }

    /// Attaches `len` bytes at `offset` of a plain segment, read-only or
    /// read-write as the apid was got.
    ///
    /// # Errors
    /// As [`Broker::attach_piece`]; the system cannot map it.
    pub fn attach_segment(
        &mut self,
        apid: ApId,
        offset: u64,
        len: u64,
    ) -> Result<PlainAttachment, ClientError> {
        let piece = self.attach_piece(apid, offset, len)?;
        let page = u64::from(piece.page_bytes);
        match map(&piece.memfd, offset, len, page, piece.access) {
            Ok(memory) => Ok(PlainAttachment {
                apid,
                segid: piece.segid,
                offset,
                memory,
            }),
            Err(error) => {
                let _ = self.detach(apid);
                Err(error)
            }
        }
    }

    /// Unmaps an attachment and says so.
    ///
    /// # Errors
    /// The broker does not know of it; unmapped it is in any case.
    pub fn detach_segment(&mut self, attachment: PlainAttachment) -> Result<(), ClientError> {
        let apid = attachment.apid;
        drop(attachment);
        self.detach(apid)
    }

    /// Tells that the object of an arena or segment is mapped: from now on
    /// others can find it.
    ///
    /// # Errors
    /// It is not this connection's (EPERM), or not waiting for this (EBADFD).
    pub fn mapped(&mut self, segid: SegId) -> Result<(), ClientError> {
        self.done(&Request::Mapped { segid })
    }

    /// How one segment is.
    ///
    /// # Errors
    /// ENOENT if there is none of this id.
    pub fn info(&mut self, segid: SegId) -> Result<SegmentInfo, ClientError> {
        match self.call(&Request::Info { segid })?.0 {
            Reply::Segments(mut infos) if infos.len() == 1 => {
                infos.pop().ok_or(ClientError::Answer)
            }
            _ => Err(ClientError::Answer),
        }
    }
}

// Held by one thread, used by others.
const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_sync<T: Sync>() {}
    is_send::<Broker>();
    is_send::<Signals>();
    is_send::<Segment>();
    is_send::<PlainAttachment>();
    is_sync::<SharedMemory>();
};

fn is_page(bytes: u64) -> bool {
    bytes == PAGE_SIZE || bytes == LARGE_PAGE_SIZE
}

/// Whether the object is as long as it should be and stays so: else access to
/// it could raise SIGBUS.
pub(super) fn check_object(memfd: impl AsFd, bytes: u64) -> Result<(), ClientError> {
    let sealed = fcntl_get_seals(&memfd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    let found = fstat(&memfd)
        .ok()
        .and_then(|stat| u64::try_from(stat.st_size).ok());
    if sealed && found.is_some_and(|found| found >= bytes) {
        Ok(())
    } else {
        Err(ClientError::Memory)
    }
}

pub(super) fn map(
    memfd: &OwnedFd,
    offset: u64,
    len: u64,
    page_bytes: u64,
    access: Access,
) -> Result<SharedMemory, ClientError> {
    let small = |number| usize::try_from(number).map_err(|_| ClientError::Answer);
    SharedMemory::map(memfd, offset, small(len)?, small(page_bytes)?, access).map_err(|source| {
        let what = "map the segment";
        ClientError::System { what, source }
    })
}
