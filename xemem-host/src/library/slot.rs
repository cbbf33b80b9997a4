//! One value per process, however often it forks.
//!
//! A child finds its parent's value with the parent's process id in it, leaves
//! it alone and makes its own: a lock that some thread of the parent held at
//! fork(2) is never waited for. What the parent had is not freed in the child,
//! because it may have been in the middle of a change.

// UNSAFETY: a pointer that many threads read.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicPtr, Ordering};
use std::sync::Mutex;

/// Where the value of the present process is, once somebody asked for it.
#[derive(Debug)]
pub struct PerProcess<T: 'static>(AtomicPtr<Slot<T>>);

#[derive(Debug)]
struct Slot<T> {
    pid: u32,
    value: Mutex<T>,
}

impl<T: Default> PerProcess<T> {
    /// No value yet, in any process.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for statics only")]
    pub const fn new() -> Self {
        Self(AtomicPtr::new(core::ptr::null_mut()))
    }

    /// The value of the calling process.
    pub fn get(&self) -> &'static Mutex<T> {
        let pid = std::process::id();
        let mut found = self.0.load(Ordering::Acquire);
        loop {
            // SAFETY: null, or leaked below and never freed.
            match unsafe { found.as_ref() } {
                Some(slot) if slot.pid == pid => return &slot.value,
                _ => {}
            }
            let value = Mutex::new(T::default());
            let fresh = Box::into_raw(Box::new(Slot { pid, value }));
            let order = (Ordering::AcqRel, Ordering::Acquire);
            match self.0.compare_exchange(found, fresh, order.0, order.1) {
                Ok(_) => found = fresh,
                Err(other) => {
                    // SAFETY: made above, and nobody else has seen it.
                    drop(unsafe { Box::from_raw(fresh) });
                    found = other;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_get_the_same_value() {
        static COUNT: PerProcess<u64> = PerProcess::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| *COUNT.get().lock().expect("no panic") += 1);
            }
        });
        assert_eq!(*COUNT.get().lock().expect("no panic"), 8);
    }
}
