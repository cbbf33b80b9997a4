//! Signals between processes: each subscriber its own, none lost, floods held
//! back and counted.

use crate::broker_process::{BrokerProcess, SOON};
use crate::peer::Peer;
use crate::sharing::importer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::time::Duration;
use xemem_host::{Heard, SegmentRequest, Signals, Target, Waited};

/// Takes signals until there were `wanted`.
fn collect(signals: &mut Signals, wanted: u64) -> u64 {
    let mut seen = 0;
    while seen < wanted {
        match signals.wait(Some(SOON)).expect("signals") {
            Waited::Signals(count) => seen += count,
            Waited::Ended => panic!("ended after {seen} of {wanted}"),
        }
    }
    seen
}

fn is_readable(signals: &Signals) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).expect("poll") > 0
}

#[test]
fn signals_go_both_ways() {
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 4096 600"), "ok");
    let (mut broker, attached) = importer(&process, "x", 0, 4096);
    let target = Target::Access(attached.apid);
    let mut signals = broker.subscribe(target).expect("subscribed");
    exporter.tell("wait");
    broker.signal(target).expect("signalled");
    assert_eq!(exporter.answer(), "1");
    assert_eq!(signals.take().expect("nothing"), 0, "not to its sender");
    assert!(!is_readable(&signals));
    assert_eq!(exporter.ask("signal 2"), "ok");
    assert!(is_readable(&signals));
    assert_eq!(collect(&mut signals, 2), 2);
    let short = Some(Duration::from_millis(1));
    let refused = signals.wait(short).expect_err("nothing more");
    assert_eq!(refused.errno(), Errno::TIMEDOUT);
    // From outside, without holding anything.
    let mut outside = process.connect();
    outside
        .signal(Target::Segment(attached.segid))
        .expect("signalled");
    assert_eq!(collect(&mut signals, 1), 1);
    assert_eq!(exporter.ask("wait"), "1");
}

#[test]
fn a_hundred_thousand_signals_are_throttled_counted_and_complete() {
    const SIGNALS: u64 = 100_000;
    let process = BrokerProcess::with(&["--rings-per-second", "1000"]);
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 4096 600"), "ok");
    let (mut first, one) = importer(&process, "x", 0, 4096);
    let (mut second, two) = importer(&process, "x", 0, 4096);
    let subscribe = |broker: &mut xemem_host::Broker, apid| {
        broker.subscribe(Target::Access(apid)).expect("subscribed")
    };
    let mut early = subscribe(&mut first, one.apid);
    let mut late = subscribe(&mut second, two.apid);
    exporter.tell(&format!("signal {SIGNALS}"));
    // One takes them as they come, the other only when all were sent.
    assert_eq!(collect(&mut early, SIGNALS), SIGNALS);
    assert_eq!(exporter.answer(), "ok");
    assert_eq!(collect(&mut late, SIGNALS), SIGNALS);
    let info = first.info(one.segid).expect("info");
    assert_eq!(info.signals, SIGNALS);
    assert!(info.throttled > 0);
    // The last one of a flood arrives although nothing follows it.
    assert_eq!(exporter.ask("signal 1"), "ok");
    assert_eq!(collect(&mut early, 1), 1);
    assert_eq!(collect(&mut late, 1), 1);
}

#[test]
fn a_flood_ends_with_all_of_it_when_the_flooder_is_killed() {
    const SIGNALS: u64 = 5_000;
    let process = BrokerProcess::with(&["--rings-per-second", "10"]);
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 4096 600"), "ok");
    let (mut broker, attached) = importer(&process, "x", 0, 4096);
    let target = Target::Access(attached.apid);
    let mut signals = broker.subscribe(target).expect("subscribed");
    assert_eq!(exporter.ask(&format!("signal {SIGNALS}")), "ok");
    exporter.kill();
    assert_eq!(collect(&mut signals, SIGNALS), SIGNALS);
    assert_eq!(signals.wait(Some(SOON)).expect("told"), Waited::Ended);
    assert!(signals.has_ended());
}

#[test]
fn a_segment_for_signals_alone_is_a_bell() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    let request = SegmentRequest {
        name: "bell".to_owned(),
        signallable: true,
        ..SegmentRequest::default()
    };
    let mut bell = broker.make_segment(&request).expect("made");
    assert!(bell.memory.is_none());
    let mut ringer = process.connect();
    let segid = ringer.lookup("bell", None).expect("found");
    ringer.signal(Target::Segment(segid)).expect("rung");
    let mine = bell.signals.as_mut().expect("signallable");
    assert_eq!(collect(mine, 1), 1);
    let apid = ringer.get(segid).expect("access");
    let refused = ringer.attach_segment(apid, 0, 1).expect_err("no memory");
    assert_eq!(refused.errno(), Errno::INVAL);
}

#[test]
fn a_connection_dropped_ends_a_wait_in_another_thread() {
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 4096 600"), "ok");
    let (mut broker, attached) = importer(&process, "x", 0, 4096);
    let target = Target::Access(attached.apid);
    let mut signals = broker.subscribe(target).expect("subscribed");
    let waiter = std::thread::spawn(move || signals.wait(None));
    drop(broker);
    let ended = waiter.join().expect("no panic").expect_err("gone");
    assert_eq!(ended.errno(), Errno::CONNRESET);
}

#[test]
fn signals_past_the_broker_share_its_budget_and_its_count() {
    let process = BrokerProcess::with(&["--rings-per-second", "10"]);
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 4096 600"), "ok");
    let (mut first, one) = importer(&process, "x", 0, 4096);
    let (mut second, two) = importer(&process, "x", 0, 4096);
    let mut signals = first
        .subscribe(Target::Access(one.apid))
        .expect("subscribed");
    let target = Target::Access(two.apid);
    let ears = second.ears(target).expect("ears");
    let (mut direct, mut by_broker) = (0, 0);
    while second.info(two.segid).expect("info").throttled == 0 {
        match ears.signal() {
            Heard::Done => direct += 1,
            Heard::ByBroker => {
                second.signal(target).expect("signalled");
                by_broker += 1;
            }
            Heard::Changed => panic!("nobody came or went"),
        }
        assert!(direct + by_broker < 10_000, "never throttled");
    }
    assert!(direct >= 10, "{direct}");
    let sent = direct + by_broker;
    assert_eq!(collect(&mut signals, sent), sent);
    assert_eq!(signals.take().expect("nothing"), 0);
    assert_eq!(second.info(two.segid).expect("info").signals, sent);
    // Whoever comes later is not passed over, and nobody is after the end.
    let mut late = second.subscribe(target).expect("subscribed");
    assert_eq!(ears.signal(), Heard::Changed);
    let outside = process.connect().ears(Target::Segment(two.segid));
    let outside = outside.expect("ears");
    while outside.signal() != Heard::Done {
        std::thread::yield_now();
    }
    assert_eq!((collect(&mut signals, 1), collect(&mut late, 1)), (1, 1));
    exporter.finish();
    while signals.wait(Some(SOON)).expect("the end") != Waited::Ended {}
    assert_eq!(outside.signal(), Heard::Changed);
}
