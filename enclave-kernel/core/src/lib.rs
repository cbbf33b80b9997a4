//! Decisions of the lightweight kernel (LWK), apart from machine code.
//!
//! The kernel asks, this crate decides, the kernel acts: page tables, traps and
//! copies to or from a program live in `enclave-kernel`; which frames to take,
//! what an address range means, how a program is laid out and what its first
//! stack holds are computed here, in code that runs on the host as well.
//!
//! | module         | decides                                                  |
//! |----------------|----------------------------------------------------------|
//! | [`arena`]      | which generations stay, where a new frame comes from      |
//! | [`import`]     | where the chunks of somebody else's generation are        |
//! | [`frame`]      | which physical memory to hand out                        |
//! | [`aspace`]     | what each range of an address space is                   |
//! | [`exec`]       | whether and where a program is loaded                    |
//! | [`stack`]      | the bytes of a program's first stack                     |
//! | [`thread`]     | who runs, who waits, whom a wake-up reaches               |
//! | [`timer`]      | when a program's next timer is due, what it sends         |
//! | [`signal`]     | which signal is next, what it does, what its frame says   |
//! | [`user_slice`] | whether an alleged user range can be one                 |
//! | [`names`]      | what to call a system call in the log                    |
//! | [`errno`]      | the error numbers a program sees                         |
//!
//! Promises: `no_std`, no `unsafe`, no floating point, no panic on anything a
//! program or the host sends. Not decided here: page-table formats, privilege
//! modes, anything that touches memory.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod aspace;
pub mod errno;
pub mod exec;
pub mod frame;
pub mod import;
pub mod names;
pub mod signal;
pub mod stack;
pub mod thread;
pub mod timer;
pub mod user_slice;

pub use enclave_arena as arena;
