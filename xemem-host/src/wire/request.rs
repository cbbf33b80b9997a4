//! Requests: client → broker. Encoded by [`crate::client`], decoded by
//! [`crate::server`]; no request carries a descriptor.

use super::{ApId, EndReason, SegId, WireError, body, frame, split};
use enclave_abi::arena::NAME_BYTES;
use enclave_abi::exporter::{self, About, ArenaMakeBody, Named, Numbers};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum Role {
    /// May make segments, and register one enclave to make arenas for.
    Exporter = exporter::ROLE_EXPORTER,
    /// A reader of segments, or a tool.
    Consumer = 2,
}

/// Access asked for by [`Request::Get`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum Access {
    /// Read only.
    ReadOnly = 1,
    /// Read and write; arenas refuse it.
    ReadWrite = 2,
}

/// Which generations a reader gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum Policy {
    /// The newest at each lease; older ones are skipped (and counted).
    Latest = 1,
    /// Each one, in order, as long as the reader keeps up.
    Every = 2,
}

/// Whether an arena shall stand on 2 MiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum Hugetlb {
    /// If there are enough of them.
    Auto = 0,
    /// Or fail.
    Yes = 1,
    /// Never.
    No = exporter::HUGETLB_NO,
}

/// What [`Request::Lease`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The newest generation.
    Latest,
    /// One that is newer than this.
    After(u64),
    /// This very one.
    Exactly(u64),
}

/// Parameters of a new arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaMake {
    /// Arena slot of the enclave, below [`enclave_abi::lease::MAX_ARENAS`].
    pub slot: u32,
    /// Name, zero padded; all zero = none.
    pub name: [u8; NAME_BYTES],
    /// Payload bytes.
    pub size_bytes: u64,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Number of banks.
    pub nr_banks: u32,
    /// Page size wanted.
    pub hugetlb: Hugetlb,
    /// Group that may read besides the owner; `u32::MAX` = none.
    pub reader_gid: u32,
    /// Newest generations to keep although nobody leased them; 0 counts as 1.
    pub retain: u32,
}

/// Parameters of a new plain segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentMake {
    /// Name, zero padded; all zero = none.
    pub name: [u8; NAME_BYTES],
    /// Bytes, whole pages; 0 = signals only.
    pub size_bytes: u64,
    /// Permit: unix mode bits for the exporter's user, `gid`, and others.
    pub mode: u32,
    /// Group of the permit; [`super::NO_GROUP`] = the exporter's primary one.
    pub gid: u32,
    /// Page size wanted.
    pub hugetlb: Hugetlb,
    /// Whether it can be signalled.
    pub signallable: bool,
}

/// An end of a segment that signals and waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    /// The holder of this access.
    Access(ApId),
    /// The exporter of this segment.
    Segment(SegId),
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// First of all: who is there. → `Welcome`
    Hello {
        /// What the client is.
        role: Role,
        /// [`enclave_abi::ABI_VERSION`] of the client.
        abi_version: u32,
    },
    /// Names the exporter's enclave. → `LeasePage` + 1 descriptor
    RegisterEnclave {
        /// Name, zero padded.
        name: [u8; NAME_BYTES],
    },
    /// Says for which enclave's program this connection makes plain segments.
    /// They show it, nothing is decided by it. → `Ok`
    ForEnclave {
        /// Name, zero padded.
        name: [u8; NAME_BYTES],
    },
    /// Makes an arena object. → `Arena` + 2 descriptors
    ArenaMake(ArenaMake),
    /// The exporter has mapped the object: seal it, let it be found. → `Ok`
    Mapped {
        /// The segment.
        segid: SegId,
    },
    /// A further name. → `Ok`
    Name {
        /// The segment.
        segid: SegId,
        /// Name, zero padded.
        name: [u8; NAME_BYTES],
    },
    /// No further generation will come. → `Ok`
    ArenaEnd {
        /// The arena.
        segid: SegId,
        /// Why.
        reason: EndReason,
    },
    /// Finds a segment by name. → `Segment`
    Lookup {
        /// Name, zero padded.
        name: [u8; NAME_BYTES],
        /// How long the broker may wait for the name; 0 = not at all.
        timeout_ms: u32,
        /// Not, when the time is over, one that has ended and is retained.
        live_only: bool,
    },
    /// Asks for access. → `Granted`
    Get {
        /// The segment.
        segid: SegId,
        /// What for.
        access: Access,
    },
    /// Asks for an arena's memory and begins a subscription. → `Attached` + 2 descriptors
    Attach {
        /// The access.
        apid: ApId,
        /// Which generations this reader gets.
        policy: Policy,
    },
    /// Asks for a generation to read. → `Lease`
    Lease {
        /// The attachment.
        apid: ApId,
        /// Which one.
        want: Want,
    },
    /// Gives a generation back. → `Ok`
    ReleaseLease {
        /// The attachment.
        apid: ApId,
        /// The generation.
        generation: u64,
    },
    /// Ends the attachment and its leases. → `Ok`
    Detach {
        /// The attachment.
        apid: ApId,
    },
    /// Gives the access back (detaches first). → `Ok`
    Release {
        /// The access.
        apid: ApId,
    },
    /// Takes a segment away from its name and its readers. → `Ok`
    Remove {
        /// The segment.
        segid: SegId,
    },
    /// Lists segments with larger ids than this. → `Segments`
    List {
        /// 0 at first, then the last id of the page before.
        after: SegId,
    },
    /// Asks how the broker is. → `Status`
    Status,
    /// Asks the broker to end. → `Ok`
    Shutdown {
        /// Even though clients use it.
        force: bool,
    },
    /// Makes a plain segment. → `Made` + 1 descriptor
    SegmentMake(SegmentMake),
    /// Asks for a piece of a plain segment's memory. → `Memory` + 1 descriptor
    SegmentAttach {
        /// The access.
        apid: ApId,
        /// Where the piece begins, in bytes: a multiple of its pages.
        offset: u64,
        /// Bytes of the piece, at least 1.
        len: u64,
    },
    /// Asks for a wait eventfd. → `Subscribed` + 1 descriptor
    Subscribe {
        /// Whose.
        target: Target,
    },
    /// Signals every subscriber of a segment but the sender. → `Ok`
    Signal {
        /// The sender; a segid of another's segment means: from outside.
        target: Target,
    },
    /// Asks how one segment is. → `Segments` with one line
    Info {
        /// The segment.
        segid: SegId,
    },
    /// Asks which generations of an arena can be leased now. → `Generations`
    Generations {
        /// The arena.
        segid: SegId,
    },
    /// Keeps so many of an arena's newest generations although nobody leased
    /// them. → `Ok`
    Retain {
        /// The arena.
        segid: SegId,
        /// How many, at least 1, below its number of banks.
        count: u32,
    },
    /// Asks for a bell: an eventfd that the exporter's kernel rings at each
    /// publish, without the broker. → `Bell` + 1 descriptor
    Bell {
        /// The attachment of an arena.
        apid: ApId,
        /// The one that all who say so share: it is never read.
        shared: bool,
    },
    /// Fetches the bells that each publish has to ring. → `Bells` + those that
    /// are new
    Bells {
        /// The arena.
        segid: SegId,
    },
    /// Asks for the wait eventfds of everybody whom `Signal` would tell. → `Ears` +
    /// the page that signallers share + those
    Ears {
        /// Whose signals.
        target: Target,
    },
    /// Asks to give up retained arenas, oldest first. → `Room`
    MakeRoom {
        /// Bytes wanted.
        bytes: u64,
        /// Only such as stand on 2 MiB pages.
        huge: bool,
    },
}

mod kind {
    pub(super) use enclave_abi::exporter::kind::{
        ARENA_END, ARENA_MAKE, HELLO, MAPPED, NAME, REGISTER_ENCLAVE,
    };

    pub(super) const LOOKUP: u16 = 7;
    pub(super) const GET: u16 = 8;
    pub(super) const ATTACH: u16 = 9;
    pub(super) const LEASE: u16 = 10;
    pub(super) const RELEASE_LEASE: u16 = 11;
    pub(super) const DETACH: u16 = 12;
    pub(super) const RELEASE: u16 = 13;
    pub(super) const REMOVE: u16 = 14;
    pub(super) const LIST: u16 = 15;
    pub(super) const STATUS: u16 = 16;
    pub(super) const SHUTDOWN: u16 = 17;
    pub(super) const SEGMENT_MAKE: u16 = 18;
    pub(super) const SEGMENT_ATTACH: u16 = 19;
    pub(super) const SUBSCRIBE: u16 = 20;
    pub(super) const SIGNAL: u16 = 21;
    pub(super) const INFO: u16 = 22;
    pub(super) const GENERATIONS: u16 = 23;
    pub(super) const RETAIN: u16 = 24;
    pub(super) const MAKE_ROOM: u16 = 25;
    pub(super) const BELL: u16 = 26;
    pub(super) const BELLS: u16 = 27;
    pub(super) const FOR_ENCLAVE: u16 = 28;
    pub(super) const EARS: u16 = 29;
}

/// [`SegmentMakeBody::flags`]: the segment can be signalled.
const SIGNALLABLE: u32 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SegmentMakeBody {
    name: [u8; NAME_BYTES],
    size_bytes: u64,
    mode: u32,
    gid: u32,
    hugetlb: u32,
    flags: u32,
}

/// Body of an attach to a piece.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Piece {
    id: u64,
    offset: u64,
    len: u64,
}

fn about(kind: u16, seq: u32, id: u64, number: u64, choice: u32) -> Vec<u8> {
    let pad = 0;
    let body = About {
        id,
        number,
        choice,
        pad,
    };
    frame(kind, seq, &body)
}

fn named(kind: u16, seq: u32, id: u64, name: [u8; NAME_BYTES], number: u32) -> Vec<u8> {
    let pad = 0;
    let body = Named {
        id,
        name,
        number,
        pad,
    };
    frame(kind, seq, &body)
}

impl Request {
    /// The bytes of this request.
    #[must_use]
    pub fn encode(&self, seq: u32) -> Vec<u8> {
        let numbers = |kind, first, second| frame(kind, seq, &Numbers { first, second });
        match *self {
            Self::Hello { role, abi_version } => numbers(kind::HELLO, role as u32, abi_version),
            Self::RegisterEnclave { name } => named(kind::REGISTER_ENCLAVE, seq, 0, name, 0),
            Self::ForEnclave { name } => named(kind::FOR_ENCLAVE, seq, 0, name, 0),
            Self::ArenaMake(make) => frame(
                kind::ARENA_MAKE,
                seq,
                &ArenaMakeBody {
                    name: make.name,
                    size_bytes: make.size_bytes,
                    chunk_bytes: make.chunk_bytes,
                    slot: make.slot,
                    nr_banks: make.nr_banks,
                    hugetlb: make.hugetlb as u32,
                    reader_gid: make.reader_gid,
                    retain: make.retain,
                    pad: 0,
                },
            ),
            Self::Mapped { segid } => about(kind::MAPPED, seq, segid.0, 0, 0),
            Self::Name { segid, name } => named(kind::NAME, seq, segid.0, name, 0),
            Self::ArenaEnd { segid, reason } => {
                about(kind::ARENA_END, seq, segid.0, 0, reason as u32)
            }
            Self::Lookup {
                name,
                timeout_ms,
                live_only,
            } => named(kind::LOOKUP, seq, u64::from(live_only), name, timeout_ms),
            Self::Get { segid, access } => about(kind::GET, seq, segid.0, 0, access as u32),
            Self::Attach { apid, policy } => about(kind::ATTACH, seq, apid.0, 0, policy as u32),
            Self::Lease { apid, want } => match want {
                Want::Latest => about(kind::LEASE, seq, apid.0, 0, 0),
                Want::After(generation) => about(kind::LEASE, seq, apid.0, generation, 1),
                Want::Exactly(generation) => about(kind::LEASE, seq, apid.0, generation, 2),
            },
            Self::ReleaseLease { apid, generation } => {
                about(kind::RELEASE_LEASE, seq, apid.0, generation, 0)
            }
            Self::Detach { apid } => about(kind::DETACH, seq, apid.0, 0, 0),
            Self::Release { apid } => about(kind::RELEASE, seq, apid.0, 0, 0),
            Self::Remove { segid } => about(kind::REMOVE, seq, segid.0, 0, 0),
            Self::List { after } => about(kind::LIST, seq, after.0, 0, 0),
            Self::Status => numbers(kind::STATUS, 0, 0),
            Self::Shutdown { force } => numbers(kind::SHUTDOWN, u32::from(force), 0),
            Self::SegmentMake(make) => frame(
                kind::SEGMENT_MAKE,
                seq,
                &SegmentMakeBody {
                    name: make.name,
                    size_bytes: make.size_bytes,
                    mode: make.mode,
                    gid: make.gid,
                    hugetlb: make.hugetlb as u32,
                    flags: if make.signallable { SIGNALLABLE } else { 0 },
                },
            ),
            Self::SegmentAttach { apid, offset, len } => {
                let id = apid.0;
                frame(kind::SEGMENT_ATTACH, seq, &Piece { id, offset, len })
            }
            Self::Subscribe { target } => targeted(kind::SUBSCRIBE, seq, target),
            Self::Ears { target } => targeted(kind::EARS, seq, target),
            Self::Signal { target } => targeted(kind::SIGNAL, seq, target),
            Self::Info { segid } => about(kind::INFO, seq, segid.0, 0, 0),
            Self::Generations { segid } => about(kind::GENERATIONS, seq, segid.0, 0, 0),
            Self::Retain { segid, count } => about(kind::RETAIN, seq, segid.0, 0, count),
            Self::Bell { apid, shared } => about(kind::BELL, seq, apid.0, 0, u32::from(shared)),
            Self::Bells { segid } => about(kind::BELLS, seq, segid.0, 0, 0),
            Self::MakeRoom { bytes, huge } => {
                about(kind::MAKE_ROOM, seq, 0, bytes, u32::from(huge))
            }
        }
    }

    /// The request in `bytes`, with its sequence number.
    ///
    /// # Errors
    /// A [`WireError`]; nothing is believed of such a message.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), WireError> {
        let (header, rest) = split(bytes)?;
        let request = match header.kind {
            kind::HELLO | kind::STATUS | kind::SHUTDOWN => of_numbers(header.kind, body(rest)?)?,
            kind::REGISTER_ENCLAVE | kind::NAME | kind::LOOKUP | kind::FOR_ENCLAVE => {
                of_name(header.kind, body(rest)?)?
            }
            kind::ARENA_MAKE => of_arena(body(rest)?)?,
            kind::SEGMENT_MAKE => of_segment(body(rest)?)?,
            kind::SEGMENT_ATTACH => {
                let piece: Piece = body(rest)?;
                Self::SegmentAttach {
                    apid: ApId(piece.id),
                    offset: piece.offset,
                    len: piece.len,
                }
            }
            kind::SUBSCRIBE | kind::SIGNAL | kind::EARS => of_target(header.kind, body(rest)?)?,
            kind::MAPPED..=kind::LIST | kind::INFO..=kind::BELLS => {
                of_id(header.kind, body(rest)?)?
            }
            other => return Err(WireError::Kind(other)),
        };
        Ok((header.seq, request))
    }
}

fn of_numbers(kind: u16, body: Numbers) -> Result<Request, WireError> {
    let unknown = |field, value| Err(WireError::Value { field, value });
    match (kind, body.first) {
        (kind::HELLO, first) => {
            let role = match first {
                1 => Role::Exporter,
                2 => Role::Consumer,
                value => return unknown("role", value),
            };
            let abi_version = body.second;
            Ok(Request::Hello { role, abi_version })
        }
        (kind::SHUTDOWN, 0) => Ok(Request::Shutdown { force: false }),
        (kind::SHUTDOWN, 1) => Ok(Request::Shutdown { force: true }),
        (kind::SHUTDOWN, value) => unknown("force", value),
        _ => Ok(Request::Status),
    }
}

fn of_name(kind: u16, body: Named) -> Result<Request, WireError> {
    let name = body.name;
    Ok(match kind {
        kind::REGISTER_ENCLAVE => Request::RegisterEnclave { name },
        kind::FOR_ENCLAVE => Request::ForEnclave { name },
        kind::NAME => Request::Name {
            segid: SegId(body.id),
            name,
        },
        _ => Request::Lookup {
            name,
            timeout_ms: body.number,
            live_only: match body.id {
                0 => false,
                1 => true,
                value => {
                    let (field, value) = ("live_only", u32::try_from(value).unwrap_or(u32::MAX));
                    return Err(WireError::Value { field, value });
                }
            },
        },
    })
}

fn of_arena(body: ArenaMakeBody) -> Result<Request, WireError> {
    let hugetlb = of_hugetlb(body.hugetlb)?;
    Ok(Request::ArenaMake(ArenaMake {
        slot: body.slot,
        name: body.name,
        size_bytes: body.size_bytes,
        chunk_bytes: body.chunk_bytes,
        nr_banks: body.nr_banks,
        hugetlb,
        reader_gid: body.reader_gid,
        retain: body.retain,
    }))
}

fn of_hugetlb(value: u32) -> Result<Hugetlb, WireError> {
    match value {
        0 => Ok(Hugetlb::Auto),
        1 => Ok(Hugetlb::Yes),
        2 => Ok(Hugetlb::No),
        value => {
            let field = "hugetlb";
            Err(WireError::Value { field, value })
        }
    }
}

fn of_segment(body: SegmentMakeBody) -> Result<Request, WireError> {
    let value = body.flags;
    if value & !SIGNALLABLE != 0 {
        let field = "flags";
        return Err(WireError::Value { field, value });
    }
    Ok(Request::SegmentMake(SegmentMake {
        name: body.name,
        size_bytes: body.size_bytes,
        mode: body.mode,
        gid: body.gid,
        hugetlb: of_hugetlb(body.hugetlb)?,
        signallable: value & SIGNALLABLE != 0,
    }))
}

fn targeted(kind: u16, seq: u32, target: Target) -> Vec<u8> {
    match target {
        Target::Access(apid) => about(kind, seq, apid.0, 0, 0),
        Target::Segment(segid) => about(kind, seq, segid.0, 0, 1),
    }
}

fn of_target(kind: u16, body: About) -> Result<Request, WireError> {
    let target = match body.choice {
        0 => Target::Access(ApId(body.id)),
        1 => Target::Segment(SegId(body.id)),
        value => {
            let field = "target";
            return Err(WireError::Value { field, value });
        }
    };
    Ok(match kind {
        kind::SUBSCRIBE => Request::Subscribe { target },
        kind::EARS => Request::Ears { target },
        _ => Request::Signal { target },
    })
}

fn of_id(kind: u16, body: About) -> Result<Request, WireError> {
    let (segid, apid, generation) = (SegId(body.id), ApId(body.id), body.number);
    let unknown = |field| {
        let value = body.choice;
        WireError::Value { field, value }
    };
    Ok(match kind {
        kind::MAPPED => Request::Mapped { segid },
        kind::ARENA_END => Request::ArenaEnd {
            segid,
            reason: EndReason::try_from(body.choice).map_err(|_| unknown("reason"))?,
        },
        kind::GET => Request::Get {
            segid,
            access: match body.choice {
                1 => Access::ReadOnly,
                2 => Access::ReadWrite,
                _ => return Err(unknown("access")),
            },
        },
        kind::ATTACH => Request::Attach {
            apid,
            policy: match body.choice {
                1 => Policy::Latest,
                2 => Policy::Every,
                _ => return Err(unknown("policy")),
            },
        },
        kind::LEASE => Request::Lease {
            apid,
            want: match body.choice {
                0 => Want::Latest,
                1 => Want::After(generation),
                2 => Want::Exactly(generation),
                _ => return Err(unknown("want")),
            },
        },
        kind::RELEASE_LEASE => Request::ReleaseLease { apid, generation },
        kind::DETACH => Request::Detach { apid },
        kind::RELEASE => Request::Release { apid },
        kind::REMOVE => Request::Remove { segid },
        kind::LIST => Request::List { after: segid },
        kind::INFO => Request::Info { segid },
        kind::GENERATIONS => Request::Generations { segid },
        kind::RETAIN => Request::Retain {
            segid,
            count: body.choice,
        },
        kind::BELL => Request::Bell {
            apid,
            shared: match body.choice {
                0 => false,
                1 => true,
                _ => return Err(unknown("shared")),
            },
        },
        kind::BELLS => Request::Bells { segid },
        kind::MAKE_ROOM => Request::MakeRoom {
            bytes: body.number,
            huge: match body.choice {
                0 => false,
                1 => true,
                _ => return Err(unknown("huge")),
            },
        },
        other => return Err(WireError::Kind(other)),
    })
}
