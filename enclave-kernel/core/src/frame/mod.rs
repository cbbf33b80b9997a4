//! Frame allocator: hands out physically contiguous memory.
//!
//! Called by the kernel for programs' regions, page tables and stacks; filled
//! once at boot from the extents of [`enclave_abi::boot::BootInfo`], later by
//! memory blocks that are added. There is no demand paging, so requests are
//! large and few; the allocator keeps two short sorted lists:
//!
//! ```text
//! free   ▐██████████▌   ▐████████████████▌      merged, clean or not
//! clean       ▐█████▌   ▐███▌   ▐████████▌      subset: never handed out
//! ```
//!
//! Promises: granules of 4 KiB; no byte is in two blocks at a time; memory that
//! was never added, or is free already, cannot be freed; small requests do not
//! break a whole free 2 MiB block while a partly used one can serve them; memory
//! that may be taken back is used when all else is, so that it stays free.
//! Does not zero anything: [`Block::clean`] tells whether that is needed.
//! The lists live on the heap, so a free or an allocation may grow them.

mod spans;
#[cfg(test)]
mod tests;

use self::spans::{Span, Spans};
use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE, align_down, align_up, is_aligned};

/// A piece of physically contiguous memory that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// First byte.
    pub start: u64,
    /// Length, a multiple of 4 KiB.
    pub len_bytes: u64,
    /// Whether no byte of it was handed out before since boot: it is zero.
    pub clean: bool,
}

/// Which memory a search may use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Clean,
    Any,
}

/// The allocator; see the module's text.
#[derive(Debug, Default)]
pub struct FrameAllocator {
    /// Everything ever added.
    owned: Spans,
    /// What is free.
    free: Spans,
    /// The part of `free` that was never handed out and was zero when added.
    clean: Spans,
    free_bytes: u64,
    /// Memory from here on may be taken back: it is handed out last.
    removable_from: Option<u64>,
}

/// Why memory cannot be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveError {
    /// It is not all owned, or not whole frames.
    NotOwned,
    /// So many bytes of it are handed out.
    InUse(u64),
}

impl FrameAllocator {
    /// An allocator that owns nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds memory, cut to whole 4 KiB frames; `clean` promises that it is zero.
    ///
    /// Returns whether it was taken: a range that wraps, holds no whole frame
    /// or overlaps memory already owned is refused as a whole.
    pub fn add(&mut self, start: u64, len_bytes: u64, clean: bool) -> bool {
        let end = start.checked_add(len_bytes);
        let (Some(start), Some(end)) = (align_up(start, PAGE_SIZE), end) else {
            return false;
        };
        let span = Span {
            start,
            end: align_down(end, PAGE_SIZE),
        };
        if span.len() == 0 || self.owned.overlaps(span) {
            return false;
        }
        self.owned.insert(span);
        self.free.insert(span);
        if clean {
            self.clean.insert(span);
        }
        self.free_bytes += span.len();
        true
    }

    /// As [`FrameAllocator::add`], for memory that may be taken back: from its
    /// start on memory is handed out only when none below serves the request.
    pub fn add_removable(&mut self, start: u64, len_bytes: u64, clean: bool) -> bool {
        let taken = self.add(start, len_bytes, clean);
        if taken {
            let from = self.removable_from.map_or(start, |from| from.min(start));
            self.removable_from = Some(from);
        }
        taken
    }

    /// Takes memory back that nobody uses: it is not owned any more.
    ///
    /// # Errors
    /// [`RemoveError`]; then nothing has changed.
    pub fn remove(&mut self, start: u64, len_bytes: u64) -> Result<(), RemoveError> {
        let span = whole_frames(start, len_bytes).ok_or(RemoveError::NotOwned)?;
        if !self.owned.contains(span) {
            return Err(RemoveError::NotOwned);
        }
        let free: u64 = self.free.within(span).map(Span::len).sum();
        if free != span.len() {
            return Err(RemoveError::InUse(span.len() - free));
        }
        for spans in [&mut self.owned, &mut self.free, &mut self.clean] {
            spans.remove(span);
        }
        self.free_bytes -= span.len();
        Ok(())
    }

    /// Hands out `len_bytes` (rounded up to 4 KiB) at a multiple of `align`
    /// (a power of two; at least 4 KiB is used), lowest address first and clean
    /// memory before used memory, but memory that may be taken back last.
    ///
    /// `None` when no free piece is large enough, for no bytes, or when `align`
    /// is no power of two.
    pub fn alloc(&mut self, len_bytes: u64, align: u64) -> Option<Block> {
        let (len, align) = rounded(len_bytes, align)?;
        let start = self.find(len, align)?;
        Some(self.take(Span {
            start,
            end: start.checked_add(len)?,
        }))
    }

    /// Hands out the largest piece there is, up to `len_bytes` (rounded up to
    /// 4 KiB), at a multiple of `align`; so a request may be served in pieces.
    ///
    /// `None` when nothing at all is free at that alignment, and as in
    /// [`FrameAllocator::alloc`].
    pub fn alloc_up_to(&mut self, len_bytes: u64, align: u64) -> Option<Block> {
        if let Some(block) = self.alloc(len_bytes, align) {
            return Some(block);
        }
        let (_, align) = rounded(len_bytes, align)?;
        let mut best = Span { start: 0, end: 0 };
        let zones = self.zones();
        for span in zones.iter().flat_map(|&zone| self.free.within(zone)) {
            let Some(start) = align_up(span.start, align) else {
                break;
            };
            let piece = Span { start, ..span };
            if piece.len() > best.len() {
                best = piece;
            }
        }
        (best.len() > 0).then(|| self.take(best))
    }

    /// Takes memory back; it is not clean any more.
    ///
    /// Returns whether it was taken: a range that is empty, not made of whole
    /// frames, not owned or (in part) free already is refused as a whole.
    pub fn free(&mut self, start: u64, len_bytes: u64) -> bool {
        let Some(span) = whole_frames(start, len_bytes) else {
            return false;
        };
        if !self.owned.contains(span) || self.free.overlaps(span) {
            return false;
        }
        self.free.insert(span);
        self.free_bytes += len_bytes;
        true
    }

    /// Bytes that are free.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Bytes of the largest free piece.
    #[must_use]
    pub fn largest(&self) -> u64 {
        self.free.iter().map(Span::len).max().unwrap_or(0)
    }

    /// What is searched first, and what after it.
    fn zones(&self) -> [Span; 2] {
        let border = self.removable_from.unwrap_or(u64::MAX);
        [(0, border), (border, u64::MAX)].map(|(start, end)| Span { start, end })
    }

    /// The place for `len` bytes.
    fn find(&self, len: u64, align: u64) -> Option<u64> {
        let mut zones = self.zones().into_iter();
        zones.find_map(|zone| self.find_in(zone, len, align))
    }

    /// The place for `len` bytes in `zone`. Breaking a whole 2 MiB block costs a
    /// later large page, zeroing used memory only time: so the former decides
    /// first.
    fn find_in(&self, zone: Span, len: u64, align: u64) -> Option<u64> {
        if len < LARGE_PAGE_SIZE && align < LARGE_PAGE_SIZE {
            for wanted in [Wanted::Clean, Wanted::Any] {
                for span in self.free.within(zone) {
                    for zone in span.partial_blocks() {
                        if let Some(start) = self.fit(zone, len, align, wanted) {
                            return Some(start);
                        }
                    }
                }
            }
        }
        [Wanted::Clean, Wanted::Any].into_iter().find_map(|wanted| {
            let mut spans = self.free.within(zone);
            spans.find_map(|span| self.fit(span, len, align, wanted))
        })
    }

    /// The lowest fit in `zone`, a part of a free span.
    fn fit(&self, zone: Span, len: u64, align: u64, wanted: Wanted) -> Option<u64> {
        let start = zone.fit(len, align)?;
        match wanted {
            Wanted::Any => Some(start),
            Wanted::Clean => self
                .clean
                .within(zone)
                .find_map(|span| span.fit(len, align)),
        }
    }

    /// Hands out `span`, which is free.
    fn take(&mut self, span: Span) -> Block {
        let clean = self.clean.contains(span);
        self.free.remove(span);
        self.clean.remove(span);
        self.free_bytes -= span.len();
        Block {
            start: span.start,
            len_bytes: span.len(),
            clean,
        }
    }
}

/// The range, if it is not empty and made of whole frames.
fn whole_frames(start: u64, len_bytes: u64) -> Option<Span> {
    let end = start.checked_add(len_bytes)?;
    let whole = is_aligned(start, PAGE_SIZE) && is_aligned(end, PAGE_SIZE) && len_bytes > 0;
    whole.then_some(Span { start, end })
}

/// `len` and `align` in whole frames, or `None` when they cannot be served.
fn rounded(len_bytes: u64, align: u64) -> Option<(u64, u64)> {
    let len = align_up(len_bytes, PAGE_SIZE)?;
    (len > 0 && align.is_power_of_two()).then_some((len, align.max(PAGE_SIZE)))
}
