//! What readers are compared to: plain mappings, and the processor's clock.
//!
//! Used by the measurements of readers and doorbells. A mapping is unmapped
//! when dropped.

// UNSAFETY: mmap, memory that others write, and rdtsc have no safe form.
#![expect(unsafe_code)]

use anyhow::Context as _;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr::NonNull;

/// Mapped memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    bytes: usize,
}

impl Mapping {
    /// Maps `bytes` at `offset` of an object that nobody writes to meanwhile,
    /// read-only.
    ///
    /// # Errors
    /// The host refuses.
    pub(crate) fn shared(memfd: impl AsFd, offset: u64, bytes: usize) -> anyhow::Result<Self> {
        let (prot, flags) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping at an address the host kernel chooses replaces
        // nothing.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, prot, flags, memfd, offset) };
        Self::new(start, bytes)
    }

    /// Private memory in 2 MiB pages, every word of it written: of the pool,
    /// else transparent ones.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn private(bytes: usize) -> anyhow::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let map = |flags| {
            // SAFETY: a new mapping at an address the host kernel chooses
            // replaces nothing.
            unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, prot, flags) }
        };
        let start = map(MapFlags::PRIVATE | MapFlags::HUGETLB)
            .or_else(|_| map(MapFlags::PRIVATE).inspect(|start| advise(*start, bytes)));
        let mapping = Self::new(start, bytes)?;
        let words = mapping.start.cast::<u64>();
        for at in 0..bytes / size_of::<u64>() {
            // SAFETY: inside the writable mapping, which nobody else refers to.
            unsafe { words.add(at).write(at as u64) };
        }
        Ok(mapping)
    }

    /// Private memory that nobody has touched, but for `data` at `at`.
    ///
    /// # Errors
    /// The host refuses, or `data` does not fit.
    pub(crate) fn untouched(bytes: usize, at: usize, data: &[u8]) -> anyhow::Result<Self> {
        let end = at.checked_add(data.len());
        anyhow::ensure!(
            end.is_some_and(|end| end <= bytes),
            "{} bytes at {at} do not fit in {bytes}",
            data.len()
        );
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the host kernel chooses replaces
        // nothing.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, prot, MapFlags::PRIVATE) };
        let mapping = Self::new(start, bytes)?;
        let to = mapping.start.cast::<u8>().as_ptr();
        // SAFETY: inside the new writable mapping, as was checked, which nobody
        // else refers to.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.add(at), data.len()) };
        Ok(mapping)
    }

    /// Where it is.
    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    fn new(start: rustix::io::Result<*mut c_void>, bytes: usize) -> anyhow::Result<Self> {
        let start = start.context("map memory to compare with")?;
        let start = NonNull::new(start).context("memory at address 0")?;
        Ok(Self { start, bytes })
    }

    /// Its contents.
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped readable for as long as `self` lives; nobody writes to
        // it, as the constructors say.
        unsafe { std::slice::from_raw_parts(self.start.cast().as_ptr(), self.bytes) }
    }
}

/// Asks for transparent huge pages; without them the memory is as good.
fn advise(start: *mut c_void, bytes: usize) {
    // SAFETY: the range is a mapping made by the caller; the advice changes no
    // content.
    let _ = unsafe { madvise(start, bytes, Advice::LinuxHugepage) };
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no slice of it outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr(), self.bytes) };
    }
}

/// The processor's time stamp counter: one clock for all cores, and for guests
/// without an offset.
pub(crate) fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_written_throughout() {
        let mapping = Mapping::private(4 << 20).unwrap();
        let last = mapping.as_slice().last_chunk::<8>().copied().unwrap();
        assert_eq!(u64::from_ne_bytes(last), (4 << 20) / 8 - 1);
    }

    #[test]
    fn time_goes_on() {
        let before = cycles();
        assert!(cycles() >= before);
    }
}
