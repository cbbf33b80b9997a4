//! Which runs there are and how the last ones ended, for those who wait for them.
//!
//! Pure; kept by [`super::server`]. Runs are numbered from 1 on and every run is
//! known from its acceptance; of those that have ended the last
//! [`MAX_REMEMBERED`] are. Who waits is a connection's id here, no more.

use std::collections::{BTreeMap, VecDeque};

use crate::machine::RunOutcome;

/// Ended runs that are remembered.
pub(super) const MAX_REMEMBERED: usize = 64;

/// What there is to say to somebody who wants to wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has ended, so.
    Ended(RunOutcome),
    /// It runs; who asked is told when it ends.
    Waits,
    /// It ended before those that are remembered.
    Forgotten,
    /// There has been none of that number.
    Unknown,
}

/// Runs of one enclave.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// With those who wait.
    running: BTreeMap<u64, Vec<u64>>,
    ended: VecDeque<(u64, RunOutcome)>,
    newest: u64,
}

impl Runs {
    /// Run `run` was accepted.
    pub(super) fn started(&mut self, run: u64) {
        self.newest = self.newest.max(run);
        self.running.entry(run).or_default();
    }

    /// Run `run` has ended; who waited for it.
    pub(super) fn ended(&mut self, run: u64, outcome: RunOutcome) -> Vec<u64> {
        if self.ended.len() >= MAX_REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((run, outcome));
        self.running.remove(&run).unwrap_or_default()
    }

    /// `id` wants to wait for run `run`.
    pub(super) fn wait(&mut self, run: u64, id: u64) -> Answer {
        if let Some(waiters) = self.running.get_mut(&run) {
            waiters.push(id);
            return Answer::Waits;
        }
        match self.ended.iter().find(|(ended, _)| *ended == run) {
            Some((_, outcome)) => Answer::Ended(outcome.clone()),
            None if (1..=self.newest).contains(&run) => Answer::Forgotten,
            None => Answer::Unknown,
        }
    }

    /// `id` is gone.
    pub(super) fn forget(&mut self, id: u64) {
        for waiters in self.running.values_mut() {
            waiters.retain(|waiter| *waiter != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: RunOutcome = RunOutcome::Exited { code: 0 };

    #[test]
    fn who_waits_is_told_once_and_later_ones_at_once() {
        let mut runs = Runs::default();
        runs.started(1);
        assert_eq!(runs.wait(1, 10), Answer::Waits);
        assert_eq!(runs.wait(1, 11), Answer::Waits);
        assert_eq!(runs.wait(1, 12), Answer::Waits);
        runs.forget(11);
        assert_eq!(runs.ended(1, OK), [10, 12]);
        assert_eq!(runs.wait(1, 13), Answer::Ended(OK));
        assert_eq!(runs.wait(1, 13), Answer::Ended(OK));
    }

    #[test]
    fn old_runs_are_forgotten_and_others_were_never_there() {
        let mut runs = Runs::default();
        let last = MAX_REMEMBERED as u64 + 1;
        for run in 1..=last {
            runs.started(run);
            runs.ended(run, OK);
        }
        assert_eq!(runs.wait(1, 1), Answer::Forgotten);
        assert_eq!(runs.wait(2, 1), Answer::Ended(OK));
        assert_eq!(runs.wait(last, 1), Answer::Ended(OK));
        for unknown in [0, last + 1, u64::MAX] {
            assert_eq!(runs.wait(unknown, 1), Answer::Unknown, "{unknown}");
        }
    }
}
