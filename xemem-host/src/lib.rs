//! XEMEM on the host: named memory of enclaves, shared with Linux processes.
//!
//! ```text
//!  enclave-vmm ── client ──┐                         ┌── client ── analytics, tools
//!   (exporter)             ▼                         ▼   (consumer)
//!                  wire: requests, replies, descriptors
//!                          server: epoll, memfds, eventfds
//!                          broker: who may what, who holds what
//! ```
//!
//! Two kinds of segments. *Plain* ones are memory as it is, shared read-only or
//! read-write as their permit says, with signals: any Linux process makes and
//! attaches them. *Arenas* are an enclave's, read-only, in generations.
//!
//! The broker makes each arena's memfd, gives it writable to the exporter
//! once, seals it, and from then on gives it read-only to those who may read.
//! A reader *leases* a generation; while it does, the exporter's kernel reuses
//! none of its frames ([`enclave_abi::lease`]). Nothing on the publish path
//! waits for the broker or for a reader.
//!
//! Trust: identity comes from the kernel (SO_PEERCRED), never from a message.
//! A client can harm its own connection only; an exporter its own arenas'
//! content only; readers cannot write. A reader of an arena can see frames of
//! that arena that are not published yet, and nothing else of the exporter.
//! `docs/threat-model.md` says what a descriptor of a plain segment is worth.
//!
//! [`wire`] is what can be said, [`broker`] what it means, [`server`] carries
//! it out, [`client`] asks, [`snapshot`] reads arenas, with or without a broker,
//! [`schema`] says as JSON what is in them, [`library`] is for programs in other
//! languages.

pub mod broker;
pub mod client;
pub mod keeper;
pub mod library;
mod memory;
mod peer;
mod rundir;
pub mod schema;
pub mod server;
mod shared;
mod signal_page;
pub mod snapshot;
pub mod user;
pub mod wire;

pub use client::maps;
pub use client::{
    ArenaGrant, ArenaRequest, Attachment, Bells, Broker, ClientError, Ears, Heard, Piece,
    PlainAttachment, Segment, SegmentGrant, SegmentRequest, Signals, Stream, Unmovable, Waited,
};
pub use enclave_abi::arena::{Geometry, VarDesc};
pub use rundir::{RunDirError, SOCKET_NAME, run_dir, run_dir_path};
pub use shared::{AccessError, SharedMemory};
pub use snapshot::{
    ByteRange, Diff, DiffSource, MapCounts, OwnedSnapshot, Pool, Snapshot, VarView, placement_name,
    policy_name,
};
pub use wire::{
    Access, ApId, EndReason, Generation, Hugetlb, Policy, Role, SegId, SegmentInfo, SegmentKind,
    SegmentState, Status, Target,
};
