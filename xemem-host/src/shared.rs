//! Memory of a plain segment, mapped: what an exporter or importer holds.
//!
//! Other processes may write it at any time, so nothing here gives out a slice:
//! bytes are copied in and out word by word, and single words are atomic, which
//! is what futexes and counters need. Unmapped when dropped. The object is one
//! that cannot shrink (the client checks), so access never raises SIGBUS.

// UNSAFETY: mmap, and access to what it returned.
#![expect(unsafe_code)]

use crate::wire::Access;
use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::os::fd::AsFd;

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Why memory was not accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[must_use]
pub enum AccessError {
    /// Outside the mapping.
    #[error("{len} bytes at {offset} are not inside {size} bytes")]
    Range {
        /// Where.
        offset: usize,
        /// How many.
        len: usize,
        /// Bytes there are.
        size: usize,
    },
    /// A word must not straddle two.
    #[error("offset {offset} is not a multiple of {align}")]
    Alignment {
        /// Where.
        offset: usize,
        /// Bytes of the word.
        align: usize,
    },
    /// Mapped read-only.
    #[error("this attachment is read-only")]
    ReadOnly,
}

/// A piece of a plain segment, mapped.
#[derive(Debug)]
pub struct SharedMemory {
    base: NonNull<c_void>,
    mapped: usize,
    len: usize,
    access: Access,
}

// SAFETY: the mapping belongs to this value alone and to no thread.
unsafe impl Send for SharedMemory {}
// SAFETY: all access through `&SharedMemory` is atomic.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps `len` bytes at `offset` of `fd`, whole pages of `page_bytes`. The
    /// object must be at least so long and sealed against shrinking.
    pub(crate) fn map(
        fd: impl AsFd,
        offset: u64,
        len: usize,
        page_bytes: usize,
        access: Access,
    ) -> Result<Self, Errno> {
        let mapped = len.checked_next_multiple_of(page_bytes.max(1));
        let mapped = mapped.ok_or(Errno::INVAL)?;
        let prot = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let (anywhere, flags) = (core::ptr::null_mut(), MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // no existing memory.
        let base = unsafe { rustix::mm::mmap(anywhere, mapped, prot, flags, fd, offset) }?;
        let base = NonNull::new(base).ok_or(Errno::NOMEM)?;
        Ok(Self {
            base,
            mapped,
            len,
            access,
        })
    }

    /// Allocates every page now: a shortage is an error here, never a signal
    /// at some later access.
    pub(crate) fn populate(&self) -> Result<(), Errno> {
        let advice = match self.access {
            Access::ReadOnly => Advice::LinuxPopulateRead,
            Access::ReadWrite => Advice::LinuxPopulateWrite,
        };
        // SAFETY: our own mapping; populating changes no content.
        match unsafe { rustix::mm::madvise(self.base.as_ptr(), self.mapped, advice) } {
            // What the kernel says where a page cannot be had.
            Err(Errno::FAULT) => Err(Errno::NOMEM),
            other => other,
        }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What this mapping allows.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Where it is, for code that must have an address: locks, foreign
    /// languages. Valid as long as this value; others may write there.
    #[must_use]
    pub fn as_ptr(&self) -> *mut c_void {
        self.base.as_ptr()
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`AccessError::Range`]; nothing is copied.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), AccessError> {
        self.check(offset, out.len())?;
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let whole = at.is_multiple_of(WORD) && rest.len() >= WORD;
            let (piece, left) = rest.split_at_mut(if whole { WORD } else { 1 });
            if whole {
                let word = self.place::<AtomicU64>(at).load(Ordering::Relaxed);
                piece.copy_from_slice(&word.to_ne_bytes());
            } else {
                piece[0] = self.place::<AtomicU8>(at).load(Ordering::Relaxed);
            }
            at += piece.len();
            rest = left;
        }
        fence(Ordering::Acquire);
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`AccessError::Range`] or [`AccessError::ReadOnly`]; nothing is written.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), AccessError> {
        self.check_writable()?;
        self.check(offset, bytes.len())?;
        fence(Ordering::Release);
        let mut at = offset;
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            let word = rest
                .first_chunk::<WORD>()
                .filter(|_| at.is_multiple_of(WORD));
            let step = if let Some(word) = word {
                let value = u64::from_ne_bytes(*word);
                self.place::<AtomicU64>(at).store(value, Ordering::Relaxed);
                WORD
            } else {
                self.place::<AtomicU8>(at).store(first, Ordering::Relaxed);
                1
            };
            at += step;
            rest = &rest[step..];
        }
        Ok(())
    }

    /// The 32-bit word at `offset`.
    ///
    /// # Errors
    /// Out of range or unaligned.
    pub fn load_u32(&self, offset: usize) -> Result<u32, AccessError> {
        self.check_word(offset, size_of::<u32>())?;
        Ok(self.place::<AtomicU32>(offset).load(Ordering::Acquire))
    }

    /// The 64-bit word at `offset`.
    ///
    /// # Errors
    /// Out of range or unaligned.
    pub fn load_u64(&self, offset: usize) -> Result<u64, AccessError> {
        self.check_word(offset, WORD)?;
        Ok(self.place::<AtomicU64>(offset).load(Ordering::Acquire))
    }

    /// The 32-bit word at `offset`, to write or to wait at (futex).
    ///
    /// # Errors
    /// Out of range, unaligned, or mapped read-only.
    pub fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, AccessError> {
        self.check_writable()?;
        self.check_word(offset, size_of::<u32>())?;
        Ok(self.place(offset))
    }

    /// The 64-bit word at `offset`, to write.
    ///
    /// # Errors
    /// Out of range, unaligned, or mapped read-only.
    pub fn atomic_u64(&self, offset: usize) -> Result<&AtomicU64, AccessError> {
        self.check_writable()?;
        self.check_word(offset, WORD)?;
        Ok(self.place(offset))
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), AccessError> {
        let size = self.len;
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(AccessError::Range { offset, len, size }),
        }
    }

    fn check_word(&self, offset: usize, align: usize) -> Result<(), AccessError> {
        if !offset.is_multiple_of(align) {
            return Err(AccessError::Alignment { offset, align });
        }
        self.check(offset, align)
    }

    fn check_writable(&self) -> Result<(), AccessError> {
        match self.access {
            Access::ReadOnly => Err(AccessError::ReadOnly),
            Access::ReadWrite => Ok(()),
        }
    }

    /// The atomic at `offset`, which the caller has checked: in range, aligned,
    /// and only loaded from unless the mapping is writable.
    fn place<T: Atomic>(&self, offset: usize) -> &T {
        debug_assert!(
            offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.len
        );
        // SAFETY: in range and aligned (checked by the caller, mappings are
        // page aligned), mapped as long as `self`. Other processes access it
        // as memory at large; on our side all access is atomic, and every bit
        // pattern is a value of `T`.
        unsafe { self.base.byte_add(offset).cast::<T>().as_ref() }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: a mapping this value owns; borrows of it have ended.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.mapped) };
        debug_assert!(unmapped.is_ok(), "unmapping our own mapping");
    }
}

/// Atomics of any bit pattern.
trait Atomic {}
impl Atomic for AtomicU8 {}
impl Atomic for AtomicU32 {}
impl Atomic for AtomicU64 {}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn pair() -> (SharedMemory, SharedMemory) {
        let fd = memfd_create("shared-test", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, 8192).expect("sized");
        let map = |access| SharedMemory::map(&fd, 4096, 100, 4096, access).expect("mapped");
        (map(Access::ReadWrite), map(Access::ReadOnly))
    }

    #[test]
    fn bytes_arrive_at_any_offset_and_length() {
        let (writer, reader) = pair();
        let bytes: Vec<u8> = (1..=100).collect();
        for offset in 0..20 {
            for len in 0..40 {
                let bytes = &bytes[offset..offset + len];
                writer.write(offset, bytes).expect("inside");
                let mut seen = vec![0; len];
                reader.read(offset, &mut seen).expect("inside");
                assert_eq!(seen, bytes);
            }
        }
    }

    #[test]
    fn what_is_outside_unaligned_or_read_only_is_refused() {
        let (writer, reader) = pair();
        let size = 100;
        let range = |offset, len| Err(AccessError::Range { offset, len, size });
        assert_eq!(writer.write(100, &[1]), range(100, 1));
        assert_eq!(writer.read(usize::MAX, &mut [0; 2]), range(usize::MAX, 2));
        assert!(writer.read(100, &mut []).is_ok());
        // The page goes on behind the piece; the piece does not.
        assert_eq!(writer.load_u64(96).err(), range(96, 8).err());
        assert_eq!(writer.load_u32(96), Ok(0));
        let unaligned = AccessError::Alignment {
            offset: 4,
            align: 8,
        };
        assert_eq!(writer.atomic_u64(4).err(), Some(unaligned));
        assert_eq!(reader.write(0, &[1]), Err(AccessError::ReadOnly));
        assert_eq!(reader.atomic_u32(0).err(), Some(AccessError::ReadOnly));
        assert_eq!(reader.load_u32(0), Ok(0));
    }

    #[test]
    fn words_are_shared() {
        let (writer, reader) = pair();
        let word = writer.atomic_u64(8).expect("a word");
        word.store(7, Ordering::Release);
        assert_eq!(reader.load_u64(8), Ok(7));
        assert_eq!(reader.load_u32(12), Ok(0));
    }
}
