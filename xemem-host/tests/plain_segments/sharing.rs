//! Memory of plain segments: both ways, in pieces, and whatever dies.

use crate::broker_process::{BrokerProcess, SOON};
use crate::peer::Peer;
use rustix::fs::{Mode, OFlags, SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Signal, kill_process};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use xemem_host::{
    Access, Broker, ClientError, EndReason, Hugetlb, PlainAttachment, SegmentKind, SegmentRequest,
    Target, Waited,
};

/// Attaches `len` bytes at `offset` of the segment `name`, read-write.
pub(crate) fn importer(
    process: &BrokerProcess,
    name: &str,
    offset: u64,
    len: u64,
) -> (Broker, PlainAttachment) {
    let mut broker = process.connect();
    let segid = broker.lookup(name, Some(SOON)).expect("found");
    let apid = broker.get_for(segid, Access::ReadWrite).expect("access");
    let attached = broker.attach_segment(apid, offset, len);
    (broker, attached.expect("attached"))
}

#[test]
fn two_processes_write_and_read_the_same_memory() {
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 16384 600"), "ok");
    let (_broker, attached) = importer(&process, "x", 0, 16384);
    assert_eq!(attached.memory.access(), Access::ReadWrite);
    assert_eq!(exporter.ask("store 8 42"), "ok");
    assert_eq!(attached.memory.load_u64(8), Ok(42));
    attached.memory.write(16376, &[7; 8]).expect("inside");
    assert_eq!(exporter.number("load 16376"), 0x0707_0707_0707_0707);
    let mut second = Peer::start(&process.socket());
    assert_eq!(second.ask("attach x ro 0 16384"), "ok");
    assert_eq!(second.number("load 8"), 42);
    second.finish();
    exporter.finish();
}

#[test]
fn one_process_exports_and_imports_on_one_connection() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    let request = SegmentRequest {
        name: "mine".to_owned(),
        size_bytes: 4096,
        ..SegmentRequest::default()
    };
    let segment = broker.make_segment(&request).expect("made");
    let first = broker.get_for(segment.segid, Access::ReadWrite);
    let second = broker.get(segment.segid).expect("access");
    let first = first.expect("access");
    assert_ne!(first, second, "each get is an access of its own");
    let writer = broker.attach_segment(first, 0, 4096).expect("attached");
    let again = broker
        .attach_segment(first, 0, 4096)
        .expect("attached twice");
    let reader = broker.attach_segment(second, 0, 4096).expect("attached");
    writer
        .memory
        .atomic_u64(0)
        .expect("a word")
        .store(5, Ordering::Release);
    let own = segment.memory.as_ref().expect("memory");
    for memory in [own, &again.memory, &reader.memory] {
        assert_eq!(memory.load_u64(0), Ok(5));
    }
    broker.detach_segment(again).expect("detached");
    broker.detach_segment(writer).expect("detached");
    assert!(broker.detach(first).is_err(), "nothing is attached by it");
    broker.release(first).expect("released");
    assert_eq!(broker.info(segment.segid).expect("info").readers, 1);
}

#[test]
fn large_pages_are_used_if_there_are_enough_and_refused_or_replaced_if_not() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    let large = 2 << 20;
    let request = |size_bytes, hugetlb| SegmentRequest {
        size_bytes,
        hugetlb,
        ..SegmentRequest::default()
    };
    // No machine has a terabyte of them to spare; nothing is mapped here.
    let too_much = 1 << 40;
    let refused = broker.segment_make(&request(too_much, Hugetlb::Yes));
    assert_eq!(refused.expect_err("too much").errno(), Errno::NOMEM);
    let odd = broker.segment_make(&request(large + 4096, Hugetlb::Yes));
    assert_eq!(odd.expect_err("not whole").errno(), Errno::INVAL);
    let small = broker.segment_make(&request(too_much, Hugetlb::Auto));
    assert_eq!(small.expect("on small pages").page_bytes, 4096);
    // On whatever pages there are: pieces begin at whole ones.
    let segment = broker.make_segment(&request(2 * large, Hugetlb::Auto));
    let segment = segment.expect("made");
    let page = segment.page_bytes;
    let apid = broker.get(segment.segid).expect("access");
    let memory = segment.memory.as_ref().expect("memory");
    let at = usize::try_from(large).expect("small");
    memory.write(at, &[9; 8]).expect("inside");
    let piece = broker.attach_segment(apid, large, 100).expect("attached");
    assert_eq!(piece.memory.load_u64(0), Ok(0x0909_0909_0909_0909));
    let within = broker.attach_segment(apid, 4096, 4096);
    assert_eq!(within.is_ok(), page == 4096, "pages of {page}");
}

#[test]
fn a_piece_is_the_piece_asked_for() {
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 16384 600"), "ok");
    assert_eq!(exporter.ask("store 8192 81"), "ok");
    assert_eq!(exporter.ask("store 8280 82"), "ok");
    let (mut broker, attached) = importer(&process, "x", 8192, 100);
    assert_eq!(attached.memory.len(), 100);
    assert_eq!(attached.memory.load_u64(0), Ok(81));
    assert_eq!(attached.memory.load_u64(88), Ok(82));
    assert!(attached.memory.load_u64(104).is_err());
    for (offset, len) in [(8192, 8193), (100, 100), (16384, 1), (0, 0), (u64::MAX, 2)] {
        let refused = broker.attach_segment(attached.apid, offset, len);
        let refused = refused.expect_err("no such piece");
        assert_eq!(refused.errno(), Errno::INVAL, "{offset} {len}");
    }
}

#[test]
fn removed_while_attached_the_memory_stays_and_the_importer_is_told() {
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 8192 600"), "ok");
    let (mut broker, attached) = importer(&process, "x", 0, 8192);
    let target = Target::Access(attached.apid);
    let mut signals = broker.subscribe(target).expect("subscribed");
    assert_eq!(exporter.ask("store 0 1"), "ok");
    broker.remove(attached.segid).expect("the same user");
    assert_eq!(signals.wait(Some(SOON)).expect("told"), Waited::Ended);
    assert_eq!(exporter.ask("wait"), "ended");
    assert_eq!(exporter.ask("store 0 2"), "ok");
    assert_eq!(attached.memory.load_u64(0), Ok(2), "still one memory");
    let info = broker.info(attached.segid).expect("still known");
    assert_eq!(info.end_reason, Some(EndReason::Removed));
    let errno = |result: Result<_, ClientError>| result.err().map(|e| e.errno());
    assert_eq!(
        errno(broker.lookup("x", None).map(|_| ())),
        Some(Errno::NOENT)
    );
    assert_eq!(
        errno(broker.get(attached.segid).map(|_| ())),
        Some(Errno::IDRM)
    );
    assert_eq!(errno(broker.remove(attached.segid)), Some(Errno::IDRM));
    let again = broker.attach_segment(attached.apid, 0, 1).map(|_| ());
    assert_eq!(errno(again), Some(Errno::IDRM));
    let (segid, apid) = (attached.segid, attached.apid);
    broker.detach_segment(attached).expect("detached");
    broker.release(apid).expect("released");
    assert_eq!(errno(broker.info(segid).map(|_| ())), Some(Errno::NOENT));
}

#[test]
fn an_exporter_killed_takes_nothing_from_its_importers() {
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 4194304 600"), "ok");
    assert_eq!(exporter.ask("fill 77"), "ok");
    let mut peer = Peer::start(&process.socket());
    assert_eq!(peer.ask("attach x ro 0 4194304"), "ok");
    assert_eq!(peer.ask("subscribe"), "ok");
    let (mut broker, attached) = importer(&process, "x", 0, 4 << 20);
    let target = Target::Access(attached.apid);
    let mut signals = broker.subscribe(target).expect("subscribed");
    exporter.kill();
    assert_eq!(signals.wait(Some(SOON)).expect("told"), Waited::Ended);
    assert_eq!(peer.ask("wait"), "ended");
    let info = broker.info(attached.segid).expect("still known");
    assert_eq!(info.end_reason, Some(EndReason::ExporterGone));
    let mut bytes = vec![0; 4 << 20];
    attached.memory.read(0, &mut bytes).expect("still there");
    assert!(bytes == 77_u64.to_ne_bytes().repeat(bytes.len() / 8));
    assert_eq!(peer.number("load 4194296"), 77);
    // Not ended by any signal: it ends when told to, and well.
    peer.finish();
    // The name is free for the next one.
    let mut next = Peer::start(&process.socket());
    assert_eq!(next.ask("make x 4096 600"), "ok");
}

#[test]
fn a_broker_killed_takes_nothing_from_anybody() {
    let mut process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 4096 600"), "ok");
    let (mut broker, attached) = importer(&process, "x", 0, 4096);
    let target = Target::Access(attached.apid);
    let mut signals = broker.subscribe(target).expect("subscribed");
    process.kill();
    let told = signals
        .wait(Some(SOON))
        .expect_err("nobody signals any more");
    assert_eq!(told.errno(), Errno::CONNRESET);
    assert_eq!(
        broker.signal(target).expect_err("gone").errno(),
        Errno::CONNRESET
    );
    assert_eq!(exporter.ask("store 0 9"), "ok");
    assert_eq!(attached.memory.load_u64(0), Ok(9));
    exporter.finish();
}

#[test]
fn an_importer_killed_leaves_nothing_with_the_broker() {
    let process = BrokerProcess::start();
    let mut exporter = Peer::start(&process.socket());
    assert_eq!(exporter.ask("make x 8192 600"), "ok");
    let mut tool = process.connect();
    let segid = tool.lookup("x", None).expect("found");
    let mut importer = Peer::start(&process.socket());
    assert_eq!(importer.ask("attach x rw 4096 4096"), "ok");
    assert_eq!(importer.ask("subscribe"), "ok");
    assert_eq!(tool.info(segid).expect("info").readers, 1);
    importer.kill();
    while tool.info(segid).expect("info").readers > 0 {
        std::thread::yield_now();
    }
    assert_eq!(tool.status().expect("a status").attachments, 0);
    assert_eq!(exporter.ask("signal 3"), "ok");
    let info = tool.info(segid).expect("info");
    assert_eq!((info.kind, info.signals), (SegmentKind::Plain, 3));
}

/// What can be done with a descriptor against the rules.
fn writable_mapping(fd: impl AsFd) -> Result<(), Errno> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    crate::mapping::try_map(fd, 4096, prot, MapFlags::SHARED)
}

#[test]
fn a_read_only_importer_cannot_write_and_a_sealed_segment_nobody() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    for (mode, sealed) in [(0o644, false), (0o444, true)] {
        let request = SegmentRequest {
            size_bytes: 4096,
            mode,
            ..SegmentRequest::default()
        };
        let segment = broker.make_segment(&request).expect("made");
        let apid = broker.get(segment.segid).expect("access");
        let piece = broker.attach_piece(apid, 0, 4096).expect("a piece");
        assert_eq!(piece.access, Access::ReadOnly);
        assert_eq!(writable_mapping(&piece.memfd), Err(Errno::ACCESS));
        let seals = fcntl_get_seals(&piece.memfd).expect("seals");
        assert_eq!(seals.contains(SealFlags::FUTURE_WRITE), sealed);
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
        // The broker's own user, as we are, may change the mode back and open it
        // again: only the seal stops that, as the threat model says.
        rustix::fs::fchmod(&piece.memfd, Mode::RUSR | Mode::WUSR).expect("its owner");
        let path = format!("/proc/self/fd/{}", piece.memfd.as_raw_fd());
        let again = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let tampered = again.and_then(writable_mapping);
        let wanted = if sealed { Err(Errno::PERM) } else { Ok(()) };
        assert_eq!(tampered, wanted, "{mode:o}");
        // The exporter goes on writing what it has mapped.
        let memory = segment.memory.expect("memory");
        memory.write(0, &[3]).expect("its own");
        let refused = broker.get_for(segment.segid, Access::ReadWrite);
        assert_eq!(refused.is_err(), sealed, "{mode:o}");
    }
}

#[test]
fn another_user_gets_what_the_mode_says_and_no_more() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: cannot become another user; the broker's unit tests stand in");
        return;
    }
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    let mut make = |name: &str, mode| {
        let request = SegmentRequest {
            name: name.to_owned(),
            size_bytes: 4096,
            mode,
            gid: Some(4713),
            signallable: true,
            ..SegmentRequest::default()
        };
        broker.make_segment(&request).expect("made")
    };
    let _segments = [
        make("shut", 0o600),
        make("read", 0o640),
        make("open", 0o660),
    ];
    let socket = process.socket();
    let results = crate::mapping::as_other_user(move || {
        let mut broker = Broker::connect(&socket).expect("anybody may connect");
        let mut errno = |name: &str, access| {
            let segid = broker.lookup(name, None).expect("names are public");
            broker.get_for(segid, access).err().map(|e| e.errno())
        };
        let (ro, rw) = (Access::ReadOnly, Access::ReadWrite);
        let refused = ["shut", "read", "open"].map(|name| [errno(name, ro), errno(name, rw)]);
        let segid = broker.lookup("read", None).expect("found");
        let apid = broker.get(segid).expect("allowed");
        let piece = broker.attach_piece(apid, 0, 4096).expect("a piece");
        let path = format!("/proc/self/fd/{}", piece.memfd.as_raw_fd());
        let again = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let chmod = rustix::fs::fchmod(&piece.memfd, Mode::from_raw_mode(0o666));
        let shut = broker.lookup("shut", None).expect("found");
        let signal = broker
            .signal(Target::Segment(shut))
            .err()
            .map(|e| e.errno());
        let remove = broker.remove(segid).err().map(|e| e.errno());
        (refused, again.err(), chmod.err(), signal, remove)
    });
    let denied = Some(Errno::ACCESS);
    let (refused, again, chmod, signal, remove) = results;
    assert_eq!(refused, [[denied, denied], [None, denied], [None, None]]);
    assert_eq!((again, chmod), (denied, Some(Errno::PERM)));
    assert_eq!((signal, remove), (denied, denied));
}

#[test]
fn a_broker_that_hangs_costs_its_clients_their_limit_and_no_more() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    let limit = Duration::from_millis(50);
    broker.set_answer_limit(limit).expect("a limit");
    let pid = process.broker();
    kill_process(pid, Signal::STOP).expect("stopped");
    let began = Instant::now();
    let refused = broker.status().expect_err("no answer");
    assert_eq!(refused.errno(), Errno::TIMEDOUT);
    assert!(matches!(refused, ClientError::NoAnswer { .. }));
    let lookup = broker.lookup("x", Some(limit)).expect_err("no answer");
    assert_eq!(lookup.errno(), Errno::TIMEDOUT);
    assert!(began.elapsed() >= 3 * limit && began.elapsed() < SOON);
    kill_process(pid, Signal::CONT).expect("goes on");
    broker.set_answer_limit(SOON).expect("a limit");
    // Late answers are thrown away; each request gets its own.
    assert_eq!(broker.status().expect("answered").clients, 1);
    assert!(broker.list().expect("answered").is_empty());
}
