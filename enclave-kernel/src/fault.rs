//! Faults: copy-on-write of an arena, a signal, or the end of the program.
//!
//! Called by the trap entries. There is no demand paging: a page fault that no
//! arena resolves is a signal, which kills the program with a report unless it
//! has a handler, and never the enclave. A fault of the kernel itself is a panic.

use alloc::format;
use alloc::string::String;

use enclave_abi::layout::USER_END;
use enclave_core::signal::{Fault, float_code, of_vector};

use crate::arch::{TrapFrame, extended};
use crate::{arenas, process, signals};

/// Page fault on a present page by a write (SDM vol. 3 §4.7).
const PRESENT_WRITE: u64 = 0b11;
const USER_FETCH: u64 = 1 << 2 | 1 << 4;
const FETCH: u64 = 1 << 4;
/// Where addresses begin again above those that are none (SDM vol. 1 §3.3.7.1).
const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

/// Whether the fault at `address` was a first write to a frozen chunk of an
/// arena, which has its own frame now.
#[inline]
pub(crate) fn resolve(address: u64, error: u64) -> bool {
    error & (PRESENT_WRITE | FETCH) == PRESENT_WRITE && arenas::copy_on_write(address)
}

/// [`resolve`] while other cores may run the program.
pub(crate) fn resolve_shared(address: u64, error: u64) -> bool {
    error & (PRESENT_WRITE | FETCH) == PRESENT_WRITE && arenas::copy_on_write_shared(address)
}

/// Sends the program that caused an exception its signal: it goes on with the
/// handler, or ends.
pub(crate) fn exception(frame: &mut TrapFrame) {
    if !frame.is_program() && !is_wild_jump(frame) {
        panic!(
            "{} in the kernel at {:#x}, address {:#x}, error {:#x}",
            name(frame.vector),
            frame.rip,
            frame.cr2,
            frame.error
        );
    }
    let fault = describe(frame);
    if !signals::fault(frame, &fault) {
        let report = report(frame);
        process::end_by_signal(of_vector(frame.vector), report);
    }
}

/// What `enclave-core` has to know of an exception.
fn describe(frame: &TrapFrame) -> Fault {
    let float_code = match frame.vector {
        16 | 19 => {
            let (control, status, mxcsr) = extended::float_state();
            float_code(frame.vector, control, status, mxcsr)
        }
        _ => 0,
    };
    Fault {
        vector: frame.vector,
        error: frame.error,
        address: frame.cr2,
        rip: frame.rip,
        rflags: frame.rflags,
        is_mapped: process::with(|p| p.aspace.at(frame.cr2).is_some()),
        float_code,
    }
}

/// Whether a program jumped out of its own half: to the kernel's, where it found
/// nothing to execute, or to an address that is none (some processors fault
/// there, others at the jump). The kernel's own code does not leave its text.
fn is_wild_jump(frame: &TrapFrame) -> bool {
    match frame.vector {
        13 => (USER_END..KERNEL_HALF).contains(&frame.rip),
        14 => frame.error & USER_FETCH == USER_FETCH && frame.cr2 == frame.rip,
        _ => false,
    }
}

fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        3 => "breakpoint",
        4 => "overflow",
        6 => "invalid instruction",
        8 => "double fault",
        12 => "stack fault",
        13 => "general protection fault",
        14 => "page fault",
        16 | 19 => "floating-point exception",
        17 => "alignment check",
        0x100 => "system call with a bad return address",
        _ => "exception",
    }
}

fn report(frame: &TrapFrame) -> String {
    let access = match (frame.vector, frame.error) {
        (14, error) if error & FETCH != 0 => format!("executing {:#x}: ", frame.cr2),
        (14, error) if error & 2 != 0 => format!("writing {:#x}: ", frame.cr2),
        (14, _) => format!("reading {:#x}: ", frame.cr2),
        _ => String::new(),
    };
    let address = if frame.vector == 14 {
        frame.cr2
    } else {
        frame.rip
    };
    let region = process::with(|p| p.describe(address));
    format!(
        "{} {access}at rip {:#x}, rsp {:#x}; {region}",
        name(frame.vector),
        frame.rip,
        frame.rsp
    )
}
