//! When a kernel wants to be woken for a program's timers.
//!
//! Set by the vCPU thread ([`super::service`]), waited for by a thread of its own,
//! which interrupts the enclave as for a signal ([`super::telling`]). Costs nothing
//! while no program has a timer.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Inner {
    /// When each run is to be told.
    at: BTreeMap<u64, Instant>,
    /// Nobody is told before this.
    rests_until: Option<Instant>,
    ends: bool,
}

/// The alarms of a machine.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Alarms {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Plain data, whole after a panic elsewhere.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells run `run` in `ns` nanoseconds, or not at all (`u64::MAX`).
    pub(super) fn set(&self, run: u64, ns: u64) {
        let mut inner = self.lock();
        // What is too far away for a clock is never.
        let at = Instant::now().checked_add(Duration::from_nanos(ns));
        match at.filter(|_| ns != u64::MAX) {
            Some(at) => inner.at.insert(run, at),
            None => inner.at.remove(&run),
        };
        self.changed.notify_all();
    }

    /// Waits for the next run that is to be told, once; `None` when all ends.
    pub(super) fn next(&self) -> Option<u64> {
        let mut inner = self.lock();
        loop {
            if inner.ends {
                return None;
            }
            let first = inner.at.iter().min_by_key(|(_, at)| **at);
            let Some((run, at)) = first.map(|(run, at)| (*run, *at)) else {
                inner = self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let at = inner.rests_until.map_or(at, |rest| rest.max(at));
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                inner.at.remove(&run);
                return Some(run);
            }
            (inner, _) = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Tells nobody for `time`, so that the programs get on.
    pub(super) fn rest(&self, time: Duration) {
        self.lock().rests_until = Instant::now().checked_add(time);
    }

    /// Ends [`Alarms::next`].
    pub(super) fn end(&self) {
        self.lock().ends = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_one_comes_first_and_once() {
        let alarms = Alarms::default();
        alarms.set(1, 1_000_000_000_000);
        alarms.set(2, 1_000_000);
        alarms.set(3, 1);
        alarms.set(3, u64::MAX);
        assert_eq!(alarms.next(), Some(2));
        alarms.set(1, 1);
        assert_eq!(alarms.next(), Some(1));
        let (start, rest) = (Instant::now(), Duration::from_millis(5));
        alarms.rest(rest);
        alarms.set(4, 0);
        assert_eq!(alarms.next(), Some(4));
        assert!(start.elapsed() >= rest);
        alarms.end();
        assert_eq!(alarms.next(), None);
    }
}
