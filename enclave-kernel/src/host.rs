//! The kernel's end of the command queue: ask the VMM, get an answer.
//!
//! A store to the queue doorbell leaves to the vCPU thread, which serves the
//! record and resumes us: when the store returns, the answer is there. The
//! host's indices are not trusted to be sane: an answer that never comes is a
//! panic, not a hang.

use alloc::collections::BTreeMap;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use enclave_abi::boot::Mode;
use enclave_abi::layout::{BOUNCE, BOUNCE_BYTES, QUEUE};
use enclave_abi::queue::{Call, Command, QueuePage, RECORD_VERSION, RING_RECORDS, Record, Ring};
use enclave_core::signal::bit;
use spin::Mutex;
use zerocopy::{FromBytes, IntoBytes};

use crate::{clock, orders, phys, threads};

const TO_HOST: u64 = QUEUE + offset_of!(QueuePage, to_host) as u64;
const TO_GUEST: u64 = QUEUE + offset_of!(QueuePage, to_guest) as u64;
const HEAD: u64 = offset_of!(Ring, head) as u64;
const TAIL: u64 = offset_of!(Ring, tail) as u64;
const RECORDS: u64 = offset_of!(Ring, records) as u64;
/// Times the doorbell is rung again before a missing answer is a panic.
const PATIENCE: u32 = 64;

static SEQ: AtomicU32 = AtomicU32::new(1);
/// What the host told of programs and nobody has looked at yet.
static TOLD: Mutex<Told> = Mutex::new(Told {
    signals: BTreeMap::new(),
    is_run_wanted: false,
    is_list_wanted: false,
    order: None,
});
/// Whether there is any of it.
static IS_TOLD: AtomicBool = AtomicBool::new(false);
/// Whether there may be something to do before the program goes on: one word
/// for all that can be, because it is looked at on every way back.
static ATTENTION: AtomicU64 = AtomicU64::new(0);
/// Calls forwarded so far.
pub(crate) static FORWARDED: AtomicU64 = AtomicU64::new(0);

/// Commands of the host.
struct Told {
    /// For each run.
    signals: BTreeMap<u64, Signals>,
    /// There is a program to start.
    is_run_wanted: bool,
    /// It wants to know of all processes.
    is_list_wanted: bool,
    /// Memory or a core is to come or go; one order at a time is under way.
    order: Option<[u64; 7]>,
}

/// Signals for one run.
#[derive(Clone, Copy, Debug, Default)]
struct Signals {
    /// It ends by this one.
    kill: Option<u8>,
    /// It may handle those, as a set.
    set: u64,
    /// A timer of it is due.
    is_alarmed: bool,
}

impl Told {
    fn is_any(&self) -> bool {
        let is_asked = self.is_run_wanted || self.is_list_wanted || self.order.is_some();
        is_asked || !self.signals.is_empty()
    }
}

/// Changes what was told.
fn told<T>(change: impl FnOnce(&mut Told) -> T) -> T {
    let mut told = TOLD.lock();
    let outcome = change(&mut told);
    told.signals
        .retain(|_, one| one.kill.is_some() || one.set != 0 || one.is_alarmed);
    IS_TOLD.store(told.is_any(), Ordering::Release);
    outcome
}

fn post(kind: Call, seq: u32, args: [u64; 7]) {
    let head = phys::atomic32(TO_HOST + HEAD);
    let at = head.load(Ordering::Relaxed);
    let record = Record {
        version: RECORD_VERSION,
        kind: kind as u16,
        seq,
        args,
    };
    let slot = u64::from(at % RING_RECORDS) * size_of::<Record>() as u64;
    phys::write_bytes(TO_HOST + RECORDS + slot, record.as_bytes());
    head.store(at.wrapping_add(1), Ordering::Release);
}

/// The next record from the host.
fn take() -> Option<Record> {
    let tail = phys::low32::<{ TO_GUEST + TAIL }>();
    let at = tail.load(Ordering::Relaxed);
    let head = phys::low32::<{ TO_GUEST + HEAD }>().load(Ordering::Acquire);
    if head == at {
        return None;
    }
    let mut bytes = [0; size_of::<Record>()];
    let slot = u64::from(at % RING_RECORDS) * size_of::<Record>() as u64;
    phys::read_bytes(TO_GUEST + RECORDS + slot, &mut bytes);
    tail.store(at.wrapping_add(1), Ordering::Release);
    Record::read_from_bytes(&bytes).ok()
}

/// Notes an unasked command that is not for the idle loop.
fn note(record: &Record) {
    let [run, signal, may_handle, ..] = record.args;
    let signal = (signal & 0xff) as u8;
    told(|told| match Command::try_from(record.kind) {
        Ok(Command::Run) => told.is_run_wanted = true,
        Ok(Command::List) => told.is_list_wanted = true,
        Ok(Command::Change) => told.order = Some(record.args),
        Ok(Command::Kill) => {
            let one = told.signals.entry(run).or_default();
            if may_handle == 0 {
                one.kill = Some(signal);
            } else if signal == 0 {
                one.is_alarmed = true;
            } else {
                one.set |= bit(signal);
            }
        }
        // Anything a newer VMM may send.
        _ => {}
    });
    call_attention();
}

/// Asks the VMM and returns the answer's arguments.
pub(crate) fn call(kind: Call, args: [u64; 7]) -> [u64; 7] {
    let seq = SEQ.fetch_add(1, Ordering::Relaxed).max(1);
    post(kind, seq, args);
    for _ in 0..PATIENCE {
        phys::QUEUE_BELL.ring();
        while let Some(record) = take() {
            if record.seq == seq {
                return record.args;
            }
            note(&record);
        }
    }
    panic!("the VMM does not answer call {kind:?}");
}

/// Tells the VMM something that has no answer.
pub(crate) fn tell(kind: Call, args: [u64; 7]) {
    post(kind, 0, args);
    phys::QUEUE_BELL.ring();
}

/// Blocks until a command comes.
pub(crate) fn idle() {
    while !poll_attention() {
        tell(Call::Idle, [0; 7]);
    }
    attended();
}

/// Takes in commands that came meanwhile; whether there may be something to do
/// before the program goes on.
#[inline]
pub(crate) fn poll_attention() -> bool {
    let head = phys::low32::<{ TO_GUEST + HEAD }>().load(Ordering::Acquire);
    if head != phys::low32::<{ TO_GUEST + TAIL }>().load(Ordering::Relaxed) {
        drain();
    }
    ATTENTION.load(Ordering::Relaxed) != 0
}

/// Has somebody look before the program goes on.
pub(crate) fn call_attention() {
    ATTENTION.store(1, Ordering::Relaxed);
}

/// Somebody looks now.
pub(crate) fn attended() {
    ATTENTION.store(0, Ordering::Relaxed);
}

/// Takes in commands that came meanwhile, and carries out what the program need not
/// know of; whether one is to interrupt a wait.
pub(crate) fn is_interrupted() -> bool {
    if !poll_attention() {
        return false;
    }
    orders::attend_memory();
    IS_TOLD.load(Ordering::Relaxed)
}

/// Whether a timer of run `run` is due; once.
pub(crate) fn take_alarm(run: u64) -> bool {
    IS_TOLD.load(Ordering::Acquire)
        && told(|told| {
            let one = told.signals.get_mut(&run);
            one.is_some_and(|one| core::mem::take(&mut one.is_alarmed))
        })
}

/// The signals for run `run` that came, as a set, once. The host is told: until
/// then it ends every wait on behalf of the program.
pub(crate) fn take_signals(run: u64) -> u64 {
    if !has_signals(run) {
        return 0;
    }
    call(Call::SignalsTaken, [run, 0, 0, 0, 0, 0, 0]);
    told(|told| {
        let one = told.signals.get_mut(&run);
        one.map_or(0, |one| core::mem::take(&mut one.set))
    })
}

/// Whether there are such, or a timer is due.
pub(crate) fn has_signals(run: u64) -> bool {
    IS_TOLD.load(Ordering::Acquire) && {
        let told = TOLD.lock();
        let one = told.signals.get(&run);
        one.is_some_and(|one| one.set != 0 || one.is_alarmed)
    }
}

/// Whether there is a program to start, once.
pub(crate) fn is_run_wanted() -> bool {
    IS_TOLD.load(Ordering::Acquire) && told(|told| core::mem::take(&mut told.is_run_wanted))
}

/// Whether the host wants to know of all processes, once.
pub(crate) fn is_list_wanted() -> bool {
    IS_TOLD.load(Ordering::Acquire) && told(|told| core::mem::take(&mut told.is_list_wanted))
}

/// Forgets what is for programs that are over.
pub(crate) fn forget_all_but(runs: &[u64]) {
    if IS_TOLD.load(Ordering::Acquire) {
        told(|told| told.signals.retain(|run, _| runs.contains(run)));
    }
}

#[cold]
fn drain() {
    while let Some(record) = take() {
        note(&record);
    }
}

/// The order that came, once, if it is of a kind that `is_wanted`.
pub(crate) fn take_order(is_wanted: impl Fn(u64) -> bool) -> Option<[u64; 7]> {
    if !IS_TOLD.load(Ordering::Acquire) {
        return None;
    }
    told(|told| told.order.take_if(|[_, what, ..]| is_wanted(*what)))
}

/// The signal a pending kill of run `run` carries, once.
pub(crate) fn take_kill(run: u64) -> Option<u8> {
    if !IS_TOLD.load(Ordering::Acquire) {
        return None;
    }
    told(|told| told.signals.get_mut(&run)?.kill.take())
}

/// Reports that the kernel is up.
pub(crate) fn booted(mode: Mode, verdict: u64, flush: u64, selftests: u64) {
    tell(
        Call::Booted,
        [
            mode as u64,
            verdict,
            flush,
            u64::from(crate::arch::gate_ring()),
            selftests,
            0,
            0,
        ],
    );
}

/// Puts text into the bounce area, cut to its size: bytes written.
pub(crate) fn bounce_text(text: &[u8]) -> u64 {
    let fits = text.len().min(BOUNCE_BYTES as usize);
    phys::write_bytes(BOUNCE, &text[..fits]);
    fits as u64
}

/// Forwards a system call; `bytes` of the bounce area go along.
pub(crate) fn forward(nr: u64, args: [u64; 5], bytes: u64) -> i64 {
    FORWARDED.fetch_add(1, Ordering::Relaxed);
    let [a0, a1, a2, a3, a4] = args;
    let since = clock::monotonic_ns();
    let [answer, ..] = call(Call::Forward, [nr, a0, a1, a2, a3, a4, bytes]);
    threads::note_waited(since);
    answer as i64
}
