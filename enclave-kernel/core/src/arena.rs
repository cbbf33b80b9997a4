//! Copy-on-write arenas: which generations must stay, which bank a new frame
//! comes from, what the retired twin table still needs.
//!
//! Called by the kernel's publish and fault paths with words it copied; touches
//! no memory. Promises that hold together the whole design:
//!
//! - [`Held::admit`] refuses a publish unless fewer generations are held than
//!   there are spare banks. Each held generation pins at most one frame of a
//!   chunk and the live table uses one, so [`choose_bank`] never fails between
//!   two publishes: pool exhaustion is decided at publish, never at a fault.
//! - [`CatchUp`] spreads the update of the retired twin over the next
//!   generation's faults, so that publish stays constant however much changed.

use enclave_abi::arena::{MAX_BANKS, bank_in_generation};
use enclave_abi::lease::{SLOTS, Slot};

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

    /// Reads lease words (copied by the caller).
    #[must_use]
    pub fn from_words(words: &[u64]) -> Self {
        let mut this = Self::default();
        for &word in words {
            if let Some(generation) = Slot::decode(word).held() {
                this.push(generation);
            }
        }
        this
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

    /// Slot for a new generation among `words` of an arena with `nr_banks`
    /// banks, or `None` when the pool is exhausted.
    #[must_use]
    pub fn admit(words: &[u64], nr_banks: u32) -> Option<usize> {
        let spare = usize::try_from(nr_banks).ok()?.checked_sub(1)?;
        words
            .iter()
            .take(spare)
            .position(|&word| Slot::decode(word) == Slot::Empty)
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

fn newer_published(words: &[u64], than: u64) -> u64 {
    let newer = |word: &&u64| matches!(Slot::decode(**word), Slot::Published(g) if g > than);
    words.iter().filter(newer).count() as u64
}

/// The bank for the next frame of a chunk: not the current one and not one
/// that a held generation uses. `birth` gives the birth of the chunk's frame in
/// a bank.
///
/// `None` only if the held set is larger than [`Held::admit`] lets it become.
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
    let mut births = [0; MAX_BANKS as usize];
    let births = births.get_mut(..usize::try_from(nr_banks).ok()?)?;
    for (bank, word) in (0..nr_banks).zip(births.iter_mut()) {
        *word = birth(bank);
    }
    let mut pinned = 1u32 << (current & (MAX_BANKS - 1));
    for &generation in held.as_slice() {
        if let Some(bank) = bank_in_generation(births, generation) {
            pinned |= 1 << bank;
        }
    }
    let bank = (!pinned).trailing_zeros();
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
    fn retain_keeps_the_newest_ones() {
        let words = [published(3), published(5), published(4), 0];
        assert_eq!(reclaimable(&words, 2), 0b101);
        assert_eq!(reclaimable(&words, 3), 0b001);
        assert_eq!(reclaimable(&words, 9), 0);
    }

    #[test]
    fn a_leased_generation_is_never_taken_back() {
        assert_eq!(reclaimable(&[leased(1), leased(2)], 0), 0);
    }

    #[test]
    fn publish_is_refused_when_every_spare_bank_is_pinned() {
        assert_eq!(Held::admit(&[0, 0, 0], 2), Some(0));
        assert_eq!(Held::admit(&[leased(1), 0, 0], 2), None);
        assert_eq!(Held::admit(&[leased(1), 0, 0], 3), Some(1));
        assert_eq!(Held::admit(&[leased(1), published(2), 0], 3), None);
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
        words: Vec<u64>,
        generation: u64,
        saved: Vec<(u64, Vec<u64>)>,
        dropped: u64,
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
                words: vec![0; SLOTS],
                generation: 0,
                saved: Vec::new(),
                dropped: 0,
            }
        }

        fn write(&mut self, chunk: usize, value: u64) {
            if !self.fresh[chunk] {
                let held = Held::from_words(&self.words);
                let current = self.current[chunk];
                let births = &self.births[chunk];
                let banks = u32::try_from(births.len()).expect("few banks");
                let bank = choose_bank(|b| births[b as usize], banks, current, &held)
                    .expect("admit guarantees a bank");
                self.contents[chunk][bank as usize] = self.contents[chunk][current as usize];
                self.births[chunk][bank as usize] = self.generation + 1;
                self.current[chunk] = bank;
                self.fresh[chunk] = true;
            }
            self.contents[chunk][self.current[chunk] as usize] = value;
        }

        fn publish(&mut self, retain: u64) {
            let mask = reclaimable(&self.words, retain);
            for (index, word) in self.words.iter_mut().enumerate() {
                if mask & 1 << index != 0 {
                    *word = 0;
                }
            }
            let banks = u32::try_from(self.births[0].len()).expect("few banks");
            let Some(slot) = Held::admit(&self.words, banks) else {
                self.dropped += 1;
                return;
            };
            self.generation += 1;
            self.words[slot] = published(self.generation);
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
            let held: BTreeSet<u64> = Held::from_words(&self.words)
                .as_slice()
                .iter()
                .copied()
                .collect();
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
            ops in proptest::collection::vec((0u8..4, 0usize..16, any::<u64>()), 1..200),
        ) {
            let mut model = Model::new(4, banks);
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
