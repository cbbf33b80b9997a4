//! Physical memory through the kernel's direct map, and the fixed low pages.
//!
//! Called by everything that touches frames, tables or shared pages. Promises:
//! an address inside the kernel image, its heap or beyond the direct map is
//! refused by a panic, so no caller can reach a Rust object through here.

// UNSAFETY: this module is the one place where numbers become pointers to
// frames and shared pages.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use enclave_abi::addr::GIB;
use enclave_abi::boot::BootInfo;
use enclave_abi::layout::{DIRECT_MAP, DOORBELL_PAGE, KERNEL_IMAGE, LEASE_PAGE};
use enclave_abi::lease::{MAX_ARENAS, WORDS_PER_ARENA};

/// The direct map ends here.
const LIMIT: u64 = 512 * GIB;
/// End of image and heap: no frame starts below, but for the fixed low pages.
static FIRST_FRAME: AtomicU64 = AtomicU64::new(u64::MAX);

/// The boot page tables: from here to the heap.
static BOOT_TABLES: AtomicU64 = AtomicU64::new(u64::MAX);
/// End of the boot page tables, start of the heap.
static HEAP_START: AtomicU64 = AtomicU64::new(0);

/// The virtual address of `[pa, pa + len)`, checked as every access is.
pub(crate) fn address(pa: u64, len: u64) -> u64 {
    assert!(pa.is_multiple_of(8));
    window(pa, len).expose_provenance() as u64
}

/// Tells where boot tables, heap and frames lie.
pub(crate) fn set_bounds(boot_tables: u64, heap: u64, first_frame: u64) {
    BOOT_TABLES.store(boot_tables, Ordering::Relaxed);
    HEAP_START.store(heap, Ordering::Relaxed);
    FIRST_FRAME.store(first_frame, Ordering::Relaxed);
}

/// The virtual address of `[pa, pa + len)`, refused where Rust objects live.
fn window(pa: u64, len: u64) -> *mut u8 {
    let low = pa < KERNEL_IMAGE && len <= KERNEL_IMAGE - pa;
    let frame = pa >= FIRST_FRAME.load(Ordering::Relaxed) && pa < LIMIT && len <= LIMIT - pa;
    assert!(
        frame || low || in_boot_tables(pa, len),
        "physical access to {pa:#x} is refused"
    );
    core::ptr::with_exposed_provenance_mut((DIRECT_MAP + pa) as usize)
}

fn in_boot_tables(pa: u64, len: u64) -> bool {
    let end = HEAP_START.load(Ordering::Relaxed);
    pa >= BOOT_TABLES.load(Ordering::Relaxed) && pa < end && len <= end - pa
}

/// Reads BootInfo, which the VMM placed and nobody changes.
pub(crate) fn read_boot_info(address: u64) -> BootInfo {
    let from: *const BootInfo = core::ptr::with_exposed_provenance(address as usize);
    // SAFETY: entry.S passes the address the VMM put into RDI; BootInfo is
    // mapped there, any bytes are a valid BootInfo (zerocopy FromBytes).
    unsafe { from.read_volatile() }
}

/// Reads the 64-bit word at `pa`.
pub(crate) fn read(pa: u64) -> u64 {
    let at = window(pa, 8).cast::<u64>();
    // SAFETY: `window` only gives mapped memory that holds no Rust object; the
    // word is aligned because all callers' offsets are multiples of 8.
    unsafe { at.read_volatile() }
}

/// Writes the 64-bit word at `pa`.
pub(crate) fn write(pa: u64, value: u64) {
    let at = window(pa, 8).cast::<u64>();
    // SAFETY: as in `read`.
    unsafe { at.write_volatile(value) }
}

/// The 64-bit word at `pa` as an atomic shared with host or broker.
pub(crate) fn atomic(pa: u64) -> &'static AtomicU64 {
    assert!(pa.is_multiple_of(8));
    let at = window(pa, 8).cast::<u64>();
    // SAFETY: aligned, mapped for the life of the kernel, and only ever
    // accessed atomically or volatilely.
    unsafe { AtomicU64::from_ptr(at) }
}

/// The 32-bit word at `pa` as an atomic shared with the host.
pub(crate) fn atomic32(pa: u64) -> &'static AtomicU32 {
    assert!(pa.is_multiple_of(4));
    let at = window(pa, 4).cast::<u32>();
    // SAFETY: as in `atomic`.
    unsafe { AtomicU32::from_ptr(at) }
}

/// A window of 64-bit words that was checked once; each access is one compare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    start: u64,
    count: u64,
}

impl Words {
    /// The `count` words from `pa` on; refused like every physical access.
    pub(crate) fn new(pa: u64, count: u64) -> Self {
        assert!(pa.is_multiple_of(8) && count <= LIMIT / 8);
        Self {
            start: window(pa, count * 8).expose_provenance() as u64,
            count,
        }
    }

    #[inline]
    fn at(&self, index: u64) -> *mut u64 {
        assert!(index < self.count);
        // Cannot wrap: `index` is below `count`, whose window was checked.
        let at = self.start.wrapping_add(index.wrapping_mul(8));
        core::ptr::with_exposed_provenance_mut(at as usize)
    }

    /// Reads word `index`, once.
    #[inline]
    pub(crate) fn get(&self, index: u64) -> u64 {
        let at = self.at(index);
        // SAFETY: inside the window checked by `new`, aligned, no Rust object.
        unsafe { at.read_volatile() }
    }

    /// Writes word `index`.
    #[inline]
    pub(crate) fn set(&self, index: u64, value: u64) {
        let at = self.at(index);
        // SAFETY: inside the window checked by `new`, aligned, no Rust object.
        unsafe { at.write_volatile(value) }
    }
}

/// A 32-bit word of the fixed low pages; the address is checked when compiled.
#[inline]
pub(crate) fn low32<const PA: u64>() -> &'static AtomicU32 {
    const { assert!(PA < KERNEL_IMAGE && PA.is_multiple_of(4)) };
    let at = core::ptr::with_exposed_provenance_mut((DIRECT_MAP + PA) as usize);
    // SAFETY: low memory is mapped for the life of the kernel and holds no
    // Rust object; the word is only accessed atomically.
    unsafe { AtomicU32::from_ptr(at) }
}

/// Zeroes `[pa, pa + len)`.
pub(crate) fn zero(pa: u64, len: u64) {
    let to = window(pa, len);
    // SAFETY: `window` only gives mapped memory that holds no Rust object.
    unsafe { crate::arch::zero_bytes(to, len as usize) }
}

/// Copies bytes into physical memory.
pub(crate) fn write_bytes(pa: u64, bytes: &[u8]) {
    let to = window(pa, bytes.len() as u64);
    // SAFETY: the source is a Rust slice, the target holds no Rust object.
    unsafe { crate::arch::copy_bytes(to, bytes.as_ptr(), bytes.len()) }
}

/// Copies bytes out of physical memory.
pub(crate) fn read_bytes(pa: u64, bytes: &mut [u8]) {
    let from = window(pa, bytes.len() as u64);
    // SAFETY: the target is a Rust slice, the source holds no Rust object.
    unsafe { crate::arch::copy_bytes(bytes.as_mut_ptr(), from, bytes.len()) }
}

/// Copies between a program's memory and physical memory.
///
/// # Safety
/// `user` must be a range of the running program that the caller checked to be
/// mapped (readable, or writable when `to_user`).
pub(crate) unsafe fn copy_user(user: u64, pa: u64, len: u64, to_user: bool) {
    let frame = window(pa, len);
    let program: *mut u8 = core::ptr::with_exposed_provenance_mut(user as usize);
    // SAFETY: the frame is ours, the program's range is mapped (contract); a
    // write to a frozen arena chunk faults once and is resumed by fault.rs.
    unsafe {
        if to_user {
            crate::arch::copy_bytes(program, frame, len as usize);
        } else {
            crate::arch::copy_bytes(frame, program, len as usize);
        }
    }
}

/// The lease words of arena `slot` and its retain word, `None` out of range.
pub(crate) fn lease_words(slot: usize) -> Option<&'static [AtomicU64; WORDS_PER_ARENA]> {
    if slot >= MAX_ARENAS {
        return None;
    }
    let at = LEASE_PAGE + (slot * WORDS_PER_ARENA * 8) as u64;
    let words: *const [AtomicU64; WORDS_PER_ARENA] =
        core::ptr::with_exposed_provenance((DIRECT_MAP + at) as usize);
    // SAFETY: the VMM maps the lease page at this address for the life of the
    // enclave, it holds MAX_ARENAS such arrays, and everybody accesses the
    // words atomically.
    unsafe { words.as_ref() }
}

/// A doorbell: an offset in the unbacked page, checked once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doorbell(u64);

impl Doorbell {
    /// The doorbell at byte `offset` of the page.
    pub(crate) const fn new(offset: u64) -> Self {
        assert!(offset < 4096 && offset.is_multiple_of(4));
        Self(DIRECT_MAP + DOORBELL_PAGE + offset)
    }

    /// Rings it: a plain 32-bit store of 1.
    #[inline]
    pub(crate) fn ring(self) {
        let at = core::ptr::with_exposed_provenance_mut::<u32>(self.0 as usize);
        // SAFETY: the doorbell page is mapped in the kernel; a store there
        // changes no memory, it leaves to the host.
        unsafe { at.write_volatile(1) }
    }
}

impl Doorbell {
    /// Rings it with a word: a plain 64-bit store.
    pub(crate) fn ring_with(self, word: u64) {
        let at = core::ptr::with_exposed_provenance_mut::<u64>(self.0 as usize);
        // SAFETY: as in `ring`; the bells that take a word are 8 bytes apart.
        unsafe { at.write_volatile(word) }
    }
}

/// Lets this core sleep; see [`enclave_abi::queue::doorbell::SLEEP`].
pub(crate) const SLEEP_BELL: Doorbell = Doorbell::new(enclave_abi::queue::doorbell::SLEEP);
/// Lets the host do something else.
pub(crate) const GIVE_WAY_BELL: Doorbell = Doorbell::new(enclave_abi::queue::doorbell::GIVE_WAY);

/// Wakes a core.
pub(crate) fn wake_bell(core: u32) -> Doorbell {
    Doorbell::new(enclave_abi::queue::doorbell::WAKE_BASE + 4 * u64::from(core))
}

/// The doorbell of the command queue.
pub(crate) const QUEUE_BELL: Doorbell = Doorbell::new(enclave_abi::queue::doorbell::QUEUE);
