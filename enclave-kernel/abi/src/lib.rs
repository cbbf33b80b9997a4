//! Structures that cross a trust boundary: between the lightweight kernel
//! (LWK), its VMM, the XEMEM broker, readers of snapshots and guest programs.
//!
//! | module    | written by                 | read by                        |
//! |-----------|----------------------------|--------------------------------|
//! | [`boot`]  | VMM (BootInfo), kernel image (header) | kernel, VMM         |
//! | [`queue`] | kernel and VMM, one ring each | VMM and kernel              |
//! | [`arena`] | kernel                     | broker, consumers, tools       |
//! | [`lease`] | kernel and broker, by compare-and-swap | both               |
//! | [`exporter`] | VMM or guest library, and broker | the other       |
//! | [`syscall`] | guest programs           | kernel                         |
//! | [`layout`] | nobody: constants         | VMM, kernel                    |
//!
//! Promises: `no_std`, no `unsafe`, no cargo features (a host crate that
//! enabled one would change the kernel's copy), fixed-width integers, little
//! endian, explicit padding, sizes asserted at compile time. Numbers from the
//! other side stay integers until a `TryFrom` accepts them. Readers check
//! `MAGIC` and `ABI_VERSION` and refuse a mismatch by name.

#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod arena;
pub mod boot;
pub mod exporter;
pub mod layout;
pub mod lease;
pub mod queue;
pub mod syscall;

/// Version of every structure in this crate; bumped on any layout change.
pub const ABI_VERSION: u32 = 13;
