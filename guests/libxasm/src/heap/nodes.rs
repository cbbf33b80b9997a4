//! [`Nodes`]: the blocks of a heap, by number.
//!
//! Used by [`super::blocks`]. A growing table in pieces that never move: piece
//! k has twice as many places as piece k - 1. Number 0 is no node, so that
//! a heap without any is all zero bytes.

use super::pages::Pages;
use crate::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A stretch of an arena, in granules.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Node {
    pub(super) start: u64,
    pub(super) len: u64,
    /// Neighbours by address; 0 at the ends.
    pub(super) before: u32,
    pub(super) after: u32,
    /// Next in the list of free blocks of a bin, in the chain of a bucket, or
    /// in that of unused nodes.
    pub(super) next: u32,
    /// The one before in the list of free blocks.
    pub(super) prev: u32,
    pub(super) in_use: u32,
    pub(super) pad: u32,
}

/// Places in the first piece: one page.
const FIRST: u32 = 102;
const PIECES: usize = 25;

/// The table.
#[derive(Debug)]
pub(super) struct Nodes {
    pieces: [Option<Pages<Node>>; PIECES],
    /// Numbers below it have been given out before.
    fresh: u32,
    /// Numbers that can be had without a further piece.
    capacity: u32,
    /// First of the chain of nodes that were given back, and how many.
    unused: u32,
    nr_unused: u32,
}

impl Nodes {
    pub(super) const fn new() -> Self {
        Self {
            pieces: [const { None }; PIECES],
            fresh: 0,
            capacity: 0,
            unused: 0,
            nr_unused: 0,
        }
    }

    /// Sees to it that `count` nodes can be had.
    ///
    /// # Errors
    /// ENOMEM; then nothing has changed.
    pub(super) fn reserve(&mut self, count: u32) -> Result<(), Errno> {
        while self.capacity - self.fresh + self.nr_unused < count {
            let piece = self.pieces.iter().position(Option::is_none);
            let piece = piece.ok_or(Errno::ENOMEM)?;
            let places = u32::try_from(piece)
                .ok()
                .and_then(|piece| FIRST.checked_shl(piece))
                .ok_or(Errno::ENOMEM)?;
            let len = usize::try_from(places).map_err(|_| Errno::ENOMEM)?;
            let pages = Pages::new(len)?;
            if let Some(place) = self.pieces.get_mut(piece) {
                *place = Some(pages);
            }
            self.capacity += places;
        }
        Ok(())
    }

    /// A number for `node`; 0 where [`Nodes::reserve`] was not asked.
    pub(super) fn insert(&mut self, node: Node) -> u32 {
        let number = if self.unused != 0 {
            let number = self.unused;
            self.unused = self.at(number).next;
            self.nr_unused -= 1;
            number
        } else if self.fresh < self.capacity {
            self.fresh += 1;
            self.fresh
        } else {
            return 0;
        };
        self.edit(number, |place| *place = node);
        number
    }

    /// Gives a number back.
    pub(super) fn remove(&mut self, number: u32) {
        let next = self.unused;
        self.edit(number, |place| {
            *place = Node {
                next,
                ..Node::default()
            };
        });
        self.unused = number;
        self.nr_unused += 1;
    }

    /// The node of that number; an empty one where there is none.
    pub(super) fn at(&self, number: u32) -> Node {
        let found = place(number).and_then(|(piece, at)| {
            let pages = self.pieces.get(piece)?.as_ref()?;
            pages.as_slice().get(at)
        });
        found.copied().unwrap_or_default()
    }

    /// Changes the node of that number; there is nothing to change at 0.
    pub(super) fn edit(&mut self, number: u32, change: impl FnOnce(&mut Node)) {
        let found = place(number).and_then(|(piece, at)| {
            let pages = self.pieces.get_mut(piece)?.as_mut()?;
            pages.as_mut_slice().get_mut(at)
        });
        if let Some(node) = found {
            change(node);
        }
    }
}

/// Piece and place of a number.
fn place(number: u32) -> Option<(usize, usize)> {
    let from_zero = number.checked_sub(1)?;
    let piece = (from_zero / FIRST + 1).ilog2();
    let before = FIRST * ((1 << piece) - 1);
    let at = usize::try_from(from_zero - before).ok()?;
    Some((usize::try_from(piece).ok()?, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_places_of_their_own() {
        let mut nodes = Nodes::new();
        assert_eq!(nodes.insert(Node::default()), 0);
        for n in 1..=1000 {
            nodes.reserve(1).unwrap();
            let node = Node {
                start: u64::from(n),
                ..Node::default()
            };
            assert_eq!(nodes.insert(node), n);
        }
        for n in 1..=1000 {
            assert_eq!(nodes.at(n).start, u64::from(n));
        }
        assert_eq!(nodes.at(0).start, 0);
        assert_eq!(nodes.at(u32::MAX).start, 0);
    }

    #[test]
    fn numbers_that_were_given_back_are_used_first() {
        let mut nodes = Nodes::new();
        nodes.reserve(3).unwrap();
        let numbers = [(); 3].map(|()| nodes.insert(Node::default()));
        assert_eq!(numbers, [1, 2, 3]);
        nodes.remove(2);
        nodes.remove(1);
        let again = [(); 2].map(|()| nodes.insert(Node::default()));
        assert_eq!(again, [1, 2]);
    }
}
