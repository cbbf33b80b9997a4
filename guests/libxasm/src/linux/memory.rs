//! The memory of an arena: object, window and lease words.
//!
//! ```text
//!  object  control │ bank 0 │ bank 1 │ …      one mapping, read-write, private to us
//!                      ╲        │ chunk 1
//!  window            chunk 0 │ chunk 1 │ …    where the program reads and writes
//! ```
//!
//! The window shows each piece of the arena from some bank. Showing another bank
//! is one `mremap` of the object's mapping with an old length of 0, which
//! duplicates it: the only way to a writable mapping once the object is sealed.
//! Called by [`super::arena`], which decides what to show; nothing here does.

// UNSAFETY: mappings, and words and bytes in them that the broker and readers
// map as well.
#![expect(unsafe_code)]

use super::os::{self, Fd, call, word};
use crate::errno::Errno;
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};
use enclave_abi::addr::{PAGE_SIZE, range_within};
use enclave_abi::lease::WORDS_PER_ARENA;
use linux_raw_sys::general as raw;

/// Bytes of the lease page.
const LEASE_BYTES: u64 = PAGE_SIZE;

/// The lease words of one arena.
pub(super) type LeaseWords = &'static [AtomicU64; WORDS_PER_ARENA];

/// A range of addresses that is ours, unmapped when dropped.
#[derive(Debug)]
struct Range {
    start: u64,
    bytes: u64,
}

impl Range {
    /// Maps the beginning of a file, shared, readable and writable; a forked
    /// child does not get it.
    fn of_file(fd: &Fd, bytes: u64) -> Result<Self, Errno> {
        let protection = u64::from(raw::PROT_READ | raw::PROT_WRITE);
        let flags = u64::from(raw::MAP_SHARED);
        let args = [0, bytes, protection, flags, word(fd.raw()), 0];
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe { call(raw::__NR_mmap, args) }?;
        let range = Self { start, bytes };
        range.advise(0, bytes, raw::MADV_DONTFORK)?;
        Ok(range)
    }

    /// Takes addresses that nothing may use yet: those from `start` on if they
    /// are free.
    fn reserve(start: u64, bytes: u64) -> Result<Self, Errno> {
        let mut flags = raw::MAP_PRIVATE | raw::MAP_ANONYMOUS | raw::MAP_NORESERVE;
        if start != 0 {
            flags |= raw::MAP_FIXED_NOREPLACE;
        }
        let nothing = u64::from(raw::PROT_NONE);
        let args = [start, bytes, nothing, u64::from(flags), word(-1), 0];
        // SAFETY: a fresh mapping, where there was none.
        let at = unsafe { call(raw::__NR_mmap, args) }?;
        let range = Self { start: at, bytes };
        // Kernels before 4.17 take the address for a hint.
        if start != 0 && at != start {
            return Err(Errno::EEXIST);
        }
        Ok(range)
    }

    fn advise(&self, offset: u64, bytes: u64, advice: u32) -> Result<(), Errno> {
        if !range_within(offset, bytes, self.bytes) {
            return Err(Errno::EFAULT);
        }
        let args = [self.start + offset, bytes, u64::from(advice), 0, 0, 0];
        // SAFETY: the callers' advice changes no contents.
        unsafe { call(raw::__NR_madvise, args) }.map(drop)
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and whoever owns it gives it up.
        let _ = unsafe { call(raw::__NR_munmap, [self.start, self.bytes, 0, 0, 0, 0]) };
    }
}

/// Maps the lease page for good (it is small, and an arena may refer to it for
/// as long as it lives); returns its words.
pub(super) fn lease_page(fd: &Fd) -> Result<&'static [AtomicU64], Errno> {
    let range = Range::of_file(fd, LEASE_BYTES)?;
    let start = core::ptr::with_exposed_provenance::<AtomicU64>(address(range.start));
    core::mem::forget(range);
    let words = usize::try_from(LEASE_BYTES).map_err(|_| Errno::EIO)? / size_of::<AtomicU64>();
    // SAFETY: the page is mapped and never unmapped; both sides change its words
    // by atomic operations only.
    Ok(unsafe { core::slice::from_raw_parts(start, words) })
}

/// A mapped arena object.
#[derive(Debug)]
pub(super) struct Object(Range);

impl Object {
    /// Maps the whole object and has all its pages made, so that a shortage is
    /// an error here and not a signal later.
    pub(super) fn map(fd: &Fd, bytes: u64) -> Result<Self, Errno> {
        let object = Self(Range::of_file(fd, bytes)?);
        match object.0.advise(0, bytes, raw::MADV_POPULATE_WRITE) {
            // Linux before 5.14.
            Err(Errno::EINVAL) => object.allocate(fd)?,
            Err(_) => return Err(Errno::ENOMEM),
            Ok(()) => {}
        }
        Ok(object)
    }

    fn allocate(&self, fd: &Fd) -> Result<(), Errno> {
        let args = [word(fd.raw()), 0, 0, self.0.bytes, 0, 0];
        // SAFETY: the call takes numbers; the file's contents stay.
        let allocated = unsafe { call(raw::__NR_fallocate, args) };
        allocated.map(drop).map_err(|_| Errno::ENOMEM)
    }

    /// The word at `offset`; the first one if there is none.
    #[inline]
    pub(super) fn word(&self, offset: u64) -> &AtomicU64 {
        let inside = offset.is_multiple_of(8) && range_within(offset, 8, self.0.bytes);
        debug_assert!(inside, "offset {offset}");
        let at = self.0.start + if inside { offset } else { 0 };
        // SAFETY: the word lies inside the mapping, which lives as long as
        // `self`, and is aligned; others only read it.
        unsafe { AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(address(at))) }
    }

    /// Writes `bytes` at `offset`.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let at = self.place(offset, bytes.len() as u64)?;
        // SAFETY: the range is inside the mapping, and no reference into it is
        // alive: words are borrowed for one access at a time.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
        }
        Ok(())
    }

    /// Reads `bytes.len()` bytes at `offset`.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let at = self.place(offset, bytes.len() as u64)?;
        // SAFETY: as in `write`, in the other direction.
        unsafe {
            core::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    /// Copies `bytes` bytes inside the object. All stores before it are visible
    /// before those of the copy.
    pub(super) fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<(), Errno> {
        if from.abs_diff(to) < bytes {
            return Err(Errno::EINVAL);
        }
        let (source, target) = (self.place(from, bytes)?, self.place(to, bytes)?);
        let len = usize::try_from(bytes).map_err(|_| Errno::EOVERFLOW)?;
        // x86 keeps the order of stores, the compiler has to be told.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: both ranges are inside the mapping and do not overlap. The
        // source is frozen: nobody writes there.
        unsafe { core::ptr::copy_nonoverlapping(source, target, len) };
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Copies the first `bytes` bytes that a (frozen) window shows to `to`.
    pub(super) fn copy_in(&self, window: &Window, to: u64, bytes: u64) -> Result<(), Errno> {
        if bytes > window.0.bytes {
            return Err(Errno::EFAULT);
        }
        let (from, target) = (address(window.0.start), self.place(to, bytes)?);
        let len = usize::try_from(bytes).map_err(|_| Errno::EOVERFLOW)?;
        let source = core::ptr::with_exposed_provenance::<u8>(from);
        // SAFETY: the window is readable wherever it shows something, which is
        // everywhere; this object is another one, and nobody else's yet.
        unsafe { core::ptr::copy_nonoverlapping(source, target, len) };
        Ok(())
    }

    fn place(&self, offset: u64, bytes: u64) -> Result<*mut u8, Errno> {
        if !range_within(offset, bytes, self.0.bytes) {
            return Err(Errno::EFAULT);
        }
        let at = address(self.0.start + offset);
        Ok(core::ptr::with_exposed_provenance_mut(at))
    }
}

/// The addresses at which the program sees an arena.
#[derive(Debug)]
pub(super) struct Window(Range);

impl Window {
    /// Takes `bytes` addresses from `start` on. If that is taken and need not
    /// be there, anywhere at a multiple of `align`.
    pub(super) fn new(start: u64, must: bool, bytes: u64, align: u64) -> Result<Self, Errno> {
        match Range::reserve(start, bytes) {
            Ok(range) => return Ok(Self(range)),
            Err(_) if !must => {}
            Err(_) => return Err(Errno::EINVAL),
        }
        // Find a place by taking more, and giving it back.
        let more = bytes.checked_add(align).ok_or(Errno::ENOMEM)?;
        let wide = Range::reserve(0, more)?;
        let aligned = wide.start.next_multiple_of(align);
        drop(wide);
        Range::reserve(aligned, bytes)
            .map(Self)
            .map_err(|_| Errno::ENOMEM)
    }

    /// Address of the first byte.
    pub(super) fn start(&self) -> u64 {
        self.0.start
    }

    /// Shows `bytes` bytes of the object from `from` on at `offset`, writable.
    ///
    /// # Errors
    /// ENOMEM when the process has too many mappings.
    pub(super) fn show(
        &self,
        object: &Object,
        from: u64,
        offset: u64,
        bytes: u64,
    ) -> Result<(), Errno> {
        let inside = range_within(from, bytes, object.0.bytes);
        if !inside || !range_within(offset, bytes, self.0.bytes) {
            return Err(Errno::EFAULT);
        }
        let flags = u64::from(raw::MREMAP_MAYMOVE | raw::MREMAP_FIXED);
        let args = [
            object.0.start + from,
            0,
            bytes,
            flags,
            self.0.start + offset,
            0,
        ];
        // SAFETY: both ranges are inside mappings of ours; what the window shows
        // afterwards has the same contents (or is fresh), so whoever reads there
        // sees no difference.
        unsafe { call(raw::__NR_mremap, args) }.map(drop)
    }

    /// Makes the whole window read-only: no store from here on reaches what it
    /// shows.
    pub(super) fn freeze(&self) -> Result<(), Errno> {
        let args = [
            self.0.start,
            self.0.bytes,
            u64::from(raw::PROT_READ),
            0,
            0,
            0,
        ];
        // SAFETY: the mapping stays readable; stores fault and are served by
        // `super::fault`.
        unsafe { call(raw::__NR_mprotect, args) }.map(drop)
    }

    /// Makes `bytes` bytes at `offset` writable.
    pub(super) fn thaw(&self, offset: u64, bytes: u64) -> Result<(), Errno> {
        if !range_within(offset, bytes, self.0.bytes) {
            return Err(Errno::EFAULT);
        }
        let protection = u64::from(raw::PROT_READ | raw::PROT_WRITE);
        let args = [self.0.start + offset, bytes, protection, 0, 0, 0];
        // SAFETY: the range is ours, and it was writable before.
        unsafe { call(raw::__NR_mprotect, args) }.map(drop)
    }

    /// Has the page-table entries made that stores at `offset` would need one
    /// fault each for. It does not matter if that cannot be.
    pub(super) fn populate(&self, offset: u64, bytes: u64) {
        let _ = self.0.advise(offset, bytes, raw::MADV_POPULATE_WRITE);
    }
}

/// The processor's time-stamp counter.
pub(super) fn timestamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; it reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn address(number: u64) -> usize {
    usize::from_ne_bytes(number.to_ne_bytes())
}

/// Rings a doorbell.
pub(super) fn ring(doorbell: &Fd) {
    // An eventfd whose count is full has rung.
    let _ = os::write(doorbell.raw(), &1u64.to_ne_bytes());
}
