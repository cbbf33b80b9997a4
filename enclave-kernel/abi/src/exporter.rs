//! What an exporter and the broker say to each other, as bytes.
//!
//! Written by whoever owns arenas: the client of `xemem-host` (for the VMM) and
//! the guest library (for a Linux process); read by the broker. The rest of the
//! protocol, and how it is used, is `xemem_host::wire`, which builds on this.
//!
//! A message is a [`MessageHeader`] and one body, its size fixed by its kind, in
//! one packet. Each request has exactly one reply.

use crate::arena::NAME_BYTES;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the protocol; there is no compatibility between versions.
pub const PROTOCOL_VERSION: u16 = 8;
/// File name of the broker's socket in the run directory.
pub const SOCKET_NAME: &str = "xemem.sock";
/// Longest text of an error in bytes.
pub const TEXT_BYTES: usize = 192;

/// Kinds of messages.
pub mod kind {
    /// Request, [`super::Numbers`] (role, ABI version): who is there.
    pub const HELLO: u16 = 1;
    /// Request, [`super::Named`]: names the exporter's enclave.
    pub const REGISTER_ENCLAVE: u16 = 2;
    /// Request, [`super::ArenaMakeBody`].
    pub const ARENA_MAKE: u16 = 3;
    /// Request, [`super::About`] (segid): the object is mapped.
    pub const MAPPED: u16 = 4;
    /// Request, [`super::Named`] (segid): a further name.
    pub const NAME: u16 = 5;
    /// Request, [`super::About`] (segid, reason): no generation will come.
    pub const ARENA_END: u16 = 6;
    /// Reply, [`super::Words`].
    pub const OK: u16 = 128;
    /// Reply, [`super::ErrorBody`].
    pub const ERROR: u16 = 129;
    /// Reply, [`super::Words`] (ABI version, process id).
    pub const WELCOME: u16 = 130;
    /// Reply, [`super::Words`], with the lease page.
    pub const LEASE_PAGE: u16 = 131;
    /// Reply, [`super::Words`] (segid, object bytes, page bytes), with the
    /// object and the doorbell.
    pub const ARENA: u16 = 132;
}

/// In [`kind::HELLO`]: the client may register an enclave and make arenas.
pub const ROLE_EXPORTER: u32 = 1;
/// In [`ArenaMakeBody::hugetlb`]: on 4 KiB pages in any case.
pub const HUGETLB_NO: u32 = 2;
/// In [`kind::ARENA_END`]: the program closed its arena.
pub const END_CLOSED: u32 = 0;

/// First bytes of every message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MessageHeader {
    /// [`PROTOCOL_VERSION`].
    pub version: u16,
    /// One of [`kind`]; requests below 128, replies from 128.
    pub kind: u16,
    /// Chosen by the client, repeated in the reply.
    pub seq: u32,
}

/// Body of requests that need two small numbers at most.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Numbers {
    /// The first one.
    pub first: u32,
    /// The second one.
    pub second: u32,
}

/// Body of requests about one id.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct About {
    /// The id.
    pub id: u64,
    /// A generation, or 0.
    pub number: u64,
    /// What for, or why.
    pub choice: u32,
    /// Padding, zero.
    pub pad: u32,
}

/// Body of requests that carry a name.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Named {
    /// What is named, or 0.
    pub id: u64,
    /// The name, zero padded.
    pub name: [u8; NAME_BYTES],
    /// A small number, or 0.
    pub number: u32,
    /// Padding, zero.
    pub pad: u32,
}

/// Body of [`kind::ARENA_MAKE`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ArenaMakeBody {
    /// Name, zero padded; all zero = none.
    pub name: [u8; NAME_BYTES],
    /// Payload bytes.
    pub size_bytes: u64,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Arena slot of the enclave, below [`crate::lease::MAX_ARENAS`].
    pub slot: u32,
    /// Number of banks.
    pub nr_banks: u32,
    /// 0 = on 2 MiB pages if there are enough, 1 = or fail, [`HUGETLB_NO`].
    pub hugetlb: u32,
    /// Group that may read besides the owner; `u32::MAX` = none.
    pub reader_gid: u32,
    /// Newest generations to keep although nobody leased them; 0 counts as 1.
    pub retain: u32,
    /// Padding, zero.
    pub pad: u32,
}

/// Body of replies that need three words at most.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Words {
    /// The first one.
    pub a: u64,
    /// The second one.
    pub b: u64,
    /// The third one.
    pub c: u64,
}

/// Body of [`kind::ERROR`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorBody {
    /// Linux error number.
    pub errno: u32,
    /// Bytes of the text.
    pub text_bytes: u32,
    /// A few words for people, UTF-8.
    pub text: [u8; TEXT_BYTES],
}

const _: () = assert!(size_of::<MessageHeader>() == 8);
const _: () = assert!(size_of::<ArenaMakeBody>() == NAME_BYTES + 40);
