//! Calls that a signal interrupts: what they answer, or that they begin anew.
//!
//! As in Linux, such a call answers a number that no program ever sees. On the
//! way back it becomes EINTR, or the call begins anew, which depends on whether
//! a handler is called and what its action says.

use crate::errno::Errno;
use enclave_abi::syscall::BASE;

/// First of the numbers.
const FIRST: u64 = 0u64.wrapping_sub(519);
/// Set in the number when the frame stands at the call again already.
const BACK: u64 = 4;

/// How an interrupted call goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// A handler with SA_RESTART lets it begin anew, another ends it.
    IfWanted,
    /// Any handler ends it.
    Never,
    /// Any handler ends it; it has a time that goes on if it begins anew.
    Timed,
    /// It begins anew, whatever is called.
    Always,
}

/// What an interrupted call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It begins anew.
    Again,
    /// It answers EINTR.
    Interrupted,
}

impl Restart {
    /// The answer that says so. `is_back`: the frame stands at the call, not
    /// behind it.
    #[must_use]
    pub const fn to_answer(self, is_back: bool) -> u64 {
        let number = match self {
            Self::IfWanted => 0,
            Self::Never => 1,
            Self::Timed => 2,
            Self::Always => 3,
        };
        FIRST + number + if is_back { BACK } else { 0 }
    }

    /// What an answer says, and whether the frame stands at the call.
    #[must_use]
    pub const fn from_answer(answer: u64) -> Option<(Self, bool)> {
        let number = answer.wrapping_sub(FIRST);
        let restart = match number & 3 {
            0 => Self::IfWanted,
            1 => Self::Never,
            2 => Self::Timed,
            _ => Self::Always,
        };
        if number < 2 * BACK {
            Some((restart, number & BACK != 0))
        } else {
            None
        }
    }

    /// The same as an errno, on its way through the calls.
    pub fn to_errno(self) -> Errno {
        Errno::from_result(self.to_answer(false)).unwrap_or(Errno::EINTR)
    }

    /// What happens: `restarts` is whether the handler that is called has
    /// SA_RESTART, `None` when none is.
    #[must_use]
    pub const fn resume(self, restarts: Option<bool>) -> Resume {
        match (self, restarts) {
            (_, None) | (Self::Always, _) | (Self::IfWanted, Some(true)) => Resume::Again,
            _ => Resume::Interrupted,
        }
    }

    /// How a call that the host began and could not end goes on, by its number.
    #[must_use]
    pub const fn of_call(number: u64) -> Self {
        match number {
            // poll, select, pselect6, ppoll, epoll_wait: signal(7).
            7 | 23 | 232 | 270 | 271 | 281 => Self::Never,
            35 | 230 => Self::Timed,
            // Calls of our own that wait.
            BASE.. => Self::Never,
            _ => Self::IfWanted,
        }
    }
}
