//! Placement of arrays inside an arena: one after the other, never freed.
//!
//! Pure arithmetic, for programs that lay out an arena by themselves. An arena
//! whose parts come and go is [`crate::heap`]'s.

use enclave_abi::addr::{align_up, range_within};

/// Smallest alignment of an allocation: a cache line.
pub const MIN_ALIGN: u64 = 64;

/// Where the next `bytes` go when `used` of `limit` bytes are taken.
///
/// Returns the offset of the allocation (a multiple of `align` and of
/// [`MIN_ALIGN`]) and the new `used`. `None` when it does not fit or `align`
/// is no power of two; an `align` of 0 counts as [`MIN_ALIGN`].
#[must_use]
pub fn place(used: u64, bytes: u64, align: u64, limit: u64) -> Option<(u64, u64)> {
    if align != 0 && !align.is_power_of_two() {
        return None;
    }
    let offset = align_up(used, align.max(MIN_ALIGN))?;
    range_within(offset, bytes, limit).then(|| (offset, offset + bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_aligned_and_disjoint() {
        let (first, used) = place(0, 10, 0, 4096).unwrap();
        let (second, used) = place(used, 100, 8, 4096).unwrap();
        let (third, used) = place(used, 1, 1024, 4096).unwrap();
        assert_eq!((first, second, third, used), (0, 64, 1024, 1025));
    }

    #[test]
    fn the_last_byte_can_be_taken_and_no_more() {
        assert_eq!(place(64, 4032, 64, 4096), Some((64, 4096)));
        assert_eq!(place(64, 4033, 64, 4096), None);
        assert_eq!(place(4096, 0, 64, 4096), Some((4096, 4096)));
        assert_eq!(place(4096, 1, 64, 4096), None);
    }

    #[test]
    fn absurd_requests_are_refused() {
        assert_eq!(place(0, 8, 3, 4096), None);
        assert_eq!(place(64, u64::MAX, 8, 4096), None);
        assert_eq!(place(u64::MAX - 3, 8, 64, u64::MAX), None);
        assert_eq!(place(1, 8, 1 << 63, 4096), None);
    }
}
