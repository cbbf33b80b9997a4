//! Memory that the running program shares with others, beside its own arenas.
//!
//! Called by the import system calls and at the program's end. Which frames a
//! generation consists of is decided in `enclave-core/import`; the host leases
//! the generations ([`Call::ImportNext`]) and has put the exporter's object into
//! the import window, read-only.
//!
//! Each import owns one top-level entry (512 GiB of addresses) with a tree of
//! its own, never executable, and read-only where the object is: a store of the
//! program never reaches the read-only memory, which KVM could not emulate. Of an
//! arena the kernel maps the control area for itself, read-only too, and believes
//! nothing in it; while no whole generation is shown, nothing is mapped. Plain
//! memory, attached or of a segment that the program made, is mapped as it is.

mod import;
mod plain;

pub(crate) use plain::Source;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE, is_aligned};
use enclave_abi::arena::{Geometry, VarDesc};
use enclave_abi::layout::{IMPORT_WINDOW, IMPORT_WINDOW_END};
use enclave_abi::queue::Call;
use enclave_abi::syscall::MAX_IMPORTS;
use enclave_core::aspace::Prot;
use enclave_core::import::{ImportError, Place};
use spin::Mutex;

use crate::arch::paging;
use crate::host;
use import::Import;
use plain::Plain;

/// Bytes of address space of one import: one top-level entry.
pub(crate) const IMPORT_SPAN: u64 = 1 << 39;
/// Virtual address of import slot 0; arenas end here.
const IMPORT_BASE: u64 = 0x3000_0000_0000;

/// What is in a slot.
#[derive(Debug)]
enum Shared {
    Arena(Import),
    Plain(Plain),
}

impl Shared {
    fn is_by(&self, apid: u64) -> bool {
        match self {
            Self::Arena(import) => import.apid() == apid,
            Self::Plain(plain) => plain.source == Source::Apid(apid),
        }
    }
}

static IMPORTS: Mutex<[Option<Shared>; MAX_IMPORTS]> = Mutex::new([const { None }; MAX_IMPORTS]);

/// The virtual address of import `slot`.
pub(crate) fn address(slot: usize) -> u64 {
    IMPORT_BASE + slot as u64 * IMPORT_SPAN
}

/// The slot that begins at `va`, whether it is in use or not.
pub(crate) fn slot_at(va: u64) -> Option<usize> {
    let slot = va.wrapping_sub(IMPORT_BASE) / IMPORT_SPAN;
    (slot < MAX_IMPORTS as u64 && is_aligned(va, IMPORT_SPAN)).then_some(slot as usize)
}

/// Slots of processes that are put away, as bits.
static KEPT: AtomicU64 = AtomicU64::new(0);
const _: () = assert!(MAX_IMPORTS <= 64);

/// The imports of a process that is put away, with their slots.
#[derive(Debug, Default)]
pub(crate) struct Kept(Vec<(usize, Shared)>);

/// Takes all imports out; their slots stay theirs.
pub(crate) fn put_away() -> Kept {
    let mut imports = IMPORTS.lock();
    let slots = imports.iter_mut().enumerate();
    let kept: Vec<_> = slots
        .filter_map(|(slot, place)| Some((slot, place.take()?)))
        .collect();
    for (slot, _) in &kept {
        KEPT.fetch_or(1 << slot, Ordering::Relaxed);
    }
    Kept(kept)
}

/// Puts the imports back of the process that goes on.
pub(crate) fn take_up(Kept(kept): Kept) {
    for (slot, shared) in kept {
        KEPT.fetch_and(!(1 << slot), Ordering::Relaxed);
        fill(slot, shared);
    }
}

/// The first slot without an import of any process.
pub(crate) fn free_slot() -> Option<usize> {
    let kept = KEPT.load(Ordering::Relaxed);
    let imports = IMPORTS.lock();
    let mut slots = imports.iter().enumerate();
    let free = slots.find(|(slot, place)| place.is_none() && kept >> slot & 1 == 0);
    free.map(|(slot, _)| slot)
}

/// The slots attached by `apid`.
pub(crate) fn attached_by(apid: u64) -> impl Iterator<Item = usize> {
    let by = move |slot: &usize| {
        let imports = IMPORTS.lock();
        matches!(imports.get(*slot), Some(Some(shared)) if shared.is_by(apid))
    };
    (0..MAX_IMPORTS).filter(by)
}

/// Sets up the arena whose object the host placed at `base`; shows nothing
/// yet. `false` if the object is not where it may be, or without memory for
/// tables.
pub(crate) fn install(slot: usize, apid: (u64, bool), geometry: Geometry, base: u64) -> bool {
    let fits = fits(base, geometry.object_bytes);
    if !fits || paging::map_direct_read_only(base, geometry.control_bytes).is_err() {
        return false;
    }
    let Some(import) = Import::new(address(slot), apid, geometry, base) else {
        paging::unmap_direct(base, geometry.control_bytes);
        return false;
    };
    fill(slot, Shared::Arena(import));
    true
}

/// Maps plain memory that the host placed at `base`; `false` as for [`install`].
pub(crate) fn install_plain(
    slot: usize,
    source: Source,
    base: u64,
    size_bytes: u64,
    prot: Prot,
) -> bool {
    let whole = size_bytes != 0 && size_bytes <= IMPORT_SPAN && is_aligned(size_bytes, PAGE_SIZE);
    let plain = (whole && fits(base, size_bytes))
        .then(|| Plain::new(address(slot), source, base, size_bytes, prot));
    let Some(plain) = plain.flatten() else {
        return false;
    };
    fill(slot, Shared::Plain(plain));
    true
}

fn fill(slot: usize, shared: Shared) {
    if let Some(place) = IMPORTS.lock().get_mut(slot) {
        *place = Some(shared);
    }
}

/// Whether the host may have put so much at `base`.
fn fits(base: u64, bytes: u64) -> bool {
    base >= IMPORT_WINDOW
        && is_aligned(base, LARGE_PAGE_SIZE)
        && base
            .checked_add(bytes)
            .is_some_and(|end| end <= IMPORT_WINDOW_END)
}

/// Runs `f` on the arena in `slot`.
fn with<T>(slot: usize, f: impl FnOnce(&mut Import) -> T) -> Option<T> {
    match IMPORTS.lock().get_mut(slot)?.as_mut()? {
        Shared::Arena(import) => Some(f(import)),
        Shared::Plain(_) => None,
    }
}

/// Segid and bytes of the program's own segment at `address`.
pub(crate) fn made_at(address: u64) -> Option<(u64, u64)> {
    match IMPORTS.lock().get(slot_at(address)?)?.as_ref()? {
        Shared::Plain(Plain {
            source: Source::Segid(segid),
            size_bytes,
            ..
        }) => Some((*segid, *size_bytes)),
        _ => None,
    }
}

/// Whether to wait for a bell in `slot`.
pub(crate) fn rings(slot: usize) -> bool {
    with(slot, |import| import.rings()) == Some(true)
}

/// The newest generation in `slot`, as the exporter says; 0 without an arena.
pub(crate) fn newest(slot: usize) -> u64 {
    with(slot, |import| import.newest()).unwrap_or(0)
}

/// Payload bytes of the arena in `slot`.
pub(crate) fn size_bytes(slot: usize) -> Option<u64> {
    with(slot, |import| import.size_bytes())
}

/// The generation that `slot` shows, if any.
pub(crate) fn generation(slot: usize) -> Option<u64> {
    with(slot, |import| import.generation())?
}

/// Shows a leased generation in `slot`; how many chunks had to be mapped. After
/// a failure nothing is mapped.
pub(crate) fn show(slot: usize, place: Place) -> Option<Result<u64, ImportError>> {
    with(slot, |import| import.show(place))
}

/// Whether what `slot` shows is what was published.
pub(crate) fn is_valid(slot: usize) -> Option<bool> {
    with(slot, |import| import.is_valid())
}

/// Variable `index` as the exporter describes it, unchecked; `None` past the
/// last one.
pub(crate) fn variable(slot: usize, index: u64) -> Option<VarDesc> {
    with(slot, |import| import.variable(index))?
}

/// Takes what is in `slot` out of the program's address space, then out of
/// the enclave; `false` if there is none.
pub(crate) fn remove(slot: usize) -> bool {
    let Some(shared) = IMPORTS.lock().get_mut(slot).and_then(Option::take) else {
        return false;
    };
    match shared {
        Shared::Arena(import) => import.remove(),
        Shared::Plain(plain) => plain.remove(),
    }
    // It is unmapped, whatever the host says.
    let _ = host::call(Call::ImportDetach, [slot as u64, 0, 0, 0, 0, 0, 0]);
    true
}

/// Ends every import.
pub(crate) fn end_all() {
    for slot in 0..MAX_IMPORTS {
        remove(slot);
    }
}
