//! SMARTMAP: the memory of sibling processes of an enclave, by Kitten's names.
//!
//! A sibling that is attached at window `n` (1 to 12) has its address `a` at
//! [`remote`]`(n, a)` here, readable and writable as it is there. That is true of all
//! it maps by itself: image, heap, stack and `mmap`; arenas and attachments do not
//! show. When the sibling ends its window is gone, and touching it is SIGSEGV. Buffers
//! of system calls may not lie in a window (EFAULT). ENOSYS on Linux.

// UNSAFETY: system calls; they take no pointers.
#![expect(unsafe_code)]

use crate::backend::{Backend, backend};
use crate::errno::Errno;
use crate::sys::syscall;
use enclave_abi::syscall as numbers;

/// Bits of an address within a window.
pub const SMARTMAP_SHIFT: u32 = 39;
/// Bytes of a window, and the least distance between two.
pub const SMARTMAP_ALIGN: u64 = 1 << SMARTMAP_SHIFT;

/// Where the address `a` of the sibling at window `window` is here.
#[must_use]
pub const fn remote(window: u64, a: u64) -> u64 {
    (window << SMARTMAP_SHIFT).wrapping_add(a)
}

fn call(number: u64, args: [u64; 4]) -> Result<u64, Errno> {
    if backend()? != Backend::Enclave {
        return Err(Errno::ENOSYS);
    }
    // SAFETY: these calls take numbers alone and change page tables at addresses
    // where this program has nothing.
    Errno::from_result(unsafe { syscall(number, args) })
}

/// Attaches the memory of `src` to `dst`, the caller, at `start`.
///
/// # Errors
/// EPERM for another `dst`; EINVAL unless `start` is 1 to 12 times
/// [`SMARTMAP_ALIGN`], and for the caller itself; ESRCH without such a sibling; EBUSY
/// where another one shows; EEXIST where it shows already; ENOSYS on Linux.
pub fn smartmap(src: u32, dst: u32, start: u64, extent: u64) -> Result<(), Errno> {
    let args = [src.into(), dst.into(), start, extent];
    call(numbers::ASPACE_SMARTMAP, args).map(drop)
}

/// Takes that back.
///
/// # Errors
/// EPERM for another `dst`; ENOENT where it does not show; ENOSYS on Linux.
pub fn unsmartmap(src: u32, dst: u32) -> Result<(), Errno> {
    let args = [src.into(), dst.into(), 0, 0];
    call(numbers::ASPACE_UNSMARTMAP, args).map(drop)
}

/// Says which rank the caller, `id`, has among its siblings.
///
/// # Errors
/// EPERM for another `id`; EEXIST where a sibling has it; ENOSYS on Linux.
pub fn set_rank(id: u32, rank: u32) -> Result<(), Errno> {
    call(numbers::ASPACE_SET_RANK, [id.into(), rank.into(), 0, 0]).map(drop)
}

/// The rank of a sibling, or of the caller.
///
/// # Errors
/// ESRCH without such a process; ENOENT where it has none; ENOSYS on Linux.
pub fn rank_of(id: u32) -> Result<u32, Errno> {
    let rank = call(numbers::ASPACE_GET_RANK, [id.into(), 0, 0, 0])?;
    u32::try_from(rank).map_err(|_| Errno::EPROTO)
}

/// The process that has a rank.
///
/// # Errors
/// ENOENT where none has; ENOSYS on Linux.
pub fn of_rank(rank: u32) -> Result<u32, Errno> {
    let id = call(numbers::ASPACE_OF_RANK, [rank.into(), 0, 0, 0])?;
    u32::try_from(id).map_err(|_| Errno::EPROTO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_as_far_into_each_window() {
        assert_eq!(remote(1, 0x40_1000), 0x80_0040_1000);
        assert_eq!(remote(12, 0x7f_ffff_dff8), 0x067f_ffff_dff8);
        assert_eq!(remote(0, 5), 5);
    }
}
