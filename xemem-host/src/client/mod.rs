//! The blocking client: what VMM, command line and analytics ask the broker.
//!
//! [`Broker`] is one connection, one request at a time. [`Stream`] follows one
//! arena on a connection of its own; plain segments share a connection. Apids,
//! leases and exported segments end with their connection, whatever happens to
//! the process, because the kernel closes it.

mod apart;
mod bells;
mod connection;
mod ear;
mod ears;
mod error;
mod make_over;
pub mod maps;
mod segments;
mod signals;
mod start;
mod stream;

pub use bells::Bells;
pub use connection::ANSWER_WITHIN;
pub use ears::{Ears, Heard};
pub use error::ClientError;
pub use maps::Unmovable;
pub use segments::{Piece, PlainAttachment, Segment, SegmentGrant, SegmentRequest};
pub use signals::{Signals, Waited};
pub use stream::Stream;
pub(crate) use stream::{Held, Link};

use crate::broker::MAX_SEGMENTS;
use crate::wire::{
    Access, ApId, ArenaMake, Attached, EndReason, Generation, Hugetlb, LeaseReply, Policy, Reply,
    Request, Role, SegId, SegmentInfo, Status, Want,
};
use connection::Connection;
use enclave_abi::arena::{Geometry, NAME_BYTES, name_field};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// What an exporter wants of an arena.
#[derive(Clone, Debug)]
pub struct ArenaRequest {
    /// Arena slot of the enclave.
    pub slot: u32,
    /// Name; empty = none yet.
    pub name: String,
    /// Payload bytes.
    pub size_bytes: u64,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Number of banks.
    pub nr_banks: u32,
    /// Page size wanted.
    pub hugetlb: Hugetlb,
    /// Group that may read besides the owner, if any.
    pub reader_gid: Option<u32>,
    /// Newest generations to keep although nobody leased them; 0 counts as 1.
    pub retain: u32,
}

/// A new arena.
#[derive(Debug)]
pub struct ArenaGrant {
    /// Its segid.
    pub segid: SegId,
    /// Where everything in it is.
    pub geometry: Geometry,
    /// Bytes of a host page behind it: 4 KiB or 2 MiB.
    pub page_bytes: u64,
    /// The object, read-write: map and prefault it, call
    /// [`Broker::arena_mapped`], then close it.
    pub memfd: OwnedFd,
    /// Eventfd that tells the broker of a publish.
    pub doorbell: OwnedFd,
}

/// A granted attachment, before it is mapped.
#[derive(Debug)]
pub struct Attachment {
    /// Where everything in the object is.
    pub geometry: Geometry,
    /// Bytes of a host page behind it.
    pub page_bytes: u32,
    /// The object, read-only.
    pub memfd: OwnedFd,
    /// Readable after each doorbell and at the end of the stream.
    pub notify: OwnedFd,
}

/// A connection to the broker.
#[derive(Debug)]
pub struct Broker {
    connection: Connection,
}

impl Broker {
    /// Connects; fit for exporters and tools.
    ///
    /// # Errors
    /// Nobody listens at `socket`, or it is not a broker of this version.
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        Self::connect_as(socket, Role::Exporter)
    }

    /// Connects in a role.
    ///
    /// # Errors
    /// As [`Broker::connect`]; ETIMEDOUT if the broker does not answer.
    pub fn connect_as(socket: &Path, role: Role) -> Result<Self, ClientError> {
        Self::open(socket, role, ANSWER_WITHIN)
    }

    /// Connects, starting `broker_exe` first if nobody listens.
    ///
    /// # Errors
    /// As [`Broker::connect`], or it cannot be started.
    pub fn connect_or_start(socket: &Path, broker_exe: &Path) -> Result<Self, ClientError> {
        start::connect_or_start(socket, broker_exe, start::Parent::Us)
    }

    /// As [`Broker::connect_or_start`], for libraries inside programs that
    /// know nothing of brokers: the broker is nobody's child, so that waiting
    /// for any child does not find it, and it inherits no descriptor.
    ///
    /// # Errors
    /// As [`Broker::connect_or_start`].
    pub fn connect_or_start_apart(socket: &Path, broker_exe: &Path) -> Result<Self, ClientError> {
        start::connect_or_start(socket, broker_exe, start::Parent::Nobody)
    }

    /// Names this exporter's enclave.
    ///
    /// # Errors
    /// The name is taken (EEXIST), or the connection has an enclave already.
    pub fn register_enclave(&mut self, name: &str) -> Result<OwnedFd, ClientError> {
        let name = field(name)?;
        let (reply, fds) = self.call(&Request::RegisterEnclave { name })?;
        match (reply, <[OwnedFd; 1]>::try_from(fds)) {
            (Reply::LeasePage, Ok([page])) => Ok(page),
            _ => Err(ClientError::Answer),
        }
    }

    /// Makes an arena. Where 2 MiB pages turn out short when mapped, end it
    /// and ask again without them.
    ///
    /// # Errors
    /// The broker refuses slot, name or geometry, or memory is short.
    pub fn arena_make(&mut self, request: &ArenaRequest) -> Result<ArenaGrant, ClientError> {
        let name = if request.name.is_empty() {
            [0; NAME_BYTES]
        } else {
            field(&request.name)?
        };
        let geometry = Geometry::new(request.size_bytes, request.chunk_bytes, request.nr_banks)
            .map_err(ClientError::Geometry)?;
        let (reply, fds) = self.call(&Request::ArenaMake(ArenaMake {
            slot: request.slot,
            name,
            size_bytes: request.size_bytes,
            chunk_bytes: request.chunk_bytes,
            nr_banks: request.nr_banks,
            hugetlb: request.hugetlb,
            reader_gid: request.reader_gid.unwrap_or(u32::MAX),
            retain: request.retain,
        }))?;
        match (reply, <[OwnedFd; 2]>::try_from(fds)) {
            (
                Reply::Arena {
                    segid,
                    object_bytes,
                    page_bytes,
                },
                Ok([memfd, doorbell]),
            ) if object_bytes == geometry.object_bytes => Ok(ArenaGrant {
                segid,
                geometry,
                page_bytes,
                memfd,
                doorbell,
            }),
            _ => Err(ClientError::Answer),
        }
    }

    /// Says for which enclave's program this connection makes plain segments;
    /// lists show it with them.
    ///
    /// # Errors
    /// Another user's enclave has this name, or it was said before (EEXIST);
    /// EPERM for a [`crate::wire::Role::Consumer`].
    pub fn for_enclave(&mut self, name: &str) -> Result<(), ClientError> {
        let name = field(name)?;
        self.done(&Request::ForEnclave { name })
    }

    /// Tells that the object is mapped: from now on readers can find it, and
    /// nobody gets another writable mapping.
    ///
    /// # Errors
    /// The arena is not this connection's, or not waiting for this.
    pub fn arena_mapped(&mut self, segid: SegId) -> Result<(), ClientError> {
        self.mapped(segid)
    }

    /// Gives an arena or segment a further name.
    ///
    /// # Errors
    /// The name is taken (EEXIST), or there are too many.
    pub fn arena_name(&mut self, segid: SegId, name: &str) -> Result<(), ClientError> {
        let name = field(name)?;
        self.done(&Request::Name { segid, name })
    }

    /// Ends an arena: no further generation will come.
    ///
    /// # Errors
    /// The arena is not this connection's.
    pub fn arena_end(&mut self, segid: SegId, reason: EndReason) -> Result<(), ClientError> {
        self.done(&Request::ArenaEnd { segid, reason })
    }

    /// Finds a segment; waits up to `timeout` for a live one of this name, not
    /// at all if `None`. If there is none then, it is the arena that had the
    /// name last and is retained. `name@N` is the segment N, which has or had
    /// that name.
    ///
    /// # Errors
    /// ENOENT without waiting, ETIMEDOUT after.
    pub fn lookup(&mut self, name: &str, timeout: Option<Duration>) -> Result<SegId, ClientError> {
        let (request, more) = lookup(name, timeout, false)?;
        found(&self.call_patiently(&request, more)?.0)
    }

    /// As [`Broker::lookup`], but finds live segments only.
    ///
    /// # Errors
    /// As [`Broker::lookup`].
    pub fn lookup_live(
        &mut self,
        name: &str,
        timeout: Option<Duration>,
    ) -> Result<SegId, ClientError> {
        let (request, more) = lookup(name, timeout, true)?;
        found(&self.call_patiently(&request, more)?.0)
    }

    /// As [`Broker::lookup`], given up as soon as `cancel` is readable.
    ///
    /// # Errors
    /// As there; [`ClientError::Cancelled`].
    pub fn lookup_unless(
        &mut self,
        name: &str,
        timeout: Option<Duration>,
        cancel: BorrowedFd<'_>,
    ) -> Result<SegId, ClientError> {
        let (request, more) = lookup(name, timeout, false)?;
        found(&self.call_unless(&request, more, cancel)?.0)
    }

    /// Asks for read access.
    ///
    /// # Errors
    /// EACCES without permission, EIDRM if the segment has ended.
    pub fn get(&mut self, segid: SegId) -> Result<ApId, ClientError> {
        self.get_for(segid, Access::ReadOnly)
    }

    /// Asks for access.
    ///
    /// # Errors
    /// EACCES if the permit does not say so; arenas, and segments whose mode
    /// lets nobody write, refuse to be written by anybody. EIDRM if it ended.
    pub fn get_for(&mut self, segid: SegId, access: Access) -> Result<ApId, ClientError> {
        match self.call(&Request::Get { segid, access })?.0 {
            Reply::Granted { apid } => Ok(apid),
            _ => Err(ClientError::Answer),
        }
    }

    /// Gives access back; ends the attachment, too.
    ///
    /// # Errors
    /// The apid is not this connection's.
    pub fn release(&mut self, apid: ApId) -> Result<(), ClientError> {
        self.done(&Request::Release { apid })
    }

    /// Takes a segment away from its name and its readers; a retained one goes
    /// when the last of these does.
    ///
    /// # Errors
    /// EACCES unless this user owns it or is root.
    pub fn remove(&mut self, segid: SegId) -> Result<(), ClientError> {
        self.done(&Request::Remove { segid })
    }

    /// All segments, ended ones that are still read included.
    ///
    /// # Errors
    /// The broker is gone.
    pub fn list(&mut self) -> Result<Vec<SegmentInfo>, ClientError> {
        let mut all: Vec<SegmentInfo> = Vec::new();
        loop {
            let after = all.last().map_or(SegId(0), |info| info.segid);
            let Reply::Segments(page) = self.call(&Request::List { after })?.0 else {
                return Err(ClientError::Answer);
            };
            if page.is_empty() {
                return Ok(all);
            }
            // Bounded, whatever the broker sends.
            if page.iter().any(|info| info.segid <= after) || all.len() > MAX_SEGMENTS {
                return Err(ClientError::Answer);
            }
            all.extend(page);
        }
    }

    /// How the broker is.
    ///
    /// # Errors
    /// The broker is gone.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.call(&Request::Status)?.0 {
            Reply::Status(status) => Ok(status),
            _ => Err(ClientError::Answer),
        }
    }

    /// Ends the broker.
    ///
    /// # Errors
    /// EBUSY while in use (unless `force`), EPERM for other users.
    pub fn shutdown(&mut self, force: bool) -> Result<(), ClientError> {
        self.done(&Request::Shutdown { force })
    }

    /// Asks for the arena behind `apid` and begins a subscription. Most
    /// readers want a [`Stream`], which does all of this.
    ///
    /// # Errors
    /// EEXIST if attached already, EIDRM if the segment has ended.
    pub fn attach(&mut self, apid: ApId, policy: Policy) -> Result<Attachment, ClientError> {
        let (reply, fds) = self.call(&Request::Attach { apid, policy })?;
        let (Reply::Attached(attached), Ok([memfd, notify])) =
            (reply, <[OwnedFd; 2]>::try_from(fds))
        else {
            return Err(ClientError::Answer);
        };
        let Attached {
            size_bytes,
            chunk_bytes,
            nr_banks,
            page_bytes,
            ..
        } = attached;
        let geometry =
            Geometry::new(size_bytes, chunk_bytes, nr_banks).map_err(ClientError::Geometry)?;
        Ok(Attachment {
            geometry,
            page_bytes,
            memfd,
            notify,
        })
    }

    /// Asks for a generation to read; it stays until released.
    ///
    /// # Errors
    /// ENOTCONN if `apid` is not attached, EDQUOT with too many leases.
    pub fn lease(&mut self, apid: ApId, want: Want) -> Result<LeaseReply, ClientError> {
        match self.call(&Request::Lease { apid, want })?.0 {
            Reply::Lease(lease) => Ok(lease),
            _ => Err(ClientError::Answer),
        }
    }

    /// The generations of an arena that can be leased now, ascending: held by
    /// readers, or kept.
    ///
    /// # Errors
    /// EACCES without permission to read, EINVAL if it is no arena.
    pub fn generations(&mut self, segid: SegId) -> Result<Vec<Generation>, ClientError> {
        match self.call(&Request::Generations { segid })?.0 {
            Reply::Generations(all) => Ok(all),
            _ => Err(ClientError::Answer),
        }
    }

    /// Keeps the `count` newest generations of an arena although nobody leased
    /// them: leased ones of readers come first where banks are short.
    ///
    /// # Errors
    /// EACCES unless this user owns the arena or is root, EINVAL for a count
    /// that its banks cannot hold, EIDRM if it has ended.
    pub fn retain(&mut self, segid: SegId, count: u32) -> Result<(), ClientError> {
        self.done(&Request::Retain { segid, count })
    }

    /// Gives up retained arenas, oldest first, until so many bytes are free:
    /// this user's own, for root and the broker's user anybody's; with `huge`
    /// only such as stand on 2 MiB pages. Returns the bytes given up.
    ///
    /// # Errors
    /// The broker is gone.
    pub fn make_room(&mut self, bytes: u64, huge: bool) -> Result<u64, ClientError> {
        match self.call(&Request::MakeRoom { bytes, huge })?.0 {
            Reply::Room { bytes } => Ok(bytes),
            _ => Err(ClientError::Answer),
        }
    }

    /// Gives a generation back.
    ///
    /// # Errors
    /// ENODATA if it is not leased.
    pub fn release_lease(&mut self, apid: ApId, generation: u64) -> Result<(), ClientError> {
        self.done(&Request::ReleaseLease { apid, generation })
    }

    /// Ends the attachment of `apid` with its leases, or one of its pieces of a
    /// plain segment; the access stays.
    ///
    /// # Errors
    /// ENOTCONN if `apid` is not attached.
    pub fn detach(&mut self, apid: ApId) -> Result<(), ClientError> {
        self.done(&Request::Detach { apid })
    }
}

fn lookup(
    name: &str,
    timeout: Option<Duration>,
    live_only: bool,
) -> Result<(Request, Duration), ClientError> {
    let name = field(name)?;
    let timeout = timeout.map_or(0, |timeout| timeout.as_millis());
    let timeout_ms = u32::try_from(timeout).unwrap_or(u32::MAX);
    let more = Duration::from_millis(timeout_ms.into());
    let request = Request::Lookup {
        name,
        timeout_ms,
        live_only,
    };
    Ok((request, more))
}

fn found(reply: &Reply) -> Result<SegId, ClientError> {
    match reply {
        Reply::Segment { segid } => Ok(*segid),
        _ => Err(ClientError::Answer),
    }
}

fn field(name: &str) -> Result<[u8; NAME_BYTES], ClientError> {
    name_field(name).ok_or_else(|| ClientError::Name(name.to_owned()))
}
