//! Timer calls: alarm, setitimer, timer_create and their kin.
//!
//! Checks arguments as Linux does; [`crate::timers`] does the rest. Timers of CPU
//! time are not there: they would need a tick.

use enclave_core::errno::Errno;
use enclave_core::signal::known;
use enclave_core::signal::number::SIGALRM;
use enclave_core::timer::{Notice, Times};

use super::Outcome;
use super::misc::{SECOND, now};
use crate::{process, timers, user};

const MICROSECOND: u64 = 1000;
/// The clocks that go on while the program waits: realtime, monotonic, boottime.
const CLOCKS: [u64; 3] = [0, 1, 7];

/// Serves `nr` if it is a timer call; `None` otherwise.
pub(super) fn serve(nr: u64, a: [u64; 6]) -> Option<Outcome> {
    let id = a[0] as u32;
    Some(match nr {
        36 => getitimer(a[0], a[1]),
        37 => alarm(a[0]),
        38 => setitimer(a[0], a[1], a[2]),
        222 => timer_create(a[0], a[1], a[2]),
        223 => timer_settime(id, a[1], a[2], a[3]),
        224 => timer_gettime(id, a[1]),
        225 => process::with(|p| p.timers.overruns(id)),
        226 => {
            let deleted = process::with(|p| p.timers.delete(id));
            timers::arm();
            deleted.map(|()| 0)
        }
        _ => return None,
    })
}

/// Two times of two words each, interval first, in units of which `per_second` are
/// a second.
fn read_times(from: u64, per_second: u64) -> Result<Times, Errno> {
    let words: [u64; 4] = user::read(from)?;
    let time = |seconds: u64, rest: u64| {
        if seconds.cast_signed() < 0 || rest >= per_second {
            return Err(Errno::EINVAL);
        }
        let rest = rest * (SECOND / per_second);
        Ok(seconds.saturating_mul(SECOND).saturating_add(rest))
    };
    let [interval, interval_rest, left, left_rest] = words;
    Ok(Times {
        left: time(left, left_rest)?,
        interval: time(interval, interval_rest)?,
    })
}

fn write_times(to: u64, times: Times, per_second: u64) -> Outcome {
    let unit = SECOND / per_second;
    let [interval, left] = [times.interval, times.left].map(|ns| ns.div_ceil(unit));
    let words = [interval, left].map(|units| [units / per_second, units % per_second]);
    user::write(to, &words)?;
    Ok(0)
}

/// Of the three timers of setitimer(2) the one of real time is there.
fn real(which: u64) -> Result<(), Errno> {
    match which as u32 {
        0 => Ok(()),
        1 | 2 => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}

fn getitimer(which: u64, to: u64) -> Outcome {
    real(which)?;
    write_times(to, timers::get(None)?, SECOND / MICROSECOND)
}

fn setitimer(which: u64, from: u64, to: u64) -> Outcome {
    // As Linux: no address is a time of nothing.
    let times = match from {
        0 => Times::default(),
        from => read_times(from, SECOND / MICROSECOND)?,
    };
    real(which)?;
    let before = timers::set(None, times)?;
    if to == 0 {
        return Ok(0);
    }
    write_times(to, before, SECOND / MICROSECOND)
}

/// The seconds that were left, rounded, but at least one if there was a rest.
fn alarm(seconds: u64) -> Outcome {
    let times = Times {
        left: u64::from(seconds as u32) * SECOND,
        interval: 0,
    };
    let left = timers::set(None, times)?.left;
    let rounded = left.saturating_add(SECOND / 2) / SECOND;
    Ok(if left == 0 { 0 } else { rounded.max(1) })
}

/// What is to happen when it is due (sigevent(7)).
fn read_notice(from: u64, clock: u64) -> Result<Notice, Errno> {
    const TO_PROGRAM: u32 = 0;
    const NOTHING: u32 = 1;
    const TO_THREAD: u32 = 4;
    if from == 0 {
        return Ok(Notice {
            signal: SIGALRM,
            value: None,
            target: None,
            clock,
        });
    }
    let [value, numbers, thread]: [u64; 3] = user::read(from)?;
    let (signal, kind, tid) = (numbers as u32, (numbers >> 32) as u32, thread as u32);
    let target = match kind {
        TO_PROGRAM | NOTHING => None,
        TO_THREAD => {
            let is_there = process::with(|p| p.threads.has(tid));
            Some(is_there.then_some(tid).ok_or(Errno::EINVAL)?)
        }
        _ => return Err(Errno::EINVAL),
    };
    let signal = match kind {
        NOTHING => 0,
        _ => known(u64::from(signal))?,
    };
    Ok(Notice {
        signal,
        value: Some(value),
        target,
        clock,
    })
}

fn timer_create(clock: u64, from: u64, to: u64) -> Outcome {
    let clock = u64::from(clock as u32);
    if !CLOCKS.contains(&clock) {
        // Clocks that there are, but none that would wake anybody.
        now(clock)?;
        return Err(Errno::EOPNOTSUPP);
    }
    let notice = read_notice(from, clock)?;
    let id = process::with(|p| p.timers.make(notice))?;
    if let Err(errno) = user::write(to, &id) {
        process::with(|p| p.timers.delete(id))?;
        return Err(errno);
    }
    Ok(0)
}

fn timer_settime(id: u32, flags: u64, from: u64, to: u64) -> Outcome {
    const ABSTIME: u64 = 1;
    let mut times = read_times(from, SECOND)?;
    if flags & ABSTIME != 0 && times.left != 0 {
        let passed = now(process::with(|p| p.timers.clock(id))?)?;
        // What is over is due at once.
        times.left = times.left.saturating_sub(passed).max(1);
    }
    let before = timers::set(Some(id), times)?;
    if to == 0 {
        return Ok(0);
    }
    write_times(to, before, SECOND)
}

fn timer_gettime(id: u32, to: u64) -> Outcome {
    write_times(to, timers::get(Some(id))?, SECOND)
}
