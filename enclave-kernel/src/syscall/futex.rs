//! Waiting: futex, nanosleep, clock_nanosleep.
//!
//! The queues are those of `enclave-core/thread`. A wait is the last thing its
//! system call does: the call is answered when the thread runs again.

use enclave_abi::layout::USER_END;
use enclave_core::errno::Errno;
use enclave_core::signal::Restart;
use enclave_core::thread::{Wait, WakeOp};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Outcome;
use super::misc::{SECOND, now};
use crate::arch::TrapFrame;
use crate::{clock, process, signals, threads, user};

const CLOCK_REALTIME: u64 = 0;
const CLOCK_MONOTONIC: u64 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: u64,
}

/// nanosleep, futex, clock_nanosleep.
pub(super) fn serve(nr: u64, a: [u64; 6], frame: &mut TrapFrame) -> Outcome {
    match nr {
        35 => sleep(relative(a[0])?, Restart::Timed, frame),
        230 => clock_nanosleep(a, frame),
        _ => futex(a, frame),
    }
}

pub(super) fn read_time(from: u64) -> Result<u64, Errno> {
    let time: Timespec = user::read(from)?;
    let seconds = u64::try_from(time.seconds).map_err(|_| Errno::EINVAL)?;
    if time.nanoseconds >= SECOND {
        return Err(Errno::EINVAL);
    }
    Ok(seconds
        .saturating_mul(SECOND)
        .saturating_add(time.nanoseconds))
}

/// The deadline that a time from now means, or from when the call first began.
pub(super) fn relative(from: u64) -> Result<u64, Errno> {
    let time = read_time(from)?;
    Ok(signals::resumed_end().unwrap_or_else(|| clock::monotonic_ns().saturating_add(time)))
}

/// The deadline that a time of clock `id` means.
fn absolute(id: u64, from: u64) -> Result<u64, Errno> {
    let left = read_time(from)?.saturating_sub(now(id)?);
    Ok(clock::monotonic_ns().saturating_add(left))
}

fn sleep(deadline: u64, broken: Restart, frame: &mut TrapFrame) -> Outcome {
    let wait = Wait {
        futex: None,
        deadline: Some(deadline),
        late: 0,
        broken: broken.to_answer(false),
    };
    Ok(threads::block(frame, wait))
}

fn clock_nanosleep([id, flags, from, ..]: [u64; 6], frame: &mut TrapFrame) -> Outcome {
    const ABSTIME: u64 = 1;
    const THREAD_CPUTIME: u64 = 3;
    if id == THREAD_CPUTIME {
        return Err(Errno::EOPNOTSUPP);
    }
    now(id)?;
    if flags & ABSTIME != 0 {
        sleep(absolute(id, from)?, Restart::Never, frame)
    } else {
        sleep(relative(from)?, Restart::Timed, frame)
    }
}

fn futex([word, op, value, timeout, second, code]: [u64; 6], frame: &mut TrapFrame) -> Outcome {
    const COMMAND: u64 = 0x7f;
    const REALTIME: u64 = 0x100;
    let clock_id = if op & REALTIME != 0 {
        CLOCK_REALTIME
    } else {
        CLOCK_MONOTONIC
    };
    // Registers hold 32-bit arguments, with whatever above them.
    let [value, code, third] = [value, code, timeout].map(|word| word as u32);
    check(word)?;
    match op & COMMAND {
        0 => {
            let deadline = deadline(timeout, relative)?;
            wait(word, value, u32::MAX, deadline, frame)
        }
        9 => {
            let deadline = deadline(timeout, |from| absolute(clock_id, from))?;
            wait(word, value, code, deadline, frame)
        }
        1 => wake(word, u32::MAX, value),
        10 => wake(word, code, value),
        3 => requeue(word, second, value, third),
        4 => {
            if user::read::<u32>(word)? != code {
                return Err(Errno::EAGAIN);
            }
            requeue(word, second, value, third)
        }
        5 => wake_op(word, second, value, third, code),
        _ => Err(Errno::ENOSYS),
    }
}

fn check(word: u64) -> Result<(), Errno> {
    if !word.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    if word >= USER_END {
        return Err(Errno::EFAULT);
    }
    Ok(())
}

fn deadline(
    from: u64,
    meaning: impl FnOnce(u64) -> Result<u64, Errno>,
) -> Result<Option<u64>, Errno> {
    if from == 0 {
        return Ok(None);
    }
    meaning(from).map(Some)
}

fn wait(
    word: u64,
    expected: u32,
    mask: u32,
    deadline: Option<u64>,
    frame: &mut TrapFrame,
) -> Outcome {
    if mask == 0 {
        return Err(Errno::EINVAL);
    }
    if user::read::<u32>(word)? != expected {
        return Err(Errno::EAGAIN);
    }
    let wait = Wait {
        futex: Some((word, mask)),
        deadline,
        late: Errno::ETIMEDOUT.to_result(),
        broken: match deadline {
            None => Restart::IfWanted.to_answer(false),
            Some(_) => Restart::Timed.to_answer(false),
        },
    };
    Ok(threads::block(frame, wait))
}

/// As Linux: at least one.
fn count(value: u32) -> usize {
    usize::try_from(value.cast_signed()).unwrap_or(0).max(1)
}

fn wake(word: u64, mask: u32, max: u32) -> Outcome {
    if mask == 0 {
        return Err(Errno::EINVAL);
    }
    Ok(process::with(|p| p.threads.wake(word, mask, count(max))) as u64)
}

/// Wakes one waiter of a word, if there is one.
pub(super) fn wake_one(word: u64) {
    process::with(|p| p.threads.wake(word, u32::MAX, 1));
}

fn requeue(from: u64, to: u64, wake: u32, most: u32) -> Outcome {
    check(to)?;
    let (Ok(wake), Ok(most)) = (
        usize::try_from(wake.cast_signed()),
        usize::try_from(most.cast_signed()),
    ) else {
        return Err(Errno::EINVAL);
    };
    Ok(process::with(|p| p.threads.requeue(from, to, wake, most)) as u64)
}

fn wake_op(first: u64, second: u64, max: u32, max_second: u32, code: u32) -> Outcome {
    check(second)?;
    let op = WakeOp::new(code)?;
    let old = user::update_word(second, |word| Some(op.apply(word)))?;
    let mut woken = process::with(|p| p.threads.wake(first, u32::MAX, count(max)));
    if op.holds(old) {
        woken += process::with(|p| p.threads.wake(second, u32::MAX, count(max_second)));
    }
    Ok(woken as u64)
}
