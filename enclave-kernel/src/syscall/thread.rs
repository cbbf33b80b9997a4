//! Thread calls: clone, exit, numbers, robust lists.
//!
//! What may be asked is decided in `enclave-core/thread`; how threads change
//! places is `threads.rs`. A process of its own cannot be made.

use enclave_core::errno::Errno;
use enclave_core::thread::{CloneArgs, Refusal, Tid, dead_owner};

use super::{Outcome, futex, scheduling, unknown};
use crate::arch::TrapFrame;
use crate::threads::{self, RobustList};
use crate::{process, user};

/// Bytes of struct robust_list_head.
const ROBUST_HEAD_BYTES: u64 = 24;
/// Entries of a robust list that are looked at, as Linux's limit.
const ROBUST_LIMIT: usize = 2048;

/// Serves `nr` if it is a thread call; `None` otherwise. The answer is that of
/// the thread that `frame` is then about.
pub(super) fn serve(nr: u64, a: [u64; 6], frame: &mut TrapFrame) -> Option<Outcome> {
    let outcome = match nr {
        24 => Ok(threads::step_back(frame)), // sched_yield
        35 | 202 | 230 => futex::serve(nr, a, frame),
        56 => clone(
            nr,
            CloneArgs::from_registers([a[0], a[1], a[2], a[3], a[4]]),
            frame,
        ),
        435 => clone3(nr, a[0], a[1], frame),
        60 => Ok(exit(a[0], frame)),
        186 => Ok(u64::from(threads::current())),
        218 => Ok(set_tid_address(a[0])),
        273 => set_robust_list(a[0], a[1]),
        274 => get_robust_list(a[0], a[1], a[2]),
        _ => return None,
    };
    Some(outcome)
}

fn clone3(nr: u64, at: u64, bytes: u64, frame: &mut TrapFrame) -> Outcome {
    /// The first version of struct clone_args, and the largest that is read.
    const SIZES: core::ops::RangeInclusive<u64> = 64..=128;
    if bytes < *SIZES.start() || !bytes.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    if bytes > *SIZES.end() {
        return Err(Errno::E2BIG);
    }
    let mut words = [0u64; 16];
    for (n, word) in (0..bytes / 8).zip(&mut words) {
        *word = user::read(at.checked_add(n * 8).ok_or(Errno::EFAULT)?)?;
    }
    match CloneArgs::from_struct(words.get(..(bytes / 8) as usize).unwrap_or(&[])) {
        Ok(args) => clone(nr, args, frame),
        Err(refusal) => Err(errno(nr, refusal)),
    }
}

fn clone(nr: u64, args: CloneArgs, frame: &TrapFrame) -> Outcome {
    let request = args.check().map_err(|refusal| errno(nr, refusal))?;
    let tid = threads::spawn(frame, &request)?;
    for place in request.store_tid.into_iter().flatten() {
        // As Linux: the thread is there, whatever becomes of its number.
        let _ = user::write(place, &tid);
    }
    Ok(u64::from(tid))
}

fn errno(nr: u64, refusal: Refusal) -> Errno {
    match refusal {
        Refusal::NotAThread => unknown(nr),
        Refusal::Errno(errno) => errno,
    }
}

/// exit(2): of this thread. The program ends with the last one, and its code is
/// then that of the first thread, whenever that one ended.
fn exit(code: u64, frame: &mut TrapFrame) -> u64 {
    let tid = threads::current();
    let code = process::with(|p| {
        if tid == p.pid {
            p.first_code = Some(code);
        }
        p.first_code.unwrap_or(code)
    });
    if process::with(|p| p.threads.count()) == 1 {
        process::end_by_exit(code);
    }
    let (robust, clear_tid) = threads::with(|t| (t.robust, t.clear_tid));
    // What the list and the word point to is the program's affair.
    let _ = give_up_robust(tid, robust);
    if clear_tid != 0 && user::write(clear_tid, &0u32).is_ok() {
        futex::wake_one(clear_tid);
    }
    match threads::exit(frame) {
        Some(answer) => answer,
        None => process::end_by_exit(code),
    }
}

/// Marks the mutexes of a thread that ends and wakes who waits for them; ends at
/// the first entry that cannot be read.
fn give_up_robust(tid: Tid, RobustList { head }: RobustList) -> Result<(), Errno> {
    /// Marks a priority-inheriting mutex in a link.
    const PI: u64 = 1;
    if head == 0 {
        return Ok(());
    }
    let [first, offset, pending]: [u64; 3] = user::read(head)?;
    let word = |entry: u64| (entry & !PI).wrapping_add(offset);
    let mut entry = first & !PI;
    for _ in 0..ROBUST_LIMIT {
        if entry == head {
            break;
        }
        // The next one first: who is woken may reuse this one.
        let next = user::read::<u64>(entry);
        if entry != pending & !PI {
            give_up(tid, word(entry))?;
        }
        entry = next? & !PI;
    }
    if pending != 0 {
        give_up(tid, word(pending))?;
    }
    Ok(())
}

fn give_up(tid: Tid, address: u64) -> Result<(), Errno> {
    let old = user::update_word(address, |word| dead_owner(word, tid).map(|(new, _)| new))?;
    if dead_owner(old, tid).is_some_and(|(_, waiters)| waiters) {
        futex::wake_one(address);
    }
    Ok(())
}

fn set_tid_address(address: u64) -> u64 {
    threads::with(|t| t.clear_tid = address);
    u64::from(threads::current())
}

fn set_robust_list(head: u64, bytes: u64) -> Outcome {
    if bytes != ROBUST_HEAD_BYTES {
        return Err(Errno::EINVAL);
    }
    threads::with(|t| t.robust = RobustList { head });
    Ok(0)
}

fn get_robust_list(tid: u64, head_to: u64, len_to: u64) -> Outcome {
    let tid = scheduling::known(tid).map_err(|_| Errno::ESRCH)?;
    let head = process::with(|p| p.threads.context(tid).map_or(0, |t| t.robust.head));
    user::write(len_to, &ROBUST_HEAD_BYTES)?;
    user::write(head_to, &head)?;
    Ok(0)
}
