//! [`Pool`]: how much of an arena's banks its exporter has come to use.
//!
//! Counted by readers, from the births: so it costs the exporter nothing.

use super::SnapshotError;
use super::object::ArenaObject;
use enclave_abi::syscall::{
    PLACE_FIRST_FREE, PLACE_IN_TURN, PLACE_PREFERRED, POLICY_BLOCK, POLICY_DISCARD_NEWEST,
    POLICY_DISCARD_OLDEST,
};

/// The backing pool of an arena: all its banks but the one it starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Where copies go, `PLACE_*` of [`enclave_abi::syscall`]; the exporter's
    /// word.
    pub placement: u32,
    /// Frames of the pool.
    pub frames: u64,
    /// Of these, frames that were ever used: the high-water mark, because a
    /// frame that nobody needs is used again before a new one would be touched
    /// only where the placement says so.
    pub high_water: u64,
    /// Bytes of a frame.
    pub frame_bytes: u64,
}

impl Pool {
    pub(super) fn of(object: &ArenaObject) -> Result<Self, SnapshotError> {
        let geometry = &object.geometry;
        let used = |chunk| {
            let (row, nr_banks) = object.births(chunk)?;
            let births = row.get(1..nr_banks)?;
            Some(births.iter().filter(|&&birth| birth != 0).count() as u64)
        };
        Ok(Self {
            placement: object.header()?.placement,
            frames: geometry.nr_chunks * u64::from(geometry.nr_banks - 1),
            high_water: (0..geometry.nr_chunks).filter_map(used).sum(),
            frame_bytes: geometry.chunk_bytes,
        })
    }

    /// The placement in a word.
    #[must_use]
    pub fn placement_name(&self) -> &'static str {
        placement_name(self.placement)
    }
}

/// A placement, `PLACE_*`, in a word.
#[must_use]
pub fn placement_name(placement: u32) -> &'static str {
    match placement {
        PLACE_IN_TURN => "in-turn",
        PLACE_FIRST_FREE => "first-free",
        PLACE_PREFERRED => "preferred",
        _ => "unknown",
    }
}

/// What is done when the pool is exhausted, `POLICY_*`, in a word.
#[must_use]
pub fn policy_name(policy: u32) -> &'static str {
    match policy {
        POLICY_DISCARD_NEWEST => "discard-newest",
        POLICY_DISCARD_OLDEST => "discard-oldest",
        POLICY_BLOCK => "block",
        _ => "unknown",
    }
}
