//! [`Pages`]: memory for the heap's own books, outside every arena.
//!
//! Used by [`super::nodes`] and [`super::index`], and by the Linux backend. The library allocates nothing
//! else and links no C library, so the memory comes from the kernel below,
//! which is Linux or an enclave's; both give anonymous memory that is zero.

// UNSAFETY: turns fresh anonymous memory into a slice.
#![expect(unsafe_code)]

use crate::errno::Errno;
use crate::sys::syscall6;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use linux_raw_sys::general as raw;
use zerocopy::FromZeros;

const PAGE: usize = 4096;

/// A slice in anonymous memory of its own, given back when dropped.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the memory belongs to this value alone, as a boxed slice would.
unsafe impl<T: Send> Send for Pages<T> {}

impl<T: FromZeros> Pages<T> {
    /// `len` elements of zero bytes.
    ///
    /// # Errors
    /// ENOMEM, also for a size that cannot be.
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        const { assert!(align_of::<T>() <= PAGE && size_of::<T>() > 0) };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(Errno::ENOMEM)?;
        let start = map(bytes)?.cast();
        Ok(Self { start, len })
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: mapped by `new` for `len` elements, whose zero bytes are
        // values (FromZeros); only `&mut self` writes.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; `&mut self` is the only access.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Pages<T> {
    fn drop(&mut self) {
        unmap(self.start.cast(), self.len.saturating_mul(size_of::<T>()));
    }
}

/// Fresh private memory of `bytes`, zero.
fn map(bytes: usize) -> Result<NonNull<u8>, Errno> {
    let flags = raw::MAP_PRIVATE | raw::MAP_ANONYMOUS;
    let args = [
        0,
        bytes as u64,
        u64::from(raw::PROT_READ | raw::PROT_WRITE),
        u64::from(flags),
        u64::MAX,
        0,
    ];
    // SAFETY: a new mapping at a place the kernel chooses touches nothing.
    let address = Errno::from_result(unsafe { syscall6(u64::from(raw::__NR_mmap), args) });
    let address = address.map_err(|_| Errno::ENOMEM)?;
    let address = usize::try_from(address).map_err(|_| Errno::ENOMEM)?;
    NonNull::new(core::ptr::with_exposed_provenance_mut(address)).ok_or(Errno::ENOMEM)
}

/// Gives back what [`map`] gave.
fn unmap(start: NonNull<u8>, bytes: usize) {
    let address = start.as_ptr().expose_provenance() as u64;
    let args = [address, bytes as u64, 0, 0, 0, 0];
    // SAFETY: callers pass a mapping of their own that nobody uses any more.
    let _ = unsafe { syscall6(u64::from(raw::__NR_munmap), args) };
}

/// Tells a forked child from its parent: a page that a fork wipes.
///
/// The child's arenas are not mapped, and a lock of the heap may be held there
/// by a thread that the child does not have.
#[derive(Debug)]
pub(super) struct ForkMark {
    page: AtomicUsize,
}

impl ForkMark {
    pub(super) const fn new() -> Self {
        Self {
            page: AtomicUsize::new(0),
        }
    }

    fn word(&self) -> Option<&'static AtomicU64> {
        let page = self.page.load(Ordering::Acquire);
        if page == 0 {
            return None;
        }
        // SAFETY: a page that `set` mapped, aligned, never unmapped, and used
        // as this word only.
        Some(unsafe { AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(page)) })
    }

    /// Whether [`ForkMark::set`] was called in this very process.
    pub(super) fn is_set(&self) -> bool {
        self.word()
            .is_some_and(|word| word.load(Ordering::Relaxed) != 0)
    }

    /// Makes the mark; `true` if this process is a child that found its
    /// parent's.
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn set(&self) -> Result<bool, Errno> {
        if let Some(word) = self.word() {
            return Ok(word.swap(1, Ordering::AcqRel) == 0);
        }
        let page = map(PAGE)?;
        let address = page.as_ptr().expose_provenance();
        let args = [
            address as u64,
            PAGE as u64,
            u64::from(raw::MADV_WIPEONFORK),
            0,
            0,
            0,
        ];
        // SAFETY: advice on our own fresh page. In an enclave, where nothing
        // forks, it may be refused.
        let _ = unsafe { syscall6(u64::from(raw::__NR_madvise), args) };
        // SAFETY: our own page, which nobody else knows yet.
        unsafe { AtomicU64::from_ptr(page.as_ptr().cast()) }.store(1, Ordering::Relaxed);
        let first = self
            .page
            .compare_exchange(0, address, Ordering::AcqRel, Ordering::Acquire);
        if first.is_err() {
            // Another thread was faster; its page is good.
            unmap(page, PAGE);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_and_writable_to_the_last_element() {
        let mut pages = Pages::<u64>::new(1000).unwrap();
        assert!(pages.as_slice().iter().all(|&word| word == 0));
        pages.as_mut_slice()[999] = 7;
        assert_eq!(pages.as_slice()[999], 7);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for len in [0, usize::MAX, usize::MAX / 8, 1 << 58] {
            assert_eq!(Pages::<u64>::new(len).map(drop), Err(Errno::ENOMEM));
        }
    }

    #[test]
    fn a_mark_is_set_once() {
        let mark = ForkMark::new();
        assert!(!mark.is_set());
        assert_eq!(mark.set(), Ok(false));
        assert_eq!(mark.set(), Ok(false));
        assert!(mark.is_set());
    }
}
