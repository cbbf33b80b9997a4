//! [`OwnedSnapshot`]: a snapshot that outlives the next one.
//!
//! [`super::Snapshot`] borrows its stream, so the compiler knows when it is
//! over. Readers in other languages hold plain addresses and are over when
//! they please: each gets a view of its own, passed on to a later snapshot
//! when it is dropped, so that an unchanged chunk is still not mapped again.
//!
//! A lease should not wait for the last user of an address. So a snapshot can
//! be *detached*: ranges still in use become private copies at the same
//! addresses, then the lease goes back. Nobody ever reads another generation
//! through an old address.

use super::object::ArenaObject;
use super::view::{MapCounts, View};
use super::{ArenaReader, Diff, DiffSource, SnapshotError, VarView};
use crate::client::{Held, Link};
use enclave_abi::arena::{GenerationRecord, Geometry, VarDesc, VarError};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most views kept for later snapshots.
const MAX_IDLE: usize = 2;

/// Views that wait for their next snapshot, and what all have cost.
#[derive(Debug)]
pub(crate) struct Views {
    object: Arc<ArenaObject>,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    views: Vec<View>,
    counts: MapCounts,
}

impl Views {
    /// Further views of the object that `reader` reads.
    pub(crate) fn of(reader: &ArenaReader) -> Arc<Self> {
        Arc::new(Self {
            object: Arc::clone(reader.object()),
            idle: Mutex::default(),
        })
    }

    /// What all snapshots have cost so far.
    pub(crate) fn counts(&self) -> MapCounts {
        self.lock().counts
    }

    /// A view of the generation of `record`: of those that wait the one with
    /// the least to do, which is the youngest.
    fn show(&self, record: &GenerationRecord) -> Result<View, SnapshotError> {
        let waiting = self.lock().views.pop();
        let mut view = match waiting {
            Some(view) => view,
            None => View::reserve(&self.object)?,
        };
        match view.show(&self.object, record) {
            // Mappings are short: those of the views that wait can go.
            Err(SnapshotError::Runs { .. }) if !self.lock().views.is_empty() => {
                self.lock().views.clear();
                view.show(&self.object, record)?;
            }
            shown => shown?,
        }
        self.count(&mut view);
        Ok(view)
    }

    /// Moves what `view` has cost to the sum.
    fn count(&self, view: &mut View) {
        let counts = std::mem::take(&mut view.counts);
        let mut idle = self.lock();
        idle.counts = idle.counts.plus(counts);
    }

    fn give_back(&self, view: View) {
        let mut idle = self.lock();
        if !view.has_copies() && idle.views.len() < MAX_IDLE {
            idle.views.push(view);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One generation, mapped until dropped. Its lease goes back when it is
/// detached or dropped.
#[derive(Debug)]
pub struct OwnedSnapshot {
    views: Arc<Views>,
    /// Taken when dropped only.
    view: Option<View>,
    record: GenerationRecord,
    /// Checked copies.
    variables: Vec<VarDesc>,
    held: Option<Held<Arc<Link>>>,
    /// Once detached: whether the copies are what was published.
    detached: Option<bool>,
}

impl OwnedSnapshot {
    pub(crate) fn new(
        views: &Arc<Views>,
        record: GenerationRecord,
        held: Held<Arc<Link>>,
    ) -> Result<Self, SnapshotError> {
        Ok(Self {
            view: Some(views.show(&record)?),
            views: Arc::clone(views),
            record,
            variables: views.object.variables(),
            held: Some(held),
            detached: None,
        })
    }

    /// All that was recorded at the publish.
    #[must_use]
    pub fn record(&self) -> &GenerationRecord {
        &self.record
    }

    /// Where everything is.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.views.object.geometry
    }

    /// Mapped pieces it consists of.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.view.as_ref().map_or(0, View::runs)
    }

    /// The variables whose descriptions are right.
    #[must_use]
    pub fn variables(&self) -> &[VarDesc] {
        &self.variables
    }

    /// Whether it still has its lease.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Whether what was read until now is what was published; of a detached
    /// snapshot: whether the copies are.
    #[must_use]
    pub fn valid(&self) -> bool {
        self.detached.unwrap_or_else(|| self.frames_hold())
    }

    /// What changed from generation `since`; see [`super::Snapshot::diff`].
    ///
    /// # Errors
    /// As there; of a detached snapshot the answer may not be known any more.
    pub fn diff(&self, since: u64) -> Result<Diff, SnapshotError> {
        let this = self.record.generation;
        let is_held = self.is_held() && since <= this;
        let diff = self.views.object.diff(since, this, is_held)?;
        // It may have been taken away from its readers while we looked.
        if diff.source == DiffSource::Births && is_held && !self.frames_hold() {
            let (from, to) = (diff.from, diff.to);
            return Err(SnapshotError::Forgotten { from, to });
        }
        Ok(diff)
    }

    fn frames_hold(&self) -> bool {
        let holds = |view: &View| self.views.object.holds(&view.banks, self.record.generation);
        self.view.as_ref().is_some_and(holds)
    }

    /// The variable `name`. Its bytes stay mapped where they are until this
    /// snapshot is dropped, if [`OwnedSnapshot::detach`] is told of them.
    ///
    /// # Errors
    /// There is none, its description is wrong, or the snapshot is detached.
    pub fn var(&self, name: &str) -> Result<VarView<'_>, SnapshotError> {
        let found = self.variables.iter().find(|var| var.name() == Some(name));
        let Some(&desc) = found else {
            return Err(self.no_variable(name));
        };
        let view = self.view.as_ref().filter(|_| self.detached.is_none());
        let bytes = view.and_then(|view| view.slice(desc.offset, desc.nbytes));
        let bytes = bytes.ok_or(SnapshotError::Detached(self.record.generation))?;
        Ok(VarView { desc, bytes })
    }

    /// The whole payload, as long as it is not detached.
    #[must_use]
    pub fn as_slice(&self) -> Option<&[u8]> {
        let view = self.view.as_ref().filter(|_| self.detached.is_none());
        view.and_then(|view| view.slice(0, self.geometry().size_bytes))
    }

    /// Says whether `name` is described wrongly or not at all.
    fn no_variable(&self, name: &str) -> SnapshotError {
        let described = self.views.object.described();
        let size_bytes = self.geometry().size_bytes;
        let wrong = described
            .iter()
            .filter(|var| var.name() == Some(name))
            .find_map(|var| var.check(size_bytes).err());
        let name = name.to_owned();
        match wrong {
            Some(error) => SnapshotError::Variable { name, error },
            None => SnapshotError::NoVariable(name),
        }
    }

    /// Copies `ranges` of the payload to private memory at the same addresses
    /// and gives the lease back. What lies outside must not be read any more.
    /// Returns whether the copies are what was published.
    ///
    /// # Errors
    /// A range is not inside the arena, or memory is short; then the lease
    /// stays, and all addresses stay good.
    pub fn detach(&mut self, ranges: &[Range<u64>]) -> Result<bool, SnapshotError> {
        if let Some(whole) = self.detached {
            return Ok(whole);
        }
        let size_bytes = self.geometry().size_bytes;
        if let Some(range) = ranges.iter().find(|range| range.end > size_bytes) {
            let name = format!("bytes {} to {}", range.start, range.end);
            let error = VarError::Bounds;
            return Err(SnapshotError::Variable { name, error });
        }
        if let Some(view) = &mut self.view {
            for range in ranges.iter().filter(|range| !range.is_empty()) {
                let copied = view.detach(&self.views.object, range);
                self.views.count(view);
                copied?;
            }
        }
        // The lease kept the frames while they were copied, unless the
        // exporter broke it: that shows in the births.
        let whole = self.frames_hold();
        self.detached = Some(whole);
        self.held = None;
        Ok(whole)
    }
}

impl Drop for OwnedSnapshot {
    fn drop(&mut self) {
        if let Some(view) = self.view.take() {
            self.views.give_back(view);
        }
    }
}
