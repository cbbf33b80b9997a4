//! Waiting for the bell of an attached arena, asleep.
//!
//! Called by the import system calls. The exporter's kernel rings by a store
//! that KVM turns into an interrupt of this core, or in ring-3 mode into the end
//! of its thread's sleep: no thread in between. What a ring means is looked up
//! in the exporter's control area by the caller.
//!
//! Bells are let in only while somebody waits here; before and after they stay
//! pending, any number of them as one. So a program
//! that computes is never disturbed, however fast others publish, and the last
//! ring is never lost: a wait that begins after it ends at once. Rings for
//! nothing cost a waiting core at most one interrupt per [`PAUSE_MS`].

use core::mem::offset_of;
use core::sync::atomic::Ordering;

use enclave_abi::layout::QUEUE;
use enclave_abi::queue::{Call, QueuePage};
use enclave_core::errno::Errno;

use crate::{arch, clock, cores, host, phys, threads};

/// Rings for nothing that one wait takes without a pause: what was pending when
/// it began, and another arena's.
const IDLE_AT_ONCE: u32 = 4;
/// How long bells are held off after each further one.
const PAUSE_MS: u64 = 1;
/// Where the VMM learns of them.
const BELLS_IDLE: u64 = QUEUE + offset_of!(QueuePage, bells_idle) as u64;
const BELLS_PAUSED: u64 = QUEUE + offset_of!(QueuePage, bells_paused) as u64;

/// Notices until now: what to give to [`wait`], before asking the host for what
/// is then waited for.
pub(crate) fn notices() -> u32 {
    arch::notices_taken()
}

/// Sleeps until `is_there`, or a notice has come since there were `notices`, or
/// the monotonic clock shows `deadline_ns`.
///
/// # Errors
/// ETIMEDOUT; EINTR when the program is to be killed; with several cores
/// [`threads::LATER`] as well.
pub(crate) fn wait(
    is_there: impl Fn() -> bool,
    notices: u32,
    deadline_ns: u64,
) -> Result<(), Errno> {
    if cores::are_needed() {
        // Bells are for the first core alone, and the kernel is needed.
        let left = deadline_ns.saturating_sub(clock::monotonic_ns());
        let is_woken = is_there() || arch::notices_taken() != notices;
        return threads::patiently(left, is_woken.then_some(()));
    }
    let mut nr_idle = 0;
    arch::let_bells_in(true);
    let outcome = loop {
        let (before, bells) = (arch::moment(), arch::bells_taken());
        if is_there() || arch::notices_taken() != notices {
            break Ok(());
        }
        match left(deadline_ns) {
            Ok(ns) => arch::sleep(before, ns),
            Err(errno) => break Err(errno),
        }
        if arch::bells_taken() != bells && !is_there() {
            nr_idle += 1;
            phys::low32::<BELLS_IDLE>().fetch_add(1, Ordering::Relaxed);
            if nr_idle > IDLE_AT_ONCE {
                arch::let_bells_in(false);
                phys::low32::<BELLS_PAUSED>().fetch_add(1, Ordering::Relaxed);
                let _ = host::call(Call::Pause, [PAUSE_MS, 0, 0, 0, 0, 0, 0]);
                arch::let_bells_in(true);
            }
        }
    };
    arch::let_bells_in(false);
    outcome
}

/// Nanoseconds that may yet be slept.
fn left(deadline_ns: u64) -> Result<u64, Errno> {
    if host::is_interrupted() {
        return Err(Errno::EINTR);
    }
    if deadline_ns == u64::MAX {
        return Ok(u64::MAX);
    }
    match deadline_ns.saturating_sub(clock::monotonic_ns()) {
        0 => Err(Errno::ETIMEDOUT),
        left => Ok(left),
    }
}
