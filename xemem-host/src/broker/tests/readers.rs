//! Permission, attachments, leases and both policies, and death on all sides.

use super::*;
use enclave_abi::syscall::POLICY_BLOCK;

#[test]
fn access_is_denied_unless_owner_root_or_reader_group() {
    let mut world = World::peopled();
    world.enclave();
    let segid = world.arena(0, "private");
    let get = |segid| Request::Get {
        segid,
        access: Access::ReadOnly,
    };
    let granted = |reply| matches!(reply, Reply::Granted { .. });
    assert!(granted(world.ask(READER, get(segid))));
    assert_eq!(world.errno(OTHER, get(segid)), Errno::ACCESS);
    world.connect(PeerId(9), 0, Role::Consumer);
    assert!(granted(world.ask(PeerId(9), get(segid))));

    // Group 2000 is the primary one of the other user, 77 a supplementary.
    for (slot, reader_gid, allowed) in [(1, 2000, true), (2, 77, true), (3, 78, false)] {
        let mut request = make(slot, "");
        request.reader_gid = reader_gid;
        let Reply::Arena { segid, .. } = world.ask(EXPORTER, Request::ArenaMake(request)) else {
            panic!("no arena");
        };
        world.ask(EXPORTER, Request::Mapped { segid });
        let reply = world.ask(OTHER, get(segid));
        assert_eq!(granted(reply), allowed, "gid {reader_gid}");
    }
}

#[test]
fn nobody_gets_write_access_to_an_arena() {
    let mut world = World::peopled();
    world.enclave();
    let segid = world.arena(0, "flux");
    let access = Access::ReadWrite;
    let get = Request::Get { segid, access };
    assert_eq!(world.errno(READER, get), Errno::ACCESS);
    assert_eq!(world.errno(EXPORTER, get), Errno::ACCESS);
}

#[test]
fn an_apid_is_worthless_on_another_connection() {
    let mut world = World::peopled();
    world.enclave();
    let segid = world.arena(0, "flux");
    let apid = world.attach(READER, segid, Policy::Latest);
    world.connect(PeerId(9), 0, Role::Consumer);
    let requests = [
        Request::Attach {
            apid,
            policy: Policy::Latest,
        },
        Request::Lease {
            apid,
            want: Want::Latest,
        },
        Request::ReleaseLease {
            apid,
            generation: 1,
        },
        Request::Detach { apid },
        Request::Release { apid },
    ];
    for request in requests {
        assert_eq!(world.errno(PeerId(9), request), Errno::BADF, "{request:?}");
    }
    assert_eq!(world.ask(READER, Request::Release { apid }), Reply::Ok);
    assert_eq!(world.errno(READER, Request::Release { apid }), Errno::BADF);
}

#[test]
fn what_is_not_attached_has_no_leases() {
    let mut world = World::peopled();
    world.enclave();
    let segid = world.arena(0, "flux");
    let apid = world.attach(READER, segid, Policy::Latest);
    let policy = Policy::Latest;
    let again = Request::Attach { apid, policy };
    assert_eq!(world.errno(READER, again), Errno::EXIST);
    assert_eq!(world.ask(READER, Request::Detach { apid }), Reply::Ok);
    assert!(
        world
            .effects
            .contains(&Effect::DropNotify(Target::Access(apid)))
    );
    let want = Want::Latest;
    let lease = Request::Lease { apid, want };
    assert_eq!(world.errno(READER, lease), Errno::NOTCONN);
    let detach = Request::Detach { apid };
    assert_eq!(world.errno(READER, detach), Errno::NOTCONN);
    assert!(matches!(world.ask(READER, again), Reply::Attached(_)));
}

#[test]
fn the_first_lease_marks_the_word_and_the_last_release_unmarks_it() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let first = world.attach(READER, segid, Policy::Latest);
    let second = world.attach(READER, segid, Policy::Latest);
    assert_eq!(world.leased(READER, first, 0), None);
    world.publish(enclave, segid, 4, 7);
    assert_eq!(world.leased(READER, first, 0), Some(7));
    assert_eq!(world.leased(READER, second, 6), Some(7));
    assert_eq!(world.leased(READER, first, 7), None);
    assert_eq!(world.memory.slot(enclave, 0, 4), Slot::Leased(7));
    let release = |apid| Request::ReleaseLease {
        apid,
        generation: 7,
    };
    assert_eq!(world.ask(READER, release(first)), Reply::Ok);
    assert_eq!(world.memory.slot(enclave, 0, 4), Slot::Leased(7));
    // Still the latest: the kernel may keep it for others.
    assert_eq!(world.ask(READER, release(second)), Reply::Ok);
    assert_eq!(world.memory.slot(enclave, 0, 4), Slot::Published(7));
    assert_eq!(world.errno(READER, release(second)), Errno::NODATA);

    assert_eq!(world.leased(READER, first, 0), Some(7));
    world.publish(enclave, segid, 5, 8);
    assert_eq!(world.ask(READER, release(first)), Reply::Ok);
    assert_eq!(world.memory.slot(enclave, 0, 4), Slot::Empty);
}

#[test]
fn a_generation_the_header_does_not_show_yet_stays_published() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let apid = world.attach(READER, segid, Policy::Latest);
    world.publish(enclave, segid, 0, 1);
    world.memory.set(enclave, 0, 1, Slot::Published(2));
    assert_eq!(world.leased(READER, apid, 0), Some(2));
    let generation = 2;
    let release = Request::ReleaseLease { apid, generation };
    assert_eq!(world.ask(READER, release), Reply::Ok);
    assert_eq!(world.memory.slot(enclave, 0, 1), Slot::Published(2));
}

#[test]
fn asking_twice_for_the_same_generation_is_one_lease() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let apid = world.attach(READER, segid, Policy::Latest);
    world.publish(enclave, segid, 0, 1);
    assert_eq!(world.leased(READER, apid, 0), Some(1));
    assert_eq!(world.leased(READER, apid, 0), Some(1));
    assert_eq!(world.status(READER).leases, 1);
    let generation = 1;
    let release = Request::ReleaseLease { apid, generation };
    assert_eq!(world.ask(READER, release), Reply::Ok);
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Published(1));
}

#[test]
fn a_record_stays_with_its_lease_and_one_that_is_gone_is_a_generation_missed() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let [first, second] = [(); 2].map(|()| world.attach(READER, segid, Policy::Latest));
    world.publish(enclave, segid, 0, 7);
    assert_eq!(world.leased(READER, first, 0), Some(7));
    // The exporter goes on with the other banks while 7 is held.
    world.publish(enclave, segid, 1, 7 + 64);
    let exactly = |apid, generation| Request::Lease {
        apid,
        want: Want::Exactly(generation),
    };
    match world.ask(READER, exactly(second, 7)) {
        Reply::Lease(LeaseReply::Granted { generation, record }) => {
            assert_eq!((generation, record.generation), (7, 7));
        }
        other => panic!("{other:?}"),
    }
    // Published and written over before anybody looked.
    world.memory.latest.borrow_mut().insert(segid, 7 + 64 + 64);
    assert_eq!(world.leased(READER, first, 7), None);
    assert_eq!(world.errno(READER, exactly(second, 71)), Errno::NOENT);
    let left = world.memory.slot(enclave, 0, 1);
    assert!(!matches!(left, Slot::Leased(_)), "{left:?}");
    world.publish(enclave, segid, 2, 200);
    assert_eq!(world.leased(READER, first, 7), Some(200));
}

#[test]
fn a_lost_race_with_the_kernel_means_the_newest_not_an_error() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let apid = world.attach(READER, segid, Policy::Latest);
    world.publish(enclave, segid, 0, 1);
    // While the broker reaches for generation 1 the kernel takes its word
    // for generation 2.
    world
        .memory
        .race
        .replace(Some((0, Slot::Published(2).encode())));
    assert_eq!(world.leased(READER, apid, 0), Some(2));
    world.publish(enclave, segid, 1, 3);
    world.memory.race.replace(Some((1, 0)));
    assert_eq!(world.leased(READER, apid, 2), None);
}

#[test]
fn leases_per_client_are_bounded() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    world.publish(enclave, segid, 0, 1);
    let apids: Vec<ApId> = (0..65)
        .map(|_| world.attach(READER, segid, Policy::Latest))
        .collect();
    for &apid in &apids[..64] {
        assert_eq!(world.leased(READER, apid, 0), Some(1));
    }
    let (apid, want) = (apids[64], Want::Latest);
    let one_more = Request::Lease { apid, want };
    assert_eq!(world.errno(READER, one_more), Errno::DQUOT);
    world.disconnect(READER);
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Published(1));
}

#[test]
fn apids_per_client_are_bounded() {
    let mut world = World::peopled();
    world.enclave();
    let segid = world.arena(0, "flux");
    let access = Access::ReadOnly;
    for _ in 0..MAX_APIDS {
        let reply = world.ask(READER, Request::Get { segid, access });
        assert!(matches!(reply, Reply::Granted { .. }));
    }
    let one_more = Request::Get { segid, access };
    assert_eq!(world.errno(READER, one_more), Errno::DQUOT);
}

#[test]
fn a_latest_reader_skips_what_it_was_too_slow_for() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let apid = world.attach(READER, segid, Policy::Latest);
    for generation in 1..=3 {
        let index = usize::try_from(generation).expect("small");
        world.publish(enclave, segid, index, generation);
        world.ring(segid);
    }
    assert_eq!(world.notified(apid), 3);
    assert_eq!(world.memory.retain(enclave, 0), (1, 1));
    assert_eq!(world.leased(READER, apid, 0), Some(3));
}

#[test]
fn an_every_reader_gets_each_generation_in_order() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    world.publish(enclave, segid, 0, 4);
    world.publish(enclave, segid, 1, 5);
    let apid = world.attach(READER, segid, Policy::Every);
    assert_eq!(world.memory.retain(enclave, 0), (3, 1));
    // It begins with the newest there is; nobody will ask for the older one.
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Empty);
    assert_eq!(world.memory.slot(enclave, 0, 1), Slot::Leased(5));
    world.publish(enclave, segid, 3, 6);
    world.publish(enclave, segid, 2, 7);
    world.ring(segid);
    for generation in [5, 6, 7] {
        assert_eq!(world.leased(READER, apid, 0), Some(generation));
    }
    assert_eq!(world.leased(READER, apid, 0), None);
    for generation in [5, 6, 7] {
        let release = Request::ReleaseLease { apid, generation };
        assert_eq!(world.ask(READER, release), Reply::Ok);
    }
    assert_eq!(world.memory.slot(enclave, 0, 2), Slot::Published(7));
    assert_eq!(world.memory.slot(enclave, 0, 3), Slot::Empty);
    assert_eq!(world.ask(READER, Request::Detach { apid }), Reply::Ok);
    assert_eq!(world.memory.retain(enclave, 0), (1, 0));
}

#[test]
fn a_kernel_that_waits_takes_back_nothing_an_every_reader_wants() {
    let mut world = World::peopled();
    world.memory.policy.set(POLICY_BLOCK);
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    assert_eq!(world.memory.retain(enclave, 0), (1, 0));
    let apid = world.attach(READER, segid, Policy::Every);
    // As many as there are words, and one more: none is old enough to go.
    assert_eq!(world.memory.retain(enclave, 0), (4, 1));
    for (index, generation) in [(0, 1), (1, 2), (2, 3)] {
        world.publish(enclave, segid, index, generation);
    }
    world.ring(segid);
    for generation in 1..=3 {
        assert_eq!(world.leased(READER, apid, 0), Some(generation));
        let release = Request::ReleaseLease { apid, generation };
        assert_eq!(world.ask(READER, release), Reply::Ok);
    }
    // All had: the newest stays, and the kernel finds room beside it.
    let slots = [0, 1, 2].map(|index| world.memory.slot(enclave, 0, index));
    assert_eq!(slots, [Slot::Empty, Slot::Empty, Slot::Published(3)]);
    // Who wants the newest only is not waited for.
    assert_eq!(world.ask(READER, Request::Detach { apid }), Reply::Ok);
    world.attach(READER, segid, Policy::Latest);
    assert_eq!(world.memory.retain(enclave, 0), (1, 1));
}

#[test]
fn what_an_every_reader_has_had_makes_room_beside_a_slow_reader() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let slow = world.attach(READER, segid, Policy::Latest);
    let every = world.attach(READER, segid, Policy::Every);
    world.publish(enclave, segid, 0, 1);
    world.ring(segid);
    assert_eq!(world.leased(READER, slow, 0), Some(1));
    for (index, generation) in [(1, 2), (2, 3), (1, 4), (2, 5)] {
        assert_eq!(world.memory.slot(enclave, 0, index), Slot::Empty);
        world.publish(enclave, segid, index, generation);
        world.ring(segid);
        // Read at once, so given back while it still is the newest.
        while let Some(generation) = world.leased(READER, every, 0) {
            let apid = every;
            let release = Request::ReleaseLease { apid, generation };
            assert_eq!(world.ask(READER, release), Reply::Ok);
        }
        assert_eq!(
            world.memory.slot(enclave, 0, index),
            Slot::Published(generation)
        );
    }
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Leased(1));
}

#[test]
fn an_every_reader_that_has_not_had_a_generation_keeps_it() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    world.publish(enclave, segid, 0, 1);
    world.attach(READER, segid, Policy::Every);
    // Published, and no doorbell heard yet: a lease of another reader looks.
    let other = world.attach(READER, segid, Policy::Latest);
    world.publish(enclave, segid, 1, 2);
    world.publish(enclave, segid, 2, 3);
    assert_eq!(world.leased(READER, other, 0), Some(3));
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Leased(1));
    assert_eq!(world.memory.slot(enclave, 0, 1), Slot::Leased(2));
}

#[test]
fn an_every_reader_that_is_stuck_holds_nothing_more() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let apid = world.attach(READER, segid, Policy::Every);
    for (index, generation) in (0..SLOTS).zip(1..) {
        world.publish(enclave, segid, index, generation);
    }
    world.ring(segid);
    assert_eq!(world.status(READER).leases, 15);
    assert_eq!(world.memory.retain(enclave, 0), (1, 1));
    assert_eq!(world.leased(READER, apid, 0), Some(1));
    let generation = 1;
    let release = Request::ReleaseLease { apid, generation };
    assert_eq!(world.ask(READER, release), Reply::Ok);
    assert_eq!(world.memory.retain(enclave, 0), (3, 1));
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Empty);
    world.publish(enclave, segid, 0, 16);
    world.ring(segid);
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Leased(16));
    assert_eq!(world.memory.retain(enclave, 0), (1, 1));
}

#[test]
fn a_dead_reader_gives_everything_back() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let latest = world.attach(READER, segid, Policy::Latest);
    world.attach(READER, segid, Policy::Every);
    world.publish(enclave, segid, 0, 1);
    world.ring(segid);
    assert_eq!(world.leased(READER, latest, 0), Some(1));
    world.publish(enclave, segid, 1, 2);
    world.ring(segid);
    world.disconnect(READER);
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Empty);
    assert_eq!(world.memory.slot(enclave, 0, 1), Slot::Published(2));
    assert_eq!(world.memory.retain(enclave, 0), (1, 0));
    assert!(world.broker.grants.is_empty());
    assert_eq!(world.status(OTHER).leases, 0);
}

#[test]
fn an_ended_arena_can_be_read_to_its_last_generation() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let latest = world.attach(READER, segid, Policy::Latest);
    let every = world.attach(READER, segid, Policy::Every);
    world.publish(enclave, segid, 0, 1);
    world.publish(enclave, segid, 1, 2);
    world.disconnect(EXPORTER);
    assert!(world.notified(latest) > 0 && world.notified(every) > 0);
    assert!(world.effects.contains(&Effect::DropLeasePage(enclave)));
    assert!(!world.effects.contains(&Effect::DropArena(segid)));
    assert_eq!(world.leased(READER, latest, 1), Some(2));
    assert_eq!(world.leased(READER, every, 0), Some(1));
    assert_eq!(world.leased(READER, every, 1), Some(2));
    let ended = LeaseReply::Ended(EndReason::ExporterGone);
    assert_eq!(world.lease(READER, latest, Want::After(2)), ended);
    assert_eq!(world.lease(READER, every, Want::After(2)), ended);

    let name = field("flux");
    let timeout_ms = 0;
    let lookup = Request::Lookup {
        name,
        timeout_ms,
        live_only: false,
    };
    // Retained, until its time is over; what is attached stays.
    assert_eq!(world.ask(READER, lookup), Reply::Segment { segid });
    world.now_ms += 60_000;
    world.act(|broker, env| broker.tick(env));
    assert_eq!(world.errno(READER, lookup), Errno::NOENT);
    let access = Access::ReadOnly;
    let get = Request::Get { segid, access };
    assert_eq!(world.errno(READER, get), Errno::IDRM);

    world.ask(READER, Request::Release { apid: latest });
    assert!(!world.effects.contains(&Effect::DropArena(segid)));
    world.ask(READER, Request::Release { apid: every });
    assert!(world.effects.contains(&Effect::DropArena(segid)));
    assert!(world.broker.segments.is_empty());
}

#[test]
fn leases_of_an_ended_arena_do_not_touch_the_next_one_in_its_slot() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "old");
    let apid = world.attach(READER, segid, Policy::Latest);
    world.publish(enclave, segid, 0, 1);
    assert_eq!(world.leased(READER, apid, 0), Some(1));
    let reason = EndReason::ProgramDied;
    world.ask(EXPORTER, Request::ArenaEnd { segid, reason });
    let next = world.arena(0, "new");
    world.memory.set(enclave, 0, 0, Slot::Leased(1));
    world.memory.latest.borrow_mut().insert(next, 1);
    let generation = 1;
    world.ask(READER, Request::ReleaseLease { apid, generation });
    assert_eq!(world.memory.slot(enclave, 0, 0), Slot::Leased(1));
}

#[test]
fn attaching_what_has_ended_is_refused() {
    let mut world = World::peopled();
    world.enclave();
    let segid = world.arena(0, "flux");
    let access = Access::ReadOnly;
    let Reply::Granted { apid } = world.ask(READER, Request::Get { segid, access }) else {
        panic!("no access");
    };
    world.ask(READER, Request::Remove { segid });
    let policy = Policy::Latest;
    let attach = Request::Attach { apid, policy };
    assert_eq!(world.errno(READER, attach), Errno::IDRM);
    let remove = Request::Remove { segid };
    assert_eq!(world.errno(READER, remove), Errno::IDRM);
    assert_eq!(world.ask(READER, Request::Release { apid }), Reply::Ok);
    assert!(world.effects.contains(&Effect::DropArena(segid)));
}

#[test]
fn one_pass_over_the_words_cannot_skip_a_generation() {
    /// Shows the words as one pass may see them that began before generation
    /// 1 came and ended after 2, and as they are from then on.
    struct Torn(std::cell::Cell<bool>);
    impl LeaseMemory for Torn {
        fn words(&self, _: EnclaveId, _: u32) -> [u64; SLOTS] {
            let mut words = [0; SLOTS];
            words[9] = Slot::Published(2).encode();
            if self.0.replace(true) {
                words[0] = Slot::Published(1).encode();
                words[1] = Slot::Published(3).encode();
            }
            words
        }
        fn exchange(&self, _: EnclaveId, _: u32, _: usize, _: u64, _: u64) -> bool {
            true
        }
        fn clear(&self, _: EnclaveId, _: u32) {}
        fn set_retain(&self, _: EnclaveId, _: u32, _: u32, _: u32) {}
        fn counters(&self, _: SegId) -> Counters {
            Counters::default()
        }
        fn record(&self, _: SegId, _: u64) -> Option<GenerationRecord> {
            None
        }
    }
    let words = leases::Words {
        memory: &Torn(std::cell::Cell::new(false)),
        enclave: EnclaveId(1),
        slot: 0,
    };
    let leases = leases::Leases::default();
    assert_eq!(leases.after(words, 0), [1, 2]);
}
