//! Accesses that may fault, for boot decisions and self-tests.
//!
//! Each function tells whether its access faulted; [`resume`], called by the
//! trap entries, skips the access. Nothing else in the kernel survives a
//! fault of its own.

// UNSAFETY: touches addresses that may not be mapped.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::trap::TrapFrame;

mod asm {
    unsafe extern "C" {
        pub(super) fn probe_store(address: u64) -> u64;
        pub(super) fn probe_load(address: u64) -> u64;
        pub(super) fn probe_execute(address: u64) -> u64;
        pub(super) static probe_store_instruction: u8;
        pub(super) static probe_load_instruction: u8;
        pub(super) static probe_access_after: u8;
        pub(super) static probe_execute_after: u8;
    }
}

/// No probe is under way.
const IDLE: u64 = 0;
/// Address whose access may fault; [`IDLE`] otherwise. No probe is at 0.
static TARGET: AtomicU64 = AtomicU64::new(IDLE);
/// Error code of the last probe's page fault, or its vector << 32.
static REASON: AtomicU64 = AtomicU64::new(0);

/// Why an access faulted (SDM vol. 3 §4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Page fault with this error code.
    Page(u64),
    /// Another exception.
    Vector(u64),
}

fn probe(access: unsafe extern "C" fn(u64) -> u64, address: u64) -> Option<Fault> {
    TARGET.store(address, Ordering::Relaxed);
    // SAFETY: a fault of this access is skipped by `resume`; if there is none,
    // the callers give addresses whose word or RET nobody minds.
    let faulted = unsafe { access(address) };
    TARGET.store(IDLE, Ordering::Relaxed);
    let reason = REASON.load(Ordering::Relaxed);
    let fault = if reason >> 32 == 0 {
        Fault::Page(reason)
    } else {
        Fault::Vector(reason >> 32)
    };
    (faulted != 0).then_some(fault)
}

/// Stores a zero word.
pub(super) fn store(address: u64) -> Option<Fault> {
    probe(asm::probe_store, address)
}

/// Loads a word.
pub(super) fn load(address: u64) -> Option<Fault> {
    probe(asm::probe_load, address)
}

/// Calls code at an address that holds a RET.
pub(super) fn execute(address: u64) -> Option<Fault> {
    probe(asm::probe_execute, address)
}

/// Whether `frame` is the fault of a probe; it goes on behind the access then.
pub(super) fn resume(frame: &mut TrapFrame) -> bool {
    let target = TARGET.load(Ordering::Relaxed);
    if target == IDLE {
        return false;
    }
    let code = |symbol: *const u8| symbol.addr() as u64;
    let access = [
        code(&raw const asm::probe_store_instruction),
        code(&raw const asm::probe_load_instruction),
    ];
    frame.rip = if access.contains(&frame.rip) {
        code(&raw const asm::probe_access_after)
    } else if frame.rip == target {
        code(&raw const asm::probe_execute_after)
    } else {
        return false;
    };
    let reason = if frame.vector == 14 {
        frame.error
    } else {
        frame.vector << 32
    };
    REASON.store(reason, Ordering::Relaxed);
    true
}
