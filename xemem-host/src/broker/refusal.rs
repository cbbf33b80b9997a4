//! Every reason the broker refuses a request: a number for programs, a few
//! words for people. Made here, put on the wire by [`super::Broker`].

use crate::wire::{ApId, EndReason, SegId};
use enclave_abi::arena::GeometryError;
use rustix::io::Errno;

/// A refused request; the broker's state is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[must_use]
pub enum Refusal {
    /// Some request came before `Hello`, or `Hello` came twice.
    #[error("hello must be the first message, and the only one of its kind")]
    Hello,
    /// The client was built for other structures.
    #[error("abi version {0} is not {abi}, the one spoken here", abi = enclave_abi::ABI_VERSION)]
    AbiVersion(u32),
    /// A consumer asked for what only exporters do.
    #[error("only an exporter with a registered enclave may do this")]
    NotExporter,
    /// A consumer wanted to make a segment.
    #[error("only an exporter may make segments")]
    Role,
    /// The exporter has an enclave already.
    #[error("this connection has registered its enclave already")]
    Registered,
    /// An empty name, or bytes that are no printable UTF-8.
    #[error("not a valid name: 1 to 63 bytes of printable utf-8")]
    Name,
    /// The name is somebody else's.
    #[error("the name is taken")]
    NameTaken,
    /// More names than a segment may have.
    #[error("a segment has at most {0} names")]
    TooManyNames(usize),
    /// No segment of that name.
    #[error("no segment of this name")]
    NoName,
    /// No segment of that name came in time.
    #[error("no segment of this name came in time")]
    NameTimeout,
    /// A second lookup while one waits.
    #[error("a lookup of this connection is waiting already")]
    LookupPending,
    /// No such segment.
    #[error("there is no {0}")]
    NoSegment(SegId),
    /// The segment is not ready, or was made ready before.
    #[error("{0} is not in the state for this")]
    SegmentState(SegId),
    /// The segment has ended.
    #[error("{0} has ended: {1}")]
    SegmentEnded(SegId, EndReason),
    /// No such arena slot.
    #[error("arena slot {0} does not exist")]
    Slot(u32),
    /// The slot is in use.
    #[error("arena slot {0} is in use")]
    SlotTaken(u32),
    /// No such geometry.
    #[error("no arena can be laid out like this: {0:?}")]
    Geometry(GeometryError),
    /// 2 MiB pages behind 4 KiB chunks.
    #[error("2 MiB pages need chunks of 2 MiB, not {0} bytes")]
    HugetlbChunk(u64),
    /// No such size of a segment.
    #[error("a segment cannot have {0} bytes: whole pages, or 0 if it is only for signals")]
    Size(u64),
    /// No such mode.
    #[error("mode {0:#o} has bits beyond 0777")]
    Mode(u32),
    /// A piece outside the segment, empty, or not beginning at a page.
    #[error("no piece of {len} bytes at {offset} in {size_bytes} bytes on pages of {page_bytes}")]
    Piece {
        /// Where it should begin.
        offset: u64,
        /// Its bytes.
        len: u64,
        /// Bytes of the segment.
        size_bytes: u64,
        /// Bytes of its pages.
        page_bytes: u32,
    },
    /// An arena where a plain segment belongs.
    #[error("{0} is an arena, not a plain segment")]
    NotPlain(SegId),
    /// A plain segment where an arena belongs.
    #[error("{0} is a plain segment, not an arena")]
    NotArena(SegId),
    /// The segment was not made for signals.
    #[error("{0} was not made to be signalled")]
    NotSignallable(SegId),
    /// Subscribed before.
    #[error("there is a subscription already")]
    Subscribed,
    /// The peer is neither owner nor reader.
    #[error("uid {uid} may not do this with {segid}")]
    Permission {
        /// The peer's user.
        uid: u32,
        /// The segment.
        segid: SegId,
    },
    /// Arenas are read-only for everybody but their enclave.
    #[error("arenas are read-only to everyone outside their enclave")]
    ReadOnly,
    /// No such apid on this connection.
    #[error("there is no {0} on this connection")]
    NoAccess(ApId),
    /// Not attached, or attached before.
    #[error("{0} is not attached")]
    NotAttached(ApId),
    /// Attached before.
    #[error("{0} is attached already")]
    Attached(ApId),
    /// So many importers have a bell of this arena already.
    #[error("{0} has no bell to spare")]
    NoBell(SegId),
    /// The generation is not leased.
    #[error("generation {generation} is not leased by {apid}")]
    NotLeased {
        /// The attachment.
        apid: ApId,
        /// The generation.
        generation: u64,
    },
    /// The generation was never published, or is not held any more.
    #[error("generation {0} is not there: not published yet, or not kept any more")]
    NotHeld(u64),
    /// More generations than banks could hold, or none.
    #[error("an arena with so many banks keeps 1 to {most} generations, not {wanted}")]
    Retain {
        /// How many should be kept.
        wanted: u32,
        /// How many can be.
        most: u32,
    },
    /// A table is full.
    #[error("no more than {limit} {what}")]
    Limit {
        /// What there are too many of.
        what: Table,
        /// How many there may be.
        limit: usize,
    },
    /// Shutdown asked by somebody else.
    #[error("only the broker's own user or root may end it")]
    ShutdownPermission,
    /// Shutdown while in use.
    #[error(
        "still in use: enclaves {enclaves}, plain segments {segments}, attachments {attachments}, retained arenas {retained}"
    )]
    Busy {
        /// Registered enclaves.
        enclaves: usize,
        /// Plain segments that have not ended.
        segments: usize,
        /// Attachments.
        attachments: usize,
        /// Ended arenas that are retained.
        retained: usize,
    },
    /// The operating system refused.
    #[error("the operating system refused to {0}: {1}")]
    System(Operation, Errno),
}

/// Tables with a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Connections.
    Clients,
    /// Segments.
    Segments,
    /// Apids of one client.
    Apids,
    /// Leases of one client.
    Leases,
}

impl core::fmt::Display for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Clients => "clients",
            Self::Segments => "segments",
            Self::Apids => "apids per client",
            Self::Leases => "leases per client",
        })
    }
}

/// What the server does for the broker and may fail at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// See [`super::Effect::MakeLeasePage`].
    MakeLeasePage,
    /// See [`super::Effect::MakeArena`].
    MakeArena,
    /// See [`super::Effect::SealArena`].
    SealArena,
    /// See [`super::Effect::MakeSegment`].
    MakeSegment,
    /// See [`super::Effect::SealSegment`].
    SealSegment,
    /// See [`super::Effect::MakeNotify`].
    MakeNotify,
}

impl core::fmt::Display for Operation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::MakeLeasePage => "make a lease page",
            Self::MakeArena => "make an arena object",
            Self::SealArena => "seal an arena object",
            Self::MakeSegment => "make a segment object",
            Self::SealSegment => "seal a segment object",
            Self::MakeNotify => "make a notify eventfd",
        })
    }
}

impl Refusal {
    /// The number that goes on the wire.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Hello => Errno::PROTO,
            Self::AbiVersion(_) => Errno::PROTONOSUPPORT,
            Self::NotExporter | Self::Role | Self::ShutdownPermission => Errno::PERM,
            Self::Registered | Self::NameTaken | Self::Attached(_) | Self::Subscribed => {
                Errno::EXIST
            }
            Self::Name | Self::Slot(_) | Self::Geometry(_) | Self::HugetlbChunk(_) => Errno::INVAL,
            Self::Size(_) | Self::Mode(_) | Self::Piece { .. } => Errno::INVAL,
            Self::NotPlain(_) | Self::NotArena(_) | Self::Retain { .. } => Errno::INVAL,
            Self::TooManyNames(_) => Errno::MLINK,
            Self::NoName | Self::NoSegment(_) | Self::NotHeld(_) => Errno::NOENT,
            Self::NameTimeout => Errno::TIMEDOUT,
            Self::LookupPending | Self::SlotTaken(_) | Self::Busy { .. } => Errno::BUSY,
            Self::SegmentState(_) => Errno::BADFD,
            Self::SegmentEnded(..) => Errno::IDRM,
            Self::Permission { .. } | Self::ReadOnly | Self::NotSignallable(_) => Errno::ACCESS,
            Self::NoAccess(_) => Errno::BADF,
            Self::NotAttached(_) => Errno::NOTCONN,
            Self::NoBell(_) => Errno::NOSPC,
            Self::NotLeased { .. } => Errno::NODATA,
            Self::Limit { what, .. } => match what {
                Table::Clients => Errno::USERS,
                Table::Segments => Errno::NOSPC,
                Table::Apids | Table::Leases => Errno::DQUOT,
            },
            Self::System(_, errno) => *errno,
        }
    }
}
