//! Threads of the standard library: channels, locks, conditions, barriers,
//! scoped threads, parking, time limits, a panic that is caught by join.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel, sync_channel};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, RwLock};
use std::thread;
use std::time::{Duration, Instant};

const THREADS: usize = 6;

fn channels() {
    let (to, from) = channel();
    let senders: Vec<_> = (0..THREADS)
        .map(|nr| {
            let to = to.clone();
            thread::spawn(move || {
                for n in 0..200 {
                    to.send(nr * 1000 + n).expect("the receiver is there");
                }
            })
        })
        .collect();
    drop(to);
    let sum: usize = from.iter().sum();
    for sender in senders {
        sender.join().expect("a sender ends well");
    }
    println!("channel: {sum}");
    let (to, from) = sync_channel(2);
    let worker = thread::spawn(move || from.iter().fold(0u64, |sum, n: u64| sum * 31 % 65_537 + n));
    for n in 0..500 {
        to.send(n).expect("the worker is there");
    }
    drop(to);
    println!("bounded channel: {}", worker.join().expect("a worker ends well"));
    let (_to, from) = channel::<()>();
    let waited = from.recv_timeout(Duration::from_millis(15));
    println!("silent channel: {}", waited == Err(RecvTimeoutError::Timeout));
}

fn locks() {
    let shared = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
    let handles: Vec<_> = (0..THREADS)
        .rev()
        .map(|nr| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (list, changed) = &*shared;
                let guard = list.lock().expect("nobody panicked");
                let mut guard = changed
                    .wait_while(guard, |list: &mut Vec<usize>| list.len() != nr)
                    .expect("nobody panicked");
                guard.push(nr);
                changed.notify_all();
            })
        })
        .collect();
    for handle in handles {
        handle.join().expect("a thread ends well");
    }
    println!("in order: {:?}", shared.0.lock().expect("nobody panicked"));
    let (total, barrier) = (RwLock::new(0), Barrier::new(THREADS));
    let leaders = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..50 {
                    let before = *total.read().expect("nobody panicked");
                    thread::yield_now();
                    *total.write().expect("nobody panicked") += usize::from(before < usize::MAX);
                    if barrier.wait().is_leader() {
                        leaders.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    println!("total {total:?}, leaders {leaders:?}");
}

fn the_rest() {
    static ONCE: OnceLock<usize> = OnceLock::new();
    let once: usize = (0..THREADS)
        .map(|nr| thread::spawn(move || *ONCE.get_or_init(|| 40 + nr * 0)))
        .map(|handle| handle.join().expect("a thread ends well"))
        .sum();
    println!("once: {once}");
    let parked = thread::Builder::new()
        .name("parked".into())
        .spawn(|| {
            thread::park();
            thread::current().name().map(str::to_owned)
        })
        .expect("there is room for a thread");
    thread::sleep(Duration::from_millis(5));
    parked.thread().unpark();
    println!("unparked: {:?}", parked.join().expect("a thread ends well"));
    let start = Instant::now();
    thread::park_timeout(Duration::from_millis(20));
    println!("slept: {}", start.elapsed() >= Duration::from_millis(1));
    let panicked = thread::spawn(|| std::panic::resume_unwind(Box::new(17u8))).join();
    println!("panic: {:?}", panicked.err().and_then(|e| e.downcast::<u8>().ok()));
}

fn main() {
    channels();
    locks();
    the_rest();
    let code = std::env::args().nth(1).and_then(|code| code.parse().ok());
    std::process::exit(code.unwrap_or(0));
}
