//! The part of a reply that lists generations. Used by [`super::reply`].

use super::{Reply, WireError};
use enclave_abi::arena::GenerationRecord;
use enclave_abi::lease::SLOTS;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// A generation that can be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub generation: u64,
    /// Whether a reader has it.
    pub is_leased: bool,
    /// Its record; `generation` 0 in there means that it could not be read.
    pub record: GenerationRecord,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct GenerationBody {
    generation: u64,
    is_leased: u64,
    record: GenerationRecord,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct GenerationsBody {
    count: u32,
    pad: u32,
    generations: [GenerationBody; SLOTS],
}

/// At most [`SLOTS`] of them.
pub(super) fn generations_body(all: &[Generation]) -> GenerationsBody {
    let mut body = GenerationsBody::new_zeroed();
    body.count = u32::try_from(all.len().min(SLOTS)).unwrap_or(0);
    for (to, from) in body.generations.iter_mut().zip(all) {
        *to = GenerationBody {
            generation: from.generation,
            is_leased: u64::from(from.is_leased),
            record: from.record,
        };
    }
    body
}

pub(super) fn of_generations(body: &GenerationsBody) -> Result<Reply, WireError> {
    let (field, value) = ("count", body.count);
    let found = usize::try_from(value)
        .ok()
        .and_then(|count| body.generations.get(..count))
        .ok_or(WireError::Value { field, value })?;
    let all = found.iter().map(|one| Generation {
        generation: one.generation,
        is_leased: one.is_leased != 0,
        record: one.record,
    });
    Ok(Reply::Generations(all.collect()))
}
