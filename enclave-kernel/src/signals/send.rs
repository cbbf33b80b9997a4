//! Signals on their way to a thread: who takes them, whose wait they end.

use alloc::vec::Vec;

use enclave_core::errno::Errno;
use enclave_core::signal::{Disposition, Info, bit};
use enclave_core::thread::{Threads, Tid};

use super::Thread;
use crate::process::Process;
use crate::threads::Context;
use crate::{arch, clock, cores, host, process, user};

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Any thread that does not block it.
    Program,
    /// This thread.
    Thread(Tid),
}

/// Sends a signal; nothing happens when the program ignores it.
///
/// # Errors
/// `ESRCH` without that thread; as [`enclave_core::signal::Pending::add`].
pub(crate) fn send(target: Target, info: Info) -> Result<(), Errno> {
    let signal = info.signal();
    let awaiting = process::with(|p| {
        if is_ignored(p, target, signal)? {
            return Ok::<_, Errno>(None);
        }
        if let Some((tid, to)) = awaiting(p, target, signal) {
            return Ok(Some((tid, to, p.timers.tell(info, clock::monotonic_ns()))));
        }
        queue(p, target, info)?;
        if let Some(tid) = choose(p, target, signal) {
            notify(p, tid);
        }
        Ok(None)
    })?;
    let Some((tid, to, info)) = awaiting else {
        return Ok(());
    };
    // Its memory is everybody's: its call is answered here.
    let told = if to == 0 {
        Ok(())
    } else {
        user::write(to, &info.to_words())
    };
    let answer = told.map_or_else(Errno::to_result, |()| u64::from(signal));
    process::with(|p| p.threads.complete(tid, answer));
    Ok(())
}

/// Whether it is dropped at once: ignored, and not blocked by whom it is for.
fn is_ignored(p: &mut Process, target: Target, signal: u8) -> Result<bool, Errno> {
    let tid = match target {
        Target::Thread(tid) => tid,
        Target::Program if p.threads.has(p.pid) => p.pid,
        Target::Program => p.threads.numbers().next().ok_or(Errno::ESRCH)?,
    };
    let action = p.signals.actions.of(signal);
    let thread = &p.threads.context(tid).ok_or(Errno::ESRCH)?.signals;
    let awaited = thread.awaited.map_or(0, |awaited| awaited.set);
    let is_blocked = (thread.mask | awaited) & bit(signal) != 0;
    Ok(!is_blocked && action.disposition(signal) == Disposition::Ignore)
}

/// A thread that waits for this very signal, and where it wants to be told.
fn awaiting(p: &mut Process, target: Target, signal: u8) -> Option<(Tid, u64)> {
    let of = |p: &mut Process, tid: Tid| {
        let is_waiting = p.threads.is_waiting(tid);
        let awaited = p.threads.context(tid)?.signals.awaited?;
        (is_waiting && awaited.set & bit(signal) != 0).then_some((tid, awaited.info_to))
    };
    match target {
        Target::Thread(tid) => of(p, tid),
        Target::Program => {
            let all: Vec<Tid> = p.threads.numbers().collect();
            all.into_iter().find_map(|tid| of(p, tid))
        }
    }
}

fn queue(p: &mut Process, target: Target, info: Info) -> Result<(), Errno> {
    let budget = &mut p.signals.budget;
    match target {
        Target::Program => p.signals.pending.add(info, budget),
        Target::Thread(tid) => {
            let thread = p.threads.context(tid).ok_or(Errno::ESRCH)?;
            thread.signals.pending.add(info, budget)
        }
    }
}

/// Who takes it: of several, the program's first thread if it can.
fn choose(p: &mut Process, target: Target, signal: u8) -> Option<Tid> {
    let takes = |p: &mut Process, tid: Tid| {
        let thread = p.threads.context(tid)?;
        (thread.signals.mask & bit(signal) == 0).then_some(tid)
    };
    match target {
        Target::Thread(tid) => takes(p, tid),
        Target::Program => {
            let all: Vec<Tid> = p.threads.numbers().collect();
            takes(p, p.pid).or_else(|| all.into_iter().find_map(|tid| takes(p, tid)))
        }
    }
}

/// Has `tid` look at its signals before it goes on, and ends its wait.
fn notify(p: &mut Process, tid: Tid) {
    if let Some(thread) = p.threads.context(tid) {
        thread.signals.is_due = true;
    }
    match p.threads.core_of(tid) {
        Some(core) if core == arch::core() => host::call_attention(),
        Some(core) => cores::call_out(core),
        None => {
            p.threads.interrupt(tid);
        }
    }
}

/// Whether a signal still waits, for `target` or for any thread.
pub(crate) fn is_pending(
    threads: &mut Threads<Context>,
    shared: u64,
    signal: u8,
    target: Option<Tid>,
) -> bool {
    let own = target.map(|tid| threads.context(tid).map_or(0, |t| t.signals.pending.set()));
    own.unwrap_or(shared) & bit(signal) != 0
}

/// Finds somebody else for signals of the program that the one who was to take
/// them blocks now.
pub(super) fn retarget(p: &mut Process, set: u64) {
    let mut left = set;
    while let Some(signal) = enclave_core::signal::first_of(left) {
        left &= !bit(signal);
        if let Some(tid) = choose(p, Target::Program, signal) {
            notify(p, tid);
        }
    }
}

/// Gives back what a thread that ended held, and what only it would have taken.
pub(crate) fn thread_gone(p: &mut Process, thread: &mut Thread) {
    thread.pending.drop_all(u64::MAX, &mut p.signals.budget);
    let shared = p.signals.pending.set() & !thread.mask;
    if shared != 0 {
        retarget(p, shared);
    }
}

/// Drops what is pending of a signal that the program ignores from now on.
pub(crate) fn forget(p: &mut Process, signal: u8) {
    let budget = &mut p.signals.budget;
    p.signals.pending.drop_all(bit(signal), budget);
    for thread in p.threads.contexts() {
        thread.signals.pending.drop_all(bit(signal), budget);
    }
}
