//! The running program's timers and the host that wakes us for them.
//!
//! Called by the timer calls of `syscall` and on the way back to the program when
//! the host has come. There is no timer in the kernel: the host interrupts the
//! enclave as for a signal, and only while a program has set one. What is due is
//! decided in `enclave-core/timer`.

use enclave_abi::queue::Call;
use enclave_core::errno::Errno;
use enclave_core::timer::{Due, Times};

use crate::signals::{self, Target};
use crate::{clock, host, process};

/// Sets timer `id`, `None` = that of setitimer(2); what it was set to.
///
/// # Errors
/// `EINVAL` if it is not there.
pub(crate) fn set(id: Option<u32>, times: Times) -> Result<Times, Errno> {
    let before = process::with(|p| p.timers.set(id, clock::monotonic_ns(), times))?;
    arm();
    Ok(before)
}

/// What timer `id` is set to.
///
/// # Errors
/// `EINVAL` if it is not there.
pub(crate) fn get(id: Option<u32>) -> Result<Times, Errno> {
    process::with(|p| p.timers.times(id, clock::monotonic_ns()))
}

/// Has the host come when the next one is due.
pub(crate) fn arm() {
    let (run, wanted) = process::with(|p| (p.run, p.timers.arm(clock::monotonic_ns())));
    if let Some(ns) = wanted {
        host::call(Call::Alarm, [run, ns, 0, 0, 0, 0, 0]);
    }
}

/// The host has come: sends what is due.
pub(crate) fn expire() {
    let due = process::with(|p| {
        p.timers.came();
        let (threads, shared) = (&mut p.threads, p.signals.pending.set());
        p.timers.expire(clock::monotonic_ns(), |signal, target| {
            signals::is_pending(threads, shared, signal, target)
        })
    });
    for Due { info, target } in due {
        // Of a thread that has ended, or beyond what is queued.
        let _ = signals::send(target.map_or(Target::Program, Target::Thread), info);
    }
    arm();
}
