//! The page of a plain segment that its signallers share with the broker.
//!
//! Made by [`crate::server`] when somebody first asks for the ears of the segment,
//! mapped there and by [`crate::client`]: which set of subscribers is in force, how
//! many signals went past the broker, and the budget that both draw from. Those who
//! have it may write to it as they like; they are of the subscribers' user.

use crate::memory::Mapping;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::os::fd::AsFd;

/// Bytes of the page.
pub(crate) const BYTES: usize = 4096;
/// Changes with the subscribers, and when the segment ends.
const VERSION: usize = 0;
/// Signals that went past the broker.
const SIGNALS: usize = 8;
/// In the upper half a second of the monotonic clock, in the lower one how many
/// signals it has had.
const WINDOW: usize = 16;
/// How often others may come before us until that counts as a flood.
const ATTEMPTS: usize = 64;

/// The page, mapped.
#[derive(Debug)]
pub(crate) struct SignalPage(Mapping);

impl SignalPage {
    /// Maps `page`, which is sealed against shrinking.
    pub(crate) fn new(page: impl AsFd) -> Result<Self, Errno> {
        Ok(Self(Mapping::read_write(page, BYTES)?))
    }

    /// Which subscribers are in force.
    pub(crate) fn version(&self) -> u64 {
        self.0.load(VERSION).unwrap_or(0)
    }

    /// There are others from now on.
    pub(crate) fn renew(&self) {
        self.0.add(VERSION, 1);
    }

    /// Signals that went past the broker.
    pub(crate) fn signals(&self) -> u64 {
        self.0.load(SIGNALS).unwrap_or(0)
    }

    /// Counts one of them.
    pub(crate) fn count(&self) {
        self.0.add(SIGNALS, 1);
    }

    /// Takes one signal of this second's `rate`; `false` when they are spent.
    pub(crate) fn take(&self, rate: u64) -> bool {
        let now = clock_gettime(ClockId::Monotonic).tv_sec;
        self.take_in(rate, u64::try_from(now).unwrap_or(0))
    }

    fn take_in(&self, rate: u64, second: u64) -> bool {
        let second = second & u64::from(u32::MAX);
        for _ in 0..ATTEMPTS {
            let old = self.0.load(WINDOW).unwrap_or(0);
            let is_now = old >> 32 == second;
            let used = if is_now { old & u64::from(u32::MAX) } else { 0 };
            if used >= rate.min(u64::from(u32::MAX)) {
                return false;
            }
            if self.0.exchange(WINDOW, old, second << 32 | (used + 1)) {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn page() -> SignalPage {
        let fd = memfd_create("signals", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&fd, BYTES as u64).expect("sized");
        SignalPage::new(fd).expect("mapped")
    }

    #[test]
    fn a_second_has_its_budget_and_no_more() {
        let page = page();
        for second in [7, 8, u64::from(u32::MAX), 1 << 32 | 8] {
            let taken = (0..20).filter(|_| page.take_in(12, second)).count();
            assert_eq!(taken, 12, "second {second}");
        }
        assert!(!page.take_in(0, 9));
    }

    #[test]
    fn nonsense_in_the_page_costs_at_most_a_second_of_budget() {
        let page = page();
        page.0.store(WINDOW, u64::MAX);
        assert!(page.take_in(1, 3));
        page.0.store(WINDOW, 3 << 32 | 0xffff_ffff);
        assert!(!page.take_in(u64::MAX, 3));
        assert!(page.take_in(1, 4));
    }

    #[test]
    fn versions_and_signals_count_apart() {
        let page = page();
        page.renew();
        page.count();
        page.count();
        assert_eq!((page.version(), page.signals()), (1, 2));
    }
}
