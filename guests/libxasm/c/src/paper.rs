//! The XASM paper's names, as `include/xasm.h` documents them.
//!
//! Called by C programs written against Kitten's address-space calls. Each is
//! an arena in other words: `guest::region` translates, [`crate::surface`]
//! does the work.

// UNSAFETY: a C interface takes raw pointers from its caller.
#![expect(unsafe_code)]

use crate::policy;
use crate::surface::{address, answer, answer_int, create, text};
use crate::table::{ARENAS, Table};
use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};
use guest::region::BackedRegion;
use guest::{Errno, calls};

/// Number of the latest `aspace_copy`, which is also its step.
static COPIES: AtomicU32 = AtomicU32::new(0);

/// See `xasm.h`.
///
/// # Safety
/// `id` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aspace_get_myid(id: *mut u32) -> c_int {
    answer_int((|| {
        let own = calls::process_id()?;
        if id.is_null() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: not NULL, so valid for the write by this function's contract.
        unsafe { id.write(own) };
        Ok(0i64)
    })())
}

/// See `xasm.h`.
///
/// # Safety
/// `name` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn arena_map_backed_region(
    id: u32,
    start: *mut c_void,
    extent: u64,
    backing_extent: u64,
    vm_flags: u64,
    bk_flags: u64,
    page_bytes: u64,
    name: *const c_char,
    pmem: u64,
) -> c_int {
    let region = BackedRegion {
        start: address(start),
        extent,
        backing_extent,
        vm_flags,
        bk_flags,
        page_bytes,
        pmem,
    };
    if start.is_null() {
        return answer_int(Err::<i64, _>(Errno::EINVAL));
    }
    // SAFETY: NULL or a string by this function's contract.
    let name = unsafe { text(name) };
    answer_int(name.and_then(|name| map(id, region, name)).map(|_| 0i64))
}

/// See `xasm.h`.
///
/// # Safety
/// `start` is NULL or valid for a write; `name` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn arena_map_backed_region_anywhere(
    id: u32,
    start: *mut *mut c_void,
    extent: u64,
    backing_extent: u64,
    vm_flags: u64,
    bk_flags: u64,
    page_bytes: u64,
    name: *const c_char,
    pmem: u64,
) -> c_int {
    let region = BackedRegion {
        start: 0,
        extent,
        backing_extent,
        vm_flags,
        bk_flags,
        page_bytes,
        pmem,
    };
    answer_int((|| {
        if start.is_null() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: NULL or a string by this function's contract.
        let base = map(id, region, unsafe { text(name) }?)?;
        let base = usize::try_from(base).map_err(|_| Errno::EPROTO)?;
        // SAFETY: not NULL, so valid for the write by this function's contract.
        unsafe { start.write(core::ptr::with_exposed_provenance_mut(base)) };
        Ok(0i64)
    })())
}

/// See `xasm.h`.
///
/// # Safety
/// `dst` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aspace_copy(src: u32, dst: *mut u32, flags: c_int) -> c_int {
    answer_int((|| {
        calls::require()?;
        if dst.is_null() || flags != 0 {
            return Err(Errno::EINVAL);
        }
        check_own(src)?;
        let copy = COPIES.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let published = publish_all(&ARENAS, copy);
        // SAFETY: not NULL, so valid for the write by this function's contract.
        unsafe { dst.write(if published.is_ok() { copy } else { 0 }) };
        published.map(|()| 0i64)
    })())
}

/// See `xasm.h`.
///
/// # Safety
/// `name` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_make(region: *mut c_void, size: u64, name: *const c_char) -> i64 {
    // SAFETY: NULL or a string by this function's contract.
    let name = unsafe { text(name) };
    answer(name.and_then(|name| calls::xemem_make(region.cast(), size, name)))
}

/// Makes the arena of a region; returns its address.
fn map(id: u32, region: BackedRegion, name: &str) -> Result<u64, Errno> {
    let (bytes, options) = region.to_arena()?;
    calls::require()?;
    check_own(id)?;
    let name = Some(name).filter(|name| !name.is_empty());
    create(name, bytes, options).map(|place| place.base)
}

/// EINVAL unless `id` is the caller's own address space.
fn check_own(id: u32) -> Result<(), Errno> {
    if id == calls::process_id()? {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// Publishes every arena as step `copy`; ENOENT when there is none. All are
/// tried, the first failure is returned.
fn publish_all(arenas: &Table, copy: u32) -> Result<(), Errno> {
    let mut outcome = Err(Errno::ENOENT);
    for (tried, place) in arenas.iter().enumerate() {
        let published =
            calls::arena_publish(place.slot, u64::from(copy), f64::from(copy)).map(|_| ());
        if published.is_ok() {
            policy::tell(place.slot);
        }
        if tried == 0 || outcome.is_ok() {
            outcome = published;
        }
    }
    outcome
}
