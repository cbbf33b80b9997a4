//! The arena object as readers map it: descriptor and control area.
//!
//! Used by [`super::view`] to find frames and by whoever shows a generation.
//! Everything is copied out of the control area and checked on the copy; the
//! exporter may write there at any time, and anything. Maps no frames.

use super::SnapshotError;
use super::frames::{Run, changed_runs};
use crate::memory::Mapping;
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

pub(super) fn failed(what: &'static str) -> impl FnOnce(Errno) -> SnapshotError {
    move |source| SnapshotError::System { what, source }
}

/// A generation, and the place in the change log that belongs to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    pub(super) generation: u64,
    pub(super) log_head: u64,
}

impl Shown {
    pub(super) fn of(record: &GenerationRecord) -> Self {
        Self {
            generation: record.generation,
            log_head: record.log_head,
        }
    }
}

/// An arena object with its control area mapped.
#[derive(Debug)]
pub(super) struct ArenaObject {
    pub(super) memfd: OwnedFd,
    control: Mapping,
    pub(super) geometry: Geometry,
}

impl ArenaObject {
    /// Maps the control area of an arena whose header says what it is.
    pub(super) fn open(memfd: OwnedFd) -> Result<Self, SnapshotError> {
        check_object(&memfd, SMALLEST_CONTROL as u64)?;
        let control =
            Mapping::read_only(&memfd, SMALLEST_CONTROL).map_err(failed("map the header"))?;
        let geometry = checked_header(&control)?.1;
        Self::with_geometry(memfd, geometry)
    }

    /// Maps the control area of an arena whose header may not be written yet.
    pub(super) fn with_geometry(memfd: OwnedFd, geometry: Geometry) -> Result<Self, SnapshotError> {
        check_object(&memfd, geometry.object_bytes)?;
        let control_bytes = usize::try_from(geometry.control_bytes)
            .map_err(|_| failed("address the arena")(Errno::OVERFLOW))?;
        let control = Mapping::read_only(&memfd, control_bytes);
        Ok(Self {
            control: control.map_err(failed("map the control area"))?,
            memfd,
            geometry,
        })
    }

    /// A checked copy of the header.
    pub(super) fn header(&self) -> Result<ArenaHeader, SnapshotError> {
        let (header, geometry) = checked_header(&self.control)?;
        if geometry == self.geometry {
            Ok(header)
        } else {
            Err(SnapshotError::Mismatch)
        }
    }

    /// The record of `generation`.
    pub(super) fn record(&self, generation: u64) -> Result<GenerationRecord, SnapshotError> {
        read_record(&self.control, generation).ok_or(SnapshotError::NoRecord(generation))
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

    /// The variables whose descriptions are right.
    pub(super) fn variables(&self) -> Vec<VarDesc> {
        let size_bytes = self.geometry.size_bytes;
        let mut variables = self.described();
        variables.retain(|var| var.check(size_bytes).is_ok());
        variables
    }

    /// Runs that have to be mapped where `shown` is seen in `banks`, so that
    /// the generation of `record` is.
    pub(super) fn runs_to_map(
        &self,
        shown: Option<Shown>,
        banks: &[u8],
        record: &GenerationRecord,
    ) -> Result<Vec<Run>, SnapshotError> {
        self.header()?;
        let generation = record.generation;
        let births = |chunk| self.births(chunk);
        let changed = shown.and_then(|shown| self.changed_since(shown, record));
        let runs = match changed {
            Some(chunks) => changed_runs(chunks.into_iter(), banks, generation, births),
            None => changed_runs(0..self.geometry.nr_chunks, banks, generation, births),
        };
        runs.map_err(|chunk| SnapshotError::NoFrame { chunk, generation })
    }

    /// Chunks, ascending, that may lie elsewhere than in `shown`; `None` if
    /// only looking at all of them tells.
    fn changed_since(&self, shown: Shown, record: &GenerationRecord) -> Option<Vec<u64>> {
        if record.generation < shown.generation {
            return None;
        }
        self.logged_chunks(shown.log_head, record.log_head)
    }

    /// Chunks, ascending, of the log entries `[from, to)`; `None` if they are
    /// not there any more, or nonsense.
    pub(super) fn logged_chunks(&self, from: u64, to: u64) -> Option<Vec<u64>> {
        if to.checked_sub(from)? > self.geometry.log_entries {
            return None;
        }
        let mut chunks = Vec::new();
        for n in from..to {
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
        let behind = head.checked_sub(from)?;
        if behind >= self.geometry.log_entries {
            return None;
        }
        chunks.sort_unstable();
        chunks.dedup();
        Some(chunks)
    }

    /// A chunk's birth words and how many of them count.
    pub(super) fn births(&self, chunk: u64) -> Option<([u64; MAX_BANKS as usize], usize)> {
        let nr_banks = usize::try_from(self.geometry.nr_banks).ok()?;
        let first = usize::try_from(self.geometry.birth_offset(chunk, 0)?).ok()?;
        let mut row = [0; MAX_BANKS as usize];
        for (bank, birth) in row.iter_mut().take(nr_banks).enumerate() {
            *birth = self.control.load(first + bank * size_of::<u64>())?;
        }
        Some((row, nr_banks))
    }

    /// Whether every frame of `banks` (one a chunk) still is what `generation`
    /// consists of.
    pub(super) fn holds(&self, banks: &[u8], generation: u64) -> bool {
        (0..).zip(banks).all(|(chunk, &bank)| {
            let offset = self.geometry.birth_offset(chunk, u32::from(bank));
            offset
                .and_then(|offset| usize::try_from(offset).ok())
                .and_then(|offset| self.control.load(offset))
                .is_some_and(|birth| birth != 0 && birth <= generation)
        })
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
