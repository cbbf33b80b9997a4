//! The local interrupt controller: end of interrupt, interrupts to this core.
//!
//! Called by the trap entries and the self-tests. Reaches the controller by
//! its MSRs (x2APIC) where the VMM switched them on, else by its page, which
//! is the only way in ring-3 mode. Routes nothing and knows no other core.

// UNSAFETY: device registers.
#![expect(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::boot::cpu;
use enclave_abi::layout::{APIC_PAGE, DIRECT_MAP, VECTOR_IPI};

/// End-of-interrupt register: offset in the page (SDM vol. 3 §12.8.5).
const EOI: u32 = 0xb0;
/// Interrupt-command register, lower half (§12.6.1).
const ICR: u32 = 0x300;
/// Destination shorthand "self", level asserted, fixed delivery.
const TO_SELF: u32 = 1 << 18 | 1 << 14;
/// MSR of register offset 0 in x2APIC mode; others follow every 16 bytes
/// (§12.12.1.2).
const X2APIC_BASE: u32 = 0x800;

unsafe extern "C" {
    /// Counted by `entry.S` (interrupted kernel, ring-3 mode) and [`count_ipi`].
    static cpu_ipis: AtomicU64;
    fn interrupts_on();
    fn interrupts_off();
}

fn write(register: u32, value: u32) {
    if super::has(cpu::X2APIC) {
        let msr = X2APIC_BASE + register / 16;
        // SAFETY: x2APIC is on; the two registers written here only end an
        // interrupt or send one to this core, whose gates are set.
        unsafe { asm!("wrmsr", in("ecx") msr, in("eax") value, in("edx") 0, options(nostack)) };
    } else {
        let at = DIRECT_MAP + APIC_PAGE + u64::from(register);
        let at = core::ptr::with_exposed_provenance_mut::<u32>(at as usize);
        // SAFETY: the page is mapped for the kernel; as above.
        unsafe { at.write_volatile(value) };
    }
}

/// Ends the interrupt in service.
pub(super) fn eoi() {
    write(EOI, 0);
}

/// Notes an interrupt of this vector.
pub(super) fn count_ipi() {
    counter().fetch_add(1, Ordering::Release);
}

fn counter() -> &'static AtomicU64 {
    // SAFETY: an aligned word of the image that everybody accesses atomically.
    unsafe { &cpu_ipis }
}

/// Sends this core `count` interrupts, one after the other; how many arrived.
pub(super) fn interrupt_self(count: u64) -> u64 {
    /// Looks before an interrupt counts as lost.
    const PATIENCE: u32 = 10_000;
    let start = counter().load(Ordering::Acquire);
    for sent in 1..=count {
        write(ICR, TO_SELF | u32::from(VECTOR_IPI));
        if !super::ring3() {
            // SAFETY: the gates and their stacks are set, and the handler only
            // counts and acknowledges; ring-3 mode always has interrupts on.
            unsafe { interrupts_on() };
        }
        let mut looks = 0;
        while counter().load(Ordering::Acquire) < start + sent && looks < PATIENCE {
            looks += 1;
        }
        if !super::ring3() {
            // SAFETY: back to how the kernel runs.
            unsafe { interrupts_off() };
        }
    }
    counter().load(Ordering::Acquire) - start
}
