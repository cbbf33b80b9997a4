//! Several generations at once, and what changed between them.

use crate::broker_process::{BrokerProcess, SOON};
use crate::exporter::{CHUNK, CHUNKS, Exporter, is_written};
use crate::streams::{attach, check};
use rustix::io::Errno;
use xemem_host::snapshot::{ArenaReader, SnapshotError};
use xemem_host::{DiffSource, Policy};

/// Offsets of the chunks that a reader must be told of, from what was written.
fn written_between(from: u64, to: u64) -> Vec<u64> {
    let written = |chunk: &u64| (from + 1..=to).any(|g| is_written(*chunk, g));
    let chunks = (0..CHUNKS).filter(written);
    chunks.map(|chunk| chunk * CHUNK).collect()
}

/// Offsets of all chunks in the ranges of a diff.
fn chunks_in(diff: &xemem_host::Diff) -> Vec<u64> {
    let ranges = diff.ranges.iter();
    let chunks = ranges.flat_map(|r| (r.offset..r.offset + r.len).step_by(4096));
    chunks.collect()
}

#[test]
fn readers_stand_at_different_generations_at_once() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 6);
    let mut owner = process.connect();
    owner.retain(exporter.segid, 5).expect("retained");
    for _ in 0..8 {
        exporter.publish().expect("published");
    }
    let mut streams: Vec<_> = (4..=8)
        .map(|_| attach(process.socket(), "flux", Policy::Latest))
        .collect();
    let kept = streams[0].generations().expect("a list");
    let kept: Vec<_> = kept.iter().map(|g| (g.generation, g.record.step)).collect();
    assert_eq!(kept, [(4, 40), (5, 50), (6, 60), (7, 70), (8, 80)]);
    let mut snapshots = Vec::new();
    for (stream, generation) in streams.iter_mut().zip(4..=7) {
        snapshots.push(stream.at(generation).expect("kept"));
    }
    assert_eq!(exporter.leased(), [6, 7, 4, 5]);
    // One place is left: publishes go on, and the kept newest one with them.
    for _ in 0..20 {
        exporter.publish().expect("published");
    }
    for snapshot in &snapshots {
        check(snapshot);
    }
    drop(snapshots);
    let gone = streams[0].at(4).expect_err("not kept").refusal();
    assert_eq!(gone, Some(Errno::NOENT));
    let early = streams[0].at(29).expect_err("not yet").refusal();
    assert_eq!(early, Some(Errno::NOENT));
    check(&streams[0].at(28).expect("the newest"));
    // By number or not, the stream goes on where it was.
    let next = streams[0].next(Some(SOON)).expect("no error");
    assert_eq!(next.expect("a snapshot").generation(), 28);
}

#[test]
fn a_diff_names_what_was_written_in_between_and_nothing_else() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    for _ in 0..30 {
        exporter.publish().expect("published");
    }
    for (from, to) in [(1, 2), (1, 30), (7, 7), (12, 19), (19, 12), (29, 30)] {
        let diff = stream.diff(from, to).expect("known");
        let (from, to) = (from.min(to), from.max(to));
        assert_eq!((diff.from, diff.to), (from, to));
        assert_eq!(diff.source, DiffSource::ChangeLog);
        assert_eq!(chunks_in(&diff), written_between(from, to), "{from} {to}");
        assert_eq!(diff.bytes(), chunks_in(&diff).len() as u64 * CHUNK);
    }
    for (a, b) in [(0, 5), (5, 31), (0, 0), (1, u64::MAX)] {
        assert!(stream.diff(a, b).is_err(), "{a} {b}");
    }
    let snapshot = stream.at(30).expect("the newest");
    assert_eq!(
        chunks_in(&snapshot.diff(25).expect("known")),
        written_between(25, 30)
    );
}

#[test]
fn once_the_log_has_wrapped_births_tell_for_a_snapshot_and_nothing_is_guessed() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    // 1024 entries, about 13 a generation, and 64 records.
    while exporter.generation() < 200 {
        exporter.publish().expect("published");
    }
    let snapshot = stream.at(200).expect("the newest");
    for since in [1, 3, 120, 199] {
        let diff = snapshot.diff(since).expect("a held one is known");
        assert_eq!(chunks_in(&diff), written_between(since, 200), "{since}");
        let logged = diff.source == DiffSource::ChangeLog;
        assert_eq!(logged, since == 199, "{since}");
    }
    // Publishes that go on change nothing: the generation is held.
    for _ in 0..5 {
        exporter.publish().expect("published");
    }
    let diff = snapshot.diff(3).expect("still known");
    assert_eq!(chunks_in(&diff), written_between(3, 200));
    drop(snapshot);
    let memfd = exporter.memfd.try_clone().expect("a descriptor");
    let reader = ArenaReader::open(memfd).expect("an arena");
    let unknown = reader.diff(3, 120).expect_err("neither held nor logged");
    assert!(
        matches!(unknown, SnapshotError::Forgotten { from: 3, to: 120 }),
        "{unknown}"
    );
}

#[test]
fn what_is_kept_is_whole_whatever_the_order_of_publish_lease_and_release() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 5);
    exporter.broker.retain(exporter.segid, 3).expect("retained");
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    let mut seen = 0;
    for round in 0..300_u64 {
        assert!(exporter.publish().is_some(), "retaining costs no publish");
        let kept = stream.generations().expect("a list");
        let newest = exporter.generation();
        let wanted = newest.min(3);
        let numbers: Vec<u64> = kept.iter().map(|one| one.generation).collect();
        let last: Vec<u64> = (newest + 1 - wanted..=newest).collect();
        assert!(numbers.ends_with(&last), "{numbers:?} of {newest}");
        let pick = numbers[usize::try_from(round * 7 % numbers.len() as u64).expect("small")];
        let snapshot = stream.at(pick).expect("it was listed");
        check(&snapshot);
        seen += 1;
    }
    assert_eq!(seen, 300);
}

#[test]
fn a_generation_that_two_snapshots_show_is_held_until_both_are_gone() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Every);
    exporter.publish().expect("published");
    let first = stream.at_owned(1).expect("kept");
    let second = stream.next_owned(Some(SOON)).expect("no error");
    let second = second.expect("a snapshot");
    drop(first);
    for _ in 0..6 {
        let _ = exporter.publish();
    }
    assert_eq!(exporter.leased().first(), Some(&1));
    assert!(second.valid());
    let diff = second.diff(1).expect("known");
    assert!(diff.ranges.is_empty());
    drop(second);
    let mut tool = process.connect();
    drop(stream);
    while tool.status().expect("a status").attachments > 0 {
        std::thread::yield_now();
    }
    assert!(exporter.leased().is_empty());
}
