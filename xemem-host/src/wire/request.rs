//! Requests: client → broker. Encoded by [`crate::client`], decoded by
//! [`crate::server`]; no request carries a descriptor.

use super::{ApId, EndReason, SegId, WireError, body, frame, split};
use enclave_abi::arena::NAME_BYTES;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// A VMM: may register one enclave and make arenas.
    Exporter = 1,
    /// A reader of segments, or a tool.
    Consumer = 2,
}

/// Access asked for by [`Request::Get`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Access {
    /// Read only.
    ReadOnly = 1,
    /// Read and write; arenas refuse it.
    ReadWrite = 2,
}

/// Which generations a reader gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Policy {
    /// The newest at each lease; older ones are skipped (and counted).
    Latest = 1,
    /// Each one, in order, as long as the reader keeps up.
    Every = 2,
}

/// Whether an arena shall stand on 2 MiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hugetlb {
    /// If there are enough of them.
    Auto = 0,
    /// Or fail.
    Yes = 1,
    /// Never.
    No = 2,
}

/// What [`Request::Lease`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The newest generation.
    Latest,
    /// One that is newer than this.
    After(u64),
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
    /// Makes an arena object. → `Arena` + 2 descriptors
    ArenaMake(ArenaMake),
    /// The exporter has mapped the object: seal it, let it be found. → `Ok`
    ArenaMapped {
        /// The arena.
        segid: SegId,
    },
    /// A further name. → `Ok`
    ArenaName {
        /// The arena.
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
    },
    /// Asks for access. → `Granted`
    Get {
        /// The segment.
        segid: SegId,
        /// What for.
        access: Access,
    },
    /// Asks for the memory and begins a subscription. → `Attached` + 2 descriptors
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
}

mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const REGISTER_ENCLAVE: u16 = 2;
    pub(super) const ARENA_MAKE: u16 = 3;
    pub(super) const ARENA_MAPPED: u16 = 4;
    pub(super) const ARENA_NAME: u16 = 5;
    pub(super) const ARENA_END: u16 = 6;
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
}

/// Body of messages that need two small numbers at most.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Numbers {
    first: u32,
    second: u32,
}

/// Body of messages about one id: what for is in `choice`, a generation in `number`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct About {
    id: u64,
    number: u64,
    choice: u32,
    pad: u32,
}

/// Body of messages that carry a name.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Named {
    id: u64,
    name: [u8; NAME_BYTES],
    number: u32,
    pad: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ArenaMakeBody {
    name: [u8; NAME_BYTES],
    size_bytes: u64,
    chunk_bytes: u64,
    slot: u32,
    nr_banks: u32,
    hugetlb: u32,
    reader_gid: u32,
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
                },
            ),
            Self::ArenaMapped { segid } => about(kind::ARENA_MAPPED, seq, segid.0, 0, 0),
            Self::ArenaName { segid, name } => named(kind::ARENA_NAME, seq, segid.0, name, 0),
            Self::ArenaEnd { segid, reason } => {
                about(kind::ARENA_END, seq, segid.0, 0, reason as u32)
            }
            Self::Lookup { name, timeout_ms } => named(kind::LOOKUP, seq, 0, name, timeout_ms),
            Self::Get { segid, access } => about(kind::GET, seq, segid.0, 0, access as u32),
            Self::Attach { apid, policy } => about(kind::ATTACH, seq, apid.0, 0, policy as u32),
            Self::Lease { apid, want } => match want {
                Want::Latest => about(kind::LEASE, seq, apid.0, 0, 0),
                Want::After(generation) => about(kind::LEASE, seq, apid.0, generation, 1),
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
            kind::REGISTER_ENCLAVE | kind::ARENA_NAME | kind::LOOKUP => {
                of_name(header.kind, body(rest)?)
            }
            kind::ARENA_MAKE => of_arena(body(rest)?)?,
            kind::ARENA_MAPPED..=kind::LIST => of_id(header.kind, body(rest)?)?,
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

fn of_name(kind: u16, body: Named) -> Request {
    let name = body.name;
    match kind {
        kind::REGISTER_ENCLAVE => Request::RegisterEnclave { name },
        kind::ARENA_NAME => Request::ArenaName {
            segid: SegId(body.id),
            name,
        },
        _ => Request::Lookup {
            name,
            timeout_ms: body.number,
        },
    }
}

fn of_arena(body: ArenaMakeBody) -> Result<Request, WireError> {
    let hugetlb = match body.hugetlb {
        0 => Hugetlb::Auto,
        1 => Hugetlb::Yes,
        2 => Hugetlb::No,
        value => {
            let field = "hugetlb";
            return Err(WireError::Value { field, value });
        }
    };
    Ok(Request::ArenaMake(ArenaMake {
        slot: body.slot,
        name: body.name,
        size_bytes: body.size_bytes,
        chunk_bytes: body.chunk_bytes,
        nr_banks: body.nr_banks,
        hugetlb,
        reader_gid: body.reader_gid,
    }))
}

fn of_id(kind: u16, body: About) -> Result<Request, WireError> {
    let (segid, apid, generation) = (SegId(body.id), ApId(body.id), body.number);
    let unknown = |field| {
        let value = body.choice;
        WireError::Value { field, value }
    };
    Ok(match kind {
        kind::ARENA_MAPPED => Request::ArenaMapped { segid },
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
                _ => return Err(unknown("want")),
            },
        },
        kind::RELEASE_LEASE => Request::ReleaseLease { apid, generation },
        kind::DETACH => Request::Detach { apid },
        kind::RELEASE => Request::Release { apid },
        kind::REMOVE => Request::Remove { segid },
        kind::LIST => Request::List { after: segid },
        other => return Err(WireError::Kind(other)),
    })
}
