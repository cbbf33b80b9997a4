//! Following an arena that somebody else writes: which frames a generation
//! consists of, and which of them are mapped elsewhere now.
//!
//! Called by the kernel's imports, which own the tables and read the exporter's
//! control area word by word. The exporter is hostile: each word is loaded
//! once, checked, and used from the copy. Whatever the words are, this promises
//!
//! - no panic, and work bounded by the geometry that was checked at the attach;
//! - [`Leaves::map`] is told existing chunks and banks only, so that what is
//!   mapped lies inside the object;
//! - after [`Follower::show`] has succeeded every chunk is mapped, each to the
//!   frame that the births name for the generation.
//!
//! That the frames keep still is the promise of a lease, which the host holds;
//! [`Follower::holds`] tells whether the exporter kept it.

#[cfg(test)]
mod tests;

use core::mem::offset_of;

use enclave_abi::ABI_VERSION;
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, Geometry, MAX_BANKS, bank_in_generation, split_log_entry,
};

/// The exporter's control area.
pub trait Control {
    /// The 64-bit word at byte `offset`, which is a multiple of 8 inside the
    /// control area, loaded once.
    fn word(&self, offset: u64) -> u64;
}

/// The leaves of the import's table.
pub trait Leaves {
    /// The bank that `chunk` is mapped to, if it is mapped.
    fn bank(&self, chunk: u64) -> Option<u32>;
    /// Maps `chunk` to its frame in `bank`, `offset` bytes into the object.
    fn map(&mut self, chunk: u64, bank: u32, offset: u64);
}

/// Why a generation cannot be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum ImportError {
    /// The header is not that of the arena that was attached.
    Header,
    /// This chunk has no frame in that generation.
    NoFrame(u64),
}

/// A generation, and where the change log stood when it was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The generation.
    pub generation: u64,
    /// Change-log entries written up to its publish.
    pub log_head: u64,
}

/// What one import shows.
#[derive(Clone, Copy, Debug)]
pub struct Follower {
    geometry: Geometry,
    /// `None`: the leaves are of no one generation.
    shown: Option<Place>,
}

impl Follower {
    /// An import that shows nothing yet.
    #[must_use]
    pub const fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            shown: None,
        }
    }

    /// Where everything in the object is.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The generation shown.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.shown.map(|place| place.generation)
    }

    /// Makes the leaves show `place`; how many of them changed. The caller
    /// flushes.
    ///
    /// # Errors
    /// [`ImportError`]; the leaves are a mixture then, and the next call looks
    /// at all of them.
    pub fn show(
        &mut self,
        place: Place,
        control: &impl Control,
        leaves: &mut impl Leaves,
    ) -> Result<u64, ImportError> {
        let shown = self.shown.take();
        self.check_header(control)?;
        let mut mapped = 0;
        let is_all = match shown {
            Some(shown) if place.generation >= shown.generation => {
                self.show_logged(shown, place, control, leaves, &mut mapped)?
            }
            _ => false,
        };
        if !is_all {
            for chunk in 0..self.geometry.nr_chunks {
                mapped += self.show_chunk(chunk, place.generation, control, leaves)?;
            }
        }
        self.shown = Some(place);
        Ok(mapped)
    }

    /// Brings the chunks up to date that the change log names from `shown` to
    /// `place`; `false` if only looking at all of them tells.
    fn show_logged(
        &self,
        shown: Place,
        place: Place,
        control: &impl Control,
        leaves: &mut impl Leaves,
        mapped: &mut u64,
    ) -> Result<bool, ImportError> {
        let Some(entries) = self.geometry.log_between(shown.log_head, place.log_head) else {
            return Ok(false);
        };
        for entry in entries {
            let word = control.word(self.geometry.log_entry_offset(entry));
            let (chunk, _) = split_log_entry(word);
            if chunk >= self.geometry.nr_chunks {
                return Ok(false);
            }
            *mapped += self.show_chunk(chunk, place.generation, control, leaves)?;
        }
        let head = control.word(offset_of!(ArenaHeader, log_head) as u64);
        Ok(self.geometry.log_reaches(shown.log_head, head))
    }

    /// 1 if the chunk had to be mapped, else 0.
    fn show_chunk(
        &self,
        chunk: u64,
        generation: u64,
        control: &impl Control,
        leaves: &mut impl Leaves,
    ) -> Result<u64, ImportError> {
        let bank = self
            .bank(chunk, generation, control)
            .ok_or(ImportError::NoFrame(chunk))?;
        if leaves.bank(chunk) == Some(bank) {
            return Ok(0);
        }
        let offset = self.geometry.frame_offset(chunk, bank);
        leaves.map(chunk, bank, offset.ok_or(ImportError::NoFrame(chunk))?);
        Ok(1)
    }

    /// The bank of `chunk` in `generation`.
    fn bank(&self, chunk: u64, generation: u64, control: &impl Control) -> Option<u32> {
        let first = self.geometry.birth_offset(chunk, 0)?;
        let nr_banks = self.geometry.nr_banks.min(MAX_BANKS);
        let mut births = [0; MAX_BANKS as usize];
        let births = births.get_mut(..usize::try_from(nr_banks).ok()?)?;
        for (bank, birth) in (0u64..).zip(births.iter_mut()) {
            *birth = control.word(first + bank * 8);
        }
        bank_in_generation(births, generation)
    }

    /// Whether every frame that is mapped still is one of the generation shown.
    #[must_use]
    pub fn holds(&self, control: &impl Control, leaves: &impl Leaves) -> bool {
        let Some(shown) = self.shown else {
            return false;
        };
        (0..self.geometry.nr_chunks).all(|chunk| {
            let offset = leaves
                .bank(chunk)
                .and_then(|bank| self.geometry.birth_offset(chunk, bank));
            offset.is_some_and(|offset| {
                let birth = control.word(offset);
                birth != 0 && birth <= shown.generation
            })
        })
    }

    /// Whether the header is (still) that of the arena that was attached.
    ///
    /// # Errors
    /// [`ImportError::Header`].
    pub fn check_header(&self, control: &impl Control) -> Result<(), ImportError> {
        let word = |offset: usize| control.word(offset as u64);
        let low = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        let magic = word(offset_of!(ArenaHeader, magic));
        let version = low(word(offset_of!(ArenaHeader, abi_version)));
        let nr_banks = low(word(offset_of!(ArenaHeader, nr_banks)));
        let size_bytes = word(offset_of!(ArenaHeader, size_bytes));
        let chunk_bytes = word(offset_of!(ArenaHeader, chunk_bytes));
        let is_same = magic == ARENA_MAGIC
            && version == ABI_VERSION
            && size_bytes == self.geometry.size_bytes
            && chunk_bytes == self.geometry.chunk_bytes
            && nr_banks == self.geometry.nr_banks;
        if is_same {
            Ok(())
        } else {
            Err(ImportError::Header)
        }
    }

    /// Variables that the exporter says there are, at most `most`.
    #[must_use]
    pub fn nr_variables(&self, control: &impl Control, most: u32) -> u32 {
        const WORD: usize = offset_of!(ArenaHeader, nr_banks);
        const { assert!(offset_of!(ArenaHeader, nr_vars) == WORD + 4) };
        let word = control.word(WORD as u64);
        u32::try_from(word >> 32).unwrap_or(u32::MAX).min(most)
    }
}

const _: () = assert!(offset_of!(ArenaHeader, abi_version).is_multiple_of(8));
const _: () = assert!(offset_of!(ArenaHeader, nr_banks).is_multiple_of(8));
const _: () = assert!(offset_of!(ArenaHeader, log_head).is_multiple_of(8));
