//! Guest-physical and kernel-virtual address constants: only named addresses.
//!
//! Used by the VMM (which builds the first page tables) and by the kernel.
//! Drawn with host backing in `docs/memory-map.md`.

use crate::addr::{GIB, PAGE_SIZE};

// --- guest-physical: low window -------------------------------------------

/// [`crate::boot::BootInfo`], one page.
pub const BOOT_INFO: u64 = 0x1_0000;
/// Global descriptor table and task-state segment, one page.
pub const GDT_TSS: u64 = 0x1_1000;
/// Interrupt descriptor table, one page.
pub const IDT: u64 = 0x1_2000;
/// Command queue ([`crate::queue::QueuePage`]), two pages.
pub const QUEUE: u64 = 0x1_4000;
/// Lease page ([`crate::lease`]) of this enclave: its own memslot.
pub const LEASE_PAGE: u64 = 0xd000_2000;
/// Console ring ([`crate::queue::ConsoleRing`]), 64 KiB with its header.
pub const CONSOLE: u64 = 0x2_0000;
/// Bytes of the console ring, header included.
pub const CONSOLE_BYTES: u64 = 0x1_0000;
/// Descriptor tables of the cores from 1 on: for each a page like [`GDT_TSS`] and
/// one like [`IDT`].
pub const CORE_TABLES: u64 = 0x3_0000;
/// Bounce area for the data of forwarded calls.
pub const BOUNCE: u64 = 0x10_0000;
/// Bytes of the bounce area.
pub const BOUNCE_BYTES: u64 = 0x10_0000;
/// Physical address the kernel image is loaded at.
pub const KERNEL_IMAGE: u64 = 0x20_0000;

/// End of the low RAM window: RAM beyond goes to [`HIGH_RAM`].
pub const LOW_RAM_END: u64 = 3 * GIB;
/// Start of RAM above the hole below 4 GiB.
pub const HIGH_RAM: u64 = 4 * GIB;

/// Doorbell page: an unbacked page whose stores leave the guest.
pub const DOORBELL_PAGE: u64 = 0xd000_0000;
/// Local APIC page (architectural address, SDM vol. 3 §12.4.1).
pub const APIC_PAGE: u64 = 0xfee0_0000;

/// Window of this enclave's own arenas.
pub const ARENA_WINDOW: u64 = 64 * GIB;
/// End of the arena window; with [`ARENA_WINDOW`] it fits 40 address bits.
pub const ARENA_WINDOW_END: u64 = 256 * GIB;
/// Window of arenas imported from other enclaves, read-only.
pub const IMPORT_WINDOW: u64 = 256 * GIB;
/// End of the import window.
pub const IMPORT_WINDOW_END: u64 = 448 * GIB;

/// The page with descriptor table and task-state segment of `core`.
#[must_use]
pub const fn gdt_tss(core: usize) -> u64 {
    match core {
        0 => GDT_TSS,
        n => CORE_TABLES + (n as u64 - 1) * 2 * PAGE_SIZE,
    }
}

/// The page with the interrupt descriptor table of `core`.
#[must_use]
pub const fn idt(core: usize) -> u64 {
    match core {
        0 => IDT,
        n => gdt_tss(n) + PAGE_SIZE,
    }
}

const _: () = assert!(idt(crate::boot::MAX_CORES) <= BOUNCE);

// --- kernel-virtual ---------------------------------------------------------

/// Base of the kernel's direct map: virtual = base + guest-physical.
pub const DIRECT_MAP: u64 = 0xffff_9000_0000_0000;
/// Virtual address of [`KERNEL_IMAGE`].
pub const KERNEL_VIRT: u64 = 0xffff_ffff_8020_0000;
/// First address that is not a program's.
pub const USER_END: u64 = 0x0000_8000_0000_0000;
/// Lowest address a program may map (a far return plus `syscall` enters ring 0
/// at a low address on the nested KVM; nothing may ever be mapped there).
pub const USER_MIN: u64 = 0x1_0000;

// --- selectors, laid out as Linux does ---------------------------------------

/// Kernel code segment.
pub const SEL_KERNEL_CS: u16 = 0x10;
/// Kernel stack segment.
pub const SEL_KERNEL_SS: u16 = 0x18;
/// User data and stack segment with its privilege level.
pub const SEL_USER_SS: u16 = 0x2b;
/// User code segment with its privilege level.
pub const SEL_USER_CS: u16 = 0x33;
/// Task-state segment.
pub const SEL_TSS: u16 = 0x40;

// --- vectors ------------------------------------------------------------------

/// Interrupt that says that an attached arena was published to, or that a wait
/// for that is over: the local timer uses it, too. This vector and
/// [`VECTOR_NOTICE`] are of a lower priority class than the others: the kernel
/// lets them in only while a program waits for them.
pub const VECTOR_BELL: u8 = 0x30;
/// Interrupt that says that the broker, or its end, concerns what is attached.
pub const VECTOR_NOTICE: u8 = 0x31;
/// Interrupt that tells the kernel to look at the command queue.
pub const VECTOR_COMMAND: u8 = 0x40;
/// Gate of the entry for debuggers; never raised, the VMM has #DB lead there while
/// a debugger is attached.
pub const VECTOR_DEBUG: u8 = 22;
/// Interrupt that one core of the enclave sends another or itself.
pub const VECTOR_IPI: u8 = 0x41;
/// Task priority (SDM vol. 3 §12.8.3.1) that keeps [`VECTOR_BELL`] and
/// [`VECTOR_NOTICE`] out and lets the others in; in force from the start.
pub const PRIORITY_NO_BELLS: u32 = 0x30;
