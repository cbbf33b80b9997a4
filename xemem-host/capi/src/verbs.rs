//! XEMEM's own names, as `include/xemem.h` and `xasm.h` document them.
//!
//! Each turns C values into checked ones and calls [`crate::process`].

// UNSAFETY: a C interface takes raw pointers from its caller.
#![expect(unsafe_code)]

use crate::answer::{Failure, answer, answer_int, text, timeout};
use crate::process;
use core::ffi::{c_char, c_int, c_void};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::PoisonError;
use xemem_host::{Access, SegId, Waited};

/// `XEMEM_RDONLY`.
pub(crate) const RDONLY: c_int = 1;
/// `XEMEM_RDWR`.
pub(crate) const RDWR: c_int = 2;

/// `struct xemem_addr`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XememAddr {
    pub(crate) apid: i64,
    pub(crate) offset: u64,
}

/// See `xemem.h`.
///
/// # Safety
/// `name` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_lookup_segid(name: *const c_char) -> i64 {
    // SAFETY: NULL or a string by this function's contract.
    unsafe { xemem_lookup(name, 0) }
}

/// See `xemem.h`.
///
/// # Safety
/// `name` is NULL or a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_lookup(name: *const c_char, timeout_ms: u32) -> i64 {
    // SAFETY: NULL or a string by this function's contract.
    let name = unsafe { text(name) };
    let found = name.and_then(|name| {
        process::lookup(name, timeout(timeout_ms)).map_err(|failure| failure.about(name))
    });
    answer(found.and_then(|segid| {
        let large = |_| Failure::argument(format!("{segid} is too large"));
        i64::try_from(segid.0).map_err(large)
    }))
}

fn segid_of(raw: i64) -> Result<SegId, Failure> {
    let segid = u64::try_from(raw).ok().filter(|segid| *segid > 0);
    let why = || Failure::argument(format!("{raw} is no segid"));
    segid.map(SegId).ok_or_else(why)
}

/// See `xemem.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_get(segid: i64, flags: c_int) -> i64 {
    answer((|| {
        let segid = segid_of(segid)?;
        let access = match flags {
            RDONLY => Access::ReadOnly,
            RDWR => Access::ReadWrite,
            _ => return Err(Failure::argument("either read-only or read-write")),
        };
        process::lock().get(segid, access)
    })())
}

/// See `xemem.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_attach(addr: XememAddr, size: u64, vaddr: *mut c_void) -> *mut c_void {
    let attached = if vaddr.is_null() {
        process::attach(addr.apid, addr.offset, size)
    } else {
        Err(Failure::argument(
            "not at an address of the caller's choice",
        ))
    };
    match attached {
        Ok(address) => core::ptr::with_exposed_provenance_mut(address),
        Err(failure) => {
            answer(Err(failure));
            core::ptr::without_provenance_mut(usize::MAX)
        }
    }
}

/// See `xemem.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_detach(vaddr: *mut c_void) -> c_int {
    process::lock().detach(vaddr.addr());
    0
}

/// See `xemem.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_release(apid: i64) -> c_int {
    answer_int(process::lock().release(apid).map(|()| 0))
}

/// See `xemem.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_signal(apid: i64) -> c_int {
    answer_int(process::lock().signal(apid).map(|()| 0))
}

/// See `xemem.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_signal_segid(segid: i64) -> c_int {
    let signalled = segid_of(segid).and_then(|segid| process::lock().signal_segid(segid));
    answer_int(signalled.map(|()| 0))
}

/// See `xemem.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_subscribe(apid: i64) -> c_int {
    let signals = process::lock().signals(apid);
    answer_int(signals.map(|signals| {
        let signals = signals.lock().unwrap_or_else(PoisonError::into_inner);
        signals.as_fd().as_raw_fd().into()
    }))
}

/// See `xemem.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_wait(apid: i64, timeout_ms: u32) -> i64 {
    answer((|| {
        let signals = process::lock().signals(apid)?;
        let mut signals = signals.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match signals.wait(timeout(timeout_ms))? {
            Waited::Signals(count) => i64::try_from(count).unwrap_or(i64::MAX),
            Waited::Ended => 0,
        })
    })())
}
