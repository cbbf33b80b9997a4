//! Signals as far as start-up, abort and death need them.
//!
//! Handlers and masks are kept and given back, and signals a program sends to
//! itself act by default: terminate or ignore, at once or when they are unblocked. A handler is not called in this
//! version: a signal that has one ends the program with a report that says so.

use alloc::format;
use alloc::string::ToString;

use enclave_core::errno::Errno;
use enclave_core::thread::Tid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::misc::PID;
use super::{Outcome, scheduling};
use crate::{process, threads, user};

const NR_SIGNALS: usize = 64;
const SIGKILL: u64 = 9;
const SIGSTOP: u64 = 19;
/// What no mask blocks.
const UNBLOCKABLE: u64 = 1 << (SIGKILL - 1) | 1 << (SIGSTOP - 1);
/// Least bytes of an alternate stack (MINSIGSTKSZ).
const LEAST_STACK: u64 = 2048;
const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;

/// The kernel's struct sigaction on x86-64.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

/// Alternate signal stack (stack_t).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct AltStack {
    base: u64,
    flags: u64,
    size: u64,
}

/// There is no alternate stack.
const SS_DISABLE: u64 = 2;

/// Handlers of a program.
#[derive(Clone, Debug)]
pub(crate) struct Signals {
    actions: [Action; NR_SIGNALS],
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            actions: [Action::default(); NR_SIGNALS],
        }
    }
}

/// Mask and alternate stack of a thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadSignals {
    mask: u64,
    /// Raised while they were blocked.
    pending: u64,
    alt: AltStack,
}

impl Default for ThreadSignals {
    fn default() -> Self {
        Self {
            mask: 0,
            pending: 0,
            alt: AltStack {
                base: 0,
                flags: SS_DISABLE,
                size: 0,
            },
        }
    }
}

impl ThreadSignals {
    /// Those of a thread that this one's thread makes.
    pub(crate) fn of_new_thread(&self) -> Self {
        Self {
            mask: self.mask,
            ..Self::default()
        }
    }
}

fn index(signal: u64) -> Result<usize, Errno> {
    match usize::try_from(signal) {
        Ok(n @ 1..=NR_SIGNALS) => Ok(n - 1),
        _ => Err(Errno::EINVAL),
    }
}

/// rt_sigaction(2).
pub(super) fn rt_sigaction([signal, new, old, size, ..]: [u64; 6]) -> Outcome {
    let n = index(signal)?;
    if size != 8 || (new != 0 && (signal == SIGKILL || signal == SIGSTOP)) {
        return Err(Errno::EINVAL);
    }
    let wanted: Option<Action> = if new == 0 {
        None
    } else {
        Some(user::read(new)?)
    };
    let before = process::with(|p| p.signals.actions[n]);
    if old != 0 {
        user::write(old, &before)?;
    }
    if let Some(action) = wanted {
        process::with(|p| p.signals.actions[n] = action);
    }
    Ok(0)
}

/// rt_sigprocmask(2).
pub(super) fn rt_sigprocmask([how, new, old, size, ..]: [u64; 6]) -> Outcome {
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let wanted: Option<u64> = if new == 0 {
        None
    } else {
        Some(user::read(new)?)
    };
    let before = threads::with(|t| t.signals.mask);
    let after = match (wanted, how) {
        (None, _) => before,
        (Some(set), 0) => before | set,
        (Some(set), 1) => before & !set,
        (Some(set), 2) => set,
        _ => return Err(Errno::EINVAL),
    };
    if old != 0 {
        user::write(old, &before)?;
    }
    let mut due = threads::with(|t| {
        t.signals.mask = after & !UNBLOCKABLE;
        let due = t.signals.pending & !t.signals.mask;
        t.signals.pending &= t.signals.mask;
        due
    });
    while due != 0 {
        raise(u64::from(due.trailing_zeros()) + 1)?;
        due &= due - 1;
    }
    Ok(0)
}

/// rt_sigpending(2).
pub(super) fn rt_sigpending(to: u64, size: u64) -> Outcome {
    if size > 8 {
        return Err(Errno::EINVAL);
    }
    let pending = threads::with(|t| t.signals.pending);
    user::write(to, &pending)?;
    Ok(0)
}

/// sigaltstack(2).
pub(super) fn sigaltstack(new: u64, old: u64) -> Outcome {
    let wanted: Option<AltStack> = if new == 0 {
        None
    } else {
        Some(user::read(new)?)
    };
    if let Some(alt) = wanted {
        if alt.flags & !SS_DISABLE != 0 {
            return Err(Errno::EINVAL);
        }
        if alt.flags == 0 && alt.size < LEAST_STACK {
            return Err(Errno::ENOMEM);
        }
    }
    if old != 0 {
        let before = threads::with(|t| t.signals.alt);
        user::write(old, &before)?;
    }
    if let Some(alt) = wanted {
        threads::with(|t| t.signals.alt = alt);
    }
    Ok(0)
}

/// kill(2): only the program itself is there.
pub(super) fn kill(pid: u64, signal: u64) -> Outcome {
    let own_group = 0u64.wrapping_sub(PID);
    if pid != PID && pid != 0 && pid != own_group && pid != u64::MAX {
        return Err(Errno::ESRCH);
    }
    raise(signal)
}

/// tgkill(2).
pub(super) fn tgkill(pid: u64, tid: u64, signal: u64) -> Outcome {
    if pid as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    if pid != PID {
        return Err(Errno::ESRCH);
    }
    tkill(tid, signal)
}

/// tkill(2). What a signal does by default it does to the whole program.
pub(super) fn tkill(tid: u64, signal: u64) -> Outcome {
    if tid as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let tid = scheduling::known(tid)?;
    raise_in(tid, signal)
}

/// Signals whose default is to be ignored: CHLD, CONT, URG, WINCH, and the
/// stop signals, because nobody could continue the program.
fn ignored_by_default(signal: u64) -> bool {
    matches!(signal, 17 | 18 | 19 | 20 | 21 | 22 | 23 | 28)
}

/// Acts on a signal that the program caused: terminates it, or nothing.
pub(super) fn raise(signal: u64) -> Outcome {
    raise_in(threads::current(), signal)
}

/// The same for the signal of one thread, which may block it.
fn raise_in(tid: Tid, signal: u64) -> Outcome {
    if signal == 0 {
        return Ok(0);
    }
    let n = index(signal)?;
    let (handler, is_blocked) = process::with(|p| {
        let handler = p.signals.actions[n].handler;
        let Some(thread) = p.threads.context(tid) else {
            return (handler, false);
        };
        let is_blocked = thread.signals.mask & 1 << n != 0;
        thread.signals.pending |= u64::from(is_blocked) << n;
        (handler, is_blocked)
    });
    if is_blocked {
        return Ok(0);
    }
    let number = u8::try_from(signal).map_err(|_| Errno::EINVAL)?;
    match handler {
        SIG_IGN => Ok(0),
        SIG_DFL if ignored_by_default(signal) => Ok(0),
        SIG_DFL => process::end_by_signal(number, "raised by the program itself".to_string()),
        handler => process::end_by_signal(
            number,
            format!("raised by the program itself; its handler {handler:#x} is not called"),
        ),
    }
}
