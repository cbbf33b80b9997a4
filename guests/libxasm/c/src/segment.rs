//! Plain segments and their signals, as `include/xasm.h` documents it.
//!
//! Called by C programs in an enclave. Each is a call of `guest::xemem` and a
//! check of its pointers; kernel and broker check the rest.

// UNSAFETY: a C interface takes raw pointers from its caller.
#![expect(unsafe_code)]

use crate::surface::{answer, answer_int};
use core::ffi::c_int;
use enclave_abi::syscall::SegmentArgs;
use guest::xemem::{self, Target};
use guest::{Errno, calls};

/// `XASM_SEGMENT_GID`: `gid` counts.
pub(crate) const SEGMENT_GID: u32 = 2;
/// `mode` where none is given.
const OWNER_ONLY: u32 = 0o600;

fn access(apid: i64) -> Result<Target, Errno> {
    let apid = u64::try_from(apid).map_err(|_| Errno::EINVAL)?;
    Ok(Target::Access(apid))
}

fn segment(segid: i64) -> Result<Target, Errno> {
    let segid = u64::try_from(segid).map_err(|_| Errno::EINVAL)?;
    Ok(Target::Segment(segid))
}

/// See `xasm.h`.
///
/// # Safety
/// `segment` is NULL or points to the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xasm_segment_make(segment: *mut SegmentArgs) -> i64 {
    // SAFETY: NULL or valid by this function's contract.
    let segment = unsafe { segment.as_mut() }.ok_or(Errno::EINVAL);
    answer(segment.and_then(|segment| {
        calls::require()?;
        let mut args = *segment;
        if args.flags & SEGMENT_GID == 0 {
            args.gid = u32::MAX;
        }
        args.flags &= !SEGMENT_GID;
        if args.mode == 0 {
            args.mode = OWNER_ONLY;
        }
        let segid = xemem::segment(&mut args)?;
        (segment.page_bytes, segment.start) = (args.page_bytes, args.start);
        Ok(segid)
    }))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_remove(segid: i64) -> c_int {
    let segid = u64::try_from(segid).map_err(|_| Errno::EINVAL);
    answer_int(segid.and_then(xemem::remove).map(|()| 0i64))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_signal(apid: i64) -> c_int {
    answer_int(access(apid).and_then(xemem::signal).map(|()| 0i64))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xemem_signal_segid(segid: i64) -> c_int {
    answer_int(segment(segid).and_then(xemem::signal).map(|()| 0i64))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_subscribe(apid: i64) -> c_int {
    answer_int(access(apid).and_then(xemem::subscribe).map(|()| 0i64))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_wait(apid: i64, timeout_ms: u32) -> i64 {
    answer(access(apid).and_then(|by| xemem::wait(by, timeout_ms)))
}

/// See `xasm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn xasm_wait_segid(segid: i64, timeout_ms: u32) -> i64 {
    answer(segment(segid).and_then(|by| xemem::wait(by, timeout_ms)))
}
