//! One arena: the fault path and the publish path.
//!
//! Both are counted instruction by instruction (`ci/counts.json`): words are
//! reached through [`super::object`], nothing is formatted or allocated, and
//! what seldom happens is out of line.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::ABI_VERSION;
use enclave_abi::addr::range_within;
use enclave_abi::arena::{
    ARENA_MAGIC, ArenaHeader, Geometry, MAX_VARS, VARS_OFFSET, VarDesc, state,
};
use enclave_abi::lease::{
    SLOTS, Slot, WORDS_PER_ARENA, bells, retain_and_flags, retain_count, retain_readers,
};
use enclave_abi::queue::doorbell;
use enclave_core::arena::{CatchUp, Held, Placement, has_room, oldest_held, reclaimable};
use enclave_core::errno::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::bells::Bells;
use super::object::{Chunk, Object};
use super::placement::Placing;
use super::tables::{OUT_OF_TURN, Twins, bank_bits, bank_of, leaf_bits};
use super::{ArenaError, Policy, Rules, address};
use crate::arch::{self, paging};
use crate::clock;
use crate::phys::{self, Doorbell, Words};

/// An arena of the running program.
#[derive(Debug)]
pub(crate) struct Arena {
    slot: usize,
    geometry: Geometry,
    /// Guest-physical address of the object (control area first).
    base: u64,
    object: Object,
    twins: Twins,
    /// Which tree is live, 0 or 1.
    live: usize,
    /// Leaf bits of a frozen chunk.
    frozen: u64,
    /// Where the top-level entry is.
    top_slot: Words,
    /// The lease words, the bell that readers wait for, and how many
    /// generations may be held.
    pub(super) lease: &'static [AtomicU64; WORDS_PER_ARENA],
    pub(super) bell: Doorbell,
    /// Bells of importers.
    pub(super) bells: Bells,
    spare_banks: usize,
    /// XEMEM segment.
    pub(crate) segid: u64,
    /// Host page behind it.
    pub(crate) backing_page_bytes: u64,
    /// Newest generation.
    pub(crate) generation: u64,
    /// Generations that pin frames, as of the last publish: a superset of the
    /// truth until the next one, because only we add.
    held: Held,
    catch_up: CatchUp,
    /// Leaves of the retired tree that still carry a write right.
    owed: u64,
    /// Change-log entries written.
    log_head: u64,
    /// `log_head` at the last publish.
    log_published: u64,
    /// What happens when the pool is exhausted.
    pub(crate) policy: Policy,
    placing: Placing,
    /// Publishes refused.
    pub(crate) dropped: u64,
    /// Generations taken away from their readers.
    pub(crate) discarded: u64,
    /// Publishes that waited for a reader.
    pub(crate) waited: u64,
    /// First writes before the first publish, which copied nothing.
    uncopied: u64,
    nr_vars: u32,
}

impl Arena {
    /// Sets the arena up over the object at `base`; nothing is mapped yet.
    pub(super) fn new(
        slot: usize,
        geometry: Geometry,
        base: u64,
        segid: u64,
        backing_page_bytes: u64,
        name: [u8; 64],
        rules: Rules,
    ) -> Option<Self> {
        // Chunks whose banks are never used in turn start out of it.
        let first_bits = match rules.placement {
            Placement::InTurn => leaf_bits(&geometry),
            _ => leaf_bits(&geometry) | OUT_OF_TURN,
        };
        let placing = Placing::new(rules.placement, &geometry)?;
        let Some(twins) = Twins::new(&geometry, base, first_bits) else {
            placing.free();
            return None;
        };
        let arena = Self {
            slot,
            geometry,
            base,
            object: Object::new(&geometry, base, &twins),
            twins,
            live: 0,
            frozen: leaf_bits(&geometry),
            top_slot: Words::new(paging::top_slot(address(slot)), 1),
            lease: phys::lease_words(slot)?,
            bell: Doorbell::new(doorbell::ARENA_BASE + 8 * slot as u64),
            bells: Bells::new(slot),
            spare_banks: (geometry.nr_banks as usize).checked_sub(1)?.min(SLOTS),
            segid,
            backing_page_bytes,
            generation: 0,
            held: Held::default(),
            catch_up: CatchUp::default(),
            owed: 0,
            log_head: 0,
            log_published: 0,
            policy: rules.policy,
            placing,
            dropped: 0,
            discarded: 0,
            waited: 0,
            uncopied: 0,
            nr_vars: 0,
        };
        arena.write_control(name);
        Some(arena)
    }

    /// Puts the live tree into the program's address space.
    pub(super) fn show(&self) {
        self.top_slot.set(0, self.twins.trees[self.live & 1].entry);
        arch::flush_tlb();
    }

    /// Takes the arena out of the address space and marks it as ended.
    pub(super) fn hide(self) {
        let ended = self.base + offset_of!(ArenaHeader, state) as u64;
        phys::atomic32(ended).store(state::ENDED, Ordering::Release);
        self.bell.ring();
        self.top_slot.set(0, 0);
        paging::unmap_direct(self.base, self.geometry.object_bytes);
        arch::flush_tlb();
        self.twins.free();
        self.placing.free();
    }

    /// Payload bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.geometry.size_bytes
    }

    /// Copy-on-write faults so far.
    pub(crate) fn cow_faults(&self) -> u64 {
        self.log_head - self.uncopied
    }

    /// A write to a frozen chunk at `offset` bytes: gives it its own frame.
    /// `false` when the offset is beyond the arena.
    ///
    /// Order: copy first, then the live leaf (another thread reads the old
    /// frame until the new one is whole). `SHARED`: other cores run the program.
    #[inline]
    pub(super) fn copy_on_write<const SHARED: bool>(&mut self, offset: u64) -> bool {
        let Some(chunk) = self.object.chunk(offset) else {
            return false;
        };
        let leaf = self.object.leaf(self.live, chunk);
        if leaf & (paging::W | OUT_OF_TURN) != 0 || self.generation == 0 {
            return self.give_otherwise::<SHARED>(chunk, leaf);
        }
        let birth = self.generation.wrapping_add(1);
        let Some((fresh, bank)) = self
            .object
            .take_turn(chunk, leaf, self.held.oldest(), birth)
        else {
            return self.give_otherwise::<SHARED>(chunk, leaf);
        };
        self.install::<SHARED>(chunk, fresh, bank);
        true
    }

    /// Makes a chunk's new frame live and writable, and the frozen twin's too.
    /// Nobody may write to it as long as another core reads the old one: so it is
    /// shown read-only first, while both hold the same.
    #[inline]
    fn install<const SHARED: bool>(&mut self, chunk: Chunk, frozen: u64, bank: u64) {
        self.append_log(chunk, bank);
        if SHARED {
            self.object.set_leaf(self.live, chunk, frozen);
            arch::flush_tlb();
        }
        self.object.set_leaf(self.live, chunk, frozen | paging::W);
        let stale = self.object.leaf(self.live ^ 1, chunk);
        self.object.set_leaf(self.live ^ 1, chunk, frozen);
        if stale & paging::W != 0 {
            self.owed = self.owed.wrapping_sub(1);
        } else if self.owed != 0 {
            self.replay(1);
        }
    }

    /// The unusual ways: nothing published yet, another core was first, or the
    /// next bank in turn is still needed.
    #[cold]
    fn give_otherwise<const SHARED: bool>(&mut self, chunk: Chunk, leaf: u64) -> bool {
        if leaf & paging::W != 0 {
            return true;
        }
        if self.generation == 0 {
            self.object.set_leaf(self.live, chunk, leaf | paging::W);
            self.append_log(chunk, 0);
            self.uncopied += 1;
            let uncopied = self
                .object
                .header::<{ offset_of!(ArenaHeader, uncopied) }>();
            uncopied.store(self.uncopied, Ordering::Release);
            return true;
        }
        let births = self.object.births(chunk);
        let birth = |bank| self.object.birth(births, bank);
        let (banks, current) = (self.object.nr_banks(), bank_of(leaf));
        let chosen = self
            .placing
            .choose(chunk.number(), birth, banks, current, &self.held);
        let target = chosen.and_then(|bank| self.object.bank(bank));
        let (Some(from), Some(to)) = (self.object.leaf_bank(leaf), target) else {
            return false;
        };
        // In this order: see `Object::take_turn`.
        self.object
            .set_birth(births, to, self.generation.wrapping_add(1));
        let address = self.object.copy_frame(chunk, from, to);
        let frozen = address | self.frozen | bank_bits(to.number()) | OUT_OF_TURN;
        self.install::<SHARED>(chunk, frozen, u64::from(to.number()));
        true
    }

    #[inline]
    fn append_log(&mut self, chunk: Chunk, bank: u64) {
        self.object
            .set_log(self.log_head, chunk.number() << 8 | bank);
        self.log_head = self.log_head.wrapping_add(1);
        self.object
            .header::<{ offset_of!(ArenaHeader, log_head) }>()
            .store(self.log_head, Ordering::Release);
    }

    /// Takes the write right from up to `most` chunks of the retired tree that
    /// the generation before wrote. Each fault settles at least one such chunk
    /// (its own, or one by this), so a generation that writes as much as the
    /// one before leaves nothing to do for the next publish.
    #[cold]
    fn replay(&mut self, most: u64) {
        let mut left = most.min(self.owed);
        while left != 0 {
            let Some(entry) = self.catch_up.take() else {
                self.owed = 0;
                return;
            };
            let Some(chunk) = self.object.logged_chunk(entry) else {
                continue;
            };
            let leaf = self.object.leaf(self.live ^ 1, chunk);
            if leaf & paging::W != 0 {
                self.object
                    .set_leaf(self.live ^ 1, chunk, leaf & !paging::W);
                self.owed -= 1;
                left -= 1;
            }
        }
    }

    /// Freezes the current contents as a new generation: constant time.
    pub(crate) fn publish(&mut self, step: u64, time_bits: u64) -> Result<u64, ArenaError> {
        let start = arch::rdtsc();
        let Some(place) = self.admit() else {
            return self.publish_otherwise(start, step, time_bits);
        };
        let generation = self.publish_to(place, start, step, time_bits);
        self.bell.ring();
        Ok(generation)
    }

    /// The publish itself, with a lease word for it; who waits is told by the
    /// caller.
    #[inline(always)]
    fn publish_to(&mut self, place: &AtomicU64, start: u64, step: u64, time_bits: u64) -> u64 {
        if self.owed != 0 {
            self.replay(u64::MAX);
        }
        let generation = self.generation.wrapping_add(1);
        let changed = self.log_head.wrapping_sub(self.log_published);
        self.live ^= 1;
        self.top_slot.set(0, self.twins.trees[self.live & 1].entry);
        arch::flush_upper();
        self.catch_up = CatchUp::new(self.log_published, self.log_head);
        self.owed = changed;
        let now = arch::rdtsc();
        let (unix, spent) = (clock::unix_ns_at(now), now.wrapping_sub(start));
        let record = [step, time_bits, now, unix, self.log_head, changed, spent];
        self.object.set_record(generation, record);
        self.generation = generation;
        self.log_published = self.log_head;
        self.held.push(generation);
        place.store(Slot::Published(generation).encode(), Ordering::Release);
        let latest = self
            .object
            .header::<{ offset_of!(ArenaHeader, latest_generation) }>();
        latest.store(generation, Ordering::Release);
        generation
    }

    /// The pool is exhausted, and the policy says what then; or importers have
    /// bells.
    #[cold]
    fn publish_otherwise(
        &mut self,
        start: u64,
        step: u64,
        time_bits: u64,
    ) -> Result<u64, ArenaError> {
        if self.must_ask_for_bells() {
            return Err(ArenaError::Bells);
        }
        let place = match self.admit_whatever_rings() {
            Some(place) => place,
            None => match self.make_room()? {
                Some(place) => place,
                None => return Err(self.refuse()),
            },
        };
        let generation = self.publish_to(place, start, step, time_bits);
        self.ring_all();
        Ok(generation)
    }

    /// A lease word that the policy gives an exhausted pool.
    fn make_room(&mut self) -> Result<Option<&'static AtomicU64>, ArenaError> {
        match self.policy {
            Policy::DiscardNewest => Ok(None),
            Policy::DiscardOldest => {
                self.discard_oldest();
                Ok(self.admit_whatever_rings())
            }
            Policy::Block { .. } => Err(ArenaError::Full),
        }
    }

    /// A lease word for a publish that follows in any case; nothing is counted.
    pub(super) fn find_place(&mut self) -> Result<&'static AtomicU64, ArenaError> {
        match self.admit_whatever_rings() {
            Some(place) => Ok(place),
            None => self.make_room()?.ok_or(ArenaError::Exhausted),
        }
    }

    /// Whether [`Arena::find_place`] would find a word without the policy's
    /// help; nothing is taken back.
    pub(super) fn has_place(&self) -> bool {
        let retain = retain_count(self.lease[SLOTS].load(Ordering::Relaxed));
        let words = self.lease_now();
        has_room(
            words.get(..self.spare_banks).unwrap_or_default(),
            retain.into(),
        )
    }

    /// Makes up for a word from [`Arena::find_place`] that no publish follows:
    /// readers can lease the newest generation again. No frame of it was
    /// written meanwhile, because nobody stored between the two.
    pub(super) fn give_back(&mut self, place: &AtomicU64) {
        let newest = |word: &u64| Slot::decode(*word).held() == Some(self.generation);
        if self.generation != 0 && !self.lease_now().iter().any(newest) {
            self.held.push(self.generation);
            place.store(Slot::Published(self.generation).encode(), Ordering::Release);
            self.bell.ring();
        }
    }

    fn lease_now(&self) -> [u64; SLOTS] {
        let mut words = [0; SLOTS];
        for (word, from) in words.iter_mut().zip(self.lease) {
            *word = from.load(Ordering::Acquire);
        }
        words
    }

    /// Publishes to a word that [`Arena::find_place`] gave.
    pub(super) fn publish_at(&mut self, place: &AtomicU64, step: u64, time_bits: u64) {
        self.publish_to(place, arch::rdtsc(), step, time_bits);
        self.ring_all();
    }

    /// Counts a publish that was given up for want of room.
    #[cold]
    pub(crate) fn refuse(&mut self) -> ArenaError {
        self.dropped += 1;
        let dropped = self.object.header::<{ offset_of!(ArenaHeader, dropped) }>();
        dropped.store(self.dropped, Ordering::Release);
        ArenaError::Exhausted
    }

    /// Counts a publish that waits for a reader.
    pub(crate) fn note_wait(&mut self) {
        self.waited += 1;
        let waited = self.object.header::<{ offset_of!(ArenaHeader, waited) }>();
        waited.store(self.waited, Ordering::Release);
    }

    /// Takes the oldest held generation away from whoever holds it.
    fn discard_oldest(&mut self) {
        /// A broker moves each word a few times per publish at most.
        const ATTEMPTS: usize = 64;
        for _ in 0..ATTEMPTS {
            let words = self.lease_now();
            let oldest = oldest_held(words.get(..self.spare_banks).unwrap_or_default());
            let Some((word, value)) = oldest.and_then(|n| self.lease.get(n).zip(words.get(n)))
            else {
                return;
            };
            let taken = word.compare_exchange(*value, 0, Ordering::AcqRel, Ordering::Acquire);
            if taken.is_ok() {
                if matches!(Slot::decode(*value), Slot::Leased(_)) {
                    self.note_discarded();
                }
                return;
            }
        }
    }

    fn note_discarded(&mut self) {
        self.discarded += 1;
        let discarded = self
            .object
            .header::<{ offset_of!(ArenaHeader, discarded) }>();
        discarded.store(self.discarded, Ordering::Release);
    }

    /// Readers attached, as the broker says.
    pub(crate) fn readers(&self) -> u32 {
        retain_readers(self.lease[SLOTS].load(Ordering::Relaxed))
    }

    /// Takes back what may be taken back and finds a lease word for one more
    /// generation; refreshes the held set. Held generations stay below the
    /// number of banks, so only so many words are in use. `None` also where
    /// importers have bells.
    #[inline]
    fn admit(&mut self) -> Option<&'static AtomicU64> {
        let told = retain_and_flags(self.lease[SLOTS].load(Ordering::Relaxed));
        let usable = self.lease.get(..self.spare_banks)?;
        let mask = if told > 1 {
            reclaimable_now(usable, told)?
        } else {
            u32::MAX
        };
        self.find_word(usable, mask)
    }

    /// As [`Arena::admit`], bells or not.
    fn admit_whatever_rings(&mut self) -> Option<&'static AtomicU64> {
        let retain = retain_count(self.lease[SLOTS].load(Ordering::Relaxed));
        let usable = self.lease.get(..self.spare_banks)?;
        let mask = match retain {
            0 | 1 => u32::MAX,
            retain => reclaimable_now(usable, retain)?,
        };
        self.find_word(usable, mask)
    }

    /// Takes back the words of `mask` that may be, and finds a free one.
    #[inline(always)]
    fn find_word(&mut self, usable: &'static [AtomicU64], mask: u32) -> Option<&'static AtomicU64> {
        self.held.clear();
        let (mut place, mut bit) = (None, 1);
        for word in usable {
            let value = match word.load(Ordering::Acquire) {
                0 => 0,
                value => self.take_back(word, value, mask & bit != 0),
            };
            if self.held.note(value) {
                place = Some(word);
            }
            bit = bit.wrapping_shl(1);
        }
        place
    }

    /// Takes a word back if it is published and `may`; returns what it holds
    /// then. A reader that leased it meanwhile wins.
    #[inline]
    fn take_back(&self, word: &AtomicU64, value: u64, may: bool) -> u64 {
        match Slot::decode(value) {
            Slot::Empty => 0,
            Slot::Published(_) if may => word
                .compare_exchange(value, 0, Ordering::AcqRel, Ordering::Acquire)
                .map_or_else(|now| now, |_| 0),
            _ => value,
        }
    }

    /// Writes header and births of a fresh object.
    fn write_control(&self, name: [u8; 64]) {
        let births = self.geometry.nr_chunks * u64::from(self.geometry.nr_banks);
        let words = Words::new(self.base + self.geometry.births_offset, births);
        for chunk in 0..self.geometry.nr_chunks {
            words.set(chunk * u64::from(self.geometry.nr_banks), 1);
        }
        let mut header = ArenaHeader::new_zeroed();
        header.magic = ARENA_MAGIC;
        header.abi_version = ABI_VERSION;
        header.state = state::LIVE;
        header.size_bytes = self.geometry.size_bytes;
        header.chunk_bytes = self.geometry.chunk_bytes;
        header.nr_banks = self.geometry.nr_banks;
        header.producer_base = address(self.slot);
        header.policy = self.policy.number();
        header.placement = self.placing.placement.number();
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
        if index as usize >= MAX_VARS {
            return Err(ArenaError::VarsFull);
        }
        phys::write_bytes(at(index), var.as_bytes());
        self.nr_vars = self.nr_vars.max(index + 1);
        let count = self.base + offset_of!(ArenaHeader, nr_vars) as u64;
        phys::atomic32(count).store(self.nr_vars, Ordering::Release);
        Ok(u64::from(index))
    }

    /// Notes which bank the chunks of a range should be copied to; `None` takes
    /// the wish back. EINVAL and EFAULT as the call says.
    pub(crate) fn prefer(&self, offset: u64, bytes: u64, bank: Option<u32>) -> Result<(), Errno> {
        if bank.is_some_and(|bank| bank >= self.geometry.nr_banks) {
            return Err(Errno::EINVAL);
        }
        if !range_within(offset, bytes, self.geometry.size_bytes) {
            return Err(Errno::EFAULT);
        }
        let end = (offset + bytes).div_ceil(self.geometry.chunk_bytes);
        let noted = self
            .placing
            .prefer(offset / self.geometry.chunk_bytes, end, bank);
        if noted { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The change-log entries of the newest generation from the `first`-th on;
    /// how many there were room for.
    ///
    /// None has been written over: the log has room for two generations that
    /// write every chunk.
    pub(crate) fn copied(&self, first: u64, into: &mut [u64]) -> usize {
        let copied = self.object.chunks_copied(self.generation);
        // Where the program can write the record it may say anything.
        let copied = copied.min(self.geometry.nr_chunks);
        let from = self.log_published.saturating_sub(copied);
        let entries = from.saturating_add(first)..self.log_published;
        let mut nr = 0;
        for (word, entry) in into.iter_mut().zip(entries) {
            *word = self.object.log(entry);
            nr += 1;
        }
        nr
    }

    /// Generations that are held now.
    pub(crate) fn held_now(&self) -> u64 {
        let held = |word: &&AtomicU64| Slot::decode(word.load(Ordering::Relaxed)).held().is_some();
        self.lease.iter().take(SLOTS).filter(held).count() as u64
    }
}

/// Which words may be taken back when more than the newest generation is to be
/// retained; `None` if `told` says that there is more to a publish than that.
#[cold]
fn reclaimable_now(shared: &[AtomicU64], told: u32) -> Option<u32> {
    if told & bells::ANY != 0 {
        return None;
    }
    let retain = u64::from(told);
    let mut words = [0; SLOTS];
    for (word, from) in words.iter_mut().zip(shared) {
        *word = from.load(Ordering::Acquire);
    }
    Some(reclaimable(&words, retain))
}

const _: () = assert!(SLOTS + 1 == WORDS_PER_ARENA);
