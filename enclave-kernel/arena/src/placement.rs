//! [`Placement`]: which of the free banks a copy goes to.
//!
//! Called by the fault paths, for arenas whose banks are not used in turn. Any
//! choice is right for readers, who find frames by their births; it decides how
//! many pieces a snapshot consists of and how much memory is touched.

use crate::Held;
use enclave_abi::arena::{MAX_BANKS, bank_in_generation};
use enclave_abi::syscall::{PLACE_FIRST_FREE, PLACE_IN_TURN, PLACE_PREFERRED};

/// How banks are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// The next one in turn, chunk by chunk.
    #[default]
    InTurn,
    /// The first one whose frame of the chunk no held generation needs.
    FirstFree,
    /// The one that the program prefers if that is free, else the first free.
    Preferred,
}

impl Placement {
    /// The placement of that number.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match number {
            PLACE_IN_TURN => Some(Self::InTurn),
            PLACE_FIRST_FREE => Some(Self::FirstFree),
            PLACE_PREFERRED => Some(Self::Preferred),
            _ => None,
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::InTurn => PLACE_IN_TURN,
            Self::FirstFree => PLACE_FIRST_FREE,
            Self::Preferred => PLACE_PREFERRED,
        }
    }
}

/// The bank for the next frame of a chunk: `preferred` if it is free, else the
/// first free one. `birth` gives the birth of the chunk's frame in a bank.
///
/// `None` only if the held set is larger than [`Held::note`] lets it become.
pub fn choose_placed(
    birth: impl Fn(u32) -> u64,
    nr_banks: u32,
    current: u32,
    held: &Held,
    preferred: Option<u32>,
) -> Option<u32> {
    let needed = needed(birth, nr_banks, current, held)?;
    let free = |bank: &u32| *bank < nr_banks && needed >> *bank & 1 == 0;
    let first = needed.trailing_ones();
    preferred.filter(free).or(Some(first).filter(free))
}

/// The banks that cannot take a frame, a bit each: the current one, and those
/// that a held generation reads.
pub(crate) fn needed(
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
    let mut needed = 1u32 << (current & (MAX_BANKS - 1));
    for &generation in held.as_slice() {
        if let Some(bank) = bank_in_generation(births, generation) {
            needed |= 1 << bank;
        }
    }
    Some(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(generations: &[u64]) -> Held {
        let mut held = Held::default();
        for &generation in generations {
            held.push(generation);
        }
        held
    }

    fn choose(births: [u64; 4], current: u32, held: &Held, wish: Option<u32>) -> Option<u32> {
        let birth = |bank: u32| births[usize::try_from(bank).expect("small")];
        choose_placed(birth, 4, current, held, wish)
    }

    #[test]
    fn the_first_free_bank_is_the_lowest_that_nobody_needs() {
        // Generation 5 reads bank 1, the program is in bank 2.
        let births = [3, 5, 6, 0];
        assert_eq!(choose(births, 2, &held(&[5]), None), Some(0));
        assert_eq!(choose(births, 2, &held(&[4, 5]), None), Some(3));
        assert_eq!(choose(births, 2, &held(&[]), None), Some(0));
    }

    #[test]
    fn a_wish_counts_only_where_the_bank_is_free() {
        let births = [3, 5, 6, 0];
        let held = held(&[5]);
        assert_eq!(choose(births, 2, &held, Some(3)), Some(3));
        assert_eq!(choose(births, 2, &held, Some(1)), Some(0));
        assert_eq!(choose(births, 2, &held, Some(2)), Some(0));
        for bank in [4, 15, 32, u32::MAX] {
            assert_eq!(choose(births, 2, &held, Some(bank)), Some(0));
        }
    }

    #[test]
    fn no_bank_is_chosen_when_all_are_needed() {
        let births = [3, 5, 6, 7];
        assert_eq!(choose(births, 3, &held(&[4, 5, 6]), Some(1)), None);
    }

    #[test]
    fn numbers_stay_what_they_are() {
        for number in 0..3 {
            assert_eq!(Placement::new(number).map(Placement::number), Some(number));
        }
        assert_eq!(Placement::new(3), None);
    }
}
