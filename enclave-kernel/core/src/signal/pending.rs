//! Signals on their way: each ordinary one once, the real-time ones in order.

use alloc::collections::VecDeque;

use super::number::SIGRTMIN;
use super::{Info, bit, code, first_of};
use crate::errno::Errno;

/// Most signals of a program that wait with what there is to say about them.
pub const MAX_QUEUED: usize = 1024;

/// How many more a program may have queued.
#[derive(Clone, Copy, Debug)]
pub struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(MAX_QUEUED)
    }
}

impl Budget {
    /// How many more there may be.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.0
    }
}

/// Signals that have not taken effect yet, of a thread or of the program.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    set: u64,
    /// Oldest first; at most [`MAX_QUEUED`] in all queues of a budget.
    queue: VecDeque<Info>,
}

impl Pending {
    /// Which there are.
    #[must_use]
    pub const fn set(&self) -> u64 {
        self.set
    }

    /// Adds one. An ordinary signal that is there already stays as it is. Beyond
    /// the budget it comes without anything to say about it.
    ///
    /// # Errors
    /// `EAGAIN` beyond the budget, for a real-time signal that has to be queued.
    pub fn add(&mut self, info: Info, budget: &mut Budget) -> Result<(), Errno> {
        let signal = info.signal();
        let is_ordinary = signal < SIGRTMIN;
        if is_ordinary && self.set & bit(signal) != 0 {
            return Ok(());
        }
        match budget.0.checked_sub(1) {
            Some(left) => {
                budget.0 = left;
                self.queue.push_back(info);
            }
            None if !is_ordinary && info.code() != code::SI_USER => return Err(Errno::EAGAIN),
            None => {}
        }
        self.set |= bit(signal);
        Ok(())
    }

    /// Takes the next one of those in `wanted`.
    pub fn take(&mut self, wanted: u64, budget: &mut Budget) -> Option<Info> {
        let signal = first_of(self.set & wanted)?;
        let mut found = None;
        let mut more = false;
        for (at, info) in self.queue.iter().enumerate() {
            if info.signal() == signal {
                if found.is_some() {
                    more = true;
                    break;
                }
                found = Some(at);
            }
        }
        if !more {
            self.set &= !bit(signal);
        }
        let queued = found.and_then(|at| self.queue.remove(at));
        if queued.is_some() {
            budget.0 = budget.0.saturating_add(1).min(MAX_QUEUED);
        }
        Some(queued.unwrap_or_else(|| Info::sent(signal, code::SI_USER, 0, 0)))
    }

    /// Drops those in `unwanted`.
    pub fn drop_all(&mut self, unwanted: u64, budget: &mut Budget) {
        let before = self.queue.len();
        self.queue.retain(|info| bit(info.signal()) & unwanted == 0);
        let gone = before - self.queue.len();
        budget.0 = budget.0.saturating_add(gone).min(MAX_QUEUED);
        self.set &= !unwanted;
    }
}
