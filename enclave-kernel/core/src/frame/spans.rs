//! Sets of physical ranges, kept as short sorted lists.
//!
//! Used by the frame allocator only: one set each for what it owns, what is
//! free and what is clean. Frames are whole here by the caller's checks.

use alloc::vec::Vec;

use enclave_abi::addr::{LARGE_PAGE_SIZE, align_down, align_up};

/// A half-open range; never empty in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Span {
    pub(super) fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    fn intersect(self, other: Self) -> Self {
        Self {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        }
    }

    /// Lowest multiple of `align` in the span from which `len` bytes fit.
    pub(super) fn fit(self, len: u64, align: u64) -> Option<u64> {
        let start = align_up(self.start, align)?;
        (start.checked_add(len)? <= self.end).then_some(start)
    }

    /// The parts that lie in 2 MiB blocks this span does not cover whole:
    /// before and after the whole ones. They are one part when no whole block
    /// separates them.
    pub(super) fn partial_blocks(self) -> [Self; 2] {
        let first = align_up(self.start, LARGE_PAGE_SIZE).unwrap_or(self.end);
        let last = align_down(self.end, LARGE_PAGE_SIZE);
        let (head_end, tail_start) = if first < last {
            (first, last)
        } else {
            (self.end, self.end)
        };
        let head = Self {
            end: head_end,
            ..self
        };
        let tail = Self {
            start: tail_start,
            ..self
        };
        [head, tail]
    }
}

/// Sorted, disjoint spans; neighbours that touch are one.
#[derive(Debug, Default)]
pub(super) struct Spans(Vec<Span>);

impl Spans {
    pub(super) fn iter(&self) -> impl Iterator<Item = Span> {
        self.0.iter().copied()
    }

    /// Index of the first span that ends after `addr`.
    fn first_ending_after(&self, addr: u64) -> usize {
        self.0.partition_point(|span| span.end <= addr)
    }

    /// The spans that share a byte with `zone`, cut to it.
    pub(super) fn within(&self, zone: Span) -> impl Iterator<Item = Span> {
        self.0
            .iter()
            .skip(self.first_ending_after(zone.start))
            .take_while(move |span| span.start < zone.end)
            .map(move |span| span.intersect(zone))
    }

    pub(super) fn overlaps(&self, zone: Span) -> bool {
        self.within(zone).next().is_some()
    }

    pub(super) fn contains(&self, zone: Span) -> bool {
        self.within(zone).next() == Some(zone)
    }

    /// Adds `new`, which overlaps nothing here.
    pub(super) fn insert(&mut self, new: Span) {
        let index = self.first_ending_after(new.start);
        let joins_next = self.0.get(index).is_some_and(|s| s.start == new.end);
        let before = index.checked_sub(1);
        let joins_before =
            before.filter(|&i| self.0.get(i).is_some_and(|span| span.end == new.start));
        match (joins_before, joins_next) {
            (Some(i), true) => {
                let next = self.0.remove(index);
                self.set_end(i, next.end);
            }
            (Some(i), false) => self.set_end(i, new.end),
            (None, true) => {
                if let Some(span) = self.0.get_mut(index) {
                    span.start = new.start;
                }
            }
            (None, false) => self.0.insert(index, new),
        }
    }

    fn set_end(&mut self, index: usize, end: u64) {
        if let Some(span) = self.0.get_mut(index) {
            span.end = end;
        }
    }

    /// Takes every byte of `zone` out, whatever part of it is here.
    pub(super) fn remove(&mut self, zone: Span) {
        let mut index = self.first_ending_after(zone.start);
        while let Some(&span) = self.0.get(index) {
            if span.start >= zone.end {
                return;
            }
            let below = Span {
                end: zone.start.max(span.start),
                ..span
            };
            let above = Span {
                start: zone.end.min(span.end),
                ..span
            };
            match (below.len() > 0, above.len() > 0) {
                (true, true) => {
                    self.set_end(index, below.end);
                    self.0.insert(index + 1, above);
                    return;
                }
                (true, false) => {
                    self.set_end(index, below.end);
                    index += 1;
                }
                (false, true) => {
                    if let Some(span) = self.0.get_mut(index) {
                        span.start = above.start;
                    }
                    return;
                }
                (false, false) => {
                    self.0.remove(index);
                }
            }
        }
    }
}
