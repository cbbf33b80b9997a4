//! The `syscall` instruction.
//!
//! Called by [`crate::calls`] only. One unsafe function, no decisions: which
//! numbers exist and what their arguments mean stands in
//! `enclave_abi::syscall`.

// UNSAFETY: issuing a system call has no safe form; what it may touch follows
// from its number and arguments.
#![expect(unsafe_code)]

use core::arch::asm;

/// Issues system call `number` and returns RAX as it is.
///
/// # Safety
/// The arguments must be such that the call, as documented for its number,
/// touches only memory that the caller may hand out: pointers must be valid
/// for the bytes and the direction the call documents, and mappings that it
/// removes must not be used afterwards.
pub(crate) unsafe fn syscall(number: u64, args: [u64; 4]) -> u64 {
    let result;
    // SAFETY: the kernel's entry preserves every register but RAX, RCX and
    // R11, which are declared, and uses its own stack (the red zone stays).
    // Memory effects are the caller's responsibility by the contract above;
    // the block is not `nomem`, so the compiler keeps memory up to date.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
