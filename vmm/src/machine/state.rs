//! What the vCPU thread and the control side share: machine state, commands on
//! their way in, outcomes on their way out.
//!
//! One mutex, one condition variable; nobody holds the lock while calling out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::alarm::Alarms;
use super::{FreezeError, MachineReport, MachineState, RunError, RunOutcome, RunSpec};

/// A command for the kernel that the vCPU thread has to deliver.
#[derive(Debug)]
pub(super) enum Pending {
    /// Start this program (delivered when the kernel is idle).
    Run(u64, Box<RunSpec>),
    /// A signal for a run (delivered at once).
    Signal(u64, Urgency, u8),
}

/// Whether a program is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// It ends by the signal.
    Kill,
    /// It may handle, block or ignore it.
    Tell,
}

#[derive(Debug)]
struct Inner {
    state: MachineState,
    booted: bool,
    next_run: u64,
    current: Option<(u64, String)>,
    pending: VecDeque<Pending>,
    outcomes: BTreeMap<u64, RunOutcome>,
    report: MachineReport,
    stopping: bool,
    /// No vCPU may enter the guest.
    frozen: bool,
    /// vCPUs in the guest, or about to be.
    inside: usize,
    /// A kill that came while the machine was frozen: run and signal.
    kill_at_thaw: Option<(u64, u8)>,
    /// The current run is to end, whatever it does.
    killing: bool,
    /// Signals that the kernel has not said it took.
    untaken: bool,
}

impl Inner {
    fn state(&self) -> MachineState {
        match (&self.state, self.frozen) {
            (MachineState::Idle, true) => MachineState::Frozen {
                program: String::new(),
            },
            (MachineState::Running { program }, true) => MachineState::Frozen {
                program: program.clone(),
            },
            (state, _) => state.clone(),
        }
    }
}

/// The shared state.
#[derive(Debug)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Readable while a blocking forwarded call has to end.
    cancel: EventFd,
    /// When programs are to be told that a timer is due.
    pub(super) alarms: Alarms,
}

/// Outcomes nobody has waited for are kept for the newest so many runs.
const MAX_OUTCOMES: usize = 64;

impl Shared {
    pub(super) fn new(report: MachineReport) -> std::io::Result<Self> {
        Ok(Self {
            inner: Mutex::new(Inner {
                state: MachineState::Booting,
                booted: false,
                next_run: 1,
                current: None,
                pending: VecDeque::new(),
                outcomes: BTreeMap::new(),
                report,
                stopping: false,
                frozen: false,
                inside: 0,
                kill_at_thaw: None,
                killing: false,
                untaken: false,
            }),
            changed: Condvar::new(),
            cancel: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            alarms: Alarms::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Plain data, whole after a panic elsewhere.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cancel(&self) -> &EventFd {
        &self.cancel
    }

    pub(super) fn state(&self) -> MachineState {
        self.lock().state()
    }

    pub(super) fn report(&self) -> MachineReport {
        self.lock().report.clone()
    }

    pub(super) fn update_report(&self, update: impl FnOnce(&mut MachineReport)) {
        update(&mut self.lock().report);
    }

    /// Waits until the guest may be entered, which it counts as; `false` when
    /// the machine stops. [`Shared::left`] goes with it.
    pub(super) fn enter(&self) -> bool {
        let mut inner = self.lock();
        while inner.frozen && !inner.stopping {
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if inner.stopping {
            return false;
        }
        inner.inside += 1;
        true
    }

    /// Counts an exit to user space: at once, `stats` looks while it runs.
    pub(super) fn left(&self, name: &str) {
        let mut inner = self.lock();
        count(&mut inner.report.exits, name);
        inner.inside = inner.inside.saturating_sub(1);
        if inner.frozen {
            self.changed.notify_all();
        }
    }

    /// Keeps the vCPUs from entering the guest; those inside still have to leave.
    pub(super) fn freeze(&self) -> Result<(), FreezeError> {
        let mut inner = self.lock();
        match inner.state {
            _ if inner.stopping => Err(FreezeError::NotUp),
            MachineState::Idle | MachineState::Running { .. } if inner.frozen => {
                Err(FreezeError::Frozen)
            }
            MachineState::Idle | MachineState::Running { .. } => {
                inner.frozen = true;
                Ok(())
            }
            _ => Err(FreezeError::NotUp),
        }
    }

    /// Waits `time` for the last vCPU to leave the guest; whether it has.
    pub(super) fn wait_outside(&self, time: Duration) -> bool {
        let is_inside = |inner: &mut Inner| inner.inside > 0;
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), time, is_inside);
        waited.unwrap_or_else(PoisonError::into_inner).0.inside == 0
    }

    /// Lets the vCPUs go on; the kill that came meanwhile, if one did.
    pub(super) fn thaw(&self) -> Result<Option<(u64, u8)>, FreezeError> {
        let mut inner = self.lock();
        if !inner.frozen {
            return Err(FreezeError::NotFrozen);
        }
        inner.frozen = false;
        self.changed.notify_all();
        Ok(inner.kill_at_thaw.take())
    }

    /// Keeps a kill until the machine is thawed; `false` when it is not frozen.
    pub(super) fn keep_kill(&self, run: u64, signal: u8) -> bool {
        let mut inner = self.lock();
        if inner.frozen {
            inner.kill_at_thaw = Some((run, signal));
        }
        inner.frozen
    }

    /// Counts a forwarded call.
    pub(super) fn count_forwarded(&self, name: &str) {
        count(&mut self.lock().report.forwarded, name);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Accepts a program if none runs.
    pub(super) fn submit(&self, spec: RunSpec) -> Result<u64, RunError> {
        let mut inner = self.lock();
        match &inner.state {
            MachineState::Idle | MachineState::Running { .. } if inner.frozen => {
                return Err(RunError::Frozen);
            }
            MachineState::Idle if inner.current.is_none() && !inner.stopping => {}
            MachineState::Booting | MachineState::Failed { .. } | MachineState::Stopped => {
                return Err(RunError::NotRunning(format!("{:?}", inner.state)));
            }
            _ => {
                let program = inner
                    .current
                    .as_ref()
                    .map_or_else(String::new, |(_, path)| path.clone());
                return Err(RunError::Busy(program));
            }
        }
        let run = inner.next_run;
        inner.next_run += 1;
        inner.current = Some((run, spec.path.clone()));
        inner.state = MachineState::Running {
            program: spec.path.clone(),
        };
        inner.pending.push_back(Pending::Run(run, Box::new(spec)));
        self.changed.notify_all();
        Ok(run)
    }

    /// Asks for a signal; `false` when that run is not the current one.
    pub(super) fn submit_signal(&self, run: u64, urgency: Urgency, signal: u8) -> bool {
        let mut inner = self.lock();
        if inner
            .current
            .as_ref()
            .is_none_or(|(current, _)| *current != run)
        {
            return false;
        }
        inner
            .pending
            .push_back(Pending::Signal(run, urgency, signal));
        match urgency {
            Urgency::Kill => inner.killing = true,
            Urgency::Tell => inner.untaken = true,
        }
        // A full counter is readable, too.
        let _ = self.cancel.write(1);
        self.changed.notify_all();
        true
    }

    /// The next command that may be delivered now.
    pub(super) fn take_pending(&self, idle: bool) -> Option<Pending> {
        let mut inner = self.lock();
        let position = inner
            .pending
            .iter()
            .position(|p| idle || matches!(p, Pending::Signal(..)))?;
        inner.pending.remove(position)
    }

    /// Blocks until there is a command for an idle kernel; `None` when the
    /// machine stops.
    pub(super) fn wait_pending(&self) -> Option<Pending> {
        let mut inner = self.lock();
        loop {
            if inner.stopping {
                return None;
            }
            if let Some(pending) = inner.pending.pop_front() {
                return Some(pending);
            }
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Blocks for `time`, or until there is a command or an end.
    pub(super) fn pause(&self, time: Duration) {
        let quiet = |inner: &mut Inner| inner.pending.is_empty() && !inner.stopping;
        // Whichever it was, the caller looks.
        let _ = self.changed.wait_timeout_while(self.lock(), time, quiet);
    }

    /// The kernel is up.
    pub(super) fn booted(&self, failed: Option<String>) {
        let mut inner = self.lock();
        inner.booted = true;
        inner.state = failed.map_or(MachineState::Idle, |reason| MachineState::Failed { reason });
        self.changed.notify_all();
    }

    /// The kernel has taken the signals for run `run` that were posted. Waits on
    /// its behalf go on, unless there are more.
    pub(super) fn signals_taken(&self, run: u64) {
        let mut inner = self.lock();
        let is_current = inner
            .current
            .as_ref()
            .is_some_and(|(current, _)| *current == run);
        let more = inner
            .pending
            .iter()
            .any(|p| matches!(p, Pending::Signal(..)));
        if is_current && !more && !inner.killing && !inner.stopping {
            inner.untaken = false;
            let _ = self.cancel.read();
            self.changed.notify_all();
        }
    }

    /// Waits until the kernel has taken the signals of run `run`, or that ended,
    /// at most `timeout`; whether it is so.
    pub(super) fn wait_taken(&self, run: u64, timeout: Duration) -> bool {
        let waits = |inner: &Inner| {
            let current = inner.current.as_ref();
            inner.untaken && current.is_some_and(|(current, _)| *current == run)
        };
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |inner| waits(inner))
            .unwrap_or_else(PoisonError::into_inner);
        !waits(&inner)
    }

    /// Run `run` ended.
    pub(super) fn finished(&self, run: u64, outcome: RunOutcome) {
        let mut inner = self.lock();
        if inner
            .current
            .as_ref()
            .is_none_or(|(current, _)| *current != run)
        {
            return;
        }
        inner.current = None;
        (inner.killing, inner.untaken) = (false, false);
        inner
            .pending
            .retain(|p| !matches!(p, Pending::Signal(told, ..) if *told == run));
        // No blocking call of the next program may see this one's kill.
        let _ = self.cancel.read();
        inner.outcomes.insert(run, outcome);
        while inner.outcomes.len() > MAX_OUTCOMES {
            inner.outcomes.pop_first();
        }
        if matches!(inner.state, MachineState::Running { .. }) {
            inner.state = MachineState::Idle;
        }
        self.changed.notify_all();
    }

    /// The machine ended; a failure is not overwritten by the stop that follows.
    pub(super) fn ended(&self, state: MachineState) {
        let mut inner = self.lock();
        if !matches!(inner.state, MachineState::Failed { .. }) {
            inner.state = state;
        }
        let reason = match &inner.state {
            MachineState::Failed { reason } => reason.clone(),
            _ => "the enclave was stopped".to_owned(),
        };
        if let Some((run, _)) = inner.current.take() {
            inner
                .outcomes
                .insert(run, RunOutcome::MachineStopped { reason });
        }
        self.changed.notify_all();
    }

    /// Tells everybody to stop.
    pub(super) fn request_stop(&self) {
        self.lock().stopping = true;
        self.alarms.end();
        let _ = self.cancel.write(1);
        self.changed.notify_all();
    }

    /// The outcome of run `run`. Waits for it, but for `time` (if any) at most and
    /// only until something happens: then the caller looks, and comes again.
    pub(super) fn wait_outcome(&self, run: u64, time: Option<Duration>) -> Option<RunOutcome> {
        let ended = |inner: &mut Inner| {
            let outcome = inner.outcomes.remove(&run);
            let is_current = matches!(&inner.current, Some((current, _)) if *current == run);
            outcome.or_else(|| {
                let reason = format!("run {run} is not known");
                (!is_current).then_some(RunOutcome::MachineStopped { reason })
            })
        };
        let mut inner = self.lock();
        if let Some(outcome) = ended(&mut inner) {
            return Some(outcome);
        }
        let mut inner = match time {
            None => self.changed.wait(inner),
            Some(time) => match self.changed.wait_timeout(inner, time) {
                Ok((inner, _)) => Ok(inner),
                Err(poisoned) => Ok(poisoned.into_inner().0),
            },
        }
        .unwrap_or_else(PoisonError::into_inner);
        ended(&mut inner)
    }

    /// Has those who wait look again.
    pub(super) fn wake(&self) {
        // Nobody may be between a look and its sleep.
        let _inner = self.lock();
        self.changed.notify_all();
    }

    /// Waits until run `run` is no longer the current one, at most `timeout`;
    /// whether it is.
    pub(super) fn wait_gone(&self, run: u64, timeout: Duration) -> bool {
        let is_current = |inner: &Inner| {
            inner
                .current
                .as_ref()
                .is_some_and(|(current, _)| *current == run)
        };
        let inner = self.lock();
        let (inner, _) = self
            .changed
            .wait_timeout_while(inner, timeout, |inner| is_current(inner))
            .unwrap_or_else(PoisonError::into_inner);
        !is_current(&inner)
    }

    /// Blocks until the kernel is up; whether it is.
    pub(super) fn wait_booted(&self) -> bool {
        let waits = |inner: &mut Inner| !inner.booted && !inner.stopping;
        let inner = self
            .changed
            .wait_while(self.lock(), waits)
            .unwrap_or_else(PoisonError::into_inner);
        inner.booted && !inner.stopping
    }

    pub(super) fn wait_ready(&self, timeout: Duration) -> MachineState {
        let deadline = Instant::now() + timeout;
        let mut inner = self.lock();
        while inner.state == MachineState::Booting {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (inner, _) = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        inner.state.clone()
    }
}

/// One more of `name`; copies the name the first time only.
fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(count) => *count = count.saturating_add(1),
        None => {
            counts.insert(name.to_owned(), 1);
        }
    }
}
