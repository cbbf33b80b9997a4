//! XEMEM's `make` over memory that a program has already.
//!
//! ```text
//!  before:  address ──► private pages
//!  move:    new object ◄── copy;  object mapped over the same addresses
//!  after:   address ──► object ◄── importers
//! ```
//!
//! Linux shares whole memory objects only, so the pages move into one. Pointers
//! into the range stay right. What can fail is tried before anything changes.

// UNSAFETY: replaces memory of the caller under its own addresses.
#![expect(unsafe_code)]

use super::maps::{self, Object, Unmovable};
use super::segments::map;
use super::{Broker, ClientError, Segment, SegmentGrant, SegmentRequest};
use crate::shared::SharedMemory;
use crate::wire::{Access, Hugetlb, SegId, Target};
use core::ffi::c_void;
use core::ops::Range;
use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE};
use rustix::fs::{fstat, major, minor};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A segment whose memory was moved, and the connection that exports it.
#[derive(Debug)]
struct Exported {
    segid: SegId,
    connection: Weak<()>,
}

/// Objects that memory of this process was moved into. What is left of one
/// whose segment has ended can be moved again.
static MOVED: Mutex<BTreeMap<Object, Exported>> = Mutex::new(BTreeMap::new());

impl Broker {
    /// Makes a segment of memory that this process has: `len` bytes at
    /// `address` move into a new object that takes their place, content kept.
    /// `request.size_bytes` does not count. The memory stays the caller's; it
    /// is shared with importers until the segment ends, and an object of its
    /// own from then on, which may be made a segment again.
    ///
    /// The [`Segment`] has no `memory`: it is at `address`.
    ///
    /// # Safety
    /// While the call lasts no other thread may access the range (its stack is
    /// not in there) or change what is mapped there, and nothing but memory may depend on its pages: no
    /// direct I/O in flight, no registration for RDMA, no lock (mlock) that is
    /// relied upon. No Rust reference may exist to anything in the range that
    /// importers with write access could change. Children of a later fork share
    /// the range instead of getting a copy.
    ///
    /// # Errors
    /// [`ClientError::Unmovable`]: EINVAL if it is not whole pages, ENOMEM if
    /// something is not mapped, EACCES if something is not readable and
    /// writable, EOPNOTSUPP for files and stacks, EBUSY for what is shared
    /// already. Else as [`Broker::make_segment`]. The memory is untouched then,
    /// unless the broker fails at the very end: moved, but no segment.
    pub unsafe fn make_over(
        &mut self,
        address: *mut c_void,
        len: usize,
        request: &SegmentRequest,
    ) -> Result<Segment, ClientError> {
        let range = range_of(address, len)?;
        self.check_movable(&range)?;
        let grant = self.segment_make(&SegmentRequest {
            size_bytes: u64::try_from(len).map_err(|_| unmovable(address, Unmovable::Range))?,
            hugetlb: pages_for(&range, request.hugetlb)?,
            ..request.clone()
        })?;
        let segid = grant.segid;
        // SAFETY: the caller's promise, passed on.
        let moved = unsafe { self.move_into(grant, &range, address, request.signallable) };
        if moved.is_err() {
            let _ = self.remove(segid);
        }
        moved
    }

    /// # Safety
    /// That of [`Broker::make_over`]; `range` is at `address` and was checked.
    unsafe fn move_into(
        &mut self,
        grant: SegmentGrant,
        range: &Range<usize>,
        address: *mut c_void,
        signallable: bool,
    ) -> Result<Segment, ClientError> {
        let SegmentGrant {
            segid,
            size_bytes,
            page_bytes,
            memfd,
        } = grant;
        let memfd = memfd.ok_or(ClientError::Answer)?;
        let signals = match signallable {
            true => Some(self.subscribe(Target::Segment(segid))?),
            false => None,
        };
        let object = identity(&memfd)?;
        let copy = map(&memfd, 0, size_bytes, page_bytes, Access::ReadWrite)?;
        copy.populate().map_err(failed("allocate the segment"))?;
        let connection = Arc::downgrade(&self.connection.life);
        moved().insert(object, Exported { segid, connection });
        // Nothing is allocated from here on: the range may hold the heap.
        // SAFETY: the caller's promise; `range` is mapped (checked), `copy` is
        // as long and nobody's yet.
        let replaced = unsafe { replace(&copy, range.len(), address, &memfd) };
        replaced.map_err(failed("map the segment over its memory"))?;
        self.mapped(segid)?;
        Ok(Segment {
            segid,
            page_bytes,
            memory: None,
            signals,
        })
    }

    /// Checks what is behind `range`.
    fn check_movable(&mut self, range: &Range<usize>) -> Result<(), ClientError> {
        let text = std::fs::read_to_string("/proc/self/maps").map_err(|error| {
            let source = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            failed("read /proc/self/maps")(source)
        })?;
        let address = core::ptr::without_provenance_mut(range.start);
        // A thread's stack looks like any other memory.
        let stack = own_stack().map_err(failed("find the stack"))?;
        if range.start < stack.end && stack.start < range.end {
            return Err(unmovable(address, Unmovable::Foreign));
        }
        let shared = maps::movable(&text, range).map_err(|why| unmovable(address, why))?;
        let mapped = maps::objects(&text);
        moved().retain(|object, _| mapped.contains(object));
        for object in shared {
            if !self.is_left_over(object)? {
                return Err(unmovable(address, Unmovable::Shared));
            }
        }
        Ok(())
    }

    /// Whether `object` held moved memory of a segment that has ended.
    fn is_left_over(&mut self, object: Object) -> Result<bool, ClientError> {
        let (segid, connection) = match moved().get(&object) {
            Some(exported) => (exported.segid, exported.connection.upgrade()),
            None => return Ok(false),
        };
        let Some(connection) = connection else {
            // Its connection is gone, and the segment with it.
            return Ok(true);
        };
        if !Arc::ptr_eq(&connection, &self.connection.life) {
            return Ok(false);
        }
        match self.info(segid) {
            Ok(info) => Ok(info.end_reason.is_some()),
            Err(error) if error.refusal() == Some(Errno::NOENT) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// Copies `len` bytes from `address` and puts the object in their place.
///
/// # Safety
/// `address..address + len` is mapped, readable and writable; nobody else
/// accesses it meanwhile. `copy` maps the same bytes of `memfd`.
unsafe fn replace(
    copy: &SharedMemory,
    len: usize,
    address: *mut c_void,
    memfd: &OwnedFd,
) -> Result<(), Errno> {
    let (from, to) = (address.cast::<u8>(), copy.as_ptr().cast::<u8>());
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let fixed = MapFlags::FIXED;
    // SAFETY: both are mapped for `len` bytes and apart, because `copy` is a
    // mapping of its own.
    unsafe { core::ptr::copy_nonoverlapping(from, to, len) };
    // SAFETY: replaces what the caller gave us, by the same content.
    let mapped = unsafe { mmap(address, len, prot, MapFlags::SHARED | fixed, memfd, 0) };
    let Err(errno) = mapped else {
        return Ok(());
    };
    // The kernel may have taken the old pages away before it failed.
    // SAFETY: as above; the content comes back from the copy.
    unsafe {
        mmap_anonymous(address, len, prot, MapFlags::PRIVATE | fixed)?;
        core::ptr::copy_nonoverlapping(to, from, len);
    }
    Err(errno)
}

/// Where the calling thread's stack is.
fn own_stack() -> Result<Range<usize>, Errno> {
    let mut attributes = core::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut base, mut len) = (core::ptr::null_mut(), 0);
    // SAFETY: a live thread, and room for its attributes.
    let got = unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) };
    if got != 0 {
        return Err(Errno::NOMEM);
    }
    // SAFETY: filled in above, destroyed once.
    unsafe {
        libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut base, &raw mut len);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
    }
    Ok(base.addr()..base.addr().saturating_add(len))
}

fn moved() -> std::sync::MutexGuard<'static, BTreeMap<Object, Exported>> {
    // Insertions and removals leave the map whole wherever they end.
    MOVED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn range_of(address: *mut c_void, len: usize) -> Result<Range<usize>, ClientError> {
    let start = address.addr();
    let is_page = |number: usize| u64::try_from(number).is_ok_and(|n| n.is_multiple_of(PAGE_SIZE));
    let end = start.checked_add(len);
    match end {
        Some(end) if len > 0 && start > 0 && is_page(start) && is_page(len) => Ok(start..end),
        _ => Err(unmovable(address, Unmovable::Range)),
    }
}

/// Large pages fit only where the addresses are whole ones.
fn pages_for(range: &Range<usize>, wanted: Hugetlb) -> Result<Hugetlb, ClientError> {
    let start = u64::try_from(range.start).unwrap_or(1);
    match wanted {
        _ if start.is_multiple_of(LARGE_PAGE_SIZE) => Ok(wanted),
        Hugetlb::Yes => Err(unmovable(
            core::ptr::without_provenance_mut(range.start),
            Unmovable::Range,
        )),
        Hugetlb::Auto | Hugetlb::No => Ok(Hugetlb::No),
    }
}

fn identity(memfd: &OwnedFd) -> Result<Object, ClientError> {
    let stat = fstat(memfd).map_err(failed("look at the segment"))?;
    Ok(Object {
        device: (major(stat.st_dev), minor(stat.st_dev)),
        inode: stat.st_ino,
    })
}

fn unmovable(address: *mut c_void, why: Unmovable) -> ClientError {
    let address = address.addr();
    ClientError::Unmovable { address, why }
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> ClientError {
    move |source| ClientError::System { what, source }
}
