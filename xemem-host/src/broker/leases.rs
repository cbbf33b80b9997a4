//! Which generations of one arena are held, and for how many readers.
//!
//! The words of [`enclave_abi::lease`] are moved here, by compare-and-swap
//! through the [`LeaseMemory`] seam: the exporter's kernel moves them at the
//! same time and may write anything. A lost race means to look again. Reader
//! counts live in the broker only. When an arena ends its words are copied
//! (*frozen*): the slot may be used by another arena from then on, and the
//! memory does not change any more.

use super::EnclaveId;
use crate::wire::{SegId, Target};
use enclave_abi::arena::{GenerationRecord, Geometry};
use enclave_abi::lease::{SLOTS, Slot};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Counters of an arena as its kernel says, read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Newest generation.
    pub latest_generation: u64,
    /// Publishes refused.
    pub dropped: u64,
    /// Generations taken away from their readers.
    pub discarded: u64,
    /// Publishes that waited for a reader.
    pub waited: u64,
    /// What it does when the pool is exhausted, `POLICY_*` of
    /// [`enclave_abi::syscall`]; anything else is the kernel's mistake.
    pub policy: u32,
    /// Where its copies go, `PLACE_*`.
    pub placement: u32,
}

/// Memory shared with exporters, as the broker sees it: the server maps it,
/// tests fake it. Ids without memory read as zero and ignore writes.
pub trait LeaseMemory {
    /// The slot words of arena slot `slot`.
    fn words(&self, enclave: EnclaveId, slot: u32) -> [u64; SLOTS];
    /// Replaces word `index` if it is still `old`.
    fn exchange(&self, enclave: EnclaveId, slot: u32, index: usize, old: u64, new: u64) -> bool;
    /// Clears all words of `slot`.
    fn clear(&self, enclave: EnclaveId, slot: u32);
    /// Sets how many published generations the kernel keeps with the flags of
    /// [`enclave_abi::lease::bells`], and tells it how many readers there are.
    /// What is read afterwards is not older than this write.
    fn set_retain(&self, enclave: EnclaveId, slot: u32, told: u32, readers: u32);
    /// Counters in the header.
    fn counters(&self, segid: SegId) -> Counters;
    /// Frames of an arena's pool that were ever used, if they were counted.
    fn frames_used(&self, _segid: SegId, _geometry: &Geometry) -> Option<u64> {
        None
    }
    /// The record of `generation` if it can be read whole.
    fn record(&self, segid: SegId, generation: u64) -> Option<GenerationRecord>;
    /// Which subscribers of a plain segment are in force, if it has a page that
    /// its signallers share.
    fn signal_version(&self, _segid: SegId) -> Option<u64> {
        None
    }
    /// There are others from now on.
    fn renew_subscribers(&self, _segid: SegId) {}
    /// Signals that went past the broker.
    fn direct_signals(&self, _segid: SegId) -> u64 {
        0
    }
    /// Takes one signal of what a second may have; whether there was one.
    fn take_signal(&self, _segid: SegId, _rate: u64) -> bool {
        true
    }
    /// Whether the lease page outlived a broker.
    fn has_lease_page(&self, _enclave: EnclaveId) -> bool {
        true
    }
    /// Whether the object of the segment did, sealed or not.
    fn has_object(&self, _segid: SegId, _is_sealed: bool) -> bool {
        true
    }
    /// Whether the eventfd did.
    fn has_notify(&self, _target: Target) -> bool {
        true
    }
}

/// The words of one arena.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    pub(super) memory: &'a dyn LeaseMemory,
    pub(super) enclave: EnclaveId,
    pub(super) slot: u32,
}

impl Words<'_> {
    fn exchange(&self, word: usize, old: u64, new: u64) -> bool {
        self.memory
            .exchange(self.enclave, self.slot, word, old, new)
    }
}

/// What becomes of a generation that nobody holds any more.
fn unleased(generation: u64, oldest_kept: u64) -> Slot {
    if generation >= oldest_kept {
        Slot::Published(generation)
    } else {
        Slot::Empty
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Held {
    word: usize,
    readers: u32,
    /// The word was given back by a broker that did not live to record it, and
    /// taken by the kernel: nobody joins these readers, who are about to go.
    is_lost: bool,
    /// Words of its record: the exporter writes over it after
    /// [`enclave_abi::arena::GENERATION_RECORDS`] more, held or not.
    record: Option<[u64; 8]>,
}

/// Leases of one arena.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Leases {
    held: BTreeMap<u64, Held>,
    frozen: Option<[u64; SLOTS]>,
}

/// Attempts to win the newest generation from a kernel that keeps publishing.
pub(super) const ATTEMPTS: usize = 64;

impl Leases {
    /// Generations that have at least one reader.
    pub(super) fn count(&self) -> usize {
        self.held.values().filter(|held| !held.is_lost).count()
    }

    /// Readers of all generations together.
    #[cfg(test)]
    pub(super) fn readers(&self) -> u64 {
        self.held.values().map(|held| u64::from(held.readers)).sum()
    }

    /// Whether a reader has `generation`.
    pub(super) fn has_readers(&self, generation: u64) -> bool {
        let held = self.held.get(&generation);
        held.is_some_and(|held| !held.is_lost)
    }

    /// The record of a generation that has readers: read by `read` for the first of
    /// them, who may come too late. Then there is none, nor for those who follow.
    pub(super) fn record(
        &mut self,
        generation: u64,
        read: impl FnOnce() -> Option<GenerationRecord>,
    ) -> Option<GenerationRecord> {
        let held = self.held.get_mut(&generation)?;
        if held.record.is_none() {
            held.record = read().map(|record| zerocopy::transmute!(record));
        }
        held.record.map(|words| zerocopy::transmute!(words))
    }

    fn slots(&self, words: Words<'_>) -> [Slot; SLOTS] {
        self.frozen
            .unwrap_or_else(|| words.memory.words(words.enclave, words.slot))
            .map(Slot::decode)
    }

    /// Whether `generation` still is what its readers leased: a kernel may have
    /// taken it away from them.
    pub(super) fn is_held(&self, words: Words<'_>, generation: u64) -> bool {
        let mut slots = self.slots(words).into_iter();
        slots.any(|slot| slot.held() == Some(generation))
    }

    /// Newest generation after `after` that could be leased now.
    pub(super) fn newest(&self, words: Words<'_>, after: u64) -> Option<u64> {
        let slots = self.slots(words);
        slots
            .iter()
            .filter_map(|slot| slot.held())
            .filter(|&generation| generation > after)
            .max()
    }

    /// Generations after `after`, ascending, none of those held left out.
    ///
    /// One scan is not atomic: it may see generation g+1 in a late word but
    /// have passed the word of g before g came. The kernel writes g first, so
    /// a second scan finds every g up to the largest of the first.
    pub(super) fn after(&self, words: Words<'_>, after: u64) -> Vec<u64> {
        let Some(newest) = self.newest(words, after) else {
            return Vec::new();
        };
        let slots = self.slots(words);
        let mut found: Vec<u64> = slots.iter().filter_map(|slot| slot.held()).collect();
        found.retain(|&generation| generation > after && generation <= newest);
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Adds a reader to exactly `generation`; `false` if it is gone.
    pub(super) fn lease(&mut self, words: Words<'_>, generation: u64) -> bool {
        if let Some(held) = self.held.get_mut(&generation) {
            held.readers = held.readers.saturating_add(u32::from(!held.is_lost));
            return !held.is_lost;
        }
        let slots = self.slots(words);
        for (word, slot) in slots.iter().enumerate() {
            let won = match *slot {
                Slot::Published(found) if found == generation => {
                    let new = Slot::Leased(generation).encode();
                    self.frozen.is_some()
                        || words.memory.exchange(
                            words.enclave,
                            words.slot,
                            word,
                            slot.encode(),
                            new,
                        )
                }
                // Nobody but this broker may have written that: take it over.
                Slot::Leased(found) => found == generation,
                _ => false,
            };
            if won {
                let held = Held {
                    word,
                    readers: 1,
                    is_lost: false,
                    record: None,
                };
                self.held.insert(generation, held);
                return true;
            }
        }
        false
    }

    /// Adds a reader to the newest generation after `after`.
    pub(super) fn lease_newest(&mut self, words: Words<'_>, after: u64) -> Option<u64> {
        for _ in 0..ATTEMPTS {
            let generation = self.newest(words, after)?;
            if self.lease(words, generation) {
                return Some(generation);
            }
        }
        None
    }

    /// Takes a reader away. The last one gives the word back: `PUBLISHED` if
    /// the generation is `oldest_kept` or newer, else `EMPTY`. The kernel writes
    /// the word before the header, so a generation may be newer than the latest
    /// that the header shows.
    pub(super) fn release(&mut self, words: Words<'_>, generation: u64, oldest_kept: u64) {
        let Some(held) = self.held.get_mut(&generation) else {
            return;
        };
        held.readers = held.readers.saturating_sub(1);
        if held.readers > 0 {
            return;
        }
        let Held { word, is_lost, .. } = *held;
        self.held.remove(&generation);
        if self.frozen.is_none() && !is_lost {
            let old = Slot::Leased(generation).encode();
            let new = unleased(generation, oldest_kept).encode();
            // Fails only if the kernel broke the rules; then the word is its own.
            let _ = words
                .memory
                .exchange(words.enclave, words.slot, word, old, new);
        }
    }

    /// Empties published words that every reader of each one has `had`, and
    /// that no other reader is promised: all but the newest `keep` held ones,
    /// and of these the older ones if more than `most` would be held. The
    /// kernel, told to keep unleased ones, would refuse to publish for want of
    /// their words.
    pub(super) fn drop_superseded(&self, words: Words<'_>, had: u64, keep: u32, most: u32) {
        let slots = self.slots(words);
        let mut held: Vec<(u64, usize, Slot)> = (0..)
            .zip(&slots)
            .filter_map(|(word, slot)| Some((slot.held()?, word, *slot)))
            .collect();
        held.sort_unstable_by_key(|&(generation, ..)| generation);
        let mut left = super::count(held.len());
        for (place, &(generation, word, slot)) in held.iter().enumerate() {
            let newer = super::count(held.len() - 1 - place);
            let surplus = newer >= keep || left > most;
            let is_ours = matches!(slot, Slot::Published(_)) && generation <= had;
            if surplus && is_ours && newer > 0 {
                let (old, new) = (slot.encode(), Slot::Empty.encode());
                // Fails if the kernel took it back itself.
                let _ = words
                    .memory
                    .exchange(words.enclave, words.slot, word, old, new);
                left = left.saturating_sub(1);
            }
        }
    }

    /// Makes count and words agree for a broker that takes over: a word that its
    /// predecessor leased and did not live to record is given back, a lease
    /// whose word it had given back is taken again or, if the kernel was faster,
    /// joined by nobody any more.
    pub(super) fn reclaim(&mut self, words: Words<'_>, oldest_kept: u64) {
        if self.frozen.is_some() {
            return;
        }
        let slots = self.slots(words);
        for (&generation, held) in &mut self.held {
            let find = |wanted: Slot| slots.iter().position(|slot| *slot == wanted);
            let (published, leased) = (Slot::Published(generation), Slot::Leased(generation));
            let back = || {
                let word = find(published)?;
                let won = words.exchange(word, published.encode(), leased.encode());
                won.then_some(word)
            };
            match find(leased).or_else(back) {
                Some(word) => held.word = word,
                None => held.is_lost = true,
            }
        }
        for (word, slot) in slots.iter().enumerate() {
            if let Slot::Leased(generation) = *slot
                && !self.held.contains_key(&generation)
            {
                let new = unleased(generation, oldest_kept).encode();
                // Fails only if the kernel broke the rules.
                let _ = words.exchange(word, slot.encode(), new);
            }
        }
    }

    /// Cuts the tie to the shared words. A kernel that was stopped between
    /// taking back a generation and publishing the next one has left none; then
    /// `latest`, by its header, still is whole: a frame of it is reused at the
    /// second write to a chunk after the next publish at the earliest.
    pub(super) fn freeze(&mut self, words: Words<'_>, latest: Option<u64>) {
        if self.frozen.is_some() {
            return;
        }
        let mut copy = words.memory.words(words.enclave, words.slot);
        let has_any = copy.iter().any(|&word| Slot::decode(word).held().is_some());
        if let (false, Some(latest), Some(word)) = (has_any, latest, copy.first_mut()) {
            *word = Slot::Published(latest).encode();
        }
        self.frozen = Some(copy);
    }
}
