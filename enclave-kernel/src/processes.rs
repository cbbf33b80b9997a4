//! The processes of the enclave: who has the cores, and who is next.
//!
//! Called by `process`, `threads` and on the way back to a program when the host
//! told something. All but one process are put away here, with their arenas and
//! imports, so that whatever the kernel does is about the one that has the cores
//! and cannot reach another's: with one process nothing of this is ever looked at.
//! Processes take turns like threads: when no thread of one runs any more, the one
//! goes on that is ready and has waited longest. With several cores they are all
//! the same process's.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use enclave_abi::layout::{BOUNCE, QUEUE};
use enclave_abi::queue::{
    Call, MAX_PROCESSES, PROCESS_READY, PROCESS_RUNS, PROCESS_WAITS, ProcessEntry, QueuePage,
};
use enclave_core::thread::{Cores, MAX_THREADS, Tid};
use spin::Mutex;
use zerocopy::IntoBytes;

use crate::process::{self, Process};
use crate::{arch, arenas, clock, host, imports, orders, phys, windows};

/// Where the VMM sees whose calls are forwarded.
const CURRENT_RUN: u64 = QUEUE + offset_of!(QueuePage, current_run) as u64;
/// Number of the first process and its first thread.
const FIRST: Tid = 2;

/// A process without a core.
#[derive(Debug)]
struct Parked {
    process: Process,
    arenas: arenas::Kept,
    imports: imports::Kept,
}

/// Who was put away first comes first.
static PARKED: Mutex<VecDeque<Box<Parked>>> = Mutex::new(VecDeque::new());
/// How many there are.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// The newest number of a thread or process.
static NEWEST: AtomicU32 = AtomicU32::new(FIRST - 1);

/// Whether there is a process beside the current one.
#[inline]
pub(crate) fn others() -> bool {
    COUNT.load(Ordering::Relaxed) != 0
}

/// Whether one more would be too many.
pub(crate) fn is_full() -> bool {
    runs().len() >= MAX_PROCESSES
}

/// The newest number, after which the next one is looked for.
pub(crate) fn newest() -> Tid {
    let mut newest = NEWEST.load(Ordering::Relaxed);
    let parked = PARKED.lock();
    while parked.iter().any(|p| p.process.threads.has(newest + 1)) {
        newest += 1;
    }
    newest
}

/// Takes note of a number that was given.
pub(crate) fn note_newest(tid: Tid) {
    NEWEST.store(tid, Ordering::Relaxed);
}

/// A number for a process and its first thread.
pub(crate) fn new_number() -> Tid {
    // As the threads of one process: beyond the last number they begin anew.
    const LAST: Tid = 4_194_303;
    let newest = newest();
    let number = if newest >= LAST { FIRST } else { newest + 1 };
    note_newest(number);
    number
}

/// Whether the enclave has as many threads as it may.
pub(crate) fn has_all_threads(own: usize) -> bool {
    let others: usize = PARKED
        .lock()
        .iter()
        .map(|p| p.process.threads.count())
        .sum();
    own + others >= MAX_THREADS
}

/// What there is to run beside the current process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// A process is ready: [`switch`].
    Ready,
    /// None before this time (monotonic nanoseconds), if any.
    Idle(Option<u64>),
    /// There is none.
    Nobody,
}

/// Finds who is next at the time `now`.
pub(crate) fn turn(now: u64) -> Turn {
    let mut parked = PARKED.lock();
    if parked.is_empty() {
        return Turn::Nobody;
    }
    let mut deadline: Option<u64> = None;
    for index in 0..parked.len() {
        let Some(candidate) = parked.get_mut(index) else {
            break;
        };
        let p = &mut candidate.process;
        if p.threads.has_ready(now) || host::has_signals(p.run) {
            let chosen = parked.remove(index);
            chosen.into_iter().for_each(|one| parked.push_front(one));
            return Turn::Ready;
        }
        deadline = match (deadline, p.threads.deadline()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    Turn::Idle(deadline)
}

/// Puts the current process away, if there is one; no core runs a thread of it.
fn put_away() -> Option<Box<Parked>> {
    let process = process::take_current()?;
    Some(Box::new(Parked {
        process,
        arenas: arenas::put_away(),
        imports: imports::put_away(),
    }))
}

/// Makes `parked` the current process, without loading its page table.
fn take_up(parked: Parked) {
    arenas::take_up(parked.arenas);
    imports::take_up(parked.imports);
    arch::edit(parked.process.root);
    process::set_current(parked.process);
}

fn push(parked: Box<Parked>) {
    PARKED.lock().push_back(parked);
    COUNT.fetch_add(1, Ordering::Relaxed);
}

fn remove(index: usize) -> Option<Box<Parked>> {
    let parked = PARKED.lock().remove(index)?;
    COUNT.fetch_sub(1, Ordering::Relaxed);
    Some(parked)
}

/// Gives the cores to the process that [`turn`] found. What a core holds of the
/// current one has been put away; no other core runs it.
pub(crate) fn switch() {
    let Some(next) = remove(0) else {
        return;
    };
    if let Some(before) = put_away() {
        push(before);
    }
    let (root, run) = (next.process.root, next.process.run);
    take_up(*next);
    phys::write(CURRENT_RUN, run);
    arch::set_root(root);
}

/// Puts the current process away for another turn, and uses no program's tables.
pub(crate) fn step_down() {
    if let Some(before) = put_away() {
        push(before);
    }
    leave();
}

/// No process is the current one any more.
pub(crate) fn leave() {
    phys::write(CURRENT_RUN, 0);
    arch::set_root(arch::boot_root());
}

/// Runs `f` with `parked` as the current process, as far as the kernel's own data
/// go: the cores keep the tables that they use.
fn visit<T>(parked: Parked, f: impl FnOnce() -> T) -> T {
    let before = put_away();
    let edited = arch::root();
    take_up(parked);
    let outcome = f();
    arch::edit(edited);
    if let Some(before) = before {
        take_up(*before);
    }
    outcome
}

/// Adds a process that `fill` loads; its error when that does not work.
pub(crate) fn add(
    process: Process,
    fill: impl FnOnce() -> Result<(), alloc::string::String>,
) -> Result<(), alloc::string::String> {
    let fresh = Parked {
        process,
        arenas: arenas::Kept::default(),
        imports: imports::Kept::default(),
    };
    let loaded = visit(fresh, || match fill() {
        Ok(()) => Ok(put_away()),
        Err(reason) => {
            process::tear_down();
            Err(reason)
        }
    })?;
    if let Some(parked) = loaded {
        push(parked);
    }
    Ok(())
}

/// Does what the host wants of any process: starts programs, ends those without a
/// core that are to be killed, and tells of all.
pub(crate) fn attend() {
    orders::attend();
    if host::is_run_wanted() {
        process::start_all();
    }
    while let Some((index, signal)) = doomed() {
        let Some(parked) = remove(index) else {
            break;
        };
        let run = parked.process.run;
        windows::forget(parked.process.pid);
        let report = "killed on request".to_string();
        let past = visit(*parked, || {
            process::with(|p| p.report = report);
            process::give_back(true)
        });
        process::finish(run, u64::from(signal & 0x7f), &past);
    }
    host::forget_all_but(&runs());
    if host::is_list_wanted() {
        tell();
    }
}

/// Bytes of the frames `[start, start + len)` that processes have mapped; without
/// those that are being changed.
pub(crate) fn bytes_within(start: u64, len: u64) -> u64 {
    let current = process::if_free(|p| p.bytes_within(start, len));
    let parked = PARKED.try_lock();
    let parked = parked.iter().flat_map(|parked| parked.iter());
    let others: u64 = parked.map(|p| p.process.bytes_within(start, len)).sum();
    current.unwrap_or(0) + others
}

/// Says which cores there are now.
pub(crate) fn use_cores(online: Cores) {
    process::if_any(|p| p.threads.use_cores(online));
    for parked in PARKED.lock().iter_mut() {
        parked.process.threads.use_cores(online);
    }
}

/// A thread that could run nowhere if there were only the cores `online`.
pub(crate) fn stranded(online: Cores) -> Option<Tid> {
    let current = process::if_any(|p| p.threads.stranded(online)).flatten();
    let parked = PARKED.lock();
    let mut others = parked.iter();
    current.or_else(|| others.find_map(|p| p.process.threads.stranded(online)))
}

/// Runs `f` on every process without a core.
pub(crate) fn for_parked(mut f: impl FnMut(&mut Process)) {
    for parked in PARKED.lock().iter_mut() {
        f(&mut parked.process);
    }
}

/// The top page table of a process without a core.
pub(crate) fn root_of(pid: Tid) -> Option<u64> {
    let parked = PARKED.lock();
    let found = parked.iter().find(|p| p.process.pid == pid);
    found.map(|p| p.process.root)
}

/// A process without a core that is to be killed.
fn doomed() -> Option<(usize, u8)> {
    let parked = PARKED.lock();
    let mut runs = (0..).zip(parked.iter().map(|p| p.process.run));
    runs.find_map(|(index, run)| host::take_kill(run).map(|signal| (index, signal)))
}

fn runs() -> Vec<u64> {
    let mut runs: Vec<u64> = PARKED.lock().iter().map(|p| p.process.run).collect();
    runs.extend(process::current_run());
    runs
}

/// Tells the host of all processes.
fn tell() {
    let now = clock::monotonic_ns();
    let mut entries = Vec::new();
    process::if_any(|p| entries.push(entry(p, PROCESS_RUNS, now)));
    for parked in PARKED.lock().iter_mut() {
        let state = if parked.process.threads.has_ready(now) {
            PROCESS_READY
        } else {
            PROCESS_WAITS
        };
        entries.push(entry(&mut parked.process, state, now));
    }
    let bytes = entries.as_slice().as_bytes();
    phys::write_bytes(BOUNCE, bytes);
    host::call(Call::Processes, [bytes.len() as u64, 0, 0, 0, 0, 0, 0]);
}

fn entry(p: &mut Process, state: u64, now: u64) -> ProcessEntry {
    let is_idle = state == PROCESS_RUNS && !p.threads.is_on_core();
    ProcessEntry {
        run: p.run,
        pid: p.pid,
        threads: p.threads.count() as u32,
        state: if is_idle { PROCESS_WAITS } else { state },
        memory_bytes: p.aspace.backed_bytes(),
        cpu_ns: p.ran_ns(now),
    }
}
