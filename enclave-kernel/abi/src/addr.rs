//! Addresses, page sizes and the few alignment helpers everybody needs.
//!
//! Called by every crate that computes with guest addresses. Each helper is
//! total: overflow is `None`, never a wrap. Nothing here touches memory.

/// Bytes of a small page.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes of a large (2 MiB) page.
pub const LARGE_PAGE_SIZE: u64 = 2 << 20;
/// Bytes covered by one page-directory-pointer entry.
pub const GIB: u64 = 1 << 30;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `bytes` further on, or `None` past the end of 64 bits.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

/// Rounds `value` up to a multiple of `align` (a power of two).
///
/// `None` when the result does not fit or `align` is no power of two.
#[must_use]
pub fn align_up(value: u64, align: u64) -> Option<u64> {
    if !align.is_power_of_two() {
        return None;
    }
    value.checked_add(align - 1).map(|v| v & !(align - 1))
}

/// Rounds `value` down to a multiple of `align` (a power of two).
#[must_use]
pub const fn align_down(value: u64, align: u64) -> u64 {
    value & !(align.wrapping_sub(1))
}

/// Whether `value` is a multiple of `align` (a power of two).
#[must_use]
pub const fn is_aligned(value: u64, align: u64) -> bool {
    value & align.wrapping_sub(1) == 0
}

/// Whether `[start, start + len)` lies inside `[0, limit)` without wrapping.
#[must_use]
pub fn range_within(start: u64, len: u64, limit: u64) -> bool {
    start.checked_add(len).is_some_and(|end| end <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn align_up_is_exact_at_the_boundaries() {
        for (value, want) in [(0, 0), (1, 4096), (4095, 4096), (4096, 4096), (4097, 8192)] {
            assert_eq!(align_up(value, PAGE_SIZE), Some(want));
        }
    }

    #[test]
    fn align_up_refuses_overflow_and_odd_alignments() {
        assert_eq!(align_up(u64::MAX, PAGE_SIZE), None);
        assert_eq!(align_up(u64::MAX - 4095, PAGE_SIZE), Some(u64::MAX - 4095));
        assert_eq!(align_up(1, 0), None);
        assert_eq!(align_up(1, 3), None);
    }

    #[test]
    fn range_within_accepts_the_last_byte_and_refuses_the_next() {
        assert!(range_within(0, 0, 0));
        assert!(range_within(10, 6, 16));
        assert!(!range_within(10, 7, 16));
        assert!(!range_within(u64::MAX, 1, u64::MAX));
        assert!(!range_within(1, u64::MAX, u64::MAX));
    }
}
