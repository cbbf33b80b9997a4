//! The lease page: which generations of an enclave's arenas must stay.
//!
//! One page per enclave, its own sealed memfd, mapped writable by the broker,
//! the VMM and the kernel, and by nobody else. It replaces messages on the
//! publish path: both sides move a word by compare-and-swap and never wait.
//!
//! ```text
//!            kernel: publish g              broker: first lease of g
//!   EMPTY ───────────────────► PUBLISHED ─────────────────────────► LEASED
//!     ▲                          │   ▲                                │
//!     └── kernel: g superseded ──┘   └── broker: last lease goes ─────┘
//! ```
//!
//! The kernel keeps the newest `retain` published generations and takes back
//! older ones that nobody leased. The broker takes back superseded ones that it
//! asked to keep and that every reader they were kept for has had. A generation
//! whose word is PUBLISHED or LEASED is *held*: the kernel reuses none of its
//! frames. A hostile kernel or broker can only spoil snapshots of this one
//! enclave.

/// Arenas an enclave may have at once.
pub const MAX_ARENAS: usize = 32;
/// Generation words of one arena.
pub const SLOTS: usize = 15;
/// Words of one arena: the slots and the `retain` word.
pub const WORDS_PER_ARENA: usize = 16;

/// Word index of slot `slot` of arena `arena`, or `None` out of range.
#[must_use]
pub fn slot_word(arena: usize, slot: usize) -> Option<usize> {
    (arena < MAX_ARENAS && slot < SLOTS).then(|| arena * WORDS_PER_ARENA + slot)
}

/// Word index of what the broker tells the kernel about arena `arena`: in the
/// lowest byte the `retain` count, where 0 counts as 1, above it the flags of
/// [`bells`], in the upper half the number of readers attached.
#[must_use]
pub fn retain_word(arena: usize) -> Option<usize> {
    (arena < MAX_ARENAS).then(|| arena * WORDS_PER_ARENA + SLOTS)
}

/// Flags of the `retain` word: who is to be told of a publish, and by what.
///
/// Importers in other enclaves may have bells of their own, which the exporter's
/// kernel rings besides the doorbell of the broker.
pub mod bells {
    /// The bells are not those that the kernel was given last: it asks for them
    /// before the next publish.
    pub const CHANGED: u32 = 1 << 8;
    /// There are bells to ring.
    pub const RING: u32 = 1 << 9;
    /// Nobody but those with bells waits: the broker's doorbell need not ring.
    /// The kernel looks at this flag *after* a generation can be seen, the
    /// broker looks for generations after it has changed it.
    pub const QUIET: u32 = 1 << 10;
    /// Any of them.
    pub const ANY: u32 = CHANGED | RING | QUIET;
}

/// The word of a `retain` count, flags of [`bells`] and a number of readers.
#[must_use]
pub const fn retain_of(count_and_flags: u32, readers: u32) -> u64 {
    (readers as u64) << 32 | count_and_flags as u64
}

/// The `retain` count in its word.
#[must_use]
pub const fn retain_count(word: u64) -> u32 {
    (word & 0xff) as u32
}

/// The `retain` count and the flags: at most 1 if neither asks for anything.
#[must_use]
pub const fn retain_and_flags(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

/// The number of readers in the `retain` word.
#[must_use]
pub const fn retain_readers(word: u64) -> u32 {
    (word >> 32) as u32
}

/// State of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Free for the next publish.
    Empty,
    /// Published, leased by nobody; the kernel may take it back.
    Published(u64),
    /// At least one reader; only the broker may change it.
    Leased(u64),
}

impl Slot {
    /// Decodes a word; the unused fourth state counts as empty.
    #[must_use]
    pub const fn decode(word: u64) -> Self {
        match word & 3 {
            1 => Self::Published(word >> 2),
            2 => Self::Leased(word >> 2),
            _ => Self::Empty,
        }
    }

    /// The word of this state. Generations stay below 2^62.
    #[must_use]
    pub const fn encode(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Published(generation) => generation << 2 | 1,
            Self::Leased(generation) => generation << 2 | 2,
        }
    }

    /// The generation this slot holds.
    #[must_use]
    pub const fn held(self) -> Option<u64> {
        match self {
            Self::Empty => None,
            Self::Published(generation) | Self::Leased(generation) => Some(generation),
        }
    }
}

const _: () = assert!(MAX_ARENAS * WORDS_PER_ARENA * 8 == 4096);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_survive_encoding() {
        for slot in [Slot::Empty, Slot::Published(1), Slot::Leased((1 << 62) - 1)] {
            assert_eq!(Slot::decode(slot.encode()), slot);
        }
        assert_eq!(Slot::decode(3), Slot::Empty);
    }

    #[test]
    fn flags_and_count_do_not_mix() {
        let word = retain_of(15 | bells::ANY, u32::MAX);
        assert_eq!((retain_count(word), retain_readers(word)), (15, u32::MAX));
        assert_eq!(retain_and_flags(word), 15 | bells::ANY);
    }

    #[test]
    fn words_stay_inside_the_page() {
        assert_eq!(slot_word(MAX_ARENAS - 1, SLOTS - 1), Some(510));
        assert_eq!(retain_word(MAX_ARENAS - 1), Some(511));
        assert_eq!(slot_word(MAX_ARENAS, 0), None);
        assert_eq!(slot_word(0, SLOTS), None);
        assert_eq!(retain_word(MAX_ARENAS), None);
    }
}
