//! Copy-on-write arenas: which generations must stay, which bank a new frame
//! comes from, what the retired twin table still needs.
//!
//! Called by whoever writes an arena, with words it copied: the kernel's publish
//! and fault paths (as `enclave_core::arena`), and the guest library's where a
//! Linux process does a kernel's work. Touches and allocates no memory. Promises
//! that hold together the whole design:
//!
//! - [`Held::note`] leaves no word for a publish unless fewer generations are held than
//!   there are spare banks. Each held generation pins at most one frame of a
//!   chunk and the live table uses one, so [`choose_bank`] never fails between
//!   two publishes: pool exhaustion is decided at publish, never at a fault.
//! - [`CatchUp`] spreads the update of the retired twin over the next
//!   generation's faults, so that publish stays constant however much changed.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod placement;
#[cfg(test)]
mod pool_tests;

use enclave_abi::lease::{SLOTS, Slot};
use placement::needed;

pub use placement::{Placement, choose_placed};

/// The generations an arena must keep, from its lease words.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    generations: [u64; SLOTS],
    len: usize,
    /// The smallest of them; `u64::MAX` when there is none.
    oldest: u64,
}

impl Default for Held {
    fn default() -> Self {
        Self {
            generations: [0; SLOTS],
            len: 0,
            oldest: u64::MAX,
        }
    }
}

impl Held {
    /// The held generations, in slot order.
    #[must_use]
    pub fn as_slice(&self) -> &[u64] {
        self.generations.get(..self.len).unwrap_or_default()
    }

    /// The smallest held generation; `u64::MAX` when there is none.
    #[inline]
    #[must_use]
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.len = 0;
        self.oldest = u64::MAX;
    }

    /// Adds a generation; more than [`SLOTS`] cannot be (there are no words).
    #[inline]
    pub fn push(&mut self, generation: u64) {
        if let Some(place) = self.generations.get_mut(self.len) {
            *place = generation;
            self.len = self.len.wrapping_add(1);
            self.oldest = self.oldest.min(generation);
        }
    }

    /// Notes what a lease word holds; `true` when it is free for a new
    /// generation. The kernel notes only as many words as there are spare
    /// banks: no free one among them means that the pool is exhausted.
    #[inline]
    pub fn note(&mut self, word: u64) -> bool {
        match Slot::decode(word).held() {
            None => true,
            Some(generation) => {
                self.push(generation);
                false
            }
        }
    }
}

/// Slots whose generation the kernel may take back before it publishes: all
/// published (not leased) ones but the newest `retain - 1`. Bit i = slot i.
#[must_use]
pub fn reclaimable(words: &[u64], retain: u64) -> u32 {
    let keep = retain.saturating_sub(1);
    let mut mask = 0;
    for (index, &word) in words.iter().enumerate().take(SLOTS) {
        let Slot::Published(generation) = Slot::decode(word) else {
            continue;
        };
        if keep == 0 || newer_published(words, generation) >= keep {
            mask |= 1 << index;
        }
    }
    mask
}

/// Whether a publish would find a word among `words`, those that it may use: a
/// free one, or one that it may take back.
#[must_use]
pub fn has_room(words: &[u64], retain: u64) -> bool {
    let free = |word: &u64| Slot::decode(*word).held().is_none();
    words.iter().any(free) || reclaimable(words, retain) != 0
}

fn newer_published(words: &[u64], than: u64) -> u64 {
    let newer = |word: &&u64| matches!(Slot::decode(**word), Slot::Published(g) if g > than);
    words.iter().filter(newer).count() as u64
}

/// The word that goes first when room has to be made for a new generation:
/// that of the oldest held one. `None` when none is held.
#[must_use]
pub fn oldest_held(words: &[u64]) -> Option<usize> {
    let held = |(index, word): (usize, &u64)| Some((Slot::decode(*word).held()?, index));
    let oldest = words
        .iter()
        .enumerate()
        .take(SLOTS)
        .filter_map(held)
        .min()?;
    Some(oldest.1)
}

/// Whether a chunk whose banks have been used in turn may take the next one:
/// `replaced_by` is the birth in the bank after it (which replaced the frame
/// there), `oldest` the oldest held generation.
///
/// Then every held generation reads that or a later frame. A chunk that once
/// could not is out of turn for good and goes through [`choose_bank`].
#[inline]
#[must_use]
pub const fn turn_is_free(replaced_by: u64, oldest: u64) -> bool {
    replaced_by <= oldest
}

/// The bank for the next frame of a chunk: not the current one and not one
/// that a held generation uses. `birth` gives the birth of the chunk's frame in
/// a bank.
///
/// `None` only if the held set is larger than [`Held::note`] lets it become.
#[inline]
pub fn choose_bank(
    birth: impl Fn(u32) -> u64,
    nr_banks: u32,
    current: u32,
    held: &Held,
) -> Option<u32> {
    let after = |bank: u32| if bank + 1 >= nr_banks { 0 } else { bank + 1 };
    let next = after(current);
    let (old, newer) = (birth(next), birth(after(next)));
    // The usual case: another frame is younger than `next`'s and not younger
    // than any held generation, so every held one reads that or a later frame.
    if old == 0 || (old < newer && newer <= held.oldest) {
        return Some(next);
    }
    choose_slowly(birth, nr_banks, current, held)
}

/// Looks at every bank and every held generation.
#[cold]
fn choose_slowly(
    birth: impl Fn(u32) -> u64,
    nr_banks: u32,
    current: u32,
    held: &Held,
) -> Option<u32> {
    let bank = needed(birth, nr_banks, current, held)?.trailing_ones();
    (bank < nr_banks).then_some(bank)
}

/// Progress of bringing the retired twin up to date: the change-log entries of
/// the generation that was live when it retired, still to be made read-only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CatchUp {
    next: u64,
    end: u64,
}

impl CatchUp {
    /// Starts over after a publish: log entries `[from, to)` are to be replayed.
    #[must_use]
    pub fn new(from: u64, to: u64) -> Self {
        Self {
            next: from,
            end: to,
        }
    }

    /// The next log entry to replay, if any is left.
    pub fn take(&mut self) -> Option<u64> {
        (self.next < self.end).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Entries left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.end - self.next.min(self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec;
    use alloc::vec::Vec;
    use enclave_abi::arena::bank_in_generation;
    use proptest::prelude::*;

    fn published(generation: u64) -> u64 {
        Slot::Published(generation).encode()
    }

    fn leased(generation: u64) -> u64 {
        Slot::Leased(generation).encode()
    }

    #[test]
    fn only_the_newest_published_generation_stays_by_default() {
        let words = [published(3), leased(1), published(4), 0];
        assert_eq!(reclaimable(&words, 0), 0b101);
        assert_eq!(reclaimable(&words, 1), 0b101);
    }

    #[test]
    fn the_oldest_generation_makes_room_whoever_holds_it() {
        assert_eq!(
            oldest_held(&[published(5), leased(3), 0, published(4)]),
            Some(1)
        );
        assert_eq!(oldest_held(&[0, published(7), leased(9)]), Some(1));
        assert_eq!(oldest_held(&[0, 0, 3]), None);
    }

    #[test]
    fn retain_keeps_the_newest_ones() {
        let words = [published(3), published(5), published(4), 0];
        assert_eq!(reclaimable(&words, 2), 0b101);
        assert_eq!(reclaimable(&words, 3), 0b001);
        assert_eq!(reclaimable(&words, 9), 0);
    }

    #[test]
    fn there_is_room_as_long_as_a_word_is_free_or_may_be_taken_back() {
        assert!(has_room(&[leased(1), 0], 1));
        assert!(has_room(&[leased(1), published(2)], 1));
        assert!(!has_room(&[leased(1), published(2)], 2));
        assert!(!has_room(&[leased(1), leased(2)], 1));
        assert!(!has_room(&[], 1));
    }

    #[test]
    fn a_leased_generation_is_never_taken_back() {
        assert_eq!(reclaimable(&[leased(1), leased(2)], 0), 0);
    }

    #[test]
    fn only_an_empty_word_is_free_for_a_publish() {
        let mut held = Held::default();
        let free = [leased(7), 0, published(5), 3].map(|word| held.note(word));
        assert_eq!(free, [false, true, false, true]);
        assert_eq!(held.as_slice(), [7, 5]);
        assert_eq!(held.oldest(), 5);
    }

    #[test]
    fn catch_up_hands_out_each_entry_once() {
        let mut catch_up = CatchUp::new(5, 7);
        assert_eq!(catch_up.left(), 2);
        assert_eq!(
            [catch_up.take(), catch_up.take(), catch_up.take()],
            [Some(5), Some(6), None]
        );
        assert_eq!(catch_up.left(), 0);
    }

    /// A model arena: contents per (chunk, bank), and what each held
    /// generation must still read.
    struct Model {
        births: Vec<Vec<u64>>,
        contents: Vec<Vec<u64>>,
        current: Vec<u32>,
        fresh: Vec<bool>,
        out_of_turn: Vec<bool>,
        held: Held,
        words: Vec<u64>,
        generation: u64,
        saved: Vec<(u64, Vec<u64>)>,
        dropped: u64,
        first_free: bool,
    }

    impl Model {
        fn new(chunks: usize, banks: usize) -> Self {
            let mut first = vec![0; banks];
            first[0] = 1;
            Self {
                births: vec![first; chunks],
                contents: vec![vec![0; banks]; chunks],
                current: vec![0; chunks],
                fresh: vec![true; chunks],
                out_of_turn: vec![false; chunks],
                held: Held::default(),
                words: vec![0; SLOTS],
                generation: 0,
                saved: Vec::new(),
                dropped: 0,
                first_free: false,
            }
        }

        fn write(&mut self, chunk: usize, value: u64) {
            if !self.fresh[chunk] {
                let current = self.current[chunk];
                let bank = self.pick(chunk, current);
                self.contents[chunk][bank as usize] = self.contents[chunk][current as usize];
                self.births[chunk][bank as usize] = self.generation + 1;
                self.current[chunk] = bank;
                self.fresh[chunk] = true;
            }
            self.contents[chunk][self.current[chunk] as usize] = value;
        }

        /// As the kernel does: in turn while that goes, else searched for.
        fn pick(&mut self, chunk: usize, current: u32) -> u32 {
            let births = &self.births[chunk];
            let banks = u32::try_from(births.len()).expect("few banks");
            if self.first_free {
                let birth = |b: u32| births[b as usize];
                let wish = Some(u32::try_from(self.generation % 8).expect("small"));
                return choose_placed(birth, banks, current, &self.held, wish)
                    .expect("a publish was admitted, so there is a bank");
            }
            let (next, after) = ((current + 1) % banks, (current + 2) % banks);
            let replaced_by = births[after as usize];
            if !self.out_of_turn[chunk] && turn_is_free(replaced_by, self.held.oldest()) {
                return next;
            }
            self.out_of_turn[chunk] = true;
            choose_bank(|b| births[b as usize], banks, current, &self.held)
                .expect("a publish was admitted, so there is a bank")
        }

        fn publish(&mut self, retain: u64) {
            let mask = reclaimable(&self.words, retain);
            for (index, word) in self.words.iter_mut().enumerate() {
                if mask & 1 << index != 0 {
                    *word = 0;
                }
            }
            let spare = self.births[0].len() - 1;
            self.held.clear();
            let mut place = None;
            for (index, &word) in self.words.iter().enumerate().take(spare) {
                if self.held.note(word) {
                    place = Some(index);
                }
            }
            let Some(slot) = place else {
                self.dropped += 1;
                return;
            };
            self.generation += 1;
            self.words[slot] = published(self.generation);
            self.held.push(self.generation);
            self.fresh.fill(false);
            let now = (0..self.current.len())
                .map(|c| self.contents[c][self.current[c] as usize])
                .collect();
            self.saved.push((self.generation, now));
        }

        fn toggle_lease(&mut self, pick: usize) {
            let index = pick % self.words.len();
            self.words[index] = match Slot::decode(self.words[index]) {
                Slot::Empty => 0,
                Slot::Published(g) => leased(g),
                Slot::Leased(g) if g == self.generation => published(g),
                Slot::Leased(_) => 0,
            };
        }

        fn check(&self) {
            let words = self.words.iter();
            let held: BTreeSet<u64> = words.filter_map(|&w| Slot::decode(w).held()).collect();
            for (generation, want) in &self.saved {
                if !held.contains(generation) {
                    continue;
                }
                for (chunk, value) in want.iter().enumerate() {
                    let bank = bank_in_generation(&self.births[chunk], *generation)
                        .expect("every chunk has a frame");
                    assert_eq!(self.contents[chunk][bank as usize], *value);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn held_generations_never_change(
            banks in 2usize..6,
            first_free in any::<bool>(),
            ops in proptest::collection::vec((0u8..4, 0usize..16, any::<u64>()), 1..200),
        ) {
            let mut model = Model::new(4, banks);
            model.first_free = first_free;
            for (op, pick, value) in ops {
                match op {
                    0 => model.publish(value % 4),
                    1 => model.toggle_lease(pick),
                    _ => model.write(pick % 4, value),
                }
                model.check();
            }
        }
    }
}
