//! How other threads get a vCPU out of the guest: the byte beside a signal.
//!
//! Set by the vCPU thread ([`super::running`]), used by whoever has a command for
//! the kernel. A signal alone is lost between a look at what is pending and
//! KVM_RUN; the byte makes the latter return at once.

// UNSAFETY: the kick byte of kvm_run, which KVM maps and reads.
#![expect(unsafe_code)]

use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// The `immediate_exit` byte of the vCPU's kvm_run, null once the vCPU is gone.
#[derive(Debug, Default)]
pub(super) struct Kick {
    byte: Mutex<AtomicPtr<AtomicU8>>,
}

impl Kick {
    /// Where the byte is from now on.
    pub(super) fn set(&self, byte: *mut AtomicU8) {
        self.byte
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .store(byte, Ordering::Release);
    }

    /// Makes the next or current KVM_RUN return.
    pub(super) fn request(&self) {
        let guard = self.byte.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the pointer is null or points into the kvm_run mapping of a
        // vCPU that is alive: the vCPU thread nulls it under this lock before
        // it drops the vCPU. KVM reads the byte, we store it atomically.
        if let Some(byte) = unsafe { guard.load(Ordering::Acquire).as_ref() } {
            byte.store(1, Ordering::Release);
        }
    }

    /// Takes a request back, before the guest is entered again.
    pub(super) fn clear(&self) {
        let guard = self.byte.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as in `request`.
        if let Some(byte) = unsafe { guard.load(Ordering::Acquire).as_ref() } {
            byte.store(0, Ordering::Release);
        }
    }
}
