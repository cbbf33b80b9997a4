//! Futex queues: whom a wake-up reaches, and what happens to a word.
//!
//! The word itself is read and written by the kernel; what is compared and
//! stored is decided here, as futex(2) and `linux/futex.h` say. A word is known
//! by its address: a program has one address space, so private and shared
//! futexes are the same.

use super::{Threads, Tid};
use crate::errno::Errno;

/// Bits of a robust futex word: its owner's number.
const TID_MASK: u32 = 0x3fff_ffff;
/// Somebody waits for the word.
const WAITERS: u32 = 1 << 31;
/// The owner ended without giving it back.
const OWNER_DIED: u32 = 1 << 30;

impl<C> Threads<C> {
    /// Wakes up to `max` waiters of the word at `address` that named one of the
    /// bits of `mask`, oldest first; how many.
    pub fn wake(&mut self, address: u64, mask: u32, max: usize) -> usize {
        let mut woken = 0;
        let mut at = 0;
        while woken < max {
            let Some(&tid) = self.queues.get(&address).and_then(|queue| queue.get(at)) else {
                break;
            };
            if self.names_one_of(tid, mask) {
                self.take_from(address, at);
                self.end_wait(tid, 0);
                woken += 1;
            } else {
                at += 1;
            }
        }
        woken
    }

    fn names_one_of(&self, tid: Tid, mask: u32) -> bool {
        let wait = self.all.get(&tid).and_then(|thread| thread.wait);
        wait.and_then(|wait| wait.futex)
            .is_none_or(|(_, bits)| bits & mask != 0)
    }

    fn take_from(&mut self, address: u64, at: usize) -> Option<Tid> {
        let queue = self.queues.get_mut(&address)?;
        let tid = queue.remove(at);
        if queue.is_empty() {
            self.queues.remove(&address);
        }
        tid
    }

    /// Wakes up to `wake` waiters of the word at `from` and lets up to `most`
    /// others wait for the word at `to` instead; how many it was in all.
    pub fn requeue(&mut self, from: u64, to: u64, wake: usize, most: usize) -> usize {
        let woken = self.wake(from, u32::MAX, wake);
        // With the same word each would come back to the end of its own queue.
        let waiting = self.queues.get(&from).map_or(0, |queue| queue.len());
        let moved = most.min(waiting);
        for _ in 0..moved {
            let Some(tid) = self.take_from(from, 0) else {
                break;
            };
            self.queues.entry(to).or_default().push_back(tid);
            let wait = self
                .all
                .get_mut(&tid)
                .and_then(|thread| thread.wait.as_mut());
            if let Some((address, _)) = wait.and_then(|wait| wait.futex.as_mut()) {
                *address = to;
            }
        }
        woken + moved
    }

    /// Threads that wait at futex words.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queues.values().map(|queue| queue.len()).sum()
    }
}

/// What FUTEX_WAKE_OP does to its second word and asks of what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeOp {
    operation: u32,
    operand: u32,
    comparison: u32,
    bound: i32,
}

impl WakeOp {
    /// Decodes the sixth argument.
    ///
    /// # Errors
    /// `ENOSYS` for an operation or a comparison that Linux does not have.
    pub fn new(code: u32) -> Result<Self, Errno> {
        const SHIFTED: u32 = 8;
        let field = |low: u32| code >> low & 0xf;
        // Twelve bits with a sign.
        let number = |low: u32| (code << (20 - low)).cast_signed() >> 20;
        let operand = number(12);
        let operation = field(28);
        let wanted = Self {
            operation: operation & !SHIFTED,
            operand: if operation & SHIFTED == 0 {
                operand.cast_unsigned()
            } else {
                // As Linux: only the low five bits count.
                1 << (operand & 31)
            },
            comparison: field(24),
            bound: number(0),
        };
        if wanted.operation > 4 || wanted.comparison > 5 {
            return Err(Errno::ENOSYS);
        }
        Ok(wanted)
    }

    /// The word's new value.
    #[must_use]
    pub const fn apply(self, old: u32) -> u32 {
        match self.operation {
            0 => self.operand,
            1 => old.wrapping_add(self.operand),
            2 => old | self.operand,
            3 => old & !self.operand,
            _ => old ^ self.operand,
        }
    }

    /// Whether the second word's waiters are woken, too.
    #[must_use]
    pub const fn holds(self, old: u32) -> bool {
        let old = old.cast_signed();
        match self.comparison {
            0 => old == self.bound,
            1 => old != self.bound,
            2 => old < self.bound,
            3 => old <= self.bound,
            4 => old > self.bound,
            _ => old >= self.bound,
        }
    }
}

/// What becomes of a robust futex word when thread `owner` ends: the new value
/// and whether a waiter is to be woken; `None` when it is not that thread's.
#[must_use]
pub const fn dead_owner(word: u32, owner: Tid) -> Option<(u32, bool)> {
    if word & TID_MASK != owner {
        return None;
    }
    Some((word & WAITERS | OWNER_DIED, word & WAITERS != 0))
}
