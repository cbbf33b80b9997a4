//! The way back to a program that has signals: which one is next, its handler or
//! its default, and what becomes of the call that it interrupted.

use alloc::format;
use alloc::string::{String, ToString};

use enclave_abi::layout::USER_END;
use enclave_core::errno::Errno;
use enclave_core::signal::flag::SA_RESTART;
use enclave_core::signal::number::SIGSEGV;
use enclave_core::signal::{Action, Disposition, Fault, Info, Restart, Resume, bit, code};

use super::frame::{NO_CALL, enter};
use crate::arch::{self, TrapFrame};
use crate::{clock, host, process, threads, user};

/// Bytes of SYSCALL.
const CALL_BYTES: u64 = 2;

/// What comes first.
enum Next {
    /// This handler is to be called.
    Call(Info, Action),
    /// This signal ends the program.
    End(Info),
    /// There is nothing more to do.
    Nothing,
}

/// Does what the pending signals of the running thread demand: ends the program,
/// or changes `frame` such that it goes on with their handlers.
pub(crate) fn deliver(frame: &mut TrapFrame) {
    let mut interrupted = interrupted(frame);
    loop {
        match next() {
            Next::Call(info, action) => {
                if let Some(call) = interrupted.take() {
                    end_call(frame, call, action.has(SA_RESTART));
                }
                call(frame, info, &action);
            }
            Next::End(info) => end(&info),
            Next::Nothing => {
                // The mask that comes back may let more in.
                let saved = threads::with(|t| t.signals.saved_mask.take());
                match saved {
                    Some(mask) => super::set_mask(mask),
                    None => break,
                }
            }
        }
    }
    if let Some((_, is_back)) = interrupted {
        threads::with(|t| t.signals.resume_end = t.signals.wait_end);
        begin_anew(frame, is_back);
    }
}

/// How the call of `frame` was interrupted, if it was.
fn interrupted(frame: &TrapFrame) -> Option<(Restart, bool)> {
    let stands_at_call = threads::with(|t| core::mem::take(&mut t.signals.stands_at_call));
    if !frame.is_call() {
        return None;
    }
    let at_call = || stands_at_call.then(|| (Restart::of_call(frame.call_number()), true));
    Restart::from_answer(frame.rax).or_else(at_call)
}

/// Decides what becomes of an interrupted call when a handler is called.
fn end_call(frame: &mut TrapFrame, (restart, is_back): (Restart, bool), restarts: bool) {
    threads::no_patience();
    match restart.resume(Some(restarts)) {
        Resume::Again => begin_anew(frame, is_back),
        Resume::Interrupted => {
            if is_back {
                frame.rip = frame.rip.wrapping_add(CALL_BYTES);
            }
            frame.rax = Errno::EINTR.to_result();
            if restart == Restart::Timed {
                tell_rest(frame);
            }
        }
    }
}

/// Has the program make its call once more.
fn begin_anew(frame: &mut TrapFrame, is_back: bool) {
    if !is_back {
        frame.rip = frame.rip.wrapping_sub(CALL_BYTES);
    }
    frame.rax = frame.call_number();
}

/// Tells an interrupted sleep how much of it is left.
fn tell_rest(frame: &mut TrapFrame) {
    const SECOND: u64 = 1_000_000_000;
    let to = match frame.call_number() {
        35 => frame.rsi,
        230 => frame.r10,
        _ => return,
    };
    let end = threads::with(|t| t.signals.wait_end).unwrap_or(0);
    let left = end.saturating_sub(clock::monotonic_ns());
    if to != 0 && user::write(to, &[left / SECOND, left % SECOND]).is_err() {
        frame.rax = Errno::EFAULT.to_result();
    }
}

/// Takes the next signal that the running thread does not block.
fn next() -> Next {
    process::with(|p| {
        let Some(tid) = p.threads.running(arch::core()) else {
            return Next::Nothing;
        };
        let budget = &mut p.signals.budget;
        let Some(thread) = p.threads.context(tid) else {
            return Next::Nothing;
        };
        let thread = &mut thread.signals;
        let wanted = !thread.mask;
        loop {
            let own = thread.pending.take(wanted, budget);
            let Some(info) = own.or_else(|| p.signals.pending.take(wanted, budget)) else {
                thread.is_due = false;
                return Next::Nothing;
            };
            let info = p.timers.tell(info, clock::monotonic_ns());
            let actions = &mut p.signals.actions;
            match actions.of(info.signal()).disposition(info.signal()) {
                Disposition::Ignore => {}
                Disposition::Terminate => return Next::End(info),
                Disposition::Call => return Next::Call(info, actions.take(info.signal())),
            }
        }
    })
}

/// Calls a handler. Without a place for its frame SIGSEGV comes instead, and
/// ends the program if it is what had no place.
fn call(frame: &mut TrapFrame, info: Info, action: &Action) {
    if enter(frame, info, action).is_ok() {
        return;
    }
    if info.signal() == SIGSEGV {
        process::end_by_signal(SIGSEGV, no_place(&info, action, frame));
    }
    force_segv();
}

/// Sends the running thread a SIGSEGV that cannot wait.
pub(crate) fn force_segv() {
    process::with(|p| {
        let tid = p.threads.running(arch::core())?;
        let thread = &mut p.threads.context(tid)?.signals;
        let is_blocked = thread.mask & bit(SIGSEGV) != 0;
        thread.mask &= !bit(SIGSEGV);
        p.signals.actions.force(SIGSEGV, is_blocked);
        let fault = Info::new(SIGSEGV, code::SI_KERNEL, [0; 4]);
        thread.is_due = true;
        // One of its kind is never too many.
        thread.pending.add(fault, &mut p.signals.budget).ok()
    });
    host::call_attention();
}

fn no_place(info: &Info, action: &Action, frame: &TrapFrame) -> String {
    format!(
        "the handler {:#x} of signal {} cannot be called: rip {:#x}, rsp {:#x}",
        action.handler,
        info.signal(),
        frame.rip,
        frame.rsp
    )
}

fn end(info: &Info) -> ! {
    let by_user = [code::SI_USER, code::SI_TKILL].contains(&info.code());
    let report = match info.field() as u32 {
        pid if by_user && u64::from(pid) == process::pid() => {
            "raised by the program itself".to_string()
        }
        0 if by_user => "killed on request".to_string(),
        _ if info.code() == code::SI_KERNEL => {
            "a handler could not be called, or returned to nowhere".to_string()
        }
        _ => format!("sent with code {}", info.code()),
    };
    process::end_by_signal(info.signal(), report)
}

/// An exception of the program: calls its handler, if it has one that can be
/// called now; `false` when the exception ends the program.
pub(crate) fn fault(frame: &mut TrapFrame, fault: &Fault) -> bool {
    let info = fault.info();
    let signal = info.signal();
    let action = process::with(|p| {
        let tid = p.threads.running(arch::core())?;
        let thread = &mut p.threads.context(tid)?.signals;
        // As Linux: what is mapped in the kernel's half is nobody's business.
        let hidden = u64::from(fault.vector == 14 && fault.address >= USER_END);
        thread.fault = [fault.error | hidden, fault.vector, fault.address];
        let is_blocked = thread.mask & bit(signal) != 0;
        let actions = &mut p.signals.actions;
        actions.force(signal, is_blocked);
        let is_called = actions.of(signal).disposition(signal) == Disposition::Call;
        is_called.then(|| actions.take(signal))
    });
    let Some(action) = action else {
        return false;
    };
    if enter(frame, info, &action).is_ok() {
        return true;
    }
    if signal == SIGSEGV {
        return false;
    }
    frame.vector = NO_CALL;
    call(frame, info, &action);
    deliver(frame);
    true
}
