//! The `xemem_stream_` functions of `include/xemem.h`.
//!
//! Each turns C values into checked ones and calls [`xemem_host::Stream`]. A
//! stream is behind a lock, so that careless threads wait and nothing worse.

// UNSAFETY: a C interface takes raw pointers from its caller.
#![expect(unsafe_code)]

use crate::answer::{Failure, answer, answer_int, store, text, timeout, wait};
use crate::snapshot::{XememRange, XememSnapshot, ranges_of};
use core::ffi::{c_char, c_int};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use xemem_host::library::reach;
use xemem_host::{EndReason, Generation, Policy, Role, Stream};

/// `XEMEM_LATEST`.
pub(crate) const LATEST: c_int = 1;
/// `XEMEM_EVERY`.
pub(crate) const EVERY: c_int = 2;
/// `XEMEM_LIVE`.
pub(crate) const LIVE: c_int = 0x100;

/// `xemem_stream`.
#[derive(Debug)]
pub struct XememStream {
    stream: Mutex<Stream>,
    /// Known without the lock, for threads that poll.
    notify: RawFd,
}

/// `struct xemem_generation`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XememGeneration {
    pub(crate) generation: u64,
    pub(crate) step: u64,
    pub(crate) time: f64,
    pub(crate) is_leased: u64,
}

/// `struct xemem_stream_about`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct XememStreamAbout {
    pub(crate) segid: u64,
    pub(crate) nbytes: u64,
    pub(crate) chunk_bytes: u64,
    pub(crate) page_bytes: u64,
    pub(crate) nr_banks: u64,
    pub(crate) missed: u64,
    pub(crate) runs_mapped: u64,
    pub(crate) chunks_mapped: u64,
    pub(crate) chunks_reused: u64,
    pub(crate) end_reason: u64,
}

impl XememStream {
    fn lock(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number C has for the end of a stream.
pub(crate) fn end_number(reason: Option<EndReason>) -> u64 {
    match reason {
        None => 0,
        Some(EndReason::ClosedByProgram) => 1,
        Some(EndReason::ProgramDied) => 2,
        Some(EndReason::ExporterGone) => 3,
        Some(EndReason::Removed) => 4,
    }
}

fn open(name: &str, how: c_int, limit: Option<Duration>) -> Result<XememStream, Failure> {
    let policy = match how & !LIVE {
        LATEST => Policy::Latest,
        EVERY => Policy::Every,
        _ => return Err(Failure::argument("either XEMEM_LATEST or XEMEM_EVERY")),
    };
    let limit = limit.unwrap_or(Duration::MAX);
    let start = Instant::now();
    let mut broker = reach(Role::Consumer, limit)?;
    let left = limit.saturating_sub(start.elapsed());
    let wait = wait(limit, left);
    let segid = if how & LIVE == 0 {
        broker.lookup(name, wait)?
    } else {
        broker.lookup_live(name, wait)?
    };
    let stream = Stream::over(broker, segid, policy)?;
    Ok(XememStream {
        notify: stream.notify_fd().as_raw_fd(),
        stream: Mutex::new(stream),
    })
}

/// The stream behind a pointer of C's.
///
/// # Safety
/// `stream` is NULL, or from [`xemem_stream_open`] and not closed.
unsafe fn stream<'a>(stream: *const XememStream) -> Result<&'a XememStream, Failure> {
    // SAFETY: NULL or valid by this function's contract.
    unsafe { stream.as_ref() }.ok_or_else(Failure::null)
}

/// See `xemem.h`.
///
/// # Safety
/// `name` is NULL or a string; `to` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_stream_open(
    name: *const c_char,
    how: c_int,
    timeout_ms: u32,
    to: *mut *mut XememStream,
) -> c_int {
    answer_int((|| {
        if to.is_null() {
            return Err(Failure::null());
        }
        // SAFETY: NULL or a string by this function's contract.
        let name = unsafe { text(name) }?;
        let opened = open(name, how, timeout(timeout_ms));
        let stream = Box::new(opened.map_err(|failure| failure.about(name))?);
        // SAFETY: not NULL, so valid for a write by this function's contract.
        unsafe { to.write(Box::into_raw(stream)) };
        Ok(0)
    })())
}

/// See `xemem.h`.
///
/// # Safety
/// `stream` is NULL, or from [`xemem_stream_open`]; nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_stream_close(stream: *mut XememStream) {
    if !stream.is_null() {
        // SAFETY: made by `Box::into_raw` and given up by the caller.
        drop(unsafe { Box::from_raw(stream) });
    }
}

/// See `xemem.h`.
///
/// # Safety
/// `from` is NULL or an open stream; `to` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_stream_next(
    from: *mut XememStream,
    timeout_ms: u32,
    to: *mut *mut XememSnapshot,
) -> c_int {
    answer_int((|| {
        if to.is_null() {
            return Err(Failure::null());
        }
        // SAFETY: NULL or open by this function's contract.
        let mut stream = unsafe { stream(from) }?.lock();
        let next = stream.next_owned(timeout(timeout_ms))?;
        let is_there = i64::from(next.is_some());
        let snapshot = next.map_or(core::ptr::null_mut(), XememSnapshot::into_raw);
        // SAFETY: not NULL, so valid for a write by this function's contract.
        unsafe { to.write(snapshot) };
        Ok(is_there)
    })())
}

/// See `xemem.h`.
///
/// # Safety
/// `from` is NULL or an open stream; `to` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_stream_at(
    from: *mut XememStream,
    generation: u64,
    to: *mut *mut XememSnapshot,
) -> c_int {
    answer_int((|| {
        if to.is_null() {
            return Err(Failure::null());
        }
        // SAFETY: NULL or open by this function's contract.
        let snapshot = unsafe { stream(from) }?.lock().at_owned(generation)?;
        // SAFETY: not NULL, so valid for a write by this function's contract.
        unsafe { to.write(XememSnapshot::into_raw(snapshot)) };
        Ok(0)
    })())
}

/// See `xemem.h`.
///
/// # Safety
/// `from` is NULL or an open stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_stream_fd(from: *const XememStream) -> c_int {
    // SAFETY: NULL or open by this function's contract.
    answer_int(unsafe { stream(from) }.map(|stream| stream.notify.into()))
}

/// See `xemem.h`.
///
/// # Safety
/// `from` is NULL or an open stream; `list` is NULL or has place for `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_stream_generations(
    from: *mut XememStream,
    list: *mut XememGeneration,
    room: usize,
) -> c_int {
    answer_int((|| {
        // SAFETY: NULL or open by this function's contract.
        let generations = unsafe { stream(from) }?.lock().generations()?;
        let of = |generation: &Generation| XememGeneration {
            generation: generation.generation,
            step: generation.record.step,
            time: f64::from_bits(generation.record.time_bits),
            is_leased: generation.is_leased.into(),
        };
        // SAFETY: place by this function's contract.
        unsafe { store(generations.iter().map(of), list, room) }
    })())
}

/// See `xemem.h`.
///
/// # Safety
/// `from` is NULL or an open stream; `ranges` is NULL or has place for `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_stream_diff(
    from: *mut XememStream,
    a: u64,
    b: u64,
    ranges: *mut XememRange,
    room: usize,
) -> i64 {
    answer((|| {
        // SAFETY: NULL or open by this function's contract.
        let diff = unsafe { stream(from) }?.lock().diff(a, b)?;
        // SAFETY: place by this function's contract.
        unsafe { store(ranges_of(&diff), ranges, room) }
    })())
}

/// See `xemem.h`.
///
/// # Safety
/// `from` is NULL or an open stream; `about` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xemem_stream_about(
    from: *mut XememStream,
    about: *mut XememStreamAbout,
) -> c_int {
    answer_int((|| {
        if about.is_null() {
            return Err(Failure::null());
        }
        // SAFETY: NULL or open by this function's contract.
        let stream = unsafe { stream(from) }?.lock();
        let (geometry, counts) = (*stream.geometry(), stream.map_counts());
        let filled = XememStreamAbout {
            segid: stream.segid().0,
            nbytes: geometry.size_bytes,
            chunk_bytes: geometry.chunk_bytes,
            page_bytes: stream.page_bytes().into(),
            nr_banks: geometry.nr_banks.into(),
            missed: stream.missed(),
            runs_mapped: counts.runs_mapped,
            chunks_mapped: counts.chunks_mapped,
            chunks_reused: counts.chunks_reused,
            end_reason: end_number(stream.end_reason()),
        };
        // SAFETY: not NULL, so valid for a write by this function's contract.
        unsafe { about.write(filled) };
        Ok(0)
    })())
}
