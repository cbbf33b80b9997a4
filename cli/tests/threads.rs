//! Several threads that write an arena while another one publishes it: each
//! snapshot has whole rows only, whichever thread's first write copied a chunk.
//! In an enclave and as a process of Linux.
//!
//! Needs /dev/kvm for the former half. The archive is that in `out/` (or
//! `$XASM_OUT`), the compiler is the system's. Programs with threads and without
//! arenas are in `programs`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[path = "support/both.rs"]
mod both;
#[path = "support/language.rs"]
#[expect(dead_code, reason = "reads no single lines")]
mod language;
#[expect(dead_code, reason = "needs no busybox")]
mod support;

use language::{Below, Run, compile};
use xemem_host::wire::Policy;

const STEPS: u64 = 300;
const WRITERS: usize = 6;
const WORDS: usize = 8;
const CHUNK_WORDS: usize = 512;

/// Checks a row of writer `nr`; its round, 0 before the first.
fn round_of(row: &[u64], nr: u64) -> u64 {
    let round = row[0] / 1000;
    if row == [0; WORDS] {
        return 0;
    }
    let wanted = (0..).map(|n| round * 1000 + nr * 10 + n);
    assert!(row.iter().copied().eq(wanted.take(WORDS)), "{nr}: {row:?}");
    round
}

/// Checks a snapshot's rows; the rounds of all writers.
fn rounds(bytes: &[u8]) -> u64 {
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
        .collect();
    (0..WRITERS)
        .map(|nr| {
            let own = &words[(1 + nr) * CHUNK_WORDS..][..WORDS];
            let shared = &words[nr * WORDS..][..WORDS];
            assert_eq!(own, shared, "writer {nr}");
            round_of(own, nr as u64)
        })
        .sum()
}

fn snapshots_of_several_writers_are_whole(below: Below) {
    snapshots_are_whole(1, below);
}

fn snapshots_are_whole(cores: usize, below: Below) {
    let flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread"];
    let flags = [&flags[..], &["-D_GNU_SOURCE"]].concat();
    let program = compile("cc", &flags, &["examples/threads.c"]);
    let mut run = Run::on(cores, below, &program.0, STEPS);
    let mut stream = run.attach("threads", Policy::Latest);
    let (mut generations, mut last) = (0, 0);
    while let Some(snapshot) = stream.next(Some(language::PATIENCE)).unwrap() {
        let seen = rounds(snapshot.var("rows").unwrap().bytes);
        assert!(snapshot.valid());
        assert!(seen >= last, "{seen} after {last}");
        last = seen;
        generations += 1;
    }
    let text = run.end();
    assert!(text.contains("steps published"), "{text}");
    assert!(generations >= 1 && last > 0, "{generations} {last}");
}

both::on_both! {
    snapshots_of_several_writers_are_whole
    snapshots_of_writers_without_locks_are_cuts
}

/// The writers, the publish and the copies are then really at the same time.
#[test]
fn snapshots_of_several_cores_are_whole() {
    snapshots_are_whole(2, Below::Enclave);
}

const RACERS: usize = 4;

/// The number of a word of writer `nr`, whose checksum is right; 0 before the first.
fn number(word: u64, nr: u64) -> u64 {
    let number = word & ((1 << 40) - 1);
    let sum =
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (nr + 1).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    assert!(
        word == 0 || word >> 40 == sum >> 40,
        "{nr}: {word:#x} is torn"
    );
    number
}

fn snapshots_of_writers_without_locks_are_cuts(below: Below) {
    snapshots_are_cuts(1, below);
}

/// Every snapshot has what was written before its publish was called, nothing that
/// was begun after it returned, and of each writer all or all but the last of two
/// stores to two chunks.
fn snapshots_are_cuts(cores: usize, below: Below) {
    let flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread"];
    let flags = [&flags[..], &["-D_GNU_SOURCE"]].concat();
    let program = compile("cc", &flags, &["../programs/c/race.c"]);
    let mut run = Run::on(cores, below, &program.0, STEPS);
    let mut stream = run.attach("race", Policy::Every);
    let mut seen: Vec<(u64, [u64; RACERS])> = Vec::new();
    while let Some(snapshot) = stream.next(Some(language::PATIENCE)).unwrap() {
        let bytes = snapshot.var("words").unwrap().bytes;
        let word = |chunk: usize, at: usize| {
            let from = (chunk * CHUNK_WORDS + at) * 8;
            u64::from_ne_bytes(bytes[from..from + 8].try_into().unwrap())
        };
        let mut own = [0; RACERS];
        for (nr, own) in own.iter_mut().enumerate() {
            *own = number(word(2 + nr, 0), nr as u64);
            let shared = number(word(0, nr), nr as u64);
            assert!(*own == shared || *own == shared + 1, "{nr}: {own} {shared}");
            assert!(shared >= word(1, nr), "{nr}: less than before the publish");
        }
        assert!(snapshot.valid());
        // The first one is the newest that there was; from there on none is missed.
        let step = snapshot.step();
        assert!(
            seen.last().is_none_or(|(last, _)| step == last + 1),
            "{step}"
        );
        seen.push((step, own));
    }
    let text = run.end();
    assert!(seen.len() as u64 > STEPS / 2, "{}", seen.len());
    let ceilings: Vec<&str> = text.lines().collect();
    for (step, own) in &seen {
        let ceiling = ceilings[usize::try_from(*step).unwrap()].split(' ');
        for (nr, (own, most)) in own.iter().zip(ceiling).enumerate() {
            let most: u64 = most.parse().unwrap();
            assert!(*own <= most, "{step}: writer {nr} {own} after {most}");
        }
    }
    let (last, own) = seen.last().unwrap();
    assert!(
        *last == STEPS - 1 && own.iter().all(|own| *own > 100),
        "{own:?}"
    );
}

#[test]
fn snapshots_of_several_cores_without_locks_are_cuts() {
    snapshots_are_cuts(2, Below::Enclave);
}
