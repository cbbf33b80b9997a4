//! The Linux backend: arenas of an ordinary process, without KVM and root.
//!
//! Called by [`crate::calls`] where no enclave kernel is below. The process does
//! itself what the kernel would do for it, and registers with the broker as a
//! VMM does; readers see no difference.
//!
//! ```text
//!  program ── store ──► window (read-only since the publish)
//!                          │ SIGSEGV
//!                          ▼
//!        fault ── arena ── memory:  copy to another bank, show that bank
//!                   ▲
//!  calls ── mod ────┴── broker: make, name, end;   place: find or start it
//! ```
//!
//! Promises: the same as the kernel's. Any thread may call any function; stores
//! of other threads while one publishes go to that generation or to the next,
//! never to a frozen frame. Nothing here allocates, or needs a C library.
//!
//! A forked child has no arenas: their memory is not mapped there, the parent's
//! publishes go on, and the child may make arenas of its own. Without a broker
//! (it was killed) a publish looks for another one, or starts it, and the arenas
//! go on there; as long as there is none, it answers ENOTCONN and is counted as
//! dropped. The program's memory stays as it is.
//!
//! Does not do: stores by the kernel for the program. `read(2)` into frozen
//! arena memory is EFAULT; [`touch`] makes it writable before.

mod arena;
mod at_exit;
mod broker;
mod fault;
mod lock;
mod memory;
mod os;
mod place;

use crate::errno::Errno;
use crate::heap::Pages;
use arena::{Arena, Parts, Policy, Refusal};
use broker::Connection;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use enclave_abi::arena::{Geometry, NAME_BYTES, VarDesc, name_field, text};
use enclave_abi::lease::{MAX_ARENAS, WORDS_PER_ARENA};
use enclave_abi::syscall::{ArenaArgs, ArenaStats};
use enclave_arena::Placement;
use lock::Lock;
use memory::{LeaseWords, Object, Way, Window};
use place::Digits;

/// Where an enclave's kernel places arena 0, and the distance to the next:
/// pointers are the same here if the addresses are free.
const ARENA_BASE: u64 = 0x2000_0000_0000;
const ARENA_SPAN: u64 = 1 << 39;
/// Mappings that all arenas together may come to need. A process has 65,530 by
/// default (`vm.max_map_count`), and is not ours alone.
const MOST_MAPPINGS: u64 = 48 << 10;
/// Of what is left of them, an arena gets one part in so many.
const SHARE: u64 = 3;

/// The connection and what belongs to it.
struct Link {
    connection: Connection,
    lease: &'static [AtomicU64],
}

/// The arenas, by slot.
type Arenas = [Option<Arena>; MAX_ARENAS];

static LINK: Lock<Option<Link>> = Lock::new(None);
static ARENAS: Lock<Arenas> = Lock::new([const { None }; MAX_ARENAS]);
/// First and last byte of each arena, 0 where there is none: what the signal
/// handler looks at first, without the lock.
static RANGES: [[AtomicU64; 2]; MAX_ARENAS] =
    [const { [AtomicU64::new(0), AtomicU64::new(0)] }; MAX_ARENAS];
/// The process that all of this belongs to.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// When a broker that has gone may be looked for again, on the monotonic clock.
static NEXT_LOOK: AtomicU64 = AtomicU64::new(0);
const LOOK_EVERY_NS: u64 = 500_000_000;

/// Connects to the broker, starting one if need be.
///
/// # Errors
/// ENOTCONN, or why there is none.
pub(crate) fn reach() -> Result<(), Errno> {
    at_exit::keep();
    own();
    with_link(|_| Ok(()))
}

/// Makes the state that of this process: a forked child begins anew.
fn own() {
    let process = os::process_id();
    if OWNER.load(Ordering::Acquire) == process {
        return;
    }
    if OWNER.swap(process, Ordering::AcqRel) == 0 {
        return;
    }
    // Other threads of the parent are not here, whatever they held. The
    // parent's memory is not mapped here: its descriptors are all there is.
    LINK.break_open();
    ARENAS.break_open();
    for range in RANGES.iter().flatten() {
        range.store(0, Ordering::Release);
    }
    ARENAS.with(|arenas| {
        for arena in arenas.iter_mut().filter_map(Option::take) {
            arena.forget();
        }
    });
    LINK.with(|link| *link = None);
}

/// Runs `f` on the connection to a broker that is there.
fn with_link<R>(f: impl FnOnce(&mut Link) -> Result<R, Errno>) -> Result<R, Errno> {
    LINK.with(|link| {
        if let Some(link) = link.as_mut().filter(|link| link.connection.is_alive()) {
            return f(link);
        }
        *link = None;
        let mut connection = broker::connect()?;
        let page = connection.register(own_name(os::process_id()))?;
        let lease = memory::lease_page(&page)?;
        let mut fresh = Link { connection, lease };
        ARENAS.with(|arenas| move_all(arenas, &mut fresh))?;
        f(link.insert(fresh))
    })
}

/// Has the arenas of a broker that has gone go on at another one: a new object
/// each, with the contents as they are now. Its readers keep what they have of
/// the old one and have to attach anew.
fn move_all(arenas: &mut Arenas, link: &mut Link) -> Result<(), Errno> {
    for (slot, arena) in (0u32..).zip(arenas.iter_mut()) {
        let Some(arena) = arena else { continue };
        let index = usize::try_from(slot).map_err(|_| Errno::EIO)?;
        let lease = lease_words(link.lease, index).ok_or(Errno::EIO)?;
        let grant = link
            .connection
            .arena_make(slot, arena.args(), arena.geometry())?;
        let segid = grant.segid;
        arena.move_to(grant, lease)?;
        link.connection.mapped(segid)?;
    }
    Ok(())
}

/// Makes sure that there is a broker that knows our arenas.
///
/// # Errors
/// ENOTCONN, or why the arenas cannot go on there.
fn stay_connected() -> Result<(), Errno> {
    if is_connected() {
        return Ok(());
    }
    let (now, next) = (os::monotonic_ns(), NEXT_LOOK.load(Ordering::Relaxed));
    if now < next {
        return Err(Errno::ENOTCONN);
    }
    NEXT_LOOK.store(now.saturating_add(LOOK_EVERY_NS), Ordering::Relaxed);
    with_link(|_| Ok(()))
}

/// What the broker calls this process.
fn own_name(process: u32) -> [u8; NAME_BYTES] {
    let mut name = [0; NAME_BYTES];
    let digits = Digits::new(process);
    let bytes = b"linux-".iter().chain(digits.as_bytes());
    for (to, from) in name.iter_mut().zip(bytes) {
        *to = *from;
    }
    name
}

/// Runs `f` on the arena in `slot`.
fn with<R>(slot: u32, f: impl FnOnce(&mut Arena) -> Result<R, Errno>) -> Result<R, Errno> {
    own();
    ARENAS.with(|arenas| f(arena_in(arenas, slot)?))
}

fn arena_in(arenas: &mut Arenas, slot: u32) -> Result<&mut Arena, Errno> {
    let slot = usize::try_from(slot).map_err(|_| Errno::ENOENT)?;
    let arena = arenas.get_mut(slot).and_then(Option::as_mut);
    arena.ok_or(Errno::ENOENT)
}

/// As [`crate::calls::arena_create`].
pub(crate) fn arena_create(args: &mut ArenaArgs) -> Result<u32, Errno> {
    own();
    let geometry = Geometry::new(args.size_bytes, args.chunk_bytes, args.nr_banks)
        .map_err(|_| Errno::EINVAL)?;
    let policy = Policy::new(args.policy, args.timeout_ms).ok_or(Errno::EINVAL)?;
    let placement = Placement::new(args.placement).ok_or(Errno::EINVAL)?;
    let wishes = wishes(placement, &geometry)?;
    if args.name != [0; NAME_BYTES] && text(&args.name).and_then(name_field).is_none() {
        return Err(Errno::EINVAL);
    }
    // The connection's lock is held all the while: slots are given out under it.
    with_link(|link| {
        let (slot, chunks_per_piece) = ARENAS
            .with(|arenas| {
                let slot = arenas.iter().position(Option::is_none);
                let used = arenas.iter().flatten().map(Arena::nr_mappings).sum();
                slot.map(|slot| (slot, chunks_per_piece(&geometry, used)))
            })
            .ok_or(Errno::ENOSPC)?;
        let number = u32::try_from(slot).map_err(|_| Errno::ENOSPC)?;
        let window = window(slot, args, &geometry)?;
        let lease = lease_words(link.lease, slot).ok_or(Errno::EIO)?;
        let grant = link.connection.arena_make(number, args, &geometry)?;
        let segid = grant.segid;
        let made = fault::install()
            .and_then(|()| {
                Object::map(&grant.memory, geometry.object_bytes, geometry.control_bytes)
            })
            .and_then(|object| {
                args.start = window.start();
                let parts = Parts {
                    args: *args,
                    geometry,
                    object,
                    window,
                    lease,
                    doorbell: grant.doorbell,
                    segid,
                    page_bytes: grant.page_bytes,
                    policy,
                    placement,
                    wishes,
                    chunks_per_piece,
                };
                Arena::new(parts)
            });
        let arena = match made.and_then(|arena| link.connection.mapped(segid).map(|()| arena)) {
            Ok(arena) => arena,
            Err(errno) => {
                let _ = link.connection.arena_end(segid);
                return Err(errno);
            }
        };
        show_range(slot, arena.start(), geometry.size_bytes);
        ARENAS.with(|arenas| {
            if let Some(place) = arenas.get_mut(slot) {
                *place = Some(arena);
            }
        });
        Ok(number)
    })
}

/// Addresses for an arena: those the program wants, or those it would have in
/// an enclave, or any.
fn window(slot: usize, args: &ArenaArgs, geometry: &Geometry) -> Result<Window, Errno> {
    let usual = ARENA_BASE + slot as u64 * ARENA_SPAN;
    let (start, must) = match args.start {
        0 => (usual, false),
        wanted => (wanted, true),
    };
    Window::new(start, must, geometry.size_bytes)
}

/// Chunks that one fault copies, so that the process does not run out of
/// mappings: a power of two.
fn chunks_per_piece(geometry: &Geometry, used: u64) -> u64 {
    let share = (MOST_MAPPINGS.saturating_sub(used) / SHARE).max(1);
    let mut chunks = 1;
    while chunks < geometry.nr_chunks {
        let way = Way::for_pieces(geometry.chunk_bytes * chunks);
        let pieces = geometry.nr_chunks.div_ceil(chunks);
        if pieces * way.mappings(geometry.nr_banks) <= share {
            break;
        }
        chunks *= 2;
    }
    chunks
}

fn lease_words(page: &'static [AtomicU64], slot: usize) -> Option<LeaseWords> {
    let first = slot.checked_mul(WORDS_PER_ARENA)?;
    page.get(first..)?.first_chunk()
}

fn show_range(slot: usize, start: u64, bytes: u64) {
    if let Some([first, last]) = RANGES.get(slot) {
        last.store(start + bytes - 1, Ordering::Release);
        first.store(start, Ordering::Release);
    }
}

/// The slot whose arena contains `address`, as far as can be seen from outside.
fn slot_of(address: u64) -> Option<u32> {
    let position = RANGES.iter().position(|[first, last]| {
        let first = first.load(Ordering::Acquire);
        first != 0 && (first..=last.load(Ordering::Acquire)).contains(&address)
    });
    u32::try_from(position?).ok()
}

/// A store to `address` was refused: whether it may be tried again. Called by
/// the signal handler.
fn serve(address: u64) -> bool {
    let Some(slot) = slot_of(address) else {
        return false;
    };
    let copied = ARENAS.with(|arenas| {
        let arena = arena_in(arenas, slot)?;
        let offset = address.checked_sub(arena.start()).ok_or(Errno::EFAULT)?;
        arena.copy_on_write(offset)
    });
    if copied == Err(Errno::ENOMEM) {
        crate::say::line(&[
            b"no mapping left for the copy of an arena's chunk (see vm.max_map_count)",
        ]);
    }
    copied.is_ok()
}

/// Makes the arena memory in a range writable now, for stores by the kernel.
///
/// # Errors
/// As for a store there, where it would end the program.
pub(crate) fn touch(start: u64, bytes: u64) -> Result<(), Errno> {
    own();
    let slot = slot_of(start).ok_or(Errno::ENOENT)?;
    with(slot, |arena| {
        let offset = start.checked_sub(arena.start()).ok_or(Errno::EFAULT)?;
        arena.touch(offset, bytes)
    })
}

/// As [`crate::calls::arena_var`].
pub(crate) fn arena_var(slot: u32, desc: &VarDesc) -> Result<u32, Errno> {
    with(slot, |arena| arena.set_variable(desc))
}

/// As [`crate::calls::arena_publish`].
pub(crate) fn arena_publish(slot: u32, step: u64, time_bits: u64) -> Result<u64, Errno> {
    own();
    let set = 1u64.checked_shl(slot).ok_or(Errno::ENOENT)?;
    publish_when_free(set, |arenas| {
        arena_in(arenas, slot)
            .map_err(Refusal::System)?
            .publish(step, time_bits)
    })
}

/// As [`crate::calls::arena_publish_set`], with a bit per slot.
pub(crate) fn arena_publish_set(set: u64, step: u64, time_bits: u64) -> Result<u64, Errno> {
    own();
    if set == 0 || set >> MAX_ARENAS != 0 {
        return Err(Errno::EINVAL);
    }
    publish_when_free(set, |arenas| publish_set(arenas, set, step, time_bits))
}

/// A byte per chunk where the program may have wishes.
fn wishes(placement: Placement, geometry: &Geometry) -> Result<Option<Pages<u8>>, Errno> {
    if placement != Placement::Preferred {
        return Ok(None);
    }
    let len = usize::try_from(geometry.nr_chunks).map_err(|_| Errno::EINVAL)?;
    Pages::new(len).map(Some)
}

/// Publishes, and waits for readers where a policy says so.
fn publish_when_free(
    set: u64,
    mut publish: impl FnMut(&mut Arenas) -> Result<u64, Refusal>,
) -> Result<u64, Errno> {
    fault::install()?;
    let mut attempt = || match ARENAS.with(&mut publish) {
        Ok(value) => Ok(Some(value)),
        Err(Refusal::Full) => Ok(None),
        Err(Refusal::Exhausted) => Err(Errno::EAGAIN),
        Err(Refusal::System(errno)) => Err(errno),
    };
    stay_connected().inspect_err(|_| {
        ARENAS.with(|arenas| refuse_all(arenas, set));
    })?;
    if let Some(value) = attempt()? {
        return Ok(value);
    }
    let timeout_ms = ARENAS.with(|arenas| note_wait(arenas, set));
    let published = wait_for(timeout_ms, attempt);
    if published == Err(Errno::ETIMEDOUT) {
        ARENAS.with(|arenas| refuse_all(arenas, set));
    }
    published
}

/// Whether the broker is there that this process registered with.
fn is_connected() -> bool {
    LINK.with(|link| link.as_ref().is_some_and(|link| link.connection.is_alive()))
}

/// Publishes one state of several arenas: all of them or none. A state that is
/// not published takes nothing from readers, not even the generation that
/// nobody has leased yet.
fn publish_set(arenas: &mut Arenas, set: u64, step: u64, time_bits: u64) -> Result<u64, Refusal> {
    let start = memory::timestamp();
    let mut places = [None; MAX_ARENAS];
    let chosen = |(arena, place): (&Option<Arena>, &Option<usize>)| {
        arena
            .as_ref()
            .filter(|_| place.is_some())
            .map_or(Ok(()), Arena::freeze)
    };
    let ready = find_places(arenas, &mut places, set)
        .and_then(|()| arenas.iter().zip(&places).try_for_each(chosen));
    if let Err(refusal) = ready {
        for (arena, place) in arenas.iter_mut().zip(places) {
            if let (Some(arena), Some(place)) = (arena, place) {
                arena.give_back(place);
            }
        }
        if refusal == Refusal::Exhausted {
            refuse_all(arenas, set);
        }
        return Err(refusal);
    }
    let mut published = 0;
    for (arena, place) in arenas.iter_mut().zip(places) {
        if let (Some(arena), Some(place)) = (arena, place) {
            arena.publish_at(place, start, step, time_bits);
            published += 1;
        }
    }
    Ok(published)
}

/// A lease word for each arena of the set; after a refusal some have one.
fn find_places(
    arenas: &mut Arenas,
    places: &mut [Option<usize>; MAX_ARENAS],
    set: u64,
) -> Result<(), Refusal> {
    for slot in members(set).flatten() {
        let arena = arena_in(arenas, slot).map_err(Refusal::System)?;
        match arena.policy() {
            Policy::DiscardNewest if !arena.has_place() => return Err(Refusal::Exhausted),
            Policy::Block { .. } if !arena.has_place() => return Err(Refusal::Full),
            _ => {}
        }
    }
    // Those that may refuse first: a reader may have been faster.
    for discards in [false, true] {
        for (slot, place) in members(set).zip(places.iter_mut()) {
            let Some(slot) = slot else { continue };
            let arena = arena_in(arenas, slot).map_err(Refusal::System)?;
            if (arena.policy() == Policy::DiscardOldest) == discards {
                *place = Some(arena.find_place()?);
            }
        }
    }
    Ok(())
}

/// The slots in order, each if it is in the set.
fn members(set: u64) -> impl Iterator<Item = Option<u32>> {
    (0..u32::BITS).map(move |slot| (set >> slot & 1 == 1).then_some(slot))
}

/// Counts a state that none of the arenas publishes.
fn refuse_all(arenas: &mut Arenas, set: u64) {
    for slot in members(set).flatten() {
        if let Ok(arena) = arena_in(arenas, slot) {
            arena.refuse();
        }
    }
}

/// Counts the wait of those arenas of a set that wait for readers; the shortest
/// of their limits in milliseconds, 0 when there is none.
fn note_wait(arenas: &mut Arenas, set: u64) -> u32 {
    let mut least = 0;
    for slot in members(set).flatten() {
        let Ok(arena) = arena_in(arenas, slot) else {
            continue;
        };
        if let Policy::Block { timeout_ms } = arena.policy() {
            arena.note_wait();
            least = match (least, timeout_ms) {
                (0, limit) | (limit, 0) => limit,
                (one, other) => one.min(other),
            };
        }
    }
    least
}

/// Looks again and again, at most `timeout_ms` (0 = for ever): what is waited
/// for are words that the broker changes without telling us.
fn wait_for<R>(
    timeout_ms: u32,
    mut look: impl FnMut() -> Result<Option<R>, Errno>,
) -> Result<R, Errno> {
    /// A look soon finds a reader that is about to finish.
    const PAUSES_MS: [u32; 4] = [1, 1, 2, 5];
    let limit = u64::from(timeout_ms) * 1_000_000;
    let end = os::monotonic_ns().saturating_add(limit);
    let mut pauses = PAUSES_MS.iter();
    let mut pause = 1;
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if timeout_ms != 0 && os::monotonic_ns() >= end {
            return Err(Errno::ETIMEDOUT);
        }
        stay_connected()?;
        pause = pauses.next().copied().unwrap_or(pause);
        os::sleep_ms(pause);
    }
}

/// As [`crate::calls::arena_wait_readers`].
pub(crate) fn arena_wait_readers(slot: u32, readers: u32, timeout_ms: u32) -> Result<u32, Errno> {
    wait_for(timeout_ms, || {
        let attached = with(slot, |arena| Ok(arena.readers()))?;
        Ok((attached >= readers).then_some(attached))
    })
}

/// As [`crate::calls::arena_destroy`].
pub(crate) fn arena_destroy(slot: u32) -> Result<(), Errno> {
    own();
    let arena = ARENAS.with(|arenas| {
        let index = usize::try_from(slot).map_err(|_| Errno::ENOENT)?;
        let arena = arenas.get_mut(index).and_then(Option::take);
        if let Some([first, _]) = RANGES.get(index) {
            first.store(0, Ordering::Release);
        }
        arena.ok_or(Errno::ENOENT)
    })?;
    arena.end();
    let segid = arena.segid();
    drop(arena);
    LINK.with(|link| match link {
        Some(link) if link.connection.is_alive() => link.connection.arena_end(segid),
        // A broker that has gone knows no arena that could end.
        _ => Ok(()),
    })
}

/// As [`crate::calls::arena_stats`].
pub(crate) fn arena_stats(slot: u32) -> Result<ArenaStats, Errno> {
    with(slot, |arena| Ok(arena.stats()))
}

/// As [`crate::calls::arena_prefer`].
pub(crate) fn arena_prefer(
    slot: u32,
    offset: u64,
    bytes: u64,
    bank: Option<u32>,
) -> Result<(), Errno> {
    with(slot, |arena| arena.prefer(offset, bytes, bank))
}

/// As [`crate::calls::arena_copied`].
pub(crate) fn arena_copied(slot: u32, first: u64, into: &mut [u64]) -> Result<usize, Errno> {
    with(slot, |arena| Ok(arena.copied(first, into)))
}

/// As [`crate::calls::arena_find`].
pub(crate) fn arena_find(address: u64) -> Result<u32, Errno> {
    own();
    slot_of(address).ok_or(Errno::ENOENT)
}

/// As [`crate::calls::xemem_make`].
pub(crate) fn xemem_make(start: u64, bytes: u64, name: &str) -> Result<u64, Errno> {
    own();
    let slot = slot_of(start).ok_or(Errno::EINVAL)?;
    let (base, size, segid) = with(slot, |arena| {
        Ok((arena.start(), arena.size_bytes(), arena.segid()))
    })?;
    if start != base || bytes == 0 || bytes > size {
        return Err(Errno::EINVAL);
    }
    if name.is_empty() || name.len() >= NAME_BYTES {
        return Err(Errno::ENAMETOOLONG);
    }
    let name = name_field(name).ok_or(Errno::EINVAL)?;
    LINK.with(|link| match link {
        Some(link) => link.connection.name(segid, name),
        None => Err(Errno::ENOTCONN),
    })?;
    with(slot, |arena| {
        arena.note_name(name);
        Ok(segid)
    })
}

/// Tells everybody that the arenas end, because the program does. Their memory
/// stays: threads may still run.
fn end_all() {
    if OWNER.load(Ordering::Acquire) != os::process_id() {
        return;
    }
    LINK.with(|link| {
        ARENAS.with(|arenas| {
            for arena in arenas.iter().flatten() {
                arena.end();
                if let Some(link) = link.as_mut() {
                    // It ends with the connection in any case.
                    let _ = link.connection.arena_end(arena.segid());
                }
            }
        });
    });
}

const _: () = assert!(MAX_ARENAS == u32::BITS as usize);
