//! Random sequences of requests, kernels, deaths and failures: nothing
//! panics, nothing is counted wrongly, and everything is gone in the end.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Ask(u64, Request),
    Word(u32, usize, u64),
    Latest(u64, u64),
    Ring(u64, u64),
    Fail(bool),
    Pass(u64),
    Leave(u64),
    /// The broker dies and another one takes over; in the middle of a request,
    /// which is done again then.
    Die(u64, Request),
    /// What is so seldom by chance: an enclave, an arena and a generation.
    Simulate(u64),
}

/// Ids are small so that they often mean something.
fn request() -> impl Strategy<Value = Request> {
    let id = 0..24_u64;
    let names = prop_oneof![
        Just([0; NAME_BYTES]),
        Just(field("a")),
        Just(field("b")),
        Just(field("c")),
        Just([0xff; NAME_BYTES]),
    ];
    let make = (names.clone(), 0..4_u32, 1..4_u32, any::<bool>()).prop_map(
        |(name, slot, nr_banks, open)| {
            Request::ArenaMake(ArenaMake {
                name,
                nr_banks,
                retain: slot,
                reader_gid: if open { 77 } else { u32::MAX },
                ..make(slot, "x")
            })
        },
    );
    let segment = (
        names.clone(),
        0..3_u64,
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(0o600), Just(0o666), Just(0o444), Just(0)],
    );
    let segment = segment.prop_map(|(name, pages, whole, signallable, mode)| {
        Request::SegmentMake(SegmentMake {
            name,
            size_bytes: pages * 4096 + u64::from(!whole),
            mode,
            gid: 77,
            hugetlb: Hugetlb::No,
            signallable,
        })
    });
    let access = prop_oneof![Just(Access::ReadOnly), Just(Access::ReadWrite)];
    let target = (id.clone(), any::<bool>()).prop_map(|(id, is_apid)| match is_apid {
        true => Target::Access(ApId(id)),
        false => Target::Segment(SegId(id)),
    });
    let policy = prop_oneof![Just(Policy::Latest), Just(Policy::Every)];
    prop_oneof![
        1 => Just(Request::Hello { role: Role::Exporter, abi_version: 1 }),
        2 => names.clone().prop_map(|name| Request::RegisterEnclave { name }),
        1 => names.clone().prop_map(|name| Request::ForEnclave { name }),
        4 => make,
        4 => id.clone().prop_map(|id| Request::Mapped { segid: SegId(id) }),
        1 => (id.clone(), names.clone())
            .prop_map(|(id, name)| Request::Name { segid: SegId(id), name }),
        1 => id.clone().prop_map(|id| Request::ArenaEnd {
            segid: SegId(id),
            reason: EndReason::ProgramDied,
        }),
        2 => (names, 0..50_u32)
            .prop_map(|(name, timeout_ms)| Request::Lookup {
                name,
                timeout_ms,
                live_only: timeout_ms.is_multiple_of(2),
            }),
        1 => (0..3_u64).prop_map(|n| Request::MakeRoom {
            bytes: n * OBJECT_BYTES,
            huge: n == 2,
        }),
        4 => (id.clone(), access)
            .prop_map(|(id, access)| Request::Get { segid: SegId(id), access }),
        4 => segment,
        4 => (id.clone(), 0..4_u64, 0..9000_u64).prop_map(|(id, page, len)| Request::SegmentAttach {
            apid: ApId(id),
            offset: page * 4096,
            len,
        }),
        3 => target.clone().prop_map(|target| Request::Subscribe { target }),
        6 => target.prop_map(|target| Request::Signal { target }),
        1 => id.clone().prop_map(|id| Request::Info { segid: SegId(id) }),
        1 => id.clone().prop_map(|id| Request::Generations { segid: SegId(id) }),
        2 => (id.clone(), 0..5_u32)
            .prop_map(|(id, count)| Request::Retain { segid: SegId(id), count }),
        4 => (id.clone(), 0..6_u64)
            .prop_map(|(id, g)| Request::Lease { apid: ApId(id), want: Want::Exactly(g) }),
        4 => (id.clone(), policy)
            .prop_map(|(id, policy)| Request::Attach { apid: ApId(id), policy }),
        6 => (id.clone(), 0..6_u64)
            .prop_map(|(id, g)| Request::Lease { apid: ApId(id), want: Want::After(g) }),
        3 => (id.clone(), 0..6_u64)
            .prop_map(|(id, generation)| Request::ReleaseLease { apid: ApId(id), generation }),
        1 => id.clone().prop_map(|id| Request::Detach { apid: ApId(id) }),
        1 => id.clone().prop_map(|id| Request::Release { apid: ApId(id) }),
        1 => id.clone().prop_map(|id| Request::Remove { segid: SegId(id) }),
        1 => id.prop_map(|id| Request::List { after: SegId(id) }),
        1 => Just(Request::Status),
        1 => any::<bool>().prop_map(|force| Request::Shutdown { force }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..5_u64, request()).prop_map(|(peer, request)| Step::Ask(peer, request)),
        // What a kernel might write, hostile ones included.
        5 => (0..4_u32, 0..SLOTS, 0..30_u64).prop_map(|(s, i, w)| Step::Word(s, i, w)),
        2 => (0..24_u64, 0..8_u64).prop_map(|(id, g)| Step::Latest(id, g)),
        5 => (0..24_u64, 0..2000_u64).prop_map(|(id, n)| Step::Ring(id, n)),
        1 => any::<bool>().prop_map(Step::Fail),
        2 => (0..200_u64).prop_map(Step::Pass),
        1 => (0..5_u64).prop_map(Step::Leave),
        1 => (0..5_u64).prop_map(Step::Simulate),
        2 => (0..5_u64, request()).prop_map(|(peer, request)| Step::Die(peer, request)),
    ]
}

/// What must hold at any time.
fn check(world: &World) {
    let broker = &world.broker;
    let per_peer: usize = broker.peers.values().map(|peer| peer.leases).sum();
    let per_segment: u64 = broker
        .segments
        .values()
        .filter_map(|s| s.arena())
        .map(|arena| arena.leases.readers())
        .sum();
    assert_eq!(per_peer as u64, per_segment, "leases are lost or invented");
    assert!(broker.peers.values().all(|p| p.leases <= MAX_LEASES));
    for (apid, grant) in &broker.grants {
        assert!(broker.peers[&grant.peer()].apids.contains(apid));
        assert!(broker.segments[&grant.segid()].apids.contains(apid));
    }
    for (id, peer) in &broker.peers {
        let exported = |segid: &SegId| {
            let segment = &broker.segments[segid];
            segment.exporter == *id && segment.end_reason.is_none() && segment.arena().is_none()
        };
        assert!(peer.segments.iter().all(exported));
    }
    let apids: usize = broker.peers.values().map(|peer| peer.apids.len()).sum();
    assert_eq!(apids, broker.grants.len());
}

fn simulate(world: &mut World, peer: PeerId) {
    if !world.broker.peers.contains_key(&peer) {
        world.connect(peer, OWNER, Role::Exporter);
    }
    let name = field(if peer.0.is_multiple_of(2) {
        "even"
    } else {
        "odd"
    });
    let mut ask = |request| world.act(|broker, env| broker.handle(peer, 1, &request, env));
    ask(Request::RegisterEnclave { name });
    ask(Request::ArenaMake(make(0, "a")));
    let segid = SegId(world.broker.last_id);
    world.act(|broker, env| broker.handle(peer, 1, &Request::Mapped { segid }, env));
    if let Some(&enclave) = world.broker.enclaves.keys().next_back() {
        world.publish(enclave, segid, 0, 3);
    }
}

fn run(steps: Vec<Step>) {
    let mut world = World::new();
    let uids = [OWNER, OWNER, OWNER, 0, 2000];
    for step in steps {
        match step {
            Step::Ask(peer, request) => {
                let id = PeerId(peer);
                if !world.broker.peers.contains_key(&id) {
                    let uid = uids[usize::try_from(peer).expect("small")];
                    world.connect(id, uid, Role::Exporter);
                }
                world.act(|broker, env| broker.handle(id, 1, &request, env));
            }
            Step::Word(slot, index, word) => {
                for &enclave in world.broker.enclaves.keys() {
                    world.memory.set(enclave, slot, index, Slot::decode(word));
                }
            }
            Step::Latest(segid, generation) => {
                let mut latest = world.memory.latest.borrow_mut();
                latest.insert(SegId(segid), generation);
            }
            Step::Ring(segid, rings) => {
                world.act(|broker, env| broker.doorbell(SegId(segid), rings, env));
            }
            Step::Fail(fails) => world.fails = fails.then_some(Errno::NOMEM),
            Step::Pass(ms) => {
                world.now_ms += ms;
                world.act(|broker, env| broker.tick(env));
            }
            Step::Leave(peer) => world.disconnect(PeerId(peer)),
            Step::Die(peer, request) => {
                let id = PeerId(peer);
                world.die_in(|broker, env| broker.handle(id, 1, &request, env));
                check(&world);
                world.act(|broker, env| broker.handle(id, 1, &request, env));
            }
            Step::Simulate(peer) => simulate(&mut world, PeerId(peer)),
        }
        check(&world);
    }
    for peer in 0..5 {
        world.disconnect(PeerId(peer));
        check(&world);
    }
    world.now_ms += 60_000;
    world.act(|broker, env| broker.tick(env));
    let broker = &world.broker;
    assert!(broker.peers.is_empty() && broker.enclaves.is_empty());
    assert!(broker.segments.is_empty() && broker.grants.is_empty());
    assert!(broker.names.is_empty());
    // Nothing but the lingering is waited for.
    let linger = broker.idle_since_ms.map(|since| since + 2000);
    assert!(linger.is_some() && broker.next_deadline() == linger);
    let count = |wanted: fn(&Effect) -> bool| {
        let effects = world.effects.iter();
        effects.filter(|effect| wanted(effect)).count()
    };
    assert_eq!(
        count(|e| matches!(e, Effect::MakeArena { .. } | Effect::MakeSegment { .. })),
        count(|e| matches!(e, Effect::DropArena(_) | Effect::DropSegment(_))),
        "an object is left over"
    );
    assert!(world.eventfds.is_empty(), "an eventfd is left over");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_sequence_panics_miscounts_or_leaves_anything(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        run(steps);
    }
}
