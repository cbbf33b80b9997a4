//! Frames and heap of the kernel.
//!
//! `init` takes the extents of BootInfo, puts a heap at their start and gives
//! the rest to the frame allocator of `enclave-core`. Frames come back dirty
//! and are zeroed when they are handed out again; fresh ones are zero already.

// UNSAFETY: gives a piece of memory to the heap allocator.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::boot::{BootInfo, MAX_EXTENTS};
use enclave_abi::layout::DIRECT_MAP;
use enclave_core::frame::{Block, FrameAllocator, RemoveError};
use spin::Mutex;
use talc::TalcLock;
use talc::source::Manual;

use crate::{boot, phys};

/// Bytes of the kernel heap: region tables, arena tables, program headers.
const HEAP_BYTES: u64 = 4 << 20;

#[global_allocator]
static HEAP: TalcLock<Mutex<()>, Manual> = TalcLock::new(Manual);

static FRAMES: Mutex<Option<FrameAllocator>> = Mutex::new(None);
/// Bytes that came since boot and have not gone.
static ADDED: AtomicU64 = AtomicU64::new(0);

/// Takes over RAM.
pub(crate) fn init(info: &BootInfo) {
    let heap = info.free_start;
    let start: *mut u8 = core::ptr::with_exposed_provenance_mut((DIRECT_MAP + heap) as usize);
    // SAFETY: BootInfo says that RAM from `free_start` on is unused; the range
    // is mapped by the direct map and given to nobody else (frames start after
    // it, see below).
    let claimed = unsafe { HEAP.lock().claim(start, HEAP_BYTES as usize) };
    assert!(claimed.is_some(), "no room for the kernel heap");
    let first = heap + HEAP_BYTES;
    phys::set_bounds(info.page_table, heap, first);
    let mut frames = FrameAllocator::new();
    for extent in info.extents.iter().filter(|extent| extent.len_bytes != 0) {
        let end = extent.start + extent.len_bytes;
        let start = extent.start.max(first);
        if start < end {
            frames.add(start, end - start, true);
        }
    }
    *FRAMES.lock() = Some(frames);
}

/// Zeroed, physically contiguous memory; `None` when there is none so large.
pub(crate) fn alloc(len_bytes: u64, align: u64) -> Option<u64> {
    let block = FRAMES.lock().as_mut()?.alloc(len_bytes, align)?;
    Some(clean(&block))
}

/// As [`alloc`], but as much as there is in one piece: (start, bytes).
pub(crate) fn alloc_up_to(len_bytes: u64, align: u64) -> Option<(u64, u64)> {
    let block = FRAMES.lock().as_mut()?.alloc_up_to(len_bytes, align)?;
    Some((clean(&block), block.len_bytes))
}

fn clean(block: &Block) -> u64 {
    if !block.clean {
        phys::zero(block.start, block.len_bytes);
    }
    block.start
}

/// Gives memory back.
pub(crate) fn free(start: u64, len_bytes: u64) {
    if let Some(frames) = FRAMES.lock().as_mut() {
        frames.free(start, len_bytes);
    }
}

/// Bytes of RAM not in use.
pub(crate) fn free_bytes() -> u64 {
    FRAMES.lock().as_ref().map_or(0, FrameAllocator::free_bytes)
}

/// Bytes of RAM, the kernel's own among them.
pub(crate) fn total_bytes() -> u64 {
    let extents = boot::info().extents.iter().take(MAX_EXTENTS);
    let at_boot: u64 = extents.map(|extent| extent.len_bytes).sum();
    at_boot + ADDED.load(Ordering::Relaxed)
}

/// Takes more memory in, which is mapped; whether it was taken.
pub(crate) fn add(start: u64, len_bytes: u64, is_zero: bool) -> bool {
    let mut frames = FRAMES.lock();
    let taken = frames
        .as_mut()
        .is_some_and(|frames| frames.add_removable(start, len_bytes, is_zero));
    if taken {
        ADDED.fetch_add(len_bytes, Ordering::Relaxed);
    }
    taken
}

/// Gives no more of this memory out.
pub(crate) fn remove(start: u64, len_bytes: u64) -> Result<(), RemoveError> {
    let mut frames = FRAMES.lock();
    let frames = frames.as_mut().ok_or(RemoveError::NotOwned)?;
    frames.remove(start, len_bytes)?;
    ADDED.fetch_sub(len_bytes, Ordering::Relaxed);
    Ok(())
}
