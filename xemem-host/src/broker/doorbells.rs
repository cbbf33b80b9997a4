//! How often an arena's doorbell may cost the broker work.
//!
//! One [`TokenBucket`] per doorbell: an enclave that rings in a loop is read
//! ten times a second, its rings coalesced by the eventfd, and counted. The
//! doorbell is never lost, only late. Time is an argument.

/// Rings a doorbell may give per second, and at once.
pub const RINGS_PER_SECOND: u64 = 20_000;
/// How long a doorbell over budget is not looked at.
pub const PAUSE_MS: u64 = 100;

/// Budget of one doorbell, in thousandths of a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenBucket {
    rings_per_second: u64,
    millirings: u64,
    filled_ms: u64,
}

impl TokenBucket {
    /// A full bucket that refills at `rings_per_second` and holds one second.
    pub(super) fn new(rings_per_second: u64, now_ms: u64) -> Self {
        Self {
            rings_per_second,
            millirings: rings_per_second.saturating_mul(1000),
            filled_ms: now_ms,
        }
    }

    /// Takes `rings`; `false` if that is over budget (the bucket is empty then).
    #[must_use]
    pub(super) fn take(&mut self, rings: u64, now_ms: u64) -> bool {
        // rings/s × ms = thousandths of a ring.
        let elapsed_ms = now_ms.saturating_sub(self.filled_ms);
        let full = self.rings_per_second.saturating_mul(1000);
        let refill = elapsed_ms.saturating_mul(self.rings_per_second);
        self.millirings = self.millirings.saturating_add(refill).min(full);
        self.filled_ms = self.filled_ms.max(now_ms);
        let wanted = rings.saturating_mul(1000);
        let within = wanted <= self.millirings;
        self.millirings = self.millirings.saturating_sub(wanted);
        within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_one_second_passes_and_no_more() {
        let mut bucket = TokenBucket::new(1000, 0);
        assert!(bucket.take(1000, 0));
        assert!(!bucket.take(1, 0));
    }

    #[test]
    fn the_bucket_refills_with_time_up_to_its_size() {
        let mut bucket = TokenBucket::new(1000, 0);
        assert!(bucket.take(1000, 0));
        assert!(bucket.take(5, 5));
        assert!(!bucket.take(1, 5));
        assert!(bucket.take(1000, 1_000_000));
        assert!(!bucket.take(1, 1_000_000));
    }

    #[test]
    fn absurd_counts_and_a_clock_that_stands_still_do_no_harm() {
        let mut bucket = TokenBucket::new(1000, 7);
        assert!(!bucket.take(u64::MAX, 3));
        assert!(!bucket.take(1, 7));
        assert!(bucket.take(1, u64::MAX));
    }
}
