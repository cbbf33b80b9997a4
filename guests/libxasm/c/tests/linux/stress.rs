//! Threads write while one publishes: no snapshot is torn.
//!
//! What the contents mean is said in `programs/stress.c`.

use crate::programs::Program;
use crate::stage::{PATIENCE, Running, Stage};
use xemem_host::Snapshot;
use xemem_host::wire::Policy;

const THREADS: usize = 3;
/// `XASM_DISCARD_OLDEST`.
const DISCARD_OLDEST: usize = 1;
/// `XASM_BLOCK`.
const BLOCK: usize = 2;

/// The words of a snapshot, and words of its chunks.
struct Contents<'a> {
    bytes: &'a [u8],
    chunk_words: usize,
}

impl Contents<'_> {
    fn word(&self, index: usize) -> u64 {
        let bytes = &self.bytes[index * 8..index * 8 + 8];
        u64::from_ne_bytes(bytes.try_into().expect("8 bytes"))
    }

    /// Whether every block has its seed, and every pair of counters fits.
    fn check(&self, step: u64) -> Result<(), String> {
        if self.word(0) != step {
            return Err(format!("step {} in the snapshot of {step}", self.word(0)));
        }
        let blocks = self.bytes.len() / 8 / self.chunk_words - 3;
        for block in 0..blocks {
            let seed = self.word(1 + block);
            let first = (3 + block) * self.chunk_words * 8;
            let words = &self.bytes[first..first + self.chunk_words * 8];
            for (n, word) in (0u64..).zip(words.chunks_exact(8)) {
                let want = seed.wrapping_add(n);
                if word != want.to_ne_bytes() {
                    return Err(format!("block {block}, word {n}: {word:x?} not {want:x}"));
                }
            }
        }
        for thread in 0..THREADS {
            let first = self.word(self.chunk_words + thread);
            let second = self.word(2 * self.chunk_words + thread);
            if first != second && first != second + 1 {
                return Err(format!("thread {thread}: {first} before {second}"));
            }
        }
        Ok(())
    }
}

/// Checks a snapshot that may be taken away meanwhile; whether it was not.
fn is_whole(snapshot: &Snapshot<'_>, chunk_bytes: usize) -> bool {
    let contents = Contents {
        bytes: snapshot.as_slice(),
        chunk_words: chunk_bytes / 8,
    };
    let checked = contents.check(snapshot.step());
    if !snapshot.valid() {
        return false;
    }
    let generation = snapshot.generation();
    assert_eq!(checked, Ok(()), "generation {generation}");
    true
}

/// Runs it; returns how many snapshots were verified.
fn stress(publishes: usize, chunk_bytes: usize, bytes: usize, policy: usize) -> usize {
    let stage = Stage::new();
    let program = Program::of_tests("stress.c");
    let mut command = stage.command(&program);
    let arguments = [THREADS, publishes, chunk_bytes, bytes, policy];
    command.args(arguments.map(|n| n.to_string()));
    let mut running = Running::start(&mut command);
    let said = running.line();
    assert_eq!(said, "ready", "{}", running.finish());
    let mut stream = stage.reader("stress", Policy::Every);
    running.go_on();
    let mut verified = 0;
    let mut last = 0;
    while let Some(snapshot) = stream.next(Some(PATIENCE)).expect("a snapshot") {
        assert!(snapshot.generation() > last);
        last = snapshot.generation();
        verified += usize::from(is_whole(&snapshot, chunk_bytes));
        if policy == BLOCK {
            running.go_on();
        }
    }
    let summary = running.line();
    assert!(summary.starts_with("copied "), "{summary:?}");
    assert_eq!(running.finish().code(), Some(0));
    assert_eq!(last, publishes as u64, "the newest one is always there");
    verified
}

#[test]
fn every_snapshot_of_small_chunks_is_whole() {
    assert_eq!(stress(1200, 4096, 64 * 4096, BLOCK), 1200);
}

#[test]
fn every_snapshot_of_large_chunks_is_whole() {
    assert_eq!(stress(100, 2 << 20, 8 * (2 << 20), BLOCK), 100);
}

#[test]
fn snapshots_of_several_chunks_a_fault_are_whole() {
    // More chunks than an arena may have mappings.
    assert_eq!(stress(20, 4096, 510 * 4096, BLOCK), 20);
}

#[test]
fn a_snapshot_that_is_taken_away_says_so_and_others_are_whole() {
    let verified = stress(1200, 4096, 64 * 4096, DISCARD_OLDEST);
    assert!(verified > 0);
}
