//! Private RAM of an enclave: one memfd, mapped here and nowhere else.
//!
//! Called by [`crate::machine`]. Promises: the guest's RAM is allocated before
//! the first instruction when prefault is asked for; hugetlb memory is reserved
//! by the mapping, so a shortage is an error here and never a SIGBUS later. The
//! memfd's descriptor is closed once mapped: no other process can get at it.

// UNSAFETY: madvise over the mapping made here.
#![expect(unsafe_code)]

use std::fs::File;
use std::os::fd::OwnedFd;

use enclave_abi::addr::LARGE_PAGE_SIZE;
use enclave_abi::layout::{HIGH_RAM, LOW_RAM_END};
use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::machine::Backing;

/// The guest memory type used throughout the VMM.
pub type Ram = GuestMemoryMmap<()>;

/// Why private RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size cannot be.
    #[error("{0} bytes of RAM: must be a multiple of 2 MiB and at least 32 MiB")]
    Size(u64),
    /// A system call failed.
    #[error("{operation} for {bytes} bytes of RAM")]
    System {
        /// What was tried.
        operation: &'static str,
        /// How much.
        bytes: u64,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// vm-memory refused the mapping.
    #[error("cannot map {bytes} bytes of RAM")]
    Map {
        /// How much.
        bytes: u64,
        /// Why it failed.
        #[source]
        source: MmapRegionError,
    },
    /// The extents do not form a guest memory (cannot happen with our layout).
    #[error("cannot assemble guest memory: {0}")]
    Assemble(String),
}

/// Private RAM and what it is made of.
#[derive(Debug)]
pub struct PrivateRam {
    /// The mapped regions.
    pub ram: Ram,
    /// Guest-physical extents (start, bytes).
    pub extents: Vec<(u64, u64)>,
    /// Bytes of a host page behind it.
    pub page_bytes: u64,
    /// What the user should know, such as the cost of small pages.
    pub warning: Option<String>,
}

/// Free 2 MiB hugetlb pages of this host that are promised to nobody; 0 when
/// there is no pool.
#[must_use]
pub fn free_huge_pages() -> u64 {
    let read = |name: &str| -> u64 {
        std::fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    read("free_hugepages").saturating_sub(read("resv_hugepages"))
}

/// The guest-physical extents of `mem_bytes` of RAM around the hole.
#[must_use]
pub fn extents(mem_bytes: u64) -> Vec<(u64, u64)> {
    let low = mem_bytes.min(LOW_RAM_END);
    let mut out = vec![(0, low)];
    if mem_bytes > low {
        out.push((HIGH_RAM, mem_bytes - low));
    }
    out
}

impl PrivateRam {
    /// Allocates and maps `mem_bytes`.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing stays allocated.
    pub fn new(mem_bytes: u64, backing: Backing, prefault: bool) -> Result<Self, MemoryError> {
        if mem_bytes < 32 << 20 || !mem_bytes.is_multiple_of(LARGE_PAGE_SIZE) {
            return Err(MemoryError::Size(mem_bytes));
        }
        let enough = free_huge_pages() >= mem_bytes / LARGE_PAGE_SIZE;
        match backing {
            Backing::Huge2m => Self::with_pages(mem_bytes, true, prefault),
            Backing::Small => Self::with_pages(mem_bytes, false, prefault),
            Backing::Auto => {
                // Free pages may be promised to somebody else already: only the
                // attempt tells.
                if enough && let Ok(this) = Self::with_pages(mem_bytes, true, prefault) {
                    return Ok(this);
                }
                let mut this = Self::with_pages(mem_bytes, false, prefault)?;
                this.warning = Some(small_page_warning(mem_bytes));
                Ok(this)
            }
        }
    }

    fn with_pages(mem_bytes: u64, huge: bool, prefault: bool) -> Result<Self, MemoryError> {
        let file = memfd(mem_bytes, huge)?;
        let extents = extents(mem_bytes);
        let mut regions = Vec::new();
        let mut offset = 0;
        for &(start, len) in &extents {
            regions.push(map(&file, offset, start, len)?);
            offset += len;
        }
        let ram =
            Ram::from_regions(regions).map_err(|error| MemoryError::Assemble(error.to_string()))?;
        let this = Self {
            ram,
            extents,
            page_bytes: if huge { LARGE_PAGE_SIZE } else { 4096 },
            warning: None,
        };
        if prefault {
            this.prefault()?;
        }
        Ok(this)
    }

    /// Allocates every page now.
    fn prefault(&self) -> Result<(), MemoryError> {
        use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
        for region in self.ram.iter() {
            let bytes = region.len();
            let host = region
                .get_host_address(vm_memory::MemoryRegionAddress(0))
                .map_err(|error| MemoryError::Assemble(error.to_string()))?;
            let len = usize::try_from(bytes).map_err(|_| MemoryError::Size(bytes))?;
            populate(host, len).map_err(|source| MemoryError::System {
                operation: "prefault",
                bytes,
                source,
            })?;
        }
        Ok(())
    }
}

/// Allocates the pages behind `[host, host + len)` for writing.
///
/// # Errors
/// The system's error, such as ENOMEM; some pages may be allocated then.
pub(crate) fn populate(host: *mut u8, len: usize) -> std::io::Result<()> {
    // SAFETY: the callers pass a live mapping of at least `len` bytes;
    // MADV_POPULATE_WRITE (madvise(2)) faults its pages in and leaves their
    // contents alone.
    let result = unsafe { libc::madvise(host.cast(), len, libc::MADV_POPULATE_WRITE) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

fn small_page_warning(mem_bytes: u64) -> String {
    format!(
        "4 KiB pages back the enclave's memory: {} free 2 MiB pages, {} needed; \
         expect slower start and about 2,000 cycles per page on the first read after each snapshot",
        free_huge_pages(),
        mem_bytes / LARGE_PAGE_SIZE
    )
}

fn memfd(bytes: u64, huge: bool) -> Result<File, MemoryError> {
    let system = |operation| {
        move |errno: rustix::io::Errno| MemoryError::System {
            operation,
            bytes,
            source: errno.into(),
        }
    };
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if huge {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let fd: OwnedFd =
        rustix::fs::memfd_create("xasm-ram", flags).map_err(system("memfd_create"))?;
    rustix::fs::ftruncate(&fd, bytes).map_err(system("ftruncate"))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(system("seal"))?;
    Ok(File::from(fd))
}

fn map(file: &File, offset: u64, start: u64, len: u64) -> Result<GuestRegionMmap<()>, MemoryError> {
    let bytes = usize::try_from(len).map_err(|_| MemoryError::Size(len))?;
    let handle = file.try_clone().map_err(|source| MemoryError::System {
        operation: "duplicate the memfd",
        bytes: len,
        source,
    })?;
    // Without MAP_NORESERVE: a hugetlb shortage must show here.
    let region = MmapRegion::build(
        Some(FileOffset::new(handle, offset)),
        bytes,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED,
    )
    .map_err(|source| MemoryError::Map { bytes: len, source })?;
    GuestRegionMmap::new(region, GuestAddress(start))
        .ok_or_else(|| MemoryError::Assemble(format!("region at {start:#x} wraps")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole_below_four_gib() {
        assert_eq!(extents(512 << 20), [(0, 512 << 20)]);
        assert_eq!(extents(LOW_RAM_END), [(0, LOW_RAM_END)]);
        assert_eq!(
            extents(LOW_RAM_END + 4096),
            [(0, LOW_RAM_END), (HIGH_RAM, 4096)]
        );
    }

    #[test]
    fn odd_and_tiny_sizes_are_refused() {
        for bytes in [0, 2 << 20, (64 << 20) + 4096, u64::MAX] {
            assert!(matches!(
                PrivateRam::new(bytes, Backing::Small, false),
                Err(MemoryError::Size(_))
            ));
        }
    }
}
