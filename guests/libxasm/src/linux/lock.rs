//! [`Lock`]: exclusion that a signal handler may use.
//!
//! Guards the arenas and the connection. While it is held, all signals of the
//! thread are blocked: a handler that writes to an arena would otherwise fault,
//! and wait for the lock of the very thread it interrupted. Waiting is a futex,
//! so that a thread which is not running costs the others no time.

// UNSAFETY: a value behind a lock.
#![expect(unsafe_code)]

use super::os;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and others may wait.
const WANTED: u32 = 2;

/// A value that one thread at a time uses.
#[derive(Debug)]
pub(super) struct Lock<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: `with` lets one thread at a time at the value.
unsafe impl<T: Send> Sync for Lock<T> {}

/// Gives the lock back, and the signals.
struct Held<'a> {
    state: &'a AtomicU32,
    blocked_before: os::SignalSet,
}

impl<T> Lock<T> {
    /// A free lock.
    pub(super) const fn new(value: T) -> Self {
        Self {
            state: AtomicU32::new(FREE),
            value: UnsafeCell::new(value),
        }
    }

    /// Runs `f` on the value, alone; it must not ask for this lock again.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let _held = self.take();
        // SAFETY: the lock is held until after `f` has returned, and nobody
        // else makes a reference to the value.
        f(unsafe { &mut *self.value.get() })
    }

    /// Makes it free whoever held it: for the child of a fork, which has only
    /// one thread, and that is here.
    pub(super) fn break_open(&self) {
        self.state.store(FREE, Ordering::Release);
    }

    fn take(&self) -> Held<'_> {
        let held = Held {
            blocked_before: os::set_blocked_signals(os::SignalSet::MAX),
            state: &self.state,
        };
        let free = self
            .state
            .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        if free.is_err() {
            self.wait();
        }
        held
    }

    #[cold]
    fn wait(&self) {
        /// What a copy of 4 KiB takes, about.
        const SPINS: u32 = 200;
        for _ in 0..SPINS {
            core::hint::spin_loop();
            let state = self.state.load(Ordering::Relaxed);
            if state == FREE
                && self
                    .state
                    .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return;
            }
        }
        while self.state.swap(WANTED, Ordering::Acquire) != FREE {
            os::futex_wait(&self.state, WANTED);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.state.swap(FREE, Ordering::Release) == WANTED {
            os::futex_wake(self.state);
        }
        os::set_blocked_signals(self.blocked_before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_is_let_in() {
        static LOCK: Lock<u64> = Lock::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        LOCK.with(|value| {
                            let seen = core::hint::black_box(*value);
                            *value = seen + 1;
                        });
                    }
                });
            }
        });
        assert_eq!(LOCK.with(|value| *value), 80_000);
    }

    #[test]
    fn signals_are_blocked_inside_and_as_before_outside() {
        static LOCK: Lock<()> = Lock::new(());
        let blocked = || {
            let now = os::set_blocked_signals(0);
            os::set_blocked_signals(now);
            now
        };
        let before = blocked();
        let inside = LOCK.with(|()| blocked());
        // Two cannot be blocked: SIGKILL and SIGSTOP.
        assert_eq!(inside | 1 << 8 | 1 << 18, u64::MAX);
        assert_eq!(blocked(), before);
    }
}
