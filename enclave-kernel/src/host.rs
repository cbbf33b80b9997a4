//! The kernel's end of the command queue: ask the VMM, get an answer.
//!
//! A store to the queue doorbell leaves to the vCPU thread, which serves the
//! record and resumes us: when the store returns, the answer is there. The
//! host's indices are not trusted to be sane: an answer that never comes is a
//! panic, not a hang.

use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use enclave_abi::boot::Mode;
use enclave_abi::layout::{BOUNCE, BOUNCE_BYTES, QUEUE};
use enclave_abi::queue::{Call, Command, QueuePage, RECORD_VERSION, RING_RECORDS, Record, Ring};
use enclave_core::signal::bit;
use zerocopy::{FromBytes, IntoBytes};

use crate::phys;

const TO_HOST: u64 = QUEUE + offset_of!(QueuePage, to_host) as u64;
const TO_GUEST: u64 = QUEUE + offset_of!(QueuePage, to_guest) as u64;
const HEAD: u64 = offset_of!(Ring, head) as u64;
const TAIL: u64 = offset_of!(Ring, tail) as u64;
const RECORDS: u64 = offset_of!(Ring, records) as u64;
/// Times the doorbell is rung again before a missing answer is a panic.
const PATIENCE: u32 = 64;

static SEQ: AtomicU32 = AtomicU32::new(1);
/// A kill command that came along with an answer: run id << 8 | signal.
static KILL: AtomicU64 = AtomicU64::new(0);
/// Signals that the program may handle, as a set, and the run they are for.
static SIGNALS: AtomicU64 = AtomicU64::new(0);
static SIGNALS_RUN: AtomicU64 = AtomicU64::new(0);
/// A timer of the program is due.
static ALARM: AtomicBool = AtomicBool::new(false);
/// Whether there may be something to do before the program goes on: one word
/// for all that can be, because it is looked at on every way back.
static ATTENTION: AtomicU64 = AtomicU64::new(0);
/// Calls forwarded so far.
pub(crate) static FORWARDED: AtomicU64 = AtomicU64::new(0);

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
    if Command::try_from(record.kind) != Ok(Command::Kill) {
        return;
    }
    let [run, signal, may_handle, ..] = record.args;
    if may_handle == 0 {
        KILL.store(run << 8 | signal & 0xff, Ordering::Release);
    } else {
        if SIGNALS_RUN.swap(run, Ordering::Relaxed) != run {
            SIGNALS.store(0, Ordering::Relaxed);
        }
        match (signal & 0xff) as u8 {
            0 => ALARM.store(true, Ordering::Release),
            signal => {
                SIGNALS.fetch_or(bit(signal), Ordering::Release);
            }
        }
    }
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
pub(crate) fn idle() -> Record {
    loop {
        if let Some(record) = take() {
            return record;
        }
        tell(Call::Idle, [0; 7]);
    }
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

/// Takes in commands that came meanwhile; whether one is to interrupt a wait.
pub(crate) fn is_interrupted() -> bool {
    poll_attention()
        && ((KILL.load(Ordering::Relaxed) | SIGNALS.load(Ordering::Relaxed)) != 0
            || ALARM.load(Ordering::Relaxed))
}

/// Whether a timer is due; once.
pub(crate) fn take_alarm() -> bool {
    ALARM.load(Ordering::Relaxed) && ALARM.swap(false, Ordering::AcqRel)
}

/// The signals for run `run` that came, as a set, once. The host is told: until
/// then it ends every wait on behalf of the program.
pub(crate) fn take_signals(run: u64) -> u64 {
    if SIGNALS.load(Ordering::Acquire) == 0 && !ALARM.load(Ordering::Acquire) {
        return 0;
    }
    call(Call::SignalsTaken, [run, 0, 0, 0, 0, 0, 0]);
    let set = SIGNALS.swap(0, Ordering::AcqRel);
    if SIGNALS_RUN.load(Ordering::Relaxed) == run {
        set
    } else {
        0
    }
}

#[cold]
fn drain() {
    while let Some(record) = take() {
        note(&record);
    }
}

/// The signal a pending kill of run `run` carries, once.
pub(crate) fn take_kill(run: u64) -> Option<u8> {
    let word = KILL.load(Ordering::Acquire);
    if word == 0 || word >> 8 != run {
        return None;
    }
    KILL.store(0, Ordering::Release);
    Some((word & 0xff) as u8)
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
    call(Call::Forward, [nr, a0, a1, a2, a3, a4, bytes])[0] as i64
}
