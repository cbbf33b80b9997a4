//! The version store with a real broker and readers, in an enclave and on the
//! Linux backend: generations by number, what is kept, and what changed between
//! two of them; and what is read after the producer's end. Needs /dev/kvm.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "builds nothing and needs no busybox")]
mod support;

#[path = "support/both.rs"]
mod both;
#[path = "support/producer.rs"]
mod producer;

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xemem_host::Stream;
use xemem_host::wire::Policy;

use producer::{Below, CHUNK, PATIENCE, Producer, word};
use support::{Ended, enclavectl, finish, wait};

fn ctl(producer: &Producer, arguments: &str) -> Ended {
    let mut command = enclavectl(&producer.run_dir);
    finish(command.args(arguments.split(' ')), b"")
}

fn json(producer: &Producer, arguments: &str) -> Value {
    let ended = ctl(producer, &format!("{arguments} --json"));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn kept(producer: &Producer) -> Vec<u64> {
    let listed = json(producer, "snap ls q");
    let all = listed["generations"].as_array().unwrap().clone();
    let numbers = all.iter().map(|one| one["generation"].as_u64().unwrap());
    numbers.collect()
}

fn as_many_generations_are_kept_as_was_asked_for(below: Below) {
    let mut producer = Producer::bare(below);
    let bytes = 4 * CHUNK;
    let make = format!("make q {bytes} {CHUNK} 6 discard-newest 0 3");
    assert!(producer.ask(&make).starts_with("ok "));
    for generation in 1..=9 {
        assert_eq!(producer.ask("step q"), format!("ok {generation}"));
    }
    assert_eq!(kept(&producer), [7, 8, 9], "as the program asked");
    assert_eq!(ctl(&producer, "snap retain q 5").code, 0);
    for generation in 10..=14 {
        assert_eq!(producer.ask("step q"), format!("ok {generation}"));
    }
    assert_eq!(kept(&producer), [10, 11, 12, 13, 14]);
    assert_eq!(producer.listed()["retain"], 5);
    // Each can be read by its number, at the same time.
    let mut streams: Vec<_> = (0..4).map(|_| producer.reader(Policy::Latest)).collect();
    let snapshots: Vec<_> = streams
        .iter_mut()
        .zip([12, 10, 13, 11])
        .map(|(stream, generation)| stream.at(generation).unwrap())
        .collect();
    for generation in 15..=30 {
        assert_eq!(producer.ask("step q"), format!("ok {generation}"));
    }
    for snapshot in &snapshots {
        assert_eq!(word(snapshot.as_slice()), snapshot.generation());
        assert!(snapshot.valid());
    }
    drop(snapshots);
    let [_, dropped, _, _] = producer.stats();
    assert_eq!(dropped, 0, "what is kept costs no publish");
    let summary = json(&producer, "snap read q --generation 30");
    assert_eq!(summary["snapshot"]["generation"], 30);
    for (arguments, code) in [
        ("snap read q --generation 12", 3),
        ("snap retain q 6", 2),
        ("snap retain q 0", 2),
        ("snap retain nothing 1", 3),
        ("snap ls nothing", 3),
    ] {
        let ended = ctl(&producer, arguments);
        assert_eq!(ended.code, code, "{arguments}: {}", ended.stderr);
    }
}

fn diff_names_the_chunks_that_the_program_wrote(below: Below) {
    const CHUNKS: u64 = 32;
    let mut producer = Producer::bare(below);
    let bytes = CHUNKS * CHUNK;
    let make = format!("make q {bytes} {CHUNK} 4 discard-newest 0 3");
    assert!(producer.ask(&make).starts_with("ok "));
    // Generation g writes the first word of so many chunks, evenly spread.
    let written = [32, 1, 2, 4, 8, 0, 16, 2];
    for dirty in written {
        let published = producer.ask(&format!("publish q 1 {dirty}"));
        assert!(published.starts_with("ok "), "{published}");
    }
    let changed = |a: u64, b: u64| -> Vec<u64> {
        let listed = json(&producer, &format!("snap diff q {a} {b}"));
        let diff = &listed["diff"];
        let ranges = diff["ranges"].as_array().unwrap();
        let chunks = ranges.iter().flat_map(|range| {
            let (at, len) = (&range["offset"], &range["bytes"]);
            let first = at.as_u64().unwrap() / CHUNK;
            first..first + len.as_u64().unwrap() / CHUNK
        });
        let chunks: Vec<u64> = chunks.collect();
        let bytes = chunks.len() as u64 * CHUNK;
        assert_eq!(diff["changed_bytes"], bytes);
        chunks
    };
    let of = |dirty: u64| (0..dirty).map(|n| n * CHUNKS / dirty).collect::<Vec<_>>();
    for (a, b, most) in [
        (1, 2, 1),
        (2, 3, 2),
        (4, 5, 8),
        (5, 6, 0),
        (6, 7, 16),
        (1, 8, 16),
        (8, 7, 2),
    ] {
        assert_eq!(changed(a, b), of(most), "{a} {b}");
    }
    for arguments in ["snap diff q 0 3", "snap diff q 3 9"] {
        assert_eq!(ctl(&producer, arguments).code, 3, "{arguments}");
    }
}

fn diff_goes_by_births_when_the_log_is_over_and_says_when_it_cannot(below: Below) {
    let mut producer = Producer::bare(below);
    let make = format!("make q {} {CHUNK} 3 discard-newest 0", 2 * CHUNK);
    assert!(producer.ask(&make).starts_with("ok "));
    for generation in 1..=200 {
        assert_eq!(producer.ask("step q"), format!("ok {generation}"));
    }
    // Records go back 64 generations; the second chunk was never written.
    let known = json(&producer, "snap diff q 100 200");
    assert_eq!(known["diff"]["source"], "births");
    assert_eq!(known["diff"]["changed_bytes"], CHUNK);
    assert_eq!(known["diff"]["ranges"][0]["offset"], 0);
    let forgotten = ctl(&producer, "snap diff q 90 100");
    assert_eq!(forgotten.code, 3);
    assert!(forgotten.stderr.contains("not known any more"));
}

/// Waits until the arena `q` is not live any more, and says why it ended.
fn ended(producer: &Producer) -> String {
    loop {
        let arena = producer.listed();
        if arena["state"] == "retained" {
            assert!(arena["retained_ms"].as_u64().unwrap() > 500_000);
            return arena["end_reason"].as_str().unwrap().to_owned();
        }
        assert_eq!(arena["state"], "live");
        std::thread::yield_now();
    }
}

/// The last generation is 5, is whole, comes once and then the end.
fn read_post_mortem(producer: &Producer, name: &str) {
    let socket = producer.run_dir.join("xemem.sock");
    let attached = Stream::attach(&socket, name, Policy::Latest, Duration::ZERO);
    let mut stream = attached.unwrap();
    let snapshot = stream.next(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!((snapshot.generation(), snapshot.step()), (5, 5));
    assert_eq!(word(snapshot.as_slice()), 5);
    assert!(snapshot.valid());
    drop(snapshot);
    assert!(stream.next(Some(PATIENCE)).unwrap().is_none());
    let summary = json(producer, &format!("snap read {name} --timeout 0"));
    assert_eq!(summary["snapshot"]["generation"], 5);
}

/// With generations 1 to 5 of `q`.
fn with_five(below: Below) -> Producer {
    let mut producer = Producer::new(below, 4, "discard-newest 0");
    for generation in 1..=5 {
        assert_eq!(producer.ask("step q"), format!("ok {generation}"));
    }
    producer
}

/// Kills what the arena's pages belong to: VMM or process.
fn kill_exporter(producer: &mut Producer, below: Below) {
    match below {
        Below::Enclave => {
            let listed = json(producer, "list");
            let pid = listed["enclaves"][0]["pid"].as_i64().unwrap();
            let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
        }
        Below::Linux => producer.program.as_mut().unwrap().kill().unwrap(),
    }
    wait(&mut producer.program.take().unwrap());
}

fn the_last_generation_outlives_the_program_that_closed_its_arena(below: Below) {
    let mut producer = with_five(below);
    assert_eq!(producer.ask("end q"), "ok");
    assert_eq!(ended(&producer), "closed by its program");
    read_post_mortem(&producer, "q");
    // The next run takes the name; the old one is found by its number.
    let old = producer.listed()["segid"].as_u64().unwrap();
    let make = format!("make q {} {CHUNK} 4 discard-newest 0", 2 * CHUNK);
    assert!(producer.ask(&make).starts_with("ok "));
    assert_eq!(producer.ask("step q"), "ok 1");
    assert_eq!(kept(&producer), [1]);
    read_post_mortem(&producer, &format!("q@{old}"));
    let removed = ctl(&producer, "snap rm q");
    assert_eq!(removed.code, 4, "it is live: {}", removed.stderr);
    assert_eq!(ctl(&producer, &format!("snap rm q@{old}")).code, 0);
    assert_eq!(ctl(&producer, &format!("snap rm q@{old}")).code, 3);
    assert_eq!(kept(&producer), [1]);
}

fn the_last_generation_outlives_a_killed_program(below: Below) {
    let mut producer = with_five(below);
    let mut program = producer.program.take().unwrap();
    program.kill().unwrap();
    wait(&mut program);
    let reason = match below {
        Below::Enclave => "program died",
        Below::Linux => "exporter gone",
    };
    assert_eq!(ended(&producer), reason);
    read_post_mortem(&producer, "q");
    assert_eq!(ctl(&producer, "snap rm --all").code, 0);
    let listed = json(&producer, "snap ls");
    assert_eq!(listed["arenas"].as_array().unwrap().len(), 0);
}

#[test]
fn the_last_generation_outlives_its_enclave_destroyed_or_killed() {
    for how in ["destroy", "kill"] {
        let mut producer = with_five(Below::Enclave);
        if how == "destroy" {
            assert_eq!(ctl(&producer, "destroy q").code, 0);
            wait(&mut producer.program.take().unwrap());
        } else {
            kill_exporter(&mut producer, Below::Enclave);
        }
        ended(&producer);
        read_post_mortem(&producer, "q");
        assert_eq!(ctl(&producer, "snap rm q").code, 0);
        let listed = json(&producer, "snap ls");
        assert_eq!(listed["arenas"].as_array().unwrap().len(), 0, "{how}");
    }
}

/// Killed again and again at any moment: what is left is always a whole
/// generation, and the last one that anybody was told of or a later one.
fn what_is_left_by_a_kill_in_a_publish_is_whole(below: Below) {
    for _ in 0..6 {
        let mut producer = Producer::new(below, 3, "discard-newest 0");
        producer.tell("publish q 100000 1");
        let mut stream = producer.reader(Policy::Latest);
        let mut seen = 0;
        while seen < 50 {
            seen = stream.next(Some(PATIENCE)).unwrap().unwrap().generation();
        }
        drop(stream);
        kill_exporter(&mut producer, below);
        ended(&producer);
        let socket = producer.run_dir.join("xemem.sock");
        let attached = Stream::attach(&socket, "q", Policy::Latest, Duration::ZERO);
        let mut stream = attached.unwrap();
        let snapshot = stream.next(Some(PATIENCE)).unwrap().unwrap();
        assert!(snapshot.generation() >= seen);
        // The program stores the number of the step before it publishes.
        assert_eq!(word(snapshot.as_slice()) + 1, snapshot.step());
        assert!(snapshot.valid());
    }
}

both::on_both! {
    as_many_generations_are_kept_as_was_asked_for
    diff_names_the_chunks_that_the_program_wrote
    diff_goes_by_births_when_the_log_is_over_and_says_when_it_cannot
    the_last_generation_outlives_the_program_that_closed_its_arena
    the_last_generation_outlives_a_killed_program
    what_is_left_by_a_kill_in_a_publish_is_whole
}
