//! The machine below the kernel: one architecture, one list of names.
//!
//! Everything outside this folder uses only what is re-exported here. It may
//! hold registers, table formats, entries and the privilege mode; it decides
//! nothing.

mod x86_64;

pub(crate) use x86_64::apic::{interrupt_core, let_bells_in, moment, sleep};
pub(crate) use x86_64::trap::{
    TrapFrame, begin_anew, enter_user, go_on, interrupts_taken, leave_user,
};
pub(crate) use x86_64::trap::{bells_taken, notices_taken};
pub(crate) use x86_64::{
    UserAccess, boot_root, choose_flush, copy_bytes, copy_words, core, edit, extended, flush_here,
    flush_name, flush_tlb, flush_upper, fs_base, gate_ring, gs_base, init, is_slow, mode,
    mode_name, rdtsc, root, set_fs_base, set_gs_base, set_root, use_boot_tables, zero_bytes,
};
pub(crate) use x86_64::{checks, paging};
