//! The cores of the enclave: the kernel's lock, translations that other cores
//! hold, and who sleeps.
//!
//! Called by the gates of a kernel with several cores, by the thread calls and
//! by whoever changes mappings. One core runs in the kernel at a time: it takes
//! the lock when it leaves the program and gives it back when it goes on there or
//! sleeps. So programs compute in parallel, and all of the kernel but this file
//! and the entries is as if there were one core. With one core nothing here is
//! ever reached but [`several`].
//!
//! Core 0 loads programs and ends them; it is in the kernel, with the lock, while
//! none runs. The others come for threads and go, and sleep in the host. The host
//! adds and removes them while a program runs ([`add`], [`remove`]): one that is
//! not online sleeps and takes no thread.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use enclave_abi::boot::MAX_CORES;
use enclave_core::errno::Errno;
use enclave_core::thread::Cores;

use crate::processes::{self, Turn};
use crate::{arch, clock, host, orders, phys, process, signals, threads};

/// What other cores have to know of one.
struct Core {
    /// It runs the program, or is about to: its translations matter.
    in_program: AtomicBool,
    /// How many of the [`CHANGES`] it knows.
    seen: AtomicU64,
    /// An interrupt of another core is on its way to it: one at most.
    is_called: AtomicBool,
    /// When it wakes up by itself, if it sleeps (monotonic nanoseconds).
    until: AtomicU64,
    /// Its thread has to look at its signals before it goes on.
    is_due: AtomicBool,
    /// Number of the order by which it goes, once it has left the program; 0 = none.
    order: AtomicU64,
}

static CORES: [Core; MAX_CORES] = [const {
    Core {
        in_program: AtomicBool::new(false),
        seen: AtomicU64::new(0),
        is_called: AtomicBool::new(false),
        until: AtomicU64::new(u64::MAX),
        is_due: AtomicBool::new(false),
        order: AtomicU64::new(0),
    }
}; MAX_CORES];

/// Cores that may come.
static COUNT: AtomicUsize = AtomicUsize::new(1);
/// Those that are there.
static ONLINE: AtomicU64 = AtomicU64::new(1);
/// The kernel is somebody's.
static LOCK: AtomicBool = AtomicBool::new(false);
/// Changes of mappings after which a core has to forget its translations.
static CHANGES: AtomicU64 = AtomicU64::new(0);
/// A program runs: the lock will be free again.
static RUNS: AtomicBool = AtomicBool::new(false);
/// One more than the word with which the program ends; 0 = it does not.
static ENDING: AtomicU64 = AtomicU64::new(0);
/// Cores that have nothing to do with the program: not even its tables.
static AWAY: AtomicU64 = AtomicU64::new(0);
/// Cores that sleep, or are about to, and were not woken yet.
static SLEEPING: AtomicU64 = AtomicU64::new(0);

/// Looks at a word of another core before the host is told of the wait: that
/// core may have to share this one's.
const LOOKS: u32 = 2_000;
/// The same where each look takes about as long as leaving to the host.
const LOOKS_INTERPRETED: u32 = 8;

/// What becomes of a core that is to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gone {
    /// It is out of the program.
    Now,
    /// It leaves the program, and then answers the order itself.
    Soon,
}

/// Whether there is, or may be, more than one.
#[inline]
pub(crate) fn several() -> bool {
    COUNT.load(Ordering::Relaxed) > 1
}

/// Whether somebody else may need the kernel while a program waits for the host:
/// another core, or another process.
#[inline]
pub(crate) fn are_needed() -> bool {
    several() || processes::others()
}

/// How many there may be.
pub(crate) fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Those that there are.
pub(crate) fn all() -> Cores {
    ONLINE.load(Ordering::Relaxed)
}

/// The first `count` as a set.
const fn first(count: usize) -> Cores {
    Cores::MAX >> (Cores::BITS as usize - count)
}

/// Those that there may be beside core 0.
fn possible_others() -> Cores {
    first(count().clamp(1, MAX_CORES)) & !bit(0)
}

const fn bit(core: usize) -> Cores {
    1 << core
}

fn this() -> (usize, &'static Core) {
    let me = arch::core();
    match CORES.get(me) {
        Some(core) => (me, core),
        None => panic!("core {me} has no place"),
    }
}

/// The other cores.
fn others(me: usize) -> impl Iterator<Item = (usize, &'static Core)> {
    CORES
        .iter()
        .enumerate()
        .take(count())
        .filter(move |&(n, _)| n != me)
}

/// Says how many cores there may be, and how many there are. Called by core 0 at
/// boot, which has the lock from then on.
pub(crate) fn init(count: usize, online: usize) {
    let count = count.clamp(1, MAX_CORES);
    COUNT.store(count, Ordering::Relaxed);
    ONLINE.store(first(online.clamp(1, count)), Ordering::Relaxed);
    LOCK.store(true, Ordering::Relaxed);
    AWAY.store(possible_others(), Ordering::Relaxed);
}

/// Whether this core is there, or is to go.
pub(crate) fn is_online() -> bool {
    all() & bit(this().0) != 0
}

/// Uses core `number` from now on; its vCPU runs and sleeps, or is about to.
///
/// # Errors
/// EINVAL if it cannot come; EEXIST if it is there.
pub(crate) fn add(number: u64) -> Result<(), Errno> {
    let fresh = usize::try_from(number).ok().filter(|&core| core < count());
    let fresh = bit(fresh.ok_or(Errno::EINVAL)?);
    if all() & fresh != 0 {
        return Err(Errno::EEXIST);
    }
    let online = ONLINE.fetch_or(fresh, Ordering::Relaxed) | fresh;
    processes::use_cores(online);
    if RUNS.load(Ordering::Relaxed) {
        // Whoever leaves the kernel next wakes it if it is needed.
        SLEEPING.fetch_or(fresh, Ordering::Relaxed);
    }
    Ok(())
}

/// Does without core `number`, whose thread goes on elsewhere.
///
/// # Errors
/// EINVAL if it is not there, or is the first; EBUSY with a thread that may run
/// nowhere else.
pub(crate) fn remove(number: u64, order: u64) -> Result<Gone, (Errno, u64)> {
    let unknown = (Errno::EINVAL, 0);
    let number = usize::try_from(number).map_err(|_| unknown)?;
    let (Some(core), 1..) = (CORES.get(number), number) else {
        return Err(unknown);
    };
    let online = all() & !bit(number);
    if online == all() {
        return Err(unknown);
    }
    if let Some(tid) = processes::stranded(online) {
        return Err((Errno::EBUSY, tid.into()));
    }
    ONLINE.store(online, Ordering::Relaxed);
    processes::use_cores(online);
    SLEEPING.fetch_and(!bit(number), Ordering::Relaxed);
    core.until.store(u64::MAX, Ordering::Relaxed);
    if AWAY.load(Ordering::Acquire) & bit(number) != 0 {
        return Ok(Gone::Now);
    }
    core.order.store(order, Ordering::Relaxed);
    call_out(number);
    Ok(Gone::Soon)
}

/// Leaves the program to the other cores.
pub(crate) fn depart() -> ! {
    retire(this().0, u64::MAX)
}

/// Waits a little for something that another core does.
struct Patience(u32);

impl Patience {
    fn new() -> Self {
        Self(0)
    }

    fn wait(&mut self) {
        self.0 += 1;
        let looks = if arch::is_slow() {
            LOOKS_INTERPRETED
        } else {
            LOOKS
        };
        if self.0.is_multiple_of(looks) {
            phys::GIVE_WAY_BELL.ring();
        } else {
            spin_loop();
        }
    }
}

fn try_lock() -> bool {
    !LOCK.load(Ordering::Relaxed) && !LOCK.swap(true, Ordering::Acquire)
}

fn lock() {
    let mut patience = Patience::new();
    while !try_lock() {
        patience.wait();
    }
}

/// Takes the lock unless the program ends first.
fn lock_while_it_runs() -> bool {
    let mut patience = Patience::new();
    while RUNS.load(Ordering::Acquire) {
        if try_lock() {
            if RUNS.load(Ordering::Relaxed) {
                return true;
            }
            unlock();
        }
        patience.wait();
    }
    false
}

fn unlock() {
    LOCK.store(false, Ordering::Release);
}

/// Forgets translations if there are changes that this core does not know of.
fn catch_up(core: &Core) {
    let changes = CHANGES.load(Ordering::SeqCst);
    if core.seen.load(Ordering::Relaxed) != changes {
        arch::flush_here();
        core.seen.store(changes, Ordering::SeqCst);
    }
}

/// From the program into the kernel. Does not return when the program ends.
pub(crate) fn enter() {
    let (me, core) = this();
    core.in_program.store(false, Ordering::SeqCst);
    lock();
    catch_up(core);
    if ENDING.load(Ordering::Relaxed) != 0 {
        retire(me, u64::MAX);
    }
}

/// The same if it was the program that was interrupted; whether it was.
pub(crate) fn enter_from_program() -> bool {
    let is_program = this().1.in_program.load(Ordering::Relaxed);
    if is_program {
        enter();
    }
    is_program
}

/// From the kernel back to the program.
pub(crate) fn leave() {
    let (_, core) = this();
    settle();
    // With the lock: who changes mappings next finds this core.
    core.in_program.store(true, Ordering::SeqCst);
    unlock();
}

/// After an interrupt by another core that met the kernel's own code.
pub(crate) fn interrupted_in_kernel() {
    let (_, core) = this();
    // Outside, the tables in use may be the kernel's own, and what is not known
    // is found out with the lock.
    if core.in_program.load(Ordering::Relaxed) {
        catch_up(core);
    }
}

/// An interrupt by another core was taken and has left its stack.
pub(crate) fn note_interrupt() {
    this().1.is_called.store(false, Ordering::SeqCst);
}

/// Interrupts a core unless an interrupt is on its way.
fn interrupt(number: usize, core: &Core) {
    if !core.is_called.swap(true, Ordering::SeqCst) {
        arch::interrupt_core(number);
    }
}

/// Mappings have changed: no core uses an old translation when this returns.
/// Cores in the kernel look before they touch the program's memory; those in the
/// program are interrupted and waited for. Out of the way of one core's publish.
#[cold]
#[inline(never)]
pub(crate) fn forget_translations() {
    let (me, core) = this();
    let changes = CHANGES.fetch_add(1, Ordering::SeqCst) + 1;
    let uses_old = |other: &Core| {
        other.in_program.load(Ordering::SeqCst) && other.seen.load(Ordering::SeqCst) < changes
    };
    for (number, other) in others(me) {
        if uses_old(other) {
            interrupt(number, other);
        }
    }
    arch::flush_here();
    core.seen.store(changes, Ordering::SeqCst);
    for (number, other) in others(me) {
        let mut patience = Patience::new();
        while uses_old(other) {
            interrupt(number, other);
            patience.wait();
        }
    }
}

/// Has core `number`, which runs a thread of the program, look at that thread's
/// signals before it goes on there. An interrupt that meets it on its way back is
/// not seen, so it is repeated until the core is in the kernel.
#[cold]
pub(crate) fn call_out(number: usize) {
    let Some(other) = CORES.get(number) else {
        return;
    };
    other.is_due.store(true, Ordering::SeqCst);
    let mut patience = Patience::new();
    while other.in_program.load(Ordering::SeqCst) {
        interrupt(number, other);
        patience.wait();
    }
}

/// Whether another core has called this one out since it looked last.
pub(crate) fn is_due() -> bool {
    // With the lock, which who calls has, too.
    this().1.is_due.load(Ordering::Relaxed)
}

/// The same, and now it looks.
pub(crate) fn is_called_out() -> bool {
    is_due() && this().1.is_due.swap(false, Ordering::Relaxed)
}

/// Wakes cores for threads that are ready, and one for the next deadline if no
/// sleeper wakes up for it.
fn settle() {
    let sleeping = SLEEPING.load(Ordering::Relaxed);
    if sleeping == 0 {
        return;
    }
    let Some((mut wake, mut deadline, is_free)) = process::if_any(|p| {
        let is_free = !p.threads.is_on_core();
        (p.threads.wanted(sleeping), p.threads.deadline(), is_free)
    }) else {
        return;
    };
    // Another process's turn is the first core's to give.
    if is_free && processes::others() {
        match processes::turn(clock::monotonic_ns()) {
            Turn::Ready => wake |= sleeping & bit(0),
            Turn::Idle(other) => deadline = deadline.into_iter().chain(other).min(),
            Turn::Nobody => {}
        }
    }
    let rest = sleeping & !wake;
    let looks_after = |deadline: u64| {
        (0..).zip(&CORES).any(|(n, core): (usize, _)| {
            rest & bit(n) != 0 && core.until.load(Ordering::Relaxed) <= deadline
        })
    };
    if deadline.is_some_and(|deadline| !looks_after(deadline)) {
        // The lowest of them.
        wake |= rest & rest.wrapping_neg();
    }
    wake_up(wake);
}

fn wake_up(cores: Cores) {
    SLEEPING.fetch_and(!cores, Ordering::Relaxed);
    let mut left = cores;
    while left != 0 {
        phys::wake_bell(left.trailing_zeros()).ring();
        left &= left - 1;
    }
}

/// In the host, without the lock, until this time or until somebody wakes it.
fn sleep(until: u64) {
    let ns = match until {
        u64::MAX => u64::MAX,
        until => until.saturating_sub(clock::monotonic_ns()),
    };
    if ns != 0 {
        phys::SLEEP_BELL.ring_with(ns);
    }
}

fn lie_down(me: usize, core: &Core, until: u64) {
    let is_online = all() & bit(me) != 0;
    let until = if is_online { until } else { u64::MAX };
    core.until.store(until, Ordering::Relaxed);
    if is_online {
        SLEEPING.fetch_or(bit(me), Ordering::Relaxed);
    }
    settle();
    unlock();
}

/// No thread for this core before `until`, or until somebody makes one ready.
/// Core 0 returns when it is to look again; the others begin anew in
/// [`serve`].
pub(crate) fn rest(until: u64) {
    let (me, core) = this();
    if me != 0 {
        retire(me, until);
    }
    lie_down(me, core, until);
    sleep(until);
    lock();
    SLEEPING.fetch_and(!bit(me), Ordering::Relaxed);
    catch_up(core);
    if ENDING.load(Ordering::Relaxed) != 0 {
        retire(me, u64::MAX);
    }
}

/// Core 0 is about to enter a fresh program.
pub(crate) fn start() {
    if !several() {
        return;
    }
    let others = possible_others();
    for core in CORES.iter().skip(1) {
        core.until.store(u64::MAX, Ordering::Relaxed);
    }
    AWAY.store(others, Ordering::Relaxed);
    SLEEPING.store(others & all(), Ordering::Relaxed);
    RUNS.store(true, Ordering::Release);
    leave();
}

/// Ends the program; the first word counts.
pub(crate) fn end(word: u64) -> ! {
    if !several() {
        arch::leave_user(word);
    }
    let (me, _) = this();
    let first = word.wrapping_add(1);
    let _ = ENDING.compare_exchange(0, first, Ordering::Relaxed, Ordering::Relaxed);
    wake_up(SLEEPING.load(Ordering::Relaxed) & bit(0));
    retire(me, u64::MAX)
}

/// Gets the other cores out of the program.
fn chase(me: usize) {
    for (number, core) in others(me) {
        if core.in_program.load(Ordering::SeqCst) {
            interrupt(number, core);
        }
    }
}

/// Leaves the program, for now or, when it ends, for good: core 0 when all others
/// have.
fn retire(me: usize, until: u64) -> ! {
    let Some(core) = CORES.get(me) else {
        panic!("core {me} has no place");
    };
    if me != 0 {
        arch::use_boot_tables();
        AWAY.fetch_or(bit(me), Ordering::Relaxed);
        match core.order.swap(0, Ordering::Relaxed) {
            0 => {}
            order => orders::answer(order, Ok(())),
        }
        lie_down(me, core, until);
        arch::begin_anew();
    }
    let mut patience = Patience::new();
    while AWAY.load(Ordering::Acquire) != possible_others() {
        unlock();
        chase(me);
        patience.wait();
        lock();
    }
    RUNS.store(false, Ordering::Release);
    let word = ENDING.swap(0, Ordering::Relaxed);
    arch::leave_user(word.wrapping_sub(1))
}

/// The loop of the cores from 1 on.
pub(crate) fn serve() -> ! {
    let (me, core) = this();
    loop {
        // A core that goes while others are still in the program helps to get
        // them out: an interrupt may have met one on its way there.
        let mut patience = Patience::new();
        while ENDING.load(Ordering::Relaxed) != 0 && RUNS.load(Ordering::Acquire) {
            chase(me);
            patience.wait();
        }
        sleep(core.until.load(Ordering::Relaxed));
        if !lock_while_it_runs() {
            core.until.store(u64::MAX, Ordering::Relaxed);
            continue;
        }
        SLEEPING.fetch_and(!bit(me), Ordering::Relaxed);
        if ENDING.load(Ordering::Relaxed) != 0 || !is_online() {
            lie_down(me, core, u64::MAX);
            continue;
        }
        match threads::take() {
            Ok(mut frame) => {
                AWAY.fetch_and(!bit(me), Ordering::Relaxed);
                let changes = CHANGES.load(Ordering::SeqCst);
                arch::flush_here();
                core.seen.store(changes, Ordering::SeqCst);
                if host::poll_attention() {
                    signals::attend(&mut frame);
                    // The order for this core to go may have been among it: nobody
                    // would call it out of the program again.
                    if !is_online() {
                        threads::hand_over(&frame);
                    }
                }
                leave();
                arch::enter_user(&frame);
            }
            Err(until) => lie_down(me, core, until),
        }
    }
}
