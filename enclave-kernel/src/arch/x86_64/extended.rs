//! Extended state of a program's threads: x87, SSE, AVX, AVX-512.
//!
//! Called when the core changes from one thread to another. The kernel itself
//! touches none of it, so a single thread's state stays where it is. An
//! interpreted ring 0 cannot save it (`docs/platforms.md`): there the host
//! does it, with KVM's own means.

// UNSAFETY: calls assembly that saves and loads registers.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::addr::PAGE_SIZE;
use enclave_abi::layout::DIRECT_MAP;
use enclave_abi::queue::Call;

use super::{IS_RING0_INTERPRETED, ring3};
use crate::{host, memory};

/// Components to save: those the VMM switched on. Without compaction they end
/// at byte 2,688 (Intel SDM vol. 1 §13.4), within one page.
static COMPONENTS: AtomicU64 = AtomicU64::new(0);
/// The components that lie within a page: no tiles, no protection keys.
const FIT: u64 = 0b1110_0111;

unsafe extern "C" {
    fn arch_extended_save(area: u64, components: u64);
    fn arch_extended_load(area: u64, components: u64);
}

/// Takes note of what there is to save.
pub(super) fn init(xcr0: u64) {
    COMPONENTS.store(xcr0 & FIT, Ordering::Relaxed);
}

/// Memory for one thread's state. Not given back by itself: contexts are moved
/// about, and [`Area::free`] is called where a thread ends.
#[derive(Debug)]
pub(crate) struct Area(u64);

impl Area {
    /// `None` when there is no memory.
    pub(crate) fn new() -> Option<Self> {
        memory::alloc(PAGE_SIZE, PAGE_SIZE).map(Self)
    }

    /// Gives the memory back.
    pub(crate) fn free(self) {
        memory::free(self.0, PAGE_SIZE);
    }
}

/// Saves the core's state to `save`, then loads that of `load`, which was saved
/// before.
pub(crate) fn exchange(save: Option<&Area>, load: Option<&Area>) {
    if !ring3() && IS_RING0_INTERPRETED.load(Ordering::Relaxed) {
        let address = |area: Option<&Area>| area.map_or(0, |area| area.0);
        let _ = host::call(
            Call::ExtendedState,
            [address(save), address(load), 0, 0, 0, 0, 0],
        );
        return;
    }
    let components = COMPONENTS.load(Ordering::Relaxed);
    if let Some(Area(pa)) = save {
        // SAFETY: a page of the direct map that belongs to one thread, aligned
        // to 64 bytes, larger than the components; its header was zero or
        // written by this very instruction.
        unsafe { arch_extended_save(DIRECT_MAP + pa, components) };
    }
    if let Some(Area(pa)) = load {
        // SAFETY: as above; XRSTOR takes what XSAVE wrote.
        unsafe { arch_extended_load(DIRECT_MAP + pa, components) };
    }
}
