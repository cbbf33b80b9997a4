//! Which cores a program's threads run on, and how they share them: in turn.
//!
//! A program has its cores to itself and its threads run until they block, so
//! every policy and priority but Linux's ordinary one is refused, and that one
//! changes nothing.

use enclave_core::errno::Errno;
use enclave_core::thread::{Cores, Tid};

use super::Outcome;
use crate::arch::{self, TrapFrame};
use crate::{cores, process, threads, user};

/// Linux's ordinary policy.
const SCHED_OTHER: u64 = 0;
/// The policies that have priorities: first in, first out; in turn.
const SCHED_FIFO: u64 = 1;
const SCHED_RR: u64 = 2;

/// Serves `nr` if it is one of these; `None` otherwise.
pub(super) fn serve(nr: u64, a: [u64; 6], frame: &mut TrapFrame) -> Option<Outcome> {
    Some(match nr {
        140 => getpriority(a[0]),
        143 => known(a[0]).and_then(|_| user::write(a[1], &0u32).map(|()| 0)), // sched_getparam
        144 => sched_setscheduler(a[0], a[1]),
        145 => known(a[0]).map(|_| SCHED_OTHER), // sched_getscheduler
        146 => priority(a[0], 99),               // sched_get_priority_max
        147 => priority(a[0], 1),                // sched_get_priority_min
        203 => sched_setaffinity(a, frame),
        204 => sched_getaffinity(a),
        309 => getcpu(a[0], a[1]),
        _ => return None,
    })
}

/// The thread that a call names; 0 = the caller.
pub(super) fn known(tid: u64) -> Result<Tid, Errno> {
    if tid == 0 {
        return Ok(threads::current());
    }
    if (tid as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let tid = Tid::try_from(tid).map_err(|_| Errno::ESRCH)?;
    let is_there = process::with(|p| p.threads.has(tid));
    is_there.then_some(tid).ok_or(Errno::ESRCH)
}

/// Threads run until they block: the ordinary policy is the only one.
fn sched_setscheduler(tid: u64, policy: u64) -> Outcome {
    known(tid)?;
    if policy == SCHED_OTHER {
        Ok(0)
    } else {
        Err(Errno::EPERM)
    }
}

/// The nice value 0, in the form that the call has it.
fn getpriority(which: u64) -> Outcome {
    if which > 2 {
        Err(Errno::EINVAL)
    } else {
        Ok(20)
    }
}

/// `value` for policies that have priorities, 0 for the others of Linux.
fn priority(policy: u64, value: u64) -> Outcome {
    match policy {
        SCHED_FIFO | SCHED_RR => Ok(value),
        // Other, batch, idle and deadline.
        SCHED_OTHER | 3 | 5 | 6 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// Pins a thread. One that runs stays where it is until it next waits, yields or
/// asks for itself.
fn sched_setaffinity([pid, len, from, ..]: [u64; 6], frame: &mut TrapFrame) -> Outcome {
    let tid = known(pid).map_err(|_| Errno::ESRCH)?;
    let mut mask = [0; 8];
    let bytes = len.min(mask.len() as u64) as usize;
    user::copy_in(from, mask.get_mut(..bytes).unwrap_or_default())?;
    // Kept as it is: cores may come that it names.
    let wanted = Cores::from_le_bytes(mask);
    if wanted & cores::all() == 0 {
        return Err(Errno::EINVAL);
    }
    process::with(|p| p.threads.allow(tid, wanted));
    Ok(threads::move_away(frame))
}

fn sched_getaffinity([pid, len, to, ..]: [u64; 6]) -> Outcome {
    const MASK_BYTES: u64 = 8;
    if len < MASK_BYTES || !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let tid = known(pid).map_err(|_| Errno::ESRCH)?;
    let allowed = process::with(|p| p.threads.allowed(tid)).ok_or(Errno::ESRCH)?;
    user::write(to, &(allowed & cores::all()))?;
    Ok(MASK_BYTES)
}

/// The core, on a node that is not told.
fn getcpu(cpu: u64, node: u64) -> Outcome {
    for (to, value) in [(cpu, arch::core() as u32), (node, 0)] {
        if to != 0 {
            user::write(to, &value)?;
        }
    }
    Ok(0)
}
