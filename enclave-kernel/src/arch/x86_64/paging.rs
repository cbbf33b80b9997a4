//! Page-table entries: format, walk, map, unmap, protect (SDM vol. 3 §4.5).
//!
//! Called by process and arena code with guest-physical addresses; tables are
//! reached through the direct map. No flush happens here: callers batch their
//! changes and flush once. Leaf entries of an arena are never flipped to
//! read-only while they are in use (stale translations would let writes
//! through): `arenas.rs` swaps a top-level entry instead.

use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE, is_aligned};
use enclave_core::aspace::Prot;

use super::{ring3, root};
use crate::{memory, phys};

/// Present.
pub(crate) const P: u64 = 1;
/// Writable.
pub(crate) const W: u64 = 1 << 1;
/// Reachable from ring 3.
pub(crate) const U: u64 = 1 << 2;
/// Accessed and dirty, set beforehand.
pub(super) const AD: u64 = 1 << 5 | 1 << 6;
/// Large page.
pub(crate) const PS: u64 = 1 << 7;
/// No execution.
pub(crate) const NX: u64 = 1 << 63;
const ADDR: u64 = 0x000f_ffff_ffff_f000;
/// First entry of the kernel half.
const KERNEL_HALF: u64 = 256;

/// No frame for a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutOfTables;

/// Leaf bits for a program's page.
pub(crate) fn user_bits(prot: Prot) -> u64 {
    let write = if prot.contains(Prot::WRITE) { W } else { 0 };
    let exec = if prot.contains(Prot::EXEC) { 0 } else { NX };
    P | U | AD | write | exec
}

/// Entry that points to a table; leaves decide the rights.
pub(crate) fn table_entry(table: u64) -> u64 {
    table | P | W | U | AD
}

fn index(va: u64, level: u32) -> u64 {
    (va >> (12 + 9 * (level - 1))) & 511
}

/// Guest-physical address of the entry of `va` in `table`.
fn slot(table: u64, va: u64, level: u32) -> u64 {
    table + index(va, level) * 8
}

/// Address of the top-level entry of `va` in the table in use.
pub(crate) fn top_slot(va: u64) -> u64 {
    slot(root(), va, 4)
}

fn child(table: u64, va: u64, level: u32, make: bool) -> Result<Option<u64>, OutOfTables> {
    let at = slot(table, va, level);
    let entry = phys::read(at);
    if entry & P != 0 {
        return Ok((entry & PS == 0).then_some(entry & ADDR));
    }
    if !make {
        return Ok(None);
    }
    let fresh = memory::alloc(PAGE_SIZE, PAGE_SIZE).ok_or(OutOfTables)?;
    phys::write(at, table_entry(fresh));
    Ok(Some(fresh))
}

/// Maps `[va, va + len)` to `[pa, …)`; 2 MiB pages where everything is aligned.
pub(crate) fn map(va: u64, pa: u64, len: u64, bits: u64) -> Result<(), OutOfTables> {
    let mut done = 0;
    while done < len {
        let (va, pa, left) = (va + done, pa + done, len - done);
        let large = is_aligned(va | pa, LARGE_PAGE_SIZE) && left >= LARGE_PAGE_SIZE;
        let mut table = root();
        for level in [4, 3] {
            table = child(table, va, level, true)?.ok_or(OutOfTables)?;
        }
        let (at, entry, step) = if large && phys::read(slot(table, va, 2)) & (P | PS) != P {
            (slot(table, va, 2), pa | bits | PS, LARGE_PAGE_SIZE)
        } else {
            let table = child(table, va, 2, true)?.ok_or(OutOfTables)?;
            (slot(table, va, 1), pa | bits, PAGE_SIZE)
        };
        phys::write(at, entry);
        done += step;
    }
    Ok(())
}

/// Rewrites every leaf in `[va, va + len)`: `None` removes it, otherwise its
/// rights become `bits`. Large pages that are only partly covered are split.
pub(crate) fn change(va: u64, len: u64, bits: Option<u64>) -> Result<(), OutOfTables> {
    let end = va + len;
    let mut at = va;
    while at < end {
        at = change_one(at, end, bits)?;
    }
    Ok(())
}

/// Changes the leaf at `va`; returns the address behind what was covered.
fn change_one(va: u64, end: u64, bits: Option<u64>) -> Result<u64, OutOfTables> {
    let mut table = root();
    for level in [4, 3] {
        match child(table, va, level, false)? {
            Some(next) => table = next,
            None => return Ok(next_boundary(va, level)),
        }
    }
    let pd_slot = slot(table, va, 2);
    let entry = phys::read(pd_slot);
    if entry & P == 0 {
        return Ok(next_boundary(va, 2));
    }
    if entry & PS != 0 {
        let whole = is_aligned(va, LARGE_PAGE_SIZE) && end - va >= LARGE_PAGE_SIZE;
        if whole {
            phys::write(pd_slot, new_leaf(entry, bits, PS));
            return Ok(va + LARGE_PAGE_SIZE);
        }
        split(pd_slot, entry)?;
    }
    let table = phys::read(pd_slot) & ADDR;
    let pt_slot = slot(table, va, 1);
    let entry = phys::read(pt_slot);
    if entry & P != 0 {
        phys::write(pt_slot, new_leaf(entry, bits, 0));
    }
    Ok(va + PAGE_SIZE)
}

/// Whether the table in use lets a program do what the page fault with this error
/// code was about (SDM vol. 3 §4.7): another core may have changed it since.
pub(crate) fn allows(va: u64, error: u64) -> bool {
    const WRITE: u64 = 1 << 1;
    const RESERVED: u64 = 1 << 3;
    const FETCH: u64 = 1 << 4;
    if error & RESERVED != 0 || va >= enclave_abi::layout::USER_END {
        return false;
    }
    let mut table = root();
    for level in [4, 3, 2, 1] {
        let entry = phys::read(slot(table, va, level));
        if entry & (P | U) != P | U {
            return false;
        }
        if level == 1 || entry & PS != 0 {
            return (error & WRITE == 0 || entry & W != 0)
                && (error & FETCH == 0 || entry & NX == 0);
        }
        table = entry & ADDR;
    }
    false
}

fn new_leaf(entry: u64, bits: Option<u64>, size: u64) -> u64 {
    bits.map_or(0, |bits| entry & ADDR & !(size << 5) | bits | size)
}

fn next_boundary(va: u64, level: u32) -> u64 {
    let size = PAGE_SIZE << (9 * (level - 1));
    (va & !(size - 1)) + size
}

/// Replaces a large leaf by a table of small ones with the same rights.
fn split(pd_slot: u64, entry: u64) -> Result<(), OutOfTables> {
    let table = memory::alloc(PAGE_SIZE, PAGE_SIZE).ok_or(OutOfTables)?;
    let (base, rights) = (entry & ADDR & !(LARGE_PAGE_SIZE - 1), entry & !ADDR & !PS);
    for n in 0..512 {
        phys::write(table + n * 8, (base + n * PAGE_SIZE) | rights);
    }
    phys::write(pd_slot, table_entry(table));
    Ok(())
}

/// Maps memory of the host's window into the kernel's direct map.
pub(crate) fn map_direct(pa: u64, len: u64) -> Result<(), OutOfTables> {
    map_direct_as(pa, len, W)
}

/// The same, for reading only.
pub(crate) fn map_direct_read_only(pa: u64, len: u64) -> Result<(), OutOfTables> {
    map_direct_as(pa, len, 0)
}

fn map_direct_as(pa: u64, len: u64, write: u64) -> Result<(), OutOfTables> {
    let user = if ring3() { U } else { 0 };
    map(
        enclave_abi::layout::DIRECT_MAP + pa,
        pa,
        len,
        P | NX | AD | write | user,
    )
}

/// Removes memory from the direct map.
pub(crate) fn unmap_direct(pa: u64, len: u64) {
    // Everything there was mapped with large pages: nothing is split.
    let _ = change(enclave_abi::layout::DIRECT_MAP + pa, len, None);
}

/// Shows the first top-level entry of the table `of` as entry `entry` of the table
/// `root`, where nothing was, and without execution.
pub(crate) fn show(root: u64, entry: u64, of: u64) {
    let first = phys::read(of);
    phys::write(root + (entry & 511) * 8, first | NX);
}

/// Takes it away; translations stay until they are flushed.
pub(crate) fn hide(root: u64, entry: u64) {
    phys::write(root + (entry & 511) * 8, 0);
}

/// A fresh top-level table that shares the kernel half of the one in use.
pub(crate) fn new_space() -> Result<u64, OutOfTables> {
    let space = memory::alloc(PAGE_SIZE, PAGE_SIZE).ok_or(OutOfTables)?;
    let boot = root();
    for n in KERNEL_HALF..512 {
        phys::write(space + n * 8, phys::read(boot + n * 8));
    }
    Ok(space)
}

/// Frees the tables of an address space that no core uses (not the frames its
/// leaves point to).
pub(crate) fn free_space(space: u64) {
    for n in 0..KERNEL_HALF {
        free_tables(phys::read(space + n * 8), 3);
    }
    memory::free(space, PAGE_SIZE);
}

/// Takes the top-level entry of `va` out of the table in use; after a flush it
/// goes to [`free_top`].
pub(crate) fn take_top(va: u64) -> u64 {
    let at = top_slot(va);
    let entry = phys::read(at);
    phys::write(at, 0);
    entry
}

/// Frees the tables below a top-level entry, not the frames they point to.
pub(crate) fn free_top(entry: u64) {
    free_tables(entry, 3);
}

/// Frees the table behind `entry` and those below it.
fn free_tables(entry: u64, level: u32) {
    if entry & P == 0 || entry & PS != 0 {
        return;
    }
    let table = entry & ADDR;
    if level > 1 {
        for n in 0..512 {
            free_tables(phys::read(table + n * 8), level - 1);
        }
    }
    memory::free(table, PAGE_SIZE);
}

/// A tree of its own under one top-level entry, with one leaf: the ground for
/// self-tests.
#[derive(Debug)]
pub(super) struct ProbeTree {
    block: u64,
}

impl ProbeTree {
    /// Where the leaf shows; 1 GiB aligned.
    pub(super) const ADDRESS: u64 = 0x7000_0000_0000;
    const PAGES: u64 = 3;

    /// A tree whose 4 KiB leaf at [`Self::ADDRESS`] is `leaf`.
    pub(super) fn new(leaf: u64) -> Option<Self> {
        let this = Self::empty()?;
        let (directory, table) = (this.block + PAGE_SIZE, this.block + 2 * PAGE_SIZE);
        phys::write(slot(this.block, Self::ADDRESS, 3), table_entry(directory));
        phys::write(slot(directory, Self::ADDRESS, 2), table_entry(table));
        phys::write(slot(table, Self::ADDRESS, 1), leaf);
        Some(this)
    }

    /// A tree whose 1 GiB leaf at [`Self::ADDRESS`] is `leaf`.
    pub(super) fn of_1_gib(leaf: u64) -> Option<Self> {
        let this = Self::empty()?;
        phys::write(slot(this.block, Self::ADDRESS, 3), leaf);
        Some(this)
    }

    fn empty() -> Option<Self> {
        let block = memory::alloc(Self::PAGES * PAGE_SIZE, PAGE_SIZE)?;
        Some(Self { block })
    }

    /// Makes it the tree at the address, in the table in use; flushes nothing.
    pub(super) fn show(&self) {
        self.show_in(root());
    }

    /// Makes it the tree at the address in the table `root`.
    pub(super) fn show_in(&self, root: u64) {
        phys::write(slot(root, Self::ADDRESS, 4), table_entry(self.block));
    }

    /// Takes it away and frees its tables; flushes nothing.
    pub(super) fn remove(self) {
        phys::write(top_slot(Self::ADDRESS), 0);
        memory::free(self.block, Self::PAGES * PAGE_SIZE);
    }
}
