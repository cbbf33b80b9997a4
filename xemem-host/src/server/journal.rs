//! What a broker has decided, in memory that outlives it.
//!
//! A memfd that the keeper has a descriptor of, too. The broker stores each
//! event whole and then, in one word, that it is there: a kill at any moment
//! leaves all of it or nothing. Only then does anybody hear of the outcome, and
//! how much of that was said is counted here as well:
//!
//! ```text
//!  0   magic, format, tail, said      words
//!  64  (length, checksum, bytes...)   one record per event, up to tail
//! ```
//!
//! When it is full a fresh one is written, of the state alone, and the keeper
//! is given that instead. No system call in the ordinary case. A journal of
//! another format, or one that does not add up, is refused.

use crate::broker::{EnclaveId, Fds, PeerId};
use crate::memory::Mapping;
use crate::wire::{PROTOCOL_VERSION, Target};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstat, memfd_create};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Changes with each change of what is recorded, or how.
const JOURNAL_VERSION: u64 = 1;
/// "XEMEMJNL".
const MAGIC: u64 = u64::from_le_bytes(*b"XEMEMJNL");
/// Least bytes of a journal.
const LEAST_BYTES: usize = 1 << 20;
/// Most: far more than full tables need.
const MOST_BYTES: usize = 1 << 28;
const WORD: usize = size_of::<u64>();
/// Words of the header, as offsets.
const TAIL: usize = 16;
const SAID: usize = 24;
/// Where records begin.
const RECORDS: usize = 64;
/// Bits of the number of effects in the word at [`SAID`]; the rest is the tail.
const SAID_BITS: u32 = 24;

/// An effect that is carried out again when there is doubt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Redo {
    Send {
        peer: PeerId,
        /// The reply as it is sent.
        bytes: Vec<u8>,
        fds: Fds,
    },
    Notify {
        target: Target,
        count: u64,
    },
    ClearSlot(EnclaveId, u32),
    Disconnect(PeerId),
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Of the tables, see [`crate::broker::Broker::changes`].
    pub(super) changes: Vec<u8>,
    /// What follows for others, in order.
    pub(super) redo: Vec<Redo>,
    /// The request that was served: whose, and its sequence number.
    pub(super) served: Option<(PeerId, u32)>,
}

/// Why a journal is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum JournalError {
    /// Made by another version of this program.
    #[error("it was written by another version of this program")]
    Format,
    /// Nonsense.
    #[error("it does not add up at byte {0}")]
    Garbage(usize),
    /// It cannot be mapped.
    #[error("it cannot be mapped: {0}")]
    System(#[from] Errno),
}

/// A journal that is written.
#[derive(Debug)]
pub(super) struct Journal {
    fd: OwnedFd,
    map: Mapping,
    capacity: usize,
    tail: usize,
    said: u64,
}

impl Journal {
    /// A journal that begins with `first`.
    pub(super) fn new(first: &Record) -> Result<Self, Errno> {
        let bytes = encode(first);
        let needed = bytes.len().saturating_mul(4).max(LEAST_BYTES);
        let capacity = needed.next_power_of_two();
        if capacity > MOST_BYTES {
            return Err(Errno::NOSPC);
        }
        let flags = MemfdFlags::CLOEXEC;
        let fd = memfd_create("xemem-journal", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| memfd_create("xemem-journal", flags))?;
        // All of it now: a store must not fail for want of memory later.
        fallocate(&fd, FallocateFlags::empty(), 0, capacity as u64)?;
        let map = Mapping::read_write(&fd, capacity)?;
        map.store(0, MAGIC);
        map.store(WORD, format());
        map.store(TAIL, RECORDS as u64);
        let mut journal = Self {
            fd,
            map,
            capacity,
            tail: RECORDS,
            said: 0,
        };
        if journal.append_bytes(&bytes) {
            Ok(journal)
        } else {
            Err(Errno::NOSPC)
        }
    }

    /// Adds an event; `false` if there is no room for it.
    #[must_use]
    pub(super) fn append(&mut self, record: &Record) -> bool {
        self.append_bytes(&encode(record))
    }

    fn append_bytes(&mut self, bytes: &[u8]) -> bool {
        let begin = self.tail + 2 * WORD;
        let end = begin + bytes.len().next_multiple_of(WORD);
        if end > self.capacity {
            return false;
        }
        self.map.store(self.tail, bytes.len() as u64);
        self.map.store(self.tail + WORD, checksum(bytes));
        for (at, piece) in (begin..).step_by(WORD).zip(bytes.chunks(WORD)) {
            let mut word = [0; WORD];
            word[..piece.len()].copy_from_slice(piece);
            self.map.store(at, u64::from_le_bytes(word));
        }
        self.tail = end;
        self.said = 0;
        self.map.store(TAIL, end as u64);
        true
    }

    /// One more effect of the last event was carried out.
    pub(super) fn said(&mut self) {
        self.said += 1;
        self.map
            .store(SAID, ((self.tail as u64) << SAID_BITS) | self.said);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The events in a journal, in order; from the last one, what was said already
/// is taken out.
pub(super) fn read(fd: &OwnedFd) -> Result<Vec<Record>, JournalError> {
    let size = fstat(fd)?.st_size;
    let size = usize::try_from(size).map_err(|_| JournalError::Garbage(0))?;
    if !(RECORDS..=MOST_BYTES).contains(&size) {
        return Err(JournalError::Garbage(0));
    }
    let map = Mapping::read_only(fd, size)?;
    let word = |at: usize| map.load(at).ok_or(JournalError::Garbage(at));
    if word(0)? != MAGIC {
        return Err(JournalError::Garbage(0));
    }
    if word(WORD)? != format() {
        return Err(JournalError::Format);
    }
    let tail = usize::try_from(word(TAIL)?).map_err(|_| JournalError::Garbage(TAIL))?;
    if tail > size {
        return Err(JournalError::Garbage(TAIL));
    }
    let mut records: Vec<Record> = Vec::new();
    let mut at = RECORDS;
    while at < tail {
        let garbage = || JournalError::Garbage(at);
        let len = usize::try_from(word(at)?).map_err(|_| garbage())?;
        let begin = at + 2 * WORD;
        let end = len.checked_next_multiple_of(WORD);
        let end = end.and_then(|len| len.checked_add(begin));
        let end = end.filter(|end| *end <= tail).ok_or_else(garbage)?;
        let mut bytes = Vec::with_capacity(end - begin);
        for at in (begin..end).step_by(WORD) {
            bytes.extend(word(at)?.to_le_bytes());
        }
        bytes.truncate(len);
        if checksum(&bytes) != word(at + WORD)? {
            return Err(garbage());
        }
        records.push(postcard::from_bytes(&bytes).map_err(|_| garbage())?);
        at = end;
    }
    let said = word(SAID)?;
    if let Some(last) = records.last_mut()
        && said >> SAID_BITS == tail as u64
    {
        let said = said & ((1 << SAID_BITS) - 1);
        let said = usize::try_from(said).unwrap_or(usize::MAX);
        last.redo.drain(..said.min(last.redo.len()));
    }
    Ok(records)
}

/// Fails for types only that know no length beforehand: none of these.
fn encode(record: &Record) -> Vec<u8> {
    postcard::to_stdvec(record).unwrap_or_default()
}

/// One number for everything that decides what records look like.
fn format() -> u64 {
    let versions = [
        JOURNAL_VERSION,
        u64::from(PROTOCOL_VERSION),
        u64::from(enclave_abi::ABI_VERSION),
        checksum(env!("CARGO_PKG_VERSION").as_bytes()),
    ];
    checksum(&versions.map(u64::to_le_bytes).concat())
}

/// FNV-1a: against accidents, not against malice; nobody else has the memory.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u8) -> Record {
        let notify = |count| Redo::Notify {
            target: Target::Access(crate::wire::ApId(7)),
            count,
        };
        Record {
            changes: vec![number; usize::from(number)],
            redo: vec![notify(1), notify(2), Redo::Disconnect(PeerId(3))],
            served: Some((PeerId(1), 9)),
        }
    }

    #[test]
    fn what_was_appended_is_read_and_nothing_else() {
        let mut journal = Journal::new(&record(0)).expect("a journal");
        let mut wanted = vec![record(0)];
        for number in 1..40 {
            assert!(journal.append(&record(number)));
            wanted.push(record(number));
            assert_eq!(read(&journal.fd).expect("whole"), wanted);
        }
        // A kill before the tail is stored leaves nothing of an event.
        let tail = journal.map.load(TAIL).expect("a word");
        assert!(journal.append(&record(40)));
        journal.map.store(TAIL, tail);
        assert_eq!(read(&journal.fd).expect("whole"), wanted);
    }

    #[test]
    fn what_was_said_is_not_said_again() {
        let mut journal = Journal::new(&record(0)).expect("a journal");
        assert!(journal.append(&record(1)));
        for left in (0..3).rev() {
            journal.said();
            let records = read(&journal.fd).expect("whole");
            assert_eq!(records.last().expect("one").redo.len(), left);
        }
        // The next event begins anew, whatever the word says of the last.
        assert!(journal.append(&record(2)));
        let records = read(&journal.fd).expect("whole");
        assert_eq!(records.last(), Some(&record(2)));
    }

    #[test]
    fn a_full_journal_says_so_and_stays_whole() {
        let mut journal = Journal::new(&Record::default()).expect("a journal");
        let mut events = 1;
        while journal.append(&record(200)) {
            events += 1;
        }
        assert!(events > LEAST_BYTES / 400);
        assert_eq!(read(&journal.fd).expect("whole").len(), events);
    }

    #[test]
    fn another_format_and_garbage_are_refused() {
        let journal = Journal::new(&record(5)).expect("a journal");
        let spoil = |at: usize, value: u64| {
            let before = journal.map.load(at).expect("a word");
            journal.map.store(at, value);
            let refused = read(&journal.fd).expect_err("garbage");
            journal.map.store(at, before);
            refused
        };
        assert_eq!(spoil(0, 1), JournalError::Garbage(0));
        assert_eq!(spoil(WORD, 1), JournalError::Format);
        for tail in [u64::MAX, RECORDS as u64 + 8, 1 << 40] {
            assert!(matches!(spoil(TAIL, tail), JournalError::Garbage(_)));
        }
        for value in [0, 1, u64::MAX, 1 << 30] {
            assert!(matches!(spoil(RECORDS, value), JournalError::Garbage(_)));
            assert!(matches!(
                spoil(RECORDS + WORD, value),
                JournalError::Garbage(_)
            ));
            let inside = RECORDS + 2 * WORD;
            assert!(matches!(spoil(inside, value), JournalError::Garbage(_)));
        }
        assert_eq!(read(&journal.fd).expect("whole"), [record(5)]);
        let short = memfd_create("short", MemfdFlags::CLOEXEC).expect("memfd");
        assert!(matches!(read(&short), Err(JournalError::Garbage(0))));
    }
}
