//! One import: its tables, and the exporter's control area word by word.
//!
//! Called by [`super`]. Nothing here is trusted: offsets into the control area
//! are checked against the window that was mapped, leaves are made of the chunks
//! and banks that `enclave-core/import` has checked.

use core::mem::offset_of;

use enclave_abi::arena::{ArenaHeader, Geometry, MAX_VARS, VARS_OFFSET, VarDesc};
use enclave_core::import::{Control, Follower, ImportError, Leaves, Place};
use zerocopy::FromZeros;
use zerocopy::IntoBytes;

use crate::arch::{self, paging};
use crate::arenas::tables::{LoneTree, bank_bits, bank_of, leaf_bits};
use crate::phys::{self, Words};

/// An attached arena.
#[derive(Debug)]
pub(super) struct Import {
    apid: u64,
    /// Whether the exporter's publishes, or the broker, interrupt us.
    rings: bool,
    /// Guest-physical address of the object (control area first).
    base: u64,
    follower: Follower,
    control: Area,
    tree: LoneTree,
    leaves: Table,
    /// Where the top-level entry is.
    top_slot: Words,
}

/// The control area in the direct map.
#[derive(Clone, Copy, Debug)]
struct Area(Words);

impl Control for Area {
    fn word(&self, offset: u64) -> u64 {
        self.0.get(offset / 8)
    }
}

/// The leaves, one word per chunk; the bank stands in bits that the processor
/// ignores.
#[derive(Clone, Copy, Debug)]
struct Table {
    words: Words,
    base: u64,
    bits: u64,
}

impl Leaves for Table {
    fn bank(&self, chunk: u64) -> Option<u32> {
        let leaf = self.words.get(chunk);
        (leaf & paging::P != 0).then(|| bank_of(leaf))
    }

    fn map(&mut self, chunk: u64, bank: u32, offset: u64) {
        let frame = self.base + offset;
        self.words.set(chunk, frame | self.bits | bank_bits(bank));
    }
}

impl Import {
    /// Sets the import up over the object at `base`, whose control area is
    /// mapped, for the addresses from `start` on; nothing is shown yet. `None`
    /// without memory for tables.
    pub(super) fn new(
        start: u64,
        (apid, rings): (u64, bool),
        geometry: Geometry,
        base: u64,
    ) -> Option<Self> {
        let tree = LoneTree::new(&geometry)?;
        Some(Self {
            apid,
            rings,
            base,
            follower: Follower::new(geometry),
            control: Area(Words::new(base, geometry.control_bytes / 8)),
            leaves: Table {
                words: Words::new(tree.tree.leaves, geometry.nr_chunks),
                base,
                bits: leaf_bits(&geometry),
            },
            tree,
            top_slot: Words::new(paging::top_slot(start), 1),
        })
    }

    /// The access it was attached by.
    pub(super) fn apid(&self) -> u64 {
        self.apid
    }

    /// Whether to wait for a bell.
    pub(super) fn rings(&self) -> bool {
        self.rings
    }

    /// The newest generation, as the exporter says.
    pub(super) fn newest(&self) -> u64 {
        const NEWEST: usize = offset_of!(ArenaHeader, latest_generation);
        const { assert!(NEWEST.is_multiple_of(8)) };
        self.control.word(NEWEST as u64)
    }

    /// Payload bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.follower.geometry().size_bytes
    }

    /// The generation shown.
    pub(super) fn generation(&self) -> Option<u64> {
        self.follower.generation()
    }

    /// Shows a generation in place of the one before.
    pub(super) fn show(&mut self, place: Place) -> Result<u64, ImportError> {
        let shown = self.follower.show(place, &self.control, &mut self.leaves);
        if shown.is_ok() {
            self.top_slot.set(0, self.tree.tree.entry);
            arch::flush_tlb();
        } else {
            self.hide();
        }
        shown
    }

    /// Unmaps everything; the leaves stay for the next [`Import::show`].
    pub(super) fn hide(&mut self) {
        self.top_slot.set(0, 0);
        arch::flush_tlb();
    }

    /// Whether what is shown is what was published.
    pub(super) fn is_valid(&self) -> bool {
        self.follower.holds(&self.control, &self.leaves)
    }

    /// A copy of variable `index`; `None` past the last one.
    pub(super) fn variable(&self, index: u64) -> Option<VarDesc> {
        let count = self.follower.nr_variables(&self.control, MAX_VARS as u32);
        if index >= u64::from(count) || self.follower.check_header(&self.control).is_err() {
            return None;
        }
        let mut copy = VarDesc::new_zeroed();
        let at = self.base + VARS_OFFSET + index * size_of::<VarDesc>() as u64;
        phys::read_bytes(at, copy.as_mut_bytes());
        Some(copy)
    }

    /// Takes the import out of the address space.
    pub(super) fn remove(mut self) {
        self.hide();
        let control_bytes = self.follower.geometry().control_bytes;
        paging::unmap_direct(self.base, control_bytes);
        arch::flush_tlb();
        self.tree.free();
    }
}
