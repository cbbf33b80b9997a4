//! Private RAM of an enclave: one memfd, mapped here and nowhere else.
//!
//! Called by [`crate::machine`]. Promises: the guest's RAM is allocated before
//! the first instruction when prefault is asked for; hugetlb memory is reserved
//! by the mapping, so a shortage is an error here and never a SIGBUS later. The
//! memfd's descriptor is closed once mapped: no other process can get at it.
//! Its pages come from the NUMA node given, because the policy is set before
//! the first of them is touched.

// UNSAFETY: madvise over the mapping made here.
#![expect(unsafe_code)]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use enclave_abi::addr::{GIB, LARGE_PAGE_SIZE, PAGE_SIZE, is_aligned};
use enclave_abi::layout::{HIGH_RAM, LOW_RAM_END};
use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::machine::{Backing, MemoryNode};
use crate::policy;
use crate::topology::Topology;

/// The guest memory type used throughout the VMM.
pub type Ram = GuestMemoryMmap<()>;

/// Why private RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size cannot be.
    #[error("{0} bytes of RAM: wanted whole pages of 2 MiB (or 1 GiB), and 32 MiB at least")]
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
    /// The memory could not be had on the node asked for.
    #[error("{operation} for {bytes} bytes of RAM on node {node}")]
    Node {
        /// What was tried.
        operation: &'static str,
        /// How much.
        bytes: u64,
        /// Where.
        node: usize,
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

/// Private RAM and what it is made of. A clone is the same memory.
#[derive(Clone, Debug)]
pub struct PrivateRam {
    /// The mapped regions.
    pub ram: Ram,
    /// Guest-physical extents (start, bytes).
    pub extents: Vec<(u64, u64)>,
    /// Bytes of a host page behind it.
    pub page_bytes: u64,
    /// What the user should know, such as the cost of small pages.
    pub warnings: Vec<String>,
}

/// The size of host pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    Small,
    Huge2m,
    Huge1g,
}

impl Pages {
    fn bytes(self) -> u64 {
        match self {
            Self::Small => PAGE_SIZE,
            Self::Huge2m => LARGE_PAGE_SIZE,
            Self::Huge1g => GIB,
        }
    }

    /// For memfd_create(2).
    fn flags(self) -> MemfdFlags {
        match self {
            Self::Small => MemfdFlags::empty(),
            Self::Huge2m => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            Self::Huge1g => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        }
    }
}

/// What can be had now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supply {
    /// Bytes of memory on 4 KiB pages; everything when the host does not say.
    pub small_bytes: u64,
    /// 2 MiB pages promised to nobody.
    pub huge_pages: u64,
}

impl Supply {
    /// All bytes, on whatever pages.
    pub(crate) fn bytes(&self) -> u64 {
        let huge_bytes = self.huge_pages.saturating_mul(LARGE_PAGE_SIZE);
        self.small_bytes.saturating_add(huge_bytes)
    }

    /// That of the host, or of the one node that may be used.
    pub(crate) fn read(node: MemoryNode) -> Self {
        let unknown = Self {
            small_bytes: u64::MAX,
            huge_pages: 0,
        };
        let Ok(host) = Topology::read(Path::new("/")) else {
            return unknown;
        };
        let of_host = Self {
            small_bytes: host.mem_available_bytes,
            huge_pages: host.huge_free,
        };
        match node {
            MemoryNode::Any | MemoryNode::Prefer(_) => of_host,
            MemoryNode::Bind(number) => host.nodes.get(&number).map_or(unknown, |node| Self {
                small_bytes: node.mem_available_bytes,
                huge_pages: node.huge_free.min(host.huge_free),
            }),
        }
    }
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
    /// Allocates and maps `mem_bytes`, wherever the kernel takes them.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing stays allocated.
    pub fn new(mem_bytes: u64, backing: Backing, prefault: bool) -> Result<Self, MemoryError> {
        Self::on(mem_bytes, backing, prefault, MemoryNode::Any)
    }

    /// Allocates and maps `mem_bytes` on `node`.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing stays allocated.
    pub fn on(
        mem_bytes: u64,
        backing: Backing,
        prefault: bool,
        node: MemoryNode,
    ) -> Result<Self, MemoryError> {
        if mem_bytes < 32 << 20 || !mem_bytes.is_multiple_of(LARGE_PAGE_SIZE) {
            return Err(MemoryError::Size(mem_bytes));
        }
        let wanted = Wanted {
            extents: extents(mem_bytes),
            prefault,
            node,
        };
        wanted.backed(backing)
    }

    /// Allocates and maps a block of `bytes` (a multiple of 2 MiB) for
    /// guest-physical `start`.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing stays allocated.
    pub(crate) fn block(
        (start, bytes): (u64, u64),
        backing: Backing,
        prefault: bool,
        node: MemoryNode,
    ) -> Result<Self, MemoryError> {
        let wanted = Wanted {
            extents: vec![(start, bytes)],
            prefault,
            node,
        };
        wanted.backed(backing)
    }
}

/// What is asked for, page size aside.
struct Wanted {
    extents: Vec<(u64, u64)>,
    prefault: bool,
    node: MemoryNode,
}

impl Wanted {
    fn bytes(&self) -> u64 {
        self.extents.iter().map(|(_, bytes)| bytes).sum()
    }

    fn backed(self, backing: Backing) -> Result<PrivateRam, MemoryError> {
        let bytes = self.bytes();
        match backing {
            Backing::Huge1g => self.with_pages(Pages::Huge1g),
            Backing::Huge2m => self.with_pages(Pages::Huge2m),
            Backing::Small => self.with_pages(Pages::Small),
            Backing::Auto => {
                let free = Supply::read(self.node).huge_pages;
                let enough = free >= bytes / LARGE_PAGE_SIZE;
                // Free pages may be promised to somebody else already: only the
                // attempt tells.
                if enough && let Ok(this) = self.with_pages(Pages::Huge2m) {
                    return Ok(this);
                }
                let mut this = self.with_pages(Pages::Small)?;
                this.warnings.push(small_page_warning(bytes, free));
                Ok(this)
            }
        }
    }

    fn with_pages(&self, pages: Pages) -> Result<PrivateRam, MemoryError> {
        let is_whole = |place: u64| is_aligned(place, pages.bytes());
        let mut extents = self.extents.iter();
        if !extents.all(|&(start, bytes)| is_whole(start) && is_whole(bytes)) {
            return Err(MemoryError::Size(self.bytes()));
        }
        let file = memfd(self.bytes(), pages)?;
        let extents = self.extents.clone();
        let mut regions = Vec::new();
        let mut warnings = Vec::new();
        let mut offset = 0;
        for &(start, len) in &extents {
            let region = map(&file, offset, start, len)?;
            warnings.extend(self.place(&region)?);
            regions.push(region);
            offset += len;
        }
        let ram =
            Ram::from_regions(regions).map_err(|error| MemoryError::Assemble(error.to_string()))?;
        let this = PrivateRam {
            ram,
            extents,
            page_bytes: pages.bytes(),
            warnings,
        };
        // The reservation of huge pages counts the host's, not the node's: only
        // touching them makes sure of these.
        let must_touch = pages != Pages::Small && matches!(self.node, MemoryNode::Bind(_));
        if self.prefault || must_touch {
            this.prefault(self.node)?;
        }
        Ok(this)
    }

    /// Tells the kernel where the region's pages come from. What is only
    /// preferred may fail, with a warning.
    fn place(&self, region: &GuestRegionMmap<()>) -> Result<Option<String>, MemoryError> {
        let (host, len) = host_range(region)?;
        match (policy::apply(host, len, self.node), self.node) {
            (Ok(()), _) => Ok(None),
            (Err(source), MemoryNode::Bind(node)) => Err(MemoryError::Node {
                operation: "mbind",
                bytes: region.len(),
                node,
                source,
            }),
            (Err(error), _) => Ok(Some(format!(
                "the memory may come from any NUMA node: mbind: {error}"
            ))),
        }
    }
}

/// Where a region lies in this process.
fn host_range(region: &GuestRegionMmap<()>) -> Result<(*mut u8, usize), MemoryError> {
    let host = region
        .get_host_address(vm_memory::MemoryRegionAddress(0))
        .map_err(|error| MemoryError::Assemble(error.to_string()))?;
    let len = usize::try_from(region.len()).map_err(|_| MemoryError::Size(region.len()))?;
    Ok((host, len))
}

impl PrivateRam {
    /// Allocates every page now.
    fn prefault(&self, node: MemoryNode) -> Result<(), MemoryError> {
        for region in self.ram.iter() {
            let (host, len) = host_range(region)?;
            let (operation, bytes) = ("prefault", region.len());
            populate(host, len).map_err(|source| match node {
                MemoryNode::Bind(node) => MemoryError::Node {
                    operation,
                    bytes,
                    node,
                    source,
                },
                _ => MemoryError::System {
                    operation,
                    bytes,
                    source,
                },
            })?;
        }
        Ok(())
    }
}

impl PrivateRam {
    /// Has all of it read as zeros; what is allocated stays so.
    ///
    /// # Errors
    /// [`MemoryError`] when it cannot be written.
    pub(crate) fn zero(&self) -> Result<(), MemoryError> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        for region in self.ram.iter() {
            let mut left = region.len();
            let mut at = region.start_addr();
            while left != 0 {
                let len = left.min(ZEROS.len() as u64);
                let part = ZEROS.get(..usize::try_from(len).unwrap_or(0));
                let written = self.ram.write_slice(part.unwrap_or_default(), at);
                written.map_err(|error| MemoryError::Assemble(error.to_string()))?;
                at = at.unchecked_add(len);
                left -= len;
            }
        }
        Ok(())
    }

    /// Has all of it read as zeros by giving its pages back: they are allocated
    /// anew when they are touched.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn empty(&self) -> Result<(), MemoryError> {
        for region in self.ram.iter() {
            let (host, len) = host_range(region)?;
            // SAFETY: the range is the whole mapping of a region, shared and of this
            // process alone; nobody holds references into it, and guests are left.
            // MADV_REMOVE (madvise(2)) punches its pages out of the memfd.
            let result = unsafe { libc::madvise(host.cast(), len, libc::MADV_REMOVE) };
            if result != 0 {
                return Err(MemoryError::System {
                    operation: "madvise",
                    bytes: region.len(),
                    source: std::io::Error::last_os_error(),
                });
            }
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

fn small_page_warning(mem_bytes: u64, free: u64) -> String {
    format!(
        "4 KiB pages back the enclave's memory: {free} free 2 MiB pages, {} needed; \
         expect slower start and about 2,000 cycles per page on the first read after each snapshot",
        mem_bytes / LARGE_PAGE_SIZE
    )
}

fn memfd(bytes: u64, pages: Pages) -> Result<File, MemoryError> {
    let system = |operation| {
        move |errno: rustix::io::Errno| MemoryError::System {
            operation,
            bytes,
            source: errno.into(),
        }
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | pages.flags();
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
        let refused = |bytes, backing| {
            let made = PrivateRam::new(bytes, backing, false);
            matches!(made, Err(MemoryError::Size(_)))
        };
        for bytes in [0, 2 << 20, (64 << 20) + 4096, u64::MAX] {
            assert!(refused(bytes, Backing::Small), "{bytes}");
        }
        for bytes in [512 << 20, (1 << 30) + LARGE_PAGE_SIZE] {
            assert!(refused(bytes, Backing::Huge1g), "{bytes}");
        }
    }
}
