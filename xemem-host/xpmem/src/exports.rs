//! The segments of this process, and the memory they were made of.

// UNSAFETY: moves memory of the program into objects.
#![expect(unsafe_code)]

use crate::errors::Failure;
use core::ffi::c_void;
use core::ops::Range;
use std::collections::BTreeMap;
use xemem_host::{Broker, ClientError, Hugetlb, SegId, SegmentRequest};

/// All segments this process exports, by what the program knows them by.
#[derive(Debug, Default)]
pub(crate) struct Exports(BTreeMap<SegId, Range<usize>>);

impl Exports {
    /// Makes a segment over `len` bytes at `address`.
    ///
    /// # Safety
    /// That of [`Broker::make_over`].
    pub(crate) unsafe fn make(
        &mut self,
        broker: &mut Broker,
        address: *mut c_void,
        len: usize,
        mode: u32,
    ) -> Result<SegId, ClientError> {
        let request = SegmentRequest {
            mode,
            hugetlb: Hugetlb::No,
            ..SegmentRequest::default()
        };
        // SAFETY: the caller's promise, passed on.
        let segid = unsafe { broker.make_over(address, len, &request) }?.segid;
        let range = address.addr()..address.addr().saturating_add(len);
        self.0.insert(segid, range);
        Ok(segid)
    }

    pub(crate) fn contains(&self, segid: SegId) -> bool {
        self.0.contains_key(&segid)
    }

    pub(crate) fn forget(&mut self, segid: SegId) {
        self.0.remove(&segid);
    }

    /// Refuses addresses that a segment was made of.
    pub(crate) fn check_apart(&self, address: usize, len: usize) -> Result<(), Failure> {
        let end = address.saturating_add(len);
        let hit = |range: &Range<usize>| range.start < end && address < range.end;
        match self.0.values().any(hit) {
            true => Err(Failure::argument("a segment was made of memory there")),
            false => Ok(()),
        }
    }
}
