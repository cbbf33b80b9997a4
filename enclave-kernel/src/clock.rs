//! Time from the TSC and the scale that BootInfo gives; no timer, no tick.
//!
//! The guest's TSC may differ from the host's by an offset, so the VMM passes
//! a triple (guest TSC, wall clock, monotonic clock) read together.

use spin::Once;

use crate::{arch, boot};

/// How TSC readings become times.
struct Clock {
    /// Nanoseconds per cycle, 32.32 fixed point.
    scale: u64,
    tsc_base: u64,
    unix_ns: u64,
    monotonic_ns: u64,
}

static CLOCK: Once<Clock> = Once::new();

#[inline]
fn clock() -> &'static Clock {
    CLOCK.call_once(|| {
        let info = boot::info();
        Clock {
            scale: (1_000_000 << 32) / info.tsc_khz.max(1),
            tsc_base: info.tsc_base,
            unix_ns: info.unix_ns,
            monotonic_ns: info.monotonic_ns,
        }
    })
}

impl Clock {
    /// Nanoseconds from the base to `tsc`: one multiplication, because this is
    /// on the publish path. Exact for 584 years, wrapping then.
    #[inline]
    fn since_base(&self, tsc: u64) -> u64 {
        let cycles = tsc.wrapping_sub(self.tsc_base);
        let product = u128::from(cycles).wrapping_mul(u128::from(self.scale));
        (product >> 32) as u64
    }
}

/// Wall-clock nanoseconds since 1970.
pub(crate) fn unix_ns() -> u64 {
    unix_ns_at(arch::rdtsc())
}

/// Wall-clock nanoseconds since 1970 when the TSC showed `tsc`.
#[inline]
pub(crate) fn unix_ns_at(tsc: u64) -> u64 {
    let clock = clock();
    clock.unix_ns.wrapping_add(clock.since_base(tsc))
}

/// The host's monotonic clock in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let clock = clock();
    clock
        .monotonic_ns
        .wrapping_add(clock.since_base(arch::rdtsc()))
}

/// Microseconds since the VMM prepared the machine.
pub(crate) fn uptime_us() -> u64 {
    clock().since_base(arch::rdtsc()) / 1000
}
