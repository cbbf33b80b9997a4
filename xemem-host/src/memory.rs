//! Memory that other processes write: mappings of memfds, and the reader's
//! window of pieces mapped one beside the other.
//!
//! [`Mapping`] (used by server and snapshot reader) gives out copies only,
//! word by word, atomically: the other side may be hostile. [`Window`] gives
//! out slices of frames whose content the lease protocol keeps still. Both
//! unmap on drop. The only module of this crate that maps memory.

// UNSAFETY: mmap, and access to what it returned.
#![expect(unsafe_code)]

use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags};
use std::os::fd::AsFd;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of a word.
const WORD: usize = size_of::<u64>();
/// Alignment of a window: what the largest page needs.
const WINDOW_ALIGN: usize = 2 << 20;

/// A shared mapping of a piece of a memfd.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<c_void>,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to this value alone and to no thread.
unsafe impl Send for Mapping {}
// SAFETY: all access through `&Mapping` is atomic, word by word.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes from the start of `fd`, read-only. The object must be
    /// sealed against shrinking, else a later access may raise SIGBUS.
    pub(crate) fn read_only(fd: impl AsFd, len: usize) -> Result<Self, Errno> {
        Self::new(fd, len, false)
    }

    /// As [`Mapping::read_only`], and writable.
    pub(crate) fn read_write(fd: impl AsFd, len: usize) -> Result<Self, Errno> {
        Self::new(fd, len, true)
    }

    fn new(fd: impl AsFd, len: usize, writable: bool) -> Result<Self, Errno> {
        let prot = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // no existing memory.
        let base =
            unsafe { rustix::mm::mmap(core::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) }?;
        let base = NonNull::new(base).ok_or(Errno::NOMEM)?;
        Ok(Self {
            base,
            len,
            writable,
        })
    }

    fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let end = offset.checked_add(WORD)?;
        if end > self.len || !offset.is_multiple_of(WORD) {
            return None;
        }
        // SAFETY: in range (checked) of a mapping that lives as long as
        // `self`; aligned because mappings are page aligned and `offset` is a
        // multiple of the word. Other processes access it as memory at large;
        // on our side all access is atomic. A read-only mapping is only loaded
        // from (`store` and `exchange` check), relaxed, which is a plain load.
        Some(unsafe { self.base.byte_add(offset).cast::<AtomicU64>().as_ref() })
    }

    /// The word at `offset`; `None` out of range or unaligned.
    pub(crate) fn load(&self, offset: usize) -> Option<u64> {
        let value = self.word(offset)?.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        Some(value)
    }

    /// Sets the word at `offset`, if there is one and it is writable.
    pub(crate) fn store(&self, offset: usize, value: u64) {
        if let Some(word) = self.word(offset).filter(|_| self.writable) {
            word.store(value, Ordering::Release);
        }
    }

    /// Replaces the word at `offset` if it is `old`; tells whether it was.
    pub(crate) fn exchange(&self, offset: usize, old: u64, new: u64) -> bool {
        let word = self.word(offset).filter(|_| self.writable);
        word.is_some_and(|word| {
            word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    }

    /// Adds to the word at `offset`, if there is one and it is writable.
    pub(crate) fn add(&self, offset: usize, value: u64) {
        if let Some(word) = self.word(offset).filter(|_| self.writable) {
            word.fetch_add(value, Ordering::AcqRel);
        }
    }

    /// A private copy of the `T` at `offset`, each word of it whole. `T` must
    /// be a whole number of words; `None` if not, or out of range.
    pub(crate) fn copy<T: FromBytes + IntoBytes>(&self, offset: usize) -> Option<T> {
        let mut copy = T::new_zeroed();
        let words = copy.as_mut_bytes().chunks_exact_mut(WORD);
        if !size_of::<T>().is_multiple_of(WORD) {
            return None;
        }
        for (at, bytes) in (offset..).step_by(WORD).zip(words) {
            let value = self.word(at)?.load(Ordering::Relaxed);
            bytes.copy_from_slice(&value.to_ne_bytes());
        }
        fence(Ordering::Acquire);
        Some(copy)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are a mapping this value owns; borrows of
        // it have ended.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok(), "unmapping our own mapping");
    }
}

/// A reserved address range, filled with read-only pieces of a memfd.
#[derive(Debug)]
pub(crate) struct Window {
    reserved: NonNull<c_void>,
    reserved_len: usize,
    base: NonNull<c_void>,
    len: usize,
}

// SAFETY: the range belongs to this value alone and to no thread.
unsafe impl Send for Window {}
// SAFETY: `&Window` only reads; changing what is mapped needs `&mut`.
unsafe impl Sync for Window {}

impl Window {
    /// Reserves `len` bytes of address space, nothing mapped.
    pub(crate) fn reserve(len: usize) -> Result<Self, Errno> {
        let reserved_len = len.checked_add(WINDOW_ALIGN).ok_or(Errno::NOMEM)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // no existing memory.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(
                core::ptr::null_mut(),
                reserved_len,
                ProtFlags::empty(),
                flags,
            )
        }?;
        let reserved = NonNull::new(reserved).ok_or(Errno::NOMEM)?;
        let skip = reserved.addr().get().wrapping_neg() % WINDOW_ALIGN;
        // SAFETY: `skip` is below `WINDOW_ALIGN`, so `base..base + len` lies
        // inside the reservation.
        let base = unsafe { reserved.byte_add(skip) };
        Ok(Self {
            reserved,
            reserved_len,
            base,
            len,
        })
    }

    /// Maps `len` bytes of `fd` at `file_offset` to `offset` of this window.
    /// On failure what was there may be gone or not: map it again.
    pub(crate) fn map(
        &mut self,
        offset: usize,
        len: usize,
        fd: impl AsFd,
        file_offset: u64,
    ) -> Result<(), Errno> {
        let end = offset.checked_add(len).ok_or(Errno::INVAL)?;
        if end > self.len || len == 0 {
            return Err(Errno::INVAL);
        }
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the target lies inside this window (checked), so only pieces
        // of the window are replaced; `&mut self` says that no slice of it is
        // borrowed.
        unsafe {
            let target = self.base.byte_add(offset).as_ptr();
            rustix::mm::mmap(target, len, ProtFlags::READ, flags, fd, file_offset)?;
        }
        Ok(())
    }

    /// Replaces `len` bytes at `offset` by a private copy, in place; whole
    /// pages, of whatever size was mapped there. Whoever reads them meanwhile
    /// through an address taken from [`Window::slice`] sees the same bytes
    /// before and after. On failure everything is as it was.
    pub(crate) fn make_private(&mut self, offset: usize, len: usize) -> Result<(), Errno> {
        let end = offset.checked_add(len).ok_or(Errno::INVAL)?;
        if end > self.len || len == 0 {
            return Err(Errno::INVAL);
        }
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // no existing memory.
        let copy = unsafe {
            rustix::mm::mmap_anonymous(core::ptr::null_mut(), len, prot, MapFlags::PRIVATE)
        }?;
        // SAFETY: source and target are `len` bytes each (the source checked
        // above, and mapped by this function's condition), the target is new,
        // so they do not overlap.
        unsafe {
            let source = self.base.byte_add(offset).cast::<u8>().as_ptr();
            core::ptr::copy_nonoverlapping(source, copy.cast::<u8>(), len);
        }
        // SAFETY: moves the new mapping, which nobody else knows, over pages
        // of this window. `&mut self` says that no slice of it is borrowed;
        // addresses that outlive their slices find the same bytes there. The
        // kernel checks what can fail (the number of mappings) before it
        // takes the old pages away.
        let moved = unsafe {
            rustix::mm::mprotect(copy, len, MprotectFlags::READ).and_then(|()| {
                let target = self.base.byte_add(offset).as_ptr();
                rustix::mm::mremap_fixed(copy, len, len, MremapFlags::MAYMOVE, target)
            })
        };
        if moved.is_err() {
            // SAFETY: still where it was made, and known to nobody else.
            let unmapped = unsafe { rustix::mm::munmap(copy, len) };
            debug_assert!(unmapped.is_ok(), "unmapping our own copy");
        }
        moved.map(|_| ())
    }

    /// `len` bytes at `offset`; `None` out of range. Pieces never mapped
    /// fault, so the caller hands out only a window that is full.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Option<&[u8]> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: in range (checked), mapped readable for as long as `self` is
        // borrowed (remapping needs `&mut`). The frames belong to a generation
        // that is held, and the exporter's kernel writes none of those; if it
        // breaks its word a reader sees other bytes, all of which are valid
        // `u8`, and `Snapshot::valid` tells.
        Some(unsafe {
            core::slice::from_raw_parts(self.base.byte_add(offset).cast::<u8>().as_ptr(), len)
        })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the reservation is this value's own, pieces mapped into it
        // included; borrows of it have ended.
        let unmapped = unsafe { rustix::mm::munmap(self.reserved.as_ptr(), self.reserved_len) };
        debug_assert!(unmapped.is_ok(), "unmapping our own reservation");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::OwnedFd;

    fn object(len: u64) -> OwnedFd {
        let fd = memfd_create("memory-test", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, len).expect("ftruncate");
        fd
    }

    #[test]
    fn words_outside_or_between_are_none() {
        let map = Mapping::read_write(object(4096), 4096).expect("map");
        map.store(4088, 7);
        assert_eq!(map.load(4088), Some(7));
        assert_eq!(map.load(4096), None);
        assert_eq!(map.load(4), None);
        assert_eq!(map.load(usize::MAX), None);
        assert!(map.copy::<[u64; 2]>(4088).is_none());
        assert_eq!(map.copy::<[u64; 2]>(4080), Some([0, 7]));
    }

    #[test]
    fn a_read_only_mapping_ignores_writes() {
        let fd = object(4096);
        let (reader, writer) = (
            Mapping::read_only(&fd, 4096).expect("map"),
            Mapping::read_write(&fd, 4096).expect("map"),
        );
        reader.store(0, 1);
        assert!(!reader.exchange(0, 0, 1));
        assert_eq!(writer.load(0), Some(0));
        assert!(writer.exchange(0, 0, 5));
        assert!(!writer.exchange(0, 0, 6));
        assert_eq!(reader.load(0), Some(5));
    }

    #[test]
    fn a_window_shows_pieces_side_by_side() {
        let fd = object(3 * 4096);
        let map = Mapping::read_write(&fd, 3 * 4096).expect("map");
        map.store(0, 1);
        map.store(2 * 4096, 3);
        let mut window = Window::reserve(2 * 4096).expect("reserve");
        window.map(0, 4096, &fd, 2 * 4096).expect("map");
        window.map(4096, 4096, &fd, 0).expect("map");
        let bytes = window.slice(0, 2 * 4096).expect("in range");
        assert_eq!((bytes[0], bytes[4096]), (3, 1));
        assert!(window.slice(4096, 4097).is_none());
        assert_eq!(window.map(4096, 8192, &fd, 0), Err(Errno::INVAL));
    }

    #[test]
    fn private_pages_keep_address_and_content_when_the_object_changes() {
        let fd = object(2 * 4096);
        let map = Mapping::read_write(&fd, 2 * 4096).expect("map");
        map.store(0, 1);
        map.store(4096, 2);
        let mut window = Window::reserve(2 * 4096).expect("reserve");
        window.map(0, 2 * 4096, &fd, 0).expect("map");
        let address = window.slice(0, 2 * 4096).expect("in range").as_ptr();
        window.make_private(4096, 4096).expect("copied");
        map.store(0, 3);
        map.store(4096, 4);
        let bytes = window.slice(0, 2 * 4096).expect("in range");
        assert_eq!(bytes.as_ptr(), address);
        assert_eq!((bytes[0], bytes[4096]), (3, 2));
        assert_eq!(window.make_private(4096, 8192), Err(Errno::INVAL));
        assert_eq!(window.make_private(0, 0), Err(Errno::INVAL));
    }
}
