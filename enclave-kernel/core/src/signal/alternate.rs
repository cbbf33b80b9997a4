//! The alternate stack of a thread (sigaltstack(2)).

use crate::errno::Errno;

/// The thread runs on it.
const SS_ONSTACK: u64 = 1;
/// There is none.
const SS_DISABLE: u64 = 2;
/// It is none as long as a handler runs on it.
const SS_AUTODISARM: u64 = 1 << 31;
/// Least bytes (MINSIGSTKSZ).
const LEAST: u64 = 2048;

/// An alternate stack; none if it has no bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AltStack {
    base: u64,
    size: u64,
    auto_disarm: bool,
}

impl AltStack {
    /// From the words of a stack_t: base, flags (an int), size.
    ///
    /// # Errors
    /// `EINVAL` for unknown flags, `ENOMEM` for too small a stack.
    pub const fn from_words([base, flags, size]: [u64; 3]) -> Result<Self, Errno> {
        let flags = flags & 0xffff_ffff;
        match flags & !SS_AUTODISARM {
            SS_DISABLE => Ok(Self {
                base: 0,
                size: 0,
                auto_disarm: flags & SS_AUTODISARM != 0,
            }),
            0 | SS_ONSTACK if size < LEAST => Err(Errno::ENOMEM),
            0 | SS_ONSTACK => Ok(Self {
                base,
                size,
                auto_disarm: flags & SS_AUTODISARM != 0,
            }),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The words of a stack_t for a thread whose stack pointer is `rsp`.
    #[must_use]
    pub const fn to_words(self, rsp: u64) -> [u64; 3] {
        let state = if self.size == 0 {
            SS_DISABLE
        } else if self.is_in_use(rsp) {
            SS_ONSTACK
        } else {
            0
        };
        let disarm = if self.auto_disarm { SS_AUTODISARM } else { 0 };
        [self.base, state | disarm, self.size]
    }

    /// Whether `rsp` lies on it.
    #[must_use]
    pub const fn holds(self, rsp: u64) -> bool {
        rsp > self.base && rsp - self.base <= self.size
    }

    /// Whether a thread with this stack pointer uses it. One that disarms itself
    /// is never in use: while it is, it is none.
    #[must_use]
    pub const fn is_in_use(self, rsp: u64) -> bool {
        !self.auto_disarm && self.holds(rsp)
    }

    /// Where a handler's frames begin that asks for it; `None` when the thread
    /// with stack pointer `rsp` has none or is on it already.
    #[must_use]
    pub const fn top(self, rsp: u64) -> Option<u64> {
        if self.size == 0 || self.is_in_use(rsp) {
            None
        } else {
            Some(self.base.wrapping_add(self.size))
        }
    }

    /// What is left of it when a handler is called.
    #[must_use]
    pub fn when_entered(self) -> Self {
        if self.auto_disarm {
            Self::default()
        } else {
            self
        }
    }
}
