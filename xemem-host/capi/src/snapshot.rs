//! The `xemem_snapshot_` functions of `include/xemem.h`.
//!
//! A snapshot of C's is an [`OwnedSnapshot`]: it outlives the next one and its
//! stream, because nothing but its user knows when it is over.

// UNSAFETY: a C interface takes raw pointers from its caller.
#![expect(unsafe_code)]

use crate::answer::{Failure, answer, answer_int, store, text};
use core::ffi::{c_char, c_int, c_void};
use enclave_abi::arena::{self, VarDesc, dtype};
use xemem_host::snapshot::SnapshotError;
use xemem_host::{Diff, OwnedSnapshot};

/// `xemem_snapshot`.
#[derive(Debug)]
pub struct XememSnapshot(OwnedSnapshot);

/// `struct xemem_range`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XememRange {
    pub(crate) offset: u64,
    pub(crate) nbytes: u64,
}

/// `struct xemem_snapshot_about`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XememSnapshotAbout {
    pub(crate) data: *const c_void,
    pub(crate) nbytes: u64,
    pub(crate) generation: u64,
    pub(crate) step: u64,
    pub(crate) time: f64,
    pub(crate) unix_ns: u64,
    pub(crate) chunks_copied: u64,
    pub(crate) publish_cycles: u64,
    pub(crate) runs: u64,
}

/// `struct xemem_variable`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XememVariable {
    pub(crate) data: *const c_void,
    pub(crate) nbytes: u64,
    pub(crate) shape: [u64; 8],
    pub(crate) strides: [i64; 8],
    pub(crate) dtype: u32,
    pub(crate) lanes: u32,
    pub(crate) ndim: u32,
    pub(crate) order: u8,
    pub(crate) role: u8,
    pub(crate) reserved: [u8; 2],
    pub(crate) name: [u8; 128],
    pub(crate) unit: [u8; 40],
    pub(crate) axes: [u8; 72],
}

impl XememSnapshot {
    /// The pointer that C holds.
    pub(crate) fn into_raw(snapshot: OwnedSnapshot) -> *mut Self {
        Box::into_raw(Box::new(Self(snapshot)))
    }
}

/// The changed ranges as C has them.
pub(crate) fn ranges_of(diff: &Diff) -> impl ExactSizeIterator<Item = XememRange> + '_ {
    diff.ranges.iter().map(|range| XememRange {
        offset: range.offset,
        nbytes: range.len,
    })
}

/// The number of an element type, 0 if there is none.
fn dtype_number(desc: &VarDesc) -> u32 {
    match (desc.dtype_code, desc.dtype_bits) {
        (dtype::FLOAT, 64) => 1,
        (dtype::FLOAT, 32) => 2,
        (dtype::INT, 64) => 3,
        (dtype::INT, 32) => 4,
        (dtype::INT, 16) => 5,
        (dtype::INT, 8) => 6,
        (dtype::UINT, 64) => 7,
        (dtype::UINT, 32) => 8,
        (dtype::UINT, 16) => 9,
        (dtype::UINT, 8) => 10,
        (dtype::COMPLEX, 128) => 11,
        (dtype::COMPLEX, 64) => 12,
        _ => 0,
    }
}

/// The text of `field`, as far as it goes, with a zero byte behind it.
fn terminated<const N: usize>(field: &[u8]) -> [u8; N] {
    let mut terminated = [0; N];
    let text = arena::text(field).unwrap_or_default();
    for (to, from) in terminated.iter_mut().zip(text.bytes()).take(N - 1) {
        *to = from;
    }
    terminated
}

/// What C is told of a variable whose first byte is at `data`.
fn variable(desc: &VarDesc, data: *const c_void) -> XememVariable {
    XememVariable {
        data,
        nbytes: desc.nbytes,
        shape: desc.shape,
        strides: desc.strides,
        dtype: dtype_number(desc),
        lanes: desc.dtype_lanes.into(),
        ndim: desc.ndim,
        order: desc.order,
        role: desc.role,
        reserved: [0; 2],
        name: terminated(&desc.name),
        unit: terminated(&desc.unit),
        axes: terminated(&desc.axis_labels),
    }
}

/// The snapshot behind a pointer of C's.
///
/// # Safety
/// `snapshot` is NULL, or from a stream and not released.
unsafe fn snapshot<'a>(snapshot: *const XememSnapshot) -> Result<&'a OwnedSnapshot, Failure> {
    // SAFETY: NULL or valid by this function's contract.
    let snapshot = unsafe { snapshot.as_ref() };
    snapshot.map(|held| &held.0).ok_or_else(Failure::null)
}

/// See `xemem.h`.
///
/// # Safety
/// `of` is NULL or not released; `about` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_snapshot_about(
    of: *const XememSnapshot,
    about: *mut XememSnapshotAbout,
) -> c_int {
    answer_int((|| {
        if about.is_null() {
            return Err(Failure::null());
        }
        // SAFETY: NULL or not released by this function's contract.
        let snapshot = unsafe { snapshot(of) }?;
        let record = snapshot.record();
        let payload = snapshot.as_slice();
        let payload = payload.ok_or(SnapshotError::Detached(record.generation))?;
        let filled = XememSnapshotAbout {
            data: payload.as_ptr().cast(),
            nbytes: payload.len() as u64,
            generation: record.generation,
            step: record.step,
            time: f64::from_bits(record.time_bits),
            unix_ns: record.unix_ns,
            chunks_copied: record.chunks_copied,
            publish_cycles: record.publish_cycles,
            runs: snapshot.runs() as u64,
        };
        // SAFETY: not NULL, so valid for a write by this function's contract.
        unsafe { about.write(filled) };
        Ok(0)
    })())
}

/// See `xemem.h`.
///
/// # Safety
/// `of` is NULL or not released; `name` is NULL or a string; `found` is NULL or
/// valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_snapshot_find(
    of: *const XememSnapshot,
    name: *const c_char,
    found: *mut XememVariable,
) -> c_int {
    answer_int((|| {
        if found.is_null() {
            return Err(Failure::null());
        }
        // SAFETY: NULL or a string by this function's contract.
        let name = unsafe { text(name) }?;
        // SAFETY: NULL or not released by this function's contract.
        let view = unsafe { snapshot(of) }?.var(name)?;
        // SAFETY: not NULL, so valid for a write by this function's contract.
        unsafe { found.write(variable(&view.desc, view.bytes.as_ptr().cast())) };
        Ok(0)
    })())
}

/// See `xemem.h`.
///
/// # Safety
/// `of` is NULL or not released; `list` is NULL or has place for `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_snapshot_variables(
    of: *const XememSnapshot,
    list: *mut XememVariable,
    room: usize,
) -> c_int {
    answer_int((|| {
        // SAFETY: NULL or not released by this function's contract.
        let snapshot = unsafe { snapshot(of) }?;
        let variables = snapshot.variables().iter().map(|desc| {
            let view = snapshot.var(desc.name().unwrap_or_default())?;
            Ok(variable(&view.desc, view.bytes.as_ptr().cast()))
        });
        let variables: Result<Vec<_>, SnapshotError> = variables.collect();
        // SAFETY: place by this function's contract.
        unsafe { store(variables?.into_iter(), list, room) }
    })())
}

/// See `xemem.h`.
///
/// # Safety
/// `of` is NULL or not released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_snapshot_valid(of: *const XememSnapshot) -> c_int {
    // SAFETY: NULL or not released by this function's contract.
    answer_int(unsafe { snapshot(of) }.map(|snapshot| snapshot.valid().into()))
}

/// See `xemem.h`.
///
/// # Safety
/// `of` is NULL or not released; `ranges` is NULL or has place for `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_snapshot_diff(
    of: *const XememSnapshot,
    since: u64,
    ranges: *mut XememRange,
    room: usize,
) -> i64 {
    answer((|| {
        // SAFETY: NULL or not released by this function's contract.
        let diff = unsafe { snapshot(of) }?.diff(since)?;
        // SAFETY: place by this function's contract.
        unsafe { store(ranges_of(&diff), ranges, room) }
    })())
}

/// See `xemem.h`.
///
/// # Safety
/// `of` is NULL, or from a stream; nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_snapshot_release(of: *mut XememSnapshot) {
    if !of.is_null() {
        // SAFETY: made by `Box::into_raw` and given up by the caller.
        drop(unsafe { Box::from_raw(of) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_always_end_in_a_zero_byte() {
        assert_eq!(terminated::<4>(b"ab\0cd"), *b"ab\0\0");
        assert_eq!(terminated::<4>(b"abcdef"), *b"abc\0");
        assert_eq!(terminated::<4>(b"\xff\xfe"), [0; 4]);
    }
}
