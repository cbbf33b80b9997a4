//! Copy-on-write arenas of the running program.
//!
//! Called by the arena system calls, by the fault path and at the program's
//! end. Decisions (which bank, which slot, what to replay) are
//! `enclave-core/arena`; the shared layout is `enclave-abi/arena`.
//!
//! Each arena owns one top-level entry (512 GiB of addresses) and two complete
//! trees below it. *Live* is in use; *next* maps the same frames, all
//! read-only. A publish stores one top-level entry: next becomes live and the
//! retired tree is brought up to date (rights taken from the chunks that were
//! written) during the next generation's faults.

mod arena;
mod bells;
mod object;
mod placement;
pub(crate) mod tables;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use enclave_abi::addr::{LARGE_PAGE_SIZE, is_aligned};
use enclave_abi::arena::Geometry;
use enclave_abi::layout::{ARENA_WINDOW, ARENA_WINDOW_END};
use enclave_abi::lease::{MAX_ARENAS, SLOTS};
use enclave_abi::queue::Call;
use enclave_abi::syscall::{POLICY_BLOCK, POLICY_DISCARD_NEWEST, POLICY_DISCARD_OLDEST};
use enclave_core::arena::Placement;
use spin::Mutex;

pub(crate) use arena::Arena;

use crate::arch::paging;
use crate::{host, phys};

/// Bytes of address space of one arena: one top-level entry.
pub(crate) const ARENA_SPAN: u64 = 1 << 39;
/// Virtual address of arena slot 0.
const ARENA_BASE: u64 = 0x2000_0000_0000;

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
    /// Pool exhausted, and the policy says to wait.
    Full,
    /// The host gave an object we cannot use.
    BadObject,
    /// Variable table full.
    VarsFull,
    /// Ask the host for the bells first, and repeat.
    Bells,
}

/// What happens when a publish finds the pool exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// It is refused.
    DiscardNewest,
    /// The oldest generation goes.
    DiscardOldest,
    /// It waits for a reader, so many milliseconds at most; 0 = no limit.
    Block {
        /// The limit.
        timeout_ms: u32,
    },
}

impl Policy {
    /// The policy a program asks for; `None` if there is no such.
    pub(crate) fn new(number: u32, timeout_ms: u32) -> Option<Self> {
        match number {
            POLICY_DISCARD_NEWEST => Some(Self::DiscardNewest),
            POLICY_DISCARD_OLDEST => Some(Self::DiscardOldest),
            POLICY_BLOCK => Some(Self::Block { timeout_ms }),
            _ => None,
        }
    }

    /// Its number.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::DiscardNewest => POLICY_DISCARD_NEWEST,
            Self::DiscardOldest => POLICY_DISCARD_OLDEST,
            Self::Block { .. } => POLICY_BLOCK,
        }
    }
}

/// What a program decided for its arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// When the pool is exhausted.
    pub(crate) policy: Policy,
    /// Where copies go.
    pub(crate) placement: Placement,
}

/// The virtual address of arena `slot`.
pub(crate) fn address(slot: usize) -> u64 {
    ARENA_BASE + slot as u64 * ARENA_SPAN
}

/// The slot whose span contains `va`.
fn slot_of(va: u64) -> Option<usize> {
    // An address below the first arena wraps to a slot beyond the last.
    let slot = va.wrapping_sub(ARENA_BASE) / ARENA_SPAN;
    (slot < MAX_ARENAS as u64).then_some(slot as usize)
}

/// Slots of processes that are put away, as bits.
static KEPT: AtomicU64 = AtomicU64::new(0);
const _: () = assert!(MAX_ARENAS <= 64);

/// The arenas of a process that is put away, with their slots.
pub(crate) type Kept = Vec<(usize, Arena)>;

/// Takes all arenas out; their slots stay theirs.
pub(crate) fn put_away() -> Kept {
    let mut arenas = ARENAS.lock();
    let slots = arenas.iter_mut().enumerate();
    let kept: Kept = slots
        .filter_map(|(slot, place)| Some((slot, place.take()?)))
        .collect();
    for (slot, _) in &kept {
        KEPT.fetch_or(1 << slot, Ordering::Relaxed);
    }
    kept
}

/// Puts the arenas back of the process that goes on.
pub(crate) fn take_up(kept: Kept) {
    let mut arenas = ARENAS.lock();
    for (slot, arena) in kept {
        KEPT.fetch_and(!(1 << slot), Ordering::Relaxed);
        if let Some(place) = arenas.get_mut(slot) {
            *place = Some(arena);
        }
    }
}

/// The first slot without an arena of any process.
pub(crate) fn free_slot() -> Option<usize> {
    let kept = KEPT.load(Ordering::Relaxed);
    let is_free = |(slot, place): (usize, &Option<Arena>)| place.is_none() && kept >> slot & 1 == 0;
    let arenas = ARENAS.lock();
    let mut slots = arenas.iter().enumerate();
    slots.find(|&one| is_free(one)).map(|(slot, _)| slot)
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

/// Publishes one state of several arenas (a bit of `set` per slot): all of them
/// or none. Returns how many there are.
///
/// A state that is not published takes nothing from readers, not even the
/// generation that nobody has leased yet.
pub(crate) fn publish_set(set: u64, step: u64, time_bits: u64) -> Result<u64, ArenaError> {
    let mut arenas = ARENAS.lock();
    let mut places = [None; MAX_ARENAS];
    let wanted = |slot: usize| set >> slot & 1 == 1;
    if let Err(error) = find_places(&mut arenas, &mut places, wanted) {
        for (arena, place) in arenas.iter_mut().zip(places) {
            if let (Some(arena), Some(place)) = (arena, place) {
                arena.give_back(place);
            }
        }
        if error == ArenaError::Exhausted {
            refuse_all(&mut arenas, wanted);
        }
        return Err(error);
    }
    let mut published = 0;
    for (arena, place) in arenas.iter_mut().zip(places) {
        if let (Some(arena), Some(place)) = (arena, place) {
            arena.publish_at(place, step, time_bits);
            published += 1;
        }
    }
    Ok(published)
}

/// A lease word for each arena that is wanted; after an error some have one.
fn find_places(
    arenas: &mut [Option<Arena>; MAX_ARENAS],
    places: &mut [Option<&'static AtomicU64>; MAX_ARENAS],
    wanted: impl Fn(usize) -> bool,
) -> Result<(), ArenaError> {
    for (_, arena) in arenas.iter().enumerate().filter(|&(slot, _)| wanted(slot)) {
        let arena = arena.as_ref().ok_or(ArenaError::NoArena)?;
        match arena.policy {
            Policy::DiscardNewest if !arena.has_place() => return Err(ArenaError::Exhausted),
            Policy::Block { .. } if !arena.has_place() => return Err(ArenaError::Full),
            _ => {}
        }
    }
    // Those that may refuse first: a reader may have been faster.
    for discards in [false, true] {
        for (slot, (arena, place)) in arenas.iter_mut().zip(places.iter_mut()).enumerate() {
            match arena {
                Some(arena)
                    if wanted(slot) && (arena.policy == Policy::DiscardOldest) == discards =>
                {
                    *place = Some(arena.find_place()?);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Counts a state that none of the arenas publishes.
fn refuse_all(arenas: &mut [Option<Arena>; MAX_ARENAS], wanted: impl Fn(usize) -> bool) {
    for (slot, arena) in arenas.iter_mut().enumerate() {
        if let Some(arena) = arena.as_mut().filter(|_| wanted(slot)) {
            arena.refuse();
        }
    }
}

/// Counts the wait, if it is a new one, of those arenas of a set that wait for
/// readers; the shortest of their time limits in milliseconds, 0 when there is
/// none.
pub(crate) fn note_wait_of_set(set: u64, is_new: bool) -> u32 {
    let mut least = 0;
    for (slot, arena) in ARENAS.lock().iter_mut().enumerate() {
        let Some(arena) = arena.as_mut().filter(|_| set >> slot & 1 == 1) else {
            continue;
        };
        if let Policy::Block { timeout_ms } = arena.policy {
            if is_new {
                arena.note_wait();
            }
            least = match (least, timeout_ms) {
                (0, limit) | (limit, 0) => limit,
                (one, other) => one.min(other),
            };
        }
    }
    least
}

/// Counts a set that was given up after its wait.
pub(crate) fn refuse_set(set: u64) {
    refuse_all(&mut ARENAS.lock(), |slot| set >> slot & 1 == 1);
}

/// Takes the bells that the host has for the arenas of `set`, where they have
/// changed.
pub(crate) fn take_bells(set: u64) {
    for slot in (0..MAX_ARENAS).filter(|slot| set >> slot & 1 == 1) {
        let must = with(slot as u64, |arena| Ok(arena.must_ask_for_bells()));
        if must == Ok(true) {
            let [result, mask, ..] = host::call(Call::ArenaBells, [slot as u64, 0, 0, 0, 0, 0, 0]);
            // Without an answer the broker goes on to tell everybody.
            let mask = if result == 0 { mask } else { 0 };
            let _ = with(slot as u64, |arena| {
                arena.bells.set(mask);
                Ok(())
            });
        }
    }
}

/// The arena that contains `va`: (slot, payload bytes).
pub(crate) fn find(va: u64) -> Option<(usize, u64)> {
    let slot = slot_of(va)?;
    let size = ARENAS.lock().get(slot)?.as_ref()?.size_bytes();
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
    rules: Rules,
) -> Result<(), ArenaError> {
    let end = base
        .checked_add(geometry.object_bytes)
        .ok_or(ArenaError::BadObject)?;
    if base < ARENA_WINDOW || end > ARENA_WINDOW_END || !is_aligned(base, LARGE_PAGE_SIZE) {
        return Err(ArenaError::BadObject);
    }
    paging::map_direct(base, geometry.object_bytes).map_err(|_| ArenaError::NoMemory)?;
    // The word behind them is the broker's, which has set it by now.
    for word in phys::lease_words(slot).into_iter().flatten().take(SLOTS) {
        word.store(0, Ordering::Release);
    }
    let Some(arena) = Arena::new(slot, geometry, base, segid, backing_page_bytes, name, rules)
    else {
        paging::unmap_direct(base, geometry.object_bytes);
        return Err(ArenaError::NoMemory);
    };
    arena.show();
    if let Some(place) = ARENAS.lock().get_mut(slot) {
        *place = Some(arena);
    }
    Ok(())
}

/// A write to a read-only page at `va`: resolved if it is an arena's.
#[inline]
pub(crate) fn copy_on_write(va: u64) -> bool {
    let Some(slot) = slot_of(va) else {
        return false;
    };
    match ARENAS.lock().get_mut(slot) {
        Some(Some(arena)) => arena.copy_on_write::<false>(va & (ARENA_SPAN - 1)),
        _ => false,
    }
}

/// The same while other cores may run the program.
pub(crate) fn copy_on_write_shared(va: u64) -> bool {
    let Some(slot) = slot_of(va) else {
        return false;
    };
    match ARENAS.lock().get_mut(slot) {
        Some(Some(arena)) => arena.copy_on_write::<true>(va & (ARENA_SPAN - 1)),
        _ => false,
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
    arena.hide();
    Ok(())
}

/// Ends every arena; `reason` as in [`Call::ArenaEnd`].
pub(crate) fn end_all(reason: u64) {
    for slot in 0..MAX_ARENAS {
        if remove(slot).is_ok() {
            // The program is gone; nobody is left to be told of an error.
            let _ = host::call(Call::ArenaEnd, [slot as u64, reason, 0, 0, 0, 0, 0]);
        }
    }
}

/// Copy-on-write faults of the arenas there are now.
pub(crate) fn total_faults() -> u64 {
    ARENAS.lock().iter().flatten().map(Arena::cow_faults).sum()
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
