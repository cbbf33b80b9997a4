//! The threads of the running program: what each one owns, and the change from
//! one to the next.
//!
//! Called by the thread calls of `syscall`. A thread leaves the core only inside
//! a system call, so all there is to it is the frame that call came with, the
//! bases of FS and GS, and its extended registers: to change threads is to put
//! another frame where the gate will take it from. There is one kernel stack for
//! each core. Who is next is decided in `enclave-core`; when nobody is, the core
//! sleeps in the host.

use alloc::format;

use enclave_core::errno::Errno;
use enclave_core::signal::Restart;
use enclave_core::signal::number::SIGKILL;
use enclave_core::thread::{Next, Request, Threads, Tid, Wait};

use crate::arch::TrapFrame;
use crate::arch::extended::{self, Area};
use crate::processes::{self, Turn};
use crate::{arch, clock, cores, host, process, signals};

/// Bytes of a thread's name, with the zero at its end.
pub(crate) const NAME_BYTES: usize = 16;

/// A thread's list of robust mutexes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RobustList {
    /// Address of the list's head; 0 = none.
    pub(crate) head: u64,
}

/// What a thread owns.
#[derive(Debug)]
pub(crate) struct Context {
    /// Registers; those of the running thread are in its gate's frame.
    frame: TrapFrame,
    fs: u64,
    gs: u64,
    /// `None` while a core holds them.
    extended: Option<Area>,
    /// Its signals.
    pub(crate) signals: signals::Thread,
    /// The word to clear and wake when it ends; 0 = none.
    pub(crate) clear_tid: u64,
    /// Its robust mutexes.
    pub(crate) robust: RobustList,
    /// As prctl(2) has it.
    pub(crate) name: [u8; NAME_BYTES],
    /// Until when a call waits that begins anew from time to time.
    patience: Option<u64>,
    /// Nanoseconds it ran before, and since when it runs.
    ran_ns: u64,
    since_ns: u64,
}

impl Context {
    /// A program's first thread.
    pub(crate) fn first(name: [u8; NAME_BYTES], extended: Area) -> Self {
        Self {
            frame: TrapFrame::default(),
            fs: 0,
            gs: 0,
            extended: Some(extended),
            signals: signals::Thread::default(),
            clear_tid: 0,
            robust: RobustList::default(),
            name,
            patience: None,
            ran_ns: 0,
            since_ns: 0,
        }
    }

    /// Where it begins.
    pub(crate) fn begin_at(&mut self, frame: TrapFrame) {
        self.frame = frame;
    }

    /// Gives back what it holds.
    pub(crate) fn free(&mut self) {
        if let Some(area) = self.extended.take() {
            area.free();
        }
    }

    /// Nanoseconds on the core.
    pub(crate) fn total_ns(&self, is_running: bool, now: u64) -> u64 {
        if is_running {
            self.ran_ns(now)
        } else {
            self.ran_ns
        }
    }

    /// Nanoseconds on the core, for the thread that runs.
    pub(crate) fn ran_ns(&self, now: u64) -> u64 {
        self.ran_ns
            .saturating_add(now.saturating_sub(self.since_ns))
    }
}

/// The running thread's number.
pub(crate) fn current() -> Tid {
    process::with(|p| p.threads.running(arch::core()).unwrap_or(p.pid))
}

/// Runs `f` on what the running thread owns.
pub(crate) fn with<T>(f: impl FnOnce(&mut Context) -> T) -> T {
    process::with(|p| {
        let tid = p.threads.running(arch::core()).unwrap_or(p.pid);
        match p.threads.context(tid) {
            Some(context) => f(context),
            None => panic!("thread {tid} runs and is not there"),
        }
    })
}

/// Makes a thread that goes on behind the system call of `frame`; its number.
///
/// # Errors
/// `EAGAIN` without room or memory for one more.
pub(crate) fn spawn(frame: &TrapFrame, request: &Request) -> Result<Tid, Errno> {
    let area = Area::new().ok_or(Errno::EAGAIN)?;
    if let Err(errno) = extended::exchange(Some(&area), None) {
        area.free();
        return Err(errno);
    }
    let mut frame = *frame;
    if let Some(stack) = request.stack {
        frame.rsp = stack;
    }
    let (signals, name) = with(|t| (t.signals.of_new_thread(), t.name));
    let context = Context {
        frame,
        fs: request.tls.unwrap_or_else(arch::fs_base),
        gs: arch::gs_base(),
        extended: Some(area),
        signals,
        clear_tid: request.clear_tid.unwrap_or(0),
        robust: RobustList::default(),
        name,
        patience: None,
        ran_ns: 0,
        since_ns: 0,
    };
    process::with(|p| {
        // Refused at the limit: a context without a home gives its memory back.
        if p.threads.is_full() || processes::has_all_threads(p.threads.count()) {
            let mut context = context;
            context.free();
            return Err(Errno::EAGAIN);
        }
        p.threads.follow(processes::newest());
        let tid = p.threads.spawn(arch::core(), context);
        processes::note_newest(p.threads.newest());
        tid
    })
}

/// Lets the running thread wait; the answer of the thread that runs then.
pub(crate) fn block(frame: &mut TrapFrame, wait: Wait) -> u64 {
    let tid = current();
    frame.keep_call_number();
    process::with(|p| {
        if let Some(context) = p.threads.context(tid) {
            context.signals.note_wait(wait.deadline);
        }
        p.threads.block(arch::core(), wait);
    });
    go_on(frame, Some(tid))
}

/// How a call says that it would hold the core while others may run: it is to
/// begin anew. No program sees it.
pub(crate) const LATER: Errno = Errno::ENOTRECOVERABLE;

/// Whether a wait in the host would keep other threads from running.
pub(crate) fn others_may_run() -> bool {
    processes::others() || process::with(|p| p.threads.others_may_run(arch::core()))
}

/// When the wait of the running thread's call is over that may last `ns`,
/// however often it began anew.
pub(crate) fn patience(ns: u64) -> u64 {
    let end = clock::monotonic_ns().saturating_add(ns);
    with(|t| *t.patience.get_or_insert(end))
}

/// Whether the running thread's call has begun anew.
pub(crate) fn is_again() -> bool {
    with(|t| t.patience.is_some())
}

/// The call is over that had [`patience`].
pub(crate) fn no_patience() {
    with(|t| t.patience = None);
}

/// How a call waits for what is changed outside while other cores need the kernel:
/// it looks, and begins anew until it has `found` something or `ns` are over.
///
/// # Errors
/// [`LATER`]; ETIMEDOUT.
pub(crate) fn patiently<T>(ns: u64, found: Option<T>) -> Result<T, Errno> {
    if let Some(found) = found {
        no_patience();
        return Ok(found);
    }
    if clock::monotonic_ns() < patience(ns) {
        return Err(LATER);
    }
    no_patience();
    Err(Errno::ETIMEDOUT)
}

/// Lets others run for a moment and begins the call of `frame` anew; the answer
/// of who runs then.
pub(crate) fn again_later(frame: &mut TrapFrame) -> u64 {
    /// Bytes of SYSCALL.
    const CALL_BYTES: u64 = 2;
    const PAUSE_NS: u64 = 500_000;
    let Some(rip) = frame.rip.checked_sub(CALL_BYTES) else {
        return Errno::EINTR.to_result();
    };
    frame.rip = rip;
    let wait = Wait {
        futex: None,
        deadline: Some(clock::monotonic_ns().saturating_add(PAUSE_NS)),
        late: frame.rax,
        broken: Restart::of_call(frame.rax).to_answer(true),
    };
    with(|t| t.signals.note_again());
    block(frame, wait)
}

/// Lets another thread run if one can.
pub(crate) fn step_back(frame: &mut TrapFrame) -> u64 {
    let tid = current();
    let now = clock::monotonic_ns();
    let others = processes::others();
    let moved = process::with(|p| {
        p.threads.expire(now);
        let moved = p.threads.step_back(arch::core());
        if !moved && others {
            p.threads.step_aside(arch::core());
        }
        moved || others
    });
    if moved { go_on(frame, Some(tid)) } else { 0 }
}

/// Ends the running thread; `None` when it was the last one.
pub(crate) fn exit(frame: &mut TrapFrame) -> Option<u64> {
    let (context, left) = process::with(|p| {
        let mut context = p.threads.exit(arch::core());
        if let Some(context) = &mut context {
            p.ended_ns += context.ran_ns(clock::monotonic_ns());
            signals::thread_gone(p, &mut context.signals);
        }
        (context, p.threads.count())
    });
    if let Some(mut context) = context {
        context.free();
    }
    (left != 0).then(|| go_on(frame, None))
}

/// Runs whoever is next, from `frame` on; `before` is whose state the core
/// still holds.
fn go_on(frame: &mut TrapFrame, mut before: Option<Tid>) -> u64 {
    if cores::several()
        && let Some(tid) = before.take()
    {
        // Another core may take it up at once.
        put_away(frame, tid);
    }
    let (tid, answer) = next(frame, &mut before);
    if before != Some(tid) {
        change(frame, before, tid);
    }
    signals::resumed(tid, answer);
    answer
}

/// The next thread to run and its answer, of whichever process; sleeps as long as
/// there is none.
fn next(frame: &TrapFrame, before: &mut Option<Tid>) -> (Tid, u64) {
    loop {
        let now = clock::monotonic_ns();
        let other = take_turn(frame, before, now);
        match process::with(|p| p.threads.next(arch::core(), now)) {
            Next::Run(tid, answer) => return (tid, answer),
            Next::Idle(deadline) => {
                idle(deadline.unwrap_or(u64::MAX).min(other), now);
                if let Some(tid) = *before {
                    process::with(|p| excuse(&mut p.threads, tid, now));
                }
            }
            // Callers leave at least one.
            Next::Ended => panic!("a program without threads goes on"),
        }
        if host::poll_attention() {
            signals::attend_idle();
        }
    }
}

/// The running thread has waited in the host since then: not its processor time.
pub(crate) fn note_waited(since: u64) {
    process::if_any(|p| {
        if let Some(tid) = p.threads.running(arch::core()) {
            excuse(&mut p.threads, tid, since);
        }
    });
}

/// Does not count the time since then as what thread `tid`, whose state the core
/// holds, has run.
fn excuse(threads: &mut Threads<Context>, tid: Tid, since: u64) {
    if let Some(context) = threads.context(tid) {
        let waited = clock::monotonic_ns().saturating_sub(since);
        context.since_ns = context.since_ns.saturating_add(waited);
    }
}

/// Lets another process have its turn if one is ready and no thread of the current
/// one runs; until when there is none.
fn take_turn(frame: &TrapFrame, before: &mut Option<Tid>, now: u64) -> u64 {
    let is_free = || arch::core() == 0 && !process::with(|p| p.threads.is_on_core());
    if !processes::others() || !is_free() {
        return u64::MAX;
    }
    match processes::turn(now) {
        Turn::Ready => {
            if let Some(tid) = before.take() {
                put_away(frame, tid);
            }
            processes::switch();
            signals::attend_idle();
            u64::MAX
        }
        Turn::Idle(deadline) => deadline.unwrap_or(u64::MAX),
        Turn::Nobody => u64::MAX,
    }
}

/// No thread of this core runs before `until`, or before the host says something.
fn idle(until: u64, now: u64) {
    if cores::several() {
        cores::rest(until);
    } else {
        sleep((until != u64::MAX).then(|| until.saturating_sub(now)));
    }
}

/// Makes the process current that is next, when there is none; the frame with which
/// it is entered, or nothing without any process.
pub(crate) fn resume() -> Option<TrapFrame> {
    loop {
        host::attended();
        processes::attend();
        let now = clock::monotonic_ns();
        match processes::turn(now) {
            Turn::Nobody => return None,
            Turn::Idle(until) => sleep(until.map(|until| until.saturating_sub(now))),
            Turn::Ready => {
                processes::switch();
                signals::take();
                match take() {
                    Ok(frame) => return Some(frame),
                    Err(_) => processes::step_down(),
                }
            }
        }
    }
}

/// The next thread for a core that has none, ready to be entered, or the time until
/// which there is none.
pub(crate) fn take() -> Result<TrapFrame, u64> {
    let now = clock::monotonic_ns();
    match process::with(|p| p.threads.next(arch::core(), now)) {
        Next::Run(tid, answer) => {
            let mut frame = TrapFrame::default();
            change(&mut frame, None, tid);
            signals::resumed(tid, answer);
            frame.rax = answer;
            Ok(frame)
        }
        Next::Idle(deadline) => Err(deadline.unwrap_or(u64::MAX)),
        Next::Ended => Err(u64::MAX),
    }
}

/// Leaves the running thread to other cores, wherever it is in its program, and the
/// program to them: this core goes.
pub(crate) fn hand_over(frame: &TrapFrame) -> ! {
    let tid = current();
    process::with(|p| p.threads.step_off(arch::core(), frame.rax));
    put_away(frame, tid);
    cores::depart()
}

/// Lets the running thread go to a core where it may run.
pub(crate) fn move_away(frame: &mut TrapFrame) -> u64 {
    let tid = current();
    if process::with(|p| p.threads.move_away(arch::core())) {
        go_on(frame, Some(tid))
    } else {
        0
    }
}

/// Sleeps in the host, for ever without a time, or until the program is to be
/// killed.
fn sleep(ns: Option<u64>) {
    const NANOSLEEP: u64 = 35;
    let _ = host::forward(NANOSLEEP, [ns.unwrap_or(u64::MAX), 0, 0, 0, 0], 0);
}

/// Puts away what the core holds of thread `before` and takes up `tid`.
fn change(frame: &mut TrapFrame, before: Option<Tid>, tid: Tid) {
    let now = clock::monotonic_ns();
    let bases = (arch::fs_base(), arch::gs_base());
    let bases = process::with(|p| {
        if p.entered_ns == 0 {
            p.entered_ns = now;
        }
        let save = before.and_then(|before| leave(&mut p.threads, before, frame, bases, now));
        let Some(context) = p.threads.context(tid) else {
            panic!("thread {tid} is next and is not there");
        };
        *frame = context.frame;
        context.since_ns = now;
        let exchanged = extended::exchange(save.as_ref(), context.extended.as_ref());
        let bases = (context.fs, context.gs);
        if let Some(context) = before.and_then(|before| p.threads.context(before)) {
            context.extended = save;
        }
        exchanged.map(|()| bases)
    });
    match bases {
        Ok((fs, gs)) => {
            arch::set_fs_base(fs);
            arch::set_gs_base(gs);
        }
        Err(errno) => lost(tid, errno),
    }
}

/// Keeps all that the core holds of thread `tid`.
fn put_away(frame: &TrapFrame, tid: Tid) {
    let now = clock::monotonic_ns();
    let bases = (arch::fs_base(), arch::gs_base());
    let saved = process::with(|p| {
        let save = leave(&mut p.threads, tid, frame, bases, now);
        let saved = extended::exchange(save.as_ref(), None);
        if let Some(context) = p.threads.context(tid) {
            context.extended = save;
        }
        saved
    });
    if let Err(errno) = saved {
        lost(tid, errno);
    }
}

/// Whose registers they are nobody knows any more.
fn lost(tid: Tid, errno: Errno) -> ! {
    let report = format!("the host did not take the registers of thread {tid}: {errno}");
    process::end_by_signal(SIGKILL, report)
}

/// Keeps the registers of thread `tid`; where its extended ones go.
fn leave(
    threads: &mut Threads<Context>,
    tid: Tid,
    frame: &TrapFrame,
    (fs, gs): (u64, u64),
    now: u64,
) -> Option<Area> {
    let context = threads.context(tid)?;
    context.frame = *frame;
    (context.fs, context.gs) = (fs, gs);
    context.ran_ns = context.ran_ns(now);
    context.extended.take()
}
