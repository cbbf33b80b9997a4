//! The `syscall` instruction.
//!
//! Called by [`crate::calls`] for the numbers of `enclave_abi::syscall`, and by
//! the Linux backend for Linux's. Decides nothing.

// UNSAFETY: issuing a system call has no safe form; what it may touch follows
// from its number and arguments.
#![expect(unsafe_code)]

use core::arch::asm;

/// Issues system call `number` with four arguments and returns RAX as it is.
///
/// # Safety
/// As [`syscall6`].
pub(crate) unsafe fn syscall(number: u64, args: [u64; 4]) -> u64 {
    let [a, b, c, d] = args;
    // SAFETY: this function's contract is that of `syscall6`.
    unsafe { syscall6(number, [a, b, c, d, 0, 0]) }
}

/// Issues system call `number` with six arguments and returns RAX as it is.
///
/// # Safety
/// The arguments must be such that the call, as documented for its number,
/// touches only memory that the caller may hand out: pointers must be valid
/// for the bytes and the direction the call documents, and mappings that it
/// removes must not be used afterwards.
pub(crate) unsafe fn syscall6(number: u64, args: [u64; 6]) -> u64 {
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
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
