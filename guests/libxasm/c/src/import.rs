//! Attaching what others share, as `include/xasm.h` documents it.
//!
//! Called by C programs: XEMEM's own names, and what those have no word for
//! (waiting, the next generation). Each is a call of `guest::xemem` and a check
//! of its pointers; the kernel checks the rest.

// UNSAFETY: a C interface takes raw pointers from its caller.
#![expect(unsafe_code)]

use crate::surface::{address, answer, answer_int, text};
use core::ffi::{c_char, c_int, c_void};
use core::ptr;
use enclave_abi::arena::MAX_VARS;
use enclave_abi::syscall::{AttachArgs, FOLLOW_LATEST, Imported};
use guest::xemem;
use guest::{Dtype, Errno};

/// `struct xemem_addr`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XememAddr {
    pub(crate) apid: i64,
    pub(crate) offset: u64,
}

/// `struct xasm_found`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XasmFound {
    pub(crate) data: *const c_void,
    pub(crate) bytes: u64,
    pub(crate) shape: [u64; 8],
    pub(crate) strides: [i64; 8],
    pub(crate) dtype: u32,
    pub(crate) ndim: u32,
    pub(crate) order: u8,
    pub(crate) reserved: [u8; 7],
}

/// `(void *)-1`, as XEMEM fails.
fn failed() -> *mut c_void {
    ptr::without_provenance_mut(usize::MAX)
}

fn id(number: i64) -> Result<u64, Errno> {
    u64::try_from(number).map_err(|_| Errno::EINVAL)
}

/// See `xasm.h`.
///
/// # Safety
/// `name` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_lookup_segid(name: *const c_char) -> i64 {
    // SAFETY: NULL or a string by this function's contract.
    unsafe { xasm_lookup(name, 0) }
}

/// See `xasm.h`.
///
/// # Safety
/// `name` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_lookup(name: *const c_char, timeout_ms: u32) -> i64 {
    // SAFETY: NULL or a string by this function's contract.
    let name = unsafe { text(name) };
    answer(name.and_then(|name| xemem::lookup(name, timeout_ms)))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_get(segid: i64, flags: c_int) -> i64 {
    let flags = u64::try_from(flags).map_err(|_| Errno::EINVAL);
    answer(id(segid).and_then(|segid| xemem::get(segid, flags?)))
}

/// See `xasm.h`.
///
/// # Safety
/// `vaddr` is an address; it is not followed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_attach(
    addr: XememAddr,
    size: u64,
    vaddr: *mut c_void,
) -> *mut c_void {
    let attached = id(addr.apid).and_then(|apid| {
        let mut args = AttachArgs {
            apid,
            offset: addr.offset,
            size_bytes: size,
            start: address(vaddr),
            policy: FOLLOW_LATEST,
            ..AttachArgs::default()
        };
        xemem::attach(&mut args)?;
        if args.nr_banks == 0 {
            return Ok(args.start);
        }
        // SAFETY: the memory was mapped a moment ago; nobody knows of it.
        match unsafe { xemem::next(args.start, xemem::NO_LIMIT) } {
            Ok((true, _)) => Ok(args.start),
            _ => {
                // SAFETY: nobody was given the address.
                let _ = unsafe { xemem::detach(args.start) };
                Err(Errno::EIDRM)
            }
        }
    });
    attached
        .ok()
        .and_then(|start| usize::try_from(start).ok())
        .map_or_else(failed, ptr::with_exposed_provenance_mut)
}

/// See `xasm.h`.
///
/// # Safety
/// `args` is NULL or points to the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_attach(args: *mut AttachArgs) -> c_int {
    // SAFETY: NULL or valid by this function's contract.
    let args = unsafe { args.as_mut() }.ok_or(Errno::EINVAL);
    answer_int(args.and_then(xemem::attach).map(|()| 0i64))
}

/// See `xasm.h`.
///
/// # Safety
/// `imported` is NULL or valid for a write; nothing uses what was at `at`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_next(
    at: *const c_void,
    timeout_ms: u32,
    imported: *mut Imported,
) -> c_int {
    // SAFETY: nothing uses the memory by this function's contract.
    let next = unsafe { xemem::next(address(at.cast_mut()), timeout_ms) };
    answer_int(next.map(|(shown, record)| {
        if !imported.is_null() {
            // SAFETY: not NULL, so valid for the write by the contract.
            unsafe { imported.write(record) };
        }
        i64::from(shown)
    }))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_valid(at: *const c_void) -> c_int {
    answer_int(xemem::is_valid(address(at.cast_mut())).map(i64::from))
}

/// See `xasm.h`.
///
/// # Safety
/// `name` is NULL or a string; `found` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_find(
    at: *const c_void,
    name: *const c_char,
    found: *mut XasmFound,
) -> c_int {
    answer_int((|| {
        // SAFETY: NULL or a string by this function's contract.
        let name = unsafe { text(name) }?;
        if name.is_empty() || found.is_null() {
            return Err(Errno::EINVAL);
        }
        let view = find(at, name)?;
        // SAFETY: not NULL, so valid for the write by this function's contract.
        unsafe { found.write(view) };
        Ok(0i64)
    })())
}

/// The variable `name` of what is attached at `at`.
fn find(at: *const c_void, name: &str) -> Result<XasmFound, Errno> {
    for index in 0..u32::try_from(MAX_VARS).unwrap_or(u32::MAX) {
        let desc = match xemem::variable(address(at.cast_mut()), index) {
            // Another one may be described rightly.
            Err(Errno::EINVAL) if index != 0 => continue,
            other => other?,
        };
        if desc.name() != Some(name) {
            continue;
        }
        let dtype = Dtype::described(&desc).ok_or(Errno::EINVAL)?;
        let offset = usize::try_from(desc.offset).map_err(|_| Errno::EOVERFLOW)?;
        return Ok(XasmFound {
            data: at.wrapping_byte_add(offset),
            bytes: desc.nbytes,
            shape: desc.shape,
            strides: desc.strides,
            dtype: dtype as u32,
            ndim: desc.ndim,
            order: desc.order,
            reserved: [0; 7],
        });
    }
    Err(Errno::ENOENT)
}

/// See `xasm.h`.
///
/// # Safety
/// Nothing uses the memory at `vaddr` afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_detach(vaddr: *mut c_void) -> c_int {
    // SAFETY: the caller gives the memory up.
    answer_int(unsafe { xemem::detach(address(vaddr)) }.map(|()| 0i64))
}

/// See `xasm.h`.
///
/// # Safety
/// Nothing uses what is attached by `apid` afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_release(apid: i64) -> c_int {
    // SAFETY: the caller gives the memory up.
    answer_int(id(apid).and_then(|apid| unsafe { xemem::release(apid) }.map(|()| 0i64)))
}
