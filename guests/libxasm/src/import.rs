//! [`Import`]: following an arena of another enclave, without a copy.
//!
//! ```no_run
//! use xasm::{Follow, Import};
//!
//! # fn main() -> Result<(), xasm::Errno> {
//! let mut heat = Import::attach("heat", Follow::Latest, None)?;
//! while let Some(snapshot) = heat.next(None)? {
//!     let field = snapshot.var::<f64>("temperature")?;
//!     let mean = field.iter().sum::<f64>() / field.len() as f64;
//!     # let _ = (mean, snapshot.step());
//! }
//! # Ok(()) }
//! ```
//!
//! The memory is read-only and shows one generation at a time; the exporter goes
//! on writing elsewhere meanwhile. The next generation takes the place of the
//! one before, so no slice of that may be left:
//!
//! ```compile_fail,E0499
//! # fn two(heat: &mut xasm::Import) -> Result<f64, xasm::Errno> {
//! let first = heat.next(None)?.unwrap();
//! let second = heat.next(None)?.unwrap();
//! Ok(first.time() + second.time())
//! # }
//! ```

// UNSAFETY: turns an address range from the kernel into slices.
#![expect(unsafe_code)]

use crate::array::{Array, Element};
use crate::errno::Errno;
use crate::xemem;
use core::ptr::NonNull;
use core::time::Duration;
use enclave_abi::addr::range_within;
use enclave_abi::arena::{MAX_VARS, VarDesc};
use enclave_abi::syscall::{AttachArgs, FOLLOW_EVERY, FOLLOW_LATEST, Imported};

/// Which generations a reader gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// The newest one, each time.
    Latest,
    /// Each one, in order, as far as the exporter's queue goes.
    Every,
}

/// Why there will be no further generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its program closed the arena.
    Closed,
    /// Its program died.
    Died,
    /// Its enclave, or Linux process, is gone.
    Gone,
    /// Somebody with the right to do so removed it.
    Removed,
}

/// An attached arena.
#[derive(Debug)]
pub struct Import {
    base: NonNull<u8>,
    args: AttachArgs,
    /// Newest generation seen, 0 at first.
    newest: u64,
    /// What is shown, unless the last call failed.
    shown: Option<Imported>,
    missed: u64,
    end: Option<End>,
}

// SAFETY: the memory belongs to the process, not to a thread; it is only read,
// and what it shows changes by `&mut Import` alone.
unsafe impl Send for Import {}
// SAFETY: through `&Import` memory is only read, whoever does.
unsafe impl Sync for Import {}

/// One generation, readable until dropped or the next one is asked for.
#[derive(Debug)]
pub struct Snapshot<'a> {
    import: &'a Import,
    record: Imported,
}

impl Import {
    /// Attaches the arena `name`; waits for the name as long as `timeout`, for
    /// ever if `None`.
    ///
    /// # Errors
    /// ENOENT if `timeout` is zero and there is no such arena, ETIMEDOUT if it
    /// did not come in time; EACCES without permission; as
    /// [`xemem::lookup`], [`xemem::get`] and [`xemem::attach`].
    pub fn attach(name: &str, follow: Follow, timeout: Option<Duration>) -> Result<Self, Errno> {
        crate::calls::require()?;
        let segid = xemem::lookup(name, milliseconds(timeout))?;
        let apid = xemem::get(segid, xemem::RDONLY)?;
        let policy = match follow {
            Follow::Latest => FOLLOW_LATEST,
            Follow::Every => FOLLOW_EVERY,
        };
        Self::over(apid, policy).inspect_err(|_| {
            // SAFETY: nothing uses what is attached by it: nobody was given it.
            let _ = unsafe { xemem::release(apid) };
        })
    }

    fn over(apid: u64, policy: u32) -> Result<Self, Errno> {
        let mut args = AttachArgs {
            apid,
            policy,
            ..AttachArgs::default()
        };
        xemem::attach(&mut args)?;
        let usable = range_within(args.start, args.size_bytes, isize::MAX as u64);
        let address = usize::try_from(args.start).map_err(|_| Errno::EPROTO)?;
        let base = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(address));
        let base = base.filter(|_| usable).ok_or(Errno::EPROTO)?;
        Ok(Self {
            base,
            args,
            newest: 0,
            shown: None,
            missed: 0,
            end: None,
        })
    }

    /// The next generation; `None` at the end of the stream. Waits as long as
    /// `timeout`, for ever if `None`. The generation before is given back first,
    /// so an exporter with few banks can go on.
    ///
    /// # Errors
    /// ETIMEDOUT; as [`xemem::next`].
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Snapshot<'_>>, Errno> {
        let before = self.shown.take();
        // SAFETY: slices borrow from a Snapshot, which borrows from `self`: none
        // is left. After an error there is no way to the memory but this call.
        let (shown, record) = unsafe { xemem::next(self.args.start, milliseconds(timeout)) }?;
        if !shown {
            self.shown = before;
            self.end = match record.end_reason {
                1 => Some(End::Closed),
                2 => Some(End::Died),
                3 => Some(End::Gone),
                _ => Some(End::Removed),
            };
            return Ok(None);
        }
        if self.newest != 0 {
            let gap = record.generation.saturating_sub(self.newest);
            self.missed = self.missed.saturating_add(gap.saturating_sub(1));
        }
        self.newest = self.newest.max(record.generation);
        self.shown = Some(record);
        let import = self;
        Ok(Some(Snapshot { import, record }))
    }

    /// Waits until there is a generation after `after`, as long as `timeout`, for
    /// ever if `None`; leases none. The newest one there is: not later than
    /// `after` when the stream has ended, and now and then for no reason.
    ///
    /// Between enclaves of one user no thread of the host wakes up for this: the
    /// exporter's publish interrupts this processor.
    ///
    /// # Errors
    /// ETIMEDOUT; EOPNOTSUPP where the exporter cannot ring here: its user is
    /// another one, or it has no bell to spare.
    pub fn wait(&self, after: u64, timeout: Option<Duration>) -> Result<u64, Errno> {
        xemem::await_newer(self.args.start, after, milliseconds(timeout))
    }

    /// The generation that is still shown after the end of the stream.
    #[must_use]
    pub fn last(&self) -> Option<Snapshot<'_>> {
        let record = self.shown.filter(|_| self.end.is_some())?;
        let import = self;
        Some(Snapshot { import, record })
    }

    /// Generations published since the first one seen that this reader never
    /// got.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Why the stream ended, if it did.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Payload bytes of the arena.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.args.size_bytes
    }

    /// Bytes of a chunk of the arena.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        self.args.chunk_bytes
    }

    /// Address of the first byte.
    #[must_use]
    pub fn base(&self) -> *const u8 {
        self.base.as_ptr()
    }

    /// What the exporter says about its variables, as far as it is right.
    pub fn variables(&self) -> impl Iterator<Item = VarDesc> {
        let all = 0..u32::try_from(MAX_VARS).unwrap_or(u32::MAX);
        let start = self.args.start;
        all.map_while(move |index| match xemem::variable(start, index) {
            Ok(variable) => Some(Some(variable)),
            // Described wrongly; there may be others.
            Err(Errno::EINVAL) => Some(None),
            Err(_) => None,
        })
        .flatten()
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        // SAFETY: slices borrow from `self`, so none is left. A failure means
        // that the kernel knows of no such access any more.
        let _ = unsafe { xemem::release(self.args.apid) };
    }
}

impl<'a> Snapshot<'a> {
    /// The generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.record.generation
    }

    /// The exporter's time step.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.record.step
    }

    /// The exporter's time, in its own unit.
    #[must_use]
    pub fn time(&self) -> f64 {
        f64::from_bits(self.record.time_bits)
    }

    /// All that is known of it.
    #[must_use]
    pub fn record(&self) -> &Imported {
        &self.record
    }

    /// Whether what was read until now is what was published. Ask after reading,
    /// where the exporter may take generations away (`QueueFull::DiscardOldest`).
    #[must_use]
    pub fn valid(&self) -> bool {
        xemem::is_valid(self.import.args.start) == Ok(true)
    }

    /// The whole payload.
    #[must_use]
    pub fn as_slice(&self) -> &'a [u8] {
        let bytes = usize::try_from(self.import.args.size_bytes).unwrap_or(0);
        // SAFETY: the kernel has mapped so many bytes there for reading, all of
        // one generation; what is there changes by `&mut Import` only, which
        // this borrow excludes. An exporter that breaks its word shows other
        // bytes, all of which are valid `u8`; `valid` tells.
        unsafe { core::slice::from_raw_parts(self.import.base.as_ptr(), bytes) }
    }

    /// An array at a place the caller knows.
    ///
    /// # Errors
    /// EFAULT when it is not inside the arena, EINVAL when it is misaligned.
    pub fn get<T: Element>(&self, array: Array<T>) -> Result<&'a [T], Errno> {
        let bytes = array.nbytes().ok_or(Errno::EOVERFLOW)?;
        if !range_within(array.offset(), bytes, self.import.args.size_bytes) {
            return Err(Errno::EFAULT);
        }
        let offset = usize::try_from(array.offset()).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: `offset` is inside the mapping or one past its end.
        let start = unsafe { self.import.base.add(offset) }.cast::<T>();
        if !start.is_aligned() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: inside the mapping (checked) and aligned; every bit pattern is
        // a valid `T`; the rest as in `as_slice`.
        Ok(unsafe { core::slice::from_raw_parts(start.as_ptr(), array.len()) })
    }

    /// The elements of variable `name`, in the order in which they lie.
    ///
    /// # Errors
    /// ENOENT if there is none, EINVAL if it is not of that type.
    pub fn var<T: Element>(&self, name: &str) -> Result<&'a [T], Errno> {
        let found = self.import.variables().find(|v| v.name() == Some(name));
        let desc = found.ok_or(Errno::ENOENT)?;
        if !T::DTYPE.describes(&desc) {
            return Err(Errno::EINVAL);
        }
        let len = desc.nbytes / desc.element_bytes().max(1);
        let len = usize::try_from(len).map_err(|_| Errno::EOVERFLOW)?;
        self.get(Array::at(desc.offset, len))
    }
}

/// A timeout as the kernel takes it.
pub(crate) fn milliseconds(timeout: Option<Duration>) -> u32 {
    timeout.map_or(xemem::NO_LIMIT, |timeout| {
        // Less than "for ever", and no wait only where none was asked for.
        let whole = timeout.as_nanos().div_ceil(1_000_000);
        u32::try_from(whole).map_or(xemem::NO_LIMIT - 1, |ms| ms.min(xemem::NO_LIMIT - 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_round_up_and_never_become_for_ever() {
        assert_eq!(milliseconds(None), u32::MAX);
        assert_eq!(milliseconds(Some(Duration::ZERO)), 0);
        assert_eq!(milliseconds(Some(Duration::from_nanos(1))), 1);
        assert_eq!(milliseconds(Some(Duration::from_millis(30))), 30);
        assert_eq!(milliseconds(Some(Duration::MAX)), u32::MAX - 1);
    }

    #[test]
    fn plain_linux_attaches_nothing() {
        let none = Import::attach("heat", Follow::Latest, Some(Duration::ZERO));
        assert_eq!(none.map(drop), Err(Errno::ENOSYS));
    }
}
