//! Snapshots that outlive the next one: several at once, detached, dropped by
//! other threads, and after their stream.

use crate::broker_process::{BrokerProcess, SOON};
use crate::exporter::{CHUNK, CHUNKS, Exporter, content};
use xemem_host::{OwnedSnapshot, Policy, Stream};

fn attach(process: &BrokerProcess, policy: Policy) -> Stream {
    Stream::attach(&process.socket(), "flux", policy, SOON).expect("attached")
}

/// The next snapshot; it must come.
fn next(stream: &mut Stream) -> OwnedSnapshot {
    let snapshot = stream.next_owned(Some(SOON)).expect("no error");
    snapshot.expect("not the end")
}

/// Where the variable is.
fn flux_bytes() -> Vec<std::ops::Range<u64>> {
    std::iter::once(CHUNK..2 * CHUNK).collect()
}

/// First word of the variable, which is chunk 1.
fn word(snapshot: &OwnedSnapshot) -> u64 {
    let view = snapshot.var("flux").expect("a variable");
    u64::from_ne_bytes(view.bytes[..8].try_into().expect("a word"))
}

#[test]
fn two_snapshots_of_one_stream_each_show_their_own() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(&process, Policy::Latest);
    let mut kept = Vec::new();
    for generation in [1, 2] {
        exporter.publish().expect("published");
        let snapshot = next(&mut stream);
        assert_eq!(snapshot.record().generation, generation);
        kept.push(snapshot);
    }
    assert_eq!(exporter.leased(), [1, 2]);
    for _ in 0..5 {
        exporter.publish().expect("published");
        for snapshot in &kept {
            let generation = snapshot.record().generation;
            assert_eq!(word(snapshot), content(1, generation));
            assert!(snapshot.valid());
        }
    }
    let first = kept.remove(0);
    std::thread::spawn(move || drop(first))
        .join()
        .expect("dropped");
    assert_eq!(exporter.leased(), [2]);
    // The lease outlives the stream that it came from.
    drop(stream);
    assert_eq!(exporter.leased(), [2]);
    assert_eq!(word(&kept[0]), content(1, 2));
}

#[test]
fn a_dropped_snapshot_passes_its_mappings_on() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(&process, Policy::Latest);
    exporter.publish().expect("published");
    drop(next(&mut stream));
    let first = stream.map_counts();
    assert_eq!((first.runs_mapped, first.chunks_mapped), (1, CHUNKS));
    exporter.write(7 * CHUNK + 8, &[1; 16]);
    exporter.publish_as_is().expect("published");
    let snapshot = next(&mut stream);
    assert_eq!(snapshot.record().chunks_copied, 1);
    let second = stream.map_counts();
    assert_eq!((second.runs_mapped, second.chunks_mapped), (2, CHUNKS + 1));
    assert_eq!(second.chunks_reused, CHUNKS - 1);
}

#[test]
fn a_detached_snapshot_keeps_its_bytes_and_its_addresses() {
    let process = BrokerProcess::start();
    // Two banks: nothing can be published while a generation is leased.
    let mut exporter = Exporter::new(&process, "flux", 2);
    let mut stream = attach(&process, Policy::Latest);
    exporter.publish().expect("published");
    let mut snapshot = next(&mut stream);
    assert_eq!(exporter.publish(), None);
    let bytes = snapshot.var("flux").expect("a variable").bytes;
    let address = bytes.as_ptr().addr();
    assert!(snapshot.detach(&flux_bytes()).expect("copied"));
    assert!(!snapshot.is_held());
    assert!(exporter.leased().is_empty());
    assert_eq!(stream.map_counts().bytes_detached, CHUNK);
    assert!(private_pages(address), "a private mapping at {address:#x}");
    for _ in 0..3 {
        exporter.publish().expect("published");
    }
    assert!(snapshot.valid());
    let refused = snapshot.var("flux").expect_err("given back");
    assert!(refused.to_string().contains("given back"), "{refused}");
    // Its view has copies in it, so the next snapshot gets another.
    drop(snapshot);
    let snapshot = next(&mut stream);
    assert_eq!(word(&snapshot), content(1, 4));
}

#[test]
fn copies_of_a_broken_lease_are_not_called_valid() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(&process, Policy::Latest);
    exporter.publish().expect("published");
    let mut snapshot = next(&mut stream);
    exporter.spoil(1, 1);
    assert!(!snapshot.valid());
    assert!(!snapshot.detach(&flux_bytes()).expect("copied"));
    assert!(!snapshot.valid());
}

#[test]
fn ranges_outside_the_arena_are_refused_and_the_lease_stays() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let mut stream = attach(&process, Policy::Latest);
    exporter.publish().expect("published");
    let mut snapshot = next(&mut stream);
    let end = CHUNK * CHUNKS;
    snapshot
        .detach(&[0..1, end - 1..end + 1])
        .expect_err("outside");
    assert!(snapshot.is_held());
    assert_eq!(word(&snapshot), content(1, 1));
}

/// Whether the mapping at `address` is private.
fn private_pages(address: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    maps.lines().any(|line| {
        let mut words = line.split_whitespace();
        let range = words.next().and_then(|range| range.split_once('-'));
        let (start, end) = range.expect("a range");
        let number = |text| usize::from_str_radix(text, 16).expect("a number");
        let is_private = words.next().is_some_and(|flags| flags.ends_with('p'));
        (number(start)..number(end)).contains(&address) && is_private
    })
}
