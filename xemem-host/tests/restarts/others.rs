//! Names, permits, signals, waits and memory over a broker's death.

use crate::broker_process::{BrokerProcess, SOON};
use crate::exporter::Exporter;
use crate::{descriptors, descriptors_of, kill_broker};
use rustix::io::Errno;
use std::time::Duration;
use xemem_host::{Access, Broker, Policy, SegmentRequest, SegmentState, Stream, Target, Waited};

fn segment(name: &str) -> SegmentRequest {
    SegmentRequest {
        name: name.to_owned(),
        size_bytes: 8192,
        mode: 0o600,
        signallable: true,
        ..SegmentRequest::default()
    }
}

#[test]
fn signals_are_not_lost_and_hardly_ever_counted_twice() {
    let process = BrokerProcess::with(&["--deaths-per-minute", "100"]);
    let mut exporter = process.connect();
    let made = exporter.make_segment(&segment("bell")).expect("made");
    let mut importer = process.connect();
    let apid = importer
        .get_for(made.segid, Access::ReadOnly)
        .expect("granted");
    let mut signals = importer
        .subscribe(Target::Access(apid))
        .expect("subscribed");
    let (mut sent, mut taken, kills) = (0_u64, 0_u64, 20);
    for kill in 0..kills {
        for _ in 0..50 {
            exporter.signal(Target::Segment(made.segid)).expect("sent");
            sent += 1;
        }
        taken += signals.take().expect("taken");
        std::thread::sleep(Duration::from_micros(kill * 331 % 2_003));
        kill_broker(&process);
    }
    taken += signals.take().expect("taken");
    assert!((sent..=sent + kills).contains(&taken), "{taken} of {sent}");
    exporter.remove(made.segid).expect("removed");
    while signals.wait(Some(SOON)).expect("no error") != Waited::Ended {}
}

#[test]
fn what_was_made_before_is_there_after() {
    let process = BrokerProcess::start();
    let mut exporter = process.connect();
    let made = exporter.make_segment(&segment("plain")).expect("made");
    let mut importer = process.connect();
    let apid = importer.get_for(made.segid, Access::ReadWrite);
    let apid = apid.expect("granted");
    let before = importer.attach_segment(apid, 0, 8192).expect("attached");
    kill_broker(&process);
    let memory = made.memory.as_ref().expect("memory");
    memory.write(0, b"before the kill").expect("inside");
    let after = importer.attach_segment(apid, 4096, 4096).expect("attached");
    after.memory.write(0, b"after").expect("writable");
    let mut seen = [0; 5];
    before.memory.read(4096, &mut seen).expect("inside");
    assert_eq!(&seen, b"after");
    // The name is found, and is still taken.
    assert_eq!(importer.lookup("plain", None).expect("found"), made.segid);
    let taken = exporter.make_segment(&segment("plain")).expect_err("taken");
    assert_eq!(taken.refusal(), Some(Errno::EXIST));
    // Ids go on where they were.
    let other = exporter.make_segment(&segment("other")).expect("made");
    assert!(other.segid > made.segid && other.segid.0 > apid.0);
    // Another connection's access is still nobody else's.
    let refused = exporter.release(apid).expect_err("not ours").refusal();
    assert_eq!(refused, Some(Errno::BADF));
}

#[test]
fn who_waits_for_a_name_gets_it_from_the_next_broker() {
    let process = BrokerProcess::start();
    let socket = process.socket();
    let waiter = std::thread::spawn(move || {
        let mut broker = Broker::connect(&socket).expect("connected");
        broker.lookup("late", Some(SOON)).expect("found")
    });
    let mut exporter = process.connect();
    for _ in 0..3 {
        kill_broker(&process);
    }
    let made = exporter.make_segment(&segment("late")).expect("made");
    assert_eq!(waiter.join().expect("no panic"), made.segid);
}

#[test]
fn a_retained_arena_is_read_after_its_broker_died_too() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    for _ in 0..7 {
        exporter.publish().expect("published");
    }
    drop(exporter);
    let mut tool = process.connect();
    for _ in 0..3 {
        kill_broker(&process);
        let mut stream = Stream::attach(&process.socket(), "flux", Policy::Latest, Duration::ZERO)
            .expect("retained");
        let snapshot = stream.next(Some(SOON)).expect("no error");
        assert_eq!(snapshot.expect("the last one").generation(), 7);
    }
    let list = tool.list().expect("a list");
    assert_eq!(list[0].state, SegmentState::Retained);
    assert!(list[0].retained_ms > 0, "its time goes on");
    tool.remove(list[0].segid).expect("given up");
    assert!(tool.list().expect("a list").is_empty());
    assert!(descriptors(&process).is_empty());
}

#[test]
fn clients_that_die_with_their_broker_are_missed() {
    let process = BrokerProcess::start();
    let mut tool = process.connect();
    for _ in 0..10 {
        let mut exporter = process.connect();
        let gone = exporter.make_segment(&segment("gone")).expect("made");
        let keeper = rustix::process::Pid::from_child(&process.child);
        let broker = process.broker();
        // Nobody starts another broker until the client is gone, too.
        rustix::process::kill_process(keeper, rustix::process::Signal::STOP).expect("stopped");
        rustix::process::kill_process(broker, rustix::process::Signal::KILL).expect("killed");
        drop((exporter, gone));
        rustix::process::kill_process(keeper, rustix::process::Signal::CONT).expect("goes on");
        while tool.status().expect("a status").segments > 0 {
            std::thread::yield_now();
        }
        let refused = tool.lookup("gone", None).expect_err("gone").refusal();
        assert_eq!(refused, Some(Errno::NOENT));
    }
}

#[test]
fn nothing_is_lost_and_nothing_stays_behind() {
    let process = BrokerProcess::with(&["--deaths-per-minute", "100", "--retain-ms", "0"]);
    let mut client = process.connect();
    for round in 0..15_u64 {
        let before = client.status().expect("a status");
        let killer = std::thread::scope(|scope| {
            let process = &process;
            let killer = scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(round * 617 % 5_003));
                kill_broker(process);
            });
            for number in 0..20 {
                let made = client.make_segment(&segment(&format!("s{number}")));
                let segid = made.expect("made").segid;
                let apid = client.get(segid).expect("granted");
                let subscribed = client.subscribe(Target::Access(apid));
                drop(subscribed.expect("subscribed"));
                client.release(apid).expect("released");
                client.remove(segid).expect("removed");
            }
            killer.join()
        });
        killer.expect("no panic");
        let after = client.status().expect("a status");
        assert_eq!(after.segments, before.segments);
        assert_eq!(after.protocol_errors, 0);
        assert!(
            descriptors(&process).is_empty(),
            "{:?}",
            descriptors(&process)
        );
    }
    // The keeper does as it is told, a moment later.
    while !descriptors_of(process.child.id()).is_empty() {
        std::thread::yield_now();
    }
}
