//! How many frames of an arena's banks were ever used, for whoever lists arenas.
//!
//! Called by [`super::objects`] with the memfd of a sealed arena. Counts births, at
//! most so many that a list stays a matter of milliseconds; `snap pool` counts
//! those of any arena, by itself.

use enclave_abi::arena::Geometry;
use rustix::io::pread;
use std::os::fd::AsFd;

/// Most births that are counted for a list: 2 MiB of them.
const MOST_BIRTHS: u64 = 1 << 18;
/// Bytes read at a time.
const PIECE: usize = 64 << 10;

/// Frames besides those of the first bank that were ever used; `None` for an arena
/// with too many, or that cannot be read.
pub(super) fn frames_used(object: impl AsFd, geometry: &Geometry) -> Option<u64> {
    let per_chunk = u64::from(geometry.nr_banks);
    let nr = geometry.nr_chunks.checked_mul(per_chunk)?;
    if per_chunk == 0 || nr > MOST_BIRTHS {
        return None;
    }
    let mut piece = vec![0; PIECE];
    let (mut seen, mut used) = (0, 0);
    while seen < nr {
        let left = usize::try_from((nr - seen) * 8).ok()?;
        let room = piece.get_mut(..left.min(PIECE))?;
        let read = pread(&object, &mut *room, geometry.births_offset + seen * 8).ok()?;
        let words = room.get(..read / 8 * 8)?.chunks_exact(8);
        if words.len() == 0 {
            return None;
        }
        for word in words {
            let in_pool = seen % per_chunk != 0;
            used += u64::from(in_pool && word.iter().any(|&byte| byte != 0));
            seen += 1;
        }
    }
    Some(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::io::pwrite;

    #[test]
    fn births_beyond_the_first_bank_are_counted() {
        // More of them than are read at a time.
        let geometry = Geometry::new(8192 * 4096, 4096, 3).unwrap();
        let object = memfd_create("pool", MemfdFlags::empty()).unwrap();
        ftruncate(&object, geometry.object_bytes).unwrap();
        assert_eq!(frames_used(&object, &geometry), Some(0));
        for (chunk, bank) in [(0, 0), (0, 1), (1, 0), (1, 2), (8191, 0), (8191, 2)] {
            let at = geometry.birth_offset(chunk, bank).unwrap();
            pwrite(&object, &(1_u64 << 40).to_ne_bytes(), at).unwrap();
        }
        assert_eq!(frames_used(&object, &geometry), Some(3));
    }

    #[test]
    fn what_is_too_large_or_cut_short_is_not_counted() {
        let geometry = Geometry::new(1 << 30, 4096, 4).unwrap();
        let object = memfd_create("pool", MemfdFlags::empty()).unwrap();
        assert_eq!(frames_used(&object, &geometry), None);
        let geometry = Geometry::new(1 << 20, 4096, 4).unwrap();
        ftruncate(&object, geometry.births_offset + 12).unwrap();
        assert_eq!(frames_used(&object, &geometry), None);
    }
}
