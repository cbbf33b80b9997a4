//! Arenas after their end: who still finds them, for how long, and what makes
//! them go.

use super::*;

/// An arena `name` with generation 8, ended by its program.
fn ended(world: &mut World, enclave: EnclaveId, name: &str) -> SegId {
    let segid = world.arena(0, name);
    world.publish(enclave, segid, 1, 7);
    world.publish(enclave, segid, 2, 8);
    let reason = EndReason::ProgramDied;
    let end = Request::ArenaEnd { segid, reason };
    assert_eq!(world.ask(EXPORTER, end), Reply::Ok);
    segid
}

fn lookup(name: &str, live_only: bool) -> Request {
    Request::Lookup {
        name: field(name),
        timeout_ms: 0,
        live_only,
    }
}

fn found(world: &mut World, name: &str) -> Option<SegId> {
    match world.ask(READER, lookup(name, false)) {
        Reply::Segment { segid } => Some(segid),
        Reply::Error { .. } => None,
        other => panic!("{other:?}"),
    }
}

fn state(world: &mut World, segid: SegId) -> Option<(SegmentState, u64)> {
    match world.ask(READER, Request::Info { segid }) {
        Reply::Segments(all) => Some((all[0].state, all[0].retained_ms)),
        _ => None,
    }
}

#[test]
fn an_ended_arena_gives_new_readers_its_last_generation_and_then_the_end() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = ended(&mut world, enclave, "flux");
    world.disconnect(EXPORTER);
    assert_eq!(found(&mut world, "flux"), Some(segid));
    assert_eq!(world.errno(READER, lookup("flux", true)), Errno::NOENT);
    for policy in [Policy::Latest, Policy::Every] {
        let apid = world.attach(READER, segid, policy);
        assert_eq!(world.leased(READER, apid, 0), Some(8), "{policy:?}");
        let ended = LeaseReply::Ended(EndReason::ProgramDied);
        assert_eq!(world.lease(READER, apid, Want::After(8)), ended);
        let older = world.lease(READER, apid, Want::Exactly(7));
        assert!(matches!(older, LeaseReply::Granted { generation: 7, .. }));
        world.ask(READER, Request::Release { apid });
    }
    let access = Access::ReadOnly;
    let get = Request::Get { segid, access };
    assert_eq!(world.errno(OTHER, get), Errno::ACCESS);
    let access = Access::ReadWrite;
    let get = Request::Get { segid, access };
    assert_eq!(world.errno(READER, get), Errno::ACCESS);
    let count = 2;
    let retain = Request::Retain { segid, count };
    assert_eq!(world.errno(READER, retain), Errno::IDRM);
}

#[test]
fn it_goes_when_its_time_is_over_and_the_broker_stays_until_then() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = ended(&mut world, enclave, "flux");
    for peer in [EXPORTER, READER, OTHER] {
        world.disconnect(peer);
    }
    world.now_ms = 59_999;
    world.act(|broker, env| broker.tick(env));
    assert!(!world.effects.contains(&Effect::Exit));
    assert!(!world.effects.contains(&Effect::DropArena(segid)));
    assert_eq!(world.broker.next_deadline(), Some(60_000));
    world.now_ms = 60_000;
    world.act(|broker, env| broker.tick(env));
    assert!(world.effects.contains(&Effect::DropArena(segid)));
    assert!(world.effects.contains(&Effect::Exit));
}

#[test]
fn a_new_arena_takes_the_name_and_the_old_one_is_found_by_number() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let old = ended(&mut world, enclave, "flux");
    let new = world.arena(0, "flux");
    let numbered = format!("flux@{}", old.0);
    assert_eq!(found(&mut world, "flux"), Some(new));
    assert_eq!(found(&mut world, &numbered), Some(old));
    assert_eq!(found(&mut world, &format!("other@{}", old.0)), None);
    let making = Request::ArenaMake(make(1, "late"));
    assert!(matches!(world.ask(EXPORTER, making), Reply::Arena { .. }));
    let making = SegId(world.broker.last_id);
    assert_eq!(found(&mut world, &format!("late@{}", making.0)), None);
    // Removed, the new one leaves the name to the old one again.
    world.ask(READER, Request::Remove { segid: new });
    assert_eq!(found(&mut world, "flux"), Some(old));
    world.ask(READER, Request::Remove { segid: old });
    assert_eq!(found(&mut world, "flux"), None);
    assert_eq!(found(&mut world, &numbered), None);
    assert!(world.effects.contains(&Effect::DropArena(old)));
}

#[test]
fn removing_it_leaves_its_readers_what_they_have() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = ended(&mut world, enclave, "flux");
    let apid = world.attach(READER, segid, Policy::Latest);
    assert_eq!(world.leased(READER, apid, 0), Some(8));
    let remove = Request::Remove { segid };
    assert_eq!(world.errno(OTHER, remove), Errno::ACCESS);
    assert_eq!(world.ask(READER, remove), Reply::Ok);
    assert_eq!(world.errno(READER, remove), Errno::IDRM);
    assert_eq!(state(&mut world, segid), Some((SegmentState::Ended, 0)));
    assert!(!world.effects.contains(&Effect::DropArena(segid)));
    world.ask(READER, Request::Release { apid });
    assert!(world.effects.contains(&Effect::DropArena(segid)));
}

#[test]
fn the_oldest_goes_at_the_limit_of_its_user() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let mut all = Vec::new();
    for n in 0..4 {
        world.now_ms = n * 10;
        all.push(ended(&mut world, enclave, &format!("run{n}")));
    }
    // Three objects are allowed.
    assert_eq!(state(&mut world, all[0]), None);
    let retained = (SegmentState::Retained, 60_000 - 20);
    assert_eq!(state(&mut world, all[1]), Some(retained));
    let status = world.status(READER);
    assert_eq!(
        (status.retained, status.retained_bytes),
        (3, 3 * OBJECT_BYTES)
    );
    let refused = world.errno(READER, Request::Shutdown { force: false });
    assert_eq!(refused, Errno::BUSY);
}

#[test]
fn memory_that_is_needed_is_taken_from_the_oldest_that_nobody_reads() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let all: Vec<SegId> = (0..3)
        .map(|n| {
            world.now_ms += 10;
            ended(&mut world, enclave, &format!("run{n}"))
        })
        .collect();
    let apid = world.attach(READER, all[0], Policy::Latest);
    let room = |bytes| Request::MakeRoom { bytes, huge: false };
    let huge = Request::MakeRoom {
        bytes: 1,
        huge: true,
    };
    assert_eq!(world.ask(READER, huge), Reply::Room { bytes: 0 });
    // Another user's need counts for nothing here.
    assert_eq!(world.ask(OTHER, room(1)), Reply::Room { bytes: 0 });
    let bytes = OBJECT_BYTES;
    assert_eq!(world.ask(READER, room(1)), Reply::Room { bytes });
    assert_eq!(state(&mut world, all[1]), None);
    assert_eq!(world.ask(READER, room(u64::MAX)), Reply::Room { bytes });
    assert_eq!(state(&mut world, all[2]), None);
    assert!(matches!(
        state(&mut world, all[0]),
        Some((SegmentState::Retained, _))
    ));
    assert_eq!(world.leased(READER, apid, 0), Some(8));
    assert_eq!(world.ask(READER, room(1)), Reply::Room { bytes: 0 });
}

#[test]
fn a_make_that_finds_no_memory_is_tried_again_with_what_was_retained() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let old = ended(&mut world, enclave, "old");
    world.fails = Some(Errno::NOMEM);
    let refused = world.errno(EXPORTER, Request::ArenaMake(make(1, "new")));
    assert_eq!(refused, Errno::NOMEM);
    assert_eq!(state(&mut world, old), None, "it was tried");
    let made = |e: &&Effect| matches!(e, Effect::MakeArena { .. });
    assert_eq!(world.effects.iter().filter(made).count(), 3);
}

#[test]
fn a_generation_taken_back_for_one_that_never_came_is_still_the_last() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    world.publish(enclave, segid, 1, 8);
    // The kernel was killed in the middle of the next publish.
    world.memory.set(enclave, 0, 1, Slot::Empty);
    world.disconnect(EXPORTER);
    let apid = world.attach(READER, segid, Policy::Latest);
    assert_eq!(world.leased(READER, apid, 0), Some(8));
}

#[test]
fn what_never_published_or_was_removed_is_not_retained() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let silent = world.arena(0, "silent");
    let removed = world.arena(1, "removed");
    world.memory.set(enclave, 1, 0, Slot::Published(1));
    world.memory.latest.borrow_mut().insert(removed, 1);
    world.ask(READER, Request::Remove { segid: removed });
    world.disconnect(EXPORTER);
    for segid in [silent, removed] {
        assert_eq!(state(&mut world, segid), None);
    }
    assert_eq!(world.status(READER).retained, 0);
}

#[test]
fn who_waits_gets_the_next_run_and_the_last_one_only_if_none_comes() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let old = ended(&mut world, enclave, "flux");
    let wait = |live_only| Request::Lookup {
        name: field("flux"),
        timeout_ms: 100,
        live_only,
    };
    world.connect(PeerId(9), OWNER, Role::Consumer);
    world.replies.clear();
    world.act(|broker, env| broker.handle(READER, 5, &wait(false), env));
    world.act(|broker, env| broker.handle(PeerId(9), 6, &wait(true), env));
    assert!(world.replies.is_empty());
    world.now_ms += 100;
    world.act(|broker, env| broker.tick(env));
    let found = (READER, 5, Reply::Segment { segid: old });
    assert_eq!(world.replies[0], found);
    assert!(matches!(
        world.replies[1],
        (PeerId(9), 6, Reply::Error { .. })
    ));
    world.act(|broker, env| broker.handle(READER, 5, &wait(false), env));
    let make = Request::ArenaMake(make(0, "flux"));
    world.act(|broker, env| broker.handle(EXPORTER, 1, &make, env));
    let segid = SegId(world.broker.last_id);
    world.act(|broker, env| broker.handle(EXPORTER, 2, &Request::Mapped { segid }, env));
    let found = (READER, 5, Reply::Segment { segid });
    assert!(world.replies.contains(&found));
}
