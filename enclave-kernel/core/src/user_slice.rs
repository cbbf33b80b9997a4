//! A range of addresses that a program claims to be memory of its own.
//!
//! Made by the system-call layer from register values, before anything looks
//! at them. Holding a [`UserSlice`] proves that the range does not wrap and,
//! unless it is empty, lies where programs may have memory: so it cannot name
//! kernel memory, and arithmetic on it cannot overflow. It proves **not** that
//! the range is mapped, nor that it stays so: ask [`UserSlice::is_mapped`] in
//! the same breath as the access. It is also no promise about the contents,
//! which other threads may change while they are read: copy once, then check.

use crate::aspace::{Aspace, Prot};
use crate::errno::Errno;
use enclave_abi::addr::{align_down, is_aligned};
use enclave_abi::layout::{USER_END, USER_MIN};

/// A range `[base, base + len)` in the programs' half of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserSlice {
    base: u64,
    len: u64,
}

impl UserSlice {
    /// The slice of `len` bytes at `base`; with `len` 0 any `base` will do, as
    /// in Linux.
    ///
    /// # Errors
    /// `EFAULT` when the range wraps or leaves the programs' half.
    pub fn new(base: u64, len: u64) -> Result<Self, Errno> {
        let end = base.checked_add(len).ok_or(Errno::EFAULT)?;
        if len > 0 && (base < USER_MIN || end > USER_END) {
            return Err(Errno::EFAULT);
        }
        Ok(Self { base, len })
    }

    /// The slice of `count` elements of `element_bytes` each.
    ///
    /// # Errors
    /// As [`UserSlice::new`], also when the length itself overflows.
    pub fn array(base: u64, count: u64, element_bytes: u64) -> Result<Self, Errno> {
        let len = count.checked_mul(element_bytes).ok_or(Errno::EFAULT)?;
        Self::new(base, len)
    }

    /// First address.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.base
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Address after the last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.base + self.len
    }

    /// Whether the base is a multiple of `align` (a power of two).
    #[must_use]
    pub const fn is_aligned(self, align: u64) -> bool {
        is_aligned(self.base, align)
    }

    /// The part of `len` bytes from `offset` on, or `None` outside the slice.
    #[must_use]
    pub fn part(self, offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then_some(Self {
            base: self.base + offset,
            len,
        })
    }

    /// The slice cut to its first `max` bytes.
    #[must_use]
    pub fn first(self, max: u64) -> Self {
        Self {
            len: self.len.min(max),
            ..self
        }
    }

    /// The slice in pieces that do not cross a multiple of `boundary` (a power
    /// of two), ascending: what can be copied by one translation each.
    pub fn pieces(self, boundary: u64) -> impl Iterator<Item = Self> {
        let mut rest = self;
        core::iter::from_fn(move || {
            let step = boundary - (rest.base - align_down(rest.base, boundary));
            let piece = rest.first(step);
            rest = rest.part(piece.len, rest.len - piece.len)?;
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// Whether every byte is mapped in `aspace` and allows `want`.
    #[must_use]
    pub fn is_mapped(self, aspace: &Aspace, want: Prot) -> bool {
        self.is_empty() || aspace.covers(self.base, self.len, want)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn ranges_outside_the_programs_half_are_refused() {
        let hostile = [
            (0, 1),
            (USER_MIN - 1, 1),
            (USER_END - 1, 2),
            (USER_END, 1),
            (0xffff_9000_0000_0000, 8),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
            (USER_MIN, u64::MAX - 1),
        ];
        for (base, len) in hostile {
            assert_eq!(
                UserSlice::new(base, len),
                Err(Errno::EFAULT),
                "{base:#x}+{len:#x}"
            );
        }
    }

    #[test]
    fn the_last_byte_and_the_empty_range_are_accepted() {
        assert_eq!(
            UserSlice::new(USER_END - 1, 1).map(UserSlice::end),
            Ok(USER_END)
        );
        assert!(UserSlice::new(USER_MIN, USER_END - USER_MIN).is_ok());
        assert!(UserSlice::new(0, 0).is_ok_and(UserSlice::is_empty));
    }

    #[test]
    fn an_array_whose_length_overflows_is_refused() {
        assert_eq!(UserSlice::array(USER_MIN, 1 << 61, 16), Err(Errno::EFAULT));
        assert_eq!(
            UserSlice::array(USER_MIN, 3, 16),
            UserSlice::new(USER_MIN, 48)
        );
    }

    #[test]
    fn mapped_needs_the_permission_on_every_byte() {
        let mut aspace = Aspace::new(USER_MIN, USER_END);
        let region = crate::aspace::Region {
            start: 0x40_0000,
            end: 0x40_2000,
            prot: Prot::READ,
            backing: crate::aspace::Backing::Frames(0),
            kind: crate::aspace::Kind::Image,
        };
        aspace.insert(region).expect("free range");
        let slice = |base, len| UserSlice::new(base, len).expect("in the lower half");
        assert!(slice(0x40_0000, 0x2000).is_mapped(&aspace, Prot::READ));
        assert!(!slice(0x40_0000, 0x2000).is_mapped(&aspace, Prot::WRITE));
        assert!(!slice(0x40_0000, 0x2001).is_mapped(&aspace, Prot::READ));
        assert!(slice(0, 0).is_mapped(&aspace, Prot::WRITE));
    }

    proptest! {
        #[test]
        fn pieces_are_the_slice_cut_at_boundaries(
            base in USER_MIN..USER_MIN + 0x3000,
            len in 0u64..0x5000,
        ) {
            let slice = UserSlice::new(base, len).expect("in the lower half");
            let pieces: Vec<_> = slice.pieces(0x1000).collect();
            let mut at = base;
            for piece in &pieces {
                prop_assert_eq!(piece.base(), at);
                prop_assert!(!piece.is_empty());
                prop_assert_eq!(piece.base() / 0x1000, (piece.end() - 1) / 0x1000);
                at = piece.end();
            }
            prop_assert_eq!(at, slice.end());
        }

        #[test]
        fn a_part_never_leaves_its_slice(offset: u64, len: u64) {
            let slice = UserSlice::new(USER_MIN, 0x1000).expect("in the lower half");
            match slice.part(offset, len) {
                Some(part) => prop_assert!(part.end() <= slice.end()),
                None => prop_assert!(offset.checked_add(len).is_none_or(|end| end > 0x1000)),
            }
        }
    }
}
