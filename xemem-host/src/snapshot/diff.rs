//! What changed between two generations, without comparing memory.
//!
//! Two sources, both exact to a chunk. The *change log* has an entry for each
//! chunk copied on its first write after a publish; the entries between the
//! publishes of `a` and `b` are the answer, as long as both records are in
//! their ring and the log has not wrapped over them. *Births* need neither: the
//! frame of a chunk in `b` was born after `a` if and only if the chunk changed
//! in between. But only while `b` is held are its frames not reused, so this
//! is what [`super::Snapshot::diff`] can always do, and a reader without a
//! lease tells when it cannot be sure. A chunk that was written with what it
//! held before counts as changed.

use super::SnapshotError;
use super::object::ArenaObject;
use enclave_abi::arena::bank_in_generation;

/// A piece of an arena's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Where it begins.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// How a [`Diff`] was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffSource {
    /// From the change log.
    ChangeLog,
    /// From the births of frames.
    Births,
}

/// What changed from one generation to a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    /// The earlier generation.
    pub from: u64,
    /// The later one.
    pub to: u64,
    /// Changed ranges: ascending, whole chunks, neighbours joined.
    pub ranges: Vec<ByteRange>,
    /// How they were found.
    pub source: DiffSource,
}

impl Diff {
    /// Bytes in all ranges.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.len).sum()
    }
}

impl ArenaObject {
    /// What changed between two generations, in whichever order; with
    /// `is_held` somebody holds the later one.
    pub(super) fn diff(&self, a: u64, b: u64, is_held: bool) -> Result<Diff, SnapshotError> {
        let (from, to) = (a.min(b), a.max(b));
        let latest = self.header()?.latest_generation;
        // The record comes first, so a held generation may be beyond `latest`.
        if from == 0 || (to > latest && !is_held) {
            return Err(SnapshotError::NoRecord(if from == 0 { 0 } else { to }));
        }
        let (chunks, source) = match self.logged_between(from, to) {
            Some(chunks) => (chunks, DiffSource::ChangeLog),
            None => (self.born_between(from, to, is_held)?, DiffSource::Births),
        };
        Ok(Diff {
            from,
            to,
            ranges: self.ranges(&chunks),
            source,
        })
    }

    /// Chunks that the log has between two publishes; `None` if it is not
    /// whole any more.
    fn logged_between(&self, from: u64, to: u64) -> Option<Vec<u64>> {
        let first = self.record(from).ok()?.log_head;
        let end = self.record(to).ok()?.log_head;
        self.logged_chunks(first, end)
    }

    /// Chunks whose frame in `to` is younger than `from`.
    fn born_between(&self, from: u64, to: u64, is_held: bool) -> Result<Vec<u64>, SnapshotError> {
        let forgotten = || SnapshotError::Forgotten { from, to };
        let mut chunks = Vec::new();
        for chunk in 0..self.geometry.nr_chunks {
            let (row, nr_banks) = self.births(chunk).ok_or_else(forgotten)?;
            let row = row.get(..nr_banks).ok_or_else(forgotten)?;
            let bank = bank_in_generation(row, to).ok_or_else(forgotten)?;
            let birth = usize::try_from(bank).ok().and_then(|bank| row.get(bank));
            let birth = birth.copied().ok_or_else(forgotten)?;
            if birth > from {
                chunks.push(chunk);
            } else if !is_held && row.iter().any(|&other| other > to) {
                // That younger frame may be where the one in `to` was.
                return Err(forgotten());
            }
        }
        Ok(chunks)
    }

    fn ranges(&self, chunks: &[u64]) -> Vec<ByteRange> {
        let len = self.geometry.chunk_bytes;
        let mut ranges: Vec<ByteRange> = Vec::new();
        for chunk in chunks {
            let offset = chunk.saturating_mul(len);
            match ranges.last_mut() {
                Some(last) if last.offset + last.len == offset => last.len += len,
                _ => ranges.push(ByteRange { offset, len }),
            }
        }
        ranges
    }
}
