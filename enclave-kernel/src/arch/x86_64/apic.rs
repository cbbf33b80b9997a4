//! The local interrupt controller: end of interrupt, interrupts to this core,
//! which of them are let in, and sleeping until one comes.
//!
//! Called by the trap entries, by waits and by the self-tests. Reaches the controller by
//! its MSRs (x2APIC) where the VMM switched them on, else by its page, which
//! is the only way in ring-3 mode. Routes nothing and knows no other core.

// UNSAFETY: device registers.
#![expect(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::boot::cpu;
use enclave_abi::layout::{APIC_PAGE, DIRECT_MAP, PRIORITY_NO_BELLS, VECTOR_BELL, VECTOR_IPI};
use enclave_abi::queue::Call;

use super::trap;
use crate::host;

/// End-of-interrupt register: offset in the page (SDM vol. 3 §12.8.5).
const EOI: u32 = 0xb0;
/// Task-priority register (§12.8.3.1).
const TPR: u32 = 0x80;
/// Timer entry of the local vector table, its initial count and its divider
/// (§12.5.4).
const LVT_TIMER: u32 = 0x320;
const TIMER_COUNT: u32 = 0x380;
const TIMER_DIVIDER: u32 = 0x3e0;
/// Divider value for 16.
const BY_16: u32 = 0b0011;
/// Nanoseconds of one count: KVM's local timer runs at 1 GHz.
const COUNT_NS: u64 = 16;
/// Interrupt-command register, lower half (§12.6.1).
const ICR: u32 = 0x300;
/// Its upper half, where the controller is a page: bits 31:24 are the number of
/// the destination.
const ICR_HIGH: u32 = 0x310;
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
    fn interrupts_wait();
}

fn write(register: u32, value: u32) {
    if super::has(cpu::X2APIC) {
        let msr = X2APIC_BASE + register / 16;
        // SAFETY: x2APIC is on; the registers written here only end an interrupt
        // or send one to this core, now or later, whose gates are set.
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

/// Lets bells and notices in, or keeps them pending. Ring-3 mode takes none: see
/// [`sleep`].
pub(crate) fn let_bells_in(open: bool) {
    if !super::ring3() {
        write(TPR, if open { 0 } else { PRIORITY_NO_BELLS });
    }
}

/// A point in time: see [`sleep`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(u32);

/// Now, as far as interrupts are concerned.
pub(crate) fn moment() -> Moment {
    Moment(trap::all_taken())
}

/// Sleeps until a bell, a notice or a command comes, unless one has since
/// `before`, and about `ns` nanoseconds at most; it may be less. For ever if
/// `u64::MAX`.
pub(crate) fn sleep(before: Moment, ns: u64) {
    if super::ring3() {
        // Ring 3 can neither halt nor hold interrupts off, and where ring 0 is
        // interpreted two of them nest before the first instruction of either.
        // So it takes none: its thread on the host sleeps at the eventfds.
        let [_, bell, notice, ..] = host::call(Call::AwaitBell, [ns, 0, 0, 0, 0, 0, 0]);
        if bell == 1 {
            trap::count_bell();
        }
        if notice == 1 {
            trap::count_notice();
        }
        return;
    }
    let is_limited = ns != u64::MAX;
    if is_limited {
        set_timer(ns);
    }
    if moment().0 == before.0 {
        // SAFETY: gates and stacks are set; the handlers count and acknowledge.
        // Interrupts are off as before when it returns.
        unsafe { interrupts_wait() };
    }
    if is_limited {
        set_timer(0);
    }
}

/// Has this core interrupted as by a bell in about `ns` nanoseconds, once;
/// sooner where that is more than a minute. 0 takes it back.
fn set_timer(ns: u64) {
    write(TIMER_DIVIDER, BY_16);
    write(LVT_TIMER, u32::from(VECTOR_BELL));
    let count = ns.div_ceil(COUNT_NS).min(u64::from(u32::MAX));
    write(TIMER_COUNT, count as u32);
}

/// Interrupts another core of the enclave; its number is that of its controller.
pub(crate) fn interrupt_core(core: usize) {
    const ASSERTED: u32 = 1 << 14;
    let command = ASSERTED | u32::from(VECTOR_IPI);
    if super::has(cpu::X2APIC) {
        let msr = X2APIC_BASE + ICR / 16;
        // SAFETY: x2APIC is on; a fixed interrupt to a core whose gates are set.
        unsafe {
            asm!("wrmsr", in("ecx") msr, in("eax") command, in("edx") core as u32, options(nostack));
        }
    } else {
        write(ICR_HIGH, (core as u32) << 24);
        write(ICR, command);
    }
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
