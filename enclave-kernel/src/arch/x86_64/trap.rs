//! Ways into the kernel and back: the saved frame, and what each entry of
//! `entry.S` calls.
//!
//! Promises: the frame is the same in both modes; whether a trap came from a
//! program is decided by its address (in ring-3 mode the privilege level says
//! nothing). Interrupt handlers only note and acknowledge.

// UNSAFETY: calls into assembly.
#![expect(unsafe_code)]

use core::sync::atomic::Ordering;

use enclave_abi::layout::{
    QUEUE, SEL_USER_CS, SEL_USER_SS, USER_END, VECTOR_BELL, VECTOR_COMMAND, VECTOR_IPI,
    VECTOR_NOTICE,
};
use enclave_abi::queue::QueuePage;

use super::{apic, paging, probes};
use crate::{boot, cores, fault, host, phys, process, signals, syscall, threads};

/// The vector of a frame that is about a system call, as in `entry.S`.
const VECTOR_SYSCALL: u64 = 0x100;

/// Registers of an interrupted program, as `entry.S` pushes them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct TrapFrame {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rax: u64,
    pub(crate) vector: u64,
    pub(crate) cr2: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

const _: () = assert!(size_of::<TrapFrame>() == 23 * 8);

/// Where the VMM learns that the interrupt stack is free again.
const INTERRUPTS_TAKEN: u64 = QUEUE + core::mem::offset_of!(QueuePage, interrupts_taken) as u64;
const _: () = assert!(
    enclave_abi::layout::DOORBELL_PAGE + enclave_abi::queue::doorbell::DEBUG == 0xd000_00f0
        && enclave_abi::layout::VECTOR_DEBUG == 22,
    "entry.S repeats address and vector"
);
const _: () = assert!(INTERRUPTS_TAKEN == 0x1400c, "entry.S repeats the address");
/// The other counters of what ends a sleep, which the VMM reads.
const BELLS_TAKEN: u64 = QUEUE + core::mem::offset_of!(QueuePage, bells_taken) as u64;
const NOTICES_TAKEN: u64 = QUEUE + core::mem::offset_of!(QueuePage, notices_taken) as u64;

impl TrapFrame {
    /// The frame of a program about to execute its first instruction.
    pub(crate) fn start(rip: u64, rsp: u64) -> Self {
        Self {
            rip,
            rsp,
            cs: u64::from(SEL_USER_CS),
            ss: u64::from(SEL_USER_SS),
            rflags: 0x202,
            ..Self::default()
        }
    }

    /// Whether it is about a system call.
    pub(crate) fn is_call(&self) -> bool {
        self.vector == VECTOR_SYSCALL
    }

    /// Keeps the number of the call, whose answer takes its place.
    pub(crate) fn keep_call_number(&mut self) {
        self.error = self.rax;
    }

    /// The number of a call that waits or was interrupted.
    pub(crate) fn call_number(&self) -> u64 {
        self.error
    }

    /// Whether a program, not the kernel, was interrupted.
    pub(crate) fn is_program(&self) -> bool {
        self.rip < USER_END
    }
}

mod asm {
    use super::TrapFrame;
    unsafe extern "C" {
        pub(super) fn enter_user(frame: *const TrapFrame) -> u64;
        pub(super) fn run_below() -> u64;
        pub(super) fn leave_user(word: u64) -> !;
        pub(super) fn core_begin_anew() -> !;
    }
}

/// Command interrupts taken since boot.
pub(crate) fn interrupts_taken() -> u64 {
    u64::from(phys::low32::<INTERRUPTS_TAKEN>().load(Ordering::Relaxed))
}

/// Bells taken since boot.
pub(crate) fn bells_taken() -> u32 {
    phys::low32::<BELLS_TAKEN>().load(Ordering::Acquire)
}

/// Notices taken since boot.
pub(crate) fn notices_taken() -> u32 {
    phys::low32::<NOTICES_TAKEN>().load(Ordering::Acquire)
}

/// All that can end a sleep, added up.
pub(super) fn all_taken() -> u32 {
    let commands = phys::low32::<INTERRUPTS_TAKEN>().load(Ordering::Acquire);
    let others = bells_taken().wrapping_add(notices_taken());
    commands.wrapping_add(others)
}

/// Counts a bell.
pub(super) fn count_bell() {
    phys::low32::<BELLS_TAKEN>().fetch_add(1, Ordering::Release);
}

/// Counts a notice.
pub(super) fn count_notice() {
    phys::low32::<NOTICES_TAKEN>().fetch_add(1, Ordering::Release);
}

/// Runs a program from `frame` until [`leave_user`]; returns its word.
pub(crate) fn enter_user(frame: &TrapFrame) -> u64 {
    // SAFETY: entry.S loads the frame's registers and leaves the kernel's own
    // stack pointer where leave_user finds it; the frame's code and stack
    // segments are the program's.
    unsafe { asm::enter_user(frame) }
}

/// Runs [`process::go_on`] with [`leave_user`] in force for what it does before it
/// enters a program, too; its word, or that of `leave_user`.
pub(crate) fn go_on() -> u64 {
    // SAFETY: entry.S keeps what Rust expects to be kept and leaves the stack
    // pointer where leave_user finds it.
    unsafe { asm::run_below() }
}

#[unsafe(no_mangle)]
extern "C" fn process_go_on() -> u64 {
    process::go_on()
}

/// Abandons the running program: [`enter_user`] returns `word`.
pub(crate) fn leave_user(word: u64) -> ! {
    // SAFETY: only reached from a trap or system call of a program, hence
    // below an enter_user whose stack is intact.
    unsafe { asm::leave_user(word) }
}

/// Abandons the thread that this core runs, from 1 on: it enters [`cores::serve`].
pub(crate) fn begin_anew() -> ! {
    // SAFETY: nothing on the core's stacks is needed any more: `serve` begins with
    // an empty one, as at boot.
    unsafe { asm::core_begin_anew() }
}

/// System calls, from every gate.
#[unsafe(no_mangle)]
extern "C" fn syscall_entry(frame: &mut TrapFrame) {
    // A return address outside the program (possible only by a jump to the
    // nested gate) must not reach IRETQ.
    if frame.rip >= USER_END {
        fault::exception(frame);
        return;
    }
    syscall::dispatch(frame);
}

/// Page faults first come here, with nothing but the address and the error
/// code: a copy-on-write fault needs no more.
#[unsafe(no_mangle)]
extern "C" fn fault_fast(address: u64, error: u64) -> bool {
    fault::resolve(address, error)
}

/// Page faults that were not resolved.
#[unsafe(no_mangle)]
extern "C" fn fault_entry(frame: &mut TrapFrame) {
    if !probes::resume(frame) {
        fault::exception(frame);
    }
}

/// Everything else.
#[unsafe(no_mangle)]
extern "C" fn trap_entry(frame: &mut TrapFrame) {
    if frame.vector == u64::from(VECTOR_COMMAND) {
        apic::eoi();
        phys::low32::<INTERRUPTS_TAKEN>().fetch_add(1, Ordering::Release);
        if host::poll_attention() {
            attend(frame);
        }
    } else {
        trap_seldom(frame);
    }
}

/// Ring-3 mode passes on only what interrupted a program (`entry.S`); ring-0 mode
/// may have been asleep, and looks at its commands itself then.
#[cold]
fn attend(frame: &mut TrapFrame) {
    if frame.is_program() {
        signals::attend(frame);
    }
}

#[cold]
fn trap_seldom(frame: &mut TrapFrame) {
    if frame.vector == u64::from(VECTOR_BELL) {
        apic::eoi();
        count_bell();
    } else if frame.vector == u64::from(VECTOR_NOTICE) {
        apic::eoi();
        count_notice();
    } else if frame.vector == u64::from(VECTOR_IPI) {
        apic::eoi();
        apic::count_ipi();
    } else if !probes::resume(frame) {
        fault::exception(frame);
    }
}

/// System calls with several cores.
#[unsafe(no_mangle)]
extern "C" fn syscall_entry_shared(frame: &mut TrapFrame) {
    cores::enter();
    syscall_entry(frame);
    leave(frame);
}

/// Back to the program, unless another core has called this one out meanwhile.
fn leave(frame: &mut TrapFrame) {
    if cores::is_called_out() {
        signals::attend(frame);
        if !cores::is_online() {
            threads::hand_over(frame);
        }
    }
    cores::leave();
}

/// [`fault_fast`] with several cores. What it leaves to [`fault_entry_shared`]
/// keeps the lock: there is a frame, too, for those who have been called out.
#[unsafe(no_mangle)]
extern "C" fn fault_fast_shared(address: u64, error: u64) -> bool {
    let is_program = cores::enter_from_program();
    let is_resolved = fault::resolve_shared(address, error);
    if !is_program {
        return is_resolved;
    }
    if !is_resolved || cores::is_due() {
        return false;
    }
    cores::leave();
    true
}

#[unsafe(no_mangle)]
extern "C" fn fault_entry_shared(frame: &mut TrapFrame) {
    // Another core may have changed the mapping since.
    if !(frame.is_program() && paging::allows(frame.cr2, frame.error)) {
        fault_entry(frame);
    }
    // Not where the kernel's own access failed.
    if frame.is_program() {
        leave(frame);
    }
}

/// [`trap_entry`] with several cores.
#[unsafe(no_mangle)]
extern "C" fn trap_entry_shared(frame: &mut TrapFrame) {
    if frame.vector == u64::from(VECTOR_COMMAND) || frame.vector == u64::from(VECTOR_IPI) {
        acknowledge(frame.vector);
        if cores::enter_from_program() {
            if host::poll_attention() {
                signals::attend(frame);
            }
            leave(frame);
        }
        return;
    }
    let is_program = cores::enter_from_program();
    trap_entry(frame);
    if is_program {
        leave(frame);
    }
}

/// Ring-3 mode with several cores: an interrupt met the kernel's own code.
#[unsafe(no_mangle)]
extern "C" fn interrupt_in_kernel(vector: u64) {
    acknowledge(vector);
    cores::interrupted_in_kernel();
}

fn acknowledge(vector: u64) {
    apic::eoi();
    if vector == u64::from(VECTOR_COMMAND) {
        phys::low32::<INTERRUPTS_TAKEN>().fetch_add(1, Ordering::Release);
    } else {
        cores::note_interrupt();
    }
}

#[unsafe(no_mangle)]
extern "C" fn core_main(_: u64) -> ! {
    cores::serve()
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(boot_info: u64) -> ! {
    boot::start(boot_info)
}
