//! The version store: exact generations, what is kept, and who may say so.

use super::*;

fn numbers(world: &mut World, peer: PeerId, segid: SegId) -> Vec<(u64, bool)> {
    match world.ask(peer, Request::Generations { segid }) {
        Reply::Generations(all) => all
            .iter()
            .map(|one| {
                assert_eq!(one.record.generation, one.generation);
                (one.generation, one.is_leased)
            })
            .collect(),
        other => panic!("no generations: {other:?}"),
    }
}

fn exactly(world: &mut World, apid: ApId, generation: u64) -> Result<u64, Errno> {
    let want = Want::Exactly(generation);
    match world.ask(READER, Request::Lease { apid, want }) {
        Reply::Lease(LeaseReply::Granted { generation, .. }) => Ok(generation),
        Reply::Error { errno, .. } => Err(Errno::from_raw_os_error(errno.cast_signed())),
        other => panic!("{other:?}"),
    }
}

/// Four banks with generations 5 to 7, all published.
fn stocked() -> (World, EnclaveId, SegId) {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let count = 3;
    assert_eq!(
        world.ask(READER, Request::Retain { segid, count }),
        Reply::Ok
    );
    for (index, generation) in [(1, 5), (0, 6), (2, 7)] {
        world.publish(enclave, segid, index, generation);
    }
    (world, enclave, segid)
}

#[test]
fn each_kept_generation_can_be_leased_by_its_number() {
    let (mut world, enclave, segid) = stocked();
    let apid = world.attach(READER, segid, Policy::Latest);
    assert_eq!(
        numbers(&mut world, READER, segid),
        [(5, false), (6, false), (7, false)]
    );
    assert_eq!(exactly(&mut world, apid, 6), Ok(6));
    assert_eq!(exactly(&mut world, apid, 5), Ok(5));
    assert_eq!(world.memory.slot(enclave, 0, 1), Slot::Leased(5));
    // Asked for twice it is still one lease.
    assert_eq!(exactly(&mut world, apid, 5), Ok(5));
    assert_eq!(world.status(READER).leases, 2);
    for gone in [0, 4, 8, u64::MAX] {
        assert_eq!(exactly(&mut world, apid, gone), Err(Errno::NOENT));
    }
    assert_eq!(
        numbers(&mut world, READER, segid),
        [(5, true), (6, true), (7, false)]
    );
}

#[test]
fn a_kept_generation_stays_when_its_reader_goes() {
    let (mut world, enclave, segid) = stocked();
    let apid = world.attach(READER, segid, Policy::Latest);
    assert_eq!(exactly(&mut world, apid, 5), Ok(5));
    world.ask(READER, Request::Release { apid });
    assert_eq!(world.memory.slot(enclave, 0, 1), Slot::Published(5));
    let count = 2;
    assert_eq!(
        world.ask(READER, Request::Retain { segid, count }),
        Reply::Ok
    );
    let apid = world.attach(READER, segid, Policy::Latest);
    assert_eq!(exactly(&mut world, apid, 5), Ok(5));
    world.ask(READER, Request::Release { apid });
    assert_eq!(world.memory.slot(enclave, 0, 1), Slot::Empty);
}

#[test]
fn leases_take_the_place_of_kept_generations_not_of_publishes() {
    let (mut world, enclave, segid) = stocked();
    assert_eq!(world.memory.retain(enclave, 0), (3, 0));
    let apid = world.attach(READER, segid, Policy::Latest);
    // The kernel spares published ones only: leased and spared are 3 together.
    for (generation, spared) in [(5, 2), (6, 1), (7, 1)] {
        assert_eq!(exactly(&mut world, apid, generation), Ok(generation));
        assert_eq!(world.memory.retain(enclave, 0), (spared, 1));
    }
    world.ask(READER, Request::Release { apid });
    assert_eq!(world.memory.retain(enclave, 0), (3, 0));
}

#[test]
fn readers_of_each_generation_leave_what_is_kept_and_room_for_a_publish() {
    let (mut world, enclave, segid) = stocked();
    let apid = world.attach(READER, segid, Policy::Every);
    // It begins with the newest; what is older is nobody's but kept.
    assert_eq!(world.leased(READER, apid, 0), Some(7));
    let held = numbers(&mut world, READER, segid);
    assert_eq!(held.len(), 2, "one of three places is free: {held:?}");
    world.ask(
        READER,
        Request::ReleaseLease {
            apid,
            generation: 7,
        },
    );
    assert_eq!(world.memory.slot(enclave, 0, 2), Slot::Published(7));
}

#[test]
fn asked_for_by_number_and_in_turn_a_generation_is_leased_once() {
    let (mut world, enclave, segid) = stocked();
    let apid = world.attach(READER, segid, Policy::Every);
    assert_eq!(exactly(&mut world, apid, 7), Ok(7));
    assert_eq!(world.leased(READER, apid, 0), Some(7));
    assert_eq!(world.status(READER).leases, 1);
    world.ask(
        READER,
        Request::ReleaseLease {
            apid,
            generation: 7,
        },
    );
    assert_eq!(world.status(READER).leases, 0);
    assert_eq!(world.memory.slot(enclave, 0, 2), Slot::Published(7));
}

#[test]
fn only_readers_see_and_only_owners_set_what_is_kept() {
    let (mut world, enclave, segid) = stocked();
    let generations = Request::Generations { segid };
    assert_eq!(world.errno(OTHER, generations), Errno::ACCESS);
    let retain = |count| Request::Retain { segid, count };
    assert_eq!(world.errno(OTHER, retain(1)), Errno::ACCESS);
    assert_eq!(world.errno(READER, retain(4)), Errno::INVAL);
    assert_eq!(world.errno(READER, retain(u32::MAX)), Errno::INVAL);
    assert_eq!(world.memory.retain(enclave, 0).0, 3);
    assert_eq!(world.ask(READER, retain(0)), Reply::Ok);
    assert_eq!(world.memory.retain(enclave, 0).0, 1);
    let unknown = SegId(99);
    let requests = [
        Request::Generations { segid: unknown },
        Request::Retain {
            segid: unknown,
            count: 1,
        },
    ];
    for request in requests {
        assert_eq!(world.errno(READER, request), Errno::NOENT);
    }
    let mut too_many = make(1, "");
    too_many.retain = 4;
    let refused = world.errno(EXPORTER, Request::ArenaMake(too_many));
    assert_eq!(refused, Errno::INVAL);
}
