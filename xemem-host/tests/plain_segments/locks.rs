//! Locks inside an attached segment, which XPMEM cannot have: a futex and a
//! process-shared pthread mutex, each used by two processes.

// UNSAFETY: a pthread mutex is made and locked at an address in the segment.
#![expect(unsafe_code)]

use crate::broker_process::BrokerProcess;
use crate::peer::Peer;
use crate::sharing::importer;
use rustix::thread::futex;
use std::sync::atomic::Ordering;
use xemem_host::SharedMemory;

/// Where the mutex is; the futex word is at 0.
const MUTEX: usize = 128;
/// Where the counter is that it guards.
const COUNTER: usize = 256;

fn mutex(memory: &SharedMemory) -> *mut libc::pthread_mutex_t {
    assert!(MUTEX + size_of::<libc::pthread_mutex_t>() <= COUNTER);
    assert!(memory.len() >= COUNTER + 8);
    // SAFETY: inside the mapping (checked), aligned to 128 bytes.
    unsafe { memory.as_ptr().byte_add(MUTEX).cast() }
}

fn make_mutex(memory: &SharedMemory) {
    let mut attributes = core::mem::MaybeUninit::uninit();
    // SAFETY: initialised by the first call before any other uses it; the
    // mutex is memory of the segment that nobody uses yet.
    let made = unsafe {
        libc::pthread_mutexattr_init(attributes.as_mut_ptr())
            | libc::pthread_mutexattr_setpshared(
                attributes.as_mut_ptr(),
                libc::PTHREAD_PROCESS_SHARED,
            )
            | libc::pthread_mutex_init(mutex(memory), attributes.as_ptr())
    };
    assert_eq!(made, 0);
}

/// Adds 1 to the counter `times` times, by a load and a store under the mutex.
pub(crate) fn count_under_mutex(memory: &SharedMemory, times: u64) {
    let counter = memory.atomic_u64(COUNTER).expect("a word");
    for _ in 0..times {
        // SAFETY: made by `make_mutex` before the other process was told to
        // begin, and mapped for as long as `memory`.
        assert_eq!(unsafe { libc::pthread_mutex_lock(mutex(memory)) }, 0);
        let value = counter.load(Ordering::Relaxed);
        counter.store(value + 1, Ordering::Relaxed);
        // SAFETY: locked above by this thread.
        assert_eq!(unsafe { libc::pthread_mutex_unlock(mutex(memory)) }, 0);
    }
}

/// Sleeps in the kernel until the word at 0 is no longer 0; leaves 2 there.
pub(crate) fn sleep_at_futex(memory: &SharedMemory) {
    let word = memory.atomic_u32(0).expect("a word");
    while word.load(Ordering::Acquire) == 0 {
        // Shared: the kernel finds the word by its object, not its address.
        let _ = futex::wait(word, futex::Flags::empty(), 0, None);
    }
    word.store(2, Ordering::Release);
}

#[test]
fn a_process_shared_mutex_in_a_segment_excludes_two_processes() {
    const TIMES: u64 = 20_000;
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 8192 600"), "ok");
    let (_broker, attached) = importer(&process, "x", 0, 8192);
    make_mutex(&attached.memory);
    exporter.tell(&format!("lock {TIMES}"));
    count_under_mutex(&attached.memory, TIMES);
    assert_eq!(exporter.answer(), "ok");
    assert_eq!(attached.memory.load_u64(COUNTER), Ok(2 * TIMES));
}

#[test]
fn a_futex_in_a_segment_wakes_the_other_process() {
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 4096 600"), "ok");
    let (_broker, attached) = importer(&process, "x", 0, 4096);
    let word = attached.memory.atomic_u32(0).expect("a word");
    exporter.tell("sleep-at-futex");
    // Nobody sleeps there before it is seen in the kernel: waking says so.
    let flags = futex::Flags::empty();
    while futex::requeue(word, flags, 0, 1, word) != Ok(1) {
        std::thread::yield_now();
    }
    word.store(1, Ordering::Release);
    assert_eq!(futex::wake(word, flags, 1), Ok(1), "one sleeper");
    assert_eq!(exporter.answer(), "ok");
    assert_eq!(word.load(Ordering::Acquire), 2);
}
