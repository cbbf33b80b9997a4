//! Writable shared memory for the pretended kernel, and the attempt to get
//! some where there should be none.

// UNSAFETY: mmap, and atomic access to what it returned.
#![expect(unsafe_code)]

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// A mapping of the first bytes of an object, for life.
pub(crate) struct Shared {
    base: *mut core::ffi::c_void,
    len: usize,
}

// SAFETY: access is atomic, and the mapping is this value's own.
unsafe impl Send for Shared {}

impl Shared {
    pub(crate) fn new(fd: impl AsFd, len: u64) -> Result<Self, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::OVERFLOW)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping touches no existing memory.
        let base = unsafe { mmap(core::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) }?;
        Ok(Self { base, len })
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        let offset = usize::try_from(offset).expect("an offset");
        assert!(offset % 8 == 0 && offset + 8 <= self.len, "inside");
        // SAFETY: aligned and in range of a mapping that lives as long as
        // `self`; all access is atomic.
        unsafe { &*self.base.byte_add(offset).cast::<AtomicU64>() }
    }

    pub(crate) fn load(&self, offset: u64) -> u64 {
        self.word(offset).load(Ordering::Acquire)
    }

    pub(crate) fn store(&self, offset: u64, value: u64) {
        self.word(offset).store(value, Ordering::Release);
    }

    pub(crate) fn exchange(&self, offset: u64, old: u64, new: u64) -> bool {
        self.word(offset)
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        for (at, word) in (offset..).step_by(8).zip(bytes.chunks_exact(8)) {
            self.store(at, u64::from_ne_bytes(word.try_into().expect("a word")));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: our own mapping; borrows of it have ended.
        unsafe { munmap(self.base, self.len) }.expect("our own mapping");
    }
}
