//! What can be said between a broker and its clients.
//!
//! Transport: a Unix SOCK_SEQPACKET socket, one message per packet, at most
//! [`MAX_MESSAGE`] bytes, fixed-layout little-endian structures:
//!
//! ```text
//! 0  version u16   PROTOCOL_VERSION
//! 2  kind    u16   requests below 128, replies from 128
//! 4  seq     u32   chosen by the client, repeated in the reply
//! 8  body          one structure, its size fixed by kind
//! ```
//!
//! Every request has exactly one reply, an [`Reply::Error`] if it failed. The
//! first request is [`Request::Hello`]; its version decides whether the two
//! understand each other at all. Descriptors travel from the broker to the
//! client only, as many as [`Reply::nr_fds`] says. Identity is never in a
//! message: the broker asks the kernel who its peer is.
//!
//! What an exporter needs, layouts included, is in [`enclave_abi::exporter`],
//! because the guest library speaks it, too. [`request`] and [`reply`] say what bytes mean, [`socket`] moves bytes and
//! descriptors, [`crate::broker`] decides. Decoding works on a private copy
//! and accepts exactly the fixed length; values with few legal numbers become
//! enums here, names and sizes are judged by the broker.

mod generations;
mod infos;
pub mod reply;
pub mod request;
pub mod socket;
#[cfg(test)]
mod tests;

pub use reply::{
    Attached, Generation, LeaseReply, Memory, Reply, SegmentInfo, SegmentKind, SegmentState, Status,
};
pub use request::{Access, ArenaMake, Hugetlb, Policy, Request, Role, SegmentMake, Target, Want};

pub use enclave_abi::exporter::PROTOCOL_VERSION;

use enclave_abi::exporter::MessageHeader as Header;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Longest message in bytes, either way.
pub const MAX_MESSAGE: usize = 4096;
/// Most descriptors that go with one message.
pub const MAX_FDS: usize = 16;
/// Segments in one [`Reply::Segments`].
pub const LIST_PAGE: usize = 15;
/// What the end of a segment adds to a wait eventfd. A signal adds 1, so one
/// read tells how many came and whether there will be more; 2^62 of them take
/// longer than any segment lives.
pub const WAIT_END: u64 = 1 << 62;
/// Group id that means none.
pub const NO_GROUP: u32 = u32::MAX;

/// Id of an exported segment; never reused by one broker.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Serialize,
    Deserialize,
)]
#[repr(transparent)]
pub struct SegId(pub u64);

/// Id of access granted to a segment; worthless on any other connection.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Serialize,
    Deserialize,
)]
#[repr(transparent)]
pub struct ApId(pub u64);

impl core::fmt::Display for SegId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "segid {}", self.0)
    }
}

impl core::fmt::Display for ApId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "apid {}", self.0)
    }
}

/// Why a stream of snapshots ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum EndReason {
    /// The program closed its arena.
    ClosedByProgram = 0,
    /// The program died.
    ProgramDied = 1,
    /// The exporter's connection closed: its VMM is gone.
    ExporterGone = 2,
    /// Somebody with the right to do so removed the segment.
    Removed = 3,
}

impl TryFrom<u32> for EndReason {
    type Error = u32;
    fn try_from(value: u32) -> Result<Self, u32> {
        match value {
            0 => Ok(Self::ClosedByProgram),
            1 => Ok(Self::ProgramDied),
            2 => Ok(Self::ExporterGone),
            3 => Ok(Self::Removed),
            other => Err(other),
        }
    }
}

impl core::fmt::Display for EndReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::ClosedByProgram => "closed by its program",
            Self::ProgramDied => "program died",
            Self::ExporterGone => "exporter gone",
            Self::Removed => "removed",
        })
    }
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Shorter than its kind, or than a header.
    #[error("message of {got} bytes is short of {want}")]
    Short {
        /// Bytes received.
        got: usize,
        /// Bytes its kind has.
        want: usize,
    },
    /// Longer than its kind.
    #[error("message of {got} bytes exceeds {want}")]
    Long {
        /// Bytes received; at most one more than [`MAX_MESSAGE`].
        got: usize,
        /// Bytes its kind has.
        want: usize,
    },
    /// The peer speaks another version.
    #[error("protocol version {0} is not {PROTOCOL_VERSION}, the one spoken here")]
    Version(u16),
    /// No such kind, or a request where a reply belongs.
    #[error("unknown message kind {0}")]
    Kind(u16),
    /// A field has a number without meaning.
    #[error("field {field} has unknown value {value}")]
    Value {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// Descriptors where none belong, or too few of them.
    #[error("message carries {got} descriptors instead of {want}")]
    Fds {
        /// Descriptors received (some may have been cut off).
        got: usize,
        /// Descriptors its kind has.
        want: usize,
    },
}

const HEADER_BYTES: usize = size_of::<Header>();

/// Bytes of a message of `kind` with `body`.
fn frame<T: IntoBytes + Immutable>(kind: u16, seq: u32, body: &T) -> Vec<u8> {
    const { assert!(HEADER_BYTES + size_of::<T>() <= MAX_MESSAGE) };
    let header = Header {
        version: PROTOCOL_VERSION,
        kind,
        seq,
    };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + size_of::<T>());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(body.as_bytes());
    bytes
}

/// Header and rest of a message; the version is checked here, once.
fn split(bytes: &[u8]) -> Result<(Header, &[u8]), WireError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(WireError::Long {
            got: bytes.len(),
            want: MAX_MESSAGE,
        });
    }
    let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| WireError::Short {
        got: bytes.len(),
        want: HEADER_BYTES,
    })?;
    if header.version == PROTOCOL_VERSION {
        Ok((header, rest))
    } else {
        Err(WireError::Version(header.version))
    }
}

/// The body of a message, which must have exactly the size of `T`.
fn body<T: FromBytes>(rest: &[u8]) -> Result<T, WireError> {
    let (got, want) = (HEADER_BYTES + rest.len(), HEADER_BYTES + size_of::<T>());
    match rest.len().cmp(&size_of::<T>()) {
        core::cmp::Ordering::Less => Err(WireError::Short { got, want }),
        core::cmp::Ordering::Greater => Err(WireError::Long { got, want }),
        core::cmp::Ordering::Equal => {
            T::read_from_bytes(rest).map_err(|_| WireError::Short { got, want })
        }
    }
}

/// The sequence number of a message, 0 if it has not even that: lets a server
/// answer what it cannot decode.
#[must_use]
pub fn seq_of(bytes: &[u8]) -> u32 {
    Header::read_from_prefix(bytes).map_or(0, |(header, _)| header.seq)
}
