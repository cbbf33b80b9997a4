//! Replies: broker → client. Encoded by [`crate::server`], decoded by
//! [`crate::client`], which trusts the broker no further than the layout:
//! lengths, enums and texts are checked on this side, too.

pub use super::generations::Generation;
use super::generations::{generations_body, of_generations};
pub use super::infos::{SegmentInfo, SegmentKind, SegmentState};
use super::infos::{of_segments, segments_body};
use super::{Access, ApId, EndReason, SegId, WireError, body, frame, split};
use enclave_abi::arena::GenerationRecord;
pub use enclave_abi::exporter::TEXT_BYTES;
use enclave_abi::exporter::{ErrorBody, Words};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Answer to an attach, besides memfd and notify eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The segment.
    pub segid: SegId,
    /// Payload bytes.
    pub size_bytes: u64,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Number of banks.
    pub nr_banks: u32,
    /// Bytes of a host page behind it.
    pub page_bytes: u32,
}

/// Answer to an attach of a plain segment, besides the memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The segment.
    pub segid: SegId,
    /// Bytes of the whole segment.
    pub size_bytes: u64,
    /// Bytes of a host page behind it.
    pub page_bytes: u32,
    /// What the descriptor allows.
    pub access: Access,
}

/// Answer to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseReply {
    /// This generation is held until released. Its record as the broker found
    /// it; `generation` 0 in there means that it could not be read.
    Granted {
        /// The generation.
        generation: u64,
        /// Its record.
        record: GenerationRecord,
    },
    /// Nothing newer yet.
    None,
    /// Nothing newer, and nothing will come.
    Ended(EndReason),
}

/// How the broker is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Status {
    /// Process id of the broker.
    pub pid: u32,
    /// Process id of its keeper, which ends after it; 0 without one.
    pub keeper: u32,
    /// Its [`super::PROTOCOL_VERSION`].
    pub protocol_version: u32,
    /// Its [`enclave_abi::ABI_VERSION`].
    pub abi_version: u32,
    /// Connections, the asking one included.
    pub clients: u32,
    /// Registered enclaves.
    pub enclaves: u32,
    /// Segments, ended ones included.
    pub segments: u32,
    /// Attachments.
    pub attachments: u32,
    /// Leases of all readers.
    pub leases: u32,
    /// Ended arenas that can still be attached.
    pub retained: u32,
    /// Clients dropped for breaking the protocol.
    pub protocol_errors: u64,
    /// Times a doorbell ran over budget.
    pub throttled: u64,
    /// Bytes of the objects of retained arenas.
    pub retained_bytes: u64,
    /// Milliseconds since start.
    pub uptime_ms: u64,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Ok,
    /// Refused; nothing has changed.
    Error {
        /// Linux error number.
        errno: u32,
        /// A few words for people, cut at [`TEXT_BYTES`].
        text: String,
    },
    /// Answer to `Hello`.
    Welcome {
        /// [`enclave_abi::ABI_VERSION`] of the broker.
        abi_version: u32,
        /// Its process id.
        pid: u32,
    },
    /// The lease page, one descriptor.
    LeasePage,
    /// A new arena: memfd (read-write) and doorbell eventfd.
    Arena {
        /// Its segid.
        segid: SegId,
        /// Bytes of the object.
        object_bytes: u64,
        /// Bytes of a page behind it.
        page_bytes: u64,
    },
    /// A segment was found.
    Segment {
        /// Its id.
        segid: SegId,
    },
    /// Access was granted.
    Granted {
        /// Its id.
        apid: ApId,
    },
    /// Memory: memfd (read-only) and notify eventfd.
    Attached(Attached),
    /// Answer to a lease.
    Lease(LeaseReply),
    /// A page of a list; an empty one is the last.
    Segments(Vec<SegmentInfo>),
    /// How the broker is.
    Status(Status),
    /// A new plain segment: memfd (read-write), if it has any memory.
    Made {
        /// Its segid.
        segid: SegId,
        /// Its bytes.
        size_bytes: u64,
        /// Bytes of a page behind it.
        page_bytes: u64,
    },
    /// A plain segment's memory: memfd.
    Memory(Memory),
    /// A wait eventfd.
    Subscribed,
    /// Generations that can be leased, ascending.
    Generations(Vec<Generation>),
    /// A bell: an eventfd.
    Bell,
    /// The bells of an arena, a bit for each one, and the eventfds of those
    /// that are new, ascending.
    Bells {
        /// All that there are.
        all: u16,
        /// Those that are new.
        fresh: u16,
    },
    /// The subscribers of a segment.
    Ears {
        /// Which set of them it is; the page says when there is another one.
        version: u64,
        /// Signals that they may have in a second past the broker; 0 = none.
        rate: u64,
        /// How many.
        count: u64,
    },
    /// Retained arenas were given up.
    Room {
        /// Their bytes.
        bytes: u64,
    },
}

mod kind {
    pub(super) use enclave_abi::exporter::kind::{ARENA, ERROR, LEASE_PAGE, OK, WELCOME};

    pub(super) const SEGMENT: u16 = 133;
    pub(super) const GRANTED: u16 = 134;
    pub(super) const ATTACHED: u16 = 135;
    pub(super) const LEASE: u16 = 136;
    pub(super) const SEGMENTS: u16 = 137;
    pub(super) const STATUS: u16 = 138;
    pub(super) const MADE: u16 = 139;
    pub(super) const MEMORY: u16 = 140;
    pub(super) const SUBSCRIBED: u16 = 141;
    pub(super) const GENERATIONS: u16 = 142;
    pub(super) const ROOM: u16 = 143;
    pub(super) const BELL: u16 = 144;
    pub(super) const BELLS: u16 = 145;
    pub(super) const EARS: u16 = 146;
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct AttachedBody {
    segid: u64,
    size_bytes: u64,
    chunk_bytes: u64,
    nr_banks: u32,
    page_bytes: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct MemoryBody {
    segid: u64,
    size_bytes: u64,
    page_bytes: u32,
    access: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct LeaseBody {
    generation: u64,
    outcome: u32,
    reason: u32,
    record: GenerationRecord,
}

impl Reply {
    /// Descriptors that travel with this reply.
    #[must_use]
    pub fn nr_fds(&self) -> usize {
        match self {
            Self::Made { size_bytes: 0, .. } => 0,
            Self::LeasePage | Self::Made { .. } | Self::Memory(_) | Self::Subscribed => 1,
            Self::Arena { .. } | Self::Attached(_) => 2,
            Self::Bell => 1,
            Self::Bells { fresh, .. } => fresh.count_ones() as usize,
            Self::Ears { count, .. } => 1 + usize::try_from(*count).unwrap_or(usize::MAX - 1),
            _ => 0,
        }
    }

    /// The bytes of this reply.
    #[must_use]
    pub fn encode(&self, seq: u32) -> Vec<u8> {
        let numbers = |kind, a, b, c| frame(kind, seq, &Words { a, b, c });
        match self {
            Self::Ok => numbers(kind::OK, 0, 0, 0),
            Self::Error { errno, text } => frame(kind::ERROR, seq, &error_body(*errno, text)),
            Self::Welcome { abi_version, pid } => {
                numbers(kind::WELCOME, u64::from(*abi_version), u64::from(*pid), 0)
            }
            Self::LeasePage => numbers(kind::LEASE_PAGE, 0, 0, 0),
            Self::Arena {
                segid,
                object_bytes,
                page_bytes,
            } => numbers(kind::ARENA, segid.0, *object_bytes, *page_bytes),
            Self::Segment { segid } => numbers(kind::SEGMENT, segid.0, 0, 0),
            Self::Granted { apid } => numbers(kind::GRANTED, apid.0, 0, 0),
            Self::Attached(attached) => {
                let body = AttachedBody {
                    segid: attached.segid.0,
                    size_bytes: attached.size_bytes,
                    chunk_bytes: attached.chunk_bytes,
                    nr_banks: attached.nr_banks,
                    page_bytes: attached.page_bytes,
                };
                frame(kind::ATTACHED, seq, &body)
            }
            Self::Lease(lease) => frame(kind::LEASE, seq, &lease_body(lease)),
            Self::Segments(infos) => frame(kind::SEGMENTS, seq, &segments_body(infos)),
            Self::Status(status) => frame(kind::STATUS, seq, status),
            Self::Made {
                segid,
                size_bytes,
                page_bytes,
            } => numbers(kind::MADE, segid.0, *size_bytes, *page_bytes),
            Self::Memory(memory) => {
                let body = MemoryBody {
                    segid: memory.segid.0,
                    size_bytes: memory.size_bytes,
                    page_bytes: memory.page_bytes,
                    access: memory.access as u32,
                };
                frame(kind::MEMORY, seq, &body)
            }
            Self::Subscribed => numbers(kind::SUBSCRIBED, 0, 0, 0),
            Self::Room { bytes } => numbers(kind::ROOM, *bytes, 0, 0),
            Self::Bell => numbers(kind::BELL, 0, 0, 0),
            Self::Bells { all, fresh } => {
                numbers(kind::BELLS, u64::from(*all), u64::from(*fresh), 0)
            }
            Self::Ears {
                version,
                rate,
                count,
            } => numbers(kind::EARS, *version, *rate, *count),
            Self::Generations(all) => frame(kind::GENERATIONS, seq, &generations_body(all)),
        }
    }

    /// The reply in `bytes`, with its sequence number.
    ///
    /// # Errors
    /// A [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), WireError> {
        let (header, rest) = split(bytes)?;
        let reply = match header.kind {
            kind::ERROR => of_error(&body(rest)?)?,
            kind::ATTACHED => {
                let attached: AttachedBody = body(rest)?;
                Self::Attached(Attached {
                    segid: SegId(attached.segid),
                    size_bytes: attached.size_bytes,
                    chunk_bytes: attached.chunk_bytes,
                    nr_banks: attached.nr_banks,
                    page_bytes: attached.page_bytes,
                })
            }
            kind::LEASE => Self::Lease(of_lease(&body(rest)?)?),
            kind::SEGMENTS => of_segments(&body(rest)?)?,
            kind::STATUS => Self::Status(body(rest)?),
            kind::MEMORY => Self::Memory(of_memory(&body(rest)?)?),
            kind::GENERATIONS => of_generations(&body(rest)?)?,
            kind::OK..=kind::GRANTED | kind::MADE | kind::SUBSCRIBED | kind::ROOM..=kind::EARS => {
                of_numbers(header.kind, &body(rest)?)?
            }
            other => return Err(WireError::Kind(other)),
        };
        Ok((header.seq, reply))
    }
}

fn error_body(errno: u32, text: &str) -> ErrorBody {
    let end = text.floor_char_boundary(TEXT_BYTES);
    let mut body = ErrorBody {
        errno,
        text_bytes: u32::try_from(end).unwrap_or(0),
        text: [0; TEXT_BYTES],
    };
    for (to, from) in body.text.iter_mut().zip(text.bytes().take(end)) {
        *to = from;
    }
    body
}

fn of_error(body: &ErrorBody) -> Result<Reply, WireError> {
    let (field, value) = ("errno", body.errno);
    if !(1..4096).contains(&value) {
        return Err(WireError::Value { field, value });
    }
    let (field, value) = ("text_bytes", body.text_bytes);
    let text = usize::try_from(value)
        .ok()
        .and_then(|end| body.text.get(..end))
        .ok_or(WireError::Value { field, value })?;
    Ok(Reply::Error {
        errno: body.errno,
        text: String::from_utf8_lossy(text).into_owned(),
    })
}

fn of_numbers(kind: u16, body: &Words) -> Result<Reply, WireError> {
    let small = |field, number: u64| {
        let value = u32::MAX;
        u32::try_from(number).map_err(|_| WireError::Value { field, value })
    };
    let bits = |field, number: u64| {
        let value = u32::MAX;
        u16::try_from(number).map_err(|_| WireError::Value { field, value })
    };
    Ok(match kind {
        kind::OK => Reply::Ok,
        kind::WELCOME => Reply::Welcome {
            abi_version: small("abi_version", body.a)?,
            pid: small("pid", body.b)?,
        },
        kind::LEASE_PAGE => Reply::LeasePage,
        kind::ARENA => Reply::Arena {
            segid: SegId(body.a),
            object_bytes: body.b,
            page_bytes: body.c,
        },
        kind::SEGMENT => Reply::Segment {
            segid: SegId(body.a),
        },
        kind::GRANTED => Reply::Granted { apid: ApId(body.a) },
        kind::MADE => Reply::Made {
            segid: SegId(body.a),
            size_bytes: body.b,
            page_bytes: body.c,
        },
        kind::SUBSCRIBED => Reply::Subscribed,
        kind::ROOM => Reply::Room { bytes: body.a },
        kind::BELL => Reply::Bell,
        kind::BELLS => Reply::Bells {
            all: bits("bells", body.a)?,
            fresh: bits("fresh bells", body.b)?,
        },
        kind::EARS => Reply::Ears {
            version: body.a,
            rate: body.b,
            count: body.c,
        },
        other => return Err(WireError::Kind(other)),
    })
}

fn of_memory(body: &MemoryBody) -> Result<Memory, WireError> {
    let access = match body.access {
        1 => Access::ReadOnly,
        2 => Access::ReadWrite,
        value => {
            let field = "access";
            return Err(WireError::Value { field, value });
        }
    };
    Ok(Memory {
        segid: SegId(body.segid),
        size_bytes: body.size_bytes,
        page_bytes: body.page_bytes,
        access,
    })
}

fn lease_body(lease: &LeaseReply) -> LeaseBody {
    let mut body = LeaseBody {
        generation: 0,
        outcome: 0,
        reason: 0,
        record: GenerationRecord::default(),
    };
    match lease {
        LeaseReply::None => {}
        LeaseReply::Granted { generation, record } => {
            (body.outcome, body.generation, body.record) = (1, *generation, *record);
        }
        LeaseReply::Ended(reason) => (body.outcome, body.reason) = (2, *reason as u32),
    }
    body
}

fn of_lease(body: &LeaseBody) -> Result<LeaseReply, WireError> {
    match body.outcome {
        0 => Ok(LeaseReply::None),
        1 => Ok(LeaseReply::Granted {
            generation: body.generation,
            record: body.record,
        }),
        2 => Ok(LeaseReply::Ended(of_reason(body.reason)?)),
        value => {
            let field = "outcome";
            Err(WireError::Value { field, value })
        }
    }
}

pub(super) fn of_reason(value: u32) -> Result<EndReason, WireError> {
    let field = "end_reason";
    EndReason::try_from(value).map_err(|value| WireError::Value { field, value })
}
