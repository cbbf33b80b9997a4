//! Snapshots through a broker: content, both policies, and every kind of end.

use crate::broker_process::{BrokerProcess, SOON};
use crate::exporter::{CHUNK, CHUNKS, Exporter, content};
use rustix::io::Errno;
use std::path::PathBuf;
use std::time::Duration;
use xemem_host::{Broker, ClientError, EndReason, Policy, Snapshot, Stream};

const NO_WAIT: Option<Duration> = Some(Duration::ZERO);

pub(crate) fn attach(socket: PathBuf, name: &str, policy: Policy) -> Stream {
    Stream::attach(&socket, name, policy, SOON).expect("attached")
}

/// The next snapshot; it must come.
fn next(stream: &mut Stream) -> Snapshot<'_> {
    let snapshot = stream.next(Some(SOON)).expect("no error");
    snapshot.expect("not the end")
}

/// Panics unless `snapshot` holds what was published, and nothing else.
pub(crate) fn check(snapshot: &Snapshot<'_>) {
    let bytes = snapshot.as_slice();
    assert_eq!(bytes.len() as u64, CHUNK * CHUNKS);
    let generation = snapshot.generation();
    for (chunk, bytes) in (0..CHUNKS).zip(bytes.chunks_exact(4096)) {
        let want = content(chunk, generation).to_ne_bytes();
        for offset in [0, 2048, 4088] {
            let got = &bytes[offset..offset + 8];
            assert_eq!(got, want, "chunk {chunk} of generation {generation}");
        }
    }
    assert!(snapshot.valid());
}

#[test]
fn a_snapshot_shows_one_generation_while_the_next_ones_come() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    assert_eq!(stream.geometry(), &exporter.geometry);
    assert!(matches!(stream.next(NO_WAIT), Err(ClientError::Timeout)));
    exporter.publish().expect("published");

    let snapshot = next(&mut stream);
    assert_eq!((snapshot.generation(), snapshot.step()), (1, 10));
    assert!((snapshot.time() - 0.5).abs() < f64::EPSILON);
    assert_eq!(snapshot.runs(), 1, "one bank is one run");
    check(&snapshot);
    for _ in 0..10 {
        exporter.publish().expect("published");
        check(&snapshot);
    }
    assert_eq!(exporter.leased(), [1]);
    drop(snapshot);
    assert!(exporter.leased().is_empty());

    let snapshot = next(&mut stream);
    assert_eq!(snapshot.generation(), 11);
    assert!(snapshot.chunks_copied() > 0);
    check(&snapshot);
    drop(snapshot);
    assert_eq!(stream.missed(), 9);
    assert!(matches!(stream.next(NO_WAIT), Err(ClientError::Timeout)));
}

#[test]
fn variables_are_checked_before_they_are_views() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    exporter.publish().expect("published");
    let names: Vec<_> = stream
        .variables()
        .iter()
        .map(|v| v.name().map(str::to_owned))
        .collect();
    assert_eq!(names, [Some("flux".to_owned())]);
    let snapshot = next(&mut stream);
    let flux = snapshot.var("flux").expect("a variable");
    assert_eq!(flux.bytes.len(), 4096);
    assert_eq!(flux.desc.shape[0], 512);
    assert_eq!(flux.bytes[..8], content(1, 1).to_ne_bytes());
    assert!(snapshot.var("evil").is_err());
    assert!(snapshot.var("none").is_err());
}

#[test]
fn only_what_changed_is_mapped_again() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    exporter.publish().expect("published");
    drop(next(&mut stream));
    assert_eq!(stream.mappings_made(), 1);
    exporter.publish().expect("published");
    let snapshot = next(&mut stream);
    check(&snapshot);
    let copied = snapshot.chunks_copied();
    assert!(copied < CHUNKS / 2);
    drop(snapshot);
    // No two neighbours change together, so each is a mapping of its own.
    assert_eq!(stream.mappings_made(), 1 + copied);
}

#[test]
fn a_reader_further_behind_than_the_change_log_sees_the_right_frames() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    exporter.publish().expect("published");
    check(&next(&mut stream));
    // The log has 1024 entries, a generation about 13.
    for _ in 0..200 {
        exporter.publish().expect("published");
    }
    let snapshot = next(&mut stream);
    assert_eq!(snapshot.generation(), 201);
    check(&snapshot);
}

#[test]
fn an_every_reader_misses_none_of_two_hundred() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Every);
    assert_eq!(exporter.retain(), 3);
    // At most two ahead of the reader: those are what `retain` makes the
    // kernel keep until the broker has leased them.
    let (done, next_may_come) = std::sync::mpsc::sync_channel(2);
    done.send(()).expect("room");
    done.send(()).expect("room");
    let publisher = std::thread::spawn(move || {
        while exporter.generation() < 200 {
            next_may_come.recv().expect("a reader");
            while exporter.publish().is_none() {
                std::thread::yield_now();
            }
        }
        exporter.end();
        (exporter, next_may_come)
    });
    for generation in 1..=200 {
        let snapshot = next(&mut stream);
        assert_eq!(snapshot.generation(), generation);
        check(&snapshot);
        drop(snapshot);
        done.send(()).expect("an exporter");
    }
    assert!(stream.next(Some(SOON)).expect("the end").is_none());
    assert_eq!(stream.missed(), 0);
    assert_eq!(stream.end_reason(), Some(EndReason::ClosedByProgram));
    publisher.join().expect("published");
}

#[test]
fn a_latest_reader_sees_whole_generations_up_to_the_last() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    let publisher = std::thread::spawn(move || {
        while exporter.generation() < 500 {
            let _ = exporter.publish();
        }
        exporter.end();
        exporter
    });
    let (mut first, mut last, mut seen) = (None, 0, 0);
    while let Some(snapshot) = stream.next(Some(SOON)).expect("no error") {
        assert!(snapshot.generation() > last);
        last = snapshot.generation();
        first.get_or_insert(last);
        seen += 1;
        check(&snapshot);
    }
    assert_eq!(last, 500);
    let first = first.expect("at least one");
    assert_eq!(stream.missed(), last - first + 1 - seen);
    publisher.join().expect("published");
}

#[test]
fn two_readers_share_a_generation_and_the_last_one_gives_it_back() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut one = attach(process.socket(), "flux", Policy::Latest);
    let mut two = attach(process.socket(), "flux", Policy::Latest);
    exporter.publish().expect("published");
    let first = next(&mut one);
    let second = next(&mut two);
    assert_eq!(exporter.leased(), [1]);
    let info = &process.connect().list().expect("a list")[0];
    assert_eq!((info.readers, info.leases), (2, 1));
    assert_eq!(
        (info.name.as_str(), info.enclave.as_str()),
        ("flux", "flux")
    );
    assert_eq!(info.latest_generation, 1);
    drop(first);
    assert_eq!(exporter.leased(), [1]);
    drop(second);
    assert!(exporter.leased().is_empty());
}

#[test]
fn a_reader_that_dies_gives_its_lease_back() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    exporter.publish().expect("published");
    // Never released: the connection just closes, as when a process is killed.
    std::mem::forget(next(&mut stream));
    exporter.publish().expect("published");
    assert_eq!(exporter.leased(), [1]);
    drop(stream);
    // The broker deals with the end of a connection before a later request
    // on another one, or after it: ask until it has.
    let mut tool = process.connect();
    while tool.status().expect("a status").attachments > 0 {
        std::thread::yield_now();
    }
    assert!(exporter.leased().is_empty());
    assert_eq!(tool.status().expect("a status").leases, 0);
}

#[test]
fn an_exporter_that_dies_ends_the_stream_after_its_last_generation() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    exporter.publish().expect("published");
    drop(exporter);
    let snapshot = next(&mut stream);
    assert_eq!(snapshot.generation(), 1);
    check(&snapshot);
    drop(snapshot);
    assert!(stream.next(Some(SOON)).expect("the end").is_none());
    assert_eq!(stream.end_reason(), Some(EndReason::ExporterGone));

    let mut tool = process.connect();
    let segid = tool.lookup("flux", None).expect("retained");
    tool.remove(segid).expect("given up");
    let refused = tool.lookup("flux", None).expect_err("the name is free");
    assert_eq!(refused.refusal(), Some(Errno::NOENT));
    assert_eq!(tool.list().expect("a list").len(), 1);
    drop(stream);
    while tool.status().expect("a status").segments > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_waiting_reader_is_woken_by_the_end() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    let reader = std::thread::spawn(move || {
        let ended = stream.next(Some(SOON)).expect("no error").is_none();
        (ended, stream.end_reason())
    });
    exporter.end();
    let outcome = reader.join().expect("no panic");
    assert_eq!(outcome, (true, Some(EndReason::ClosedByProgram)));
}

#[test]
fn a_broker_that_dies_leaves_readers_their_memory() {
    let mut process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    exporter.publish().expect("published");
    let snapshot = next(&mut stream);
    process.kill();
    check(&snapshot);
    // Without a broker the kernel goes on honouring the lease word.
    exporter.publish().expect("published");
    exporter.publish().expect("published");
    check(&snapshot);
    exporter.spoil(3, 1);
    assert!(!snapshot.valid());
    drop(snapshot);
    assert!(matches!(
        stream.next(Some(SOON)),
        Err(ClientError::BrokerGone)
    ));
    let refused = exporter.broker.status();
    assert!(matches!(refused, Err(ClientError::BrokerGone)));
}

#[test]
fn a_broker_that_dies_wakes_who_waits() {
    let mut process = BrokerProcess::start();
    let _exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(process.socket(), "flux", Policy::Latest);
    let reader =
        std::thread::spawn(move || matches!(stream.next(None), Err(ClientError::BrokerGone)));
    process.kill();
    assert!(reader.join().expect("no panic"));
}

#[test]
fn a_lookup_waits_until_the_name_appears() {
    let process = BrokerProcess::start();
    let socket = process.socket();
    let mut broker = process.connect();
    let refused = broker.lookup("flux", None).expect_err("no name yet");
    assert_eq!(refused.refusal(), Some(Errno::NOENT));
    let brief = Some(Duration::from_millis(1));
    let refused = broker.lookup("flux", brief).expect_err("still none");
    assert_eq!(refused.refusal(), Some(Errno::TIMEDOUT));

    let waiter = std::thread::spawn(move || {
        let mut broker = Broker::connect(&socket).expect("connected");
        broker.lookup("flux", Some(SOON)).expect("found")
    });
    let exporter = Exporter::new(&process, "flux", 2);
    assert_eq!(waiter.join().expect("no panic"), exporter.segid);
}
