//! Signals for the program that runs: what ends it, and what it may handle.
//!
//! Called by the control side. The interrupt that carries a command can arrive
//! between the kernel's last look at its queue and its return to the program,
//! so it is repeated until the kernel has reacted. Promises that nobody who asks
//! waits longer than about a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cores::Cores;
use super::state::{Shared, Urgency};
use super::{Machine, MachineState};
use crate::confine::{self, Role};

/// Time between two interrupts.
const PAUSE: Duration = Duration::from_millis(10);
/// Signals of users and batch systems that want a program to end.
const ASK_TO_END: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
/// Interrupts before whoever asked goes on.
const TRIES: usize = 100;

/// How many times as long as an alarm takes to arrive there is none after it: one
/// upon the other would leave a slow kernel's program no time.
const REST: u32 = 16;
/// In place of a signal: the kernel looks at the program's timers.
const LOOK: u8 = 0;

/// Interrupts the enclave until its kernel has taken the signals of run `run`.
fn until_taken(shared: &Shared, cores: &Cores, run: u64) {
    for _ in 0..TRIES {
        cores.rouse();
        if shared.wait_taken(run, PAUSE) {
            return;
        }
    }
}

impl Machine {
    /// Kills the program of run `run` if it still runs; returns when it is gone
    /// or has not reacted for a second. Ten seconds without a reaction are a
    /// failed machine.
    pub fn kill(&self, run: u64, signal: u8) {
        if self.shared.keep_kill(run, signal) {
            return;
        }
        if !self.shared.submit_signal(run, Urgency::Kill, signal) {
            return;
        }
        // A program that is being looked at could not be killed.
        self.debugger.end();
        for _ in 0..TRIES {
            self.rouse();
            if self.shared.wait_gone(run, PAUSE) {
                return;
            }
        }
        self.give_up_later(run);
    }

    /// Sends the program of run `run` a signal if it still runs: it may have a
    /// handler for it, or ignore it. Returns when its kernel has taken it or has
    /// not reacted for a second. SIGKILL is [`Machine::kill`].
    pub fn signal(&self, run: u64, signal: u8) {
        if i32::from(signal) == libc::SIGKILL {
            return self.kill(run, signal);
        }
        if !self.shared.submit_signal(run, Urgency::Tell, signal) {
            return;
        }
        if ASK_TO_END.contains(&i32::from(signal)) {
            // Nor could one that is being looked at end by itself.
            self.debugger.end();
        }
        until_taken(&self.shared, &self.cores, run);
    }

    /// Starts the thread that tells kernels when a timer of their program is due.
    ///
    /// # Errors
    /// The system's, when there is no thread to be had.
    pub(super) fn tell_alarms(&self) -> std::io::Result<()> {
        let (shared, cores) = (Arc::clone(&self.shared), Arc::clone(&self.cores));
        let body = move || {
            while let Some(run) = shared.alarms.next() {
                let began = Instant::now();
                if shared.submit_signal(run, Urgency::Tell, LOOK) {
                    until_taken(&shared, &cores, run);
                    shared.alarms.rest(began.elapsed().saturating_mul(REST));
                }
            }
        };
        confine::spawn(Role::Helper, "alarms", body).map(drop)
    }

    /// Has the kernel look at its queue until `is_done`, for a second at most.
    pub(super) fn call_kernel(&self, is_done: impl Fn(Duration) -> bool) {
        for _ in 0..TRIES {
            self.rouse();
            if is_done(PAUSE) {
                return;
            }
        }
    }

    /// Declares the machine failed if its kernel does not take the kill of
    /// `run` at all: a program may have overwritten it (ring-3 mode). Whoever
    /// asked for the kill does not wait for that.
    fn give_up_later(&self, run: u64) {
        const PATIENCE: Duration = Duration::from_secs(9);
        let shared = Arc::clone(&self.shared);
        let watch = move || {
            if !shared.wait_gone(run, PATIENCE) {
                shared.ended(MachineState::Failed {
                    reason: "the kernel does not take a kill".into(),
                });
            }
        };
        // Without a thread the machine only looks busy until it is destroyed.
        let _ = confine::spawn(Role::Helper, "kill-watch", watch);
    }
}
