//! What a publish does when readers hold every generation: the three policies,
//! and a rendezvous, with a real broker and reader; each in an enclave, on a real
//! kernel, and as an ordinary process, on the Linux backend.
//!
//! Needs /dev/kvm. The producer is `xasm-bench` (from `cargo xtask image`; folder
//! `$XASM_OUT`, else `out/`), told what to do line by line; the readers are threads
//! of this process. Sizes are small, order is forced by what the other side answers.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "builds nothing and needs no busybox")]
mod support;

#[path = "support/both.rs"]
mod both;
#[path = "support/producer.rs"]
mod producer;

use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use xemem_host::Stream;
use xemem_host::wire::Policy;

use producer::{Below, CHUNK, PATIENCE, Producer, word};
use support::{enclavectl, finish, wait};

fn discard_newest_refuses_and_leaves_the_readers_generation_alone(below: Below) {
    let mut producer = Producer::new(below, 2, "discard-newest 0");
    assert_eq!(producer.ask("step q"), "ok 1");
    let mut stream = producer.reader(Policy::Latest);
    let held = stream.next(Some(PATIENCE)).unwrap().unwrap();
    let refused = producer.ask("step q");
    assert!(refused.contains("EAGAIN"), "{refused}");
    assert_eq!((word(held.as_slice()), held.valid()), (1, true));
    drop(held);
    assert_eq!(producer.ask("step q"), "ok 2");
    assert_eq!(producer.stats(), [2, 1, 0, 0]);
    assert_eq!(producer.listed()["dropped"], 1);
    let counted = counted(&producer, "stats --json", "stats");
    assert_eq!(counted["segments"][0]["published"], 2);
    assert_eq!(counted["segments"][0]["dropped"], 1);
    let is_enclave = below == Below::Enclave;
    assert_eq!(
        counted["enclaves"][0]["exits"].as_u64() > Some(0),
        is_enclave
    );
    let arguments = "stats --every 1 --count 1 --json";
    let rates = self::counted(&producer, arguments, "stats_per_second");
    assert_eq!(rates["segments"][0]["dropped"], 0, "no more since");
}

fn counted(producer: &Producer, arguments: &str, key: &str) -> serde_json::Value {
    let mut command = enclavectl(&producer.run_dir);
    let ended = finish(command.args(arguments.split(' ')), b"");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let value: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    value[key].clone()
}

fn discard_oldest_goes_on_and_tells_the_reader(below: Below) {
    let mut producer = Producer::new(below, 3, "discard-oldest 0");
    assert_eq!(producer.ask("step q"), "ok 1");
    let mut slow = producer.reader(Policy::Latest);
    let held = slow.next(Some(PATIENCE)).unwrap().unwrap();
    // Generation 1 is held, 2 is the newest: 3 finds room, 4 as well.
    for generation in 2..=9 {
        assert_eq!(producer.ask("step q"), format!("ok {generation}"));
    }
    // Only one of three banks was ever needed for it.
    assert_eq!((word(held.as_slice()), held.valid()), (1, true));
    let mut other = producer.reader(Policy::Latest);
    let second = other.next(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!((second.generation(), word(second.as_slice())), (9, 9));
    // Now both are: the older one goes, and its chunk is written over.
    assert_eq!(producer.ask("step q"), "ok 10");
    assert_eq!(producer.ask("step q"), "ok 11");
    assert!(!held.valid(), "reads {}", word(held.as_slice()));
    assert!(second.valid());
    assert_eq!(word(second.as_slice()), 9);
    drop(held);
    let next = slow.next(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!((next.generation(), next.valid()), (11, true));
    drop(next);
    let [generation, dropped, discarded, waited] = producer.stats();
    assert_eq!((generation, dropped, waited), (11, 0, 0));
    assert_eq!(discarded, 1);
    assert_eq!(producer.listed()["discarded"], 1);
}

fn a_stuck_every_reader_misses_what_was_discarded_and_gets_the_rest(below: Below) {
    let mut producer = Producer::new(below, 3, "discard-oldest 0");
    let mut stream = producer.reader(Policy::Every);
    for generation in 1..=12 {
        assert_eq!(producer.ask("step q"), format!("ok {generation}"));
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&12) {
        let snapshot = stream.next(Some(PATIENCE)).unwrap().unwrap();
        if snapshot.valid() {
            assert_eq!(word(snapshot.as_slice()), snapshot.generation());
            seen.push(snapshot.generation());
        }
    }
    assert!(seen.is_sorted(), "{seen:?}");
    let [_, dropped, _, _] = producer.stats();
    assert_eq!(dropped, 0);
}

fn block_waits_for_the_reader_and_loses_nothing(below: Below) {
    let mut producer = Producer::new(below, 2, "block 0");
    assert_eq!(producer.ask("step q"), "ok 1");
    let mut stream = producer.reader(Policy::Latest);
    let held = stream.next(Some(PATIENCE)).unwrap().unwrap();
    producer.tell("step q");
    // It waits: its counter says so before the reader lets go.
    while producer.listed()["waited"] != 1 {
        thread::yield_now();
    }
    assert_eq!((word(held.as_slice()), held.valid()), (1, true));
    drop(held);
    assert_eq!(producer.answer(), "ok 2");
    let next = stream.next(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!((next.generation(), word(next.as_slice())), (2, 2));
    drop(next);
    assert_eq!(producer.stats(), [2, 0, 0, 1]);
}

fn block_gives_up_in_time_and_counts_it(below: Below) {
    let mut producer = Producer::new(below, 2, "block 30");
    assert_eq!(producer.ask("step q"), "ok 1");
    let mut stream = producer.reader(Policy::Latest);
    let held = stream.next(Some(PATIENCE)).unwrap().unwrap();
    let refused = producer.ask("step q");
    assert!(refused.contains("ETIMEDOUT"), "{refused}");
    drop(held);
    assert_eq!(producer.ask("step q"), "ok 2");
    assert_eq!(producer.stats(), [2, 1, 0, 1]);
}

/// A broker that stands still has leased nothing for the reader.
fn block_waits_for_a_late_broker_and_an_every_reader_gets_all(below: Below) {
    let mut producer = Producer::new(below, 3, "block 30");
    let mut stream = producer.reader(Policy::Every);
    let status = finish(
        enclavectl(&producer.run_dir).args(["broker", "status", "--json"]),
        b"",
    );
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let pid = status["broker"]["pid"].as_i64().unwrap();
    let broker = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    kill_process(broker, Signal::STOP).unwrap();
    let answers = ["step q"; 3].map(|request| producer.ask(request));
    kill_process(broker, Signal::CONT).unwrap();
    assert_eq!(&answers[..2], ["ok 1", "ok 2"]);
    assert!(answers[2].contains("ETIMEDOUT"), "{}", answers[2]);
    for generation in 1..=2 {
        let snapshot = stream.next(Some(PATIENCE)).unwrap().unwrap();
        assert_eq!(snapshot.generation(), generation);
    }
    assert_eq!(producer.ask("step q"), "ok 3");
    let last = stream.next(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!((last.generation(), word(last.as_slice())), (3, 4));
}

/// Many more than there are banks, as fast as they can be.
fn block_loses_nothing_of_a_storm(below: Below) {
    const STEPS: u64 = 500;
    let mut producer = Producer::new(below, 4, "block 0");
    let mut stream = producer.reader(Policy::Every);
    producer.tell(&format!("publish q {STEPS} 1"));
    for generation in 1..=STEPS {
        let snapshot = stream.next(Some(PATIENCE)).unwrap().unwrap();
        assert_eq!(snapshot.generation(), generation);
    }
    assert!(producer.answer().starts_with("ok "));
    let [generation, dropped, ..] = producer.stats();
    assert_eq!((generation, dropped), (STEPS, 0));
}

fn a_program_that_blocks_can_be_killed(below: Below) {
    let mut producer = Producer::new(below, 2, "block 0");
    assert_eq!(producer.ask("step q"), "ok 1");
    let mut stream = producer.reader(Policy::Latest);
    let held = stream.next(Some(PATIENCE)).unwrap().unwrap();
    producer.tell("step q");
    while producer.listed()["waited"] != 1 {
        thread::yield_now();
    }
    let mut program = producer.program.take().unwrap();
    let pid = rustix::process::Pid::from_child(&program);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(wait(&mut program), 143);
    assert_eq!(word(held.as_slice()), 1);
}

fn a_set_of_arenas_is_published_as_one_step_or_not_at_all(below: Below) {
    let mut producer = Producer::new(below, 2, "discard-newest 0");
    let make = |name, policy| format!("make {name} {CHUNK} {CHUNK} 2 {policy}");
    assert!(
        producer
            .ask(&make("r", "discard-oldest 0"))
            .starts_with("ok")
    );
    assert_eq!(producer.ask("step-set q,r 41"), "ok 41");
    let socket = producer.run_dir.join("xemem.sock");
    let attach = |name| Stream::attach(&socket, name, Policy::Latest, PATIENCE).unwrap();
    let (mut first, mut second) = (attach("q"), attach("r"));
    let (q, r) = (
        first.next(Some(PATIENCE)).unwrap().unwrap(),
        second.next(Some(PATIENCE)).unwrap().unwrap(),
    );
    assert_eq!((q.step(), word(q.as_slice())), (41, 41));
    assert_eq!((r.step(), word(r.as_slice())), (41, 41));
    // `q` refuses, so nothing is taken from the reader of `r` either.
    let refused = producer.ask("step-set q,r 42");
    assert!(refused.contains("EAGAIN"), "{refused}");
    assert!(r.valid());
    drop(q);
    assert_eq!(producer.ask("step-set q,r 43"), "ok 43");
    let q = first.next(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!((q.step(), word(q.as_slice())), (43, 43));
    drop(q);
    drop(r);
    let r = second.next(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!((r.step(), word(r.as_slice())), (43, 43));
    drop(r);
    assert_eq!(producer.stats(), [2, 1, 0, 0]);
    assert!(producer.ask("step-set q,nobody 44").starts_with("error"));
}

fn a_rendezvous_waits_for_its_readers(below: Below) {
    let mut producer = Producer::new(below, 2, "discard-newest 0");
    let late = producer.ask("wait-readers q 1 20");
    assert!(late.contains("ETIMEDOUT"), "{late}");
    producer.tell("wait-readers q 2 0");
    let first = producer.reader(Policy::Latest);
    let second = producer.reader(Policy::Every);
    assert_eq!(producer.answer(), "ok 2");
    drop(first);
    // The broker notices the end of a connection by itself.
    while producer.listed()["readers"] != 1 {
        thread::yield_now();
    }
    assert_eq!(producer.ask("wait-readers q 1 20"), "ok 1");
    drop(second);
}

both::on_both! {
    discard_newest_refuses_and_leaves_the_readers_generation_alone
    discard_oldest_goes_on_and_tells_the_reader
    a_stuck_every_reader_misses_what_was_discarded_and_gets_the_rest
    block_waits_for_the_reader_and_loses_nothing
    block_gives_up_in_time_and_counts_it
    block_waits_for_a_late_broker_and_an_every_reader_gets_all
    block_loses_nothing_of_a_storm
    a_program_that_blocks_can_be_killed
    a_set_of_arenas_is_published_as_one_step_or_not_at_all
    a_rendezvous_waits_for_its_readers
}
