//! The XASM paper's names, translated into arenas.
//!
//! `arena_map_backed_region` names a region of `extent` bytes and a backing
//! pool of `backing_extent` bytes from which copy-on-write faults take their
//! frames. Here the pool is made of whole banks, so the arena has
//! `1 + backing_extent / extent` of them. Used by the C form; pure.

use crate::arena::{Chunk, Options};
use crate::errno::Errno;
use enclave_abi::arena::{MAX_BANKS, MIN_BANKS};

/// Readable; always the case.
pub const VM_READ: u64 = 1 << 0;
/// Writable; always the case.
pub const VM_WRITE: u64 = 1 << 1;
/// Mapped for the program; always the case.
pub const VM_USER: u64 = 1 << 6;
/// The backing is an arena; the only kind there is.
pub const BK_ARENA: u64 = 1 << 0;

/// Arguments of `arena_map_backed_region` and its `_anywhere` form.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackedRegion {
    /// Wanted address; 0 = anywhere.
    pub start: u64,
    /// Bytes of the region.
    pub extent: u64,
    /// Bytes of the pool.
    pub backing_extent: u64,
    /// `VM_*` bits.
    pub vm_flags: u64,
    /// `BK_*` bits.
    pub bk_flags: u64,
    /// Page (chunk) size in bytes.
    pub page_bytes: u64,
    /// Physical memory of the pool; 0, because the kernel chooses it.
    pub pmem: u64,
}

impl BackedRegion {
    /// Size and options of the arena that is this region.
    ///
    /// # Errors
    /// EINVAL for flags other than `VM_READ | VM_WRITE | VM_USER` and
    /// `BK_ARENA`, a page size other than 4 KiB and 2 MiB, an extent that is 0
    /// or no multiple of the page size, a pool smaller than the extent or
    /// larger than 15 times it, or memory chosen by the caller.
    pub fn to_arena(self) -> Result<(u64, Options), Errno> {
        let chunk = Chunk::from_bytes(self.page_bytes).ok_or(Errno::EINVAL)?;
        let known = self.vm_flags & !(VM_READ | VM_WRITE | VM_USER) == 0
            && self.bk_flags & !BK_ARENA == 0
            && self.pmem == 0;
        if !known || !self.extent.is_multiple_of(self.page_bytes) {
            return Err(Errno::EINVAL);
        }
        let pool = self
            .backing_extent
            .checked_div(self.extent)
            .ok_or(Errno::EINVAL)?;
        let banks = u32::try_from(pool)
            .ok()
            .and_then(|pool| pool.checked_add(1))
            .filter(|banks| (MIN_BANKS..=MAX_BANKS).contains(banks))
            .ok_or(Errno::EINVAL)?;
        let options = Options {
            chunk,
            banks,
            start: self.start,
            ..Options::default()
        };
        Ok((self.extent, options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_PAGE: BackedRegion = BackedRegion {
        start: 0,
        extent: 4096,
        backing_extent: 4 * 4096,
        vm_flags: VM_USER,
        bk_flags: BK_ARENA,
        page_bytes: 4096,
        pmem: 0,
    };

    #[test]
    fn the_pool_becomes_banks() {
        let (bytes, options) = ONE_PAGE.to_arena().unwrap();
        assert_eq!(
            (bytes, options.banks, options.chunk),
            (4096, 5, Chunk::Kib4)
        );
        let odd = BackedRegion {
            backing_extent: 4096 + 1,
            ..ONE_PAGE
        };
        assert_eq!(odd.to_arena().unwrap().1.banks, 2);
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let spoiled = [
            BackedRegion {
                extent: 0,
                ..ONE_PAGE
            },
            BackedRegion {
                extent: 4097,
                ..ONE_PAGE
            },
            BackedRegion {
                backing_extent: 4095,
                ..ONE_PAGE
            },
            BackedRegion {
                backing_extent: 16 * 4096,
                ..ONE_PAGE
            },
            BackedRegion {
                backing_extent: u64::MAX,
                ..ONE_PAGE
            },
            BackedRegion {
                page_bytes: 8192,
                ..ONE_PAGE
            },
            BackedRegion {
                page_bytes: 1 << 30,
                ..ONE_PAGE
            },
            BackedRegion {
                vm_flags: 1 << 2,
                ..ONE_PAGE
            },
            BackedRegion {
                bk_flags: 2,
                ..ONE_PAGE
            },
            BackedRegion {
                pmem: 4096,
                ..ONE_PAGE
            },
        ];
        for region in spoiled {
            assert_eq!(region.to_arena().unwrap_err(), Errno::EINVAL, "{region:?}");
        }
    }
}
