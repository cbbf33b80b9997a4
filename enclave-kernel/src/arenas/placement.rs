//! [`Placing`]: which bank a copy goes to, where that is not the next in turn.
//!
//! Called by [`super::arena`] on the way of a fault that seldom happens in
//! other arenas. What the program prefers is a byte per chunk in the enclave's
//! memory, filled by a system call beforehand: a fault asks nobody.

use enclave_abi::addr::{PAGE_SIZE, align_up};
use enclave_abi::arena::Geometry;
use enclave_core::arena::{Held, Placement, choose_bank, choose_placed};

use crate::memory;
use crate::phys::Words;

/// How an arena chooses banks, and the wishes of its program.
#[derive(Debug)]
pub(super) struct Placing {
    pub(super) placement: Placement,
    /// A byte per chunk, the wish plus one, 0 for none; and the block.
    wishes: Option<(Words, u64)>,
    block: u64,
}

impl Placing {
    /// Without any wish; `None` without memory for them.
    pub(super) fn new(placement: Placement, geometry: &Geometry) -> Option<Self> {
        let mut this = Self {
            placement,
            wishes: None,
            block: 0,
        };
        if placement == Placement::Preferred {
            let bytes = align_up(geometry.nr_chunks, PAGE_SIZE)?;
            // Zeroed.
            this.block = memory::alloc(bytes, PAGE_SIZE)?;
            this.wishes = Some((Words::new(this.block, bytes / 8), bytes));
        }
        Some(this)
    }

    /// Gives the memory back.
    pub(super) fn free(self) {
        if let Some((_, bytes)) = self.wishes {
            memory::free(self.block, bytes);
        }
    }

    /// Notes a wish for chunks from `first` up to `end`, all in range; `false`
    /// where the program has none to make.
    pub(super) fn prefer(&self, first: u64, end: u64, bank: Option<u32>) -> bool {
        let Some((words, _)) = &self.wishes else {
            return false;
        };
        let byte = u64::from(bank.map_or(0, |bank| bank + 1) & 0xff);
        for chunk in first..end {
            let shift = chunk % 8 * 8;
            let others = words.get(chunk / 8) & !(0xff << shift);
            words.set(chunk / 8, others | byte << shift);
        }
        true
    }

    fn wish(&self, chunk: u64) -> Option<u32> {
        let (words, _) = self.wishes.as_ref()?;
        let byte = words.get(chunk / 8) >> (chunk % 8 * 8) & 0xff;
        u32::try_from(byte).ok()?.checked_sub(1)
    }

    /// The bank for the next frame of `chunk`.
    pub(super) fn choose(
        &self,
        chunk: u64,
        birth: impl Fn(u32) -> u64,
        nr_banks: u32,
        current: u32,
        held: &Held,
    ) -> Option<u32> {
        match self.placement {
            Placement::InTurn => choose_bank(birth, nr_banks, current, held),
            _ => choose_placed(birth, nr_banks, current, held, self.wish(chunk)),
        }
    }
}
