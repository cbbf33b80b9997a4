//! Clients that break the rules harm themselves only.

use crate::broker_process::{BrokerProcess, SOON};
use crate::exporter::Exporter;
use crate::memory::Shared;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use xemem_host::wire::socket::{Packet, receive, send};
use xemem_host::wire::{Access, Reply, Request, Role};
use xemem_host::{Broker, ClientError, Policy, Stream};

/// A connection that may say anything.
fn raw(process: &BrokerProcess) -> OwnedFd {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a socket");
    let address = SocketAddrUnix::new(process.socket()).expect("an address");
    rustix::net::connect(&socket, &address).expect("connected");
    socket
}

fn ask(socket: &OwnedFd, request: &Request) -> Packet {
    send(socket, &request.encode(5), &[]).expect("sent");
    receive(socket).expect("an answer")
}

fn hello() -> Request {
    Request::Hello {
        role: Role::Consumer,
        abi_version: enclave_abi::ABI_VERSION,
    }
}

fn reply(packet: &Packet) -> Reply {
    Reply::decode(&packet.bytes).expect("a reply").1
}

/// Panics unless the broker said `errno` and hung up.
fn assert_dropped(socket: &OwnedFd, errno: Errno) {
    let packet = receive(socket).expect("a reason");
    let Reply::Error { errno: got, text } = reply(&packet) else {
        panic!("no error: {packet:?}");
    };
    assert_eq!(got, errno.raw_os_error().unsigned_abs(), "{text}");
    assert!(!text.is_empty());
    let end = receive(socket).map(|packet| packet.bytes.len());
    assert!(matches!(end, Ok(0) | Err(Errno::CONNRESET)), "{end:?}");
}

#[test]
fn malformed_messages_drop_their_sender_and_nobody_else() {
    let process = BrokerProcess::start();
    let mut bystander = process.connect();
    let fine = Request::Status.encode(1);
    let with = |offset: usize, byte: u8| {
        let mut bytes = fine.clone();
        bytes[offset] = byte;
        bytes
    };
    let messages = [
        fine[..15].to_vec(),
        fine[..3].to_vec(),
        [fine.clone(), vec![0]].concat(),
        vec![1; 5000],
        with(2, 99),
        with(2, 128),
    ];
    for bytes in &messages {
        let socket = raw(&process);
        assert!(matches!(
            reply(&ask(&socket, &hello())),
            Reply::Welcome { .. }
        ));
        send(&socket, bytes, &[]).expect("sent");
        assert_dropped(&socket, Errno::PROTO);
    }
    let socket = raw(&process);
    send(&socket, &with(0, 9), &[]).expect("sent");
    assert_dropped(&socket, Errno::PROTONOSUPPORT);
    let status = bystander.status().expect("still served");
    assert_eq!(status.protocol_errors, 1 + messages.len() as u64);
    assert_eq!(status.clients, 1);
}

#[test]
fn descriptors_sent_to_the_broker_are_closed_and_end_the_connection() {
    let process = BrokerProcess::start();
    let mut bystander = process.connect();
    let socket = raw(&process);
    assert!(matches!(
        reply(&ask(&socket, &hello())),
        Reply::Welcome { .. }
    ));
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let fds = [writer.as_fd()];
    send(&socket, &Request::Status.encode(1), &fds).expect("sent");
    assert_dropped(&socket, Errno::PROTO);
    // The pipe has no writer left: the broker kept none.
    drop(writer);
    let end = rustix::io::read(&reader, &mut [0_u8; 1]);
    assert_eq!(end, Ok(0));
    assert_eq!(bystander.status().expect("still served").clients, 1);
}

#[test]
fn a_client_that_does_not_read_its_answers_is_dropped() {
    let process = BrokerProcess::start();
    let mut bystander = process.connect();
    let socket = raw(&process);
    let list = Request::List {
        after: xemem_host::SegId(0),
    };
    send(&socket, &hello().encode(1), &[]).expect("sent");
    let flooded = loop {
        if let Err(errno) = send(&socket, &list.encode(2), &[]) {
            break errno;
        }
    };
    assert!(matches!(flooded, Errno::PIPE | Errno::CONNRESET));
    assert_eq!(bystander.status().expect("still served").clients, 1);
}

/// What a reader gets: the memfd.
fn attached_memfd(process: &BrokerProcess, exporter: &Exporter) -> OwnedFd {
    let socket = raw(process);
    ask(&socket, &hello());
    let (segid, access) = (exporter.segid, Access::ReadOnly);
    let Reply::Granted { apid } = reply(&ask(&socket, &Request::Get { segid, access })) else {
        panic!("no access");
    };
    let policy = Policy::Latest;
    let mut packet = ask(&socket, &Request::Attach { apid, policy });
    assert_eq!(packet.fds.len(), 2);
    packet.fds.swap_remove(0)
}

#[test]
fn no_descriptor_of_a_sealed_arena_can_be_written_through() {
    let process = BrokerProcess::start();
    let exporter = Exporter::new(&process, "flux", 2);
    let memfd = attached_memfd(&process, &exporter);
    let len = exporter.geometry.object_bytes;
    // Read-only descriptor: no writable mapping, no write, no resizing.
    assert_eq!(Shared::new(&memfd, len).err(), Some(Errno::ACCESS));
    assert_eq!(rustix::io::write(&memfd, b"x"), Err(Errno::BADF));
    assert!(rustix::fs::ftruncate(&memfd, 0).is_err());

    // Opened again for writing, where the mode even allows that (root).
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    match rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Err(errno) => assert_eq!(errno, Errno::ACCESS),
        Ok(again) => assert_sealed(&again, len),
    }
    // Even the exporter gets no second writable mapping.
    assert_sealed(&exporter.memfd, len);
}

fn assert_sealed(fd: &OwnedFd, len: u64) {
    assert_eq!(Shared::new(fd, len).err(), Some(Errno::PERM));
    assert_eq!(rustix::io::write(fd, b"x"), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(fd, 0), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(fd, len + 4096), Err(Errno::PERM));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(fd, punch, 0, 4096), Err(Errno::PERM));
    let seal = rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE);
    assert_eq!(seal, Err(Errno::PERM));
}

#[test]
fn an_arena_the_exporter_sealed_itself_is_not_handed_out() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    broker.register_enclave("a1").expect("registered");
    let request = xemem_host::ArenaRequest {
        slot: 0,
        name: "flux".to_owned(),
        size_bytes: 4096,
        chunk_bytes: 4096,
        nr_banks: 2,
        hugetlb: xemem_host::Hugetlb::No,
        reader_gid: None,
        retain: 1,
    };
    let grant = broker.arena_make(&request).expect("an arena");
    rustix::fs::fcntl_add_seals(&grant.memfd, SealFlags::SEAL).expect("sealed");
    let refused = broker.arena_mapped(grant.segid).expect_err("half sealed");
    assert_eq!(refused.refusal(), Some(Errno::PERM));
    assert!(broker.lookup("flux", None).is_err());
    // The slot and the name are free again.
    broker.arena_make(&request).expect("another arena");
}

/// Runs `what` in a thread that is another user, with one more group.
fn as_other_user<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(4711),
            rustix::fs::Gid::from_raw(4712),
        );
        let group = rustix::fs::Gid::from_raw(4713);
        // These change this thread only.
        rustix::thread::set_thread_groups(&[group]).expect("groups");
        rustix::thread::set_thread_res_gid(gid, gid, gid).expect("a gid");
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("a uid");
        what()
    });
    thread.join().expect("no panic")
}

#[test]
fn another_user_reads_only_what_its_groups_may() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: cannot become another user; the broker's unit tests stand in");
        return;
    }
    let process = BrokerProcess::start();
    let socket = process.socket();
    let _private = Exporter::new(&process, "private", 2);
    let mut open = Exporter::open_to(&socket, "open", 2, Some(4713));
    open.publish().expect("published");
    let (generation, refusals) = as_other_user(move || {
        let policy = Policy::Latest;
        let refused = Stream::attach(&socket, "private", policy, SOON);
        let refused = refused.err().and_then(|error| error.refusal());
        let mut broker = Broker::connect(&socket).expect("anybody may connect");
        let segid = broker.lookup("private", None).expect("names are public");
        let removed = broker.remove(segid).err().and_then(|e| e.refusal());
        let shutdown = broker.shutdown(true).err().and_then(|e| e.refusal());
        let mut stream = Stream::attach(&socket, "open", policy, SOON).expect("allowed");
        let snapshot = stream.next(Some(SOON)).expect("no error");
        let generation = snapshot.map(|snapshot| snapshot.generation());
        (generation, [refused, removed, shutdown])
    });
    assert_eq!(generation, Some(1));
    let denied = [Errno::ACCESS, Errno::ACCESS, Errno::PERM].map(Some);
    assert_eq!(refusals, denied);
}

#[test]
fn a_flood_of_doorbells_is_bounded_counted_and_loses_nothing() {
    let process = BrokerProcess::with(&["--rings-per-second", "1000"]);
    let mut exporter = Exporter::new(&process, "flux", 4);
    let policy = Policy::Latest;
    let mut stream = Stream::attach(&process.socket(), "flux", policy, SOON).expect("attached");
    let mut tool = process.connect();
    exporter.ring(1_000_000);
    while tool.status().expect("a status").throttled == 0 {
        std::thread::yield_now();
    }
    // The publish comes while the doorbell is not looked at.
    exporter.publish().expect("published");
    let snapshot = stream.next(Some(SOON)).expect("no error");
    assert_eq!(snapshot.expect("not the end").generation(), 1);
    assert_eq!(tool.list().expect("a list")[0].throttled, 1);
    // Waiting for the next one needs the doorbell itself.
    let reader = std::thread::spawn(move || {
        let snapshot = stream.next(Some(SOON)).expect("no error");
        snapshot.expect("not the end").generation()
    });
    exporter.ring(1_000_000);
    exporter.publish().expect("published");
    assert_eq!(reader.join().expect("no panic"), 2);
}

#[test]
fn an_eventfd_a_reader_filled_does_not_stop_the_broker() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    // Who wants the newest only is woken by the exporter besides.
    let policy = Policy::Every;
    let mut stream = Stream::attach(&process.socket(), "flux", policy, SOON).expect("attached");
    let full = (u64::MAX - 1).to_ne_bytes();
    rustix::io::write(stream.notify_fd(), &full).expect("filled");
    exporter.publish().expect("published");
    let mut tool = process.connect();
    assert_eq!(tool.list().expect("a list")[0].latest_generation, 1);
    assert!(stream.next(Some(SOON)).expect("no error").is_some());
}

#[test]
fn a_bell_that_never_stops_costs_a_reader_little_and_hides_no_generation() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 4);
    let policy = Policy::Latest;
    let mut stream = Stream::attach(&process.socket(), "flux", policy, SOON).expect("attached");
    let _ = stream.notify_fd();
    let [bell] = <[_; 1]>::try_from(exporter.fresh_bells()).expect("one bell");
    let (done, is_done) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let start = Instant::now();
        let none = stream.next(Some(Duration::from_millis(300))).map(|_| ());
        assert!(matches!(none, Err(ClientError::Timeout)), "{none:?}");
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("a status");
        let sleeps = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let sleeps: u128 = sleeps.expect("a count").trim().parse().expect("a number");
        // A pause, an answer of the broker and a ring for each millisecond.
        let ms = start.elapsed().as_millis();
        assert!(sleeps < 5 * ms + 100, "{sleeps} sleeps in {ms} ms");
        assert!(ms < 10_000, "300 ms took {ms} ms");
        done.send(()).expect("the test waits");
        let snapshot = stream.next(Some(SOON)).expect("no error");
        snapshot.expect("not the end").generation()
    });
    let ring = || rustix::io::write(&bell, &1_u64.to_ne_bytes()).expect("rung");
    while is_done.try_recv().is_err() {
        ring();
        assert!(!reader.is_finished());
    }
    exporter.publish().expect("published");
    ring();
    assert_eq!(reader.join().expect("no panic"), 1);
}

#[test]
fn a_second_enclave_of_the_same_name_is_refused() {
    let process = BrokerProcess::start();
    let mut first = process.connect();
    first.register_enclave("a1").expect("registered");
    let refused = process.connect().register_enclave("a1");
    let refused = refused.expect_err("taken").refusal();
    assert_eq!(refused, Some(Errno::EXIST));
    let no_name = first.lookup("", None);
    assert!(matches!(no_name, Err(ClientError::Name(_))));
}

#[test]
fn the_256th_client_is_the_last() {
    let process = BrokerProcess::start();
    let mut clients: Vec<Broker> = (0..256).map(|_| process.connect()).collect();
    let refused = Broker::connect(&process.socket()).expect_err("too many");
    assert_eq!(refused.refusal(), Some(Errno::USERS));
    clients.truncate(255);
    let mut tool = clients.remove(0);
    while tool.status().expect("a status").clients > 255 {
        std::thread::yield_now();
    }
    process.connect();
    // A descriptor of ours for each was enough.
    eventfd(0, EventfdFlags::CLOEXEC).expect("descriptors left");
}
