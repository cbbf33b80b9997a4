//! The VMM's end of the command queue and of the console ring.
//!
//! Called by the vCPU thread only, so each ring has one producer and one
//! consumer. The kernel's indices are hostile: their distance is checked, each
//! record is copied once and decoded from the copy.

use std::mem::offset_of;
use std::sync::atomic::Ordering;

use enclave_abi::layout::{CONSOLE, QUEUE};
use enclave_abi::queue::{
    CONSOLE_DATA_BYTES, CONSOLE_DATA_OFFSET, ConsoleRing, QueuePage, RECORD_VERSION, RING_RECORDS,
    Record, Ring,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use zerocopy::{FromBytes, IntoBytes};

use super::BellCounts;
use crate::memory::Ram;

/// Why the queue cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// An index is further ahead than the ring is long.
    #[error("the kernel's command queue is corrupt (indices {head} and {tail})")]
    Corrupt {
        /// Producer index.
        head: u32,
        /// Consumer index.
        tail: u32,
    },
    /// The kernel does not take its answers.
    #[error("the kernel's command queue is full")]
    Full,
    /// The queue lies outside RAM (cannot happen with our layout).
    #[error("the command queue is outside guest RAM")]
    Memory(#[from] GuestMemoryError),
}

/// The VMM's end of both rings.
#[derive(Debug)]
pub struct HostQueue {
    ram: Ram,
    /// Free-running index of the next record to take; ours, never re-read.
    taken: u32,
    /// Free-running index of the next record to post.
    posted: u32,
}

const TO_HOST: u64 = QUEUE + offset_of!(QueuePage, to_host) as u64;
const TO_GUEST: u64 = QUEUE + offset_of!(QueuePage, to_guest) as u64;

fn head(ring: u64) -> GuestAddress {
    GuestAddress(ring + offset_of!(Ring, head) as u64)
}

fn tail(ring: u64) -> GuestAddress {
    GuestAddress(ring + offset_of!(Ring, tail) as u64)
}

fn record(ring: u64, index: u32) -> GuestAddress {
    let slot = u64::from(index % RING_RECORDS) * size_of::<Record>() as u64;
    GuestAddress(ring + offset_of!(Ring, records) as u64 + slot)
}

impl HostQueue {
    /// The queue of a machine that has not run yet.
    #[must_use]
    pub fn new(ram: Ram) -> Self {
        Self {
            ram,
            taken: 0,
            posted: 0,
        }
    }

    /// The next record the kernel posted, if any.
    ///
    /// # Errors
    /// [`QueueError::Corrupt`] when the kernel's index makes no sense.
    pub fn take(&mut self) -> Result<Option<Record>, QueueError> {
        let theirs: u32 = self.ram.load(head(TO_HOST), Ordering::Acquire)?;
        let waiting = theirs.wrapping_sub(self.taken);
        if waiting > RING_RECORDS {
            return Err(QueueError::Corrupt {
                head: theirs,
                tail: self.taken,
            });
        }
        if waiting == 0 {
            return Ok(None);
        }
        let mut bytes = [0; size_of::<Record>()];
        self.ram
            .read_slice(&mut bytes, record(TO_HOST, self.taken))?;
        self.taken = self.taken.wrapping_add(1);
        self.ram
            .store(self.taken, tail(TO_HOST), Ordering::Release)?;
        Ok(Record::read_from_bytes(&bytes).ok())
    }

    /// Posts a record to the kernel.
    ///
    /// # Errors
    /// [`QueueError::Full`] when the kernel lets its ring fill up.
    pub fn post(&mut self, kind: u16, seq: u32, args: [u64; 7]) -> Result<(), QueueError> {
        let theirs: u32 = self.ram.load(tail(TO_GUEST), Ordering::Acquire)?;
        let waiting = self.posted.wrapping_sub(theirs);
        if waiting > RING_RECORDS {
            return Err(QueueError::Corrupt {
                head: self.posted,
                tail: theirs,
            });
        }
        if waiting == RING_RECORDS {
            return Err(QueueError::Full);
        }
        let message = Record {
            version: RECORD_VERSION,
            kind,
            seq,
            args,
        };
        self.ram
            .write_slice(message.as_bytes(), record(TO_GUEST, self.posted))?;
        self.posted = self.posted.wrapping_add(1);
        self.ram
            .store(self.posted, head(TO_GUEST), Ordering::Release)?;
        Ok(())
    }
}

/// Command interrupts the kernel has taken so far, as it says.
///
/// # Errors
/// When the queue lies outside RAM (cannot happen with our layout).
pub fn interrupts_taken(ram: &Ram) -> Result<u32, GuestMemoryError> {
    let at = QUEUE + offset_of!(QueuePage, interrupts_taken) as u64;
    ram.load(GuestAddress(at), Ordering::Acquire)
}

/// The run whose process has the cores, as the kernel says; 0 = none.
///
/// # Errors
/// As [`interrupts_taken`].
pub fn current_run(ram: &Ram) -> Result<u64, GuestMemoryError> {
    let at = QUEUE + offset_of!(QueuePage, current_run) as u64;
    ram.load(GuestAddress(at), Ordering::Acquire)
}

/// What the kernel has counted about bells; how many it rings it does not know.
///
/// # Errors
/// As [`interrupts_taken`].
pub fn bell_counts(ram: &Ram) -> Result<BellCounts, GuestMemoryError> {
    let word = |offset: usize| ram.load(GuestAddress(QUEUE + offset as u64), Ordering::Acquire);
    Ok(BellCounts {
        rung: 0,
        taken: word(offset_of!(QueuePage, bells_taken))?,
        notices: word(offset_of!(QueuePage, notices_taken))?,
        idle: word(offset_of!(QueuePage, bells_idle))?,
        paused: word(offset_of!(QueuePage, bells_paused))?,
    })
}

/// Takes what the kernel printed since the last call, and the count of bytes
/// it had to drop so far.
///
/// # Errors
/// A corrupt ring is read as empty and reset; only memory errors are returned.
pub fn drain_console(ram: &Ram) -> Result<(Vec<u8>, u64), GuestMemoryError> {
    let at = |offset: usize| GuestAddress(CONSOLE + offset as u64);
    let head: u32 = ram.load(at(offset_of!(ConsoleRing, head)), Ordering::Acquire)?;
    let tail: u32 = ram.load(at(offset_of!(ConsoleRing, tail)), Ordering::Acquire)?;
    let dropped: u64 = ram.load(at(offset_of!(ConsoleRing, dropped)), Ordering::Relaxed)?;
    let waiting = head.wrapping_sub(tail);
    let mut bytes = Vec::new();
    if waiting != 0 && waiting <= CONSOLE_DATA_BYTES {
        let start = tail % CONSOLE_DATA_BYTES;
        let first = waiting.min(CONSOLE_DATA_BYTES - start);
        for (from, len) in [(start, first), (0, waiting - first)] {
            let mut part = vec![0; len as usize];
            ram.read_slice(
                &mut part,
                GuestAddress(CONSOLE + CONSOLE_DATA_OFFSET + u64::from(from)),
            )?;
            bytes.extend(part);
        }
    }
    if waiting != 0 {
        ram.store(head, at(offset_of!(ConsoleRing, tail)), Ordering::Release)?;
    }
    Ok((bytes, dropped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Backing;
    use crate::memory::PrivateRam;

    fn ram() -> Ram {
        PrivateRam::new(32 << 20, Backing::Small, false)
            .unwrap()
            .ram
    }

    #[test]
    fn records_come_out_in_order_and_once() {
        let ram = ram();
        let mut queue = HostQueue::new(ram.clone());
        for n in 0..3u32 {
            let sent = Record {
                version: RECORD_VERSION,
                kind: 5,
                seq: n,
                args: [u64::from(n); 7],
            };
            ram.write_slice(sent.as_bytes(), record(TO_HOST, n))
                .unwrap();
        }
        ram.store(3u32, head(TO_HOST), Ordering::Release).unwrap();
        for n in 0..3u32 {
            assert_eq!(queue.take().unwrap().unwrap().seq, n);
        }
        assert_eq!(queue.take().unwrap(), None);
    }

    #[test]
    fn an_index_beyond_the_ring_is_corruption() {
        let ram = ram();
        let mut queue = HostQueue::new(ram.clone());
        ram.store(RING_RECORDS + 1, head(TO_HOST), Ordering::Release)
            .unwrap();
        assert!(matches!(queue.take(), Err(QueueError::Corrupt { .. })));
        ram.store(7u32, tail(TO_GUEST), Ordering::Release).unwrap();
        assert!(matches!(
            queue.post(1, 0, [0; 7]),
            Err(QueueError::Corrupt { .. })
        ));
    }

    #[test]
    fn a_kernel_that_takes_no_answers_fills_its_ring() {
        let mut queue = HostQueue::new(ram());
        for _ in 0..RING_RECORDS {
            queue.post(1, 0, [0; 7]).unwrap();
        }
        assert!(matches!(queue.post(1, 0, [0; 7]), Err(QueueError::Full)));
    }

    #[test]
    fn console_wraps_and_survives_a_corrupt_head() {
        let ram = ram();
        let at = |offset: usize| GuestAddress(CONSOLE + offset as u64);
        let near = CONSOLE_DATA_BYTES - 2;
        ram.store(near, at(4), Ordering::Release).unwrap();
        ram.store(near + 4, at(0), Ordering::Release).unwrap();
        ram.write_slice(
            b"ab",
            GuestAddress(CONSOLE + CONSOLE_DATA_OFFSET + u64::from(near)),
        )
        .unwrap();
        ram.write_slice(b"cd", GuestAddress(CONSOLE + CONSOLE_DATA_OFFSET))
            .unwrap();
        assert_eq!(drain_console(&ram).unwrap().0, b"abcd");
        assert_eq!(drain_console(&ram).unwrap().0, b"");
        ram.store(0u32, at(0), Ordering::Release).unwrap();
        assert_eq!(drain_console(&ram).unwrap().0, b"");
    }
}
