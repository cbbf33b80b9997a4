//! Signal calls: actions, masks, sending, waiting, coming back from a handler.
//!
//! Each checks its arguments as Linux does and leaves the rest to
//! [`crate::signals`].

use enclave_core::errno::Errno;
use enclave_core::signal::number::{SIGKILL, SIGSTOP};
use enclave_core::signal::{Action, AltStack, Disposition, Info, code, known, mask_after};

use super::{Outcome, futex, scheduling};
use crate::arch::TrapFrame;
use crate::signals::{self, Target};
use crate::{process, threads, user};

/// Bytes of a set.
const SET_BYTES: u64 = 8;

/// Serves `nr` if it is a signal call; `None` otherwise. The answer is that of
/// the thread that `frame` is then about.
pub(super) fn serve(nr: u64, a: [u64; 6], frame: &mut TrapFrame) -> Option<Outcome> {
    Some(match nr {
        13 => rt_sigaction(a),
        14 => rt_sigprocmask(a),
        15 => Ok(rt_sigreturn(frame)),
        34 => signals::suspend(None, frame), // pause
        62 => kill(a[0], a[1]),
        127 => rt_sigpending(a[0], a[1]),
        128 => rt_sigtimedwait(a, frame),
        129 => rt_sigqueueinfo(a[0], a[1], a[2]),
        130 => rt_sigsuspend(a[0], a[1], frame),
        131 => sigaltstack(a[0], a[1], frame),
        200 => tkill(a[0], a[1]),
        234 => tgkill(a[0], a[1], a[2]),
        297 => rt_tgsigqueueinfo(a),
        _ => return None,
    })
}

fn read_optional<const N: usize>(from: u64) -> Result<Option<[u64; N]>, Errno> {
    if from == 0 {
        return Ok(None);
    }
    let mut words = [0; N];
    user::copy_in(from, zerocopy::IntoBytes::as_mut_bytes(&mut words))?;
    Ok(Some(words))
}

fn rt_sigaction([signal, new, old, size, ..]: [u64; 6]) -> Outcome {
    if size != SET_BYTES {
        return Err(Errno::EINVAL);
    }
    let wanted = read_optional(new)?.map(Action::from_words);
    let signal = known(signal)?;
    if wanted.is_some() && (signal == SIGKILL || signal == SIGSTOP) {
        return Err(Errno::EINVAL);
    }
    let before = process::with(|p| {
        let before = p.signals.actions.of(signal);
        if let Some(action) = wanted {
            p.signals.actions.set(signal, action);
            if action.disposition(signal) == Disposition::Ignore {
                signals::forget(p, signal);
            }
        }
        before
    });
    if old != 0 {
        user::write(old, &before.to_words())?;
    }
    Ok(0)
}

fn rt_sigprocmask([how, new, old, size, ..]: [u64; 6]) -> Outcome {
    if size != SET_BYTES {
        return Err(Errno::EINVAL);
    }
    let before = signals::mask();
    if let Some([set]) = read_optional(new)? {
        signals::set_mask(mask_after(before, how, set)?);
    }
    if old != 0 {
        user::write(old, &before)?;
    }
    Ok(0)
}

/// Goes on where a handler was called; without a frame that says where, as Linux:
/// with SIGSEGV.
fn rt_sigreturn(frame: &mut TrapFrame) -> u64 {
    if signals::give_back(frame).is_err() {
        signals::force_segv();
    }
    frame.rax
}

fn rt_sigpending(to: u64, size: u64) -> Outcome {
    if size > SET_BYTES {
        return Err(Errno::EINVAL);
    }
    let pending = signals::pending() & signals::mask();
    user::write(to, &pending)?;
    Ok(0)
}

fn rt_sigsuspend(from: u64, size: u64, frame: &mut TrapFrame) -> Outcome {
    if size != SET_BYTES {
        return Err(Errno::EINVAL);
    }
    let wanted: u64 = user::read(from)?;
    signals::suspend(Some(wanted), frame)
}

fn rt_sigtimedwait([from, info_to, timeout, size, ..]: [u64; 6], frame: &mut TrapFrame) -> Outcome {
    if size != SET_BYTES {
        return Err(Errno::EINVAL);
    }
    let set: u64 = user::read(from)?;
    let deadline = match timeout {
        0 => None,
        from => match futex::read_time(from)? {
            0 => Some(0),
            _ => Some(futex::relative(from)?),
        },
    };
    signals::timed_wait(set, info_to, deadline, frame)
}

fn sigaltstack(new: u64, old: u64, frame: &TrapFrame) -> Outcome {
    let before = signals::alt_stack();
    if let Some(words) = read_optional(new)? {
        if before.is_in_use(frame.rsp) {
            return Err(Errno::EPERM);
        }
        signals::set_alt_stack(AltStack::from_words(words)?);
    }
    if old != 0 {
        let [base, flags, size] = before.to_words(frame.rsp);
        user::write(old, &[base, flags, size])?;
    }
    Ok(0)
}

/// A signal number that may be 0: nothing but a look whether somebody is there.
fn wanted(signal: u64) -> Result<Option<u8>, Errno> {
    match signal as u32 {
        0 => Ok(None),
        number => known(u64::from(number)).map(Some),
    }
}

fn sent(signal: u8, code: i32) -> Info {
    Info::sent(signal, code, process::pid() as u32, 0)
}

/// kill(2): only the program itself is there.
fn kill(pid: u64, signal: u64) -> Outcome {
    let own_group = 0u64.wrapping_sub(process::pid());
    let pid = i64::from(pid as i32).cast_unsigned();
    if pid != process::pid() && pid != 0 && pid != own_group && pid != u64::MAX {
        return Err(Errno::ESRCH);
    }
    if let Some(signal) = wanted(signal)? {
        signals::send(Target::Program, sent(signal, code::SI_USER))?;
    }
    Ok(0)
}

fn tgkill(pid: u64, tid: u64, signal: u64) -> Outcome {
    if pid as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    if pid != process::pid() {
        return Err(Errno::ESRCH);
    }
    tkill(tid, signal)
}

fn tkill(tid: u64, signal: u64) -> Outcome {
    if tid as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let tid = scheduling::known(tid)?;
    if let Some(signal) = wanted(signal)? {
        signals::send(Target::Thread(tid), sent(signal, code::SI_TKILL))?;
    }
    Ok(0)
}

/// What a program itself says about a signal.
fn told(signal: u64, from: u64) -> Result<Option<Info>, Errno> {
    let words: [u64; Info::WORDS] = user::read(from)?;
    let Some(signal) = wanted(signal)? else {
        return Ok(None);
    };
    Info::from_words(signal, &words)
        .ok_or(Errno::E2BIG)
        .map(Some)
}

fn rt_sigqueueinfo(pid: u64, signal: u64, from: u64) -> Outcome {
    let info = told(signal, from)?;
    if pid != process::pid() {
        return Err(Errno::ESRCH);
    }
    if let Some(info) = info {
        signals::send(Target::Program, info)?;
    }
    Ok(0)
}

fn rt_tgsigqueueinfo([pid, tid, signal, from, ..]: [u64; 6]) -> Outcome {
    let info = told(signal, from)?;
    if pid as i32 <= 0 || tid as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    if pid != process::pid() {
        return Err(Errno::ESRCH);
    }
    let tid = scheduling::known(tid)?;
    if let Some(info) = info {
        signals::send(Target::Thread(tid), info)?;
    }
    Ok(0)
}

/// Sends the running thread a signal that a call of its own caused.
pub(super) fn raise(signal: u8) {
    // An ordinary signal always finds a place.
    let _ = signals::send(
        Target::Thread(threads::current()),
        sent(signal, code::SI_USER),
    );
}
