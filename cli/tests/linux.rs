//! A producer on the Linux backend when something dies, and a whole simulation.
//!
//! Programs come from `cargo xtask image` (folder `$XASM_OUT`, else `out/`).

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "builds nothing and needs no busybox")]
mod support;

#[path = "support/broker.rs"]
mod broker;

#[expect(dead_code, reason = "everything here is on Linux")]
#[path = "support/producer.rs"]
mod producer;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xemem_host::wire::Policy;
use xemem_host::{Broker, EndReason, Stream};

use broker::kill_with_keeper;
use producer::{Below, CHUNK, PATIENCE, Producer, word};
use support::{enclavectl, finish, unique_dir, wait};

/// Ends the broker of a producer at once, and waits for its end.
fn kill_broker(producer: &Producer) {
    let mut broker = Broker::connect(&producer.run_dir.join("xemem.sock")).unwrap();
    let pid = i32::try_from(broker.status().unwrap().pid).unwrap();
    let pid = Pid::from_raw(pid).unwrap();
    kill_with_keeper(pid);
    while broker.status().is_ok() {}
}

#[test]
fn a_killed_program_leaves_its_reader_what_it_holds() {
    let mut producer = Producer::new(Below::Linux, 3, "discard-newest 0");
    assert_eq!(producer.ask("step q"), "ok 1");
    assert_eq!(producer.ask("step q"), "ok 2");
    let mut stream = producer.reader(Policy::Latest);
    let held = stream.next(Some(PATIENCE)).unwrap().unwrap();
    let mut program = producer.program.take().unwrap();
    kill_process(Pid::from_child(&program), Signal::KILL).unwrap();
    assert_eq!(wait(&mut program), 137);
    assert_eq!((word(held.as_slice()), held.valid()), (2, true));
    drop(held);
    assert!(stream.next(Some(PATIENCE)).unwrap().is_none());
    assert_eq!(stream.end_reason(), Some(EndReason::ExporterGone));
}

#[test]
fn arenas_go_on_at_the_next_broker() {
    for (chunk, policy) in [(CHUNK, "discard-newest 0"), (2 << 20, "block 0")] {
        let mut producer = Producer::bare(Below::Linux);
        let make = format!("make q {} {chunk} 3 {policy}", 3 * chunk);
        assert!(producer.ask(&make).starts_with("ok "));
        for generation in 1..=5 {
            assert_eq!(producer.ask("step q"), format!("ok {generation}"));
        }
        let mut old = producer.reader(Policy::Latest);
        let held = old.next(Some(PATIENCE)).unwrap().unwrap();
        kill_broker(&producer);
        // Its contents and its count of generations stay as they were.
        for generation in 6..=20 {
            assert_eq!(producer.ask("step q"), format!("ok {generation}"));
        }
        assert_eq!(word(held.as_slice()), 5, "the old memory is still there");
        let mut new = producer.reader(Policy::Latest);
        let snapshot = new.next(Some(PATIENCE)).unwrap().unwrap();
        assert_eq!((snapshot.generation(), word(snapshot.as_slice())), (20, 20));
        let [generation, dropped, ..] = producer.stats();
        assert_eq!((generation, dropped), (20, 0));
    }
}

#[test]
fn without_a_broker_the_program_goes_on_and_says_so() {
    let mut producer = Producer::new(Below::Linux, 3, "discard-newest 0");
    assert_eq!(producer.ask("step q"), "ok 1");
    kill_broker(&producer);
    // Nobody can listen where a directory is.
    let socket = producer.run_dir.join("xemem.sock");
    if let Err(error) = fs::remove_file(&socket) {
        // Root's broker had a porter, which does that.
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
    fs::create_dir(&socket).unwrap();
    for _ in 0..3 {
        let refused = producer.ask("step q");
        assert!(refused.contains("ENOTCONN"), "{refused}");
    }
    fs::remove_dir(&socket).unwrap();
    let start = Instant::now();
    while !producer.ask("step q").starts_with("ok ") {
        assert!(start.elapsed() < PATIENCE, "it looks for a broker again");
    }
    let [generation, dropped, ..] = producer.stats();
    assert_eq!(generation, 2);
    assert!(dropped >= 3);
    let mut stream = producer.reader(Policy::Latest);
    let snapshot = stream.next(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!(snapshot.generation(), 2);
    assert_eq!(word(snapshot.as_slice()), snapshot.step());
}

#[test]
fn an_arena_of_more_chunks_than_mappings_is_whole() {
    /// Two of these are one piece.
    const CHUNKS: u64 = 20_000;
    let mut producer = Producer::bare(Below::Linux);
    let make = format!("make q {} {CHUNK} 2 discard-newest 0", CHUNKS * CHUNK);
    assert!(producer.ask(&make).starts_with("ok "));
    // What each chunk's first word is: the step before that wrote it last.
    let mut expected = vec![0u64; usize::try_from(CHUNKS).unwrap()];
    let mut stream = None;
    let rounds = [CHUNKS, 3, CHUNKS / 3, 7, CHUNKS, 4999];
    for (step, dirty) in (0u64..).zip(rounds) {
        for n in 0..dirty {
            let chunk = usize::try_from(n * CHUNKS / dirty).unwrap();
            *expected.get_mut(chunk).unwrap() = step;
        }
        let published = producer.ask(&format!("publish q 1 {dirty}"));
        assert!(published.starts_with("ok "), "{published}");
        let stream = stream.get_or_insert_with(|| producer.reader(Policy::Latest));
        let snapshot = stream.next(Some(PATIENCE)).unwrap().unwrap();
        let chunk_bytes = usize::try_from(CHUNK).unwrap();
        let words = snapshot.as_slice().chunks(chunk_bytes).map(word);
        assert!(words.eq(expected.iter().copied()), "step {step}");
        assert!(snapshot.valid());
    }
}

#[test]
fn a_simulation_and_its_analytics_run_without_an_enclave() {
    const DECK: &str = "&invar ndimen=3 nx=8 ny=8 nz=8 lx=2.0 ly=2.0 lz=2.0 nang=2 ng=4 \
                        epsi=1.0D-3 iitm=5 oitm=20 timedep=1 tf=1.0 nsteps=12 mat_opt=1 src_opt=1 /";
    let run_dir = unique_dir("linux");
    let out = producer::bench().parent().unwrap().to_owned();
    let program = |name: &str| {
        let mut command = Command::new(out.join(name));
        command.env("ENCLAVE_RUNDIR", &run_dir);
        command.env("XASM_BACKEND", "linux");
        command.env_remove("XEMEM_SOCKET");
        command
    };
    // The reader first, so that it misses nothing: a broker for both.
    let socket = run_dir.join("xemem.sock");
    let broker = Broker::connect_or_start(&socket, &out.join("xemem-broker")).unwrap();
    let reader = program("spectrum")
        .args(["snap/flux", "--policy", "every", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let run = finish(
        program("snap-mini").args(["--input", "-", "--json-summary"]),
        DECK.as_bytes(),
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    let summary: Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(summary["published"], 12);
    assert!(summary["arena_bytes"].as_u64().unwrap() > 0);
    let read = reader.wait_with_output().unwrap();
    let text = String::from_utf8(read.stdout).unwrap();
    assert!(read.status.success(), "{text}");
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["torn"], 0, "{last}");
    assert!(last["verified"].as_u64().unwrap() >= 1, "{last}");
    drop(broker);
    finish(
        enclavectl(&run_dir).args(["broker", "stop", "--force"]),
        b"",
    );
    fs::remove_dir_all(&run_dir).unwrap();
}

#[test]
fn a_reader_learns_the_name_of_the_process() {
    let mut producer = Producer::new(Below::Linux, 2, "discard-newest 0");
    assert_eq!(producer.ask("step q"), "ok 1");
    let pid = producer.program.as_ref().unwrap().id();
    assert_eq!(producer.listed()["enclave"], format!("linux-{pid}"));
    assert_eq!(producer.ask("end q"), "ok");
    let socket = producer.run_dir.join("xemem.sock");
    let gone = Stream::attach_live(&socket, "q", Policy::Latest, std::time::Duration::ZERO);
    assert!(gone.is_err());
}
