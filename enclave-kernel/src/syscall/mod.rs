//! The one match: system-call number → function; errors become errno here.
//!
//! Called from every gate with the saved frame. Unknown calls are logged once
//! per program by number and name and refused with ENOSYS.

mod arena;
mod file;
mod futex;
mod identity;
mod import;
mod limits;
mod mem;
mod misc;
mod scheduling;
mod segment;
mod signal;
mod thread;
mod timer;

use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::syscall as ours;
use enclave_core::errno::Errno;
use enclave_core::names::syscall_name;
use enclave_core::signal::Restart;

use crate::arch::TrapFrame;
use crate::{console, host, process, signals, threads};

/// Result of a system call.
type Outcome = Result<u64, Errno>;

/// System calls served.
pub(crate) static SERVED: AtomicU64 = AtomicU64::new(0);

const GETPID: u64 = 39;

/// The host's answer as a value or an errno.
fn answer(value: u64) -> Outcome {
    Errno::from_result(value).map_or(Ok(value), Err)
}

/// Serves the call in `frame` and puts the result into its RAX.
pub(crate) fn dispatch(frame: &mut TrapFrame) {
    SERVED.fetch_add(1, Ordering::Relaxed);
    if frame.rax == GETPID {
        // Trivial calls first: where ring 0 is interpreted, each instruction
        // on this way costs as much as a hundred elsewhere.
        frame.rax = process::pid();
        return;
    }
    let outcome = if frame.rax == ours::ARENA_PUBLISH {
        arena::publish(frame.rdi, frame.rsi, frame.rdx)
    } else {
        serve(frame)
    };
    frame.rax = match outcome {
        Ok(value) => value,
        Err(errno) => refused(frame, errno),
    };
    if host::poll_attention() {
        signals::attend(frame);
    }
}

/// What a call that failed answers, or the thread that runs instead of one whose
/// call would hold the core. A publish that has to wait for a reader
/// begins anew here, from the frame, so that the usual way need not keep its
/// arguments.
#[cold]
fn refused(frame: &mut TrapFrame, errno: Errno) -> u64 {
    let (slot, step, time_bits) = (frame.rdi, frame.rsi, frame.rdx);
    let outcome = match (frame.rax, errno) {
        (ours::ARENA_PUBLISH, arena::MUST_WAIT) => arena::publish_when_free(slot, step, time_bits),
        (ours::ARENA_PUBLISH, arena::MUST_ASK) => arena::publish_with_bells(slot, step, time_bits),
        _ => Err(errno),
    };
    match outcome {
        Ok(value) => value,
        Err(threads::LATER) => threads::again_later(frame),
        Err(errno) => interrupted(frame, errno),
    }
}

/// What a call answers that failed; one that a signal interrupted is decided
/// about on the way back.
fn interrupted(frame: &mut TrapFrame, errno: Errno) -> u64 {
    let answer = match errno {
        Errno::EINTR => Restart::of_call(frame.rax).to_answer(false),
        _ => errno.to_result(),
    };
    if Restart::from_answer(answer).is_some() {
        frame.keep_call_number();
        host::call_attention();
    }
    answer
}

/// Apart from [`dispatch`], which has no registers to save for this.
#[inline(never)]
fn serve(frame: &mut TrapFrame) -> Outcome {
    let nr = frame.rax;
    let a = [
        frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9,
    ];
    match nr {
        0 | 1 | 17..=20 | 295 | 296 => file::transfer(nr, a),
        9 => mem::mmap(a),
        10 => mem::mprotect(a[0], a[1], a[2]),
        11 => mem::munmap(a[0], a[1]),
        12 => Ok(mem::brk(a[0])),
        25 => mem::mremap(a),
        28 => mem::madvise(a[0], a[1], a[2]),
        26 | 27 | 149..=152 | 325 => mem::resident(nr, a),
        231 => process::end_by_exit(a[0]),
        ours::BASE.. => arena::serve(nr, a),
        _ => thread::serve(nr, a, frame)
            .or_else(|| signal::serve(nr, a, frame))
            .or_else(|| timer::serve(nr, a))
            .or_else(|| misc::serve(nr, a))
            .or_else(|| identity::serve(nr, a))
            .or_else(|| scheduling::serve(nr, a, frame))
            .or_else(|| limits::serve(nr, a))
            .or_else(|| file::serve(nr, a))
            .unwrap_or_else(|| Err(unknown(nr))),
    }
}

/// Logs an unknown call, once per program.
fn unknown(nr: u64) -> Errno {
    let fresh = process::with(|p| {
        let Some(word) = p.logged.get_mut((nr / 64) as usize) else {
            return true;
        };
        let bit = 1 << (nr % 64);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    });
    if fresh {
        let name = syscall_name(nr).unwrap_or("?");
        console::line(format_args!("system call {nr} ({name}) is not implemented"));
    }
    Errno::ENOSYS
}
