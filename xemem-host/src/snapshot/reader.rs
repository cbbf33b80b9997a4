//! The arena object as a reader maps it: control area and window.
//!
//! ```text
//!  record of g ──► chunks that may lie elsewhere   change log, else all
//!              ──► the bank of each in g           births
//!              ──► runs whose bank is new          [`super::frames`]
//!              ──► mapped over the window
//! ```
//!
//! Used by [`crate::client::Stream`] with a lease, and without one by whoever
//! has a descriptor. While a [`Snapshot`] lives the window cannot change.

use super::frames::{Run, UNMAPPED, changed_runs, count_runs};
use super::{Snapshot, SnapshotError};
use crate::memory::{Mapping, Window};
use enclave_abi::ABI_VERSION;
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, GENERATION_RECORDS, GENERATIONS_OFFSET, GenerationRecord, Geometry,
    MAX_BANKS, MAX_VARS, VARS_OFFSET, VarDesc, split_log_entry,
};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Shortest control area; also a whole page whatever the pages are.
const SMALLEST_CONTROL: usize = 2 << 20;
/// Attempts to copy a generation record while the kernel writes the ring.
const RECORD_ATTEMPTS: usize = 16;

fn failed(what: &'static str) -> impl FnOnce(Errno) -> SnapshotError {
    move |source| SnapshotError::System { what, source }
}

/// The window's content: all of a generation, as of a place in the change log.
#[derive(Clone, Copy, Debug)]
struct Shown {
    generation: u64,
    log_head: u64,
}

/// An arena object, mapped for reading.
#[derive(Debug)]
pub struct ArenaReader {
    memfd: OwnedFd,
    control: Mapping,
    geometry: Geometry,
    window: Window,
    /// Bank mapped for each chunk.
    banks: Vec<u8>,
    /// `None`: the window is not whole.
    shown: Option<Shown>,
    mappings_made: u64,
}

impl ArenaReader {
    /// Maps the arena in `memfd`, which its kernel must have set up.
    ///
    /// # Errors
    /// [`SnapshotError`] if this is no arena, or not a sealed one.
    pub fn open(memfd: OwnedFd) -> Result<Self, SnapshotError> {
        check_object(&memfd, SMALLEST_CONTROL as u64)?;
        let control =
            Mapping::read_only(&memfd, SMALLEST_CONTROL).map_err(failed("map the header"))?;
        let geometry = checked_header(&control)?.1;
        Self::with_geometry(memfd, geometry)
    }

    /// Maps an arena whose geometry is known; its header may not be written
    /// yet, and is compared once a generation is asked for.
    ///
    /// # Errors
    /// As [`ArenaReader::open`].
    pub fn with_geometry(memfd: OwnedFd, geometry: Geometry) -> Result<Self, SnapshotError> {
        check_object(&memfd, geometry.object_bytes)?;
        let too_large = || failed("address the arena")(Errno::OVERFLOW);
        let control_bytes = usize::try_from(geometry.control_bytes).map_err(|_| too_large())?;
        let size_bytes = usize::try_from(geometry.size_bytes).map_err(|_| too_large())?;
        let nr_chunks = usize::try_from(geometry.nr_chunks).map_err(|_| too_large())?;
        Ok(Self {
            control: Mapping::read_only(&memfd, control_bytes)
                .map_err(failed("map the control area"))?,
            window: Window::reserve(size_bytes).map_err(failed("reserve the window"))?,
            memfd,
            geometry,
            banks: vec![UNMAPPED; nr_chunks],
            shown: None,
            mappings_made: 0,
        })
    }

    /// Where everything is.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
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

    /// Mappings made so far: how much work following this arena has been.
    #[must_use]
    pub fn mappings_made(&self) -> u64 {
        self.mappings_made
    }

    /// Newest generation, 0 if there is none.
    ///
    /// # Errors
    /// The header is not (yet) that of this arena.
    pub fn latest_generation(&self) -> Result<u64, SnapshotError> {
        self.header().map(|header| header.latest_generation)
    }

    /// The variables whose descriptions are right; none before the header is
    /// written.
    #[must_use]
    pub fn variables(&self) -> Vec<VarDesc> {
        let size_bytes = self.geometry.size_bytes;
        let mut variables = self.described();
        variables.retain(|var| var.check(size_bytes).is_ok());
        variables
    }

    /// Reads `generation` without a lease: its frames may change at any time,
    /// [`Snapshot::valid`] tells afterwards.
    ///
    /// # Errors
    /// The generation cannot be found or mapped.
    pub fn snapshot(&mut self, generation: u64) -> Result<Snapshot<'_>, SnapshotError> {
        let record = self.record(generation)?;
        self.show(&record)?;
        Ok(Snapshot::new(self, record, None))
    }

    /// The record of `generation`.
    pub(crate) fn record(&self, generation: u64) -> Result<GenerationRecord, SnapshotError> {
        read_record(&self.control, generation).ok_or(SnapshotError::NoRecord(generation))
    }

    /// Makes the window show the generation of `record`.
    pub(crate) fn show(&mut self, record: &GenerationRecord) -> Result<(), SnapshotError> {
        self.header()?;
        let generation = record.generation;
        let births = |chunk| self.births(chunk);
        let runs = match self.changed_since_shown(record) {
            Some(chunks) => changed_runs(chunks.into_iter(), &self.banks, generation, births),
            None => {
                let all = 0..self.geometry.nr_chunks;
                changed_runs(all, &self.banks, generation, births)
            }
        };
        let runs = runs.map_err(|chunk| SnapshotError::NoFrame { chunk, generation })?;
        self.shown = None;
        for &run in &runs {
            self.map(run).map_err(|source| match source {
                Errno::NOMEM => SnapshotError::Runs {
                    generation,
                    runs: runs.len(),
                    source,
                },
                source => failed("map frames")(source),
            })?;
        }
        self.shown = Some(Shown {
            generation,
            log_head: record.log_head,
        });
        Ok(())
    }

    fn map(&mut self, run: Run) -> Result<(), Errno> {
        let geometry = &self.geometry;
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
        self.window.map(offset, len, &self.memfd, file_offset)?;
        banks.fill(u8::try_from(run.bank).map_err(|_| Errno::INVAL)?);
        self.mappings_made += 1;
        Ok(())
    }

    /// Chunks, ascending, that may lie elsewhere than the window shows; `None`
    /// if only looking at all of them tells.
    fn changed_since_shown(&self, record: &GenerationRecord) -> Option<Vec<u64>> {
        let shown = self.shown?;
        let forward = record.generation >= shown.generation;
        let nr_entries = record.log_head.checked_sub(shown.log_head)?;
        if !forward || nr_entries > self.geometry.log_entries {
            return None;
        }
        let mut chunks = Vec::new();
        for n in shown.log_head..record.log_head {
            let offset = usize::try_from(self.geometry.log_entry_offset(n)).ok()?;
            let (chunk, _) = split_log_entry(self.control.load(offset)?);
            if chunk >= self.geometry.nr_chunks {
                return None;
            }
            chunks.push(chunk);
        }
        // Looked at after the entries: had the oldest of them been written
        // over meanwhile, or were it this moment, the head would be that far.
        let head = self.header().ok()?.log_head;
        let behind = head.checked_sub(shown.log_head)?;
        if behind >= self.geometry.log_entries {
            return None;
        }
        chunks.sort_unstable();
        chunks.dedup();
        Some(chunks)
    }

    /// A chunk's birth words and how many of them count.
    fn births(&self, chunk: u64) -> Option<([u64; MAX_BANKS as usize], usize)> {
        let nr_banks = usize::try_from(self.geometry.nr_banks).ok()?;
        let first = usize::try_from(self.geometry.birth_offset(chunk, 0)?).ok()?;
        let mut row = [0; MAX_BANKS as usize];
        for (bank, birth) in row.iter_mut().take(nr_banks).enumerate() {
            *birth = self.control.load(first + bank * size_of::<u64>())?;
        }
        Some((row, nr_banks))
    }

    /// Whether every frame in the window still is what `generation` consists of.
    pub(super) fn holds(&self, generation: u64) -> bool {
        (0..).zip(&self.banks).all(|(chunk, &bank)| {
            let offset = self.geometry.birth_offset(chunk, u32::from(bank));
            offset
                .and_then(|offset| usize::try_from(offset).ok())
                .and_then(|offset| self.control.load(offset))
                .is_some_and(|birth| birth != 0 && birth <= generation)
        })
    }

    /// A checked copy of the header.
    fn header(&self) -> Result<ArenaHeader, SnapshotError> {
        let (header, geometry) = checked_header(&self.control)?;
        if geometry == self.geometry {
            Ok(header)
        } else {
            Err(SnapshotError::Mismatch)
        }
    }

    /// All variables in use, unchecked.
    pub(super) fn described(&self) -> Vec<VarDesc> {
        let in_use = self.header().map_or(0, |header| header.nr_vars);
        let in_use = usize::try_from(in_use).map_or(MAX_VARS, |n| n.min(MAX_VARS));
        let first = usize::try_from(VARS_OFFSET).unwrap_or(usize::MAX);
        (0..in_use)
            .map_while(|index| self.control.copy(first + index * size_of::<VarDesc>()))
            .collect()
    }
}

/// Copies the record of `generation` out of the ring, if it is there whole.
pub(crate) fn read_record(control: &Mapping, generation: u64) -> Option<GenerationRecord> {
    if generation == 0 {
        return None;
    }
    let slot = usize::try_from(generation % GENERATION_RECORDS as u64).ok()?;
    let offset = usize::try_from(GENERATIONS_OFFSET).ok()? + slot * size_of::<GenerationRecord>();
    for _ in 0..RECORD_ATTEMPTS {
        let record: GenerationRecord = control.copy(offset)?;
        if record.generation == generation && control.load(offset)? == generation {
            return Some(record);
        }
        core::hint::spin_loop();
    }
    None
}

fn checked_header(control: &Mapping) -> Result<(ArenaHeader, Geometry), SnapshotError> {
    let header: ArenaHeader = control.copy(0).ok_or(SnapshotError::Mismatch)?;
    if header.magic != ARENA_MAGIC {
        return Err(SnapshotError::Magic(header.magic));
    }
    if header.abi_version != ABI_VERSION {
        return Err(SnapshotError::AbiVersion(header.abi_version));
    }
    let geometry = Geometry::from_header(&header).map_err(SnapshotError::Geometry)?;
    Ok((header, geometry))
}

/// The object must be as large as said, and stay so.
fn check_object(memfd: &OwnedFd, at_least: u64) -> Result<(), SnapshotError> {
    let seals = fcntl_get_seals(memfd).map_err(failed("read the object's seals"))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(SnapshotError::Unsealed);
    }
    let size = fstat(memfd).map_err(failed("look at the object"))?.st_size;
    if u64::try_from(size).is_ok_and(|size| size >= at_least) {
        Ok(())
    } else {
        Err(SnapshotError::Mismatch)
    }
}
