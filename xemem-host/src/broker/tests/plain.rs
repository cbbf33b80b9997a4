//! Plain segments: permits, pieces, signals, ends.

use super::*;

fn request(name: &str, mode: u32, signallable: bool) -> SegmentMake {
    SegmentMake {
        name: name_field(name).unwrap_or([0; NAME_BYTES]),
        size_bytes: 4 * 4096,
        mode,
        gid: NO_GROUP,
        hugetlb: Hugetlb::No,
        signallable,
    }
}

impl World {
    fn segment(&mut self, make: SegmentMake) -> SegId {
        let made = self.ask(EXPORTER, Request::SegmentMake(make));
        let Reply::Made { segid, .. } = made else {
            panic!("no segment: {made:?}");
        };
        assert_eq!(self.ask(EXPORTER, Request::Mapped { segid }), Reply::Ok);
        segid
    }

    fn got(&mut self, peer: PeerId, segid: SegId) -> ApId {
        let access = Access::ReadOnly;
        match self.ask(peer, Request::Get { segid, access }) {
            Reply::Granted { apid } => apid,
            other => panic!("no access: {other:?}"),
        }
    }

    fn subscribed(&mut self, peer: PeerId, target: Target) {
        let reply = self.ask(peer, Request::Subscribe { target });
        assert_eq!(reply, Reply::Subscribed);
    }

    fn info(&mut self, segid: SegId) -> SegmentInfo {
        match self.ask(READER, Request::Info { segid }) {
            Reply::Segments(mut infos) => infos.pop().expect("one line"),
            other => panic!("no info: {other:?}"),
        }
    }

    /// Everything added to the eventfd of `target` so far.
    fn waited(&self, target: Target) -> u64 {
        let added = |e: &Effect| match e {
            Effect::Notify { target: of, count } if *of == target => Some(*count),
            _ => None,
        };
        self.effects.iter().filter_map(added).sum()
    }
}

#[test]
fn the_permit_decides_by_user_group_and_mode() {
    // (mode, gid, access of the owner's peer, of a group member, of another)
    let rows = [
        (0o600, NO_GROUP, "rw", "-", "-"),
        (0o640, 77, "rw", "r", "r"),
        (0o660, 2000, "rw", "-", "rw"),
        (0o604, 2000, "rw", "r", "-"),
        (0o444, NO_GROUP, "r", "r", "r"),
        (0o046, 2000, "-", "rw", "r"),
        (0o000, 77, "-", "-", "-"),
    ];
    for (mode, gid, owner, member, other) in rows {
        let mut world = World::peopled();
        world.connect(PeerId(4), 3000, Role::Consumer);
        // Peers of World all have group 77 besides; the fourth is of 3000.
        let make = SegmentMake {
            gid,
            ..request("x", mode, false)
        };
        let segid = world.segment(make);
        let mut may = |peer| {
            let mut got = |access| match world.ask(peer, Request::Get { segid, access }) {
                Reply::Granted { .. } => true,
                Reply::Error { errno, .. } => {
                    assert_eq!(errno, Errno::ACCESS.raw_os_error().unsigned_abs());
                    false
                }
                other => panic!("{other:?}"),
            };
            match (got(Access::ReadOnly), got(Access::ReadWrite)) {
                (false, false) => "-",
                (true, false) => "r",
                (true, true) => "rw",
                (false, true) => panic!("writing without reading"),
            }
        };
        assert_eq!(may(READER), owner, "owner, {mode:o}");
        assert_eq!(may(PeerId(4)), member, "3000, {mode:o}");
        assert_eq!(may(OTHER), other, "2000, {mode:o}");
    }
}

#[test]
fn root_passes_every_permit_but_cannot_write_where_nobody_may() {
    let mut world = World::peopled();
    world.connect(PeerId(4), 0, Role::Consumer);
    let shut = world.segment(request("", 0o200, false));
    let read_only = world.segment(request("", 0o444, false));
    let access = Access::ReadWrite;
    let get = |segid| Request::Get { segid, access };
    assert!(matches!(
        world.ask(PeerId(4), get(shut)),
        Reply::Granted { .. }
    ));
    assert_eq!(world.errno(PeerId(4), get(read_only)), Errno::ACCESS);
    assert_eq!(world.errno(EXPORTER, get(read_only)), Errno::ACCESS);
}

#[test]
fn impossible_segments_are_refused_and_leave_nothing() {
    let mut world = World::peopled();
    let spoilt: [fn(&mut SegmentMake); 5] = [
        |make| make.size_bytes = 4097,
        |make| make.size_bytes = 0,
        |make| make.mode = 0o1777,
        |make| make.hugetlb = Hugetlb::Yes,
        |make| make.name = [0xff; NAME_BYTES],
    ];
    for spoil in spoilt {
        let mut make = request("x", 0o600, false);
        spoil(&mut make);
        let errno = world.errno(EXPORTER, Request::SegmentMake(make));
        assert_eq!(errno, Errno::INVAL, "{make:?}");
    }
    let make = Request::SegmentMake(request("x", 0o600, false));
    assert_eq!(world.errno(READER, make), Errno::PERM);
    world.fails = Some(Errno::NOMEM);
    assert_eq!(world.errno(EXPORTER, make), Errno::NOMEM);
    world.fails = None;
    assert!(world.broker.segments.is_empty() && world.broker.names.is_empty());
    assert!(world.broker.peers[&EXPORTER].segments.is_empty());
    world.segment(request("x", 0o600, false));
    assert_eq!(world.errno(EXPORTER, make), Errno::EXIST);
}

#[test]
fn a_segment_is_found_and_got_only_once_it_is_mapped() {
    let mut world = World::peopled();
    let made = world.ask(EXPORTER, Request::SegmentMake(request("x", 0o666, true)));
    let Reply::Made { segid, .. } = made else {
        panic!("no segment: {made:?}");
    };
    let (name, timeout_ms) = (field("x"), 0);
    let lookup = Request::Lookup {
        name,
        timeout_ms,
        live_only: false,
    };
    let access = Access::ReadOnly;
    assert_eq!(world.errno(READER, lookup), Errno::NOENT);
    let get = Request::Get { segid, access };
    assert_eq!(world.errno(READER, get), Errno::BADFD);
    let mapped = Request::Mapped { segid };
    assert_eq!(world.errno(READER, mapped), Errno::PERM);
    world.fails = Some(Errno::PERM);
    assert_eq!(world.errno(EXPORTER, mapped), Errno::PERM);
    assert!(world.broker.segments.is_empty(), "half sealed");
}

#[test]
fn pieces_are_inside_begin_at_pages_and_are_counted() {
    let mut world = World::peopled();
    let segid = world.segment(request("x", 0o600, false));
    let apid = world.got(READER, segid);
    let piece = |apid, offset, len| Request::SegmentAttach { apid, offset, len };
    let size = 4 * 4096;
    for (offset, len) in [
        (0, 0),
        (1, 1),
        (size, 1),
        (0, size + 1),
        (4096, size),
        (u64::MAX - 4095, 4096),
        (0, u64::MAX),
    ] {
        let errno = world.errno(READER, piece(apid, offset, len));
        assert_eq!(errno, Errno::INVAL, "{offset} {len}");
    }
    for (offset, len) in [(0, 1), (0, size), (4096, size - 4096), (3 * 4096, 4096)] {
        let reply = world.ask(READER, piece(apid, offset, len));
        assert!(matches!(reply, Reply::Memory(memory) if memory.size_bytes == size));
    }
    assert_eq!(world.broker.grants[&apid].pieces, 4);
    assert_eq!(world.info(segid).readers, 1);
    for _ in 0..4 {
        assert_eq!(world.ask(READER, Request::Detach { apid }), Reply::Ok);
    }
    let detach = Request::Detach { apid };
    assert_eq!(world.errno(READER, detach), Errno::NOTCONN);
    assert_eq!(world.errno(OTHER, piece(apid, 0, 1)), Errno::BADF);
    assert_eq!(world.ask(READER, Request::Release { apid }), Reply::Ok);
    assert_eq!(world.errno(READER, piece(apid, 0, 1)), Errno::BADF);
}

#[test]
fn verbs_of_one_kind_are_refused_by_the_other() {
    let mut world = World::peopled();
    world.enclave();
    let arena = world.arena(0, "flux");
    let plain = world.segment(request("x", 0o600, true));
    let (to_arena, to_plain) = (world.got(READER, arena), world.got(READER, plain));
    let policy = Policy::Latest;
    let apid = to_plain;
    let attach = Request::Attach { apid, policy };
    assert_eq!(world.errno(READER, attach), Errno::INVAL);
    let want = Want::Latest;
    let lease = Request::Lease { apid, want };
    assert_eq!(world.errno(READER, lease), Errno::NOTCONN);
    let (segid, reason) = (plain, EndReason::ProgramDied);
    let end = Request::ArenaEnd { segid, reason };
    assert_eq!(world.errno(EXPORTER, end), Errno::INVAL);
    let (apid, offset, len) = (to_arena, 0, 4096);
    let piece = Request::SegmentAttach { apid, offset, len };
    assert_eq!(world.errno(READER, piece), Errno::INVAL);
    let target = Target::Segment(arena);
    let signal = Request::Signal { target };
    assert_eq!(world.errno(EXPORTER, signal), Errno::INVAL);
    let target = Target::Access(to_arena);
    let subscribe = Request::Subscribe { target };
    assert_eq!(world.errno(READER, subscribe), Errno::INVAL);
    // A plain segment of an enclave's exporter shows whose it is.
    let info = world.info(plain);
    assert_eq!(
        (info.kind, info.enclave.as_str()),
        (SegmentKind::Plain, "a1")
    );
    assert_eq!((info.mode, info.chunk_bytes), (0o600, 0));
    assert_eq!(world.info(arena).mode, 0o400);
}

#[test]
fn a_signal_reaches_every_subscriber_but_its_sender() {
    let mut world = World::peopled();
    let segid = world.segment(request("x", 0o666, true));
    let one = Target::Access(world.got(READER, segid));
    let two = Target::Access(world.got(OTHER, segid));
    let exporter = Target::Segment(segid);
    for (peer, target) in [(READER, one), (OTHER, two), (EXPORTER, exporter)] {
        world.subscribed(peer, target);
        let again = Request::Subscribe { target };
        assert_eq!(world.errno(peer, again), Errno::EXIST);
    }
    let waited = |world: &World| [one, two, exporter].map(|target| world.waited(target));
    let mut signal = |peer, target| {
        let reply = world.ask(peer, Request::Signal { target });
        assert_eq!(reply, Reply::Ok);
        waited(&world)
    };
    assert_eq!(signal(EXPORTER, exporter), [1, 1, 0]);
    assert_eq!(signal(READER, one), [1, 2, 1]);
    assert_eq!(signal(OTHER, two), [2, 2, 2]);
    // By segid, from outside: get, signal, release.
    assert_eq!(signal(READER, exporter), [3, 3, 3]);
    assert_eq!(world.info(segid).signals, 4);
}

#[test]
fn signals_need_a_signallable_live_segment_and_permission() {
    let mut world = World::peopled();
    let mute = world.segment(request("mute", 0o666, false));
    let shut = world.segment(request("shut", 0o600, true));
    let target = Target::Segment(mute);
    let signal = |target| Request::Signal { target };
    assert_eq!(world.errno(READER, signal(target)), Errno::ACCESS);
    let subscribe = Request::Subscribe { target };
    assert_eq!(world.errno(EXPORTER, subscribe), Errno::ACCESS);
    assert_eq!(world.errno(READER, subscribe), Errno::PERM);
    let target = Target::Segment(shut);
    assert_eq!(world.errno(OTHER, signal(target)), Errno::ACCESS);
    let nobody = Target::Access(ApId(999));
    assert_eq!(world.errno(READER, signal(nobody)), Errno::BADF);
    let nothing = Target::Segment(SegId(999));
    assert_eq!(world.errno(READER, signal(nothing)), Errno::NOENT);
    let of_reader = Target::Access(world.got(READER, shut));
    assert_eq!(world.errno(EXPORTER, signal(of_reader)), Errno::BADF);
    world.ask(EXPORTER, Request::Remove { segid: shut });
    assert_eq!(world.errno(READER, signal(of_reader)), Errno::IDRM);
    let subscribe = Request::Subscribe { target: of_reader };
    assert_eq!(world.errno(READER, subscribe), Errno::IDRM);
    let (apid, offset, len) = (ApId(999), 0, 1);
    let stale = Request::SegmentAttach { apid, offset, len };
    assert_eq!(world.errno(READER, stale), Errno::BADF);
}

#[test]
fn a_flood_is_handed_on_in_pauses_counted_and_complete() {
    let mut world = World::peopled();
    let segid = world.segment(request("x", 0o600, true));
    let target = Target::Access(world.got(READER, segid));
    world.subscribed(READER, target);
    let sender = Target::Segment(segid);
    // The budget of World is 1000 at once and per second.
    for _ in 0..5000 {
        let request = Request::Signal { target: sender };
        assert_eq!(world.ask(EXPORTER, request), Reply::Ok);
    }
    assert_eq!(world.waited(target), 1000);
    assert_eq!(world.info(segid).throttled, 1);
    assert_eq!(world.status(READER).throttled, 1);
    assert_eq!(world.broker.next_deadline(), Some(PAUSE_MS));
    world.now_ms = PAUSE_MS;
    world.act(|broker, env| broker.tick(env));
    assert_eq!(world.waited(target), 5000);
    assert_eq!(world.info(segid).signals, 5000);
    let notified = world.effects.iter();
    let notified = notified.filter(|e| matches!(e, Effect::Notify { .. }));
    assert_eq!(notified.count(), 1001);
}

#[test]
fn the_end_comes_after_what_is_pending_and_to_everybody() {
    for by_remove in [true, false] {
        let mut world = World::peopled();
        let segid = world.segment(request("x", 0o666, true));
        let apid = world.got(READER, segid);
        let target = Target::Access(apid);
        let exporter = Target::Segment(segid);
        world.subscribed(READER, target);
        world.subscribed(EXPORTER, exporter);
        for _ in 0..1500 {
            world.ask(EXPORTER, Request::Signal { target: exporter });
        }
        if by_remove {
            assert_eq!(world.errno(OTHER, Request::Remove { segid }), Errno::ACCESS);
            assert_eq!(world.ask(READER, Request::Remove { segid }), Reply::Ok);
            assert_eq!(world.errno(READER, Request::Remove { segid }), Errno::IDRM);
            assert_eq!(world.waited(exporter), WAIT_END);
        } else {
            world.disconnect(EXPORTER);
        }
        assert_eq!(world.waited(target), 1500 + WAIT_END);
        let info = world.info(segid);
        let reason = if by_remove {
            EndReason::Removed
        } else {
            EndReason::ExporterGone
        };
        assert_eq!(info.end_reason, Some(reason));
        let (offset, len) = (0, 1);
        let attach = Request::SegmentAttach { apid, offset, len };
        assert_eq!(world.errno(READER, attach), Errno::IDRM);
        // Nothing more is due, and nothing is left when the last one goes.
        world.now_ms = 10_000;
        world.act(|broker, env| broker.tick(env));
        assert_eq!(world.waited(target), 1500 + WAIT_END);
        assert_eq!(world.ask(READER, Request::Release { apid }), Reply::Ok);
        assert!(world.effects.contains(&Effect::DropSegment(segid)));
        assert!(world.effects.contains(&Effect::DropNotify(target)));
        assert!(world.effects.contains(&Effect::DropNotify(exporter)));
        assert!(world.broker.segments.is_empty());
    }
}

#[test]
fn a_segment_for_signals_only_has_no_memory() {
    let mut world = World::peopled();
    let make = SegmentMake {
        size_bytes: 0,
        ..request("bell", 0o600, true)
    };
    let segid = world.segment(make);
    let apid = world.got(READER, segid);
    let (offset, len) = (0, 1);
    let attach = Request::SegmentAttach { apid, offset, len };
    assert_eq!(world.errno(READER, attach), Errno::INVAL);
    let target = Target::Access(apid);
    world.subscribed(READER, target);
    let signal = Request::Signal {
        target: Target::Segment(segid),
    };
    assert_eq!(world.ask(EXPORTER, signal), Reply::Ok);
    assert_eq!(world.waited(target), 1);
    world.disconnect(EXPORTER);
    world.disconnect(READER);
    let of_objects = |e: &&Effect| matches!(e, Effect::MakeSegment { .. } | Effect::DropSegment(_));
    assert_eq!(world.effects.iter().filter(of_objects).count(), 0);
}

#[test]
fn a_name_waited_for_is_found_when_the_segment_is_mapped() {
    let mut world = World::peopled();
    let (name, timeout_ms) = (field("late"), 100);
    let lookup = Request::Lookup {
        name,
        timeout_ms,
        live_only: false,
    };
    world.replies.clear();
    world.act(|broker, env| broker.handle(READER, 5, &lookup, env));
    let make = Request::SegmentMake(request("late", 0o600, false));
    world.act(|broker, env| broker.handle(EXPORTER, 1, &make, env));
    let segid = *world.broker.segments.keys().next().expect("a segment");
    let found = (READER, 5, Reply::Segment { segid });
    assert!(!world.replies.contains(&found));
    world.act(|broker, env| broker.handle(EXPORTER, 2, &Request::Mapped { segid }, env));
    assert!(world.replies.contains(&found));
}

#[test]
fn a_user_has_a_bounded_number_of_segments() {
    let mut world = World::peopled();
    world.connect(PeerId(4), 2000, Role::Exporter);
    let make = Request::SegmentMake(request("", 0o600, false));
    for _ in 0..MAX_SEGMENTS_PER_USER {
        assert!(matches!(world.ask(PeerId(4), make), Reply::Made { .. }));
    }
    assert_eq!(world.errno(PeerId(4), make), Errno::NOSPC);
    assert!(matches!(world.ask(EXPORTER, make), Reply::Made { .. }));
    let shutdown = Request::Shutdown { force: false };
    assert_eq!(world.errno(READER, shutdown), Errno::BUSY);
    world.disconnect(PeerId(4));
    world.disconnect(EXPORTER);
    assert!(world.broker.segments.is_empty());
    assert_eq!(world.ask(READER, shutdown), Reply::Ok);
}

#[test]
fn a_segment_shows_the_enclave_that_its_connection_serves() {
    let mut world = World::peopled();
    world.enclave();
    let mut peers = 10..;
    let mut made = |world: &mut World, uid, name: &str| {
        let peer = PeerId(peers.next().expect("a number"));
        world.connect(peer, uid, Role::Exporter);
        let name = field(name);
        let said = world.ask(peer, Request::ForEnclave { name });
        let make = Request::SegmentMake(request("", 0o600, false));
        let Reply::Made { segid, .. } = world.ask(peer, make) else {
            panic!("no segment");
        };
        (peer, said == Reply::Ok, world.info(segid).enclave)
    };
    let (own, is_served, shown) = made(&mut world, OWNER, "a1");
    assert_eq!((is_served, shown.as_str()), (true, "a1"));
    // Nobody calls himself what another user has registered.
    let (_, is_served, shown) = made(&mut world, 2000, "a1");
    assert_eq!((is_served, shown.as_str()), (false, ""));
    let (_, is_served, shown) = made(&mut world, 2000, "a2");
    assert_eq!((is_served, shown.as_str()), (true, "a2"));

    let name = field("a3");
    let again = Request::ForEnclave { name };
    assert_eq!(world.errno(own, again), Errno::EXIST);
    assert_eq!(world.errno(EXPORTER, again), Errno::EXIST);
    assert_eq!(world.errno(READER, again), Errno::PERM);
    let name = [0; NAME_BYTES];
    world.connect(PeerId(99), OWNER, Role::Exporter);
    let unnamed = Request::ForEnclave { name };
    assert_eq!(world.errno(PeerId(99), unnamed), Errno::INVAL);
}

#[test]
fn ears_are_those_of_ones_own_user_only() {
    let mut world = World::peopled();
    let segid = world.segment(request("x", 0o666, true));
    let own = Target::Segment(segid);
    let [first, second] = [READER, OTHER].map(|peer| Target::Access(world.got(peer, segid)));
    let ears = |target| Request::Ears { target };
    let given = |rate, count| Reply::Ears {
        version: 0,
        rate,
        count,
    };
    let rate = world.broker.settings.rings_per_second;
    world.subscribed(EXPORTER, own);
    world.subscribed(READER, first);
    // Nobody else's, and not one's own.
    assert_eq!(world.ask(EXPORTER, ears(own)), given(rate, 1));
    assert_eq!(world.errno(OTHER, ears(first)), Errno::BADF);
    // Another user: both ways the broker delivers.
    assert_eq!(world.ask(OTHER, ears(second)), given(0, 0));
    world.subscribed(OTHER, second);
    assert_eq!(world.ask(EXPORTER, ears(own)), given(0, 0));
    assert_eq!(world.ask(EXPORTER, Request::Remove { segid }), Reply::Ok);
    assert_eq!(world.errno(READER, ears(first)), Errno::IDRM);
}
