//! The processes: who starts whom, and when it is over.

use crate::broker_process::BrokerProcess;
use crate::kill_broker;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use xemem_host::{ClientError, SegmentRequest};

fn segment() -> SegmentRequest {
    SegmentRequest {
        name: "precious".to_owned(),
        size_bytes: 4096,
        ..SegmentRequest::default()
    }
}

#[test]
fn a_keeper_that_dies_is_replaced_and_the_next_one_keeps_all() {
    let mut process = BrokerProcess::start();
    let mut client = process.connect();
    let made = client.make_segment(&segment()).expect("made");
    let broker = process.broker();
    process.child.kill().expect("killed");
    process.child.wait().expect("reaped");
    assert_eq!(process.broker(), broker, "it lives");
    for _ in 0..3 {
        kill_broker(&process);
        let found = client.lookup("precious", None).expect("found");
        assert_eq!(found, made.segid);
    }
    assert_ne!(process.broker(), broker);
    client.shutdown(true).expect("ended");
    while client.status().is_ok() {
        std::thread::yield_now();
    }
    while process.socket().exists() {
        std::thread::yield_now();
    }
}

#[test]
fn a_signal_ends_keeper_and_broker_whichever_gets_it() {
    for to_broker in [false, true] {
        let mut process = BrokerProcess::start();
        let mut client = process.connect();
        kill_broker(&process);
        let broker = process.broker();
        let pid = if to_broker {
            broker
        } else {
            Pid::from_child(&process.child)
        };
        kill_process(pid, Signal::TERM).expect("signalled");
        let status = process.child.wait().expect("it ends");
        assert_eq!(status.code(), Some(0));
        assert!(!process.socket().exists());
        assert!(matches!(client.status(), Err(ClientError::BrokerGone)));
    }
}

#[test]
fn brokers_that_keep_dying_are_given_up() {
    let mut process = BrokerProcess::with(&["--deaths-per-minute", "3"]);
    let mut client = process.connect();
    for _ in 0..3 {
        kill_broker(&process);
        client.status().expect("another one serves");
    }
    let broker = process.broker();
    kill_process(broker, Signal::KILL).expect("killed");
    let status = process.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(matches!(client.status(), Err(ClientError::BrokerGone)));
    // The place is free: whoever wants a broker starts one.
    assert!(!process.socket().exists());
}

#[test]
fn an_idle_broker_ends_after_a_death_as_before() {
    let mut process = BrokerProcess::with(&["--linger-ms", "300"]);
    kill_broker(&process);
    assert_eq!(process.child.wait().expect("it ends").code(), Some(0));
    assert!(!process.socket().exists());
}

/// The journal, as its keeper has it.
fn journal(process: &BrokerProcess) -> File {
    let dir = format!("/proc/{}/fd", process.child.id());
    let entries = std::fs::read_dir(dir).expect("a process");
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    let is_journal = |path: &std::path::PathBuf| {
        let link = std::fs::read_link(path).unwrap_or_default();
        link.to_string_lossy().contains("xemem-journal")
    };
    let path = paths.find(is_journal).expect("a journal");
    OpenOptions::new().write(true).open(path).expect("opened")
}

#[test]
fn a_journal_that_does_not_add_up_is_refused_and_the_broker_begins_afresh() {
    // Magic, format, tail, and the first record with its checksum.
    for at in [0, 8, 16, 64, 72, 80] {
        let process = BrokerProcess::start();
        let mut client = process.connect();
        let made = client.make_segment(&segment()).expect("made");
        let broker = process.broker();
        journal(&process)
            .write_all_at(&[0xa5; 8], at)
            .expect("spoilt");
        kill_process(broker, Signal::KILL).expect("killed");
        // Nobody is told lies: the old connection has ended.
        assert!(matches!(client.status(), Err(ClientError::BrokerGone)));
        let mut fresh = process.connect();
        assert!(fresh.list().expect("a list").is_empty());
        // What is mapped stays, and a new life begins with the next death.
        made.memory
            .expect("memory")
            .write(0, b"mine")
            .expect("inside");
        fresh.make_segment(&segment()).expect("made");
        kill_broker(&process);
        assert_eq!(fresh.list().expect("a list").len(), 1);
    }
}

#[test]
fn a_keeper_that_hangs_is_replaced_and_holds_nobody_up() {
    let mut process = BrokerProcess::start();
    let mut client = process.connect();
    let made = client.make_segment(&segment()).expect("made");
    let keeper = Pid::from_child(&process.child);
    kill_process(keeper, Signal::STOP).expect("stopped");
    // The end of a segment is what a broker waits for its keeper with.
    client.remove(made.segid).expect("removed");
    let made = client.make_segment(&segment()).expect("made");
    kill_broker(&process);
    assert_eq!(client.lookup("precious", None).expect("found"), made.segid);
    // It was ended, lest there be two brokers one day.
    let status = process.child.wait().expect("it ends");
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    assert!(process.socket().exists());
    client.shutdown(true).expect("ended");
    while process.socket().exists() {
        std::thread::yield_now();
    }
}

#[test]
fn an_end_that_comes_while_a_broker_is_replaced_is_an_end() {
    for _ in 0..20 {
        let mut process = BrokerProcess::start();
        let (keeper, broker) = (Pid::from_child(&process.child), process.broker());
        kill_process(broker, Signal::KILL).expect("killed");
        kill_process(keeper, Signal::TERM).expect("signalled");
        assert_eq!(process.child.wait().expect("it ends").code(), Some(0));
        assert!(!process.socket().exists());
    }
}
