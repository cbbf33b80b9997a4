//! Signals from enclave to enclave go past the broker, and are what they were:
//! counted, each taken once, throttled, for who subscribed later, too.

use rustix::io::Errno;

use crate::peers::{Peer, Stage, Where};
use crate::threads::{is_quiet, sleeps};

const EIDRM: i32 = Errno::IDRM.raw_os_error();
const SOON: u64 = 60_000;

/// A segment of `a` for signals, and `b` that has subscribed to it.
fn pair(stage: &Stage) -> (Peer, Peer) {
    let (mut a, mut b) = (
        stage.peer(Where::Enclave("a")),
        stage.peer(Where::Enclave("b")),
    );
    a.done("make p 4096 4096 384 1");
    join(&mut b);
    (a, b)
}

fn join(peer: &mut Peer) {
    peer.done(&format!("lookup p {SOON}"));
    peer.done("get x 0");
    peer.done("subscribe x");
}

fn rally(a: &mut Peer, b: &mut Peer, rounds: u64) {
    a.tell(&format!("rally-own x {rounds} {SOON}"));
    assert_eq!(b.number(&format!("rally x {rounds} {SOON}")), rounds);
    assert_eq!(a.answer("rally-own"), Ok(rounds));
}

fn nobody_wakes_up(ring: &str) {
    const ROUNDS: u64 = 1000;
    let stage = Stage::new(ring, 0);
    let (mut a, mut b) = pair(&stage);
    rally(&mut a, &mut b, 2);
    let pids = [
        stage.fact("a", "pid"),
        stage.fact("b", "pid"),
        stage.broker(),
    ];
    stage.eventually("answers are done with", || pids.iter().all(is_quiet));
    // Both are told first: what they are told with is not what is counted.
    a.tell(&format!("rally-own x {ROUNDS} {SOON}"));
    let before = pids.each_ref().map(sleeps);
    assert_eq!(b.number(&format!("rally x {ROUNDS} {SOON}")), ROUNDS);
    assert_eq!(a.answer("rally-own"), Ok(ROUNDS));
    let after = pids.each_ref().map(sleeps);
    assert_eq!(after, before, "ring {ring}");
    assert_eq!(stage.signals(), (2 * (2 + ROUNDS), 0));
}

#[test]
fn a_thousand_signals_each_way_wake_no_thread_of_the_host_but_the_processors() {
    nobody_wakes_up("3");
    nobody_wakes_up("0");
}

#[test]
fn a_flood_of_direct_signals_is_throttled_counted_and_loses_none() {
    const SIGNALS: u64 = 50_000;
    let stage = Stage::new("3", 0);
    let (mut a, mut b) = pair(&stage);
    a.tell(&format!("gather x {SIGNALS} {SOON}"));
    b.done(&format!("volley x {SIGNALS}"));
    assert_eq!(a.answer("gather"), Ok(SIGNALS));
    a.refused("wait-own x 0", Errno::TIMEDOUT.raw_os_error());
    assert_eq!(stage.signals().0, SIGNALS);
}

#[test]
fn who_subscribes_later_hears_and_who_leaves_or_ends_is_done_with() {
    let stage = Stage::new("3", 0);
    let (mut a, mut b) = pair(&stage);
    b.done("signal x");
    let mut c = stage.peer(Where::Linux);
    join(&mut c);
    b.done("signal x");
    assert_eq!(c.number(&format!("wait x {SOON}")), 1);
    a.done("signal-own x");
    assert_eq!(b.number(&format!("wait x {SOON}")), 1);
    assert_eq!(c.number(&format!("wait x {SOON}")), 1);
    c.done("release x");
    b.done("signal x");
    stage.kill_broker();
    b.done("signal x");
    assert_eq!(a.number("gather x 4 0"), 4);
    assert_eq!(stage.signals(), (5, 0));
    a.done("remove x");
    b.refused("signal x", EIDRM);
    assert_eq!(b.number(&format!("wait x {SOON}")), 0, "the end");
}
