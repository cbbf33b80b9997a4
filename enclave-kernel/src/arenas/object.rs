//! The memory of an arena: object and leaf tables as unchecked words behind
//! checked indices.
//!
//! Called by [`super::arena`] only. A [`Chunk`] or [`Bank`] exists only if it
//! is in range, so an access needs no check of its own: the fault path is
//! counted instruction by instruction (`ci/counts.json`). Decides nothing.

// UNSAFETY: words and frames of one arena through addresses that `new` checked
// once.
#![expect(unsafe_code)]

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::arena::{
    GENERATION_RECORDS, GENERATIONS_OFFSET, GenerationRecord, Geometry, MAX_BANKS, split_log_entry,
};
use enclave_abi::layout::DIRECT_MAP;

use enclave_core::arena::turn_is_free;

use super::tables::{BANK_SHIFT, FRAME_BITS, Twins, bank_bits, bank_of};
use crate::{arch, phys};

/// Number of a chunk, in range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk(u64);

impl Chunk {
    /// The number.
    pub(super) fn number(self) -> u64 {
        self.0
    }
}

/// Number of a bank, in range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bank(u32);

impl Bank {
    /// The number.
    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// Births of the frames of one chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Births(u64);

/// What moving a chunk from one bank to the next changes, per current bank.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    /// To be added to a frozen leaf: address and bank bits.
    leaf: u64,
    /// To be added to the frame's address.
    frame: u64,
    /// The next bank in turn.
    next: u64,
    /// The one after it.
    after: u64,
}

/// Where the words and frames of an arena are: virtual addresses in the direct
/// map.
#[derive(Debug)]
pub(super) struct Object {
    header: u64,
    births: u64,
    log: u64,
    log_mask: u64,
    /// Bank 0; frames of chunk i at `i << chunk_shift`, banks `stride` apart.
    frames: u64,
    frames_pa: u64,
    stride: u64,
    chunk_shift: u32,
    nr_banks: u32,
    nr_chunks: u64,
    leaves: [u64; 2],
    /// Bytes of births per chunk.
    row_bytes: u64,
    chunk_words: u64,
    steps: [Step; MAX_BANKS as usize],
}

/// The steps of `nr_banks` banks in turn; entries beyond stay where they are.
fn steps(nr_banks: u32, stride: u64) -> [Step; MAX_BANKS as usize] {
    let mut steps = [Step::default(); MAX_BANKS as usize];
    let turn = |bank: u32| if bank + 1 < nr_banks { bank + 1 } else { 0 };
    for (bank, step) in (0..nr_banks).zip(steps.iter_mut()) {
        let next = turn(bank);
        let frame = u64::from(next)
            .wrapping_mul(stride)
            .wrapping_sub(u64::from(bank) * stride);
        let bits = bank_bits(next).wrapping_sub(bank_bits(bank));
        *step = Step {
            leaf: frame.wrapping_add(bits),
            frame,
            next: u64::from(next),
            after: u64::from(turn(next)),
        };
    }
    steps
}

fn word(address: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

/// A word shared with readers on the host.
fn shared(address: u64) -> &'static AtomicU64 {
    // SAFETY: callers pass aligned addresses inside the object, which stays
    // mapped until the arena is removed; accessed atomically or volatilely.
    unsafe { AtomicU64::from_ptr(word(address)) }
}

impl Object {
    /// The object at guest-physical `base` and its tables.
    ///
    /// Panics where [`phys::address`] does: the caller has mapped both.
    pub(super) fn new(geometry: &Geometry, base: u64, twins: &Twins) -> Self {
        let header = phys::address(base, geometry.object_bytes);
        let leaf_bytes = geometry.nr_chunks * 8;
        Self {
            header,
            births: header + geometry.births_offset,
            log: header + geometry.log_offset,
            log_mask: geometry.log_entries - 1,
            frames: header + geometry.control_bytes,
            frames_pa: base + geometry.control_bytes,
            stride: geometry.bank_stride,
            chunk_shift: geometry.chunk_bytes.trailing_zeros() & 63,
            nr_banks: geometry.nr_banks,
            nr_chunks: geometry.nr_chunks,
            row_bytes: u64::from(geometry.nr_banks) * 8,
            chunk_words: geometry.chunk_bytes / 8,
            steps: steps(geometry.nr_banks, geometry.bank_stride),
            leaves: twins
                .trees
                .map(|tree| phys::address(tree.leaves, leaf_bytes)),
        }
    }

    /// Number of banks.
    pub(super) fn nr_banks(&self) -> u32 {
        self.nr_banks
    }

    /// The chunk at `offset` bytes of the payload.
    #[inline]
    pub(super) fn chunk(&self, offset: u64) -> Option<Chunk> {
        let number = offset >> (self.chunk_shift & 63);
        (number < self.nr_chunks).then_some(Chunk(number))
    }

    /// The bank a leaf names.
    #[inline]
    pub(super) fn leaf_bank(&self, leaf: u64) -> Option<Bank> {
        self.bank(bank_of(leaf))
    }

    /// Bank `number`.
    #[inline]
    pub(super) fn bank(&self, number: u32) -> Option<Bank> {
        (number < self.nr_banks).then_some(Bank(number))
    }

    #[inline]
    fn leaf_at(&self, tree: usize, chunk: Chunk) -> *mut u64 {
        word(self.leaves[tree & 1].wrapping_add(chunk.0.wrapping_mul(8)))
    }

    /// Leaf of `chunk` in a tree.
    #[inline]
    pub(super) fn leaf(&self, tree: usize, chunk: Chunk) -> u64 {
        // SAFETY: a leaf table has one word per chunk (`new`), and a Chunk is
        // in range.
        unsafe { self.leaf_at(tree, chunk).read_volatile() }
    }

    /// Writes a leaf.
    #[inline]
    pub(super) fn set_leaf(&self, tree: usize, chunk: Chunk, leaf: u64) {
        // SAFETY: as in `leaf`.
        unsafe { self.leaf_at(tree, chunk).write_volatile(leaf) }
    }

    /// The births of `chunk`.
    #[inline]
    pub(super) fn births(&self, chunk: Chunk) -> Births {
        Births(
            self.births
                .wrapping_add(chunk.0.wrapping_mul(self.row_bytes)),
        )
    }

    #[inline]
    fn birth_at(births: Births, bank: Bank) -> *mut u64 {
        word(births.0.wrapping_add(u64::from(bank.0).wrapping_mul(8)))
    }

    /// Birth of the frame in bank `number`; 0 (never used) out of range.
    #[inline]
    pub(super) fn birth(&self, births: Births, number: u32) -> u64 {
        let Some(bank) = self.bank(number) else {
            return 0;
        };
        // SAFETY: births have nr_banks words per chunk inside the control area,
        // and both Births and Bank are in range.
        unsafe { Self::birth_at(births, bank).read_volatile() }
    }

    /// Writes a birth.
    #[inline]
    pub(super) fn set_birth(&self, births: Births, bank: Bank, generation: u64) {
        // SAFETY: as in `birth`.
        unsafe { Self::birth_at(births, bank).write_volatile(generation) }
    }

    #[inline]
    fn frame(&self, chunk: Chunk, bank: Bank) -> u64 {
        let bank = self.stride.wrapping_mul(u64::from(bank.0));
        bank.wrapping_add(chunk.0 << (self.chunk_shift & 63))
    }

    /// Copies the frame of `chunk` from one bank to another; returns the
    /// guest-physical address of the copy.
    #[inline]
    pub(super) fn copy_frame(&self, chunk: Chunk, from: Bank, to: Bank) -> u64 {
        let (source, target) = (self.frame(chunk, from), self.frame(chunk, to));
        // SAFETY: frames of valid chunk and bank numbers lie inside the object;
        // two banks never overlap, and the caller passes different ones.
        unsafe {
            arch::copy_words(
                word(self.frames.wrapping_add(target)),
                word(self.frames.wrapping_add(source)),
                self.chunk_words,
            );
        }
        self.frames_pa.wrapping_add(target)
    }

    /// Moves a frozen chunk to the next bank in turn, if the frame there is
    /// needed by no generation from `oldest` on: copies the frame, gives it
    /// `birth`. Returns the leaf of the copy, still frozen, and its bank;
    /// `None` when a bank has to be searched for.
    ///
    /// Banks are used in turn as long as each chunk's leaf says so (no
    /// [`super::tables::OUT_OF_TURN`]). Then the frame in the bank after the next is the one
    /// that replaced the next's, and if it was born by `oldest`, nobody reads
    /// the next's any more.
    #[inline]
    pub(super) fn take_turn(
        &self,
        chunk: Chunk,
        leaf: u64,
        oldest: u64,
        birth: u64,
    ) -> Option<(u64, u64)> {
        let step = &self.steps[(leaf >> BANK_SHIFT & 0xf) as usize];
        let births = self.births(chunk).0;
        // SAFETY: births have nr_banks words per chunk and `after` is below
        // nr_banks, as is `next` below.
        let replaced =
            unsafe { word(births.wrapping_add(step.after.wrapping_mul(8))).read_volatile() };
        if !turn_is_free(replaced, oldest) {
            return None;
        }
        let from = (leaf & FRAME_BITS).wrapping_add(DIRECT_MAP);
        let to = from.wrapping_add(step.frame);
        // SAFETY: leaves are written by this type only, so `from` is the frame
        // of `chunk` in the leaf's bank and `to` the one in the next: both
        // inside the object, disjoint because there are two banks at least.
        // The birth first: a reader whose generation was taken away has seen it
        // if it has seen a byte of the copy.
        unsafe {
            word(births.wrapping_add(step.next.wrapping_mul(8))).write_volatile(birth);
            arch::copy_words(word(to), word(from), self.chunk_words);
        }
        Some((leaf.wrapping_add(step.leaf), step.next))
    }

    #[inline]
    fn log_at(&self, entry: u64) -> u64 {
        self.log
            .wrapping_add((entry & self.log_mask).wrapping_mul(8))
    }

    /// Writes change-log entry `entry` (free running).
    #[inline]
    pub(super) fn set_log(&self, entry: u64, value: u64) {
        // SAFETY: the mask keeps the index inside the log, which lies inside
        // the control area.
        unsafe { word(self.log_at(entry)).write_volatile(value) }
    }

    /// Change-log entry `entry` (free running).
    pub(super) fn log(&self, entry: u64) -> u64 {
        // SAFETY: as in `set_log`.
        unsafe { word(self.log_at(entry)).read_volatile() }
    }

    /// The chunk of change-log entry `entry`, if it still makes sense.
    pub(super) fn logged_chunk(&self, entry: u64) -> Option<Chunk> {
        let (number, _) = split_log_entry(self.log(entry));
        (number < self.nr_chunks).then_some(Chunk(number))
    }

    /// The header word at byte `offset` of the object.
    #[inline]
    pub(super) fn header<const OFFSET: usize>(&self) -> &'static AtomicU64 {
        const { assert!(OFFSET.is_multiple_of(8) && OFFSET < 4096) };
        shared(self.header.wrapping_add(OFFSET as u64))
    }

    #[inline]
    fn record_at(&self, generation: u64) -> u64 {
        const BYTES: u64 = size_of::<GenerationRecord>() as u64;
        let place = generation % GENERATION_RECORDS as u64;
        self.header
            .wrapping_add(GENERATIONS_OFFSET)
            .wrapping_add(place.wrapping_mul(BYTES))
    }

    /// What the record of `generation` says of the chunks copied.
    pub(super) fn chunks_copied(&self, generation: u64) -> u64 {
        const OFFSET: u64 = offset_of!(GenerationRecord, chunks_copied) as u64;
        shared(self.record_at(generation) + OFFSET).load(Ordering::Relaxed)
    }

    /// Writes the record of `generation`: its number is 0 meanwhile.
    #[inline]
    pub(super) fn set_record(&self, generation: u64, fields: [u64; 7]) {
        let at = self.record_at(generation);
        let number = shared(at);
        number.store(0, Ordering::Release);
        for (n, field) in (1u64..).zip(fields) {
            // SAFETY: eight words per record, records inside their page.
            unsafe { word(at.wrapping_add(n * 8)).write_volatile(field) };
        }
        number.store(generation, Ordering::Release);
    }
}

const _: () = assert!(size_of::<GenerationRecord>() == 64);
