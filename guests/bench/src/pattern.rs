//! Contents that prove themselves: an arena of blocks with their checksums.
//!
//! ```text
//! 0          step │ blocks │ digest of the checksums │ checksum of block 0 …
//! head_bytes block 0, one chunk │ block 1 │ …
//! ```
//!
//! The guest rewrites some blocks and the head before each publish; the reader
//! recomputes everything. A snapshot that holds one word of another step fails,
//! because words depend on the step and checksums on every word.

/// Words before the checksums.
const HEAD_WORDS: usize = 3;
/// Bytes of a word.
const WORD_BYTES: usize = size_of::<u64>();

/// Where the parts of the pattern are, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Words of a block.
    pub block_words: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// First word of block 0.
    pub data_start: usize,
}

impl Layout {
    /// The pattern of an arena; `None` when it is too small for one block.
    #[must_use]
    pub fn new(arena_bytes: u64, chunk_bytes: u64) -> Option<Self> {
        let arena_bytes = usize::try_from(arena_bytes).ok()?;
        let chunk_bytes = usize::try_from(chunk_bytes).ok()?;
        let chunks = arena_bytes.checked_div(chunk_bytes)?;
        // As if every chunk were a block: a little more than is needed.
        let head_bytes = (HEAD_WORDS + chunks) * WORD_BYTES;
        let head_chunks = head_bytes.div_ceil(chunk_bytes);
        let blocks = chunks
            .checked_sub(head_chunks)
            .filter(|&blocks| blocks > 0)?;
        Some(Self {
            block_words: chunk_bytes / WORD_BYTES,
            blocks,
            data_start: head_chunks * chunk_bytes / WORD_BYTES,
        })
    }

    fn block(&self, block: usize) -> std::ops::Range<usize> {
        let start = self.data_start + block * self.block_words;
        start..start + self.block_words
    }

    /// Writes the state of `step`: `touched` blocks of it and the head; all
    /// blocks for step 0. `words` is the whole arena.
    ///
    /// # Panics
    /// When `words` is shorter than the arena the layout was made for.
    pub fn write(&self, words: &mut [u64], step: u64, touched: u64) {
        let touched = usize::try_from(touched).unwrap_or(usize::MAX);
        let nr_written = if step == 0 {
            self.blocks
        } else {
            touched.min(self.blocks)
        };
        let first = usize::try_from(mix(step) % self.blocks as u64).unwrap_or(0);
        for n in 0..nr_written {
            // Neighbours, so that no block is chosen twice.
            let block = (first + n) % self.blocks;
            let seed = mix(step ^ mix(block as u64));
            let content = &mut words[self.block(block)];
            for (word, n) in content.iter_mut().zip(0u64..) {
                *word = seed.wrapping_add(n.wrapping_mul(STRIDE));
            }
            let sum = checksum(content.iter().copied());
            words[HEAD_WORDS + block] = sum;
        }
        words[0] = step;
        words[1] = self.blocks as u64;
        words[2] = checksum(words[HEAD_WORDS..HEAD_WORDS + self.blocks].iter().copied());
    }

    /// Whether `bytes`, the whole arena, is a state of `step` and of no other.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, bytes: &[u8], step: u64) -> Result<(), Torn> {
        let word = |at: usize| word_at(bytes, at).ok_or(Torn::Short);
        if word(0)? != step || word(1)? != self.blocks as u64 {
            return Err(Torn::Head);
        }
        let sums = HEAD_WORDS..HEAD_WORDS + self.blocks;
        if word(2)? != checksum(words(bytes, sums).ok_or(Torn::Short)?) {
            return Err(Torn::Digest);
        }
        for block in 0..self.blocks {
            let content = words(bytes, self.block(block)).ok_or(Torn::Short)?;
            if checksum(content) != word(HEAD_WORDS + block)? {
                return Err(Torn::Block(block));
            }
        }
        Ok(())
    }
}

/// What is wrong with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torn {
    /// Fewer bytes than the pattern has.
    Short,
    /// Step or number of blocks is not what was published.
    Head,
    /// The checksums are not those of one step.
    Digest,
    /// This block is not the one its checksum is of.
    Block(usize),
}

/// Golden ratio in 64 bits, odd: no word of a block repeats.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(STRIDE);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Depends on every word and on their order.
fn checksum(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0, |sum: u64, word| {
        (sum.rotate_left(7) ^ word).wrapping_mul(STRIDE)
    })
}

fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    let start = at.checked_mul(WORD_BYTES)?;
    let (word, _) = bytes.get(start..)?.split_first_chunk()?;
    Some(u64::from_le_bytes(*word))
}

fn words(bytes: &[u8], range: std::ops::Range<usize>) -> Option<impl Iterator<Item = u64>> {
    let bytes = bytes.get(range.start * WORD_BYTES..range.end * WORD_BYTES)?;
    let (words, _) = bytes.as_chunks();
    Some(words.iter().map(|word| u64::from_le_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARENA: u64 = 16 * 4096;

    fn states() -> (Layout, Vec<Vec<u8>>) {
        let layout = Layout::new(ARENA, 4096).unwrap();
        let mut words = vec![0; 16 * 512];
        let states = (0..4).map(|step| {
            layout.write(&mut words, step, 3);
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        });
        (layout, states.collect())
    }

    #[test]
    fn head_and_blocks_fill_the_arena() {
        let small = Layout::new(ARENA, 4096).unwrap();
        assert_eq!((small.blocks, small.data_start), (15, 512));
        // 4096 checksums need nine pages.
        let large = Layout::new(16 << 20, 4096).unwrap();
        assert_eq!(large.blocks, 4096 - 9);
        assert_eq!(large.block(large.blocks - 1).end, (16 << 20) / 8);
        assert_eq!(Layout::new(4096, 4096), None);
        assert_eq!(Layout::new(ARENA, 0), None);
    }

    #[test]
    fn every_state_passes_its_own_check_only() {
        let (layout, states) = states();
        for (step, state) in (0..).zip(&states) {
            assert_eq!(layout.check(state, step), Ok(()));
            assert_eq!(layout.check(state, step + 1), Err(Torn::Head));
        }
    }

    #[test]
    fn one_chunk_of_another_step_is_torn() {
        let (layout, states) = states();
        for chunk in 0..16 {
            let range = chunk * 4096..(chunk + 1) * 4096;
            let mut mixed = states[2].clone();
            mixed[range.clone()].copy_from_slice(&states[3][range.clone()]);
            let same = states[2][range.clone()] == states[3][range];
            assert_eq!(layout.check(&mixed, 2).is_ok(), same, "chunk {chunk}");
        }
        let differ = (0..16).filter(|c| {
            let range = c * 4096..(c + 1) * 4096;
            states[2][range.clone()] != states[3][range]
        });
        assert_eq!(differ.count(), 4);
    }

    #[test]
    fn a_short_arena_is_refused() {
        let (layout, states) = states();
        let state = &states[0];
        assert_eq!(layout.check(&state[..state.len() - 1], 0), Err(Torn::Short));
        assert_eq!(layout.check(&[], 0), Err(Torn::Short));
    }
}
