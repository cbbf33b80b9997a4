//! Signals: what a program said about each, which one is next, what it does.
//!
//! Called by the kernel's signal calls and by its way back to a program. The
//! kernel keeps the state and moves the bytes; here is decided what signal(7),
//! sigaction(2) and the x86-64 ABI say about them. Numbers are Linux's, 1 to 64,
//! sets are its words of 64 bits with signal 1 in bit 0. Promises: what is queued
//! is bounded ([`Budget`]), nothing a program sends panics, and no state that a
//! program hands back can make the processor refuse it.

mod alternate;
mod extended;
mod fault;
mod frame;
mod info;
mod pending;
mod restart;
#[cfg(test)]
mod tests;

pub use alternate::AltStack;
pub use extended::{LEGACY_BYTES, Layout, float_state, initial, mark, mxcsr_mask, restore};
pub use fault::{Fault, float_code, of_vector};
pub use frame::{Contents, FRAME_BYTES, FRAME_WORDS, Place, Registers, Restored, compose, place};
pub use info::{Info, code};
pub use pending::{Budget, MAX_QUEUED, Pending};
pub use restart::{Restart, Resume};

use crate::errno::Errno;

/// Number of signals.
pub const COUNT: usize = 64;
/// Signals that the kernel itself raises or treats apart.
pub mod number {
    #![expect(missing_docs, reason = "the names are those of signal(7)")]
    pub const SIGILL: u8 = 4;
    pub const SIGTRAP: u8 = 5;
    pub const SIGBUS: u8 = 7;
    pub const SIGFPE: u8 = 8;
    pub const SIGKILL: u8 = 9;
    pub const SIGSEGV: u8 = 11;
    pub const SIGPIPE: u8 = 13;
    pub const SIGALRM: u8 = 14;
    pub const SIGCHLD: u8 = 17;
    pub const SIGCONT: u8 = 18;
    pub const SIGSTOP: u8 = 19;
    pub const SIGURG: u8 = 23;
    pub const SIGWINCH: u8 = 28;
    pub const SIGSYS: u8 = 31;
    /// The first of those that queue.
    pub const SIGRTMIN: u8 = 32;
}
use number::{
    SIGBUS, SIGCHLD, SIGCONT, SIGFPE, SIGILL, SIGKILL, SIGSEGV, SIGSTOP, SIGSYS, SIGTRAP, SIGURG,
    SIGWINCH,
};

/// The handler that is none: what the signal does by default.
pub const SIG_DFL: u64 = 0;
/// The handler that is none: nothing.
pub const SIG_IGN: u64 = 1;

/// A flag of sigaction(2).
pub mod flag {
    #![expect(missing_docs, reason = "the names are those of sigaction(2)")]
    pub const SA_SIGINFO: u64 = 4;
    pub const SA_RESTORER: u64 = 0x0400_0000;
    pub const SA_ONSTACK: u64 = 0x0800_0000;
    pub const SA_RESTART: u64 = 0x1000_0000;
    pub const SA_NODEFER: u64 = 0x4000_0000;
    pub const SA_RESETHAND: u64 = 0x8000_0000;
}

/// The set that holds `signal` alone; none for a number that is no signal's.
#[must_use]
pub const fn bit(signal: u8) -> u64 {
    match signal {
        1..=64 => 1 << (signal - 1),
        _ => 0,
    }
}

/// What no mask blocks.
pub const UNBLOCKABLE: u64 = bit(SIGKILL) | bit(SIGSTOP);
/// What an instruction of the program itself raises: first in line.
const SYNCHRONOUS: u64 =
    bit(SIGSEGV) | bit(SIGBUS) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGFPE) | bit(SIGSYS);
/// What does nothing by default. The signals that stop a program are among them:
/// nobody could continue it.
const IGNORED: u64 = bit(SIGCHLD)
    | bit(SIGCONT)
    | bit(SIGSTOP)
    | bit(20)
    | bit(21)
    | bit(22)
    | bit(SIGURG)
    | bit(SIGWINCH);

/// The signal that a register names.
///
/// # Errors
/// `EINVAL` for a number that is no signal's.
pub fn known(number: u64) -> Result<u8, Errno> {
    match u8::try_from(number) {
        Ok(signal @ 1..=64) => Ok(signal),
        _ => Err(Errno::EINVAL),
    }
}

/// The mask after sigprocmask(2).
///
/// # Errors
/// `EINVAL` for an unknown `how`.
pub const fn mask_after(mask: u64, how: u64, set: u64) -> Result<u64, Errno> {
    let after = match how {
        0 => mask | set,
        1 => mask & !set,
        2 => set,
        _ => return Err(Errno::EINVAL),
    };
    Ok(after & !UNBLOCKABLE)
}

/// What a program wants to happen: the kernel's struct sigaction on x86-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action {
    /// Address of the handler, [`SIG_DFL`] or [`SIG_IGN`].
    pub handler: u64,
    /// `SA_…`, see [`flag`].
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// What is blocked meanwhile.
    pub mask: u64,
}

/// What becomes of a signal that is not blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing.
    Ignore,
    /// It ends the program.
    Terminate,
    /// Its handler is called.
    Call,
}

impl Action {
    /// From the words of the structure.
    #[must_use]
    pub const fn from_words([handler, flags, restorer, mask]: [u64; 4]) -> Self {
        Self {
            handler,
            flags,
            restorer,
            mask: mask & !UNBLOCKABLE,
        }
    }

    /// The words of the structure.
    #[must_use]
    pub const fn to_words(self) -> [u64; 4] {
        [self.handler, self.flags, self.restorer, self.mask]
    }

    /// What `signal` does.
    #[must_use]
    pub const fn disposition(&self, signal: u8) -> Disposition {
        match self.handler {
            SIG_DFL if bit(signal) & IGNORED != 0 => Disposition::Ignore,
            SIG_DFL => Disposition::Terminate,
            SIG_IGN => Disposition::Ignore,
            _ => Disposition::Call,
        }
    }

    /// Whether a flag is set.
    #[must_use]
    pub const fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// What is blocked while the handler of `signal` runs.
    #[must_use]
    pub const fn mask_inside(&self, mask: u64, signal: u8) -> u64 {
        let own = if self.has(flag::SA_NODEFER) {
            0
        } else {
            bit(signal)
        };
        (mask | self.mask | own) & !UNBLOCKABLE
    }
}

/// What a program said about every signal.
#[derive(Clone, Debug)]
pub struct Actions([Action; COUNT]);

impl Default for Actions {
    fn default() -> Self {
        Self([Action::default(); COUNT])
    }
}

impl Actions {
    /// What it said about `signal`; nothing about a number that is no signal's.
    #[must_use]
    pub fn of(&self, signal: u8) -> Action {
        let at = usize::from(signal).checked_sub(1);
        at.and_then(|n| self.0.get(n)).copied().unwrap_or_default()
    }

    /// Takes note of what it says now.
    pub fn set(&mut self, signal: u8, action: Action) {
        let at = usize::from(signal).checked_sub(1);
        if let Some(place) = at.and_then(|n| self.0.get_mut(n)) {
            *place = action;
        }
    }

    /// The action with which a handler of `signal` is to be called now; one that
    /// is called once only is gone after this.
    pub fn take(&mut self, signal: u8) -> Action {
        let action = self.of(signal);
        if action.has(flag::SA_RESETHAND) {
            let handler = SIG_DFL;
            self.set(signal, Action { handler, ..action });
        }
        action
    }

    /// For a signal that cannot wait: whoever blocks or ignores it is ended by it.
    pub fn force(&mut self, signal: u8, is_blocked: bool) {
        let action = self.of(signal);
        if is_blocked || action.handler == SIG_IGN {
            self.set(
                signal,
                Action {
                    handler: SIG_DFL,
                    ..action
                },
            );
        }
    }
}

/// The next signal of a set: those that an instruction raised first, then the
/// lowest number.
#[must_use]
pub fn first_of(set: u64) -> Option<u8> {
    let set = if set & SYNCHRONOUS != 0 {
        set & SYNCHRONOUS
    } else {
        set
    };
    // 64 without any.
    let below = u8::try_from(set.trailing_zeros()).ok()?;
    (set != 0).then_some(below + 1)
}
