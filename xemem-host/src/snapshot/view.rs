//! [`View`]: one address range that shows one generation after the other.
//!
//! ```text
//!  record of g ──► chunks that may lie elsewhere   change log, else all
//!              ──► the bank of each in g           births
//!              ──► runs whose bank is new          [`super::frames`]
//!              ──► mapped over the window
//! ```
//!
//! Used by [`super::ArenaReader`], which has one, and by
//! [`super::OwnedSnapshot`]s, which have one each and pass them on.

use super::SnapshotError;
use super::frames::{Run, UNMAPPED, count_runs};
use super::object::{ArenaObject, Shown, failed};
use crate::memory::Window;
use enclave_abi::arena::GenerationRecord;
use rustix::io::Errno;
use std::ops::Range;

/// What following an arena has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapCounts {
    /// Runs mapped, each a system call.
    pub runs_mapped: u64,
    /// Chunks in those runs.
    pub chunks_mapped: u64,
    /// Chunks that were in place already when a generation was shown.
    pub chunks_reused: u64,
    /// Bytes copied to private memory for readers that outlived a lease.
    pub bytes_detached: u64,
}

impl MapCounts {
    /// The sum of both.
    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            runs_mapped: self.runs_mapped + other.runs_mapped,
            chunks_mapped: self.chunks_mapped + other.chunks_mapped,
            chunks_reused: self.chunks_reused + other.chunks_reused,
            bytes_detached: self.bytes_detached + other.bytes_detached,
        }
    }
}

/// A window and what is in it.
#[derive(Debug)]
pub(super) struct View {
    window: Window,
    /// Bank mapped for each chunk.
    pub(super) banks: Vec<u8>,
    /// `None`: the window is not whole.
    shown: Option<Shown>,
    /// Whether private copies lie among the frames: good for no other
    /// generation.
    has_copies: bool,
    pub(super) counts: MapCounts,
}

impl View {
    /// Reserves the address range; nothing is mapped yet.
    pub(super) fn reserve(object: &ArenaObject) -> Result<Self, SnapshotError> {
        let too_large = || failed("address the arena")(Errno::OVERFLOW);
        let size_bytes = usize::try_from(object.geometry.size_bytes).map_err(|_| too_large())?;
        let nr_chunks = usize::try_from(object.geometry.nr_chunks).map_err(|_| too_large())?;
        Ok(Self {
            window: Window::reserve(size_bytes).map_err(failed("reserve the window"))?,
            banks: vec![UNMAPPED; nr_chunks],
            shown: None,
            has_copies: false,
            counts: MapCounts::default(),
        })
    }

    /// Whether something of it was detached.
    pub(super) fn has_copies(&self) -> bool {
        self.has_copies
    }

    /// Mapped pieces the window consists of.
    pub(super) fn runs(&self) -> usize {
        count_runs(&self.banks)
    }

    /// `len` bytes of the generation shown; none if the window is not whole.
    pub(super) fn slice(&self, offset: u64, len: u64) -> Option<&[u8]> {
        self.shown?;
        let range = usize::try_from(offset).ok().zip(usize::try_from(len).ok());
        range.and_then(|(offset, len)| self.window.slice(offset, len))
    }

    /// Makes the window show the generation of `record`.
    pub(super) fn show(
        &mut self,
        object: &ArenaObject,
        record: &GenerationRecord,
    ) -> Result<(), SnapshotError> {
        let generation = record.generation;
        let runs = object.runs_to_map(self.shown, &self.banks, record)?;
        self.shown = None;
        let mut chunks_mapped = 0;
        for &run in &runs {
            self.map(object, run).map_err(|source| match source {
                Errno::NOMEM => SnapshotError::Runs {
                    generation,
                    runs: runs.len(),
                    source,
                },
                source => failed("map frames")(source),
            })?;
            chunks_mapped += run.nr_chunks;
        }
        self.shown = Some(Shown::of(record));
        self.counts.chunks_mapped += chunks_mapped;
        self.counts.chunks_reused += object.geometry.nr_chunks.saturating_sub(chunks_mapped);
        Ok(())
    }

    fn map(&mut self, object: &ArenaObject, run: Run) -> Result<(), Errno> {
        let geometry = &object.geometry;
        let file_offset = geometry
            .frame_offset(run.chunk, run.bank)
            .ok_or(Errno::INVAL)?;
        let size = |number: u64| usize::try_from(number).map_err(|_| Errno::OVERFLOW);
        let (first, nr_chunks) = (size(run.chunk)?, size(run.nr_chunks)?);
        let chunk_bytes = size(geometry.chunk_bytes)?;
        let offset = first.checked_mul(chunk_bytes).ok_or(Errno::OVERFLOW)?;
        let len = nr_chunks.checked_mul(chunk_bytes).ok_or(Errno::OVERFLOW)?;
        let banks = self.banks.get_mut(first..first.saturating_add(nr_chunks));
        let banks = banks.ok_or(Errno::INVAL)?;
        // A failed call may have unmapped what was there.
        banks.fill(UNMAPPED);
        self.window.map(offset, len, &object.memfd, file_offset)?;
        banks.fill(u8::try_from(run.bank).map_err(|_| Errno::INVAL)?);
        self.counts.runs_mapped += 1;
        Ok(())
    }

    /// Replaces the chunks that `range` (bytes) touches by private copies, in
    /// place. The window shows no generation any more.
    pub(super) fn detach(
        &mut self,
        object: &ArenaObject,
        range: &Range<u64>,
    ) -> Result<(), SnapshotError> {
        let chunk_bytes = object.geometry.chunk_bytes;
        let (first, end) = (range.start / chunk_bytes, range.end.div_ceil(chunk_bytes));
        let size = |chunks: u64| {
            let bytes = chunks.checked_mul(chunk_bytes);
            let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
            bytes.ok_or_else(|| failed("address the arena")(Errno::OVERFLOW))
        };
        let (offset, len) = (size(first)?, size(end.saturating_sub(first))?);
        (self.shown, self.has_copies) = (None, true);
        self.window
            .make_private(offset, len)
            .map_err(failed("copy what is still in use"))?;
        self.counts.bytes_detached += len as u64;
        Ok(())
    }
}
