//! x86-64: the privilege mode and every instruction it forbids or allows.
//!
//! The mode is fixed by [`init`]; the functions here hide it from the rest of
//! the kernel. Where ring 3 cannot do something (CR3), a ring-0 stub reached
//! by `int3` does it (`entry.S`).

// UNSAFETY: assembly and device registers.
#![expect(unsafe_code)]

pub(crate) mod paging;
pub(crate) mod trap;

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use enclave_abi::boot::{BOOT_FORCE_CR3_FLUSH, BootInfo, Mode};
use enclave_abi::layout::{APIC_PAGE, DIRECT_MAP};

core::arch::global_asm!(include_str!("entry.S"), options(att_syntax));
const _: () = assert!(enclave_abi::ABI_VERSION == 1, "entry.S repeats the version");

static RING: AtomicU8 = AtomicU8::new(0);
static FLUSH: AtomicU8 = AtomicU8::new(FLUSH_CR3);
static FORCE_CR3: AtomicU8 = AtomicU8::new(0);
static ROOT: AtomicU64 = AtomicU64::new(0);

const FLUSH_UPPER: u8 = 0;
const FLUSH_CR3: u8 = 1;

unsafe extern "C" {
    fn reload_cr3_ring3(root: u64);
}

/// Fixes the mode.
pub(crate) fn init(mode: Mode, info: &BootInfo) {
    RING.store(if mode == Mode::Ring3 { 3 } else { 0 }, Ordering::Relaxed);
    FORCE_CR3.store(
        u8::from(info.flags & BOOT_FORCE_CR3_FLUSH != 0),
        Ordering::Relaxed,
    );
    ROOT.store(info.page_table, Ordering::Relaxed);
}

/// The mode fixed at boot.
pub(crate) fn mode() -> Mode {
    if ring3() { Mode::Ring3 } else { Mode::Ring0 }
}

fn ring3() -> bool {
    RING.load(Ordering::Relaxed) == 3
}

/// For messages.
pub(crate) fn mode_name() -> &'static str {
    if ring3() { "ring3" } else { "ring0" }
}

/// For messages.
pub(crate) fn flush_name() -> &'static str {
    if FLUSH.load(Ordering::Relaxed) == FLUSH_UPPER {
        "upper-level store"
    } else {
        "CR3 reload"
    }
}

/// The privilege level this code runs at, read from CS.
pub(crate) fn gate_ring() -> u8 {
    let cs: u64;
    // SAFETY: reading CS has no effect.
    unsafe { asm!("mov {}, cs", out(reg) cs, options(nomem, nostack, preserves_flags)) };
    (cs & 3) as u8
}

/// Time-stamp counter.
pub(crate) fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC is allowed in both modes (CR4.TSD is clear).
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Sets the program's FS base (thread-local storage).
pub(crate) fn set_fs_base(base: u64) {
    // SAFETY: CR4.FSGSBASE is set by the VMM; the kernel itself never uses FS.
    unsafe { asm!("wrfsbase {}", in(reg) base, options(nostack, preserves_flags)) };
}

/// The program's FS base.
pub(crate) fn fs_base() -> u64 {
    let base: u64;
    // SAFETY: as in `set_fs_base`.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

/// Copies bytes, 8 at a time where it can (one interpreted instruction per
/// 1,024 iterations where ring 0 is interpreted).
///
/// # Safety
/// Both ranges are mapped, the target writable, and they do not overlap.
pub(crate) unsafe fn copy_bytes(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the ranges are the caller's contract; DF is clear in the kernel.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            tail = in(reg) len & 7,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies 64-bit words.
///
/// # Safety
/// Both ranges are mapped, the target writable, and they do not overlap.
#[inline]
pub(crate) unsafe fn copy_words(to: *mut u64, from: *const u64, count: u64) {
    // SAFETY: the ranges are the caller's contract; DF is clear in the kernel.
    unsafe {
        asm!(
            "rep movsq",
            inout("rcx") count => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Zeroes bytes.
///
/// # Safety
/// The range is mapped and writable.
pub(crate) unsafe fn zero_bytes(to: *mut u8, len: usize) {
    // SAFETY: as for `copy_bytes`.
    unsafe {
        asm!(
            "rep stosq",
            "mov rcx, {tail}",
            "rep stosb",
            tail = in(reg) len & 7,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            in("rax") 0u64,
            options(nostack, preserves_flags)
        );
    }
}

/// Makes `root` the page table in use (and flushes).
pub(crate) fn set_root(root: u64) {
    ROOT.store(root, Ordering::Relaxed);
    flush_tlb();
}

/// The page table in use.
pub(crate) fn root() -> u64 {
    ROOT.load(Ordering::Relaxed)
}

/// Flushes every translation of this core by reloading CR3.
pub(crate) fn flush_tlb() {
    let root = root();
    if ring3() {
        // SAFETY: the stub loads CR3 with the table in use, which maps the kernel.
        unsafe { reload_cr3_ring3(root) };
    } else {
        // SAFETY: the table in use maps the kernel; reloading it changes
        // nothing but cached translations.
        unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
    }
}

/// Flushes after a store to a top-level entry: nothing to do where the store
/// itself does it ([`choose_flush`]).
pub(crate) fn flush_upper() {
    if FLUSH.load(Ordering::Relaxed) == FLUSH_CR3 {
        flush_tlb();
    }
}

/// Finds out how translations below a changed top-level entry go away: 0 = by
/// the store itself (a shadow-paging host in ring-3 mode), 1 = CR3 reload.
pub(crate) fn choose_flush() -> u64 {
    let by_store = ring3() && FORCE_CR3.load(Ordering::Relaxed) == 0 && trap::upper_store_flushes();
    FLUSH.store(
        if by_store { FLUSH_UPPER } else { FLUSH_CR3 },
        Ordering::Relaxed,
    );
    u64::from(!by_store)
}

/// Ends an interrupt at the local APIC.
pub(crate) fn eoi() {
    if ring3() {
        const EOI: u64 = 0xb0;
        let at =
            core::ptr::with_exposed_provenance_mut::<u32>((DIRECT_MAP + APIC_PAGE + EOI) as usize);
        // SAFETY: the APIC page is mapped for the kernel; a store to EOI only
        // ends the interrupt in service (SDM vol. 3 §12.8.5).
        unsafe { at.write_volatile(0) };
    } else {
        // SAFETY: x2APIC is on in ring-0 mode; MSR 0x80b is its EOI register.
        unsafe { asm!("wrmsr", in("ecx") 0x80b, in("eax") 0, in("edx") 0, options(nostack)) };
    }
}
