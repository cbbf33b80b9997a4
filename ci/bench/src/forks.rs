//! `fork` of a process that has touched memory: what a publish is compared to.
//!
//! Used by the publish measurement. The memory is anonymous, in 4 KiB pages,
//! every page written once, as a simulation's heap without huge pages.

// UNSAFETY: mmap, madvise and fork have no safe form.
#![expect(unsafe_code)]

use anyhow::Context as _;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::process::{Pid, WaitOptions, waitpid};
use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Bytes between two writes.
const PAGE_BYTES: usize = 4096;

/// Touched memory of this process.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<c_void>,
    bytes: usize,
}

impl Memory {
    /// Takes and touches `bytes`.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn touch(bytes: usize) -> anyhow::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the host kernel chooses replaces
        // nothing.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, prot, MapFlags::PRIVATE) };
        let start = start.context("map memory to fork with")?;
        let start = NonNull::new(start).context("memory at address 0")?;
        let memory = Self { start, bytes };
        // SAFETY: the range is the mapping made above; the advice changes no
        // content.
        unsafe { madvise(start.as_ptr(), bytes, Advice::LinuxNoHugepage) }
            .context("ask for 4 KiB pages")?;
        for offset in (0..bytes).step_by(PAGE_BYTES) {
            // SAFETY: `offset` is inside the writable mapping, which nobody
            // else refers to.
            unsafe { start.cast::<u8>().add(offset).write_volatile(1) };
        }
        Ok(memory)
    }

    /// Forks a child that exits at once; returns how long the call took here.
    ///
    /// # Errors
    /// The host refuses, or the child cannot be waited for.
    pub(crate) fn fork(&self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        // SAFETY: the child calls `_exit` only, which is async-signal-safe, so
        // locks held by other threads at this moment do not matter.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(0) };
        }
        let took = start.elapsed();
        let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 0) else {
            return Err(io::Error::last_os_error()).context("fork");
        };
        waitpid(Some(pid), WaitOptions::empty()).context("wait for the child")?;
        Ok(took)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference to it was ever made.
        let _ = unsafe { munmap(self.start.as_ptr(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_takes_time_and_leaves_no_child() {
        let memory = Memory::touch(1 << 20).unwrap();
        assert!(memory.fork().unwrap() > Duration::ZERO);
    }
}
