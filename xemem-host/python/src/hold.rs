//! [`Hold`]: one snapshot and the numpy arrays that still show it.
//!
//! An array holds an address, and nobody can take it back. So:
//!
//! ```text
//!  leased ──► passed ──► over            no array is left
//!    │          │
//!    │          └──────► detached ──► over
//!    └── release() ─► over, or BufferError while arrays are left
//! ```
//!
//! *Passed* means that its stream went on: the lease goes back with the last
//! array. *Detached* means that it had to go back earlier (the stream held as
//! many banks as it may, or was closed): what arrays show was copied to
//! private memory at the same addresses. In no state does an array show
//! another generation, and in none is its memory unmapped.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use enclave_abi::arena::VarDesc;
use xemem_host::OwnedSnapshot;
use xemem_host::snapshot::SnapshotError;

/// A snapshot shared by its Python object and its arrays.
#[derive(Debug)]
pub(crate) struct Hold {
    generation: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once over.
    snapshot: Option<OwnedSnapshot>,
    uses: Vec<Use>,
    next_use: u64,
    is_passed: bool,
}

/// An array, or whatever else was given an address.
#[derive(Debug)]
struct Use {
    number: u64,
    range: Range<u64>,
}

/// What an array is made of.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Where its first element is.
    pub(crate) address: usize,
    /// Its checked description.
    pub(crate) desc: VarDesc,
    /// To be given to [`Hold::end_use`].
    pub(crate) number: u64,
}

impl Hold {
    pub(crate) fn new(snapshot: OwnedSnapshot) -> Self {
        Self {
            generation: snapshot.record().generation,
            state: Mutex::new(State {
                snapshot: Some(snapshot),
                uses: Vec::new(),
                next_use: 0,
                is_passed: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `ask` with the snapshot, unless it is over.
    pub(crate) fn with<T>(&self, ask: impl FnOnce(&OwnedSnapshot) -> T) -> Option<T> {
        self.state().snapshot.as_ref().map(ask)
    }

    /// Gives out the address of variable `name`.
    ///
    /// # Errors
    /// No such variable, or the lease went back.
    pub(crate) fn begin_use(&self, name: &str) -> Result<Place, SnapshotError> {
        let mut state = self.state();
        let over = SnapshotError::Detached(self.generation);
        let view = state.snapshot.as_ref().ok_or(over)?.var(name)?;
        let (address, desc) = (view.bytes.as_ptr().addr(), view.desc);
        let number = state.next_use;
        state.next_use += 1;
        // Inside the arena: `desc` was checked.
        let range = desc.offset..desc.offset.saturating_add(desc.nbytes);
        state.uses.push(Use { number, range });
        Ok(Place {
            address,
            desc,
            number,
        })
    }

    /// The array of `number` is gone.
    pub(crate) fn end_use(&self, number: u64) {
        let mut state = self.state();
        state.uses.retain(|used| used.number != number);
        state.end_if_unused();
    }

    /// The stream has gone on, or the user needs no more arrays.
    pub(crate) fn pass(&self) {
        let mut state = self.state();
        state.is_passed = true;
        state.end_if_unused();
    }

    /// Gives the snapshot back; refused with the number of arrays left.
    pub(crate) fn release(&self) -> Result<(), usize> {
        let mut state = self.state();
        if state.is_leased() && !state.uses.is_empty() {
            return Err(state.uses.len());
        }
        state.is_passed = true;
        state.end_if_unused();
        Ok(())
    }

    /// Whether its lease is still there.
    pub(crate) fn is_leased(&self) -> bool {
        self.state().is_leased()
    }

    /// Whether what arrays show is what was published; not once over.
    pub(crate) fn valid(&self) -> bool {
        self.with(OwnedSnapshot::valid).unwrap_or(false)
    }

    /// Gives the lease back; what arrays show is copied first.
    ///
    /// # Errors
    /// Memory is short; then nothing changed.
    pub(crate) fn detach(&self) -> Result<(), SnapshotError> {
        let mut state = self.state();
        state.is_passed = true;
        let ranges = merged(state.uses.iter().map(|used| used.range.clone()));
        if let Some(snapshot) = &mut state.snapshot {
            snapshot.detach(&ranges)?;
        }
        state.end_if_unused();
        Ok(())
    }
}

impl State {
    fn is_leased(&self) -> bool {
        self.snapshot.as_ref().is_some_and(OwnedSnapshot::is_held)
    }

    fn end_if_unused(&mut self) {
        if self.is_passed && self.uses.is_empty() {
            self.snapshot = None;
        }
    }
}

/// `ranges` without overlaps.
fn merged(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut ranges: Vec<_> = ranges.collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}
