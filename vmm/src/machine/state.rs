//! What the vCPU thread and the control side share: machine state, commands on
//! their way in, outcomes on their way out.
//!
//! One mutex, one condition variable; nobody holds the lock while calling out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use enclave_abi::queue::MAX_PROCESSES;

use super::alarm::Alarms;
use super::starts::Starts;
use super::{FreezeError, MachineReport, MachineState, ProcessInfo, RunError, RunOutcome, RunSpec};

/// A command for the kernel that the vCPU thread has to deliver.
#[derive(Debug)]
pub(super) enum Pending {
    /// Start this program.
    Run(u64, Box<RunSpec>),
    /// A signal for a run (delivered at once).
    Signal(u64, Urgency, u8),
    /// The kernel is to tell of its processes.
    List,
    /// Memory or a core comes or goes (delivered at once): number of the order.
    Change(u64, Order),
}

/// An order for memory or a core to come or go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// `MEMORY_ADD`, `MEMORY_REMOVE`, `CORE_ADD` or `CORE_REMOVE`.
    pub(super) what: u64,
    /// Guest-physical, or the number of the core.
    pub(super) start: u64,
    /// How much memory.
    pub(super) bytes: u64,
    /// It was never used.
    pub(super) is_zero: bool,
}

/// What the kernel says to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OrderAnswer {
    /// 0 = done.
    pub(super) errno: i32,
    /// Bytes in use, or the thread that keeps a core, where that is why not.
    pub(super) used: u64,
    /// Of these the program's.
    pub(super) of_program: u64,
}

/// Why the kernel cannot be given orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OrderError {
    /// It is held.
    Frozen,
    /// It is not up.
    NotUp,
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
    /// The programs that run or are about to, by run.
    runs: BTreeMap<u64, String>,
    pending: VecDeque<Pending>,
    outcomes: BTreeMap<u64, RunOutcome>,
    report: MachineReport,
    stopping: bool,
    /// No vCPU may enter the guest.
    frozen: bool,
    /// vCPUs in the guest, or about to be.
    inside: usize,
    /// Kills that came while the machine was frozen: signals by run.
    kills_at_thaw: BTreeMap<u64, u8>,
    /// Runs that are to end, whatever they do.
    killing: BTreeSet<u64>,
    /// Runs with signals that the kernel has not said it took.
    untaken: BTreeSet<u64>,
    /// Runs that the kernel has not fetched.
    starting: BTreeSet<u64>,
    /// The kernel is asked for its processes.
    asking: bool,
    /// Number of the last order, and whether its answer is awaited.
    order: (u64, bool),
    order_answer: Option<(u64, OrderAnswer)>,
    /// What the kernel told of its processes, and how often it has.
    processes: (u64, Vec<ProcessInfo>),
}

impl Inner {
    /// The kernel is up and not being stopped.
    fn is_up(&self) -> bool {
        let is_up = matches!(
            self.state,
            MachineState::Idle | MachineState::Running { .. }
        );
        is_up && !self.stopping
    }

    fn takes_orders(&self) -> Result<(), OrderError> {
        match (self.is_up(), self.frozen) {
            (false, _) => Err(OrderError::NotUp),
            (true, true) => Err(OrderError::Frozen),
            (true, false) => Ok(()),
        }
    }

    /// What runs, as the state has it.
    fn of_runs(&self) -> MachineState {
        if self.runs.is_empty() {
            return MachineState::Idle;
        }
        let programs: Vec<&str> = self.runs.values().map(String::as_str).collect();
        MachineState::Running {
            program: programs.join(", "),
        }
    }

    /// Lets blocking calls wait again when nothing is to end them.
    fn settle(&self, cancel: &EventFd) {
        let is_calm =
            self.killing.is_empty() && self.untaken.is_empty() && !self.asking && !self.order.1;
        if is_calm && self.starting.is_empty() && !self.stopping {
            let _ = cancel.read();
        }
    }

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
    /// How long programs take to start.
    pub(super) starts: Starts,
    end_reason: OnceLock<&'static str>,
}

/// Outcomes nobody has waited for are kept for the newest so many runs.
const MAX_OUTCOMES: usize = 64;

impl Shared {
    /// Runs are numbered from `next_run` on.
    pub(super) fn new(report: MachineReport, next_run: u64) -> std::io::Result<Self> {
        Ok(Self {
            inner: Mutex::new(Inner {
                state: MachineState::Booting,
                booted: false,
                next_run,
                runs: BTreeMap::new(),
                pending: VecDeque::new(),
                outcomes: BTreeMap::new(),
                report,
                stopping: false,
                frozen: false,
                inside: 0,
                kills_at_thaw: BTreeMap::new(),
                killing: BTreeSet::new(),
                untaken: BTreeSet::new(),
                starting: BTreeSet::new(),
                asking: false,
                processes: (0, Vec::new()),
                order: (0, false),
                order_answer: None,
            }),
            changed: Condvar::new(),
            cancel: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            alarms: Alarms::default(),
            starts: Starts::default(),
            end_reason: OnceLock::new(),
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

    /// Lets the vCPUs go on; the kills that came meanwhile.
    pub(super) fn thaw(&self) -> Result<BTreeMap<u64, u8>, FreezeError> {
        let mut inner = self.lock();
        if !inner.frozen {
            return Err(FreezeError::NotFrozen);
        }
        inner.frozen = false;
        self.changed.notify_all();
        Ok(std::mem::take(&mut inner.kills_at_thaw))
    }

    /// Keeps a kill until the machine is thawed; `false` when it is not frozen.
    pub(super) fn keep_kill(&self, run: u64, signal: u8) -> bool {
        let mut inner = self.lock();
        if inner.frozen {
            inner.kills_at_thaw.insert(run, signal);
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

    /// Accepts a program; its number, and whether others run.
    pub(super) fn submit(&self, spec: RunSpec, now: u64) -> Result<(u64, bool), RunError> {
        let mut inner = self.lock();
        match &inner.state {
            MachineState::Idle | MachineState::Running { .. } if inner.frozen => {
                return Err(RunError::Frozen);
            }
            MachineState::Idle | MachineState::Running { .. } if !inner.stopping => {}
            _ => return Err(RunError::NotRunning(format!("{:?}", inner.state))),
        }
        if inner.runs.len() >= MAX_PROCESSES {
            let most = MAX_PROCESSES;
            return Err(RunError::Busy { most });
        }
        let run = inner.next_run;
        inner.next_run += 1;
        self.starts.requested(run, now);
        let has_others = !inner.runs.is_empty();
        inner.runs.insert(run, spec.path.clone());
        inner.state = inner.of_runs();
        inner.pending.push_back(Pending::Run(run, Box::new(spec)));
        if has_others {
            // A program may wait in the host: its kernel is needed.
            inner.starting.insert(run);
            let _ = self.cancel.write(1);
        }
        self.changed.notify_all();
        Ok((run, has_others))
    }

    /// The kernel fetches run `run`.
    pub(super) fn started(&self, run: u64) {
        let mut inner = self.lock();
        inner.starting.remove(&run);
        inner.settle(&self.cancel);
        self.changed.notify_all();
    }

    /// Waits until the kernel has fetched run `run`, at most `timeout`; whether it
    /// has.
    pub(super) fn wait_started(&self, run: u64, timeout: Duration) -> bool {
        let waits = |inner: &mut Inner| inner.starting.contains(&run);
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, waits);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !inner.starting.contains(&run)
    }

    /// Wants to know of the kernel's processes; how often it has told before, or
    /// nothing when it cannot now.
    pub(super) fn ask_for_processes(&self) -> Option<u64> {
        let mut inner = self.lock();
        let is_up = matches!(
            inner.state,
            MachineState::Idle | MachineState::Running { .. }
        );
        if !is_up || inner.frozen || inner.stopping {
            return None;
        }
        if !inner.pending.iter().any(|p| matches!(p, Pending::List)) {
            inner.pending.push_back(Pending::List);
        }
        // A program may wait in the host, and begins anew.
        inner.asking = true;
        let _ = self.cancel.write(1);
        self.changed.notify_all();
        Some(inner.processes.0)
    }

    /// Waits until the kernel has told of its processes more than `times` times, at
    /// most `timeout`; whether it has.
    pub(super) fn wait_processes(&self, times: u64, timeout: Duration) -> bool {
        let waits = |inner: &mut Inner| inner.processes.0 <= times;
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, waits);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.processes.0 > times
    }

    /// The kernel told of its processes; those it does not know yet are about to
    /// start.
    pub(super) fn told_processes(&self, told: Vec<ProcessInfo>) {
        let mut inner = self.lock();
        inner.processes = (inner.processes.0 + 1, told);
        inner.asking = false;
        inner.settle(&self.cancel);
        self.changed.notify_all();
    }

    /// What runs, as far as it is known.
    pub(super) fn processes(&self) -> Vec<ProcessInfo> {
        let inner = self.lock();
        let told = |run: u64| inner.processes.1.iter().find(|one| one.run == run);
        let known = inner.runs.iter().map(|(&run, program)| ProcessInfo {
            run,
            program: program.clone(),
            ..told(run).cloned().unwrap_or_default()
        });
        known.collect()
    }

    /// Asks for a signal; `false` when that run is over.
    pub(super) fn submit_signal(&self, run: u64, urgency: Urgency, signal: u8) -> bool {
        let mut inner = self.lock();
        if !inner.runs.contains_key(&run) {
            return false;
        }
        inner
            .pending
            .push_back(Pending::Signal(run, urgency, signal));
        match urgency {
            Urgency::Kill => inner.killing.insert(run),
            Urgency::Tell => inner.untaken.insert(run),
        };
        // A full counter is readable, too.
        let _ = self.cancel.write(1);
        self.changed.notify_all();
        true
    }

    /// The next command.
    pub(super) fn take_pending(&self) -> Option<Pending> {
        self.lock().pending.pop_front()
    }

    /// Blocks until there is a command; `None` when the
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
        let of_run = |p: &Pending| matches!(p, Pending::Signal(told, ..) if *told == run);
        if !inner.pending.iter().any(of_run) {
            inner.untaken.remove(&run);
            inner.settle(&self.cancel);
            self.changed.notify_all();
        }
    }

    /// Waits until the kernel has taken the signals of run `run`, or that ended,
    /// at most `timeout`; whether it is so.
    pub(super) fn wait_taken(&self, run: u64, timeout: Duration) -> bool {
        let waits = |inner: &Inner| inner.untaken.contains(&run);
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |inner| waits(inner))
            .unwrap_or_else(PoisonError::into_inner);
        !waits(&inner)
    }

    /// Whether the kernel can be given orders.
    pub(super) fn takes_orders(&self) -> Result<(), OrderError> {
        self.lock().takes_orders()
    }

    /// Orders memory or a core to come or go; its number.
    pub(super) fn submit_order(&self, order: Order) -> Result<u64, OrderError> {
        let mut inner = self.lock();
        inner.takes_orders()?;
        let number = inner.order.0.wrapping_add(1);
        inner.order = (number, true);
        inner.pending.push_back(Pending::Change(number, order));
        // Waits on behalf of the program end, and begin anew.
        let _ = self.cancel.write(1);
        self.changed.notify_all();
        Ok(number)
    }

    /// The answer to order `number`, once; waits for it at most `timeout`.
    pub(super) fn wait_order(
        &self,
        number: u64,
        timeout: Duration,
    ) -> Result<Option<OrderAnswer>, OrderError> {
        let waits = |inner: &mut Inner| {
            let is_there = inner.order_answer.is_some_and(|(of, _)| of == number);
            !is_there && inner.is_up()
        };
        let (mut inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, waits)
            .unwrap_or_else(PoisonError::into_inner);
        match inner.order_answer {
            Some((of, answer)) if of == number => {
                inner.order_answer = None;
                Ok(Some(answer))
            }
            _ if !inner.is_up() => Err(OrderError::NotUp),
            _ => Ok(None),
        }
    }

    /// Takes order `number` back; whether the kernel has not seen it.
    pub(super) fn withdraw(&self, number: u64) -> bool {
        let mut inner = self.lock();
        let before = inner.pending.len();
        inner
            .pending
            .retain(|p| !matches!(p, Pending::Change(of, _) if *of == number));
        let is_unseen = inner.pending.len() < before;
        if is_unseen {
            inner.order.1 = false;
            inner.settle(&self.cancel);
        }
        is_unseen
    }

    /// The kernel answers order `number`; others than the last are nonsense.
    pub(super) fn order_done(&self, number: u64, answer: OrderAnswer) {
        let mut inner = self.lock();
        if inner.order != (number, true) {
            return;
        }
        inner.order.1 = false;
        inner.order_answer = Some((number, answer));
        inner.settle(&self.cancel);
        self.changed.notify_all();
    }

    /// Run `run` ended.
    pub(super) fn finished(&self, run: u64, outcome: RunOutcome) {
        let mut inner = self.lock();
        if inner.runs.remove(&run).is_none() {
            return;
        }
        inner.killing.remove(&run);
        inner.untaken.remove(&run);
        inner.starting.remove(&run);
        inner
            .pending
            .retain(|p| !matches!(p, Pending::Signal(told, ..) if *told == run));
        // No blocking call of another program may see this one's kill.
        inner.settle(&self.cancel);
        inner.outcomes.insert(run, outcome);
        while inner.outcomes.len() > MAX_OUTCOMES {
            inner.outcomes.pop_first();
        }
        if matches!(inner.state, MachineState::Running { .. }) {
            inner.state = inner.of_runs();
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
            _ => (*self.end_reason.get().unwrap_or(&"the enclave was stopped")).to_owned(),
        };
        for (run, _) in std::mem::take(&mut inner.runs) {
            let reason = reason.clone();
            let outcome = RunOutcome::MachineStopped { reason };
            inner.outcomes.insert(run, outcome);
        }
        self.changed.notify_all();
    }

    /// Says why it will end, to those who wait for its programs.
    pub(super) fn ends_by(&self, reason: &'static str) {
        let _ = self.end_reason.set(reason);
    }

    /// Number of the next run.
    pub(super) fn next_run(&self) -> u64 {
        self.lock().next_run
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
            let is_current = inner.runs.contains_key(&run);
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

    /// Waits until run `run` is over, at most `timeout`;
    /// whether it is.
    pub(super) fn wait_gone(&self, run: u64, timeout: Duration) -> bool {
        let is_current = |inner: &Inner| inner.runs.contains_key(&run);
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
