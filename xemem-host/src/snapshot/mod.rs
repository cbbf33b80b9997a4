//! Reading an arena object: one generation at a time, as contiguous memory.
//!
//! [`ArenaReader`] keeps one address range as long as the payload and maps
//! into it, run by run, the frames of the generation asked for. The next
//! generation re-uses what is the same: the change log says which chunks may
//! differ (if it has not wrapped since), births say where they are now.
//! [`OwnedSnapshot`]s have an address range each, for readers whose snapshots
//! overlap.
//!
//! Everything in the control area is copied, then checked. The object must be
//! sealed against shrinking, so that reading it cannot fault. That frames stay
//! still is the promise of a lease, which is [`crate::client::Stream`]'s
//! business: a reader without one has [`Snapshot::valid`] only.

mod diff;
mod frames;
mod object;
mod owned;
mod pool;
mod reader;
mod view;

pub use diff::{ByteRange, Diff, DiffSource};
pub(crate) use object::read_record;
pub use owned::OwnedSnapshot;
pub(crate) use owned::Views;
pub use pool::{Pool, placement_name, policy_name};
pub use reader::ArenaReader;
pub use view::MapCounts;

use crate::client::{Held, Link};
use enclave_abi::ABI_VERSION;
use enclave_abi::arena::{GenerationRecord, Geometry, GeometryError, VarDesc, VarError};
use rustix::io::Errno;

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
    /// Change log and births have been used again since.
    #[error("what changed from generation {from} to {to} is not known any more")]
    Forgotten {
        /// The earlier generation.
        from: u64,
        /// The later one.
        to: u64,
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
    /// Its lease went back: nothing more of it can be read.
    #[error("the snapshot of generation {0} has been given back")]
    Detached(u64),
}

/// One generation, readable until dropped; dropping gives its lease back.
#[derive(Debug)]
pub struct Snapshot<'a> {
    reader: &'a ArenaReader,
    record: GenerationRecord,
    held: Option<Held<&'a Link>>,
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
    pub(crate) fn new(
        reader: &'a ArenaReader,
        record: GenerationRecord,
        held: Option<Held<&'a Link>>,
    ) -> Self {
        Self {
            reader,
            record,
            held,
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
        self.reader.runs()
    }

    /// Payload bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.reader.geometry().size_bytes
    }

    /// Where everything is.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        self.reader.geometry()
    }

    /// Whether what was read until now is what was published: every frame
    /// still belongs to this generation. Ask after reading.
    #[must_use]
    pub fn valid(&self) -> bool {
        self.reader.holds(self.record.generation)
    }

    /// What changed from generation `since` to this one (or back, if that is
    /// the later one), exact to a chunk, without looking at the contents.
    ///
    /// # Errors
    /// [`SnapshotError::NoRecord`] if there is no such generation (yet). If
    /// `since` is the later one also [`SnapshotError::Forgotten`]; to an earlier
    /// one the answer is known as long as this snapshot is leased.
    pub fn diff(&self, since: u64) -> Result<Diff, SnapshotError> {
        let this = self.record.generation;
        let is_held = self.held.is_some() && since <= this;
        let diff = self.reader.object().diff(since, this, is_held)?;
        // It may have been taken away from its readers while we looked.
        if diff.source == DiffSource::Births && is_held && !self.valid() {
            let (from, to) = (diff.from, diff.to);
            return Err(SnapshotError::Forgotten { from, to });
        }
        Ok(diff)
    }

    /// The whole payload. With an exporter that breaks the lease protocol
    /// bytes may change while they are looked at; see [`Snapshot::valid`].
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.reader.slice(0, self.bytes()).unwrap_or_default()
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
        let bytes = self.reader.slice(desc.offset, desc.nbytes);
        let bytes = bytes.ok_or_else(|| wrong(VarError::Bounds))?;
        Ok(VarView { desc, bytes })
    }
}
