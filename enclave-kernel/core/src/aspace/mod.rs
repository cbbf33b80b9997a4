//! Address spaces in Kitten's manner: a few regions, each backed at once.
//!
//! Called by the kernel's memory calls, which then edit page tables and frames
//! to match: every change reports the exact pieces it touched. The list is
//! sorted and disjoint, and neighbours that continue each other are one region,
//! so that the extent of a heap that grows in steps stays one entry.
//!
//! ```text
//! insert   ▐── A ──▌▐── A continued ──▌      → one region
//! remove           ▐ cut ▌                   → two regions, one reported piece
//! protect  ▐── A ──▌▐─ A, new prot ─▌▐─ A ─▌ → three regions
//! ```
//!
//! Promises: regions stay page aligned, inside the limits and disjoint; an
//! operation that is refused changes nothing. Does not know frames, page tables
//! or faults, and an arena's contents: an arena is one region, whole.

mod region;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use crate::errno::Errno;
use enclave_abi::addr::{PAGE_SIZE, align_down, align_up, is_aligned};
pub use region::{Backing, Kind, Prot, Region};

/// Why an address space refused a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AspaceError {
    /// Part of the range is mapped already.
    Overlap,
    /// The range is empty, wraps or leaves the address space.
    OutOfRange,
    /// An address is no multiple of a page.
    Misaligned,
    /// Part of the range is not mapped.
    Hole,
    /// An arena would be changed by a call that cannot do that.
    Arena,
}

impl AspaceError {
    /// What a program is told.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Overlap => Errno::EEXIST,
            Self::OutOfRange | Self::Hole => Errno::ENOMEM,
            Self::Misaligned => Errno::EINVAL,
            Self::Arena => Errno::EACCES,
        }
    }
}

impl fmt::Display for AspaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlap => "part of the range is mapped already",
            Self::OutOfRange => "the range is empty or leaves the address space",
            Self::Misaligned => "an address is no multiple of 4096",
            Self::Hole => "part of the range is not mapped",
            Self::Arena => "the range touches an arena",
        })
    }
}

impl core::error::Error for AspaceError {}

/// The regions of one address space.
#[derive(Debug)]
pub struct Aspace {
    min: u64,
    max: u64,
    regions: Vec<Region>,
}

impl Aspace {
    /// An empty address space for `[min, max)`, cut to whole pages.
    #[must_use]
    pub fn new(min: u64, max: u64) -> Self {
        let max = align_down(max, PAGE_SIZE);
        Self {
            min: align_up(min, PAGE_SIZE).unwrap_or(max),
            max,
            regions: Vec::new(),
        }
    }

    /// The highest start of `len` free bytes (rounded up to pages) that is a
    /// multiple of `align` (a power of two; at least a page) and ends at or
    /// below `below`.
    ///
    /// `None` when nothing fits, for no bytes, or for an `align` that is no
    /// power of two.
    #[must_use]
    pub fn find_hole(&self, len: u64, align: u64, below: u64) -> Option<u64> {
        let len = align_up(len, PAGE_SIZE)?;
        if len == 0 || !align.is_power_of_two() {
            return None;
        }
        let align = align.max(PAGE_SIZE);
        let mut end = self.max.min(below);
        for region in self.regions.iter().rev() {
            if let Some(start) = fit_below(region.end, end, len, align) {
                return Some(start);
            }
            end = end.min(region.start);
        }
        fit_below(self.min, end, len, align)
    }

    /// Adds a region; it becomes part of a neighbour that it continues.
    ///
    /// # Errors
    /// [`AspaceError::Misaligned`], [`AspaceError::OutOfRange`] or
    /// [`AspaceError::Overlap`]; nothing changed then.
    pub fn insert(&mut self, region: Region) -> Result<(), AspaceError> {
        self.check_range(region.start, region.end)?;
        let last_gpa = match region.backing {
            Backing::Frames(gpa) | Backing::Device(gpa) => gpa.checked_add(region.len_bytes()),
            Backing::None | Backing::Arena(_) | Backing::Import(_) => Some(0),
        };
        if last_gpa.is_none() {
            return Err(AspaceError::OutOfRange);
        }
        if !region.backing.is_aligned() {
            return Err(AspaceError::Misaligned);
        }
        let index = self.first_ending_after(region.start);
        if self
            .regions
            .get(index)
            .is_some_and(|r| r.start < region.end)
        {
            return Err(AspaceError::Overlap);
        }
        self.regions.insert(index, region);
        self.merge_around(index, index);
        Ok(())
    }

    /// Unmaps every page that holds a byte of `[start, end)`, and hands each
    /// piece that was mapped, with its own backing, to `removed`.
    pub fn remove(&mut self, start: u64, end: u64, removed: &mut impl FnMut(Region)) {
        if start >= end {
            return;
        }
        let start = align_down(start, PAGE_SIZE);
        let end = align_up(end, PAGE_SIZE).unwrap_or(self.max).max(start);
        let (first, last) = self.isolate(start, end);
        for region in self.regions.drain(first..last) {
            removed(region);
        }
    }

    /// Sets the protection of `[start, end)` and hands each piece whose
    /// protection differed, as it was before, to `changed`.
    ///
    /// # Errors
    /// [`AspaceError::Misaligned`]; [`AspaceError::OutOfRange`];
    /// [`AspaceError::Hole`] when a page is not mapped; [`AspaceError::Arena`]
    /// when a page is an arena's. Nothing changed then.
    pub fn protect(
        &mut self,
        start: u64,
        end: u64,
        prot: Prot,
        changed: &mut impl FnMut(Region),
    ) -> Result<(), AspaceError> {
        self.check_changeable(start, end)?;
        let (first, last) = self.isolate(start, end);
        for region in self.regions.iter_mut().take(last).skip(first) {
            if region.prot != prot {
                changed(*region);
                region.prot = prot;
            }
        }
        self.merge_around(first, last);
        Ok(())
    }

    /// Puts `backing` behind `[start, end)`, each page at its own distance from
    /// the start; protection and kind stay. This is how a reservation is
    /// committed. What was behind it before is the caller's to give back.
    ///
    /// # Errors
    /// As [`Aspace::protect`]; and [`AspaceError::Arena`] for an arena backing,
    /// which only [`Aspace::insert`] makes.
    pub fn set_backing(
        &mut self,
        start: u64,
        end: u64,
        backing: Backing,
    ) -> Result<(), AspaceError> {
        if backing.is_arena() {
            return Err(AspaceError::Arena);
        }
        if !backing.is_aligned() {
            return Err(AspaceError::Misaligned);
        }
        self.check_changeable(start, end)?;
        let (first, last) = self.isolate(start, end);
        for region in self.regions.iter_mut().take(last).skip(first) {
            region.backing = backing.advanced(region.start - start);
        }
        self.merge_around(first, last);
        Ok(())
    }

    /// Whether every byte of `[start, start + len)` is mapped and allows
    /// `want`. False for a range that wraps; true for no bytes.
    #[must_use]
    pub fn covers(&self, start: u64, len: u64, want: Prot) -> bool {
        let Some(end) = start.checked_add(len) else {
            return false;
        };
        let mut at = start;
        for region in self.ending_after(start) {
            if at >= end {
                break;
            }
            if region.start > at || !region.prot.contains(want) {
                return false;
            }
            at = region.end;
        }
        at >= end
    }

    /// The region that holds `addr`.
    #[must_use]
    pub fn at(&self, addr: u64) -> Option<&Region> {
        let region = self.regions.get(self.first_ending_after(addr))?;
        (region.start <= addr).then_some(region)
    }

    /// The region that holds `addr` or else lies nearest to it, for reports.
    #[must_use]
    pub fn nearest(&self, addr: u64) -> Option<&Region> {
        let index = self.first_ending_after(addr);
        let above = self.regions.get(index);
        let below = index.checked_sub(1).and_then(|i| self.regions.get(i));
        let (Some(low), Some(high)) = (below, above) else {
            return below.or(above);
        };
        // The last byte of the lower region is what a stray access is near to.
        let down = addr - (low.end - 1);
        let up = high.start.saturating_sub(addr);
        Some(if up < down { high } else { low })
    }

    /// The regions, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Region> + ExactSizeIterator {
        self.regions.iter()
    }

    /// The regions that end after `addr`, ascending.
    pub fn ending_after(&self, addr: u64) -> impl Iterator<Item = &Region> {
        self.regions.iter().skip(self.first_ending_after(addr))
    }

    /// Bytes of all regions.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        self.regions.iter().map(Region::len_bytes).sum()
    }

    /// Bytes of frames behind what is mapped.
    #[must_use]
    pub fn backed_bytes(&self) -> u64 {
        let backed = |region: &&Region| matches!(region.backing, Backing::Frames(_));
        let regions = self.regions.iter().filter(backed);
        regions.map(Region::len_bytes).sum()
    }

    fn first_ending_after(&self, addr: u64) -> usize {
        self.regions.partition_point(|region| region.end <= addr)
    }

    fn check_range(&self, start: u64, end: u64) -> Result<(), AspaceError> {
        if !is_aligned(start, PAGE_SIZE) || !is_aligned(end, PAGE_SIZE) {
            return Err(AspaceError::Misaligned);
        }
        if start >= end || start < self.min || end > self.max {
            return Err(AspaceError::OutOfRange);
        }
        Ok(())
    }

    /// Whether `[start, end)` is mapped whole, and nowhere by an arena.
    fn check_changeable(&self, start: u64, end: u64) -> Result<(), AspaceError> {
        self.check_range(start, end)?;
        if !self.covers(start, end - start, Prot::NONE) {
            return Err(AspaceError::Hole);
        }
        let mut inside = self
            .ending_after(start)
            .take_while(|region| region.start < end);
        if inside.any(|region| region.backing.is_arena()) {
            return Err(AspaceError::Arena);
        }
        Ok(())
    }

    /// Splits regions so that `[start, end)` holds whole regions only, and
    /// returns their index range.
    fn isolate(&mut self, start: u64, end: u64) -> (usize, usize) {
        let first = self.split(start);
        (first, self.split(end))
    }

    /// Splits the region that `at` lies inside of, if any; returns the index of
    /// the first region that starts at or after `at`.
    fn split(&mut self, at: u64) -> usize {
        let index = self.first_ending_after(at);
        match self.regions.get(index).copied() {
            Some(region) if region.start < at => {
                if let Some(low) = self.regions.get_mut(index) {
                    low.end = at;
                }
                self.regions.insert(index + 1, region.cut(at, region.end));
                index + 1
            }
            _ => index,
        }
    }

    /// Joins regions that continue each other, from the one before `first` to
    /// the one at `last`.
    fn merge_around(&mut self, first: usize, last: usize) {
        let mut index = last.min(self.regions.len().saturating_sub(1));
        while index > 0 && index + 1 > first {
            self.merge_with_next(index);
            index -= 1;
        }
        self.merge_with_next(index);
    }

    fn merge_with_next(&mut self, index: usize) {
        let (Some(low), Some(high)) = (self.regions.get(index), self.regions.get(index + 1)) else {
            return;
        };
        if low.continues_in(high) {
            let end = high.end;
            self.regions.remove(index + 1);
            if let Some(low) = self.regions.get_mut(index) {
                low.end = end;
            }
        }
    }
}

/// The highest start in `[low, end)` for `len` bytes at `align`.
fn fit_below(low: u64, end: u64, len: u64, align: u64) -> Option<u64> {
    let start = align_down(end.checked_sub(len)?, align);
    (start >= low).then_some(start)
}
