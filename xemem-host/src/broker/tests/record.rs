//! Taking over: what was recorded is there, what was not is undone.

use super::*;

/// A reader that holds generation 5 of three; published are 6 and 7.
fn reading() -> (World, EnclaveId, SegId, ApId) {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let apid = world.attach(READER, segid, Policy::Latest);
    world.publish(enclave, segid, 0, 5);
    assert_eq!(world.leased(READER, apid, 0), Some(5));
    (world, enclave, segid, apid)
}

fn release(world: &mut World, apid: ApId, generation: u64) -> Reply {
    world.ask(READER, Request::ReleaseLease { apid, generation })
}

#[test]
fn nothing_that_was_recorded_is_missing() {
    let (mut world, ..) = reading();
    let lookup = Request::Lookup {
        name: field("later"),
        timeout_ms: 100,
        live_only: false,
    };
    world.act(|broker, env| broker.handle(OTHER, 77, &lookup, env));
    world.now_ms += 40;
    world.act(|broker, env| broker.tick(env));
    let before = world.broker.whole();
    world.die_in(|_, _| {});
    assert_eq!(world.broker.whole(), before);
    // The lookup waits as long as it would have.
    assert_eq!(world.broker.next_deadline(), Some(100));
    let made = world.ask(EXPORTER, Request::ArenaMake(make(1, "later")));
    let Reply::Arena { segid, .. } = made else {
        panic!("no arena: {made:?}");
    };
    let mapped = Request::Mapped { segid };
    world.act(|broker, env| broker.handle(EXPORTER, 9, &mapped, env));
    let answer = (OTHER, 77, Reply::Segment { segid });
    assert!(world.replies.contains(&answer), "{:?}", world.replies);
}

#[test]
fn a_lease_that_was_not_recorded_is_given_back() {
    let (mut world, enclave, segid, apid) = reading();
    world.publish(enclave, segid, 1, 6);
    let want = Want::Latest;
    world.die_in(|broker, env| broker.handle(READER, 9, &Request::Lease { apid, want }, env));
    assert_eq!(world.memory.slot(enclave, 0, 1), Slot::Published(6));
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Leased(5));
    // Older than what is kept: nobody wants it any more.
    world.memory.set(enclave, 0, 2, Slot::Leased(4));
    world.die_in(|_, _| {});
    assert_eq!(world.memory.slot(enclave, 0, 2), Slot::Empty);
    assert_eq!(world.leased(READER, apid, 5), Some(6));
}

#[test]
fn a_lease_given_back_without_record_is_taken_again() {
    let (mut world, enclave, _, apid) = reading();
    let generation = 5;
    let request = Request::ReleaseLease { apid, generation };
    world.die_in(|broker, env| broker.handle(READER, 9, &request, env));
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Leased(5));
    assert_eq!(release(&mut world, apid, 5), Reply::Ok);
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Published(5));
}

#[test]
fn nobody_joins_a_generation_that_the_kernel_took_meanwhile() {
    let (mut world, enclave, segid, apid) = reading();
    let other = world.attach(EXPORTER, segid, Policy::Latest);
    // The broker gave it back and died; the kernel publishes over it.
    world.memory.set(enclave, 0, 0, Slot::Empty);
    world.publish(enclave, segid, 1, 9);
    world.die_in(|_, _| {});
    let want = Want::Exactly(5);
    let lease = Request::Lease { apid: other, want };
    assert_eq!(world.errno(EXPORTER, lease), Errno::NOENT);
    // Whoever had it gives it back as if nothing had been.
    assert_eq!(release(&mut world, apid, 5), Reply::Ok);
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Empty);
    assert_eq!(world.leased(READER, apid, 5), Some(9));
    assert_eq!(world.status(READER).leases, 1);
}

#[test]
fn an_end_that_was_not_recorded_spoils_nothing() {
    let (mut world, enclave, segid, apid) = reading();
    let reason = EndReason::ClosedByProgram;
    let end = Request::ArenaEnd { segid, reason };
    world.die_in(|broker, env| broker.handle(EXPORTER, 9, &end, env));
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Leased(5));
    assert_eq!(world.ask(EXPORTER, end), Reply::Ok);
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Empty);
    assert_eq!(release(&mut world, apid, 5), Reply::Ok);
}

#[test]
fn what_lost_its_memory_has_ended() {
    let (mut world, _, segid, apid) = reading();
    world.memory.lost.borrow_mut().insert(segid);
    world.die_in(|_, _| {});
    let want = Want::After(5);
    let ended = LeaseReply::Ended(EndReason::Removed);
    assert_eq!(world.lease(READER, apid, want), ended);
    let name = field("flux");
    let lookup = Request::Lookup {
        name,
        timeout_ms: 0,
        live_only: false,
    };
    assert_eq!(world.errno(READER, lookup), Errno::NOENT);
}

#[test]
fn who_waits_is_woken_once() {
    let (mut world, _, _, apid) = reading();
    let before = world.notified(apid);
    world.die_in(|_, _| {});
    assert_eq!(world.notified(apid), before + 1);
}

#[test]
fn garbage_is_no_record() {
    let settings = World::new().broker.settings;
    let (mut world, ..) = reading();
    let whole = world.broker.whole();
    for cut in 1..whole.len() {
        let mut broker = Broker::new(settings, 0);
        // Some cuts are between two changes: then it is a record.
        let _ = broker.apply(&whole[..cut]);
        let mut spoilt = whole.clone();
        spoilt[cut] ^= 0x55;
        let _ = Broker::new(settings, 0).apply(&spoilt);
    }
    let mut broker = Broker::new(settings, 0);
    assert_eq!(broker.apply(&[99]), Err(RecordError::Table(99)));
    assert!(broker.apply(&[3, 1]).is_err());
}

#[test]
fn eventfds_and_lease_pages_are_needed_as_long_as_somebody_has_them() {
    let (mut world, enclave, segid, apid) = reading();
    let target = Target::Access(apid);
    assert!(world.broker.needs_notify(target));
    assert!(!world.broker.needs_notify(Target::Segment(segid)));
    assert!(world.broker.needs_lease_page(enclave));
    // Recorded, and the broker is gone before it lets go of them.
    assert_eq!(world.ask(READER, Request::Release { apid }), Reply::Ok);
    world.disconnect(EXPORTER);
    world.die_in(|_, _| {});
    assert!(!world.broker.needs_notify(target));
    assert!(!world.broker.needs_lease_page(enclave));
}
