//! Reading an arena object: one generation at a time, as contiguous memory.
//!
//! [`ArenaReader`] keeps one address range as long as the payload and maps
//! into it, run by run, the frames of the generation asked for. The next
//! generation re-uses what is the same: the change log says which chunks may
//! differ (if it has not wrapped since), births say where they are now.
//!
//! Everything in the control area is copied, then checked. The object must be
//! sealed against shrinking, so that reading it cannot fault. That frames stay
//! still is the promise of a lease, which is [`crate::client::Stream`]'s
//! business: a reader without one has [`Snapshot::valid`] only.

mod frames;

use crate::client::Held;
use crate::memory::{Mapping, Window};
use enclave_abi::ABI_VERSION;
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, GENERATION_RECORDS, GENERATIONS_OFFSET, GenerationRecord, Geometry,
    GeometryError, MAX_BANKS, MAX_VARS, VARS_OFFSET, VarDesc, VarError, split_log_entry,
};
use frames::{Run, UNMAPPED, changed_runs, count_runs};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Shortest control area; also a whole page whatever the pages are.
const SMALLEST_CONTROL: usize = 2 << 20;
/// Attempts to copy a generation record while the kernel writes the ring.
const RECORD_ATTEMPTS: usize = 16;

/// Why an arena or a generation cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: Errno,
    },
    /// The object could shrink under its readers.
    #[error("the object is not sealed against shrinking")]
    Unsealed,
    /// No arena header (yet).
    #[error("the object has no arena header: magic {0:#x}")]
    Magic(u64),
    /// Written by another version.
    #[error("arena abi version {0} is not {ABI_VERSION}, the one known here")]
    AbiVersion(u32),
    /// Impossible geometry.
    #[error("the arena header is impossible: {0:?}")]
    Geometry(GeometryError),
    /// The header contradicts what the broker or the object's size says.
    #[error("the arena header does not fit its object")]
    Mismatch,
    /// The generation does not exist, or its record is gone.
    #[error("generation {0} has no record")]
    NoRecord(u64),
    /// Births without a frame.
    #[error("chunk {chunk} has no frame in generation {generation}")]
    NoFrame {
        /// The chunk.
        chunk: u64,
        /// The generation.
        generation: u64,
    },
    /// More pieces than a process may map.
    #[error("generation {generation} lies in {runs} runs, more than can be mapped: {source}")]
    Runs {
        /// The generation.
        generation: u64,
        /// Runs that were to be mapped.
        runs: usize,
        /// What the system said.
        source: Errno,
    },
    /// No variable of that name.
    #[error("the arena has no variable {0:?}")]
    NoVariable(String),
    /// Its description is wrong.
    #[error("variable {name:?} is described wrongly: {error:?}")]
    Variable {
        /// Its name.
        name: String,
        /// What is wrong.
        error: VarError,
    },
}

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
        Ok(Snapshot {
            reader: self,
            record,
            _held: None,
        })
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
        let bytes = |chunks: u64| usize::try_from(chunks.saturating_mul(geometry.chunk_bytes));
        let offset = bytes(run.chunk).map_err(|_| Errno::OVERFLOW)?;
        let len = bytes(run.nr_chunks).map_err(|_| Errno::OVERFLOW)?;
        let chunk_bytes = len / usize::try_from(run.nr_chunks).map_err(|_| Errno::OVERFLOW)?;
        let first = offset / chunk_bytes;
        let banks = self.banks.get_mut(first..first + len / chunk_bytes);
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
    fn holds(&self, generation: u64) -> bool {
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
    fn described(&self) -> Vec<VarDesc> {
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

/// One generation, readable until dropped; dropping gives its lease back.
#[derive(Debug)]
pub struct Snapshot<'a> {
    reader: &'a ArenaReader,
    record: GenerationRecord,
    _held: Option<Held<'a>>,
}

/// A variable in a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct VarView<'a> {
    /// Its description, checked: all elements lie inside `bytes`.
    pub desc: VarDesc,
    /// Its bytes.
    pub bytes: &'a [u8],
}

impl<'a> Snapshot<'a> {
    /// What `reader` shows (it must show the generation of `record`), for as
    /// long as `held` lasts.
    pub(crate) fn leased(
        reader: &'a ArenaReader,
        record: GenerationRecord,
        held: Held<'a>,
    ) -> Self {
        Self {
            reader,
            record,
            _held: Some(held),
        }
    }

    /// The generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.record.generation
    }

    /// The program's time step.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.record.step
    }

    /// The program's time, in its own unit.
    #[must_use]
    pub fn time(&self) -> f64 {
        f64::from_bits(self.record.time_bits)
    }

    /// All that was recorded at the publish.
    #[must_use]
    pub fn record(&self) -> &GenerationRecord {
        &self.record
    }

    /// Chunks copied since the previous publish.
    #[must_use]
    pub fn chunks_copied(&self) -> u64 {
        self.record.chunks_copied
    }

    /// Mapped pieces it consists of.
    #[must_use]
    pub fn runs(&self) -> usize {
        count_runs(&self.reader.banks)
    }

    /// Payload bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.reader.geometry.size_bytes
    }

    /// Where everything is.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.reader.geometry
    }

    /// Whether what was read until now is what was published: every frame
    /// still belongs to this generation. Ask after reading.
    #[must_use]
    pub fn valid(&self) -> bool {
        self.reader.holds(self.record.generation)
    }

    /// The whole payload. With an exporter that breaks the lease protocol
    /// bytes may change while they are looked at; see [`Snapshot::valid`].
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        usize::try_from(self.bytes())
            .ok()
            .and_then(|len| self.reader.window.slice(0, len))
            .unwrap_or_default()
    }

    /// The variables whose descriptions are right.
    #[must_use]
    pub fn variables(&self) -> Vec<VarDesc> {
        self.reader.variables()
    }

    /// The variable `name`.
    ///
    /// # Errors
    /// There is none, or its description is wrong.
    pub fn var(&self, name: &str) -> Result<VarView<'_>, SnapshotError> {
        let described = self.reader.described();
        let desc = described
            .into_iter()
            .find(|var| var.name() == Some(name))
            .ok_or_else(|| SnapshotError::NoVariable(name.to_owned()))?;
        let wrong = |error| SnapshotError::Variable {
            name: name.to_owned(),
            error,
        };
        desc.check(self.bytes()).map_err(wrong)?;
        let range = usize::try_from(desc.offset)
            .ok()
            .zip(usize::try_from(desc.nbytes).ok());
        let bytes = range.and_then(|(offset, len)| self.reader.window.slice(offset, len));
        let bytes = bytes.ok_or_else(|| wrong(VarError::Bounds))?;
        Ok(VarView { desc, bytes })
    }
}
