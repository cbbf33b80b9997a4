//! [`Lock`]: one thread at a time at a heap's books.
//!
//! Used by [`super`]. Not the lock of the Linux backend: that one blocks signals
//! with two system calls, which an allocation should not cost. An allocation
//! in a signal handler is as forbidden as `malloc` is.

// UNSAFETY: a value behind a lock.
#![expect(unsafe_code)]

use crate::sys::syscall;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};
use linux_raw_sys::general as raw;

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
        let free = self
            .state
            .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        if free.is_err() {
            while self.state.swap(WANTED, Ordering::Acquire) != FREE {
                futex(&self.state, raw::FUTEX_WAIT, WANTED);
            }
        }
        // SAFETY: the lock is held until `f` has returned, and nobody else
        // makes a reference to the value. `f` does not unwind: a panic in
        // this library ends the program, or leaves the lock held for good.
        let result = f(unsafe { &mut *self.value.get() });
        if self.state.swap(FREE, Ordering::Release) == WANTED {
            futex(&self.state, raw::FUTEX_WAKE, 1);
        }
        result
    }

    /// Makes it free whoever held it: for the child of a fork.
    pub(super) fn break_open(&self) {
        self.state.store(FREE, Ordering::Release);
    }
}

/// Waits while the word has `value`, or wakes so many.
fn futex(word: &AtomicU32, operation: u32, value: u32) {
    let operation = u64::from(operation | raw::FUTEX_PRIVATE_FLAG);
    let at = word.as_ptr().expose_provenance() as u64;
    let args = [at, operation, u64::from(value), 0];
    // SAFETY: the call looks at a live word and writes nothing.
    let _ = unsafe { syscall(u64::from(raw::__NR_futex), args) };
}
