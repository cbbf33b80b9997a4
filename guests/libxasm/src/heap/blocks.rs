//! [`Blocks`]: which parts of an arena are in use.
//!
//! Called by [`super`] under the heap's lock. Knows addresses as numbers and
//! touches no byte of the arena: lists, sizes and neighbours are kept in
//! [`super::nodes`], in memory that no snapshot contains.
//!
//! Free blocks are in bins by size, eight to each power of two, with a bit per
//! bin that has any. An allocation takes a block of the first bin all of whose
//! blocks are large enough, a release joins the block with free neighbours:
//! both take constant time. Only when no such bin has a block are those looked
//! through whose blocks may fit, so that an allocation fails only when
//! no free block can hold it.

use super::index::Index;
use super::nodes::{Node, Nodes};
use crate::bump::MIN_ALIGN;
use crate::errno::Errno;

/// Bytes of a granule: allocations start and end at multiples, so that two
/// never share a cache line.
pub(super) const GRANULE: u64 = MIN_ALIGN;

/// A power of two of granules and three bits below it; see [`bin_of`].
const BINS: usize = 64 * 8;

/// The books of one arena.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Address of the first byte, and how many there are.
    pub(super) base: u64,
    pub(super) bytes: u64,
    nodes: Nodes,
    index: Index,
    /// First free block of each bin; 0 = none.
    bins: [u32; BINS],
    /// One bit per bin: whether it has a block.
    filled: [u64; BINS / 64],
    /// Granules from here on were never allocated: they are zero.
    untouched: u64,
    used: u64,
    peak: u64,
}

/// What an allocation got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Address of the first byte.
    pub address: u64,
    /// Bytes from there on that may hold what somebody stored before; the
    /// rest is zero.
    pub dirty: u64,
}

/// Counters of a heap, in bytes where they are not blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Usage {
    /// In use now, whole granules.
    pub used: u64,
    /// The most that was in use at once.
    pub peak: u64,
    /// Allocations now.
    pub blocks: u64,
    /// The largest that could be had now.
    pub largest_free: u64,
}

impl Blocks {
    /// Those of no arena.
    pub(super) const fn new() -> Self {
        Self {
            base: 0,
            bytes: 0,
            nodes: Nodes::new(),
            index: Index::new(),
            bins: [0; BINS],
            filled: [0; BINS / 64],
            untouched: 0,
            used: 0,
            peak: 0,
        }
    }

    /// Takes room for `bytes` at an address that is a multiple of `align`.
    pub(super) fn allocate(&mut self, bytes: u64, align: u64) -> Result<Given, Errno> {
        if align != 0 && !align.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        let len = bytes.div_ceil(GRANULE).max(1);
        self.nodes.reserve(3)?;
        self.index.reserve(&mut self.nodes)?;
        if self.untouched == 0 {
            self.begin();
        }
        let (number, start) = self.search(len, align.max(GRANULE)).ok_or(Errno::ENOMEM)?;
        self.carve(number, start, len);
        self.used += len;
        self.peak = self.peak.max(self.used);
        let dirty = self.untouched.saturating_sub(start).min(len);
        self.untouched = self.untouched.max(start + len);
        Ok(Given {
            address: self.base + start * GRANULE,
            dirty: dirty * GRANULE,
        })
    }

    /// Gives an allocation back. EINVAL when none starts there.
    pub(super) fn release(&mut self, address: u64) -> Result<(), Errno> {
        let number = self.in_use(address)?;
        self.index.remove(&mut self.nodes, number);
        self.nodes.edit(number, |node| node.in_use = 0);
        self.used -= self.nodes.at(number).len;
        self.join_and_link(number);
        Ok(())
    }

    /// Bytes of the allocation that starts there. EINVAL when none does.
    pub(super) fn size(&self, address: u64) -> Result<u64, Errno> {
        let number = self.in_use(address)?;
        Ok(self.nodes.at(number).len * GRANULE)
    }

    /// Makes an allocation larger or smaller where it is; `false` when there
    /// is no room behind it. EINVAL when none starts there.
    pub(super) fn resize(&mut self, address: u64, bytes: u64) -> Result<bool, Errno> {
        let number = self.in_use(address)?;
        let node = self.nodes.at(number);
        let len = bytes.div_ceil(GRANULE).max(1);
        if len == node.len {
            return Ok(true);
        }
        self.nodes.reserve(1)?;
        let behind = self.nodes.at(node.after);
        let is_free = node.after != 0 && behind.in_use == 0;
        let room = node.len + if is_free { behind.len } else { 0 };
        if len > room {
            return Ok(false);
        }
        if is_free {
            self.unlink(node.after);
            self.absorb(number, node.after);
        }
        self.cut(number, len);
        self.used = self.used - node.len + len;
        self.peak = self.peak.max(self.used);
        self.untouched = self.untouched.max(node.start + len);
        Ok(true)
    }

    /// Counters.
    pub(super) fn usage(&self) -> Usage {
        let top = self.filled.iter().rposition(|&bits| bits != 0);
        let largest = top.map_or(0, |word| {
            let bits = self.filled.get(word).copied().unwrap_or(0);
            let bin = word * 64 + 63 - usize::try_from(bits.leading_zeros()).unwrap_or(0);
            self.in_bin(bin)
                .map(|(_, node)| node.len)
                .max()
                .unwrap_or(0)
        });
        let whole = self.bytes / GRANULE;
        Usage {
            used: self.used * GRANULE,
            peak: self.peak * GRANULE,
            blocks: self.index.count() as u64,
            largest_free: GRANULE * if self.untouched == 0 { whole } else { largest },
        }
    }

    /// The whole arena as one free block.
    fn begin(&mut self) {
        let whole = Node {
            len: self.bytes / GRANULE,
            ..Node::default()
        };
        if whole.len > 0 && self.bins.iter().all(|&first| first == 0) {
            let number = self.nodes.insert(whole);
            self.link(number);
        }
    }

    /// The number of the block in use that starts at an address.
    fn in_use(&self, address: u64) -> Result<u32, Errno> {
        let offset = address.wrapping_sub(self.base);
        if offset >= self.bytes || !offset.is_multiple_of(GRANULE) {
            return Err(Errno::EINVAL);
        }
        match self.index.find(&self.nodes, offset / GRANULE) {
            0 => Err(Errno::EINVAL),
            number => Ok(number),
        }
    }

    /// Where `len` granules fit into a free block, at a multiple of `align`
    /// bytes.
    fn fit(&self, node: Node, len: u64, align: u64) -> Option<u64> {
        let first = self.base.checked_add(node.start * GRANULE)?;
        let start = first.checked_next_multiple_of(align)? - self.base;
        let start = start.div_ceil(GRANULE);
        let end = start.checked_add(len)?;
        (end <= node.start + node.len).then_some(start)
    }

    /// A free block for `len` granules and where they go in it.
    fn search(&self, len: u64, align: u64) -> Option<(u32, u64)> {
        // Any block of that size will do, wherever it starts.
        let enough = len.checked_add(align / GRANULE - 1)?;
        let bin = bin_of(enough) + usize::from(!is_least_of_bin(enough));
        let number = self.first_filled(bin).and_then(|bin| self.bins.get(bin));
        if let Some(&number) = number
            && let Some(start) = self.fit(self.nodes.at(number), len, align)
        {
            return Some((number, start));
        }
        let mut next = self.first_filled(bin_of(len));
        while let Some(bin) = next {
            let mut fits = self
                .in_bin(bin)
                .filter_map(|(number, node)| Some((number, self.fit(node, len, align)?)));
            if let Some(found) = fits.next() {
                return Some(found);
            }
            next = self.first_filled(bin + 1);
        }
        None
    }

    /// The first bin from `bin` on that has a block.
    fn first_filled(&self, bin: usize) -> Option<usize> {
        let (word, bit) = (bin / 64, bin % 64);
        let from = self.filled.get(word)? & (u64::MAX << bit);
        let rest = self.filled.iter().copied().enumerate().skip(word + 1);
        let mut words = [(word, from)].into_iter().chain(rest);
        let (word, bits) = words.find(|&(_, bits)| bits != 0)?;
        Some(word * 64 + usize::try_from(bits.trailing_zeros()).ok()?)
    }

    /// The free blocks of a bin.
    fn in_bin(&self, bin: usize) -> impl Iterator<Item = (u32, Node)> {
        let mut next = self.bins.get(bin).copied().unwrap_or(0);
        core::iter::from_fn(move || {
            let number = next;
            let node = self.nodes.at(number);
            next = node.next;
            (number != 0).then_some((number, node))
        })
    }

    /// Takes `len` granules at `start` out of a free block; what is before and
    /// behind them stays free. Two nodes are reserved.
    fn carve(&mut self, number: u32, start: u64, len: u64) {
        self.unlink(number);
        let node = self.nodes.at(number);
        if start > node.start {
            let gap = self.nodes.insert(Node {
                start: node.start,
                len: start - node.start,
                before: node.before,
                after: number,
                ..Node::default()
            });
            self.nodes.edit(node.before, |before| before.after = gap);
            self.nodes.edit(number, |node| {
                node.len -= start - node.start;
                node.start = start;
                node.before = gap;
            });
            self.link(gap);
        }
        // Before the cut, which would join what is behind with a free block.
        self.nodes.edit(number, |node| node.in_use = 1);
        self.cut(number, len);
        self.index.insert(&mut self.nodes, number);
    }

    /// Shortens a block to `len`; the rest becomes a free one. One node is
    /// reserved.
    fn cut(&mut self, number: u32, len: u64) {
        let node = self.nodes.at(number);
        if len >= node.len {
            return;
        }
        let rest = self.nodes.insert(Node {
            start: node.start + len,
            len: node.len - len,
            before: number,
            after: node.after,
            ..Node::default()
        });
        self.nodes.edit(node.after, |after| after.before = rest);
        self.nodes.edit(number, |node| {
            node.len = len;
            node.after = rest;
        });
        self.join_and_link(rest);
    }

    /// Joins a free block that is in no bin with its free neighbours, and puts
    /// the whole into its bin.
    fn join_and_link(&mut self, number: u32) {
        let after = self.nodes.at(number).after;
        if after != 0 && self.nodes.at(after).in_use == 0 {
            self.unlink(after);
            self.absorb(number, after);
        }
        let before = self.nodes.at(number).before;
        if before != 0 && self.nodes.at(before).in_use == 0 {
            self.unlink(before);
            self.absorb(before, number);
            self.link(before);
        } else {
            self.link(number);
        }
    }

    /// Makes block `next`, which is in no bin, part of the one before it.
    fn absorb(&mut self, number: u32, next: u32) {
        let gone = self.nodes.at(next);
        self.nodes.edit(number, |node| {
            node.len += gone.len;
            node.after = gone.after;
        });
        self.nodes.edit(gone.after, |after| after.before = number);
        self.nodes.remove(next);
    }

    /// Puts a free block into its bin.
    fn link(&mut self, number: u32) {
        let bin = bin_of(self.nodes.at(number).len);
        let Some(first) = self.bins.get_mut(bin) else {
            return;
        };
        let next = core::mem::replace(first, number);
        self.nodes.edit(number, |node| {
            node.next = next;
            node.prev = 0;
        });
        self.nodes.edit(next, |node| node.prev = number);
        if let Some(bits) = self.filled.get_mut(bin / 64) {
            *bits |= 1 << (bin % 64);
        }
    }

    /// Takes a free block out of its bin.
    fn unlink(&mut self, number: u32) {
        let node = self.nodes.at(number);
        self.nodes.edit(node.next, |next| next.prev = node.prev);
        if node.prev != 0 {
            self.nodes.edit(node.prev, |prev| prev.next = node.next);
            return;
        }
        let bin = bin_of(node.len);
        if let Some(first) = self.bins.get_mut(bin) {
            *first = node.next;
        }
        if node.next == 0
            && let Some(bits) = self.filled.get_mut(bin / 64)
        {
            *bits &= !(1 << (bin % 64));
        }
    }
}

/// The bin of a size in granules: its power of two and the three bits below.
fn bin_of(len: u64) -> usize {
    let bin = if len < 8 {
        len
    } else {
        let power = u64::from(len.ilog2());
        (power - 2) * 8 + (len >> (power - 3) & 7)
    };
    usize::try_from(bin).unwrap_or(BINS - 1)
}

/// Whether no smaller size is in the same bin.
fn is_least_of_bin(len: u64) -> bool {
    len < 8 || len.trailing_zeros() + 3 >= len.ilog2()
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
