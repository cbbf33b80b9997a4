//! Which generations of one arena are held, and for how many readers.
//!
//! The words of [`enclave_abi::lease`] are moved here, by compare-and-swap
//! through the [`LeaseMemory`] seam: the exporter's kernel moves them at the
//! same time and may write anything. A lost race means to look again. Reader
//! counts live in the broker only. When an arena ends its words are copied
//! (*frozen*): the slot may be used by another arena from then on, and the
//! memory does not change any more.

use super::EnclaveId;
use crate::wire::SegId;
use enclave_abi::arena::GenerationRecord;
use enclave_abi::lease::{SLOTS, Slot};
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
    /// Sets how many published generations the kernel keeps, and tells it how
    /// many readers there are.
    fn set_retain(&self, enclave: EnclaveId, slot: u32, count: u32, readers: u32);
    /// Counters in the header.
    fn counters(&self, segid: SegId) -> Counters;
    /// The record of `generation` if it can be read whole.
    fn record(&self, segid: SegId, generation: u64) -> Option<GenerationRecord>;
}

/// The words of one arena.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    pub(super) memory: &'a dyn LeaseMemory,
    pub(super) enclave: EnclaveId,
    pub(super) slot: u32,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    word: usize,
    readers: u32,
}

/// Leases of one arena.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: BTreeMap<u64, Held>,
    frozen: Option<[u64; SLOTS]>,
}

/// Attempts to win the newest generation from a kernel that keeps publishing.
const ATTEMPTS: usize = 64;

impl Leases {
    /// Generations that have at least one reader.
    pub(super) fn count(&self) -> usize {
        self.held.len()
    }

    /// Readers of all generations together.
    #[cfg(test)]
    pub(super) fn readers(&self) -> u64 {
        self.held.values().map(|held| u64::from(held.readers)).sum()
    }

    /// Whether a reader has `generation`.
    pub(super) fn has_readers(&self, generation: u64) -> bool {
        self.held.contains_key(&generation)
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
            held.readers = held.readers.saturating_add(1);
            return true;
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
                let readers = 1;
                self.held.insert(generation, Held { word, readers });
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
        let word = held.word;
        self.held.remove(&generation);
        if self.frozen.is_none() {
            let old = Slot::Leased(generation).encode();
            let new = if generation >= oldest_kept {
                Slot::Published(generation).encode()
            } else {
                Slot::Empty.encode()
            };
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
