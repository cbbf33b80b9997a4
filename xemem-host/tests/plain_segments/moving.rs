//! `make` over memory that a process has already: moved, shared, refused.

// UNSAFETY: anonymous memory of our own is made, moved, read and written.
#![expect(unsafe_code)]

use crate::broker_process::BrokerProcess;
use crate::peer::Peer;
use core::ffi::c_void;
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use xemem_host::{Broker, ClientError, Segment, SegmentRequest};

const PAGE: usize = 4096;

/// Pages of our own.
struct Pages {
    base: *mut c_void,
    len: usize,
}

impl Pages {
    fn new(pages: usize) -> Self {
        let (prot, len) = (ProtFlags::READ | ProtFlags::WRITE, pages * PAGE);
        // SAFETY: a new mapping touches no existing memory.
        let base = unsafe { mmap_anonymous(core::ptr::null_mut(), len, prot, MapFlags::PRIVATE) };
        let base = base.expect("memory");
        Self { base, len }
    }

    fn at(&self, page: usize) -> *mut c_void {
        assert!(page * PAGE < self.len);
        self.base.wrapping_byte_add(page * PAGE)
    }

    fn store(&self, page: usize, value: u64) {
        // SAFETY: inside, aligned, writable; shared at most with processes that
        // the test makes wait.
        unsafe { self.at(page).cast::<u64>().write_volatile(value) };
    }

    fn load(&self, page: usize) -> u64 {
        // SAFETY: as for `store`.
        unsafe { self.at(page).cast::<u64>().read_volatile() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, whatever was mapped over it.
        unsafe { munmap(self.base, self.len) }.expect("our own");
    }
}

fn make_over(
    broker: &mut Broker,
    address: *mut c_void,
    len: usize,
) -> Result<Segment, ClientError> {
    let request = SegmentRequest {
        name: "moved".to_owned(),
        signallable: true,
        ..SegmentRequest::default()
    };
    // SAFETY: pages of the test's own, which no other thread knows.
    unsafe { broker.make_over(address, len, &request) }
}

fn refused(broker: &mut Broker, address: *mut c_void, len: usize) -> Errno {
    let refused = make_over(broker, address, len).expect_err("cannot be moved");
    let nothing_left = broker.list().expect("a list").is_empty();
    assert!(nothing_left, "{refused}");
    refused.errno()
}

#[test]
fn memory_keeps_address_and_content_and_is_shared_both_ways() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    let pages = Pages::new(8);
    for page in 0..8 {
        pages.store(page, 100 + page as u64);
    }
    // The middle only: what is around it stays private.
    let segment = make_over(&mut broker, pages.at(2), 4 * PAGE).expect("moved");
    assert!(segment.memory.is_none() && segment.signals.is_some());
    let mut importer = Peer::start(&process.socket());
    assert_eq!(importer.ask("attach moved rw 0 16384"), "ok");
    for page in 0..4 {
        let load = format!("load {}", page * PAGE);
        assert_eq!(importer.number(&load), 102 + page as u64);
    }
    pages.store(3, 7);
    assert_eq!(importer.number("load 4096"), 7);
    assert_eq!(importer.ask("store 12288 8"), "ok");
    assert_eq!(pages.load(5), 8);
    assert_eq!((pages.load(1), pages.load(6)), (101, 106));
    importer.finish();
}

#[test]
fn what_cannot_be_moved_is_refused_and_left_alone() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    let pages = Pages::new(4);
    pages.store(0, 1);
    assert_eq!(refused(&mut broker, pages.at(0), 100), Errno::INVAL);
    assert_eq!(refused(&mut broker, pages.at(0), 0), Errno::INVAL);
    let odd = pages.at(0).wrapping_byte_add(8);
    assert_eq!(refused(&mut broker, odd, PAGE), Errno::INVAL);
    let all = usize::MAX & !(PAGE - 1);
    assert_eq!(
        refused(&mut broker, core::ptr::null_mut(), all),
        Errno::INVAL
    );
    // Nothing is ever mapped so low.
    let low = core::ptr::without_provenance_mut(PAGE);
    assert_eq!(refused(&mut broker, low, PAGE), Errno::NOMEM);
    // SAFETY: pages of this test, which it only reads from here on.
    unsafe { mprotect(pages.at(1), PAGE, MprotectFlags::READ) }.expect("protected");
    assert_eq!(refused(&mut broker, pages.at(0), 2 * PAGE), Errno::ACCESS);
    let exe = std::fs::File::open("/proc/self/exe").expect("our program");
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: over our own page.
    unsafe { mmap(pages.at(2), PAGE, prot, flags | MapFlags::FIXED, &exe, 0) }.expect("a file");
    assert_eq!(refused(&mut broker, pages.at(2), PAGE), Errno::OPNOTSUPP);
    let here = (&raw const odd).cast_mut();
    let stack = here.map_addr(|at| at & !(PAGE - 1)).cast();
    assert_eq!(refused(&mut broker, stack, PAGE), Errno::OPNOTSUPP);
    assert_eq!(pages.load(0), 1);
}

#[test]
fn memory_is_moved_again_only_when_its_segment_has_ended() {
    let process = BrokerProcess::start();
    let mut broker = process.connect();
    let pages = Pages::new(2);
    pages.store(1, 5);
    let first = make_over(&mut broker, pages.at(0), 2 * PAGE).expect("moved");
    let again = make_over(&mut broker, pages.at(1), PAGE).expect_err("shared");
    assert_eq!(again.errno(), Errno::BUSY);
    let mut importer = Peer::start(&process.socket());
    assert_eq!(importer.ask("attach moved ro 0 8192"), "ok");
    broker.remove(first.segid).expect("removed");
    let second = make_over(&mut broker, pages.at(1), PAGE).expect("moved again");
    assert_ne!(first.segid, second.segid);
    pages.store(1, 6);
    // The old importer keeps the old object, a new one gets the new.
    assert_eq!(importer.number("load 4096"), 5);
    assert_eq!(importer.ask("attach moved ro 0 4096"), "ok");
    assert_eq!(importer.number("load 0"), 6);
    // An attachment of somebody else's memory is not ours to move.
    let segid = second.segid;
    let apid = broker.get(segid).expect("access");
    let attached = broker.attach_segment(apid, 0, 4096).expect("attached");
    let taken = make_over(&mut broker, attached.memory.as_ptr(), PAGE);
    assert!(matches!(
        taken.expect_err("read-only").errno(),
        Errno::ACCESS
    ));
    // A connection that is gone holds nothing.
    drop(broker);
    let mut broker = process.connect();
    while broker.lookup("moved", None).is_ok() {
        std::thread::yield_now();
    }
    make_over(&mut broker, pages.at(0), 2 * PAGE).expect("moved a third time");
    assert_eq!(pages.load(1), 6);
}
