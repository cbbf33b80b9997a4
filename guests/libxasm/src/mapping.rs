//! [`Mapping`]: the memory of one arena, as typed slices.
//!
//! Owned by [`crate::Arena`]. The private fields carry the argument of every
//! `unsafe` block here: a mapping is made in one place, from an address range
//! the kernel has just mapped readable, writable and zeroed for nobody else,
//! and it is unmapped when the mapping is dropped.

// UNSAFETY: turns an address range from the kernel into slices.
#![expect(unsafe_code)]

use crate::array::{Array, Element};
use crate::calls;
use crate::errno::Errno;
use core::ptr::NonNull;
use enclave_abi::addr::range_within;
use enclave_abi::syscall::ArenaArgs;

/// The memory of one arena.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: u64,
    slot: u32,
}

// SAFETY: the memory belongs to the process, not to a thread; shared access
// through `&Mapping` is read-only, exclusive access needs `&mut Mapping`.
unsafe impl Send for Mapping {}
// SAFETY: as above; a publish through another thread's `&mut` excludes `&`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Asks the kernel for an arena.
    ///
    /// # Errors
    /// As [`calls::arena_create`]; EPROTO when the answer is no usable range.
    pub(crate) fn create(mut args: ArenaArgs) -> Result<Self, Errno> {
        let bytes = args.size_bytes;
        let slot = calls::arena_create(&mut args)?;
        let usable = range_within(args.start, bytes, isize::MAX as u64);
        let address = usize::try_from(args.start).map_err(|_| Errno::EPROTO)?;
        let base = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(address));
        match base {
            Some(base) if usable => Ok(Self { base, bytes, slot }),
            _ => Err(Errno::EPROTO),
        }
    }

    /// Address of the first byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The same as a number.
    pub(crate) fn address(&self) -> u64 {
        calls::address(self.base.addr().get())
    }

    /// Bytes of the mapping.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The kernel's number for the arena.
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// Start of `array`, checked for bounds and alignment.
    fn locate<T: Element>(&self, array: Array<T>) -> Result<NonNull<T>, Errno> {
        let bytes = array.nbytes().ok_or(Errno::EOVERFLOW)?;
        if !range_within(array.offset(), bytes, self.bytes) {
            return Err(Errno::EFAULT);
        }
        let offset = usize::try_from(array.offset()).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: `offset` ≤ `bytes`, so the result stays inside the mapping
        // or one past its end.
        let start = unsafe { self.base.add(offset) }.cast::<T>();
        if start.is_aligned() {
            Ok(start)
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// Reads an array.
    pub(crate) fn get<T: Element>(&self, array: Array<T>) -> Result<&[T], Errno> {
        let start = self.locate(array)?;
        // SAFETY: `locate` checked that the whole array is inside the mapping
        // and aligned; the memory was zeroed by the kernel and every bit
        // pattern is a valid `T`; writers need `&mut self`.
        Ok(unsafe { core::slice::from_raw_parts(start.as_ptr(), array.len()) })
    }

    /// Writes several arrays at a time.
    ///
    /// EINVAL when two of them share a byte.
    pub(crate) fn get_disjoint_mut<T: Element, const N: usize>(
        &mut self,
        arrays: [Array<T>; N],
    ) -> Result<[&mut [T]; N], Errno> {
        let mut starts = [NonNull::dangling(); N];
        for (i, (&array, start)) in arrays.iter().zip(&mut starts).enumerate() {
            *start = self.locate(array)?;
            if arrays
                .iter()
                .skip(i + 1)
                .any(|&other| array.overlaps(other))
            {
                return Err(Errno::EINVAL);
            }
        }
        Ok(core::array::from_fn(|i| {
            // SAFETY: the loop above located every array and found no two
            // that share a byte; the contents are valid as in `get`;
            // `&mut self` excludes other borrows for the slices' life.
            unsafe { core::slice::from_raw_parts_mut(starts[i].as_ptr(), arrays[i].len()) }
        }))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: slices borrow from `self`, so none is left. A failure means
        // that the kernel has no such arena any more, which is what we want.
        let _ = unsafe { calls::arena_destroy(self.slot) };
    }
}

#[cfg(test)]
impl Mapping {
    /// A mapping over leaked ordinary memory, for tests outside an enclave.
    pub(crate) fn ordinary(bytes: usize) -> Self {
        #[derive(Clone, Copy)]
        #[repr(align(4096))]
        struct Page(#[expect(dead_code, reason = "only its room counts")] [u8; 4096]);
        let pages = vec![Page([0; 4096]); bytes.div_ceil(4096)].leak();
        let base = NonNull::from(pages).cast::<u8>();
        Self {
            base,
            bytes: bytes as u64,
            slot: u32::MAX,
        }
    }
}
