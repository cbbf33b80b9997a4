//! `xasm_malloc` and its family, as `include/xasm.h` documents them.
//!
//! Called by C, C++ and Fortran programs. Each turns pointers into numbers and
//! asks `guest::heap`; only [`xasm_calloc`] and [`xasm_realloc`] touch the
//! memory itself, to clear and to copy it.

// UNSAFETY: a C interface takes raw pointers from its caller.
#![expect(unsafe_code)]

use crate::surface::{address, answer_int, find, pointer, store};
use crate::table::ARENAS;
use core::ffi::{c_int, c_void};
use core::ptr;
use guest::Errno;
use guest::heap::{self, Given, Heap, Usage};

/// Room in an arena.
fn allocate(arena: c_int, bytes: u64, align: u64) -> Result<Given, Errno> {
    Heap::of(find(arena)?.slot)?.allocate(bytes, align)
}

/// The heap of the arena that `address` is in.
fn heap_of(address: u64) -> Result<Heap, Errno> {
    Heap::of(ARENAS.containing(address)?.slot)
}

/// `bytes` as a length of memory.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(0)
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_malloc(arena: c_int, bytes: u64) -> *mut c_void {
    pointer(allocate(arena, bytes, 0).map(|given| given.address))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_aligned_alloc(arena: c_int, align: u64, bytes: u64) -> *mut c_void {
    pointer(allocate(arena, bytes, align).map(|given| given.address))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_arena_alloc(arena: c_int, bytes: u64, align: u64) -> *mut c_void {
    xasm_aligned_alloc(arena, align, bytes)
}

/// See `xasm.h`.
///
/// # Safety
/// `place` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_allocate(
    arena: c_int,
    bytes: u64,
    align: u64,
    place: *mut *mut c_void,
) -> c_int {
    if place.is_null() {
        return answer_int(Err::<i64, _>(Errno::EINVAL));
    }
    let given = allocate(arena, bytes, align).map(|given| pointer(Ok(given.address)));
    // SAFETY: not NULL, so valid for the write by this function's contract.
    unsafe { store(given, place) }
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_calloc(arena: c_int, count: u64, bytes: u64) -> *mut c_void {
    let all = count.checked_mul(bytes).ok_or(Errno::ENOMEM);
    let Ok(given) = all.and_then(|all| allocate(arena, all, 0)) else {
        return ptr::null_mut();
    };
    let start = pointer(Ok(given.address));
    // SAFETY: the heap gave this memory to nobody else, and at least `dirty`
    // bytes of it; it lies in an arena that is mapped writable.
    unsafe { start.cast::<u8>().write_bytes(0, length(given.dirty)) };
    start
}

/// See `xasm.h`.
///
/// # Safety
/// Nobody uses the old memory meanwhile, nor afterwards if it moved.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_realloc(arena: c_int, old: *mut c_void, bytes: u64) -> *mut c_void {
    let Some(old) = ptr::NonNull::new(old) else {
        return xasm_malloc(arena, bytes);
    };
    let moved = (|| {
        let from = address(old.as_ptr());
        let heap = Heap::of(find(arena)?.slot)?;
        let size = heap.size(from).inspect_err(|_| {
            heap::report_refused("xasm_realloc", from);
        })?;
        if heap.resize(from, bytes)? {
            return Ok(from);
        }
        let to = heap.allocate(bytes, 0)?.address;
        let target: *mut c_void = pointer(Ok(to));
        // SAFETY: two allocations of the heap, so they do not overlap; the old
        // one has `size` bytes, and the new one more, or it would have been
        // cut where it was.
        unsafe {
            let target = target.cast::<u8>();
            target.copy_from_nonoverlapping(old.as_ptr().cast(), length(size.min(bytes)));
        }
        heap.release(from)?;
        Ok(to)
    })();
    pointer(moved)
}

/// See `xasm.h`.
///
/// # Safety
/// Nobody uses the memory afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_free(place: *mut c_void) -> c_int {
    if place.is_null() {
        return 0;
    }
    let from = address(place);
    let freed = heap_of(from).and_then(|heap| heap.release(from));
    answer_int(freed.map(|()| 0i64).inspect_err(|_| {
        heap::report_refused("xasm_free", from);
    }))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_usable_size(place: *const c_void) -> u64 {
    let from = address(place);
    heap_of(from).and_then(|heap| heap.size(from)).unwrap_or(0)
}

/// See `xasm.h`.
///
/// # Safety
/// `usage` is NULL or points to the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_heap_usage(arena: c_int, usage: *mut Usage) -> c_int {
    let now = find(arena).and_then(|place| Heap::of(place.slot)?.usage());
    // SAFETY: NULL or valid for a write by this function's contract.
    unsafe { store(now, usage) }
}
