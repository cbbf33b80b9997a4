//! The functions of `include/xpmem.h`, as C programs call them.
//!
//! Each turns C values into checked ones, calls [`crate::process`] and puts
//! what went wrong in `errno`. With `XPMEM_DEBUG` set it also says so on
//! standard error, in one line.

// UNSAFETY: a C interface: exported names, errno, and memory of the caller.
#![expect(unsafe_code)]

use crate::errors::Failure;
use crate::process::{self, Handle};
use core::ffi::{c_int, c_void};
use rustix::io::Errno;
use std::io::Write;
use xemem_host::{Access, SegId};

/// What `xpmem_version` says: the interface of XPMEM 2.7.
const VERSION: c_int = 0x0002_7000;
/// `XPMEM_RDONLY`.
const RDONLY: c_int = 1;
/// `XPMEM_RDWR`.
const RDWR: c_int = 2;
/// `XPMEM_PERMIT_MODE`.
const PERMIT_MODE: c_int = 1;
/// All bits of a mode.
const MODE_BITS: usize = 0o777;
/// Bytes of a page.
const PAGE: usize = 4096;
/// Variable that makes failures visible.
const DEBUG: &str = "XPMEM_DEBUG";

/// `struct xpmem_addr`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XpmemAddr {
    apid: i64,
    offset: libc::off_t,
}

const _: () = assert!(size_of::<XpmemAddr>() == 16 && align_of::<XpmemAddr>() == 8);

/// Looks for a broker, starting one if need be: 0, or -1.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_init() -> c_int {
    status("xpmem_init", process::lock().connected())
}

/// The version of the interface, or -1 if no broker can be had.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_version() -> c_int {
    let connected = process::lock().connected();
    status("xpmem_version", connected.map(|()| VERSION))
}

/// Makes a segment of memory of this process: its segid, or -1.
///
/// # Safety
/// `vaddr` and `size` name memory of the program's that may be moved into an
/// object, as `docs/xemem.md` says under "Memory that is there already".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpmem_make(
    vaddr: *mut c_void,
    size: usize,
    permit_type: c_int,
    permit_value: *mut c_void,
) -> i64 {
    let made = check_make(vaddr.addr(), size, permit_type, permit_value.addr()).and_then(|mode| {
        // SAFETY: the caller's promise, passed on.
        unsafe { process::lock().make(vaddr, size, mode) }
    });
    let made = made.and_then(|segid| {
        let raw = i64::try_from(segid.0);
        raw.map_err(|_| Failure::new(Errno::BUSY, format!("{segid} is too large")))
    });
    answer("xpmem_make", made, -1)
}

/// Ends a segment of this process: 0, or -1.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_remove(segid: i64) -> c_int {
    let removed = segid_of(segid).and_then(|segid| process::lock().remove(segid));
    status("xpmem_remove", removed)
}

/// Asks for access to a segment: an apid, or -1.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_get(
    segid: i64,
    flags: c_int,
    permit_type: c_int,
    permit_value: *mut c_void,
) -> i64 {
    let got = check_get(segid, flags, permit_type, permit_value.addr())
        .and_then(|(segid, access)| process::lock().get(segid, access));
    answer("xpmem_get", got.map(Handle::raw), -1)
}

/// Gives access back and detaches all that came by it: 0, or -1.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_release(apid: i64) -> c_int {
    let released = Handle::from_program(apid).and_then(|apid| process::lock().release(apid));
    status("xpmem_release", released)
}

/// Maps a piece of a segment: its address, or -1.
///
/// # Safety
/// What the program has mapped at `vaddr`, if that is not null, it gives away.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpmem_attach(
    addr: XpmemAddr,
    size: usize,
    vaddr: *mut c_void,
) -> *mut c_void {
    let attached = Handle::from_program(addr.apid).and_then(|apid| {
        let offset = u64::try_from(addr.offset);
        let offset = offset.map_err(|_| Failure::argument("the offset is negative"))?;
        process::lock().attach(apid, offset, size, vaddr)
    });
    let failed = core::ptr::without_provenance_mut(usize::MAX);
    answer("xpmem_attach", attached, failed)
}

/// Unmaps an attachment: 0, or -1.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_detach(vaddr: *mut c_void) -> c_int {
    status("xpmem_detach", process::lock().detach(vaddr.addr()))
}

/// The mode of a segment to be made.
fn check_make(
    address: usize,
    size: usize,
    permit_type: c_int,
    permit_value: usize,
) -> Result<u32, Failure> {
    if permit_type != PERMIT_MODE || permit_value & !MODE_BITS != 0 {
        return Err(Failure::argument("no such permit"));
    }
    if size == usize::MAX {
        let why = "the whole address space cannot be shared, only memory that can be moved";
        return Err(Failure::new(Errno::OPNOTSUPP, why));
    }
    let whole = address.is_multiple_of(PAGE) && size.is_multiple_of(PAGE) && size > 0;
    if !whole || address.checked_add(size).is_none() {
        return Err(Failure::argument("not a range of whole pages"));
    }
    u32::try_from(permit_value).map_err(|_| Failure::argument("no such permit"))
}

fn check_get(
    segid: i64,
    flags: c_int,
    permit_type: c_int,
    permit_value: usize,
) -> Result<(SegId, Access), Failure> {
    let segid = segid_of(segid)?;
    let access = match flags {
        RDONLY => Access::ReadOnly,
        RDWR => Access::ReadWrite,
        _ => return Err(Failure::argument("either read-only or read-write")),
    };
    if permit_type != PERMIT_MODE || permit_value != 0 {
        return Err(Failure::argument("no such permit"));
    }
    Ok((segid, access))
}

fn segid_of(raw: i64) -> Result<SegId, Failure> {
    let segid = u64::try_from(raw).ok().filter(|segid| *segid > 0);
    let why = || Failure::argument(format!("{raw} is no segid"));
    segid.map(SegId).ok_or_else(why)
}

/// A result as C takes it where 0 is all there is to say.
fn status<T: StatusValue>(call: &str, result: Result<T, Failure>) -> c_int {
    answer(call, result.map(T::value), -1)
}

/// What a function says that returns a status.
trait StatusValue {
    fn value(self) -> c_int;
}

impl StatusValue for () {
    fn value(self) -> c_int {
        0
    }
}

impl StatusValue for c_int {
    fn value(self) -> c_int {
        self
    }
}

/// A result as C takes it.
fn answer<T>(call: &str, result: Result<T, Failure>, failed: T) -> T {
    let Failure { errno, why } = match result {
        Ok(value) => return value,
        Err(failure) => failure,
    };
    if std::env::var_os(DEBUG).is_some() {
        // One write, so that lines of many processes stay whole.
        let line = format!("libxpmem: {call}: {why}\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    // SAFETY: the calling thread's own errno.
    unsafe { *libc::__errno_location() = errno.raw_os_error() };
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno<T>(result: Result<T, Failure>) -> Option<Errno> {
        result.err().map(|failure| failure.errno)
    }

    #[test]
    fn only_whole_pages_and_plain_modes_are_made() {
        let with = |address, size, kind, value| errno(check_make(address, size, kind, value));
        assert_eq!(with(0x10000, 0x1000, PERMIT_MODE, 0o666), None);
        assert_eq!(
            with(0, usize::MAX, PERMIT_MODE, 0o666),
            Some(Errno::OPNOTSUPP)
        );
        for (address, size, kind, value) in [
            (0x10000, 0x1000, 0, 0o666),
            (0x10000, 0x1000, 2, 0o666),
            (0x10000, 0x1000, PERMIT_MODE, 0o1000),
            (0x10000, 0x1000, PERMIT_MODE, usize::MAX),
            (0x10000, 0, PERMIT_MODE, 0o666),
            (0x10000, 0x1001, PERMIT_MODE, 0o666),
            (0x10001, 0x1000, PERMIT_MODE, 0o666),
            (usize::MAX - 0xfff, 0x2000, PERMIT_MODE, 0o666),
        ] {
            let refused = with(address, size, kind, value);
            assert_eq!(refused, Some(Errno::INVAL), "{address:x} {size:x} {kind}");
        }
    }

    #[test]
    fn exactly_one_kind_of_access_is_got() {
        let with = |segid, flags, kind, value| errno(check_get(segid, flags, kind, value));
        for flags in [RDONLY, RDWR] {
            assert_eq!(with(1, flags, PERMIT_MODE, 0), None);
            assert_eq!(with(1, flags, PERMIT_MODE, 0o666), Some(Errno::INVAL));
            assert_eq!(with(1, flags, 0, 0), Some(Errno::INVAL));
            assert_eq!(with(0, flags, PERMIT_MODE, 0), Some(Errno::INVAL));
            assert_eq!(with(-1, flags, PERMIT_MODE, 0), Some(Errno::INVAL));
        }
        for flags in [0, RDONLY | RDWR, 4, -1] {
            assert_eq!(with(1, flags, PERMIT_MODE, 0), Some(Errno::INVAL));
        }
    }
}
