//! How often a doorbell, or the signals of a segment, may cost the broker work.
//!
//! One [`Meter`] per segment: an enclave that rings in a loop is read ten
//! times a second, its rings coalesced by the eventfd, and counted; a process
//! that signals in a loop has its signals handed on ten times a second. Neither
//! is ever lost, only late. Time is an argument.

/// Rings a doorbell may give per second, and at once.
pub const RINGS_PER_SECOND: u64 = 20_000;
/// How long a doorbell over budget is not looked at.
pub const PAUSE_MS: u64 = 100;

/// A budget, and what happens when it is spent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    bucket: TokenBucket,
    paused_until_ms: Option<u64>,
    throttled: u64,
}

impl Meter {
    pub(super) fn new(rings_per_second: u64, now_ms: u64) -> Self {
        Self {
            bucket: TokenBucket::new(rings_per_second, now_ms),
            paused_until_ms: None,
            throttled: 0,
        }
    }

    /// Takes `rings`; `false` if that is over budget: a pause begins.
    #[must_use]
    pub(super) fn take(&mut self, rings: u64, now_ms: u64) -> bool {
        let within = self.bucket.take(rings, now_ms);
        if !within {
            self.paused_until_ms = Some(now_ms.saturating_add(PAUSE_MS));
            self.throttled = self.throttled.saturating_add(1);
        }
        within
    }

    /// Begins a pause, whatever the budget.
    pub(super) fn pause(&mut self, now_ms: u64) {
        if !self.is_paused() {
            self.paused_until_ms = Some(now_ms.saturating_add(PAUSE_MS));
            self.throttled = self.throttled.saturating_add(1);
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused_until_ms.is_some()
    }

    pub(super) fn paused_until(&self) -> Option<u64> {
        self.paused_until_ms
    }

    /// Ends a pause whose time is over, or any without `now_ms`; tells whether.
    pub(super) fn resume(&mut self, now_ms: Option<u64>) -> bool {
        let over = |until: u64| now_ms.is_none_or(|now| until <= now);
        self.paused_until_ms.take_if(|until| over(*until)).is_some()
    }

    /// Pauses so far.
    pub(super) fn throttled(&self) -> u64 {
        self.throttled
    }
}

/// Budget in thousandths of a ring.
#[derive(Clone, Copy, Debug, Default)]
struct TokenBucket {
    rings_per_second: u64,
    millirings: u64,
    filled_ms: u64,
}

impl TokenBucket {
    /// A full bucket that refills at `rings_per_second` and holds one second.
    fn new(rings_per_second: u64, now_ms: u64) -> Self {
        Self {
            rings_per_second,
            millirings: rings_per_second.saturating_mul(1000),
            filled_ms: now_ms,
        }
    }

    /// Takes `rings`; `false` if that is over budget (the bucket is empty then).
    #[must_use]
    fn take(&mut self, rings: u64, now_ms: u64) -> bool {
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
