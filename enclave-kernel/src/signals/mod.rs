//! Signals of the running program: what is pending, and the ways to a handler.
//!
//! Called by the signal calls of `syscall`, by faults, and on every way back to
//! the program when [`host::attention`] says that there is something to do. What
//! a signal does is decided in `enclave-core/signal`; here are the state, the
//! frames on a program's stack ([`frame`]) and the end of waits ([`send`]).
//! A handler is called by changing the frame with which the program goes on, so
//! both privilege modes and every way in have the same path. There is no tick: a
//! computing thread is interrupted by what comes from the host, not by others.

mod deliver;
mod frame;
mod send;
mod wait;

pub(crate) use deliver::{deliver, fault, force_segv};
pub(crate) use frame::give_back;
pub(crate) use send::{Target, forget, is_pending, send, thread_gone};
pub(crate) use wait::{end_mask, suspend, timed_wait, with_mask};

use enclave_core::signal::{Actions, AltStack, Budget, Info, Pending, Restart, UNBLOCKABLE};
use enclave_core::signal::{bit, code};
use enclave_core::thread::Tid;

use crate::arch::{self, TrapFrame};
use crate::{host, process, threads, timers};

/// What a program said about signals, and those that are for any of its threads.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub(crate) actions: Actions,
    pub(crate) pending: Pending,
    pub(crate) budget: Budget,
}

/// What a thread waits for in sigtimedwait(2).
#[derive(Clone, Copy, Debug)]
struct Awaited {
    set: u64,
    /// Where what there is to say goes; 0 = nowhere.
    info_to: u64,
}

/// Signals of a thread.
#[derive(Debug, Default)]
pub(crate) struct Thread {
    mask: u64,
    /// The mask to go back to when that in force is one call's only.
    saved_mask: Option<u64>,
    pending: Pending,
    alt: AltStack,
    /// Whether there may be something to do before it goes on.
    is_due: bool,
    awaited: Option<Awaited>,
    /// Error code, vector and address of its newest fault.
    fault: [u64; 3],
    /// When its newest wait is over by itself.
    wait_end: Option<u64>,
    /// The same for a call that begins anew.
    resume_end: Option<u64>,
    /// Its frame stands at a call again that would have waited.
    stands_at_call: bool,
}

impl Thread {
    /// Those of a thread that this one's thread makes.
    pub(crate) fn of_new_thread(&self) -> Self {
        Self {
            mask: self.mask,
            ..Self::default()
        }
    }

    /// Takes note of when a wait that begins now is over by itself.
    pub(crate) fn note_wait(&mut self, deadline: Option<u64>) {
        self.wait_end = deadline;
    }

    /// Takes note that it waits in order to make its call once more: a signal
    /// interrupts that call, whether the wait is over or not.
    pub(crate) fn note_again(&mut self) {
        self.stands_at_call = true;
    }
}

/// The running thread's mask.
pub(crate) fn mask() -> u64 {
    threads::with(|t| t.signals.mask)
}

/// Blocks `mask` in the running thread from now on, and nothing else.
pub(crate) fn set_mask(mask: u64) {
    let is_due = process::with(|p| {
        let tid = p.threads.running(arch::core())?;
        let shared = p.signals.pending.set();
        let thread = &mut p.threads.context(tid)?.signals;
        let newly = mask & !thread.mask;
        thread.mask = mask & !UNBLOCKABLE;
        thread.is_due = (thread.pending.set() | shared) & !thread.mask != 0;
        let is_due = thread.is_due;
        // What it does not take any more may be another's to take.
        if shared & newly != 0 {
            send::retarget(p, shared & newly);
        }
        Some(is_due)
    });
    if is_due == Some(true) {
        host::call_attention();
    }
}

/// What is pending for the running thread, blocked or not.
pub(crate) fn pending() -> u64 {
    process::with(|p| {
        let shared = p.signals.pending.set();
        let running = p.threads.running(arch::core());
        let thread = running.and_then(|tid| p.threads.context(tid));
        shared | thread.map_or(0, |t| t.signals.pending.set())
    })
}

/// The running thread's alternate stack.
pub(crate) fn alt_stack() -> AltStack {
    threads::with(|t| t.signals.alt)
}

/// Changes it.
pub(crate) fn set_alt_stack(alt: AltStack) {
    threads::with(|t| t.signals.alt = alt);
}

/// When the wait is over that goes on because its call began anew, once.
pub(crate) fn resumed_end() -> Option<u64> {
    threads::with(|t| t.signals.resume_end.take())
}

/// Thread `tid` goes on with `answer`: whether there is something to do first.
pub(crate) fn resumed(tid: Tid, answer: u64) {
    let is_due = process::with(|p| {
        p.threads.context(tid).is_some_and(|t| {
            t.signals.awaited = None;
            t.signals.stands_at_call &= t.signals.is_due;
            t.signals.is_due
        })
    });
    if is_due || Restart::from_answer(answer).is_some() {
        host::call_attention();
    }
}

/// Does what there is to do before the program goes on with `frame`: it may end,
/// or go on with a handler.
#[cold]
pub(crate) fn attend(frame: &mut TrapFrame) {
    host::attended();
    take_commands();
    deliver(frame);
}

/// The same while every thread waits.
#[cold]
pub(crate) fn attend_idle() {
    host::attended();
    take_commands();
}

/// Takes the signals that the host sent.
fn take_commands() {
    crate::processes::attend();
    process::end_if_killed();
    take();
}

/// Takes those for the current process.
pub(crate) fn take() {
    let run = process::with(|p| p.run);
    let mut left = host::take_signals(run);
    if host::take_alarm(run) {
        timers::expire();
    }
    while let Some(signal) = enclave_core::signal::first_of(left) {
        left &= !bit(signal);
        // Beyond what is queued one more makes no difference.
        let _ = send(Target::Program, Info::sent(signal, code::SI_USER, 0, 0));
    }
}
