//! What takes the core away from a computation, and for how long.
//!
//! Called by `work` for one request. The computation reads the processor's
//! clock over and over: two readings that lie further apart than a threshold
//! are a detour (as in Netgauge's and FTQ's fixed-work loops). It makes no
//! system call between its first and its last reading.

// UNSAFETY: the time-stamp counter has no safe form.
#![expect(unsafe_code)]

use std::time::{Duration, Instant};

/// What is no detour: a few readings of the clock that took long.
const THRESHOLD_NS: f64 = 1000.0;
/// How long the clock's rate is measured.
const CALIBRATION: Duration = Duration::from_millis(5);

/// The time-stamp counter.
fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and enclaves leave
    // it to programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Cycles of the counter in a nanosecond.
fn rate() -> f64 {
    let (start, first) = (Instant::now(), cycles());
    while start.elapsed() < CALIBRATION {}
    cycles().saturating_sub(first) as f64 / start.elapsed().as_nanos() as f64
}

/// Computes for `ms` milliseconds; how many detours, and nanoseconds of all of
/// them, of the longest, and of the whole.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive, and far below 2^63"
)]
pub(crate) fn count(ms: u64) -> [u64; 4] {
    let rate = rate();
    let in_cycles = |ns: f64| (ns * rate) as u64;
    let threshold = in_cycles(THRESHOLD_NS);
    let length = in_cycles(ms as f64 * 1e6);
    let first = cycles();
    let (mut last, mut number, mut all, mut longest) = (first, 0, 0, 0);
    while last.saturating_sub(first) < length {
        let now = cycles();
        let gap = now.saturating_sub(last);
        if gap > threshold {
            number += 1;
            all += gap;
            longest = longest.max(gap);
        }
        last = now;
    }
    let ns = |cycles: u64| (cycles as f64 / rate) as u64;
    [number, ns(all), ns(longest), ns(last - first)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detours_are_a_part_of_the_whole() {
        let [number, all, longest, whole] = count(20);
        assert!(whole >= 19_000_000 && all <= whole && longest <= all);
        assert_eq!(number == 0, all == 0);
    }
}
