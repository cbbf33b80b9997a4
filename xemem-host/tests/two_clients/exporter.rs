//! An exporter that plays VMM and kernel: one enclave, one arena in slot 0.
//!
//! Does what the kernel does, in the same order: births before a frame is
//! written, log entry before head, record before lease word before header
//! before doorbell. With [`Exporter::publish`] chunk `c` is rewritten in
//! generation `g` if [`is_written`]; its words then hold `g`.
//!
//! Also the heart of `examples/exporter.rs`, which other languages' tests run.

use crate::memory::Shared;
use enclave_abi::ABI_VERSION;
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, GENERATION_RECORDS, GENERATIONS_OFFSET, Geometry, VARS_OFFSET,
    VarDesc, bank_in_generation, dtype, log_entry, name_field, state,
};
use enclave_abi::lease::{Slot, retain_count, retain_word, slot_word};
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::path::Path;
use xemem_host::{ArenaRequest, Broker, EndReason, Hugetlb, SegId};
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of a chunk.
pub(crate) const CHUNK: u64 = 4096;
/// Number of chunks.
pub(crate) const CHUNKS: u64 = 64;

/// Whether chunk `c` changes in generation `g`.
pub(crate) fn is_written(chunk: u64, generation: u64) -> bool {
    generation == 1 || (chunk * 31 + generation * 17).is_multiple_of(5)
}

/// What the words of chunk `c` hold in generation `g`.
pub(crate) fn content(chunk: u64, generation: u64) -> u64 {
    let written = (1..=generation).rev().find(|&g| is_written(chunk, g));
    written.expect("generation 1 writes all")
}

pub(crate) struct Exporter {
    pub(crate) broker: Broker,
    pub(crate) segid: SegId,
    pub(crate) geometry: Geometry,
    /// The descriptor a real VMM would have closed.
    pub(crate) memfd: OwnedFd,
    pub(crate) doorbell: OwnedFd,
    page: Shared,
    object: Shared,
    generation: u64,
    banks: Vec<u32>,
    log_head: u64,
    log_published: u64,
    dropped: u64,
}

impl Exporter {
    /// An enclave and its arena, both called `name`, with `nr_banks` banks.
    pub(crate) fn open_to(
        socket: &Path,
        name: &str,
        nr_banks: u32,
        reader_gid: Option<u32>,
    ) -> Self {
        let mut broker = Broker::connect(socket).expect("the broker answers");
        let page = broker.register_enclave(name).expect("registered");
        let page = Shared::new(page, 4096).expect("the lease page maps");
        let grant = broker
            .arena_make(&ArenaRequest {
                slot: 0,
                name: name.to_owned(),
                size_bytes: CHUNK * CHUNKS,
                chunk_bytes: CHUNK,
                nr_banks,
                hugetlb: Hugetlb::Auto,
                reader_gid,
                retain: 1,
            })
            .expect("an arena");
        assert_eq!(grant.page_bytes, 4096, "small chunks need small pages");
        let object = Shared::new(&grant.memfd, grant.geometry.object_bytes).expect("it maps");
        let mut exporter = Self {
            broker,
            segid: grant.segid,
            geometry: grant.geometry,
            memfd: grant.memfd,
            doorbell: grant.doorbell,
            page,
            object,
            generation: 0,
            banks: vec![0; usize::try_from(CHUNKS).expect("small")],
            log_head: 0,
            log_published: 0,
            dropped: 0,
        };
        exporter.set_up(name);
        let segid = exporter.segid;
        exporter.broker.arena_mapped(segid).expect("sealed");
        exporter
    }

    /// Births, header and one variable.
    fn set_up(&self, name: &str) {
        for chunk in 0..CHUNKS {
            self.object.store(self.birth(chunk, 0), 1);
        }
        let mut var = VarDesc::new_zeroed();
        var.name[..4].copy_from_slice(b"flux");
        (var.dtype_code, var.dtype_bits, var.dtype_lanes) = (dtype::UINT, 64, 1);
        (var.ndim, var.order) = (1, b'C');
        (var.shape[0], var.strides[0]) = (CHUNK / 8, 8);
        (var.offset, var.nbytes) = (CHUNK, CHUNK);
        let flux = var;
        // A second one that reaches beyond the arena.
        var.name[..4].copy_from_slice(b"evil");
        var.offset = CHUNK * CHUNKS;
        let mut header = ArenaHeader::new_zeroed();
        header.magic = ARENA_MAGIC;
        header.abi_version = ABI_VERSION;
        header.state = state::LIVE;
        header.size_bytes = self.geometry.size_bytes;
        header.chunk_bytes = CHUNK;
        header.nr_banks = self.geometry.nr_banks;
        header.name = name_field(name).expect("a valid name");
        self.object.write(0, header.as_bytes());
        self.describe(&[flux, var]);
    }

    /// Replaces the variable table.
    pub(crate) fn describe(&self, vars: &[VarDesc]) {
        self.object.write(VARS_OFFSET, vars.as_bytes());
        // Shares a word with `nr_banks`.
        let counts = u64::from(self.geometry.nr_banks) | (vars.len() as u64) << 32;
        let at = offset_of!(ArenaHeader, nr_banks) as u64;
        self.object.store(at, counts);
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    fn birth(&self, chunk: u64, bank: u32) -> u64 {
        let offset = self.geometry.birth_offset(chunk, bank);
        offset.expect("in range")
    }

    fn word_offset(index: usize) -> u64 {
        slot_word(0, index).expect("a slot") as u64 * 8
    }

    /// State of slot `index`.
    pub(crate) fn slot(&self, index: usize) -> Slot {
        Slot::decode(self.page.load(Self::word_offset(index)))
    }

    /// Slots in use by this arena.
    fn slots(&self) -> std::ops::Range<usize> {
        0..usize::try_from(self.geometry.nr_banks - 1).expect("small")
    }

    pub(crate) fn retain(&self) -> u64 {
        let word = self.page.load(retain_word(0).expect("a slot") as u64 * 8);
        retain_count(word).into()
    }

    /// Generations that are leased.
    pub(crate) fn leased(&self) -> Vec<u64> {
        let slots = self.slots().map(|index| self.slot(index));
        slots
            .filter_map(|slot| match slot {
                Slot::Leased(generation) => Some(generation),
                _ => None,
            })
            .collect()
    }

    /// Writes a word to every chunk that changes in the coming generation.
    pub(crate) fn write_chunks(&mut self) {
        let coming = self.generation + 1;
        for chunk in (0..CHUNKS).filter(|&chunk| is_written(chunk, coming)) {
            self.write_chunk(chunk, coming);
        }
    }

    /// Writes words so that tests can tell the generation of chunk `c`.
    fn write_chunk(&mut self, chunk: u64, value: u64) {
        for offset in [0, CHUNK / 2, CHUNK - 8] {
            self.write(chunk * CHUNK + offset, &value.to_ne_bytes());
        }
    }

    /// A program's stores: whole words, inside the arena.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, word) in (offset..).step_by(8).zip(bytes.chunks_exact(8)) {
            let frame = self.own_frame(at / CHUNK);
            let value = u64::from_ne_bytes(word.try_into().expect("a word"));
            self.object.store(frame + at % CHUNK, value);
        }
    }

    /// The frame a store to `chunk` goes to; copies the chunk first if a
    /// generation has it.
    fn own_frame(&mut self, chunk: u64) -> u64 {
        let at = usize::try_from(chunk).expect("small");
        let (coming, current) = (self.generation + 1, self.banks[at]);
        if self.object.load(self.birth(chunk, current)) < coming {
            let bank = self.free_bank(chunk, current);
            self.object.store(self.birth(chunk, bank), coming);
            let (from, to) = (self.frame(chunk, current), self.frame(chunk, bank));
            for offset in (0..CHUNK).step_by(8) {
                self.object
                    .store(to + offset, self.object.load(from + offset));
            }
            let entry = self.geometry.log_entry_offset(self.log_head);
            self.object.store(entry, log_entry(chunk, bank));
            self.log_head += 1;
            let head = offset_of!(ArenaHeader, log_head) as u64;
            self.object.store(head, self.log_head);
            self.banks[at] = bank;
        }
        self.frame(chunk, self.banks[at])
    }

    fn frame(&self, chunk: u64, bank: u32) -> u64 {
        self.geometry.frame_offset(chunk, bank).expect("in range")
    }

    fn free_bank(&self, chunk: u64, current: u32) -> u32 {
        let births: Vec<u64> = (0..self.geometry.nr_banks)
            .map(|bank| self.object.load(self.birth(chunk, bank)))
            .collect();
        let held = self.slots().filter_map(|index| self.slot(index).held());
        let pinned: Vec<u32> = held
            .filter_map(|generation| bank_in_generation(&births, generation))
            .collect();
        (0..self.geometry.nr_banks)
            .find(|bank| *bank != current && !pinned.contains(bank))
            .expect("held generations leave a bank")
    }

    fn take_back(&self) {
        let keep = self.retain().saturating_sub(1);
        let published: Vec<(usize, u64)> = self
            .slots()
            .filter_map(|index| match self.slot(index) {
                Slot::Published(generation) => Some((index, generation)),
                _ => None,
            })
            .collect();
        for &(index, generation) in &published {
            let newer = published.iter().filter(|other| other.1 > generation);
            if newer.count() as u64 >= keep {
                let word = Slot::Published(generation).encode();
                // A reader that leased it meanwhile wins.
                self.page.exchange(Self::word_offset(index), word, 0);
            }
        }
    }

    /// Writes and publishes the next generation; `None` if the pool is
    /// exhausted.
    pub(crate) fn publish(&mut self) -> Option<u64> {
        let index = self.free_slot()?;
        self.write_chunks();
        Some(self.announce(index))
    }

    /// Publishes what was written, and nothing else.
    pub(crate) fn publish_as_is(&mut self) -> Option<u64> {
        let index = self.free_slot()?;
        Some(self.announce(index))
    }

    /// A slot for the next generation; a refused publish is counted.
    fn free_slot(&mut self) -> Option<usize> {
        self.take_back();
        let free = |index: &usize| self.slot(*index) == Slot::Empty;
        let found = self.slots().find(free);
        if found.is_none() {
            self.dropped += 1;
            let dropped = offset_of!(ArenaHeader, dropped) as u64;
            self.object.store(dropped, self.dropped);
        }
        found
    }

    fn announce(&mut self, index: usize) -> u64 {
        let generation = self.generation + 1;
        self.generation = generation;
        self.write_record(generation);
        let word = Slot::Published(generation).encode();
        self.page.store(Self::word_offset(index), word);
        let latest = offset_of!(ArenaHeader, latest_generation) as u64;
        self.object.store(latest, generation);
        self.ring(1);
        generation
    }

    fn write_record(&mut self, generation: u64) {
        let at = GENERATIONS_OFFSET + generation % GENERATION_RECORDS as u64 * 64;
        self.object.store(at, 0);
        let copied = self.log_head - self.log_published;
        let time_bits = (generation as f64 / 2.0).to_bits();
        let fields = [generation * 10, time_bits, 0, 0, self.log_head, copied, 0];
        for (at, field) in (at + 8..).step_by(8).zip(fields) {
            self.object.store(at, field);
        }
        self.object.store(at, generation);
        self.log_published = self.log_head;
    }

    /// Rings the doorbell `count` times.
    pub(crate) fn ring(&self, count: u64) {
        rustix::io::write(&self.doorbell, &count.to_ne_bytes()).expect("rung");
    }

    /// The bells that are new, as a kernel would ring them at each publish.
    pub(crate) fn fresh_bells(&mut self) -> Vec<OwnedFd> {
        let bells = self.broker.bells(self.segid).expect("the bells");
        bells.fresh.into_iter().map(|(_, fd)| fd).collect()
    }

    /// Breaks the promise of a lease: writes into a frame of `generation`.
    pub(crate) fn spoil(&self, chunk: u64, generation: u64) {
        let births: Vec<u64> = (0..self.geometry.nr_banks)
            .map(|bank| self.object.load(self.birth(chunk, bank)))
            .collect();
        let bank = bank_in_generation(&births, generation).expect("a frame");
        let coming = self.generation + 1;
        self.object.store(self.birth(chunk, bank), coming);
        self.object.store(self.frame(chunk, bank), u64::MAX);
    }

    pub(crate) fn end(&mut self) {
        let segid = self.segid;
        let reason = EndReason::ClosedByProgram;
        self.broker.arena_end(segid, reason).expect("ended");
    }
}
