//! How long programs take from the request to their first instruction.
//!
//! Filled by whoever submits a run, by the vCPU threads when the kernel fetches it,
//! and by what the kernel tells at its end: it takes the two times anyway, so that
//! nothing leaves the guest for them. Read by the control side. All times are of
//! Linux's monotonic clock, which the kernel's is set by.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most runs of which it is kept until somebody asks.
const MAX_KEPT: usize = 64;

/// Phases in order: name, microseconds since the request.
pub type StartPhases = Vec<(String, u64)>;

/// When what happened, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    requested: u64,
    fetched: u64,
    loaded: u64,
    first: u64,
}

/// The starts of a machine's programs.
#[derive(Debug, Default)]
pub(super) struct Starts(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    runs: BTreeMap<u64, Start>,
    /// Of the first program of all.
    first: StartPhases,
}

impl Start {
    /// Nothing before the program was in user mode.
    fn phases(&self) -> StartPhases {
        if self.first == 0 {
            return Vec::new();
        }
        let of = |name: &str, at: u64| {
            let micros = at.saturating_sub(self.requested) / 1000;
            (name.to_owned(), micros)
        };
        vec![
            of("fetched", self.fetched),
            of("loaded", self.loaded),
            of("first-instruction", self.first),
        ]
    }
}

impl Starts {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Plain data, whole after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run `run` was asked for at `now`.
    pub(super) fn requested(&self, run: u64, now: u64) {
        let mut kept = self.lock();
        let start = Start {
            requested: now,
            ..Start::default()
        };
        kept.runs.insert(run, start);
        while kept.runs.len() > MAX_KEPT {
            kept.runs.pop_first();
        }
    }

    /// The kernel fetches it at `now`.
    pub(super) fn fetched(&self, run: u64, now: u64) {
        if let Some(start) = self.lock().runs.get_mut(&run) {
            start.fetched = now;
        }
    }

    /// What its kernel tells of it, at its end.
    pub(super) fn told(&self, run: u64, loaded: u64, first: u64) {
        let mut kept = self.lock();
        let Some(start) = kept.runs.get_mut(&run) else {
            return;
        };
        (start.loaded, start.first) = (loaded, first);
        let phases = start.phases();
        if kept.first.is_empty() {
            kept.first = phases;
        }
    }

    /// The phases of run `run`, once; empty if it never was in user mode.
    pub(super) fn take(&self, run: u64) -> StartPhases {
        let start = self.lock().runs.remove(&run);
        start.map_or_else(Vec::new, |start| start.phases())
    }

    /// Those of the first program that has ended.
    pub(super) fn first(&self) -> StartPhases {
        self.lock().first.clone()
    }
}

/// Linux's monotonic clock in nanoseconds.
pub(super) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_count_from_the_request_and_are_told_once() {
        let starts = Starts::default();
        starts.requested(1, 5_000);
        starts.fetched(1, 8_000);
        starts.told(1, 25_000, 30_000);
        let names = ["fetched", "loaded", "first-instruction"].map(str::to_owned);
        let expected: StartPhases = names.into_iter().zip([3, 20, 25]).collect();
        assert_eq!(starts.take(1), expected);
        assert_eq!(starts.take(1), []);
        assert_eq!(starts.first(), expected);
    }

    #[test]
    fn one_that_was_refused_has_none_and_nonsense_harms_nobody() {
        let starts = Starts::default();
        starts.requested(1, 5_000);
        starts.told(1, 0, 0);
        starts.told(9, 1, 1);
        assert_eq!(starts.take(1), []);
        starts.requested(2, u64::MAX);
        starts.told(2, 1, 1);
        assert_eq!(starts.take(2).len(), 3);
        for run in 3..200 {
            starts.requested(run, 0);
        }
        assert_eq!(starts.lock().runs.len(), MAX_KEPT);
    }
}
