//! The `xasm_` functions of `include/xasm.h`.
//!
//! Called by C programs. Each turns pointers into checked values and calls the
//! crate `xasm`; failures come back as negative errno (or NULL where a pointer
//! is returned). A NULL pointer where one is needed is EINVAL, never a crash.

// UNSAFETY: a C interface takes raw pointers from its caller.
#![expect(unsafe_code)]

use crate::policy;
use crate::table::{ARENAS, Place};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use enclave_abi::arena::MAX_NDIM;
use enclave_abi::lease::MAX_ARENAS;
use enclave_abi::syscall::{POLICY_BLOCK, POLICY_DISCARD_NEWEST, POLICY_DISCARD_OLDEST};
use guest::arena::{DEFAULT_BANKS, pack_args};
use guest::calls::HostCounters;
use guest::{
    ArenaStats, Chunk, Dtype, Errno, KernelStats, Options, Order, Placement, QueueFull, Role, Var,
    available, calls,
};

/// `struct xasm_options`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XasmOptions {
    pub(crate) chunk_bytes: u64,
    pub(crate) start: u64,
    pub(crate) nr_banks: u32,
    pub(crate) flags: u32,
    pub(crate) reader_gid: u32,
    pub(crate) policy: u32,
    pub(crate) timeout_ms: u32,
    pub(crate) retain: u32,
    pub(crate) placement: u32,
    pub(crate) reserved: u32,
}

/// `XASM_READER_GID`: `reader_gid` counts.
const READER_GID: u32 = 1;

/// `struct xasm_var_spec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XasmVarSpec {
    pub(crate) name: *const c_char,
    pub(crate) unit: *const c_char,
    pub(crate) axes: *const c_char,
    pub(crate) shape: *const u64,
    pub(crate) offset: u64,
    pub(crate) dtype: u32,
    pub(crate) ndim: u32,
    pub(crate) order: u8,
    pub(crate) role: u8,
    pub(crate) reserved: [u8; 6],
}

/// Text of a C string; "" for NULL.
///
/// # Safety
/// `text` is NULL or a string that stays unchanged for `'a`.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Result<&'a str, Errno> {
    if text.is_null() {
        return Ok("");
    }
    // SAFETY: not NULL, so a string by this function's contract.
    unsafe { CStr::from_ptr(text) }
        .to_str()
        .map_err(|_| Errno::EINVAL)
}

/// A result as C takes it: the value, or the errno negated.
pub(crate) fn answer<T: TryInto<i64>>(result: Result<T, Errno>) -> i64 {
    match result {
        Ok(value) => value.try_into().unwrap_or(i64::MAX),
        Err(errno) => -i64::from(errno.raw()),
    }
}

/// As [`answer`], for functions that return `int`.
pub(crate) fn answer_int<T: TryInto<i64>>(result: Result<T, Errno>) -> c_int {
    c_int::try_from(answer(result)).unwrap_or(c_int::MAX)
}

/// Makes an arena and notes it in the table.
pub(crate) fn create(name: Option<&str>, bytes: u64, options: Options) -> Result<Place, Errno> {
    let mut args = pack_args(name, bytes, options)?;
    calls::require()?;
    let slot = calls::arena_create(&mut args)?;
    let place = Place {
        slot,
        base: args.start,
        bytes: args.size_bytes,
    };
    ARENAS.insert(place).inspect_err(|_| {
        // SAFETY: nobody was told of the memory.
        let _ = unsafe { calls::arena_destroy(slot) };
    })?;
    Ok(place)
}

impl XasmOptions {
    fn to_options(self) -> Result<Options, Errno> {
        if self.flags & !READER_GID != 0 || self.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Options {
            chunk: match self.chunk_bytes {
                0 => Chunk::default(),
                bytes => Chunk::from_bytes(bytes).ok_or(Errno::EINVAL)?,
            },
            banks: match self.nr_banks {
                0 => DEFAULT_BANKS,
                banks => banks,
            },
            queue_full: match self.policy {
                POLICY_DISCARD_NEWEST => QueueFull::DiscardNewest,
                POLICY_DISCARD_OLDEST => QueueFull::DiscardOldest,
                POLICY_BLOCK => QueueFull::Block {
                    timeout_ms: self.timeout_ms,
                },
                _ => return Err(Errno::EINVAL),
            },
            retain: self.retain.max(1),
            placement: Placement::new(self.placement).ok_or(Errno::EINVAL)?,
            reader_gid: (self.flags & READER_GID != 0).then_some(self.reader_gid),
            start: self.start,
        })
    }
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_available() -> c_int {
    c_int::from(available())
}

/// See `xasm.h`.
///
/// # Safety
/// `name` is NULL or a string; `options` is NULL or points to the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_arena_create(
    name: *const c_char,
    bytes: u64,
    options: *const XasmOptions,
) -> c_int {
    answer_int((|| {
        // SAFETY: a string by this function's contract.
        let name = unsafe { text(name) }?;
        // SAFETY: NULL or a valid structure by this function's contract.
        let options = match unsafe { options.as_ref() } {
            Some(options) => options.to_options()?,
            None => Options::default(),
        };
        create(Some(name), bytes, options).map(|place| place.slot)
    })())
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_arena_base(arena: c_int) -> *mut c_void {
    pointer(ARENAS.find(arena).map(|place| place.base))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_arena_size(arena: c_int) -> u64 {
    ARENAS.find(arena).map_or(0, |place| place.bytes)
}

/// See `xasm.h`.
///
/// # Safety
/// `name` is NULL or a string; `shape` is NULL or points to `ndim` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_var(
    arena: c_int,
    name: *const c_char,
    dtype: u32,
    ndim: u32,
    shape: *const u64,
    order: c_char,
    data: *const c_void,
) -> c_int {
    let base = ARENAS.find(arena).map_or(0, |place| place.base);
    let spec = XasmVarSpec {
        name,
        unit: ptr::null(),
        axes: ptr::null(),
        shape,
        offset: address(data).wrapping_sub(base),
        dtype,
        ndim,
        order: order.cast_unsigned(),
        role: 0,
        reserved: [0; 6],
    };
    // SAFETY: `spec` is a local whose pointers are what this function's
    // contract says.
    unsafe { xasm_var_describe(arena, &raw const spec) }
}

/// See `xasm.h`.
///
/// # Safety
/// `spec` is NULL or points to the structure, whose strings are NULL or
/// strings and whose `shape` is NULL or points to `ndim` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_var_describe(arena: c_int, spec: *const XasmVarSpec) -> c_int {
    answer_int((|| {
        // SAFETY: NULL or a valid structure by this function's contract.
        let spec = unsafe { spec.as_ref() }.ok_or(Errno::EINVAL)?;
        // SAFETY: the structure's pointers are valid by this function's contract.
        let var = unsafe { spec.followed() }?;
        let place = find(arena)?;
        calls::arena_var(place.slot, &var.pack(place.bytes)?)
    })())
}

impl XasmVarSpec {
    /// The description with its pointers followed and its numbers checked.
    ///
    /// # Safety
    /// As for [`xasm_var_describe`].
    unsafe fn followed(&self) -> Result<Var<'_>, Errno> {
        let ndim = usize::try_from(self.ndim).map_err(|_| Errno::EINVAL)?;
        if ndim > MAX_NDIM || (ndim > 0 && self.shape.is_null()) || self.reserved != [0; 6] {
            return Err(Errno::EINVAL);
        }
        let shape = match ndim {
            0 => &[],
            // SAFETY: not NULL, and `ndim` (at most 8) numbers by contract.
            _ => unsafe { core::slice::from_raw_parts(self.shape, ndim) },
        };
        // SAFETY: each is NULL or a string by this function's contract.
        let [name, unit, axes] = unsafe { [text(self.name)?, text(self.unit)?, text(self.axes)?] };
        Ok(Var {
            name,
            dtype: Dtype::try_from(self.dtype).map_err(|_| Errno::EINVAL)?,
            shape,
            order: Order::try_from(self.order).map_err(|_| Errno::EINVAL)?,
            offset: self.offset,
            unit,
            axes,
            role: Role::try_from(self.role).map_err(|_| Errno::EINVAL)?,
        })
    }
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_publish(arena: c_int, step: u64, time: f64) -> i64 {
    answer(find(arena).and_then(|place| {
        let generation = calls::arena_publish(place.slot, step, time)?;
        policy::tell(place.slot);
        Ok(generation)
    }))
}

/// See `xasm.h`.
///
/// # Safety
/// `arenas` is NULL or points to `count` arenas.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_publish_set(
    arenas: *const c_int,
    count: u32,
    step: u64,
    time: f64,
) -> c_int {
    let published = (|| {
        let most = u32::try_from(MAX_ARENAS).unwrap_or(u32::MAX);
        if arenas.is_null() || count == 0 || count > most {
            return Err(Errno::EINVAL);
        }
        let len = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `count` arenas by this function's contract.
        let arenas = unsafe { core::slice::from_raw_parts(arenas, len) };
        let mut slots = [0; MAX_ARENAS];
        let slots = slots.get_mut(..len).ok_or(Errno::EINVAL)?;
        for (slot, &arena) in slots.iter_mut().zip(arenas) {
            *slot = find(arena)?.slot;
        }
        calls::arena_publish_set(slots, step, time)?;
        for &slot in &*slots {
            policy::tell(slot);
        }
        Ok(0)
    })();
    answer_int::<i64>(published)
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_prefer(start: *const c_void, bytes: u64, bank: c_int) -> c_int {
    answer_int((|| {
        calls::require()?;
        let bank = match bank {
            -1 => None,
            bank => Some(u32::try_from(bank).map_err(|_| Errno::EINVAL)?),
        };
        let place = ARENAS.containing(address(start))?;
        calls::arena_prefer(place.slot, address(start) - place.base, bytes, bank).map(|()| 0i64)
    })())
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_wait_readers(arena: c_int, readers: u32, timeout_ms: u32) -> c_int {
    let attached =
        find(arena).and_then(|place| calls::arena_wait_readers(place.slot, readers, timeout_ms));
    answer_int(attached)
}

/// See `xasm.h`.
///
/// # Safety
/// `stats` is NULL or points to the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_arena_stats(arena: c_int, stats: *mut ArenaStats) -> c_int {
    let result = find(arena).and_then(|place| calls::arena_stats(place.slot));
    // SAFETY: NULL or valid for a write by this function's contract.
    unsafe { store(result, stats) }
}

/// See `xasm.h`.
///
/// # Safety
/// `stats` is NULL or points to the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_kernel_stats(stats: *mut KernelStats) -> c_int {
    // SAFETY: NULL or valid for a write by this function's contract.
    unsafe { store(calls::kernel_stats(), stats) }
}

/// See `xasm.h`.
///
/// # Safety
/// `counters` is NULL or points to the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_host_counters(counters: *mut HostCounters) -> c_int {
    // SAFETY: NULL or valid for a write by this function's contract.
    unsafe { store(calls::host_counters(), counters) }
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_touch(start: *const c_void, bytes: u64) -> c_int {
    answer_int(calls::arena_touch(start.cast(), bytes).map(|()| 0i64))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_arena_find(pointer: *const c_void) -> c_int {
    answer_int(calls::arena_find(pointer.cast()))
}

/// See `xasm.h`.
///
/// # Safety
/// Nothing uses the arena's memory afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_arena_destroy(arena: c_int) -> c_int {
    answer_int((|| {
        find(arena)?;
        let place = ARENAS.remove(arena)?;
        // SAFETY: the caller gives up the memory, and the table no longer
        // hands it out.
        unsafe { calls::arena_destroy(place.slot) }?;
        Ok::<i64, Errno>(0)
    })())
}

/// The arena with that number; ENOENT, or ENOSYS where there can be none.
pub(crate) fn find(arena: c_int) -> Result<Place, Errno> {
    ARENAS.find(arena).or_else(|errno| {
        calls::require()?;
        Err(errno)
    })
}

/// Writes counters to where C wants them and answers 0 or the errno.
///
/// # Safety
/// `target` is NULL or valid for a write of a `T`.
pub(crate) unsafe fn store<T>(result: Result<T, Errno>, target: *mut T) -> c_int {
    answer_int(result.and_then(|value| {
        if target.is_null() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: not NULL, so valid for the write by this function's contract.
        unsafe { target.write(value) };
        Ok(0i64)
    }))
}

/// The address as C takes it; NULL on failure.
pub(crate) fn pointer(place: Result<u64, Errno>) -> *mut c_void {
    place
        .ok()
        .and_then(|address| usize::try_from(address).ok())
        .map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
}

/// A pointer as a number; the pointee is not touched.
pub(crate) fn address(pointer: *const c_void) -> u64 {
    const { assert!(size_of::<usize>() <= size_of::<u64>()) };
    pointer.expose_provenance() as u64
}

/// Aborts the program: there is nothing to unwind into.
#[cfg(all(panic = "abort", not(test)))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: an undefined instruction has no effect but the signal.
    unsafe { core::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}
