//! Kitten's SMARTMAP calls, as `include/xasm.h` documents them.
//!
//! Called by C programs; `guest::aspace` does the work.

// UNSAFETY: a C interface takes raw pointers from its caller.
#![expect(unsafe_code)]

use crate::surface::answer_int;
use core::ffi::c_int;
use guest::{Errno, aspace};

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn aspace_smartmap(src: u32, dst: u32, start: u64, extent: u64) -> c_int {
    answer_int(aspace::smartmap(src, dst, start, extent).map(|()| 0i64))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn aspace_unsmartmap(src: u32, dst: u32) -> c_int {
    answer_int(aspace::unsmartmap(src, dst).map(|()| 0i64))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn aspace_set_rank(id: u32, rank: u32) -> c_int {
    answer_int(aspace::set_rank(id, rank).map(|()| 0i64))
}

/// See `xasm.h`.
///
/// # Safety
/// `rank` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aspace_get_rank(id: u32, rank: *mut u32) -> c_int {
    // SAFETY: by this function's contract.
    unsafe { tell(aspace::rank_of(id), rank) }
}

/// See `xasm.h`.
///
/// # Safety
/// `id` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aspace_of_rank(rank: u32, id: *mut u32) -> c_int {
    // SAFETY: by this function's contract.
    unsafe { tell(aspace::of_rank(rank), id) }
}

/// Stores an answer.
///
/// # Safety
/// `to` is NULL or valid for a write.
unsafe fn tell(found: Result<u32, Errno>, to: *mut u32) -> c_int {
    answer_int(found.and_then(|value| {
        if to.is_null() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: not NULL, so valid for the write by this function's contract.
        unsafe { to.write(value) };
        Ok(0i64)
    }))
}
