//! `libxpmem.so.0`: programs written for XPMEM run over XEMEM, without a
//! kernel module.
//!
//! ```text
//!  C program ── xpmem.h ──► surface      pointers and errno
//!                             │
//!                          process       one connection, one lock, per process
//!                             │
//!            exports ─────────┼───────── attachments
//!            what is made     │          what is mapped where
//!                             ▼
//!                  xemem_host::Broker    segids, permits, memory objects
//! ```
//!
//! A segid is the broker's, so every process of the broker's run directory can
//! use its number. An apid names the process that got it, as XPMEM's does, and
//! is worth nothing in another one. `docs/xemem.md` says what is different from
//! the original.
//!
//! Promises: never prints unless `XPMEM_DEBUG` is set, never ends the program,
//! may be called from any thread, and never unmaps what the program itself has
//! mapped over an attachment meanwhile.

mod attachments;
mod errors;
mod exports;
mod process;
mod surface;

pub use surface::{
    XpmemAddr, xpmem_attach, xpmem_detach, xpmem_get, xpmem_init, xpmem_make, xpmem_release,
    xpmem_remove, xpmem_version,
};
