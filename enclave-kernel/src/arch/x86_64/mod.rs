//! x86-64: the privilege mode and every instruction it forbids or allows.
//!
//! The mode is fixed by [`init`]; the functions here hide it from the rest of
//! the kernel. Where ring 3 cannot do something (CR3), a ring-0 stub reached
//! by `int3` does it (`entry.S`).

// UNSAFETY: assembly and device registers.
#![expect(unsafe_code)]

pub(super) mod apic;
pub(crate) mod checks;
pub(crate) mod extended;
pub(crate) mod paging;
mod probes;
pub(crate) mod trap;
mod user_access;

pub(crate) use user_access::UserAccess;

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use enclave_abi::addr::PAGE_SIZE;
use enclave_abi::boot::{
    BOOT_FORCE_CR3_FLUSH, BOOT_RING0_INTERPRETED, BootInfo, CLAC_BYTES, MAX_CORES, Mode, cpu,
};

use crate::{cores, memory};

core::arch::global_asm!(include_str!("entry.S"), options(att_syntax));
const _: () = assert!(
    enclave_abi::ABI_VERSION == 13,
    "entry.S repeats the version"
);
const _: () = assert!(CLAC_BYTES == 3, "entry.S puts one CLAC before an entry");

static RING: AtomicU8 = AtomicU8::new(0);
static FLUSH: AtomicU8 = AtomicU8::new(FLUSH_CR3_RING3);
static FORCE_CR3: AtomicU8 = AtomicU8::new(0);
static ROOT: AtomicU64 = AtomicU64::new(0);
/// The value of CR3: the table in use and, with PCID, its tag.
static CR3: AtomicU64 = AtomicU64::new(0);
static BOOT_ROOT: AtomicU64 = AtomicU64::new(0);
static FEATURES: AtomicU64 = AtomicU64::new(0);
static IS_RING0_INTERPRETED: AtomicBool = AtomicBool::new(false);

const FLUSH_UPPER: u8 = 0;
/// By a CR3 reload of this core, in ring-0 mode and in ring-3 mode.
const FLUSH_CR3: u8 = 1;
const FLUSH_CR3_RING3: u8 = 2;
/// The same on all cores.
const FLUSH_ALL: u8 = 3;

/// Bytes of a core's stacks.
const CORE_STRIDE: u64 = 0x2_0000;
const _: () = assert!(MAX_CORES == 32, "entry.S repeats both");

unsafe extern "C" {
    fn reload_cr3_ring3(root: u64);
    fn core_base() -> u64;
    static core_blocks: u8;
}

/// The number of this core, by the stack it runs on.
pub(crate) fn core() -> usize {
    // SAFETY: the function only computes with RSP, and every stack of the kernel
    // lies within its core's block.
    let base = unsafe { core_base() };
    let first = (&raw const core_blocks).addr() as u64;
    (base.wrapping_sub(first) / CORE_STRIDE) as usize
}

/// Whether each instruction of the kernel takes about a microsecond.
pub(crate) fn is_slow() -> bool {
    !ring3() && IS_RING0_INTERPRETED.load(Ordering::Relaxed)
}

/// Fixes the mode.
pub(crate) fn init(mode: Mode, info: &BootInfo) {
    RING.store(if mode == Mode::Ring3 { 3 } else { 0 }, Ordering::Relaxed);
    FORCE_CR3.store(
        u8::from(info.flags & BOOT_FORCE_CR3_FLUSH != 0),
        Ordering::Relaxed,
    );
    ROOT.store(info.page_table, Ordering::Relaxed);
    BOOT_ROOT.store(info.page_table, Ordering::Relaxed);
    CR3.store(info.page_table, Ordering::Relaxed);
    FEATURES.store(info.cpu_features, Ordering::Relaxed);
    IS_RING0_INTERPRETED.store(info.flags & BOOT_RING0_INTERPRETED != 0, Ordering::Relaxed);
    extended::init(info.xcr0);
}

/// Whether a feature is in force (one bit of [`enclave_abi::boot::cpu`]).
#[inline]
pub(crate) fn has(feature: u64) -> bool {
    FEATURES.load(Ordering::Relaxed) & feature != 0
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

/// The program's GS base, which the kernel does not use either.
pub(crate) fn gs_base() -> u64 {
    let base: u64;
    // SAFETY: as in `set_fs_base`.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

/// Sets the program's GS base.
pub(crate) fn set_gs_base(base: u64) {
    // SAFETY: as in `set_fs_base`.
    unsafe { asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags)) };
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

/// Makes `root` the page table in use, and flushes what its tag held.
pub(crate) fn set_root(root: u64) {
    let is_boot = root == BOOT_ROOT.load(Ordering::Relaxed);
    let tag = if has(cpu::PCID) && !is_boot {
        PROGRAM_TAG
    } else {
        0
    };
    ROOT.store(root, Ordering::Relaxed);
    CR3.store(root | tag, Ordering::Relaxed);
    flush_tlb();
}

/// The kernel's own page table.
pub(crate) fn boot_root() -> u64 {
    BOOT_ROOT.load(Ordering::Relaxed)
}

/// Makes `root` the table that changes of mappings are about, without using it:
/// that of a process which has no core.
pub(crate) fn edit(root: u64) {
    ROOT.store(root, Ordering::Relaxed);
}

/// Tag of a program's translations; the kernel's own table has tag 0.
const PROGRAM_TAG: u64 = 1;
/// Bit of a value for CR3: keep what the new tag holds (SDM vol. 3 §4.10.4.1).
const KEEP: u64 = 1 << 63;

/// The page table in use.
pub(crate) fn root() -> u64 {
    ROOT.load(Ordering::Relaxed)
}

/// Flushes every translation that a core holds for the table in use: after
/// changes of mappings.
pub(crate) fn flush_tlb() {
    if FLUSH.load(Ordering::Relaxed) == FLUSH_ALL {
        cores::forget_translations();
    } else {
        flush_here();
    }
}

/// The same for this core alone, by loading CR3 with the program's table.
pub(crate) fn flush_here() {
    load_cr3(CR3.load(Ordering::Relaxed));
}

/// Uses the kernel's own table, on this core alone.
pub(crate) fn use_boot_tables() {
    load_cr3(BOOT_ROOT.load(Ordering::Relaxed));
}

fn load_cr3(value: u64) {
    if ring3() {
        // SAFETY: the callers' tables all map the kernel; the stub loads CR3.
        unsafe { reload_cr3_ring3(value) };
    } else {
        // SAFETY: the callers' tables all map the kernel, so nothing changes
        // for it but cached translations.
        unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) };
    }
}

/// Whether two address spaces with tags of their own, one with each tree, show
/// their own word whichever was in use before, without any flush in between.
fn tagged_spaces_differ(first: &paging::ProbeTree, second: &paging::ProbeTree) -> bool {
    let (Ok(a), Ok(b)) = (paging::new_space(), paging::new_space()) else {
        return false;
    };
    first.show_in(a);
    second.show_in(b);
    let (a_tag, b_tag) = (PROGRAM_TAG + 1, PROGRAM_TAG + 2);
    load_cr3(a | a_tag);
    load_cr3(b | b_tag);
    let mut differ = true;
    for _ in 0..4 {
        load_cr3(a | a_tag | KEEP);
        differ &= read_word(paging::ProbeTree::ADDRESS) == 1;
        load_cr3(b | b_tag | KEEP);
        differ &= read_word(paging::ProbeTree::ADDRESS) == 2;
    }
    // Nothing of the two may stay behind for whoever gets these tables next.
    load_cr3(a | a_tag);
    load_cr3(b | b_tag);
    flush_tlb();
    memory::free(a, PAGE_SIZE);
    memory::free(b, PAGE_SIZE);
    differ
}

/// A word that a self-test has just mapped.
fn read_word(address: u64) -> u64 {
    let at: *const u64 = core::ptr::with_exposed_provenance(address as usize);
    // SAFETY: the callers map the address, aligned, and only checks run.
    unsafe { at.read_volatile() }
}

/// Flushes after a store to a top-level entry: nothing to do where the store
/// itself does it ([`choose_flush`]). A publish waits for it: one way is in line.
#[inline]
pub(crate) fn flush_upper() {
    match FLUSH.load(Ordering::Relaxed) {
        // SAFETY: the value that is in CR3 already, in ring 0: nothing changes for
        // the kernel but cached translations.
        FLUSH_CR3 => unsafe {
            asm!("mov cr3, {}", in(reg) CR3.load(Ordering::Relaxed), options(nostack, preserves_flags));
        },
        FLUSH_UPPER => {}
        _ => flush_otherwise(),
    }
}

#[cold]
#[inline(never)]
fn flush_otherwise() {
    flush_tlb();
}

/// Finds out how translations below a changed top-level entry go away: 0 = by
/// the store itself (a shadow-paging host in ring-3 mode), 1 = CR3 reload. With
/// several cores always the latter, on all of them.
pub(crate) fn choose_flush() -> u64 {
    let by_store = ring3()
        && !cores::several()
        && FORCE_CR3.load(Ordering::Relaxed) == 0
        && checks::upper_store_flushes();
    let method = match (by_store, cores::several()) {
        (true, _) => FLUSH_UPPER,
        (false, true) => FLUSH_ALL,
        (false, false) if ring3() => FLUSH_CR3_RING3,
        (false, false) => FLUSH_CR3,
    };
    FLUSH.store(method, Ordering::Relaxed);
    u64::from(!by_store)
}
