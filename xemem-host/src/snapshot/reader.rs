//! [`ArenaReader`]: an arena object and one view of it.
//!
//! Used by [`crate::client::Stream`] with a lease, and without one by whoever
//! has a descriptor. While a [`Snapshot`] lives the view cannot change.

use super::object::ArenaObject;
use super::view::{MapCounts, View};
use super::{Diff, Pool, Snapshot, SnapshotError};
use enclave_abi::arena::{GenerationRecord, Geometry, VarDesc};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// An arena object, mapped for reading.
#[derive(Debug)]
pub struct ArenaReader {
    object: Arc<ArenaObject>,
    view: View,
}

impl ArenaReader {
    /// Maps the arena in `memfd`, which its kernel must have set up.
    ///
    /// # Errors
    /// [`SnapshotError`] if this is no arena, or not a sealed one.
    pub fn open(memfd: OwnedFd) -> Result<Self, SnapshotError> {
        Self::of(ArenaObject::open(memfd)?)
    }

    /// Maps an arena whose geometry is known; its header may not be written
    /// yet, and is compared once a generation is asked for.
    ///
    /// # Errors
    /// As [`ArenaReader::open`].
    pub fn with_geometry(memfd: OwnedFd, geometry: Geometry) -> Result<Self, SnapshotError> {
        Self::of(ArenaObject::with_geometry(memfd, geometry)?)
    }

    fn of(object: ArenaObject) -> Result<Self, SnapshotError> {
        Ok(Self {
            view: View::reserve(&object)?,
            object: Arc::new(object),
        })
    }

    /// The object, for further views of it.
    pub(super) fn object(&self) -> &Arc<ArenaObject> {
        &self.object
    }

    /// Where everything is.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.object.geometry
    }

    /// Mapped pieces the window consists of.
    pub(super) fn runs(&self) -> usize {
        self.view.runs()
    }

    /// `len` bytes of the generation shown; none if the window is not whole.
    pub(super) fn slice(&self, offset: u64, len: u64) -> Option<&[u8]> {
        self.view.slice(offset, len)
    }

    /// Mappings made so far: how much work following this arena has been.
    #[must_use]
    pub fn mappings_made(&self) -> u64 {
        self.view.counts.runs_mapped
    }

    /// What this reader's own view has cost so far.
    #[must_use]
    pub fn map_counts(&self) -> MapCounts {
        self.view.counts
    }

    /// How much of the banks was used until now.
    ///
    /// # Errors
    /// The header is not (yet) that of this arena.
    pub fn pool(&self) -> Result<Pool, SnapshotError> {
        Pool::of(&self.object)
    }

    /// Newest generation, 0 if there is none.
    ///
    /// # Errors
    /// The header is not (yet) that of this arena.
    pub fn latest_generation(&self) -> Result<u64, SnapshotError> {
        self.object.header().map(|header| header.latest_generation)
    }

    /// The variables whose descriptions are right; none before the header is
    /// written.
    #[must_use]
    pub fn variables(&self) -> Vec<VarDesc> {
        self.object.variables()
    }

    /// All variables in use, unchecked.
    pub(super) fn described(&self) -> Vec<VarDesc> {
        self.object.described()
    }

    /// What changed between two generations, in whichever order, neither of
    /// which need be held or mapped.
    ///
    /// # Errors
    /// [`SnapshotError::NoRecord`] for generation 0 and one not published yet;
    /// [`SnapshotError::Forgotten`] when change log and births have been used
    /// for later generations.
    pub fn diff(&self, a: u64, b: u64) -> Result<Diff, SnapshotError> {
        self.object.diff(a, b, false)
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
        self.object.record(generation)
    }

    /// Makes the window show the generation of `record`.
    pub(crate) fn show(&mut self, record: &GenerationRecord) -> Result<(), SnapshotError> {
        self.view.show(&self.object, record)
    }

    /// Whether every frame in the window still is what `generation` consists of.
    pub(super) fn holds(&self, generation: u64) -> bool {
        self.object.holds(&self.view.banks, generation)
    }
}
