//! A process that is nobody's child and holds nothing of ours.
//!
//! For brokers started by a library: the program around it may wait for any
//! child, count SIGCHLDs, or expect a pipe to end when its own processes do.

// UNSAFETY: runs code between fork(2) and exec(2).
#![expect(unsafe_code)]

use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// First descriptor behind the standard ones.
const FIRST: libc::c_uint = 3;

/// Makes `command` start a grandchild; the child ends at once, status 0.
pub(super) fn set_apart(command: &mut Command) {
    // SAFETY: runs in the child of a process that may have threads: makes
    // system calls only, allocates nothing, takes no lock.
    unsafe { command.pre_exec(leave) };
}

fn leave() -> Result<(), Error> {
    // Older kernels than 5.11 cannot: then descriptors without CLOEXEC stay.
    // By number, because musl has no function for it.
    // SAFETY: marks descriptors of this process, which is about to exec.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    // Not fork(3), which runs handlers of the program.
    // SAFETY: the parent leaves by _exit, the child goes on to exec.
    match unsafe { libc::syscall(libc::SYS_fork) } {
        0 => Ok(()),
        -1 => Err(Error::last_os_error()),
        // SAFETY: ends the child in between, without running anything of the
        // program's.
        _ => unsafe { libc::_exit(0) },
    }
}
