//! [`Index`]: finds the block in use that starts at an address.
//!
//! Used by [`super::blocks`] when memory is given back. A hash table whose chains
//! run through the nodes' `next`; it doubles when it holds one block per
//! bucket, so that looking up takes constant time on the average.

use super::nodes::Nodes;
use super::pages::Pages;
use crate::errno::Errno;

/// Buckets of the first table: one page.
const FIRST: usize = 1024;

/// The table.
#[derive(Debug)]
pub(super) struct Index {
    /// First node of each chain; a power of two of them.
    buckets: Option<Pages<u32>>,
    count: usize,
}

impl Index {
    pub(super) const fn new() -> Self {
        Self {
            buckets: None,
            count: 0,
        }
    }

    /// Blocks in it.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn buckets(&self) -> &[u32] {
        self.buckets.as_ref().map_or(&[], Pages::as_slice)
    }

    /// Sees to it that a further block can be added.
    ///
    /// # Errors
    /// ENOMEM for the first table. A larger one is not needed, only faster.
    pub(super) fn reserve(&mut self, nodes: &mut Nodes) -> Result<(), Errno> {
        let len = self.buckets().len();
        if len == 0 {
            self.buckets = Some(Pages::new(FIRST)?);
        } else if self.count >= len
            && let Ok(larger) = Pages::new(len.saturating_mul(2))
        {
            let old = self.buckets.replace(larger);
            self.count = 0;
            for &first in old.as_ref().map_or(&[][..], Pages::as_slice) {
                let mut number = first;
                while number != 0 {
                    let next = nodes.at(number).next;
                    self.insert(nodes, number);
                    number = next;
                }
            }
        }
        Ok(())
    }

    /// Adds a node under its start; [`Index::reserve`] was asked before.
    pub(super) fn insert(&mut self, nodes: &mut Nodes, number: u32) {
        let start = nodes.at(number).start;
        let buckets = self.buckets.as_mut().map(Pages::as_mut_slice);
        let bucket = buckets.and_then(|all| {
            let at = bucket_of(start, all.len());
            all.get_mut(at)
        });
        if let Some(bucket) = bucket {
            nodes.edit(number, |node| node.next = *bucket);
            *bucket = number;
            self.count += 1;
        }
    }

    /// The node that starts there; 0 when none does.
    pub(super) fn find(&self, nodes: &Nodes, start: u64) -> u32 {
        let buckets = self.buckets();
        let first = buckets.get(bucket_of(start, buckets.len()));
        let mut number = first.copied().unwrap_or(0);
        while number != 0 && nodes.at(number).start != start {
            number = nodes.at(number).next;
        }
        number
    }

    /// Takes out a node that [`Index::find`] found.
    pub(super) fn remove(&mut self, nodes: &mut Nodes, number: u32) {
        let node = nodes.at(number);
        let buckets = self.buckets.as_mut().map(Pages::as_mut_slice);
        let bucket = buckets.and_then(|all| {
            let at = bucket_of(node.start, all.len());
            all.get_mut(at)
        });
        let Some(bucket) = bucket else {
            return;
        };
        self.count -= 1;
        if *bucket == number {
            *bucket = node.next;
            return;
        }
        let mut before = *bucket;
        while before != 0 && nodes.at(before).next != number {
            before = nodes.at(before).next;
        }
        nodes.edit(before, |other| other.next = node.next);
    }
}

/// The bucket of a start, out of a power of two.
fn bucket_of(start: u64, buckets: usize) -> usize {
    /// 2^64 over the golden ratio: neighbours go far apart.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let high = start.wrapping_mul(SPREAD) >> 32;
    usize::try_from(high).unwrap_or(0) & buckets.wrapping_sub(1)
}
