//! Copy-on-write arenas of the running program: twin tables, publish, fault.
//!
//! Called by the arena system calls, by the fault path and at the program's
//! end. Decisions (which bank, which slot, what to replay) are
//! `enclave-core/arena`; the shared layout is `enclave-abi/arena`.
//!
//! Each arena owns one top-level entry (512 GiB of addresses) and two complete
//! trees below it. *Live* is in use; *next* maps the same frames, all
//! read-only. A publish stores one top-level entry: next becomes live and the
//! retired tree is brought up to date (rights taken from the chunks that were
//! written) during the next generation's faults. Leaves of a tree are one
//! contiguous array, so a chunk's leaf is found without a walk.

use alloc::vec;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use enclave_abi::ABI_VERSION;
use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE, is_aligned};
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, GENERATION_RECORDS, GENERATIONS_OFFSET, GenerationRecord, Geometry,
    MAX_BANKS, VARS_OFFSET, VarDesc, log_entry, split_log_entry, state,
};
use enclave_abi::layout::{ARENA_WINDOW, ARENA_WINDOW_END};
use enclave_abi::lease::{self, MAX_ARENAS, SLOTS, Slot};
use enclave_abi::queue::doorbell;
use enclave_core::arena::{CatchUp, Held, choose_bank, reclaimable};
use enclave_core::aspace::Prot;
use spin::Mutex;
use zerocopy::{FromZeros, IntoBytes};

use crate::arch::{self, paging};
use crate::{clock, memory, phys};

/// Bytes of address space of one arena: one top-level entry.
pub(crate) const ARENA_SPAN: u64 = 1 << 39;
/// Virtual address of arena slot 0.
pub(crate) const ARENA_BASE: u64 = 0x2000_0000_0000;
/// Catch-up entries replayed per fault: more than one, so that a generation
/// with fewer faults than the one before still catches up.
const REPLAY_PER_FAULT: u32 = 2;

/// One of the two trees of an arena.
#[derive(Clone, Copy, Debug)]
struct Tree {
    /// Top-level entry.
    entry: u64,
    /// Guest-physical address of the leaf array.
    leaves: u64,
}

/// An arena of the running program.
#[derive(Debug)]
pub(crate) struct Arena {
    geometry: Geometry,
    /// Guest-physical address of the object (control area first).
    base: u64,
    /// XEMEM segment.
    pub(crate) segid: u64,
    /// Host page behind it.
    pub(crate) backing_page_bytes: u64,
    trees: [Tree; 2],
    live: usize,
    /// Tables of both trees: (start, bytes).
    tables: (u64, u64),
    /// Current bank of each chunk.
    banks: Vec<u8>,
    /// Newest generation.
    pub(crate) generation: u64,
    /// Generations that pin frames, as of the last publish: a superset of the
    /// truth until the next one, because only we add.
    held: Held,
    catch_up: CatchUp,
    /// Change-log entries written.
    log_head: u64,
    /// `log_head` at the last publish.
    log_published: u64,
    /// Publishes refused.
    pub(crate) dropped: u64,
    /// Copy-on-write faults.
    pub(crate) cow_faults: u64,
    nr_vars: u32,
    chunk_shift: u32,
}

static ARENAS: Mutex<[Option<Arena>; MAX_ARENAS]> = Mutex::new([const { None }; MAX_ARENAS]);

/// Why an arena call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ArenaError {
    /// No such arena.
    NoArena,
    /// No memory for tables.
    NoMemory,
    /// Pool exhausted: publish again later.
    Exhausted,
    /// The host gave an object we cannot use.
    BadObject,
    /// Variable table full.
    VarsFull,
}

/// The virtual address of arena `slot`.
pub(crate) fn address(slot: usize) -> u64 {
    ARENA_BASE + slot as u64 * ARENA_SPAN
}

/// The slot whose span contains `va`.
fn slot_of(va: u64) -> Option<usize> {
    let slot = va.checked_sub(ARENA_BASE)? / ARENA_SPAN;
    (slot < MAX_ARENAS as u64).then_some(slot as usize)
}

/// The first slot without an arena.
pub(crate) fn free_slot() -> Option<usize> {
    ARENAS.lock().iter().position(Option::is_none)
}

/// Runs `f` on the arena in `slot`.
pub(crate) fn with<T>(
    slot: u64,
    f: impl FnOnce(&mut Arena) -> Result<T, ArenaError>,
) -> Result<T, ArenaError> {
    let mut arenas = ARENAS.lock();
    let arena = usize::try_from(slot)
        .ok()
        .and_then(|slot| arenas.get_mut(slot)?.as_mut());
    f(arena.ok_or(ArenaError::NoArena)?)
}

/// The arena that contains `va`: (slot, payload bytes).
pub(crate) fn find(va: u64) -> Option<(usize, u64)> {
    let slot = slot_of(va)?;
    let size = ARENAS.lock().get(slot)?.as_ref()?.geometry.size_bytes;
    (va - address(slot) < size).then_some((slot, size))
}

/// Sets up the arena whose object the host placed at `base`.
pub(crate) fn install(
    slot: usize,
    geometry: Geometry,
    base: u64,
    segid: u64,
    backing_page_bytes: u64,
    name: [u8; 64],
) -> Result<(), ArenaError> {
    let end = base
        .checked_add(geometry.object_bytes)
        .ok_or(ArenaError::BadObject)?;
    if base < ARENA_WINDOW || end > ARENA_WINDOW_END || !is_aligned(base, LARGE_PAGE_SIZE) {
        return Err(ArenaError::BadObject);
    }
    paging::map_direct(base, geometry.object_bytes).map_err(|_| ArenaError::NoMemory)?;
    let Some((trees, tables)) = build_trees(slot, &geometry, base) else {
        paging::unmap_direct(base, geometry.object_bytes);
        return Err(ArenaError::NoMemory);
    };
    let arena = Arena {
        geometry,
        base,
        segid,
        backing_page_bytes,
        trees,
        live: 0,
        tables,
        banks: vec![0; geometry.nr_chunks as usize],
        generation: 0,
        held: Held::default(),
        catch_up: CatchUp::default(),
        log_head: 0,
        log_published: 0,
        dropped: 0,
        cow_faults: 0,
        nr_vars: 0,
        chunk_shift: geometry.chunk_bytes.trailing_zeros(),
    };
    arena.write_control(slot, name);
    clear_lease_words(slot);
    phys::write(paging::top_slot(address(slot)), trees[0].entry);
    arch::flush_tlb();
    if let Some(place) = ARENAS.lock().get_mut(slot) {
        *place = Some(arena);
    }
    Ok(())
}

fn clear_lease_words(slot: usize) {
    for word in (0..SLOTS).filter_map(|n| lease::slot_word(slot, n)) {
        phys::lease_word(word).store(0, Ordering::Release);
    }
}

/// Builds both trees in one block: per tree a page-directory-pointer table,
/// page directories and, for small chunks, page tables; each level contiguous.
fn build_trees(slot: usize, geometry: &Geometry, base: u64) -> Option<([Tree; 2], (u64, u64))> {
    let per_level = |entries: u64| entries.div_ceil(512).max(1);
    let large = geometry.chunk_bytes == LARGE_PAGE_SIZE;
    let tables = if large {
        0
    } else {
        per_level(geometry.nr_chunks)
    };
    let directories = if large {
        per_level(geometry.nr_chunks)
    } else {
        per_level(tables)
    };
    let pages = 1 + directories + tables;
    let bytes = 2 * pages * PAGE_SIZE;
    let block = memory::alloc(bytes, PAGE_SIZE)?;
    let mut trees = [Tree {
        entry: 0,
        leaves: 0,
    }; 2];
    // Both start read-only, so that only chunks that are written ever have to
    // be frozen: the first publish costs no more than the others.
    for (index, tree) in trees.iter_mut().enumerate() {
        let pdpt = block + index as u64 * pages * PAGE_SIZE;
        let directory = pdpt + PAGE_SIZE;
        let table = directory + directories * PAGE_SIZE;
        for n in 0..directories {
            phys::write(pdpt + n * 8, paging::table_entry(directory + n * PAGE_SIZE));
        }
        for n in 0..tables {
            phys::write(
                directory + n * 8,
                paging::table_entry(table + n * PAGE_SIZE),
            );
        }
        let leaves = if large { directory } else { table };
        for chunk in 0..geometry.nr_chunks {
            let frame = base + geometry.frame_offset(chunk, 0)?;
            phys::write(leaves + chunk * 8, leaf(geometry, frame, Prot::READ));
        }
        *tree = Tree {
            entry: paging::table_entry(pdpt),
            leaves,
        };
    }
    debug_assert!(slot < MAX_ARENAS);
    Some((trees, (block, bytes)))
}

fn leaf(geometry: &Geometry, frame: u64, prot: Prot) -> u64 {
    let size = if geometry.chunk_bytes == LARGE_PAGE_SIZE {
        paging::PS
    } else {
        0
    };
    frame | paging::user_bits(prot) | size
}

/// A first write to a frozen chunk: gives it its own frame. `false` when the
/// address is no arena's.
pub(crate) fn copy_on_write(va: u64) -> bool {
    let Some(slot) = slot_of(va) else {
        return false;
    };
    let mut arenas = ARENAS.lock();
    let Some(arena) = arenas.get_mut(slot).and_then(Option::as_mut) else {
        return false;
    };
    let chunk = (va & (ARENA_SPAN - 1)) >> arena.chunk_shift;
    chunk < arena.geometry.nr_chunks && arena.give_frame(chunk)
}

impl Arena {
    fn births(&self, chunk: u64) -> u64 {
        self.base + self.geometry.births_offset + chunk * u64::from(self.geometry.nr_banks) * 8
    }

    fn frame(&self, chunk: u64, bank: u32) -> u64 {
        let g = &self.geometry;
        self.base + g.control_bytes + u64::from(bank) * g.bank_stride + (chunk << self.chunk_shift)
    }

    /// Copies chunk `chunk` to a free bank and makes the copy writable.
    ///
    /// Order: copy first, then the live leaf (another thread reads the old
    /// frame until the new one is whole).
    fn give_frame(&mut self, chunk: u64) -> bool {
        let live = self.trees[self.live].leaves + chunk * 8;
        if phys::read(live) & paging::W != 0 {
            // Another core was first, or a stale translation: nothing to do.
            return true;
        }
        if self.generation == 0 {
            // Nothing is published yet: the frame is nobody else's.
            phys::write(live, phys::read(live) | paging::W);
            self.append_log(chunk, 0);
            return true;
        }
        let Some(bank) = self.pick_bank(chunk) else {
            return false;
        };
        let old = self.banks[chunk as usize];
        let target = self.frame(chunk, bank);
        phys::copy(
            target,
            self.frame(chunk, u32::from(old)),
            self.geometry.chunk_bytes,
        );
        phys::write(
            self.births(chunk) + u64::from(bank) * 8,
            self.generation + 1,
        );
        self.append_log(chunk, bank);
        let next = self.trees[self.live ^ 1].leaves + chunk * 8;
        phys::write(live, leaf(&self.geometry, target, Prot::READ_WRITE));
        phys::write(next, leaf(&self.geometry, target, Prot::READ));
        self.banks[chunk as usize] = bank as u8;
        self.cow_faults += 1;
        self.replay(REPLAY_PER_FAULT);
        true
    }

    fn pick_bank(&self, chunk: u64) -> Option<u32> {
        let mut births = [0; MAX_BANKS as usize];
        let banks = births.get_mut(..self.geometry.nr_banks as usize)?;
        let first = self.births(chunk);
        for (n, birth) in (0u64..).zip(banks.iter_mut()) {
            *birth = phys::read(first + n * 8);
        }
        choose_bank(
            banks,
            u32::from(self.banks[chunk as usize]),
            self.held.as_slice(),
        )
    }

    fn append_log(&mut self, chunk: u64, bank: u32) {
        phys::write(
            self.base + self.geometry.log_entry_offset(self.log_head),
            log_entry(chunk, bank),
        );
        self.log_head += 1;
        self.header(offset_of!(ArenaHeader, log_head), self.log_head);
    }

    /// Takes the write right from up to `most` chunks of the retired tree.
    fn replay(&mut self, most: u32) {
        for _ in 0..most {
            let Some(entry) = self.catch_up.take() else {
                return;
            };
            let word = phys::read(self.base + self.geometry.log_entry_offset(entry));
            let (chunk, _) = split_log_entry(word);
            if chunk < self.geometry.nr_chunks {
                let at = self.trees[self.live ^ 1].leaves + chunk * 8;
                phys::write(at, phys::read(at) & !paging::W);
            }
        }
    }

    fn header(&self, offset: usize, value: u64) {
        phys::atomic(self.base + offset as u64).store(value, Ordering::Release);
    }

    /// Freezes the current contents as a new generation: constant time.
    pub(crate) fn publish(
        &mut self,
        slot: usize,
        step: u64,
        time_bits: u64,
    ) -> Result<u64, ArenaError> {
        let start = arch::rdtsc();
        let Some(place) = self.admit(slot) else {
            self.dropped += 1;
            self.header(offset_of!(ArenaHeader, dropped), self.dropped);
            return Err(ArenaError::Exhausted);
        };
        self.replay(u32::MAX);
        let generation = self.generation + 1;
        self.live ^= 1;
        phys::write(paging::top_slot(address(slot)), self.trees[self.live].entry);
        arch::flush_upper();
        self.catch_up = CatchUp::new(self.log_published, self.log_head);
        self.generation = generation;
        self.write_record(generation, step, time_bits, start);
        self.log_published = self.log_head;
        self.held.push(generation);
        let word = phys::lease_word(lease::slot_word(slot, place).unwrap_or(0));
        word.store(Slot::Published(generation).encode(), Ordering::Release);
        self.header(offset_of!(ArenaHeader, latest_generation), generation);
        self.header(offset_of!(ArenaHeader, cow_faults), self.cow_faults);
        phys::ring(doorbell::ARENA_BASE + 8 * slot as u64);
        Ok(generation)
    }

    /// Takes back what may be taken back and finds a slot for one more
    /// generation; refreshes the held set.
    fn admit(&mut self, slot: usize) -> Option<usize> {
        let usable = (self.geometry.nr_banks as usize - 1).min(SLOTS);
        let mut words = [0; SLOTS];
        let first = lease::slot_word(slot, 0)?;
        let words = words.get_mut(..usable)?;
        for (n, word) in words.iter_mut().enumerate() {
            *word = phys::lease_word(first + n).load(Ordering::Acquire);
        }
        let retain = phys::lease_word(lease::retain_word(slot)?).load(Ordering::Relaxed);
        let mask = reclaimable(words, retain);
        for (n, word) in words
            .iter_mut()
            .enumerate()
            .filter(|(n, _)| mask & 1 << n != 0)
        {
            // A reader that leased it meanwhile wins.
            let shared = phys::lease_word(first + n);
            *word = match shared.compare_exchange(*word, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => 0,
                Err(now) => now,
            };
        }
        self.held = Held::from_words(words);
        Held::admit(words, self.geometry.nr_banks)
    }

    fn write_record(&self, generation: u64, step: u64, time_bits: u64, start: u64) {
        let at = self.base
            + GENERATIONS_OFFSET
            + (generation % GENERATION_RECORDS as u64) * size_of::<GenerationRecord>() as u64;
        let number = phys::atomic(at);
        number.store(0, Ordering::Release);
        let now = arch::rdtsc();
        let fields = [
            step,
            time_bits,
            now,
            clock::unix_ns(),
            self.log_head,
            self.log_head - self.log_published,
            now.wrapping_sub(start),
        ];
        for (n, field) in (1u64..).zip(fields) {
            phys::write(at + n * 8, field);
        }
        number.store(generation, Ordering::Release);
    }

    /// Writes header and births of a fresh object.
    fn write_control(&self, slot: usize, name: [u8; 64]) {
        for chunk in 0..self.geometry.nr_chunks {
            phys::write(self.births(chunk), 1);
        }
        let mut header = ArenaHeader::new_zeroed();
        header.magic = ARENA_MAGIC;
        header.abi_version = ABI_VERSION;
        header.state = state::LIVE;
        header.size_bytes = self.geometry.size_bytes;
        header.chunk_bytes = self.geometry.chunk_bytes;
        header.nr_banks = self.geometry.nr_banks;
        header.producer_base = address(slot);
        header.name = name;
        phys::write_bytes(self.base, header.as_bytes());
    }

    /// Adds a checked variable or replaces the one of the same name.
    pub(crate) fn set_variable(&mut self, var: &VarDesc) -> Result<u64, ArenaError> {
        let at = |n: u32| self.base + VARS_OFFSET + u64::from(n) * size_of::<VarDesc>() as u64;
        let mut index = self.nr_vars;
        for n in 0..self.nr_vars {
            let mut name = [0; 120];
            phys::read_bytes(at(n), &mut name);
            if name == var.name {
                index = n;
            }
        }
        if index as usize >= enclave_abi::arena::MAX_VARS {
            return Err(ArenaError::VarsFull);
        }
        phys::write_bytes(at(index), var.as_bytes());
        self.nr_vars = self.nr_vars.max(index + 1);
        let count = self.base + offset_of!(ArenaHeader, nr_vars) as u64;
        phys::atomic32(count).store(self.nr_vars, Ordering::Release);
        Ok(u64::from(index))
    }

    /// Payload bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.geometry.size_bytes
    }

    /// Generations that are held now.
    pub(crate) fn held_now(&self, slot: usize) -> u64 {
        (0..SLOTS)
            .filter_map(|n| lease::slot_word(slot, n))
            .filter(|&word| {
                Slot::decode(phys::lease_word(word).load(Ordering::Relaxed))
                    .held()
                    .is_some()
            })
            .count() as u64
    }
}

/// Takes the arena in `slot` out of the program's address space; the host is
/// told by the caller, after this.
pub(crate) fn remove(slot: usize) -> Result<(), ArenaError> {
    let arena = ARENAS
        .lock()
        .get_mut(slot)
        .and_then(Option::take)
        .ok_or(ArenaError::NoArena)?;
    let ended = arena.base + offset_of!(ArenaHeader, state) as u64;
    phys::atomic32(ended).store(state::ENDED, Ordering::Release);
    phys::ring(doorbell::ARENA_BASE + 8 * slot as u64);
    phys::write(paging::top_slot(address(slot)), 0);
    paging::unmap_direct(arena.base, arena.geometry.object_bytes);
    arch::flush_tlb();
    memory::free(arena.tables.0, arena.tables.1);
    Ok(())
}

/// Ends every arena; `reason` as in [`enclave_abi::queue::Call::ArenaEnd`].
pub(crate) fn end_all(reason: u64) {
    for slot in 0..MAX_ARENAS {
        if remove(slot).is_ok() {
            let _ = crate::host::call(
                enclave_abi::queue::Call::ArenaEnd,
                [slot as u64, reason, 0, 0, 0, 0, 0],
            );
        }
    }
}

/// Copy-on-write faults of the arenas there are now.
pub(crate) fn total_faults() -> u64 {
    ARENAS
        .lock()
        .iter()
        .flatten()
        .map(|arena| arena.cow_faults)
        .sum()
}

/// Publishes of the arenas there are now.
pub(crate) fn total_publishes() -> u64 {
    ARENAS
        .lock()
        .iter()
        .flatten()
        .map(|arena| arena.generation)
        .sum()
}
