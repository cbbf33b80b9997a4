//! The processes: who starts whom, and when it is over.

use crate::broker_process::BrokerProcess;
use crate::kill_broker;
use rustix::process::{Pid, Signal, kill_process};
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
