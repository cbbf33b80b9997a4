//! Bells between enclaves: a publish in one interrupts the other, and no thread of
//! the host but the two processors' own wakes up for it. That is counted.
//!
//! Both sides are `xasm-bench` (from `cargo xtask image`; folder `$XASM_OUT`, else
//! `out/`), told what to do line by line. Order is forced by what they answer.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

#[expect(dead_code, reason = "its programs end by signals or with it")]
#[path = "support/enclaves.rs"]
mod enclaves;
#[expect(dead_code, reason = "builds nothing and needs no busybox")]
mod support;
#[path = "support/threads.rs"]
mod threads;

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::process::Signal;
use serde_json::Value;
use xemem_host::{Policy, Stream};

use enclaves::{Enclaves, PATIENCE, Program, eventually, find};
use threads::{is_quiet, sleeps};

/// Enclaves whose bells are looked at.
struct Stage(Enclaves);

impl Deref for Stage {
    type Target = Enclaves;

    fn deref(&self) -> &Enclaves {
        &self.0
    }
}

impl Stage {
    fn new(ring: &str, enclaves: &[&str]) -> Self {
        Self(Enclaves::new(ring, enclaves))
    }

    fn bells(&self, enclave: &str, key: &str) -> u64 {
        self.fact(enclave, "bells")[key].as_u64().unwrap()
    }

    fn broker_pid(&self) -> Value {
        let text = self.succeeds(&["broker", "status", "--json"]);
        find(&serde_json::from_str(&text).unwrap(), "pid").unwrap()
    }

    /// Whether the enclave's processor sleeps until a bell: in KVM, or in ring-3
    /// mode at four descriptors (bell, broker's notify and connection, kill).
    fn is_asleep(&self, enclave: &str) -> bool {
        if self.fact(enclave, "kernel_mode") == "ring0" {
            return self.fact(enclave, "kvm")["blocking"] == 1;
        }
        let pid = self.fact(enclave, "pid");
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let mut vcpus = tasks.filter(|task| {
            let name = fs::read_to_string(task.path().join("comm"));
            name.is_ok_and(|name| name.starts_with("vcpu"))
        });
        let call = vcpus.find_map(|task| fs::read_to_string(task.path().join("syscall")).ok());
        // ppoll's number, its first argument, the number of descriptors.
        let call = call.unwrap_or_default();
        let mut words = call.split(' ');
        words.next() == Some("271") && words.nth(1) == Some("0x4")
    }

    /// Open eventfds of the enclave's VMM.
    fn eventfds(&self, enclave: &str) -> usize {
        let pid = self.fact(enclave, "pid");
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let targets = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        let is_event = |target: &PathBuf| target.to_string_lossy().contains("[eventfd]");
        targets.filter(is_event).count()
    }

    /// Two enclaves that have attached an arena of each other: `q` is that of `a`.
    fn pair(&self) -> (Program, Program) {
        let (mut a, mut b) = (self.bench("a"), self.bench("b"));
        for (program, own) in [(&mut a, "q"), (&mut b, "r")] {
            let made = program.ask(&format!("make {own} 8192 4096 4 discard-newest 0"));
            assert_eq!(made, "ok 4096");
        }
        for (program, other) in [(&mut a, "r"), (&mut b, "q")] {
            let attached = program.ask(&format!("attach {other} latest {PATIENCE}"));
            assert_eq!(attached, "ok 8192 4096");
        }
        (a, b)
    }
}

/// `rounds` publishes from `a` to `b` and as many back, each after the other.
fn rally(a: &mut Program, b: &mut Program, rounds: u64) {
    b.tell(&format!("rally r q second {rounds} {PATIENCE}"));
    a.tell(&format!("rally q r first {rounds} {PATIENCE}"));
    for program in [a, b] {
        assert_eq!(program.numbers().first(), Some(&rounds));
    }
}

/// The numbers of a rally are the same as long as both programs run.
fn nobody_wakes_up(ring: &str) {
    const ROUNDS: u64 = 1000;
    let stage = Stage::new(ring, &["a", "b"]);
    let (mut a, mut b) = stage.pair();
    // Here the bells are fetched, and the broker says so once.
    rally(&mut a, &mut b, 20);
    assert_eq!((stage.bells("a", "rung"), stage.bells("b", "rung")), (1, 1));
    let pids = [
        stage.fact("a", "pid"),
        stage.fact("b", "pid"),
        stage.broker_pid(),
    ];
    // Nobody is asked for anything from here on, so that only bells are left.
    eventually("answers are done with", || pids.iter().all(is_quiet));
    let before = pids.each_ref().map(sleeps);
    rally(&mut a, &mut b, ROUNDS);
    let after = pids.each_ref().map(sleeps);
    let names = ["a", "b", "broker"];
    for ((name, before), after) in names.into_iter().zip(&before).zip(&after) {
        assert_eq!(after, before, "ring {ring}, {name}");
    }
    let taken = ["a", "b"].map(|name| stage.bells(name, "taken"));
    println!("ring {ring}: {ROUNDS} rounds, interrupts {taken:?}, {after:?}");
    // That one notice is taken by the first sleep after it, whenever that is.
    let notices = ["a", "b"].map(|name| stage.bells(name, "notices"));
    assert!(
        notices.into_iter().all(|notices| notices <= 1),
        "{notices:?}"
    );
    assert!(taken.into_iter().all(|taken| taken > 0));
}

#[test]
fn a_thousand_publishes_each_way_wake_no_thread_of_the_host_in_ring_3_mode() {
    nobody_wakes_up("3");
}

#[test]
fn a_thousand_publishes_each_way_wake_no_thread_of_the_host_in_ring_0_mode() {
    nobody_wakes_up("0");
}

/// Each publish finds the importer asleep: one interrupt each.
fn one_interrupt_each(ring: &str) {
    const PUBLISHES: u64 = 50;
    let stage = Stage::new(ring, &["a", "b"]);
    let (mut a, mut b) = stage.pair();
    rally(&mut a, &mut b, 2);
    let taken = stage.bells("b", "taken");
    b.tell(&format!("next q {PATIENCE}"));
    assert_eq!(b.numbers().get(1), Some(&2));
    for publish in 1..=PUBLISHES {
        b.tell(&format!("next q {PATIENCE}"));
        // Not before it sleeps: only then there is something to count.
        eventually("b sleeps", || stage.is_asleep("b"));
        assert_eq!(a.ask("step q"), format!("ok {}", 2 + publish));
        assert_eq!(b.numbers().get(1), Some(&(2 + publish)));
    }
    let taken = stage.bells("b", "taken") - taken;
    println!("ring {ring}: {PUBLISHES} publishes, {taken} interrupts");
    assert!((PUBLISHES - 1..=PUBLISHES + 1).contains(&taken), "{taken}");
}

#[test]
fn a_sleeping_importer_takes_one_interrupt_for_each_publish() {
    one_interrupt_each("3");
    one_interrupt_each("0");
}

/// Waits until the reader is woken, and takes no more than that.
fn woken(stream: &Stream) {
    let patience = Timespec::try_from(Duration::from_millis(PATIENCE.into())).unwrap();
    let fd = stream.notify_fd();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&patience)), Ok(1), "in time");
    let mut events = [const { std::mem::MaybeUninit::uninit() }; 2];
    epoll::wait(fd, &mut events[..], Some(&Timespec::default())).unwrap();
}

/// Readers on Linux that want the newest generation are woken by the exporter: not
/// before they have asked for one does the broker have anything to do.
#[test]
fn a_publish_wakes_readers_on_linux_and_not_the_broker() {
    const PUBLISHES: u64 = 200;
    let stage = Stage::new("3", &["a"]);
    let mut a = stage.bench("a");
    assert_eq!(a.ask("make q 8192 4096 4 discard-newest 0"), "ok 4096");
    let (socket, patience) = (stage.run_dir.join("xemem.sock"), Duration::from_secs(60));
    let attach = || Stream::attach(&socket, "q", Policy::Latest, patience).unwrap();
    let mut streams = [attach(), attach(), attach()];
    // Here the exporter fetches the one bell of all three, and the broker says so.
    for generation in 1..=2 {
        for stream in &streams {
            let _ = stream.notify_fd();
        }
        assert_eq!(a.ask("step q"), format!("ok {generation}"));
        for stream in &mut streams {
            let snapshot = stream.next(Some(patience)).unwrap().unwrap();
            assert_eq!(snapshot.generation(), generation);
        }
    }
    assert_eq!(stage.bells("a", "rung"), 1);
    let broker = stage.broker_pid();
    eventually("answers are done with", || is_quiet(&broker));
    let before = sleeps(&broker);
    for publish in 1..=PUBLISHES {
        assert_eq!(a.ask("step q"), format!("ok {}", 2 + publish));
        streams.iter().for_each(woken);
    }
    assert_eq!(sleeps(&broker), before);
    for stream in &mut streams {
        let snapshot = stream.next(Some(patience)).unwrap().unwrap();
        assert_eq!(snapshot.generation(), 2 + PUBLISHES);
    }
    drop(streams);
    // It publishes to nobody, and gives the bell back by that.
    eventually("readers are gone", || {
        let list = stage.succeeds(&["snap", "ls", "--json"]);
        find(&serde_json::from_str(&list).unwrap(), "readers") == Some(0.into())
    });
    assert!(a.ask("step q").starts_with("ok "));
    assert_eq!(stage.bells("a", "rung"), 0);
}

/// Whoever dies, and however, leaves no eventfd behind in the other's VMM.
fn deaths_leave_nothing(ring: &str) {
    let stage = Stage::new(ring, &["a", "b"]);
    let at_rest = ["a", "b"].map(|name| stage.eventfds(name));
    for round in 0..3 {
        let (mut a, mut b) = stage.pair();
        rally(&mut a, &mut b, 5);
        // One of them is killed in the middle of a wait for ever.
        b.tell("rally r q second 1000000 4294967294");
        a.tell("rally q r first 50 60000");
        assert_eq!(a.numbers().first(), Some(&50));
        b.signal(Signal::TERM);
        b.code();
        if round == 1 {
            a.signal(Signal::TERM);
            a.code();
        } else {
            // It publishes to nobody, and gives the bell back by that.
            assert!(a.ask("step q").starts_with("ok "));
            assert_eq!(stage.bells("a", "rung"), 0);
            drop(a);
        }
        for (name, eventfds) in ["a", "b"].into_iter().zip(at_rest) {
            eventually("eventfds are closed", || stage.eventfds(name) == eventfds);
        }
    }
    // Nothing rings in what comes next.
    let taken = stage.bells("b", "taken");
    let mut b = stage.bench("b");
    assert!(b.ask("getpid 1000").starts_with("ok "));
    assert_eq!(stage.bells("b", "taken"), taken);
}

#[test]
fn a_killed_importer_or_exporter_leaves_no_bell_behind() {
    deaths_leave_nothing("3");
    deaths_leave_nothing("0");
}

#[test]
fn an_importer_asleep_hears_of_the_exporters_enclaves_end_and_of_the_brokers() {
    let stage = Stage::new("3", &["a", "b"]);
    let (mut a, mut b) = stage.pair();
    rally(&mut a, &mut b, 2);
    b.tell(&format!("next q {PATIENCE}"));
    assert_eq!(b.numbers().get(1), Some(&2));
    b.tell(&format!("next q {PATIENCE}"));
    eventually("b sleeps", || stage.is_asleep("b"));
    stage.succeeds(&["destroy", "a"]);
    // The end of the stream: its exporter is gone.
    assert_eq!(b.answer(), "ok 0 3");
    drop((a, b));
    stage.create("a", "3");
    let (mut a, mut b) = stage.pair();
    rally(&mut a, &mut b, 2);
    b.tell(&format!("next q {PATIENCE}"));
    assert_eq!(b.numbers().get(1), Some(&2));
    b.tell(&format!("next q {PATIENCE}"));
    eventually("b sleeps", || stage.is_asleep("b"));
    stage.succeeds(&["broker", "stop", "--force"]);
    let answer = b.answer();
    assert!(answer.contains("ECONNRESET"), "{answer}");
}

/// `a` publishes as fast as it can, `b` follows: whatever is taken together, the
/// last one is always seen, again and again.
fn the_last_one_is_seen(ring: &str, policy: &str) {
    const STORMS: u64 = 20;
    const GENERATIONS: u64 = 50;
    let stage = Stage::new(ring, &["a", "b"]);
    let (mut a, mut b) = (stage.bench("a"), stage.bench("b"));
    // Who wants each one has to be waited for.
    let full = if policy == "every" {
        "block"
    } else {
        "discard-newest"
    };
    let made = a.ask(&format!("make q 65536 4096 4 {full} {PATIENCE}"));
    assert!(made.starts_with("ok "), "{made}");
    let attached = b.ask(&format!("attach q {policy} {PATIENCE}"));
    assert!(attached.starts_with("ok "), "{attached}");
    let (mut last, mut seen, mut lost) = (0, 0, 0);
    for _ in 0..STORMS {
        last += GENERATIONS;
        b.tell(&format!("follow q {last} {PATIENCE}"));
        // Else the whole storm may be over before it looks, where both share a core.
        eventually("b sleeps", || stage.is_asleep("b"));
        a.tell(&format!("storm q {GENERATIONS} 2"));
        let [n, missed, torn, _, newest, end] = b.numbers().try_into().unwrap();
        assert_eq!((torn, newest, end), (0, last, 0), "ring {ring}, {policy}");
        assert_eq!(a.numbers().first(), Some(&GENERATIONS));
        seen += n;
        lost = missed;
    }
    let taken = stage.bells("b", "taken");
    println!(
        "ring {ring}, {policy}: {last} published, {seen} seen, {lost} lost, {taken} interrupts"
    );
    // The first one is told by the broker: the bell has not been fetched yet.
    assert!(seen <= last && taken >= STORMS - 1, "{taken}");
}

#[test]
fn the_last_generation_of_a_storm_is_never_missed() {
    for ring in ["3", "0"] {
        for policy in ["latest", "every"] {
            the_last_one_is_seen(ring, policy);
        }
    }
}

#[test]
fn several_importers_hear_the_same_publishes() {
    const GENERATIONS: u64 = 200;
    let importers = ["b", "c", "d"];
    let stage = Stage::new("3", &["a", "b", "c", "d"]);
    let mut a = stage.bench("a");
    let made = a.ask("make q 8192 4096 4 discard-newest 0");
    assert_eq!(made, "ok 4096");
    let mut programs = importers.map(|name| stage.bench(name));
    for program in &mut programs {
        let attached = program.ask(&format!("attach q latest {PATIENCE}"));
        assert_eq!(attached, "ok 8192 4096");
        program.tell(&format!("follow q {GENERATIONS} {PATIENCE}"));
    }
    a.tell(&format!("storm q {GENERATIONS} 2"));
    for program in &mut programs {
        let [_, _, torn, _, last, end] = program.numbers().try_into().unwrap();
        assert_eq!((torn, last, end), (0, GENERATIONS, 0));
    }
    assert_eq!(a.numbers().first(), Some(&GENERATIONS));
    assert_eq!(stage.bells("a", "rung"), importers.len() as u64);
}
