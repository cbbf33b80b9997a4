//! Time and what else a program asks at start-up.

use core::sync::atomic::Ordering;

use enclave_core::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Outcome;
use crate::{arch, clock, memory, process, threads, user};

pub(super) const SECOND: u64 = 1_000_000_000;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Timespec {
    seconds: u64,
    nanoseconds: u64,
}

impl Timespec {
    fn from_ns(ns: u64) -> Self {
        Self {
            seconds: ns / SECOND,
            nanoseconds: ns % SECOND,
        }
    }
}

/// Serves `nr` if it is one of these; `None` otherwise.
pub(super) fn serve(nr: u64, a: [u64; 6]) -> Option<Outcome> {
    let outcome = match nr {
        96 => gettimeofday(a[0]),
        100 => times(a[0]),
        99 => sysinfo(a[0]),
        158 => arch_prctl(a[0], a[1]),
        201 => time(a[0]),
        227 => clock_settime(a[0]),
        228 => clock_gettime(a[0], a[1]),
        229 => clock_getres(a[0], a[1]),
        61 | 247 => Err(Errno::ECHILD), // wait4, waitid: no children
        334 => Err(Errno::ENOSYS),      // rseq: every libc asks and does without
        _ => return None,
    };
    Some(outcome)
}

/// Nanoseconds that clock `clock_id` shows.
pub(super) fn now(clock_id: u64) -> Result<u64, Errno> {
    match clock_id {
        0 | 5 | 11 => Ok(clock::unix_ns()),
        1 | 4 | 6 | 7 => Ok(clock::monotonic_ns()),
        // Processor time: what its threads ran, waiting in the host aside.
        2 => {
            let now = clock::monotonic_ns();
            Ok(process::with(|p| p.ran_ns(now)))
        }
        3 => {
            let now = clock::monotonic_ns();
            Ok(threads::with(|t| t.ran_ns(now)))
        }
        _ => Err(Errno::EINVAL),
    }
}

fn clock_gettime(id: u64, to: u64) -> Outcome {
    user::write(to, &Timespec::from_ns(now(id)?))?;
    Ok(0)
}

/// The host keeps the time.
fn clock_settime(id: u64) -> Outcome {
    Err(if id == 0 { Errno::EPERM } else { Errno::EINVAL })
}

/// times(2): ticks of a hundredth of a second; all time is the program's own.
fn times(to: u64) -> Outcome {
    const TICK: u64 = SECOND / 100;
    if to != 0 {
        user::write(to, &[now(2)? / TICK, 0, 0, 0])?;
    }
    Ok(clock::monotonic_ns() / TICK)
}

fn clock_getres(id: u64, to: u64) -> Outcome {
    now(id)?;
    if to != 0 {
        user::write(to, &Timespec::from_ns(1))?;
    }
    Ok(0)
}

fn gettimeofday(to: u64) -> Outcome {
    let ns = clock::unix_ns();
    if to != 0 {
        user::write(to, &[ns / SECOND, ns % SECOND / 1000])?;
    }
    Ok(0)
}

fn time(to: u64) -> Outcome {
    let seconds = clock::unix_ns() / SECOND;
    if to != 0 {
        user::write(to, &seconds)?;
    }
    Ok(seconds)
}

fn arch_prctl(code: u64, argument: u64) -> Outcome {
    const SET_FS: u64 = 0x1002;
    const GET_FS: u64 = 0x1003;
    match code {
        SET_FS if argument < enclave_abi::layout::USER_END => {
            arch::set_fs_base(argument);
            Ok(0)
        }
        SET_FS => Err(Errno::EPERM),
        GET_FS => {
            user::write(argument, &arch::fs_base())?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn sysinfo(to: u64) -> Outcome {
    let mut info = [0u64; 14];
    info[0] = clock::uptime_us().div_ceil(1_000_000);
    info[4] = memory::total_bytes();
    info[5] = memory::free_bytes();
    info[10] = 1; // one process
    info[13] = 1; // sizes are in bytes
    user::write(to, &info)?;
    Ok(0)
}

/// Counters for [`enclave_abi::syscall::KERNEL_STATS`].
pub(super) fn served() -> u64 {
    super::SERVED.load(Ordering::Relaxed)
}
