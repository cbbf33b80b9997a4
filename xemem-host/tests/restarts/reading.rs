//! Readers of arenas whose broker is killed.

use crate::broker_process::{BrokerProcess, SOON};
use crate::exporter::{CHUNKS, Exporter, content};
use crate::{descriptors, kill_broker};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use xemem_host::{EndReason, Policy, Snapshot, Stream};

/// Brokers killed under load.
const KILLS: u64 = 20;

fn attach(process: &BrokerProcess, policy: Policy) -> Stream {
    Stream::attach(&process.socket(), "flux", policy, SOON).expect("attached")
}

fn next(stream: &mut Stream) -> Snapshot<'_> {
    let snapshot = stream.next(Some(SOON)).expect("no error");
    snapshot.expect("not the end")
}

/// Panics unless `snapshot` holds what was published, and nothing else.
fn check(snapshot: &Snapshot<'_>) {
    let generation = snapshot.generation();
    let bytes = snapshot.as_slice();
    for (chunk, bytes) in (0..CHUNKS).zip(bytes.chunks_exact(4096)) {
        let want = content(chunk, generation).to_ne_bytes();
        for offset in [0, 2048, 4088] {
            let got = &bytes[offset..offset + 8];
            assert_eq!(got, want, "chunk {chunk} of generation {generation}");
        }
    }
    assert!(snapshot.valid(), "generation {generation}");
}

#[test]
fn a_generation_read_over_a_kill_stays_and_then_its_bank_is_used_again() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 3);
    let mut stream = attach(&process, Policy::Latest);
    exporter.publish().expect("published");
    let snapshot = next(&mut stream);
    kill_broker(&process);
    // One bank is held, one is written, one is left: more publishes than
    // banks, and the held one is never touched.
    for _ in 0..10 {
        exporter.publish().expect("published");
        check(&snapshot);
    }
    assert_eq!(exporter.leased(), [1]);
    kill_broker(&process);
    assert_eq!(exporter.leased(), [1]);
    drop(snapshot);
    assert!(exporter.leased().is_empty(), "given back");
    let snapshot = next(&mut stream);
    assert_eq!(snapshot.generation(), 11);
    check(&snapshot);
    drop(snapshot);
    for _ in 0..10 {
        exporter.publish().expect("published");
    }
    assert_eq!(
        exporter.slot(0).held().or(exporter.slot(1).held()),
        Some(21)
    );
}

#[test]
fn a_reader_that_waits_is_woken_by_the_next_broker() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(&process, Policy::Every);
    let (tell, told) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        while let Some(snapshot) = stream.next(Some(SOON)).expect("no error") {
            check(&snapshot);
            tell.send(snapshot.generation()).expect("a listener");
        }
        stream.end_reason()
    });
    for generation in 1..=5 {
        kill_broker(&process);
        assert_eq!(exporter.publish(), Some(generation));
        assert_eq!(told.recv_timeout(SOON), Ok(generation));
    }
    kill_broker(&process);
    exporter.end();
    let reason = reader.join().expect("no panic");
    assert_eq!(reason, Some(EndReason::ClosedByProgram));
}

#[test]
fn eight_readers_see_whole_generations_while_brokers_are_killed() {
    let process = BrokerProcess::with(&["--deaths-per-minute", "100", "--retain-ms", "0"]);
    let mut exporter = Exporter::new(&process, "flux", 16);
    let before = descriptors(&process);
    let policies = [Policy::Latest, Policy::Every].into_iter().cycle();
    let streams: Vec<Stream> = policies
        .take(8)
        .map(|policy| attach(&process, policy))
        .collect();
    let is_over = AtomicBool::new(false);
    let (published, seen) = std::thread::scope(|scope| {
        let readers: Vec<_> = streams
            .into_iter()
            .map(|stream| scope.spawn(|| read_to_the_end(stream)))
            .collect();
        let is_over = &is_over;
        let producer = scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                // Refused when readers are slower: counted, not waited for.
                let _ = exporter.publish();
                std::thread::yield_now();
            }
            while exporter.publish().is_none() {
                std::thread::yield_now();
            }
            (exporter.generation(), exporter)
        });
        for kill in 0..KILLS {
            // Any moment will do: of a request, a doorbell, a take-over.
            std::thread::sleep(Duration::from_micros(kill * kill * 137 % 30_011));
            kill_broker(&process);
        }
        is_over.store(true, Ordering::Relaxed);
        let (published, mut exporter) = producer.join().expect("no panic");
        // All of it was read or skipped by now, or is read now.
        exporter.end();
        let seen: Vec<_> = readers
            .into_iter()
            .map(|reader| reader.join().expect("no panic"))
            .collect();
        assert!(exporter.leased().is_empty(), "{:?}", exporter.leased());
        (published, seen)
    });
    for (last, count) in seen {
        assert_eq!(last, published, "the last generation is missed by nobody");
        assert!(count > 0);
    }
    let mut tool = process.connect();
    while tool.status().expect("a status").segments > 0 {
        std::thread::yield_now();
    }
    let status = tool.status().expect("a status");
    assert_eq!((status.leases, status.attachments), (0, 0));
    assert_eq!(status.protocol_errors, 0);
    assert!(descriptors(&process).len() <= before.len());
}

/// Reads until the end; the last generation and how many there were.
fn read_to_the_end(mut stream: Stream) -> (u64, u64) {
    let (mut last, mut count) = (0, 0);
    while let Some(snapshot) = stream.next(Some(SOON)).expect("no error") {
        check(&snapshot);
        let generation = snapshot.generation();
        assert!(generation > last, "{generation} after {last}");
        (last, count) = (generation, count + 1);
    }
    assert_eq!(stream.end_reason(), Some(EndReason::ClosedByProgram));
    (last, count)
}
