//! Extended state of a program's threads: x87, SSE, AVX, AVX-512.
//!
//! Called when the core changes from one thread to another, and when a handler
//! is called or returns. The kernel itself touches none of it, so a single
//! thread's state stays where it is. An interpreted ring 0 cannot save it
//! (`docs/platforms.md`): there the host does it, with KVM's own means, and may
//! refuse what it is to load.

// UNSAFETY: calls assembly that saves and loads registers.
#![expect(unsafe_code)]

use alloc::vec;
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::addr::PAGE_SIZE;
use enclave_abi::layout::DIRECT_MAP;
use enclave_abi::queue::Call;
use enclave_core::errno::Errno;
use enclave_core::signal::{self, Layout};
use spin::Once;

use super::{IS_RING0_INTERPRETED, ring3};
use crate::{host, memory, phys};

/// Components to save: those the VMM switched on. Without compaction they end
/// at byte 2,688 (Intel SDM vol. 1 §13.4), within one page.
static COMPONENTS: AtomicU64 = AtomicU64::new(0);
/// Bytes of an area without compaction.
static BYTES: AtomicU64 = AtomicU64::new(HEADER_END);
/// End of the header, where the first component begins.
const HEADER_END: u64 = 576;
/// Two pages of our own: a state on its way from or to a program, and that with
/// which handlers begin.
static OWN: Once<[Area; 2]> = Once::new();
/// The components that lie within a page: no tiles, no protection keys.
const FIT: u64 = 0b1110_0111;

unsafe extern "C" {
    fn arch_extended_save(area: u64, components: u64);
    fn arch_extended_load(area: u64, components: u64);
}

/// Takes note of what there is to save.
pub(super) fn init(xcr0: u64) {
    let components = xcr0 & FIT;
    COMPONENTS.store(components, Ordering::Relaxed);
    let end = (2..8).filter(|n| components & 1 << n != 0).map(|n| {
        let component = __cpuid_count(0xd, n);
        u64::from(component.ebx) + u64::from(component.eax)
    });
    // One that does not fit into a page is none that we know.
    let bytes = end.max().unwrap_or(0).clamp(HEADER_END, PAGE_SIZE - 8);
    BYTES.store(bytes, Ordering::Relaxed);
    let (Some(moving), Some(initial)) = (Area::new(), Area::new()) else {
        panic!("no memory for the registers of handlers");
    };
    let mut page = vec![0; PAGE_SIZE as usize];
    signal::initial(&mut page);
    phys::write_bytes(initial.0, &page);
    OWN.call_once(|| [moving, initial]);
}

/// What there is to save.
pub(crate) fn layout() -> Layout {
    Layout {
        components: COMPONENTS.load(Ordering::Relaxed),
        bytes: BYTES.load(Ordering::Relaxed) as usize,
    }
}

fn own() -> &'static [Area; 2] {
    match OWN.get() {
        Some(own) => own,
        None => panic!("registers of handlers before start-up"),
    }
}

/// Puts the program's state into `frame`, as a signal frame has it, and loads
/// that with which handlers begin.
pub(crate) fn begin_handler(frame: &mut [u8]) -> Result<(), Errno> {
    let [moving, initial] = own();
    exchange(Some(moving), Some(initial))?;
    phys::read_bytes(moving.0, frame);
    signal::mark(frame, layout());
    Ok(())
}

/// Loads the state with which handlers begin.
pub(crate) fn load_initial() -> Result<(), Errno> {
    exchange(None, Some(&own()[1]))
}

/// Loads what a signal frame says, which `read(offset, into)` reads.
///
/// # Errors
/// `EFAULT` when it cannot be read or would be refused.
pub(crate) fn end_handler(read: impl FnMut(u64, &mut [u8]) -> Option<()>) -> Result<(), Errno> {
    let [moving, _] = own();
    let mut page = vec![0; PAGE_SIZE as usize];
    // What this processor's MXCSR may hold is in whatever it saves.
    exchange(Some(moving), None)?;
    phys::read_bytes(moving.0, &mut page);
    let mask = signal::mxcsr_mask(&page);
    signal::restore(&mut page, layout(), mask, read).ok_or(Errno::EFAULT)?;
    phys::write_bytes(moving.0, &page);
    exchange(None, Some(moving))
}

/// Control and status word of the x87, and MXCSR, of the program.
pub(crate) fn float_state() -> (u16, u16, u32) {
    let [moving, _] = own();
    let mut legacy = [0; signal::LEGACY_BYTES];
    if exchange(Some(moving), None).is_ok() {
        phys::read_bytes(moving.0, &mut legacy);
    }
    signal::float_state(&legacy)
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

    /// With the state that a program begins with.
    pub(crate) fn initial() -> Option<Self> {
        let [_, initial] = own();
        let area = Self::new()?;
        let mut page = vec![0; PAGE_SIZE as usize];
        phys::read_bytes(initial.0, &mut page);
        phys::write_bytes(area.0, &page);
        Some(area)
    }

    /// Gives the memory back.
    pub(crate) fn free(self) {
        memory::free(self.0, PAGE_SIZE);
    }
}

/// Saves the core's state to `save`, then loads that of `load`, which was saved
/// before or made by `enclave-core`.
///
/// # Errors
/// What the host says where it has to do it.
pub(crate) fn exchange(save: Option<&Area>, load: Option<&Area>) -> Result<(), Errno> {
    if !ring3() && IS_RING0_INTERPRETED.load(Ordering::Relaxed) {
        let address = |area: Option<&Area>| area.map_or(0, |area| area.0);
        let [answer, ..] = host::call(
            Call::ExtendedState,
            [address(save), address(load), 0, 0, 0, 0, 0],
        );
        return Errno::from_result(answer).map_or(Ok(()), Err);
    }
    let components = COMPONENTS.load(Ordering::Relaxed);
    if let Some(Area(pa)) = save {
        // SAFETY: a page of the direct map that belongs to one thread, aligned
        // to 64 bytes, larger than the components; its header was zero or
        // written by this very instruction.
        unsafe { arch_extended_save(DIRECT_MAP + pa, components) };
    }
    if let Some(Area(pa)) = load {
        // SAFETY: as above; XRSTOR takes what XSAVE wrote, and `enclave-core`
        // leaves nothing in an area that it would refuse.
        unsafe { arch_extended_load(DIRECT_MAP + pa, components) };
    }
    Ok(())
}
