//! Arena objects as such: read without a broker, spoilt in every field, and
//! on both page sizes.

use crate::broker_process::BrokerProcess;
use crate::exporter::{CHUNK, Exporter, content};
use crate::memory::Shared;
use enclave_abi::ABI_VERSION;
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, BIRTHS_OFFSET, GENERATIONS_OFFSET, GenerationRecord, Geometry,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use std::fs::File;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use xemem_host::snapshot::{ArenaReader, SnapshotError};
use xemem_host::{ArenaRequest, Hugetlb, Policy};
use zerocopy::{FromZeros, IntoBytes};

/// Chunks of the objects made here.
const CHUNKS: u64 = 8;

/// An object written by plain writes: eight chunks, two banks, generation 1.
struct Object {
    file: File,
    geometry: Geometry,
}

impl Object {
    fn new() -> Self {
        let geometry = Geometry::new(CHUNKS * 4096, 4096, 2).expect("possible");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("arena", flags).expect("a memfd");
        ftruncate(&fd, geometry.object_bytes).expect("sized");
        fcntl_add_seals(&fd, SealFlags::SHRINK).expect("sealed");
        let object = Self {
            file: File::from(fd),
            geometry,
        };
        let mut header = ArenaHeader::new_zeroed();
        (header.magic, header.abi_version) = (ARENA_MAGIC, ABI_VERSION);
        (header.size_bytes, header.chunk_bytes) = (CHUNKS * 4096, 4096);
        (header.nr_banks, header.latest_generation) = (2, 1);
        object.write(0, header.as_bytes());
        object.record(1, 0);
        for chunk in 0..CHUNKS {
            object.birth(chunk, 0, 1);
        }
        object
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("written");
    }

    fn word(&self, offset: u64, value: u64) {
        self.write(offset, &value.to_ne_bytes());
    }

    /// Sets a header field of four bytes.
    fn half(&self, offset: usize, value: u32) {
        self.write(offset as u64, &value.to_ne_bytes());
    }

    fn birth(&self, chunk: u64, bank: u32, generation: u64) {
        let offset = self.geometry.birth_offset(chunk, bank);
        self.word(offset.expect("in range"), generation);
    }

    fn record(&self, generation: u64, log_head: u64) {
        let record = GenerationRecord {
            generation,
            log_head,
            ..GenerationRecord::default()
        };
        let offset = GENERATIONS_OFFSET + generation % 64 * 64;
        self.write(offset, record.as_bytes());
        let head = offset_of!(ArenaHeader, log_head) as u64;
        self.word(head, log_head);
    }

    fn fd(&self) -> OwnedFd {
        self.file.try_clone().expect("a descriptor").into()
    }

    fn open(&self) -> ArenaReader {
        ArenaReader::open(self.fd()).expect("an arena")
    }
}

#[test]
fn an_arena_is_read_without_a_broker_as_long_as_its_frames_stay() {
    let process = BrokerProcess::start();
    let mut exporter = Exporter::new(&process, "flux", 2);
    exporter.publish().expect("published");
    let memfd = exporter.memfd.try_clone().expect("a descriptor");
    let mut reader = ArenaReader::open(memfd).expect("an arena");
    assert_eq!(reader.geometry(), &exporter.geometry);
    assert_eq!(reader.latest_generation().expect("a header"), 1);
    let snapshot = reader.snapshot(1).expect("generation 1");
    let bytes = snapshot.as_slice();
    assert_eq!(bytes[..8], content(0, 1).to_ne_bytes());
    assert!(snapshot.valid());
    // Nobody leased it: with two banks the next but one needs its frames.
    while exporter.generation() < 8 {
        exporter.publish().expect("published");
    }
    assert!(!snapshot.valid());
    drop(snapshot);
    assert!(matches!(
        reader.snapshot(99),
        Err(SnapshotError::NoRecord(99))
    ));
}

#[test]
fn an_object_that_could_shrink_or_is_too_small_is_refused() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("arena", flags).expect("a memfd");
    ftruncate(&fd, 16 << 20).expect("sized");
    let refused = ArenaReader::open(fd.try_clone().expect("a descriptor"));
    assert!(matches!(refused, Err(SnapshotError::Unsealed)));
    ftruncate(&fd, 4096).expect("sized");
    fcntl_add_seals(&fd, SealFlags::SHRINK).expect("sealed");
    let refused = ArenaReader::open(fd);
    assert!(matches!(refused, Err(SnapshotError::Mismatch)));
    let (pipe, _) = rustix::pipe::pipe().expect("a pipe");
    let refused = ArenaReader::open(pipe);
    assert!(matches!(refused, Err(SnapshotError::System { .. })));
}

#[test]
fn a_spoilt_header_is_refused_at_open_and_later() {
    type Spoil = fn(&Object);
    type Expected = fn(&SnapshotError) -> bool;
    let cases: [(Spoil, Expected); 5] = [
        (|o| o.word(0, 7), |e| matches!(e, SnapshotError::Magic(7))),
        (
            |o| o.half(offset_of!(ArenaHeader, abi_version), 9),
            |e| matches!(e, SnapshotError::AbiVersion(9)),
        ),
        (
            |o| o.half(offset_of!(ArenaHeader, nr_banks), 1),
            |e| matches!(e, SnapshotError::Geometry(_)),
        ),
        (
            |o| o.word(offset_of!(ArenaHeader, size_bytes) as u64, u64::MAX),
            |e| matches!(e, SnapshotError::Geometry(_)),
        ),
        (
            |o| o.word(offset_of!(ArenaHeader, size_bytes) as u64, 512 << 30),
            |e| matches!(e, SnapshotError::Mismatch),
        ),
    ];
    for (spoil, expected) in cases {
        let object = Object::new();
        let mut reader = object.open();
        reader.snapshot(1).expect("generation 1");
        spoil(&object);
        let later = reader.snapshot(1).expect_err("spoilt");
        assert!(expected(&later), "{later}");
        assert!(reader.variables().is_empty());
        let at_open = ArenaReader::open(object.fd()).expect_err("spoilt");
        assert!(expected(&at_open), "{at_open}");
    }
}

#[test]
fn births_without_a_frame_are_named() {
    let object = Object::new();
    let mut reader = object.open();
    object.birth(5, 0, 2);
    let refused = reader.snapshot(1).expect_err("no frame");
    assert!(matches!(
        refused,
        SnapshotError::NoFrame {
            chunk: 5,
            generation: 1
        }
    ));
    object.birth(5, 0, u64::MAX);
    object.birth(5, 1, 1);
    let snapshot = reader.snapshot(1).expect("in the other bank");
    assert_eq!(snapshot.runs(), 3);
    object.birth(5, 1, 0);
    assert!(!snapshot.valid());
}

#[test]
fn a_change_log_full_of_nonsense_costs_time_only() {
    let object = Object::new();
    let mut reader = object.open();
    reader.snapshot(1).expect("generation 1");
    object.birth(3, 1, 2);
    object.word(object.geometry.log_entry_offset(0), u64::MAX);
    object.record(2, 1);
    let mut runs = |generation| {
        let snapshot = reader.snapshot(generation).expect("a generation");
        snapshot.runs()
    };
    assert_eq!(runs(2), 3);
    // Going back, as does a head that runs backwards.
    assert_eq!(runs(1), 1);
    object.record(3, u64::MAX);
    assert_eq!(runs(3), 3);
    object.record(4, 0);
    assert_eq!(runs(4), 3);
}

#[test]
fn a_record_that_is_being_written_is_not_read() {
    let object = Object::new();
    let mut reader = object.open();
    let mut is_missing =
        |g| matches!(reader.snapshot(g), Err(SnapshotError::NoRecord(no)) if no == g);
    object.word(GENERATIONS_OFFSET + 64, 0);
    assert!(is_missing(1));
    // A later generation in the same place of the ring.
    object.word(GENERATIONS_OFFSET + 64, 65);
    assert!(is_missing(1));
    assert!(is_missing(0));
}

#[test]
fn absurd_numbers_of_variables_end_at_the_table() {
    let object = Object::new();
    let mut reader = object.open();
    object.half(offset_of!(ArenaHeader, nr_vars), u32::MAX);
    object.write(BIRTHS_OFFSET - 512, &[0xff; 512]);
    assert!(reader.variables().is_empty());
    let snapshot = reader.snapshot(1).expect("generation 1");
    assert!(matches!(
        snapshot.var("flux"),
        Err(SnapshotError::NoVariable(_))
    ));
}

fn request(size_bytes: u64, chunk_bytes: u64, hugetlb: Hugetlb) -> ArenaRequest {
    ArenaRequest {
        slot: 0,
        name: String::new(),
        size_bytes,
        chunk_bytes,
        nr_banks: 2,
        hugetlb,
        reader_gid: None,
        retain: 1,
    }
}

#[test]
fn large_pages_are_used_if_there_are_enough_and_refused_or_replaced_if_not() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    broker.register_enclave("a1").expect("registered");
    // No machine has a terabyte of them to spare.
    let (size, chunk) = (512 << 30, 2 << 20);
    let refused = broker.arena_make(&request(size, chunk, Hugetlb::Yes));
    let refused = refused.expect_err("too large").refusal();
    assert_eq!(refused, Some(Errno::NOMEM));
    let grant = broker.arena_make(&request(size, chunk, Hugetlb::Auto));
    let grant = grant.expect("on small pages");
    assert_eq!(grant.page_bytes, 4096);
    broker.arena_mapped(grant.segid).expect("sealed");
    broker.remove(grant.segid).expect("removed");
    let refused = broker.arena_make(&request(1 << 20, CHUNK, Hugetlb::Yes));
    let refused = refused.expect_err("small chunks").refusal();
    assert_eq!(refused, Some(Errno::INVAL));
}

#[test]
fn chunks_of_two_mebibytes_are_read_on_whatever_pages_there_are() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    broker.register_enclave("a1").expect("registered");
    let chunk = 2 << 20;
    let few = request(2 * chunk, chunk, Hugetlb::Auto);
    let grant = broker.arena_make(&few).expect("an arena");
    let stat = rustix::fs::fstat(&grant.memfd).expect("looked at");
    let block = u64::try_from(stat.st_blksize).expect("positive");
    assert_eq!(block, grant.page_bytes, "the object is on such pages");

    let geometry = grant.geometry;
    let object = Shared::new(&grant.memfd, geometry.object_bytes).expect("mapped");
    let mut header = ArenaHeader::new_zeroed();
    (header.magic, header.abi_version) = (ARENA_MAGIC, ABI_VERSION);
    (header.size_bytes, header.chunk_bytes) = (2 * chunk, chunk);
    header.nr_banks = 2;
    object.write(0, header.as_bytes());
    object.store(GENERATIONS_OFFSET + 64, 1);
    for (chunk, bank) in [(0, 1), (1, 0)] {
        let birth = geometry.birth_offset(chunk, bank).expect("in range");
        object.store(birth, 1);
        let frame = geometry.frame_offset(chunk, bank).expect("in range");
        object.store(frame, 100 + chunk);
    }
    broker.arena_mapped(grant.segid).expect("sealed");
    let info = &broker.list().expect("a list")[0];
    assert_eq!(u64::from(info.page_bytes), grant.page_bytes);

    let apid = broker.get(grant.segid).expect("access");
    let attached = broker.attach(apid, Policy::Latest).expect("attached");
    let reader = ArenaReader::with_geometry(attached.memfd, attached.geometry);
    let mut reader = reader.expect("an arena");
    let snapshot = reader.snapshot(1).expect("generation 1");
    assert_eq!(snapshot.runs(), 2);
    let second = usize::try_from(chunk).expect("small");
    assert_eq!(snapshot.as_slice()[0], 100);
    assert_eq!(snapshot.as_slice()[second], 101);
}
