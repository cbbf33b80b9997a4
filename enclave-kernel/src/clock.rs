//! Time from the TSC and the scale that BootInfo gives; no timer, no tick.
//!
//! The guest's TSC may differ from the host's by an offset, so the VMM passes
//! a pair (guest TSC, wall clock, monotonic clock) read together.

use crate::{arch, boot};

/// Nanoseconds that `cycles` of the TSC take.
pub(crate) fn cycles_to_ns(cycles: u64) -> u64 {
    let khz = boot::info().tsc_khz.max(1);
    let ns = u128::from(cycles) * 1_000_000 / u128::from(khz);
    u64::try_from(ns).unwrap_or(u64::MAX)
}

fn since_base() -> u64 {
    cycles_to_ns(arch::rdtsc().saturating_sub(boot::info().tsc_base))
}

/// Wall-clock nanoseconds since 1970.
pub(crate) fn unix_ns() -> u64 {
    boot::info().unix_ns.saturating_add(since_base())
}

/// The host's monotonic clock in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    boot::info().monotonic_ns.saturating_add(since_base())
}

/// Microseconds since the VMM prepared the machine.
pub(crate) fn uptime_us() -> u64 {
    since_base() / 1000
}
