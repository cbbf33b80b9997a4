//! Time, futexes and what else a program asks at start-up.

use core::sync::atomic::Ordering;

use enclave_abi::boot::MAX_EXTENTS;
use enclave_core::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Outcome;
use crate::{arch, boot, clock, host, memory, process, user};

/// Process id of the one program.
pub(super) const PID: u64 = 2;
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
        35 => nanosleep(0, a[0]),
        96 => gettimeofday(a[0]),
        100 => times(a[0]),
        99 => sysinfo(a[0]),
        158 => arch_prctl(a[0], a[1]),
        186 | 218 => Ok(PID), // gettid, set_tid_address
        201 => time(a[0]),
        202 => futex(a),
        227 => clock_settime(a[0]),
        228 => clock_gettime(a[0], a[1]),
        229 => clock_getres(a[0], a[1]),
        230 => clock_nanosleep(a),
        61 | 247 => Err(Errno::ECHILD), // wait4, waitid: no children
        273 => Ok(0),                   // set_robust_list: one thread
        334 => Err(Errno::ENOSYS),      // rseq: every libc asks and does without
        _ => return None,
    };
    Some(outcome)
}

pub(super) fn now(clock_id: u64) -> Result<u64, Errno> {
    match clock_id {
        0 | 5 | 11 => Ok(clock::unix_ns()),
        1 | 4 | 6 | 7 => Ok(clock::monotonic_ns()),
        // Processor time: the program has its core to itself.
        2 | 3 => Ok(clock::monotonic_ns() - process::with(|p| p.started_ns)),
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

/// Sleeps on the host, which can be interrupted when the program is killed.
/// `base` is what an absolute time is relative to.
fn nanosleep(base: u64, from: u64) -> Outcome {
    let wanted: Timespec = user::read(from)?;
    if wanted.nanoseconds >= SECOND || wanted.seconds.cast_signed() < 0 {
        return Err(Errno::EINVAL);
    }
    let ns = wanted
        .seconds
        .saturating_mul(SECOND)
        .saturating_add(wanted.nanoseconds);
    sleep_ns(ns.saturating_sub(base))
}

fn sleep_ns(ns: u64) -> Outcome {
    let value = host::forward(35, [ns, 0, 0, 0, 0], 0);
    if value < 0 { Err(Errno::EINTR) } else { Ok(0) }
}

fn clock_nanosleep([id, flags, from, ..]: [u64; 6]) -> Outcome {
    const ABSTIME: u64 = 1;
    const THREAD_CPUTIME: u64 = 3;
    if id == THREAD_CPUTIME {
        return Err(Errno::EOPNOTSUPP);
    }
    let base = now(id)?;
    nanosleep(if flags & ABSTIME != 0 { base } else { 0 }, from)
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

/// One thread: a wake finds nobody, a wait either fails at once or lasts until
/// its timeout (for ever without one: interruptible by a kill only).
fn futex([word, op, value, timeout, _, bits]: [u64; 6]) -> Outcome {
    const COMMAND: u64 = 0x7f;
    const WAIT: u64 = 0;
    const WAKE: u64 = 1;
    const WAIT_BITSET: u64 = 9;
    const WAKE_BITSET: u64 = 10;
    match op & COMMAND {
        WAKE | WAKE_BITSET => Ok(0),
        command @ (WAIT | WAIT_BITSET) => {
            if !word.is_multiple_of(4) || (command == WAIT_BITSET && bits & 0xffff_ffff == 0) {
                return Err(Errno::EINVAL);
            }
            let current: u32 = user::read(word)?;
            if u64::from(current) != value & 0xffff_ffff {
                return Err(Errno::EAGAIN);
            }
            if timeout == 0 {
                return sleep_ns(u64::MAX);
            }
            let base = if command == WAIT_BITSET {
                clock::monotonic_ns()
            } else {
                0
            };
            nanosleep(base, timeout)?;
            Err(Errno::ETIMEDOUT)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn sysinfo(to: u64) -> Outcome {
    let total: u64 = boot::info()
        .extents
        .iter()
        .take(MAX_EXTENTS)
        .map(|extent| extent.len_bytes)
        .sum();
    let mut info = [0u64; 14];
    info[0] = clock::uptime_us().div_ceil(1_000_000);
    info[4] = total;
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
