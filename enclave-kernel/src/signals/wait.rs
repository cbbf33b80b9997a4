//! Waiting for signals: sigsuspend, sigtimedwait, and masks for one call.

use enclave_core::errno::Errno;
use enclave_core::signal::{Info, Restart, UNBLOCKABLE};
use enclave_core::thread::Wait;

use super::{Awaited, mask, set_mask};
use crate::arch::{self, TrapFrame};
use crate::{clock, process, threads, user};

/// Whether the running thread has to look at a signal first.
fn is_due() -> bool {
    threads::with(|t| t.signals.is_due)
}

/// Blocks `wanted` for this call only; what was blocked comes back when it ends,
/// or when the handler that ended it returns.
///
/// # Errors
/// The call is interrupted at once.
pub(crate) fn with_mask(wanted: u64) -> Result<(), Errno> {
    let before = mask();
    threads::with(|t| {
        t.signals.saved_mask.get_or_insert(before);
    });
    set_mask(wanted & !UNBLOCKABLE);
    if is_due() {
        return Err(Restart::Never.to_errno());
    }
    Ok(())
}

/// Ends what [`with_mask`] began, when no signal came.
pub(crate) fn end_mask() {
    if let Some(mask) = threads::with(|t| t.signals.saved_mask.take()) {
        set_mask(mask);
    }
}

/// Waits for a handler to be called, with `wanted` blocked if given; the answer
/// of who runs then.
pub(crate) fn suspend(wanted: Option<u64>, frame: &mut TrapFrame) -> Result<u64, Errno> {
    match wanted {
        Some(wanted) => with_mask(wanted)?,
        None if is_due() => return Err(Restart::Never.to_errno()),
        None => {}
    }
    let wait = Wait {
        futex: None,
        deadline: None,
        late: 0,
        broken: Restart::Never.to_answer(false),
    };
    Ok(threads::block(frame, wait))
}

/// Takes one of the signals in `set`, or waits for one until `deadline` (`None`
/// = for ever); where its siginfo goes, if anywhere.
pub(crate) fn timed_wait(
    set: u64,
    info_to: u64,
    deadline: Option<u64>,
    frame: &mut TrapFrame,
) -> Result<u64, Errno> {
    let set = set & !UNBLOCKABLE;
    if let Some(info) = take(set) {
        if info_to != 0 {
            user::write(info_to, &info.to_words())?;
        }
        return Ok(u64::from(info.signal()));
    }
    if deadline == Some(0) {
        return Err(Errno::EAGAIN);
    }
    if is_due() {
        return Err(Restart::Never.to_errno());
    }
    threads::with(|t| t.signals.awaited = Some(Awaited { set, info_to }));
    let wait = Wait {
        futex: None,
        deadline,
        late: Errno::EAGAIN.to_result(),
        broken: Errno::EINTR.to_result(),
    };
    Ok(threads::block(frame, wait))
}

/// Takes a pending signal of `set`, the thread's own before the program's.
fn take(set: u64) -> Option<Info> {
    process::with(|p| {
        let tid = p.threads.running(arch::core())?;
        let budget = &mut p.signals.budget;
        let thread = p.threads.context(tid)?;
        let own = thread.signals.pending.take(set, budget);
        let info = own.or_else(|| p.signals.pending.take(set, budget));
        info.map(|info| p.timers.tell(info, clock::monotonic_ns()))
    })
}
