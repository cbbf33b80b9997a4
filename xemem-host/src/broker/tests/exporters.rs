//! Hello, enclaves, arenas, names, lists, doorbells, shutdown.

use super::*;

#[test]
fn hello_must_come_first_and_once() {
    let mut world = World::new();
    let nobody = Credentials {
        uid: 5,
        gid: 5,
        groups: Vec::new(),
    };
    world.act(|broker, _| broker.connected(READER, nobody));
    assert_eq!(world.errno(READER, Request::Status), Errno::PROTO);
    assert!(world.effects.contains(&Effect::Disconnect(READER)));

    world.connect(EXPORTER, OWNER, Role::Exporter);
    let (role, abi_version) = (Role::Exporter, enclave_abi::ABI_VERSION);
    let again = Request::Hello { role, abi_version };
    assert_eq!(world.errno(EXPORTER, again), Errno::PROTO);
    assert!(world.broker.peers.is_empty());
    assert_eq!(world.broker.protocol_errors, 2);
}

#[test]
fn another_abi_version_is_refused_with_a_reason_and_dropped() {
    let mut world = World::new();
    let nobody = Credentials {
        uid: 5,
        gid: 5,
        groups: Vec::new(),
    };
    world.act(|broker, _| broker.connected(READER, nobody));
    let role = Role::Consumer;
    let abi_version = enclave_abi::ABI_VERSION + 1;
    let reply = world.ask(READER, Request::Hello { role, abi_version });
    let Reply::Error { text, .. } = reply else {
        panic!("{reply:?}");
    };
    let wanted = format!("abi version {abi_version} is not {}", abi_version - 1);
    assert!(text.contains(&wanted), "{text}");
    assert!(world.effects.contains(&Effect::Disconnect(READER)));
}

#[test]
fn only_an_exporter_registers_one_enclave_of_a_free_name() {
    let mut world = World::peopled();
    world.enclave();
    let name = field("a1");
    let again = Request::RegisterEnclave { name };
    assert_eq!(world.errno(EXPORTER, again), Errno::EXIST);
    assert_eq!(world.errno(READER, again), Errno::PERM);
    world.connect(PeerId(9), OWNER, Role::Exporter);
    assert_eq!(world.errno(PeerId(9), again), Errno::EXIST);
    let name = [b'x'; NAME_BYTES];
    let unnamed = Request::RegisterEnclave { name };
    assert_eq!(world.errno(PeerId(9), unnamed), Errno::INVAL);
    world.disconnect(EXPORTER);
    assert_eq!(world.ask(PeerId(9), again), Reply::LeasePage);
}

#[test]
fn impossible_arenas_are_refused_and_leave_nothing() {
    let mut world = World::peopled();
    let early = world.errno(EXPORTER, Request::ArenaMake(make(0, "flux")));
    assert_eq!(early, Errno::PERM);
    world.enclave();
    let spoilt: [fn(&mut ArenaMake); 6] = [
        |make| make.slot = 32,
        |make| make.size_bytes = 4097,
        |make| make.chunk_bytes = 8192,
        |make| make.nr_banks = 1,
        |make| make.hugetlb = Hugetlb::Yes,
        |make| make.name = [0xff; NAME_BYTES],
    ];
    for spoil in spoilt {
        let mut request = make(0, "flux");
        spoil(&mut request);
        let errno = world.errno(EXPORTER, Request::ArenaMake(request));
        assert_eq!(errno, Errno::INVAL, "{request:?}");
    }
    assert!(world.broker.segments.is_empty());
    assert!(world.broker.names.is_empty());
    world.arena(0, "flux");
    let same_slot = world.errno(EXPORTER, Request::ArenaMake(make(0, "other")));
    assert_eq!(same_slot, Errno::BUSY);
    let same_name = world.errno(EXPORTER, Request::ArenaMake(make(1, "flux")));
    assert_eq!(same_name, Errno::EXIST);
    assert_eq!(world.broker.segments.len(), 1);
}

#[test]
fn what_the_system_refuses_is_undone() {
    let mut world = World::peopled();
    world.fails = Some(Errno::MFILE);
    let name = field("a1");
    let register = Request::RegisterEnclave { name };
    assert_eq!(world.errno(EXPORTER, register), Errno::MFILE);
    world.fails = None;
    world.enclave();
    world.fails = Some(Errno::NOMEM);
    let refused = world.errno(EXPORTER, Request::ArenaMake(make(0, "flux")));
    assert_eq!(refused, Errno::NOMEM);
    assert!(world.broker.segments.is_empty());
    world.fails = None;
    let segid = world.arena(0, "flux");
    let access = Access::ReadOnly;
    let Reply::Granted { apid } = world.ask(READER, Request::Get { segid, access }) else {
        panic!("no access");
    };
    world.fails = Some(Errno::MFILE);
    let policy = Policy::Latest;
    let attach = Request::Attach { apid, policy };
    assert_eq!(world.errno(READER, attach), Errno::MFILE);
    world.fails = None;
    assert!(matches!(world.ask(READER, attach), Reply::Attached(_)));
}

#[test]
fn an_arena_that_cannot_be_sealed_ends() {
    let mut world = World::peopled();
    world.enclave();
    let Reply::Arena { segid, .. } = world.ask(EXPORTER, Request::ArenaMake(make(0, "flux")))
    else {
        panic!("no arena");
    };
    world.fails = Some(Errno::PERM);
    let mapped = Request::Mapped { segid };
    assert_eq!(world.errno(EXPORTER, mapped), Errno::PERM);
    assert!(world.effects.contains(&Effect::DropArena(segid)));
    assert!(world.broker.names.is_empty());
}

#[test]
fn a_name_is_found_only_once_the_arena_is_mapped() {
    let mut world = World::peopled();
    world.enclave();
    let name = field("flux");
    let timeout_ms = 0;
    let lookup = Request::Lookup {
        name,
        timeout_ms,
        live_only: false,
    };
    let Reply::Arena { segid, .. } = world.ask(EXPORTER, Request::ArenaMake(make(0, "flux")))
    else {
        panic!("no arena");
    };
    assert_eq!(world.errno(READER, lookup), Errno::NOENT);
    let access = Access::ReadOnly;
    let get = Request::Get { segid, access };
    assert_eq!(world.errno(READER, get), Errno::BADFD);
    let mapped = Request::Mapped { segid };
    assert_eq!(world.errno(READER, mapped), Errno::PERM);
    assert_eq!(world.ask(EXPORTER, mapped), Reply::Ok);
    assert_eq!(world.ask(READER, lookup), Reply::Segment { segid });
    assert_eq!(world.errno(EXPORTER, mapped), Errno::BADFD);
}

#[test]
fn a_waiting_lookup_is_answered_by_name_alias_or_time() {
    let mut world = World::peopled();
    world.enclave();
    let wait = |name| Request::Lookup {
        name: field(name),
        timeout_ms: 100,
        live_only: false,
    };
    world.replies.clear();
    world.act(|broker, env| broker.handle(READER, 5, &wait("flux"), env));
    world.act(|broker, env| broker.handle(OTHER, 6, &wait("alias"), env));
    assert!(world.replies.is_empty());
    assert_eq!(world.broker.next_deadline(), Some(100));
    assert_eq!(world.errno(READER, wait("flux")), Errno::BUSY);

    world.replies.clear();
    let make = Request::ArenaMake(make(0, "flux"));
    world.act(|broker, env| broker.handle(EXPORTER, 1, &make, env));
    let segid = *world.broker.segments.keys().next().expect("an arena");
    let mapped = Request::Mapped { segid };
    world.act(|broker, env| broker.handle(EXPORTER, 2, &mapped, env));
    let found = Reply::Segment { segid };
    assert!(world.replies.contains(&(READER, 5, found.clone())));
    let name = field("alias");
    let alias = Request::Name { segid, name };
    world.act(|broker, env| broker.handle(EXPORTER, 3, &alias, env));
    assert!(world.replies.contains(&(OTHER, 6, found)));

    world.replies.clear();
    world.act(|broker, env| broker.handle(READER, 7, &wait("never"), env));
    world.now_ms = 99;
    world.act(|broker, env| broker.tick(env));
    assert!(world.replies.is_empty());
    world.now_ms = 100;
    world.act(|broker, env| broker.tick(env));
    let (peer, seq, reply) = world.replies.pop().expect("an answer");
    assert_eq!((peer, seq), (READER, 7));
    let timed_out = Errno::TIMEDOUT.raw_os_error().unsigned_abs();
    assert!(matches!(reply, Reply::Error { errno, .. } if errno == timed_out));
}

#[test]
fn a_segment_has_a_bounded_number_of_names_nobody_else_has() {
    let mut world = World::peopled();
    world.enclave();
    let (one, two) = (world.arena(0, ""), world.arena(1, "two"));
    let named = |segid, name: &str| Request::Name {
        segid,
        name: field(name),
    };
    assert_eq!(world.errno(EXPORTER, named(one, "two")), Errno::EXIST);
    for n in 0..8 {
        let name = format!("one-{n}");
        assert_eq!(world.ask(EXPORTER, named(one, &name)), Reply::Ok);
    }
    assert_eq!(world.errno(EXPORTER, named(one, "more")), Errno::MLINK);
    assert_eq!(world.errno(READER, named(two, "mine")), Errno::PERM);
    let Reply::Segments(infos) = world.ask(READER, Request::List { after: SegId(0) }) else {
        panic!("no list");
    };
    assert_eq!(infos[0].name, "one-0");
    let segid = one;
    assert_eq!(world.ask(READER, Request::Remove { segid }), Reply::Ok);
    assert_eq!(world.ask(EXPORTER, named(two, "one-3")), Reply::Ok);
}

#[test]
fn lists_come_in_pages_that_end() {
    let mut world = World::peopled();
    world.enclave();
    let segids: Vec<SegId> = (0..20).map(|slot| world.arena(slot, "")).collect();
    let mut seen = Vec::new();
    let mut after = SegId(0);
    loop {
        let Reply::Segments(page) = world.ask(READER, Request::List { after }) else {
            panic!("no list");
        };
        assert!(page.len() <= crate::wire::LIST_PAGE);
        let Some(last) = page.last() else { break };
        after = last.segid;
        assert!(page.iter().all(|info| info.state == SegmentState::Live));
        assert!(page.iter().all(|info| info.enclave == "a1"));
        seen.extend(page.iter().map(|info| info.segid));
    }
    assert_eq!(seen, segids);
    let after = SegId(u64::MAX);
    assert_eq!(
        world.ask(READER, Request::List { after }),
        Reply::Segments(Vec::new())
    );
}

#[test]
fn a_slot_is_free_again_after_its_arena_has_ended() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    world.publish(enclave, segid, 3, 8);
    let reason = EndReason::ClosedByProgram;
    let end = Request::ArenaEnd { segid, reason };
    assert_eq!(world.errno(READER, end), Errno::PERM);
    assert_eq!(world.ask(EXPORTER, end), Reply::Ok);
    assert_eq!(world.memory.slot(enclave, 0, 3), Slot::Empty);
    // Once more is no mistake: it is retained and ends once.
    assert_eq!(world.ask(EXPORTER, end), Reply::Ok);
    let next = world.arena(0, "flux");
    let segid = next;
    let end = Request::ArenaEnd { segid, reason };
    assert_eq!(world.ask(EXPORTER, end), Reply::Ok);
    assert_eq!(world.errno(EXPORTER, end), Errno::NOENT, "it had nothing");
}

#[test]
fn remove_is_for_the_owner_and_root() {
    let mut world = World::peopled();
    world.enclave();
    let segid = world.arena(0, "flux");
    let remove = Request::Remove { segid };
    assert_eq!(world.errno(OTHER, remove), Errno::ACCESS);
    assert_eq!(world.ask(READER, remove), Reply::Ok);
    let segid = world.arena(1, "flux");
    world.connect(PeerId(9), 0, Role::Consumer);
    let remove = Request::Remove { segid };
    assert_eq!(world.ask(PeerId(9), remove), Reply::Ok);
}

#[test]
fn a_doorbell_over_budget_is_paused_counted_and_resumed() {
    let mut world = World::peopled();
    let enclave = world.enclave();
    let segid = world.arena(0, "flux");
    let apid = world.attach(READER, segid, Policy::Latest);
    world.publish(enclave, segid, 0, 1);
    world.act(|broker, env| broker.doorbell(segid, 1_000_000, env));
    assert!(world.effects.contains(&Effect::PauseDoorbell(segid)));
    // Late it may be, but not lost.
    assert_eq!(world.notified(apid), 1);
    assert_eq!(world.status(READER).throttled, 1);
    assert_eq!(world.broker.next_deadline(), Some(PAUSE_MS));
    world.now_ms = PAUSE_MS;
    world.act(|broker, env| broker.tick(env));
    assert!(world.effects.contains(&Effect::ResumeDoorbell(segid)));
    assert_eq!(world.broker.next_deadline(), None);
}

#[test]
fn shutdown_is_for_the_owner_and_only_when_unused() {
    let mut world = World::peopled();
    let ask = |force| Request::Shutdown { force };
    assert_eq!(world.errno(OTHER, ask(true)), Errno::PERM);
    world.enclave();
    assert_eq!(world.errno(READER, ask(false)), Errno::BUSY);
    assert!(!world.effects.contains(&Effect::Exit));
    assert_eq!(world.ask(READER, ask(true)), Reply::Ok);
    assert!(world.effects.contains(&Effect::Exit));
    let mut world = World::peopled();
    assert_eq!(world.ask(READER, ask(false)), Reply::Ok);
    assert!(world.effects.contains(&Effect::Exit));
}

#[test]
fn a_broker_without_clients_ends_after_lingering() {
    let mut world = World::new();
    assert_eq!(world.broker.next_deadline(), Some(2000));
    world.connect(READER, OWNER, Role::Consumer);
    world.now_ms = 10_000;
    world.act(|broker, env| broker.tick(env));
    assert!(!world.effects.contains(&Effect::Exit));
    world.disconnect(READER);
    world.now_ms = 11_999;
    world.act(|broker, env| broker.tick(env));
    assert!(!world.effects.contains(&Effect::Exit));
    world.now_ms = 12_000;
    world.act(|broker, env| broker.tick(env));
    assert!(world.effects.contains(&Effect::Exit));
}

#[test]
fn clients_are_bounded() {
    let mut world = World::new();
    for n in 0..256 {
        world.connect(PeerId(n), OWNER, Role::Consumer);
    }
    let one_more = Credentials {
        uid: OWNER,
        gid: OWNER,
        groups: Vec::new(),
    };
    world.act(|broker, _| broker.connected(PeerId(256), one_more));
    assert!(world.effects.contains(&Effect::Disconnect(PeerId(256))));
    assert!(matches!(
        world.replies.last(),
        Some((PeerId(256), 0, Reply::Error { .. }))
    ));
    assert_eq!(world.status(PeerId(0)).clients, 256);
}

#[test]
fn one_user_cannot_take_all_connections_or_segments() {
    let mut world = World::new();
    for n in 0..128 {
        world.connect(PeerId(n), 2000, Role::Exporter);
    }
    let one_more = Credentials {
        uid: 2000,
        gid: 2000,
        groups: Vec::new(),
    };
    world.act(|broker, _| broker.connected(PeerId(128), one_more));
    assert!(world.effects.contains(&Effect::Disconnect(PeerId(128))));
    world.connect(PeerId(129), 2001, Role::Consumer);

    let mut made = 0;
    for n in 0..17 {
        let name = field(&format!("e{n}"));
        world.ask(PeerId(n), Request::RegisterEnclave { name });
        for slot in 0..32 {
            let reply = world.ask(PeerId(n), Request::ArenaMake(make(slot, "")));
            made += usize::from(matches!(reply, Reply::Arena { .. }));
        }
    }
    assert_eq!(made, MAX_SEGMENTS_PER_USER);
    world.connect(EXPORTER_OF_OWNER, OWNER, Role::Exporter);
    let name = field("a1");
    world.ask(EXPORTER_OF_OWNER, Request::RegisterEnclave { name });
    let reply = world.ask(EXPORTER_OF_OWNER, Request::ArenaMake(make(0, "")));
    assert!(matches!(reply, Reply::Arena { .. }));
}

/// Not among the peers of the greedy user.
const EXPORTER_OF_OWNER: PeerId = PeerId(1000);

#[test]
fn segments_are_bounded() {
    let mut world = World::new();
    let mut made = 0;
    for n in 0..33 {
        let peer = PeerId(n);
        world.connect(peer, OWNER, Role::Exporter);
        let name = field(&format!("e{n}"));
        world.ask(peer, Request::RegisterEnclave { name });
        for slot in 0..32 {
            let request = Request::ArenaMake(make(slot, ""));
            match world.ask(peer, request) {
                Reply::Arena { .. } => made += 1,
                Reply::Error { errno, .. } => {
                    assert_eq!(errno, Errno::NOSPC.raw_os_error().unsigned_abs());
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(made, MAX_SEGMENTS);
}
