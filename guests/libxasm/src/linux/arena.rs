//! One arena of a Linux process: what the kernel does for a program in an
//! enclave (`enclave-kernel/src/arenas/arena.rs`), done by the process itself.
//!
//! Called by [`super`] with the lock held: publishes and statistics from the
//! program's calls, [`Arena::copy_on_write`] from the signal handler. Banks and
//! generations are decided by `enclave_arena`; memory is moved by
//! [`super::memory`].
//!
//! A *piece* is what one fault copies: one chunk, or a power of two of them
//! where an arena has so many that a mapping for each would exhaust what a
//! process may have. All chunks of a piece are in the same bank.

use super::broker::Grant;
use super::memory::{self, LeaseWords, Object, Way, Window, ring};
use super::os::{self, Fd};
use crate::errno::Errno;
use crate::heap::Pages;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use enclave_abi::ABI_VERSION;
use enclave_abi::addr::range_within;
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, GENERATION_RECORDS, GENERATIONS_OFFSET, GenerationRecord, Geometry,
    MAX_VARS, VARS_OFFSET, VarDesc, log_entry, state,
};
use enclave_abi::lease::{SLOTS, Slot, retain_count, retain_readers};
use enclave_abi::syscall::{
    ArenaArgs, ArenaStats, POLICY_BLOCK, POLICY_DISCARD_NEWEST, POLICY_DISCARD_OLDEST,
};
use enclave_arena::{
    Held, Placement, choose_bank, choose_placed, has_room, oldest_held, reclaimable,
};
use zerocopy::{FromZeros, IntoBytes};

/// What happens when a publish finds the pool exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    DiscardNewest,
    DiscardOldest,
    Block { timeout_ms: u32 },
}

impl Policy {
    /// The policy of that number.
    pub(super) fn new(number: u32, timeout_ms: u32) -> Option<Self> {
        match number {
            POLICY_DISCARD_NEWEST => Some(Self::DiscardNewest),
            POLICY_DISCARD_OLDEST => Some(Self::DiscardOldest),
            POLICY_BLOCK => Some(Self::Block { timeout_ms }),
            _ => None,
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::DiscardNewest => POLICY_DISCARD_NEWEST,
            Self::DiscardOldest => POLICY_DISCARD_OLDEST,
            Self::Block { .. } => POLICY_BLOCK,
        }
    }
}

/// Why there is no publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The pool is exhausted.
    Exhausted,
    /// It is, and the policy says to wait.
    Full,
    /// Linux refused.
    System(Errno),
}

/// What an arena is made of.
#[derive(Debug)]
pub(super) struct Parts {
    /// What the program asked for.
    pub(super) args: ArenaArgs,
    pub(super) geometry: Geometry,
    pub(super) object: Object,
    pub(super) window: Window,
    pub(super) lease: LeaseWords,
    pub(super) doorbell: Fd,
    pub(super) segid: u64,
    pub(super) page_bytes: u64,
    pub(super) policy: Policy,
    pub(super) placement: Placement,
    /// A byte per chunk, the preferred bank plus one; 0 for none.
    pub(super) wishes: Option<Pages<u8>>,
    pub(super) chunks_per_piece: u64,
}

/// An arena of this process.
#[derive(Debug)]
pub(super) struct Arena {
    parts: Parts,
    spare_banks: usize,
    /// Newest generation.
    generation: u64,
    /// Generations that pin frames, as of the last publish: a superset of the
    /// truth until the next one, because only we add.
    held: Held,
    log_head: u64,
    /// `log_head` at the last publish.
    log_published: u64,
    /// Where the entries of the newest generation begin.
    log_before: u64,
    dropped: u64,
    discarded: u64,
    waited: u64,
    nr_vars: u32,
}

impl Arena {
    /// Sets the arena up over a fresh object, all of it shown from bank 0 and
    /// writable.
    pub(super) fn new(parts: Parts) -> Result<Self, Errno> {
        let spare_banks = usize::try_from(parts.geometry.nr_banks).map_err(|_| Errno::EINVAL)?;
        let arena = Self {
            spare_banks: spare_banks.saturating_sub(1).min(SLOTS),
            parts,
            generation: 0,
            held: Held::default(),
            log_head: 0,
            log_published: 0,
            log_before: 0,
            dropped: 0,
            discarded: 0,
            waited: 0,
            nr_vars: 0,
        };
        arena.write_control()?;
        arena.show_first_bank()?;
        Ok(arena)
    }

    /// Goes on in another object, with the present contents: readers of the old
    /// one keep what they have.
    pub(super) fn move_to(&mut self, grant: Grant, lease: LeaseWords) -> Result<(), Errno> {
        let bytes = self.size_bytes();
        let geometry = &self.parts.geometry;
        let object = Object::map(&grant.memory, geometry.object_bytes, geometry.control_bytes)?;
        let first = self.frame(0, 0)?;
        // From here on other threads wait for the lock when they store.
        self.parts.window.freeze()?;
        object.copy_in(&self.parts.window, 0, first, bytes)?;
        let mut var = VarDesc::new_zeroed();
        for n in 0..self.nr_vars {
            self.parts.object.read(var_offset(n), var.as_mut_bytes())?;
            object.write(var_offset(n), var.as_bytes())?;
        }
        self.parts.object = object;
        (self.parts.lease, self.parts.doorbell) = (lease, grant.doorbell);
        (self.parts.segid, self.parts.page_bytes) = (grant.segid, grant.page_bytes);
        self.held = Held::default();
        // The log of this object begins here.
        (self.log_before, self.log_published) = (self.log_head, self.log_head);
        self.write_control()?;
        self.show_first_bank()
    }

    fn show_first_bank(&self) -> Result<(), Errno> {
        let (parts, first, bytes) = (&self.parts, self.frame(0, 0)?, self.size_bytes());
        let window = &parts.window;
        window.show(&parts.object, self.way(), None, first, 0, bytes)
    }

    fn way(&self) -> Way {
        Way::for_pieces(self.parts.geometry.chunk_bytes * self.parts.chunks_per_piece)
    }

    /// Lets the arena of a parent go: its memory is not mapped in this process.
    pub(super) fn forget(self) {
        core::mem::forget(self.parts.object);
        core::mem::forget(self.parts.window);
    }

    /// Writes lease words, births and header of a fresh object whose first bank
    /// has the coming generation.
    fn write_control(&self) -> Result<(), Errno> {
        let (geometry, coming) = (&self.parts.geometry, self.generation + 1);
        // The word behind them is the broker's, which has set it by now.
        for word in self.parts.lease.iter().take(SLOTS) {
            word.store(0, Ordering::Release);
        }
        for chunk in 0..geometry.nr_chunks {
            self.birth(chunk, 0).store(coming, Ordering::Relaxed);
        }
        let mut header = ArenaHeader::new_zeroed();
        header.magic = ARENA_MAGIC;
        header.abi_version = ABI_VERSION;
        header.state = state::LIVE;
        header.size_bytes = geometry.size_bytes;
        header.chunk_bytes = geometry.chunk_bytes;
        header.nr_banks = geometry.nr_banks;
        header.producer_base = self.parts.window.start();
        header.policy = self.parts.policy.number();
        header.placement = self.parts.placement.number();
        header.name = self.parts.args.name;
        header.nr_vars = self.nr_vars;
        header.log_head = self.log_head;
        header.dropped = self.dropped;
        header.discarded = self.discarded;
        header.waited = self.waited;
        self.parts.object.write(0, header.as_bytes())
    }

    /// Tells readers that no generation will come.
    pub(super) fn end(&self) {
        const STATE: u64 = offset_of!(ArenaHeader, state) as u64;
        let _ = self.parts.object.write(STATE, &state::ENDED.to_ne_bytes());
        ring(&self.parts.doorbell);
    }

    /// Address of the first byte.
    pub(super) fn start(&self) -> u64 {
        self.parts.window.start()
    }

    /// Payload bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.parts.geometry.size_bytes
    }

    /// What the program asked for.
    pub(super) fn args(&self) -> &ArenaArgs {
        &self.parts.args
    }

    /// Where everything in the object is.
    pub(super) fn geometry(&self) -> &Geometry {
        &self.parts.geometry
    }

    /// Notes a further name; the first one is the arena's if it had none.
    pub(super) fn note_name(&mut self, name: [u8; 64]) {
        if self.parts.args.name == [0; 64] {
            self.parts.args.name = name;
        }
    }

    /// The XEMEM segment.
    pub(super) fn segid(&self) -> u64 {
        self.parts.segid
    }

    /// What happens when the pool is exhausted.
    pub(super) fn policy(&self) -> Policy {
        self.parts.policy
    }

    /// Mappings that the arena may come to need.
    pub(super) fn nr_mappings(&self) -> u64 {
        let geometry = &self.parts.geometry;
        let pieces = geometry.nr_chunks.div_ceil(self.parts.chunks_per_piece);
        pieces * self.way().mappings(geometry.nr_banks)
    }

    fn birth(&self, chunk: u64, bank: u32) -> &AtomicU64 {
        let offset = self.parts.geometry.birth_offset(chunk, bank);
        debug_assert!(offset.is_some(), "chunk {chunk}, bank {bank}");
        self.parts.object.word(offset.unwrap_or(0))
    }

    fn frame(&self, chunk: u64, bank: u32) -> Result<u64, Errno> {
        let offset = self.parts.geometry.frame_offset(chunk, bank);
        offset.ok_or(Errno::EFAULT)
    }

    /// A word of the header.
    fn header(&self, offset: usize) -> &AtomicU64 {
        self.parts.object.word(offset as u64)
    }

    /// A store at `offset` bytes faulted: gives the piece a frame of its own.
    ///
    /// # Errors
    /// EFAULT when the offset is beyond the arena; what Linux says.
    pub(super) fn copy_on_write(&mut self, offset: u64) -> Result<(), Errno> {
        let Parts {
            geometry,
            chunks_per_piece,
            ..
        } = &self.parts;
        let (chunk_bytes, nr_banks) = (geometry.chunk_bytes, geometry.nr_banks);
        let first = offset / chunk_bytes / chunks_per_piece * chunks_per_piece;
        let nr_chunks = geometry
            .nr_chunks
            .saturating_sub(first)
            .min(*chunks_per_piece);
        if offset >= geometry.size_bytes || nr_chunks == 0 {
            return Err(Errno::EFAULT);
        }
        let (at, bytes) = (first * chunk_bytes, nr_chunks * chunk_bytes);
        let birth = |bank| self.birth(first, bank).load(Ordering::Relaxed);
        let current = (0..nr_banks).max_by_key(|&bank| birth(bank));
        let current = current.ok_or(Errno::EFAULT)?;
        let coming = self.generation + 1;
        if birth(current) == coming {
            // Another thread was first.
            return self.parts.window.thaw(at, bytes);
        }
        let bank = match self.parts.placement {
            Placement::InTurn => choose_bank(birth, nr_banks, current, &self.held),
            _ => choose_placed(birth, nr_banks, current, &self.held, self.wish(first)),
        };
        let bank = bank.ok_or(Errno::EFAULT)?;
        let (from, to) = (self.frame(first, current)?, self.frame(first, bank)?);
        // The birth first: a reader whose generation was taken away has seen it
        // if it has seen a byte of the copy.
        for chunk in first..first + nr_chunks {
            self.birth(chunk, bank).store(coming, Ordering::Release);
        }
        let (object, window) = (&self.parts.object, &self.parts.window);
        object.copy_in(window, at, to, bytes)?;
        for chunk in first..first + nr_chunks {
            let entry = self.parts.geometry.log_entry_offset(self.log_head);
            let entry = self.parts.object.word(entry);
            entry.store(log_entry(chunk, bank), Ordering::Relaxed);
            self.log_head += 1;
        }
        self.header(offset_of!(ArenaHeader, log_head))
            .store(self.log_head, Ordering::Release);
        let (object, window) = (&self.parts.object, &self.parts.window);
        window.show(object, self.way(), Some(from), to, at, bytes)
    }

    /// The bank that the program prefers for a chunk. Of a piece the first
    /// chunk's counts.
    fn wish(&self, chunk: u64) -> Option<u32> {
        let wishes = self.parts.wishes.as_ref()?.as_slice();
        let wish = *wishes.get(usize::try_from(chunk).ok()?)?;
        u32::from(wish).checked_sub(1)
    }

    /// Notes which bank the chunks of a range should be copied to.
    pub(super) fn prefer(
        &mut self,
        offset: u64,
        bytes: u64,
        bank: Option<u32>,
    ) -> Result<(), Errno> {
        let geometry = &self.parts.geometry;
        let byte = match bank {
            None => 0,
            Some(bank) if bank < geometry.nr_banks => {
                u8::try_from(bank + 1).map_err(|_| Errno::EINVAL)?
            }
            Some(_) => return Err(Errno::EINVAL),
        };
        if !range_within(offset, bytes, geometry.size_bytes) {
            return Err(Errno::EFAULT);
        }
        let first = offset / geometry.chunk_bytes;
        let end = (offset + bytes).div_ceil(geometry.chunk_bytes);
        let wishes = self.parts.wishes.as_mut().ok_or(Errno::EINVAL)?;
        let range = [first, end].map(|chunk| usize::try_from(chunk).unwrap_or(usize::MAX));
        let chunks = wishes
            .as_mut_slice()
            .get_mut(range[0]..range[1].max(range[0]));
        chunks.ok_or(Errno::EFAULT)?.fill(byte);
        Ok(())
    }

    /// The change-log entries of the newest generation from the `first`-th on;
    /// how many there were room for. The log has room for two generations that
    /// write every chunk, so none has been written over.
    pub(super) fn copied(&self, first: u64, into: &mut [u64]) -> usize {
        let entries = self.log_before.saturating_add(first)..self.log_published;
        let mut nr = 0;
        for (word, entry) in into.iter_mut().zip(entries) {
            let offset = self.parts.geometry.log_entry_offset(entry);
            *word = self.parts.object.word(offset).load(Ordering::Relaxed);
            nr += 1;
        }
        nr
    }

    /// Makes a range writable, piece by piece.
    pub(super) fn touch(&mut self, offset: u64, bytes: u64) -> Result<(), Errno> {
        if !range_within(offset, bytes, self.size_bytes()) {
            return Err(Errno::EFAULT);
        }
        let piece = self.parts.geometry.chunk_bytes * self.parts.chunks_per_piece;
        let (first, end) = (offset / piece * piece, offset + bytes);
        let mut at = first;
        while at < end {
            self.copy_on_write(at)?;
            at += piece;
        }
        Ok(())
    }

    /// Publishes the present contents; the new generation.
    pub(super) fn publish(&mut self, step: u64, time_bits: u64) -> Result<u64, Refusal> {
        let start = memory::timestamp();
        let place = match self.find_place() {
            Err(Refusal::Exhausted) => {
                self.refuse();
                return Err(Refusal::Exhausted);
            }
            other => other?,
        };
        self.parts.window.freeze().map_err(Refusal::System)?;
        Ok(self.publish_at(place, start, step, time_bits))
    }

    /// A lease word for one more generation, made free if the policy says so;
    /// nothing is counted.
    pub(super) fn find_place(&mut self) -> Result<usize, Refusal> {
        if let Some(place) = self.admit() {
            return Ok(place);
        }
        match self.parts.policy {
            Policy::DiscardNewest => Err(Refusal::Exhausted),
            Policy::DiscardOldest => {
                self.discard_oldest();
                self.admit().ok_or(Refusal::Exhausted)
            }
            Policy::Block { .. } => Err(Refusal::Full),
        }
    }

    /// Whether [`Arena::find_place`] would find a word without the policy's
    /// help; nothing is taken back.
    pub(super) fn has_place(&self) -> bool {
        let retain = self.parts.lease.last();
        let retain = retain.map_or(1, |word| retain_count(word.load(Ordering::Relaxed)));
        let words = self.lease_words();
        has_room(
            words.get(..self.spare_banks).unwrap_or_default(),
            retain.into(),
        )
    }

    /// Makes up for a word from [`Arena::find_place`] that no publish follows:
    /// readers can lease the newest generation again. No frame of it was
    /// written meanwhile, because nobody faulted between the two.
    pub(super) fn give_back(&mut self, place: usize) {
        let newest = |word: &u64| Slot::decode(*word).held() == Some(self.generation);
        if self.generation == 0 || self.lease_words().iter().any(newest) {
            return;
        }
        self.held.push(self.generation);
        if let Some(word) = self.parts.lease.get(place) {
            let published = Slot::Published(self.generation).encode();
            word.store(published, Ordering::Release);
            ring(&self.parts.doorbell);
        }
    }

    /// Lets no store through any more; [`Arena::publish_at`] follows.
    pub(super) fn freeze(&self) -> Result<(), Refusal> {
        self.parts.window.freeze().map_err(Refusal::System)
    }

    /// Publishes the frozen contents, to a word from [`Arena::find_place`].
    pub(super) fn publish_at(
        &mut self,
        place: usize,
        start: u64,
        step: u64,
        time_bits: u64,
    ) -> u64 {
        let generation = self.generation + 1;
        let changed = self.log_head - self.log_published;
        let now = memory::timestamp();
        let spent = now.wrapping_sub(start);
        let unix = os::unix_ns();
        self.set_record(
            generation,
            [step, time_bits, now, unix, self.log_head, changed, spent],
        );
        self.generation = generation;
        (self.log_before, self.log_published) = (self.log_published, self.log_head);
        self.held.push(generation);
        if let Some(word) = self.parts.lease.get(place) {
            word.store(Slot::Published(generation).encode(), Ordering::Release);
        }
        self.header(offset_of!(ArenaHeader, latest_generation))
            .store(generation, Ordering::Release);
        ring(&self.parts.doorbell);
        generation
    }

    /// Writes the record of `generation`: its number is 0 meanwhile.
    fn set_record(&self, generation: u64, fields: [u64; 7]) {
        const BYTES: u64 = size_of::<GenerationRecord>() as u64;
        let at = GENERATIONS_OFFSET + generation % GENERATION_RECORDS as u64 * BYTES;
        let object = &self.parts.object;
        object.word(at).store(0, Ordering::Release);
        for (offset, field) in (at + 8..).step_by(8).zip(fields) {
            object.word(offset).store(field, Ordering::Release);
        }
        object.word(at).store(generation, Ordering::Release);
    }

    /// Takes back what may be taken back and finds a lease word for one more
    /// generation; refreshes the held set.
    fn admit(&mut self) -> Option<usize> {
        let words = self.lease_words();
        let retain = self.parts.lease.last()?.load(Ordering::Relaxed);
        let usable = words.get(..self.spare_banks)?;
        let mask = reclaimable(usable, u64::from(retain_count(retain)));
        self.held.clear();
        let mut place = None;
        for (index, &seen) in usable.iter().enumerate() {
            let may = mask & 1 << index != 0;
            let value = match self.parts.lease.get(index) {
                // A reader that leases it meanwhile wins.
                Some(word) if may => word
                    .compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire)
                    .map_or_else(|now| now, |_| 0),
                _ => seen,
            };
            if self.held.note(value) {
                place = Some(index);
            }
        }
        place
    }

    fn lease_words(&self) -> [u64; SLOTS] {
        let mut words = [0; SLOTS];
        for (word, from) in words.iter_mut().zip(self.parts.lease) {
            *word = from.load(Ordering::Acquire);
        }
        words
    }

    /// Takes the oldest held generation away from whoever holds it.
    fn discard_oldest(&mut self) {
        /// A broker moves each word a few times per publish at most.
        const ATTEMPTS: usize = 64;
        for _ in 0..ATTEMPTS {
            let words = self.lease_words();
            let usable = words.get(..self.spare_banks).unwrap_or_default();
            let Some(index) = oldest_held(usable) else {
                return;
            };
            let Some((word, &value)) = self.parts.lease.get(index).zip(words.get(index)) else {
                return;
            };
            let taken = word.compare_exchange(value, 0, Ordering::AcqRel, Ordering::Acquire);
            if taken.is_ok() {
                if matches!(Slot::decode(value), Slot::Leased(_)) {
                    self.discarded += 1;
                    self.header(offset_of!(ArenaHeader, discarded))
                        .store(self.discarded, Ordering::Release);
                }
                return;
            }
        }
    }

    /// Counts a publish that was given up.
    pub(super) fn refuse(&mut self) {
        self.dropped += 1;
        self.header(offset_of!(ArenaHeader, dropped))
            .store(self.dropped, Ordering::Release);
    }

    /// Counts a publish that waits for a reader.
    pub(super) fn note_wait(&mut self) {
        self.waited += 1;
        self.header(offset_of!(ArenaHeader, waited))
            .store(self.waited, Ordering::Release);
    }

    /// Readers attached, as the broker says.
    pub(super) fn readers(&self) -> u32 {
        let word = self.parts.lease.last();
        word.map_or(0, |word| retain_readers(word.load(Ordering::Relaxed)))
    }

    /// Adds a checked variable or replaces the one of the same name.
    pub(super) fn set_variable(&mut self, var: &VarDesc) -> Result<u32, Errno> {
        if var.check(self.size_bytes()).is_err() {
            return Err(Errno::EINVAL);
        }
        let mut index = self.nr_vars;
        for n in 0..self.nr_vars {
            let mut name = [0; 120];
            self.parts.object.read(var_offset(n), &mut name)?;
            if name == var.name {
                index = n;
            }
        }
        if usize::try_from(index).map_or(true, |index| index >= MAX_VARS) {
            return Err(Errno::ENOSPC);
        }
        self.parts.object.write(var_offset(index), var.as_bytes())?;
        self.nr_vars = self.nr_vars.max(index + 1);
        let count = offset_of!(ArenaHeader, nr_vars) as u64;
        self.parts
            .object
            .write(count, &self.nr_vars.to_ne_bytes())?;
        Ok(index)
    }

    /// Counters.
    pub(super) fn stats(&self) -> ArenaStats {
        let held = |word: &&u64| Slot::decode(**word).held().is_some();
        ArenaStats {
            generation: self.generation,
            dropped: self.dropped,
            discarded: self.discarded,
            waited: self.waited,
            cow_faults: self.log_head,
            held: self.lease_words().iter().filter(held).count() as u64,
            segid: self.parts.segid,
            backing_page_bytes: self.parts.page_bytes,
        }
    }
}

/// Where variable `n` is described.
fn var_offset(n: u32) -> u64 {
    VARS_OFFSET + u64::from(n) * size_of::<VarDesc>() as u64
}
