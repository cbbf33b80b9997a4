//! Bells of importers: what a publish rings besides the broker's doorbell.
//!
//! Called by [`super::arena`] out of the fast path: as long as no importer has a
//! bell, a publish never comes here. The host puts each bell behind an address
//! of its own in the doorbell page; which of them there are it says when asked,
//! and the broker says in the lease page when to ask.

use core::sync::atomic::{Ordering, fence};

use enclave_abi::lease::{SLOTS, bells, retain_and_flags};
use enclave_abi::queue::doorbell::{BELL_BASE, BELLS};

use super::Arena;
use crate::phys::Doorbell;

/// The bells of one arena.
#[derive(Debug)]
pub(crate) struct Bells {
    slot: usize,
    /// A bit for each one that is there.
    mask: u64,
    /// The host was asked since the last publish: one that goes on changing
    /// them must not keep a program from publishing.
    is_fresh: bool,
}

impl Bells {
    pub(super) fn new(slot: usize) -> Self {
        Self {
            slot,
            mask: 0,
            is_fresh: false,
        }
    }

    /// Takes what the host gave.
    pub(super) fn set(&mut self, mask: u64) {
        self.mask = mask;
        self.is_fresh = true;
    }

    fn ring(&self) {
        for bell in (0..BELLS).filter(|bell| self.mask >> bell & 1 == 1) {
            Doorbell::new(BELL_BASE + 4 * (BELLS * self.slot + bell) as u64).ring();
        }
    }
}

impl Arena {
    fn told(&self) -> u32 {
        retain_and_flags(self.lease[SLOTS].load(Ordering::Relaxed))
    }

    /// Whether the host has other bells than we know of.
    pub(super) fn must_ask_for_bells(&self) -> bool {
        !self.bells.is_fresh && self.told() & bells::CHANGED != 0
    }

    /// Tells everybody who waits of the generation that is there now.
    pub(super) fn ring_all(&mut self) {
        self.bells.is_fresh = false;
        // The generation first, then the look: whoever begins to wait at the
        // broker meanwhile finds the one, or we find that the broker is to ring.
        fence(Ordering::SeqCst);
        if self.told() & bells::QUIET == 0 {
            self.bell.ring();
        }
        self.bells.ring();
    }
}
