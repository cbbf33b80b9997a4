//! [`Segment`] and [`Attachment`]: plain memory shared with other programs.
//!
//! In an enclave; a process of Linux has the same from `xemem_host`.
//!
//! ```no_run
//! use xasm::{Attachment, Segment, segment::Wish};
//!
//! # fn main() -> Result<(), xasm::Errno> {
//! let mut halo = Segment::make("halo", 1 << 20, Wish { signals: true, ..Wish::default() })?;
//! halo.memory().store(0, 42)?;
//! halo.signal()?;
//!
//! let other = Attachment::attach("field", false, None)?;
//! let first = other.memory().load(0)?;
//! # let _ = first;
//! # Ok(()) }
//! ```
//!
//! Others write to the memory at any time, so Rust code gets no slices of it but
//! words, and an address for whoever knows what the others do.

// UNSAFETY: accesses memory at an address from the kernel.
#![expect(unsafe_code)]

use crate::calls;
use crate::errno::Errno;
use crate::xemem::{self, Target};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use enclave_abi::arena::name_field;
use enclave_abi::syscall::{AttachArgs, SEGMENT_SIGNALS, SegmentArgs};

/// What kind of segment it is to be.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Bytes of a page behind it: 4 KiB or 2 MiB, 0 = either.
    pub page_bytes: u64,
    /// Who may read and write: mode bits as of a file.
    pub mode: u32,
    /// Group of the mode bits; `None` = the primary one of the enclave's user.
    pub gid: Option<u32>,
    /// Whether it can be signalled.
    pub signals: bool,
}

impl Default for Wish {
    /// Any pages, for this user alone, without signals.
    fn default() -> Self {
        Self {
            page_bytes: 0,
            mode: 0o600,
            gid: None,
            signals: false,
        }
    }
}

/// Memory that others see and may change.
#[derive(Debug)]
pub struct Memory {
    start: u64,
    size_bytes: u64,
    writable: bool,
}

impl Memory {
    /// Its first byte; good as long as what it is borrowed from.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        // Addresses of this kernel have as many bits as ours.
        core::ptr::with_exposed_provenance_mut(usize::try_from(self.start).unwrap_or(0))
    }

    /// Its bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The 64-bit word at `offset`.
    ///
    /// # Errors
    /// EFAULT outside the memory, EINVAL where no word begins.
    pub fn load(&self, offset: u64) -> Result<u64, Errno> {
        Ok(self.word(offset)?.load(Ordering::Acquire))
    }

    /// Stores the 64-bit word at `offset`.
    ///
    /// # Errors
    /// As [`Memory::load`]; EACCES if it is attached to read.
    pub fn store(&self, offset: u64, value: u64) -> Result<(), Errno> {
        if !self.writable {
            return Err(Errno::EACCES);
        }
        self.word(offset)?.store(value, Ordering::Release);
        Ok(())
    }

    fn word(&self, offset: u64) -> Result<&AtomicU64, Errno> {
        let end = offset.checked_add(8).ok_or(Errno::EFAULT)?;
        if end > self.size_bytes {
            return Err(Errno::EFAULT);
        }
        if !offset.is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        let offset = usize::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: inside the memory (checked), which the kernel keeps mapped as
        // long as the owner of this value lives.
        let at = unsafe { self.as_ptr().add(offset) };
        // SAFETY: aligned (the start is, the offset was checked); others access it
        // as memory shared between processes, here it is only accessed as atomic.
        Ok(unsafe { AtomicU64::from_ptr(at.cast()) })
    }
}

/// A plain segment of this program; it ends when dropped, and what others have
/// attached stays with them.
#[derive(Debug)]
pub struct Segment {
    segid: u64,
    page_bytes: u64,
    memory: Memory,
}

impl Segment {
    /// Makes a segment of fresh, zeroed memory; `name` may be empty, `size_bytes`
    /// 0 if it is for signals only.
    ///
    /// # Errors
    /// ENAMETOOLONG; ENOSYS outside an enclave; as [`xemem::segment`].
    pub fn make(name: &str, size_bytes: u64, wish: Wish) -> Result<Self, Errno> {
        calls::require()?;
        let mut args = SegmentArgs {
            name: [0; 64],
            size_bytes,
            page_bytes: wish.page_bytes,
            start: 0,
            mode: wish.mode,
            gid: wish.gid.unwrap_or(u32::MAX),
            flags: if wish.signals { SEGMENT_SIGNALS } else { 0 },
            pad: 0,
        };
        if !name.is_empty() {
            args.name = name_field(name).ok_or(Errno::ENAMETOOLONG)?;
        }
        let segid = xemem::segment(&mut args)?;
        Ok(Self {
            segid,
            page_bytes: args.page_bytes,
            memory: Memory {
                start: args.start,
                size_bytes,
                writable: true,
            },
        })
    }

    /// Its id, for others to get.
    #[must_use]
    pub fn segid(&self) -> u64 {
        self.segid
    }

    /// Bytes of a page behind it.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Gives it a further name.
    ///
    /// # Errors
    /// As [`calls::xemem_make`]; EINVAL without memory.
    pub fn name(&self, name: &str) -> Result<(), Errno> {
        calls::xemem_make(self.memory.as_ptr(), self.memory.size_bytes, name).map(drop)
    }

    /// Signals whoever has subscribed.
    ///
    /// # Errors
    /// As [`xemem::signal`].
    pub fn signal(&self) -> Result<(), Errno> {
        xemem::signal(Target::Segment(self.segid))
    }

    /// Signals since the last time, at least one; waits as long as `timeout`, for
    /// ever if `None`. `None` once it has ended.
    ///
    /// # Errors
    /// As [`xemem::wait`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<u64>, Errno> {
        waited(Target::Segment(self.segid), timeout)
    }

    /// Nobody finds or attaches it any more; the memory stays until dropped.
    ///
    /// # Errors
    /// EIDRM if somebody else has removed it.
    pub fn remove(&mut self) -> Result<(), Errno> {
        xemem::remove(self.segid)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // A failure means that it is gone already.
        let _ = if self.memory.size_bytes == 0 {
            xemem::remove(self.segid)
        } else {
            // SAFETY: `Memory` is only lent out, and only by this value.
            unsafe { xemem::detach(self.memory.start) }
        };
    }
}

/// A plain segment of anybody, attached whole or in part.
#[derive(Debug)]
pub struct Attachment {
    apid: u64,
    page_bytes: u64,
    memory: Memory,
}

impl Attachment {
    /// Attaches all of the segment `name`; waits for the name as long as
    /// `timeout`, for ever if `None`.
    ///
    /// # Errors
    /// As [`Attachment::piece`]; ENOENT, ETIMEDOUT.
    pub fn attach(name: &str, writable: bool, timeout: Option<Duration>) -> Result<Self, Errno> {
        calls::require()?;
        let segid = xemem::lookup(name, crate::import::milliseconds(timeout))?;
        Self::piece(segid, writable, 0, 0)
    }

    /// Attaches `len` bytes at `offset` of a segment, or all that follow if 0.
    ///
    /// # Errors
    /// EACCES without permission, EIDRM if it has ended; EINVAL for an arena, or
    /// for a piece that is outside or does not begin at a page; as
    /// [`xemem::attach`].
    pub fn piece(segid: u64, writable: bool, offset: u64, len: u64) -> Result<Self, Errno> {
        let flags = if writable { xemem::RDWR } else { xemem::RDONLY };
        let apid = xemem::get(segid, flags)?;
        let mut args = AttachArgs {
            apid,
            offset,
            size_bytes: len,
            ..AttachArgs::default()
        };
        if let Err(errno) = xemem::attach(&mut args) {
            // SAFETY: nothing is attached by it.
            let _ = unsafe { xemem::release(apid) };
            return Err(errno);
        }
        Ok(Self {
            apid,
            page_bytes: args.chunk_bytes,
            memory: Memory {
                start: args.start,
                size_bytes: args.size_bytes,
                writable,
            },
        })
    }

    /// Bytes of a page behind it.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Has signals kept from now on.
    ///
    /// # Errors
    /// As [`xemem::subscribe`].
    pub fn subscribe(&mut self) -> Result<(), Errno> {
        xemem::subscribe(Target::Access(self.apid))
    }

    /// Signals every other subscriber, the segment's maker among them.
    ///
    /// # Errors
    /// As [`xemem::signal`].
    pub fn signal(&self) -> Result<(), Errno> {
        xemem::signal(Target::Access(self.apid))
    }

    /// As [`Segment::wait`], after [`Attachment::subscribe`].
    ///
    /// # Errors
    /// As [`xemem::wait`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<u64>, Errno> {
        waited(Target::Access(self.apid), timeout)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: `Memory` is only lent out, and only by this value. A failure
        // means that the broker knows of no such access any more.
        let _ = unsafe { xemem::release(self.apid) };
    }
}

fn waited(by: Target, timeout: Option<Duration>) -> Result<Option<u64>, Errno> {
    let count = xemem::wait(by, crate::import::milliseconds(timeout))?;
    Ok((count != 0).then_some(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_checked_before_they_are_touched() {
        let mut words = [1_u64, 2];
        let shared = Memory {
            start: calls::address(words.as_mut_ptr().expose_provenance()),
            size_bytes: 16,
            writable: true,
        };
        assert_eq!((shared.load(0), shared.load(8)), (Ok(1), Ok(2)));
        for outside in [9, 16, u64::MAX] {
            assert_eq!(shared.load(outside), Err(Errno::EFAULT), "{outside}");
        }
        assert_eq!(shared.store(4, 0), Err(Errno::EINVAL));
        assert_eq!(shared.store(8, 7), Ok(()));
        let read_only = Memory {
            writable: false,
            ..shared
        };
        assert_eq!(read_only.store(0, 9), Err(Errno::EACCES));
        assert_eq!((read_only.load(0), read_only.load(8)), (Ok(1), Ok(7)));
    }

    #[test]
    fn plain_linux_shares_nothing() {
        assert_eq!(crate::select(crate::Choice::Off), Ok(()));
        let made = Segment::make("halo", 4096, Wish::default());
        assert_eq!(made.map(drop), Err(Errno::ENOSYS));
        let attached = Attachment::attach("halo", false, Some(Duration::ZERO));
        assert_eq!(attached.map(drop), Err(Errno::ENOSYS));
    }
}
