//! Plain memory in the program: a piece of somebody's segment, or a segment of
//! the program's own.
//!
//! Called by [`super`]. What is mapped there stays as it is until it is taken
//! away whole; the kernel itself never looks into it.

use enclave_core::aspace::Prot;

use crate::arch::{self, paging};

/// Whose memory it is, by the broker's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A piece attached by this access.
    Apid(u64),
    /// The segment of this segid, made by the program.
    Segid(u64),
}

/// Memory that is mapped.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) source: Source,
    pub(super) size_bytes: u64,
    start: u64,
}

impl Plain {
    /// Maps `size_bytes` of guest-physical memory from `base` on at `start`, where
    /// a top-level entry is free. `None` without memory for tables.
    pub(super) fn new(
        start: u64,
        source: Source,
        base: u64,
        size_bytes: u64,
        prot: Prot,
    ) -> Option<Self> {
        let this = Self {
            source,
            size_bytes,
            start,
        };
        if paging::map(start, base, size_bytes, paging::user_bits(prot)).is_err() {
            this.remove();
            return None;
        }
        arch::flush_tlb();
        Some(this)
    }

    /// Takes it out of the address space.
    pub(super) fn remove(self) {
        let entry = paging::take_top(self.start);
        arch::flush_tlb();
        paging::free_top(entry);
    }
}
