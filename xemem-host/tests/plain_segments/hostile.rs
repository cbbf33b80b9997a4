//! A broker that lies: the client reports it and neither panics, hangs nor
//! maps what could fault.

use crate::broker_process::Fresh;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, socket_with,
};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::Duration;
use xemem_host::wire::socket::{receive, send};
use xemem_host::wire::{Access, Memory, Reply, Request, seq_of};
use xemem_host::{ApId, Broker, ClientError, SegId, SegmentRequest, Target};

/// One answer: bytes behind the right sequence number, and descriptors.
type Answer = (Vec<u8>, Vec<OwnedFd>);

/// A broker that says welcome, then gives `answers` whatever it is asked.
struct Liar {
    dir: Fresh,
    thread: JoinHandle<()>,
}

impl Liar {
    fn with(answers: Vec<Answer>) -> Self {
        let dir = Fresh::new();
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let listener = socket_with(family, SocketType::SEQPACKET, flags, None).expect("socket");
        let address = SocketAddrUnix::new(dir.socket()).expect("address");
        bind(&listener, &address).expect("bound");
        listen(&listener, 1).expect("listening");
        let thread = std::thread::spawn(move || {
            let socket = accept(&listener).expect("a client");
            let welcome = Reply::Welcome {
                abi_version: enclave_abi::ABI_VERSION,
                pid: 1,
            };
            let answers = std::iter::once((welcome.encode(0), Vec::new())).chain(answers);
            for (mut bytes, fds) in answers {
                let asked = receive(&socket).expect("a request").bytes;
                bytes[4..8].copy_from_slice(&seq_of(&asked).to_le_bytes());
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                send(&socket, &bytes, &fds).expect("answered");
            }
            // Listens until the client has had enough, says nothing more.
            while receive(&socket).is_ok_and(|packet| !packet.bytes.is_empty()) {}
        });
        Self { dir, thread }
    }

    /// Lets a client ask and takes its word for what came of it.
    fn tell<T>(self, ask: impl FnOnce(&mut Broker) -> Result<T, ClientError>) -> ClientError {
        let mut broker = Broker::connect(&self.dir.socket()).expect("welcome");
        let limit = Duration::from_millis(100);
        broker.set_answer_limit(limit).expect("a limit");
        let error = ask(&mut broker).map(|_| ()).expect_err("a lie");
        drop(broker);
        self.thread.join().expect("the liar ends");
        error
    }
}

fn object(bytes: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("lie", flags).expect("memfd");
    ftruncate(&fd, bytes).expect("sized");
    fcntl_add_seals(&fd, seals).expect("sealed");
    fd
}

fn memory(size_bytes: u64, page_bytes: u32) -> Vec<u8> {
    let memory = Memory {
        segid: SegId(1),
        size_bytes,
        page_bytes,
        access: Access::ReadWrite,
    };
    Reply::Memory(memory).encode(0)
}

#[test]
fn memory_that_could_fault_or_is_not_what_was_asked_for_is_not_mapped() {
    let shrink = SealFlags::SHRINK;
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").expect("null"));
    let lies: Vec<Answer> = vec![
        (memory(8192, 4096), vec![object(8192, SealFlags::empty())]),
        (memory(8192, 4096), vec![object(4096, shrink)]),
        (memory(8192, 4096), vec![null()]),
        (memory(4096, 4096), vec![object(8192, shrink)]),
        (memory(8192, 0), vec![object(8192, shrink)]),
        (memory(8192, 3), vec![object(8192, shrink)]),
        (memory(8192, 2 << 20), vec![object(8192, shrink)]),
        (memory(8192, 4096), Vec::new()),
        (
            memory(8192, 4096),
            vec![object(8192, shrink), object(8192, shrink)],
        ),
        (Reply::Ok.encode(0), Vec::new()),
        (vec![0; 8], Vec::new()),
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let told = Liar::with(vec![lie]).tell(|broker| broker.attach_segment(ApId(1), 0, 8192));
        let errno = told.errno();
        assert_eq!(errno, Errno::PROTO, "lie {index}: {told}");
    }
}

#[test]
fn a_segment_other_than_asked_for_is_not_accepted() {
    let made = |size_bytes, page_bytes| {
        let segid = SegId(1);
        let reply = Reply::Made {
            segid,
            size_bytes,
            page_bytes,
        };
        reply.encode(0)
    };
    let shrink = SealFlags::SHRINK;
    for (index, lie) in [
        (made(0, 4096), Vec::new()),
        (made(u64::MAX, 4096), vec![object(4096, shrink)]),
        (made(4096, u64::MAX), vec![object(4096, shrink)]),
        (made(4096, 4096), vec![object(4096, SealFlags::empty())]),
        (made(4096, 4096), vec![object(0, shrink)]),
    ]
    .into_iter()
    .enumerate()
    {
        let request = SegmentRequest {
            size_bytes: 4096,
            ..SegmentRequest::default()
        };
        let told = Liar::with(vec![lie]).tell(|broker| broker.make_segment(&request));
        assert_eq!(told.errno(), Errno::PROTO, "lie {index}: {told}");
    }
}

#[test]
fn errors_that_are_none_and_answers_to_nothing_are_refused() {
    let mut error = Reply::Error {
        errno: 1,
        text: "no".to_owned(),
    }
    .encode(0);
    for errno in [0_u32, 4096, u32::MAX] {
        error[8..12].copy_from_slice(&errno.to_le_bytes());
        let told = Liar::with(vec![(error.clone(), Vec::new())]).tell(|broker| broker.status());
        assert_eq!(told.errno(), Errno::PROTO, "{errno}: {told}");
    }
    let silent = Liar::with(Vec::new()).tell(|broker| broker.status());
    assert_eq!(silent.errno(), Errno::TIMEDOUT);
}

#[test]
fn a_wait_descriptor_that_is_no_eventfd_does_not_hang_the_client() {
    let target = Target::Access(ApId(1));
    let subscribed = || Reply::Subscribed.encode(0);
    let soon = Some(Duration::from_millis(50));
    // A pipe with too little to say; it would block for the rest.
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    rustix::io::write(&writer, b"abc").expect("written");
    let lie = (subscribed(), vec![reader]);
    let told = Liar::with(vec![lie]).tell(|broker| broker.subscribe(target)?.wait(soon));
    assert_eq!(told.errno(), Errno::PROTO);
    // An eventfd that blocks: nothing comes, and waiting ends in time.
    let blocking = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
    let lie = (subscribed(), vec![blocking]);
    let told = Liar::with(vec![lie]).tell(|broker| broker.subscribe(target)?.wait(soon));
    assert_eq!(told.errno(), Errno::TIMEDOUT);
    // Request kinds other than the one asked are no answer either.
    let lie = (Request::Status.encode(0), Vec::new());
    let told = Liar::with(vec![lie]).tell(|broker| broker.subscribe(target));
    assert_eq!(told.errno(), Errno::PROTO);
}
