//! The two trees of page tables below an arena's top-level entry.
//!
//! Called by [`super`] when an arena is made. Both trees start read-only, so
//! that only chunks that are written ever have to be frozen and the first
//! publish costs no more than the others. The leaves of a tree are one
//! contiguous array: chunk `i` is word `i`, found without a walk. An import
//! ([`crate::imports`]) has one such tree, with nothing mapped at first.

use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE};
use enclave_abi::arena::{Geometry, MAX_BANKS};
use enclave_core::aspace::Prot;

use crate::arch::paging;
use crate::memory;
use crate::phys::Words;

/// One tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tree {
    /// Top-level entry.
    pub(crate) entry: u64,
    /// Guest-physical address of the leaves, one word per chunk.
    pub(crate) leaves: u64,
}

/// Both trees and the memory they are in.
#[derive(Debug)]
pub(super) struct Twins {
    pub(super) trees: [Tree; 2],
    /// Start and bytes of the block all tables are in.
    block: (u64, u64),
}

/// Pages per level of one tree.
struct Levels {
    directories: u64,
    tables: u64,
}

impl Levels {
    fn of(geometry: &Geometry) -> Self {
        let per_level = |entries: u64| entries.div_ceil(512).max(1);
        if geometry.chunk_bytes == LARGE_PAGE_SIZE {
            Self {
                directories: per_level(geometry.nr_chunks),
                tables: 0,
            }
        } else {
            let tables = per_level(geometry.nr_chunks);
            Self {
                directories: per_level(tables),
                tables,
            }
        }
    }

    /// Pages of one tree, its page-directory-pointer table included.
    fn pages(&self) -> u64 {
        1 + self.directories + self.tables
    }
}

impl Twins {
    /// Builds both trees over bank 0 of the object at `base`, with `bits` in
    /// each leaf; `None` without memory for them.
    pub(super) fn new(geometry: &Geometry, base: u64, bits: u64) -> Option<Self> {
        let levels = Levels::of(geometry);
        let bytes = 2 * levels.pages() * PAGE_SIZE;
        let block = memory::alloc(bytes, PAGE_SIZE)?;
        let trees = [block, block + bytes / 2].map(|pdpt| build(&levels, pdpt));
        for tree in trees {
            let leaves = Words::new(tree.leaves, geometry.nr_chunks);
            for chunk in 0..geometry.nr_chunks {
                leaves.set(chunk, (base + geometry.frame_offset(chunk, 0)?) | bits);
            }
        }
        Some(Self {
            trees,
            block: (block, bytes),
        })
    }

    /// Gives the tables back; no top-level entry points to them any more.
    pub(super) fn free(self) {
        memory::free(self.block.0, self.block.1);
    }
}

/// A tree without leaves, and the memory it is in.
#[derive(Debug)]
pub(crate) struct LoneTree {
    pub(crate) tree: Tree,
    block: (u64, u64),
}

impl LoneTree {
    /// A tree for `geometry` that maps nothing; `None` without memory for it.
    pub(crate) fn new(geometry: &Geometry) -> Option<Self> {
        let levels = Levels::of(geometry);
        let bytes = levels.pages() * PAGE_SIZE;
        // Zeroed: no leaf is present.
        let block = memory::alloc(bytes, PAGE_SIZE)?;
        Some(Self {
            tree: build(&levels, block),
            block: (block, bytes),
        })
    }

    /// Gives the tables back; no top-level entry points to them any more.
    pub(crate) fn free(self) {
        memory::free(self.block.0, self.block.1);
    }
}

/// The upper levels of a tree in the zeroed pages from `pdpt` on.
fn build(levels: &Levels, pdpt: u64) -> Tree {
    let directory = pdpt + PAGE_SIZE;
    let table = directory + levels.directories * PAGE_SIZE;
    let upper = Words::new(pdpt, 512);
    for n in 0..levels.directories {
        upper.set(n, paging::table_entry(directory + n * PAGE_SIZE));
    }
    let middle = Words::new(directory, levels.directories * 512);
    for n in 0..levels.tables {
        middle.set(n, paging::table_entry(table + n * PAGE_SIZE));
    }
    Tree {
        entry: paging::table_entry(pdpt),
        leaves: if levels.tables == 0 { directory } else { table },
    }
}

/// The bank of a leaf's frame, kept in bits of the entry that the processor
/// ignores (SDM vol. 3 §4.5, bits 58:52).
pub(crate) const fn bank_of(leaf: u64) -> u32 {
    (leaf >> BANK_SHIFT & 0xf) as u32
}

/// `bank` as leaf bits.
pub(crate) const fn bank_bits(bank: u32) -> u64 {
    (bank as u64) << BANK_SHIFT
}

/// Where the bank stands in a leaf.
pub(super) const BANK_SHIFT: u32 = 52;
/// Leaf bit: the chunk's banks are not used in turn any more (ignored by the
/// processor, too).
pub(super) const OUT_OF_TURN: u64 = 1 << 56;
/// The frame's address in a leaf; 2 MiB leaves keep the bits below at zero.
pub(super) const FRAME_BITS: u64 = 0x000f_ffff_ffff_f000;
const _: () = assert!(MAX_BANKS <= 16);

/// Everything of a frozen leaf but the frame's address and bank.
pub(crate) fn leaf_bits(geometry: &Geometry) -> u64 {
    let size = if geometry.chunk_bytes == LARGE_PAGE_SIZE {
        paging::PS
    } else {
        0
    };
    paging::user_bits(Prot::READ) | size
}
