//! The time in which the kernel may touch a program's memory.
//!
//! Called by `user.rs` around each copy. Where SMAP is on, everything else the
//! kernel does faults on a program's page, so a stray pointer is found and not
//! followed. Without SMAP it costs a test and a branch.

// UNSAFETY: STAC and CLAC.
#![expect(unsafe_code)]

use enclave_abi::boot::cpu;

unsafe extern "C" {
    fn arch_smap_open();
    fn arch_smap_close();
}

/// Program memory is within reach as long as this lives.
#[derive(Debug)]
pub(crate) struct UserAccess(());

impl UserAccess {
    /// Opens it.
    pub(crate) fn open() -> Self {
        if super::has(cpu::SMAP) {
            // SAFETY: sets RFLAGS.AC, which the kernel uses for nothing else
            // (CR0.AM is clear); `drop` clears it.
            unsafe { arch_smap_open() };
        }
        Self(())
    }
}

impl Drop for UserAccess {
    fn drop(&mut self) {
        if super::has(cpu::SMAP) {
            // SAFETY: as above, the other way.
            unsafe { arch_smap_close() };
        }
    }
}
