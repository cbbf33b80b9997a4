//! The memory of an arena: object, window and lease words.
//!
//! ```text
//!  object  control │ bank 0 │ bank 1 │ …      one mapping, read-write, private to us
//!                      ╲        │ chunk 1
//!  window            chunk 0 │ chunk 1 │ …    where the program reads and writes
//! ```
//!
//! The window shows each piece of the arena from some bank. Once the object is
//! sealed a writable mapping can only come from one that was made before, by
//! `mremap`. There are two ways, chosen by the size of a piece ([`Way`]). Called
//! by [`super::arena`], which decides what to show; nothing here does.

// UNSAFETY: mappings, and words and bytes in them that the broker and readers
// map as well.
#![expect(unsafe_code)]

use super::os::{self, Fd, call, word};
use crate::errno::Errno;
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};
use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE, range_within};
use enclave_abi::lease::WORDS_PER_ARENA;
use linux_raw_sys::general as raw;

/// Bytes of the lease page.
const LEASE_BYTES: u64 = PAGE_SIZE;

/// The lease words of one arena.
pub(super) type LeaseWords = &'static [AtomicU64; WORDS_PER_ARENA];

/// How the window comes to show another bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The object's mapping is duplicated (an old length of 0) and stays one
    /// mapping. New page-table entries come with the first access to each page:
    /// right for small pieces.
    Duplicate,
    /// The page tables of both banks change places: Linux moves whole ones, of
    /// 2 MiB, where both ends are aligned. No entry is made or lost. The object
    /// may come to be a mapping per piece and bank.
    Exchange,
}

impl Way {
    /// For pieces of so many bytes.
    pub(super) fn for_pieces(bytes: u64) -> Self {
        if bytes.is_multiple_of(LARGE_PAGE_SIZE) {
            Self::Exchange
        } else {
            Self::Duplicate
        }
    }

    /// Most mappings that a piece of an arena with `nr_banks` needs.
    pub(super) fn mappings(self, nr_banks: u32) -> u64 {
        match self {
            Self::Duplicate => 1,
            Self::Exchange => u64::from(nr_banks) + 1,
        }
    }
}

/// A range of addresses that is ours, unmapped when dropped.
#[derive(Debug)]
struct Range {
    start: u64,
    bytes: u64,
}

impl Range {
    /// Maps the beginning of a file, shared, readable and writable; a forked
    /// child does not get it.
    fn of_file(fd: &Fd, bytes: u64, align: u64) -> Result<Self, Errno> {
        let range = Self::reserve_aligned(bytes, align)?;
        let protection = u64::from(raw::PROT_READ | raw::PROT_WRITE);
        let flags = u64::from(raw::MAP_SHARED | raw::MAP_FIXED);
        let args = [range.start, bytes, protection, flags, word(fd.raw()), 0];
        // SAFETY: the addresses are ours, and nothing is there yet.
        unsafe { call(raw::__NR_mmap, args) }?;
        range.advise(raw::MADV_DONTFORK)?;
        Ok(range)
    }

    /// Takes addresses that nothing may use yet: those from `start` on if they
    /// are free, any if it is 0.
    fn reserve(start: u64, bytes: u64) -> Result<Self, Errno> {
        let mut flags = raw::MAP_PRIVATE | raw::MAP_ANONYMOUS | raw::MAP_NORESERVE;
        if start != 0 {
            flags |= raw::MAP_FIXED_NOREPLACE;
        }
        let nothing = u64::from(raw::PROT_NONE);
        let args = [start, bytes, nothing, u64::from(flags), word(-1), 0];
        // SAFETY: a fresh mapping, where there was none.
        let at = unsafe { call(raw::__NR_mmap, args) }?;
        Ok(Self { start: at, bytes })
    }

    /// Takes addresses anywhere at a multiple of `align`.
    fn reserve_aligned(bytes: u64, align: u64) -> Result<Self, Errno> {
        let more = bytes.checked_add(align).ok_or(Errno::ENOMEM)?;
        let wide = Self::reserve(0, more)?;
        let (first, end) = (wide.start, wide.start + more);
        core::mem::forget(wide);
        let start = first.next_multiple_of(align);
        // What is too much goes back, at both ends.
        drop(Self {
            start: first,
            bytes: start - first,
        });
        drop(Self {
            start: start + bytes,
            bytes: end - (start + bytes),
        });
        Ok(Self { start, bytes })
    }

    /// The address at `offset`, if `bytes` bytes from there on are inside.
    fn at(&self, offset: u64, bytes: u64) -> Result<u64, Errno> {
        if range_within(offset, bytes, self.bytes) {
            Ok(self.start + offset)
        } else {
            Err(Errno::EFAULT)
        }
    }

    fn advise(&self, advice: u32) -> Result<(), Errno> {
        let args = [self.start, self.bytes, u64::from(advice), 0, 0, 0];
        // SAFETY: the range is ours; the callers' advice changes no contents.
        unsafe { call(raw::__NR_madvise, args) }.map(drop)
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and whoever owns it gives it up. An empty
        // one is refused, which is right as well.
        let _ = unsafe { call(raw::__NR_munmap, [self.start, self.bytes, 0, 0, 0, 0]) };
    }
}

/// Maps the lease page for good (it is small, and an arena may refer to it for
/// as long as it lives); returns its words.
pub(super) fn lease_page(fd: &Fd) -> Result<&'static [AtomicU64], Errno> {
    let range = Range::of_file(fd, LEASE_BYTES, PAGE_SIZE)?;
    let start = core::ptr::with_exposed_provenance::<AtomicU64>(address(range.start));
    core::mem::forget(range);
    let words = usize::try_from(LEASE_BYTES).map_err(|_| Errno::EIO)? / size_of::<AtomicU64>();
    // SAFETY: the page is mapped and never unmapped; both sides change its words
    // by atomic operations only.
    Ok(unsafe { core::slice::from_raw_parts(start, words) })
}

/// A mapped arena object. Words and bytes are those of its control area, which
/// no window shows.
#[derive(Debug)]
pub(super) struct Object {
    range: Range,
    control_bytes: u64,
}

impl Object {
    /// Maps the whole object and has all its pages made, so that a shortage is
    /// an error here and not a signal later.
    pub(super) fn map(fd: &Fd, bytes: u64, control_bytes: u64) -> Result<Self, Errno> {
        let range = Range::of_file(fd, bytes, LARGE_PAGE_SIZE)?;
        range
            .advise(raw::MADV_POPULATE_WRITE)
            .map_err(|_| Errno::ENOMEM)?;
        Ok(Self {
            range,
            control_bytes,
        })
    }

    /// The control word at `offset`; the first one if there is none.
    #[inline]
    pub(super) fn word(&self, offset: u64) -> &AtomicU64 {
        let inside = offset.is_multiple_of(8) && range_within(offset, 8, self.control_bytes);
        debug_assert!(inside, "offset {offset}");
        let at = address(self.range.start + if inside { offset } else { 0 });
        // SAFETY: the word lies inside the control area, which is mapped as long
        // as `self` lives, and is aligned; others only read it.
        unsafe { AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(at)) }
    }

    /// Writes `bytes` at `offset` of the control area.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let at = self.control(offset, bytes.len() as u64)?;
        // SAFETY: the range is inside the control area, and no reference into it
        // is alive: words are borrowed for one access at a time.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        Ok(())
    }

    /// Reads `bytes.len()` bytes at `offset` of the control area.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let at = self.control(offset, bytes.len() as u64)?;
        // SAFETY: as in `write`, in the other direction.
        unsafe { core::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn control(&self, offset: u64, bytes: u64) -> Result<*mut u8, Errno> {
        if !range_within(offset, bytes, self.control_bytes) {
            return Err(Errno::EFAULT);
        }
        let at = address(self.range.start + offset);
        Ok(core::ptr::with_exposed_provenance_mut(at))
    }

    /// Copies what a window shows, frozen, at `offset` to `to`, which no window
    /// shows. All stores before it are visible before those of the copy.
    pub(super) fn copy_in(
        &self,
        window: &Window,
        offset: u64,
        to: u64,
        bytes: u64,
    ) -> Result<(), Errno> {
        let source = address(window.0.at(offset, bytes)?);
        let target = self.range.at(to, bytes)?;
        let len = usize::try_from(bytes).map_err(|_| Errno::EOVERFLOW)?;
        // It may be frozen since the window showed it.
        thaw(target, bytes)?;
        // x86 keeps the order of stores, the compiler has to be told.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the window is readable everywhere, and frozen here: nobody
        // writes. The target is a part of the object's own mapping that no
        // window shows: writable by now, and used by nobody.
        unsafe {
            core::ptr::copy_nonoverlapping(
                core::ptr::with_exposed_provenance::<u8>(source),
                core::ptr::with_exposed_provenance_mut::<u8>(address(target)),
                len,
            );
        }
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }
}

/// The addresses at which the program sees an arena.
#[derive(Debug)]
pub(super) struct Window(Range);

impl Window {
    /// Takes `bytes` addresses from `start` on. If that is taken and need not
    /// be there, anywhere at a multiple of 2 MiB.
    ///
    /// # Errors
    /// EINVAL when it has to be there, ENOMEM.
    pub(super) fn new(start: u64, must: bool, bytes: u64) -> Result<Self, Errno> {
        match Range::reserve(start, bytes) {
            // Kernels before 4.17 take the address for a hint.
            Ok(range) if range.start == start => Ok(Self(range)),
            _ if must => Err(Errno::EINVAL),
            _ => Range::reserve_aligned(bytes, LARGE_PAGE_SIZE).map(Self),
        }
    }

    /// Address of the first byte.
    pub(super) fn start(&self) -> u64 {
        self.0.start
    }

    /// Shows `bytes` bytes of the object from `from` on at `offset`, writable.
    /// The other way takes the object's own page tables for them, and gives
    /// back those of what the window shows so far, which go to `old`, where they
    /// came from; `None` when it shows nothing yet.
    ///
    /// # Errors
    /// ENOMEM when the process has too many mappings.
    pub(super) fn show(
        &self,
        object: &Object,
        way: Way,
        old: Option<u64>,
        from: u64,
        offset: u64,
        bytes: u64,
    ) -> Result<(), Errno> {
        let (from, to) = (object.range.at(from, bytes)?, self.0.at(offset, bytes)?);
        if way == Way::Duplicate {
            // SAFETY: both ranges are ours, and the window has the same contents
            // (or is fresh) as what it shows afterwards, so whoever reads there
            // sees no difference. The object's mapping stays as it is.
            return unsafe { remap(from, 0, to, bytes) };
        }
        if let Some(old) = old {
            let old = object.range.at(old, bytes)?;
            // SAFETY: nobody uses the object's mapping of what a window shows.
            // The window goes on showing the same, its entries made anew if
            // somebody reads there before the next call.
            unsafe { remap(to, bytes, old, bytes) }?;
        }
        // SAFETY: as for the other way.
        unsafe { remap(from, bytes, to, bytes) }
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
        thaw(self.0.at(offset, bytes)?, bytes)
    }
}

/// Moves the page tables of a mapping to a new one over whatever is at `to`, or
/// makes a new one without them if `old_bytes` is 0. The old mapping stays in
/// both cases: its addresses must not become anybody else's.
///
/// # Safety
/// Both ranges are ours, and nobody uses the second one in a way that the other
/// contents would harm.
unsafe fn remap(from: u64, old_bytes: u64, to: u64, bytes: u64) -> Result<(), Errno> {
    let mut flags = raw::MREMAP_MAYMOVE | raw::MREMAP_FIXED;
    if old_bytes != 0 {
        flags |= raw::MREMAP_DONTUNMAP;
    }
    let args = [from, old_bytes, bytes, u64::from(flags), to, 0];
    // SAFETY: the caller answers for both ranges.
    unsafe { call(raw::__NR_mremap, args) }.map(drop)
}

/// Makes a range of ours writable that was writable before.
fn thaw(start: u64, bytes: u64) -> Result<(), Errno> {
    let protection = u64::from(raw::PROT_READ | raw::PROT_WRITE);
    // SAFETY: the callers checked the range; who reads there may go on.
    unsafe { call(raw::__NR_mprotect, [start, bytes, protection, 0, 0, 0]) }.map(drop)
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
