//! Our own calls: arenas, publish, statistics.

use core::sync::atomic::Ordering;

use enclave_abi::arena::{Geometry, NAME_BYTES, VarDesc, name_field, text};
use enclave_abi::layout::BOUNCE;
use enclave_abi::lease::MAX_ARENAS;
use enclave_abi::queue::Call;
use enclave_abi::syscall as ours;
use enclave_abi::syscall::{ArenaArgs, ArenaStats, KernelStats};
use enclave_core::arena::Placement;
use enclave_core::aspace::{Backing, Kind, Prot, Region};
use enclave_core::errno::Errno;
use zerocopy::IntoBytes;

use super::{Outcome, answer, import, misc, segment};
use crate::arenas::{self, ArenaError, Policy, Rules};
use crate::{arch, clock, cores, host, memory, phys, process, threads, user, windows};

impl From<ArenaError> for Errno {
    fn from(error: ArenaError) -> Self {
        match error {
            ArenaError::NoArena => Self::ENOENT,
            ArenaError::NoMemory => Self::ENOMEM,
            ArenaError::Exhausted => Self::EAGAIN,
            ArenaError::Full => MUST_WAIT,
            ArenaError::BadObject => Self::EIO,
            ArenaError::VarsFull => Self::ENOSPC,
            ArenaError::Bells => MUST_ASK,
        }
    }
}

/// Serves a call from [`ours::BASE`] on.
pub(super) fn serve(nr: u64, a: [u64; 6]) -> Outcome {
    match nr {
        ours::XASM_VERSION => Ok(u64::from(enclave_abi::ABI_VERSION)),
        ours::ARENA_PUBLISH => publish(a[0], a[1], a[2]),
        ours::ARENA_CREATE => create(a[0]),
        ours::ARENA_VAR => variable(a[0], a[1]),
        ours::ARENA_DESTROY => destroy(a[0]),
        ours::ARENA_STATS => stats(a[0], a[1]),
        ours::ARENA_FIND => arenas::find(a[0])
            .map(|(slot, _)| slot as u64)
            .ok_or(Errno::ENOENT),
        ours::XEMEM_MAKE => make(a[0], a[1], a[2], a[3]),
        ours::KERNEL_STATS => kernel_stats(a[0]),
        ours::HOST_COUNTERS => host_counters(a[0]),
        ours::HOST_INTERRUPT => host_interrupt(a[0]),
        ours::ARENA_PUBLISH_SET => publish_set(a[0], a[1], a[2]),
        ours::ARENA_WAIT_READERS => wait_readers(a[0], a[1], a[2]),
        ours::ARENA_PREFER => prefer(a[0], a[1], a[2], a[3]),
        ours::ARENA_COPIED => copied(a[0], a[1], a[2], a[3]),
        ours::ASPACE_SMARTMAP => windows::attach(a[0], a[1], a[2], a[3]).map(|()| 0),
        ours::ASPACE_UNSMARTMAP => windows::detach(a[0], a[1]).map(|()| 0),
        ours::ASPACE_SET_RANK => windows::set_rank(a[0], a[1]).map(|()| 0),
        ours::ASPACE_GET_RANK => windows::rank_of(a[0]),
        ours::ASPACE_OF_RANK => windows::of_rank(a[0]),
        _ => import::serve(nr, a),
    }
}

pub(super) fn publish(slot: u64, step: u64, time_bits: u64) -> Outcome {
    Ok(arenas::with(slot, |arena| arena.publish(step, time_bits))?)
}

/// How [`publish`] says that its arena's policy is to wait; no program sees it.
pub(super) const MUST_WAIT: Errno = Errno::ENOBUFS;

/// How [`publish`] says that the bells have changed; no program sees it.
pub(super) const MUST_ASK: Errno = Errno::ECANCELED;

/// Publishes with the bells that the host has now.
pub(super) fn publish_with_bells(slot: u64, step: u64, time_bits: u64) -> Outcome {
    arenas::take_bells(1 << (slot % MAX_ARENAS as u64));
    match publish(slot, step, time_bits) {
        Err(MUST_WAIT) => publish_when_free(slot, step, time_bits),
        other => other,
    }
}

/// Publishes as soon as a reader gives a generation back.
pub(super) fn publish_when_free(slot: u64, step: u64, time_bits: u64) -> Outcome {
    let timeout_ms = arenas::with(slot, |arena| {
        if !threads::is_again() {
            arena.note_wait();
        }
        match arena.policy {
            Policy::Block { timeout_ms } => Ok(timeout_ms),
            _ => Err(ArenaError::Exhausted),
        }
    })?;
    let published = wait_for(timeout_ms, || {
        arenas::take_bells(1 << (slot % MAX_ARENAS as u64));
        match arenas::with(slot, |arena| arena.publish(step, time_bits)) {
            Err(ArenaError::Full) => Ok(None),
            other => Ok(Some(other?)),
        }
    });
    if published == Err(Errno::ETIMEDOUT) {
        let _ = arenas::with::<()>(slot, |arena| Err(arena.refuse()));
    }
    published
}

/// One state of several arenas; waits for readers where a policy says so.
fn publish_set(set: u64, step: u64, time_bits: u64) -> Outcome {
    if set == 0 || set >> MAX_ARENAS != 0 {
        return Err(Errno::EINVAL);
    }
    arenas::take_bells(set);
    match arenas::publish_set(set, step, time_bits) {
        Err(ArenaError::Full) => {}
        other => return Ok(other?),
    }
    let published =
        wait_for(
            arenas::note_wait_of_set(set, !threads::is_again()),
            || match arenas::publish_set(set, step, time_bits) {
                Err(ArenaError::Full) => Ok(None),
                other => Ok(Some(other?)),
            },
        );
    if published == Err(Errno::ETIMEDOUT) {
        arenas::refuse_set(set);
    }
    published
}

/// Waits until enough readers are attached to an arena.
fn wait_readers(slot: u64, readers: u64, timeout_ms: u64) -> Outcome {
    let timeout_ms = u32::try_from(timeout_ms).map_err(|_| Errno::EINVAL)?;
    wait_for(timeout_ms, || {
        let attached = arenas::with(slot, |arena| Ok(u64::from(arena.readers())))?;
        Ok((attached >= readers).then_some(attached))
    })
}

/// Looks again and again, at most `timeout_ms` (0 = for ever); EINTR when the
/// program is to be killed. The host sleeps in between: what is waited for are
/// words that a process there changes without telling us.
fn wait_for(timeout_ms: u32, mut look: impl FnMut() -> Result<Option<u64>, Errno>) -> Outcome {
    /// A look soon finds a reader that is about to finish.
    const PAUSES_MS: [u64; 4] = [1, 1, 2, 5];
    if cores::are_needed() {
        let ns = match timeout_ms {
            0 => u64::MAX,
            ms => u64::from(ms) * 1_000_000,
        };
        return threads::patiently(ns, look()?);
    }
    let end = clock::monotonic_ns().saturating_add(u64::from(timeout_ms) * 1_000_000);
    let mut pauses = PAUSES_MS.iter();
    let mut pause = 1;
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if host::is_interrupted() {
            return Err(Errno::EINTR);
        }
        if timeout_ms != 0 && clock::monotonic_ns() >= end {
            return Err(Errno::ETIMEDOUT);
        }
        pause = pauses.next().copied().unwrap_or(pause);
        let _ = host::call(Call::Pause, [pause, 0, 0, 0, 0, 0, 0]);
    }
}

fn create(args_at: u64) -> Outcome {
    let mut args: ArenaArgs = user::read(args_at)?;
    let geometry = Geometry::new(args.size_bytes, args.chunk_bytes, args.nr_banks)
        .map_err(|_| Errno::EINVAL)?;
    let policy = Policy::new(args.policy, args.timeout_ms).ok_or(Errno::EINVAL)?;
    let placement = Placement::new(args.placement).ok_or(Errno::EINVAL)?;
    let rules = Rules { policy, placement };
    if args.name != [0; NAME_BYTES] && text(&args.name).and_then(name_field).is_none() {
        return Err(Errno::EINVAL);
    }
    let slot = arenas::free_slot().ok_or(Errno::ENOSPC)?;
    let start = arenas::address(slot);
    if args.start != 0 && args.start != start {
        return Err(Errno::EINVAL);
    }
    user::check_writable(args_at, size_of::<ArenaArgs>() as u64)?;
    phys::write_bytes(BOUNCE, args.as_bytes());
    let [result, base, segid, _, page_bytes, ..] =
        host::call(Call::ArenaMake, [slot as u64, 0, 0, 0, 0, 0, 0]);
    answer(result)?;
    let region = Region {
        start,
        end: start + args.size_bytes,
        prot: Prot::READ_WRITE,
        backing: Backing::Arena(slot as u32),
        kind: Kind::Arena,
    };
    let installed = arenas::install(slot, geometry, base, segid, page_bytes, args.name, rules)
        .map_err(Errno::from)
        .and_then(|()| process::with(|p| p.aspace.insert(region)).map_err(|error| error.errno()));
    if let Err(errno) = installed {
        let _ = arenas::remove(slot);
        let _ = host::call(Call::ArenaEnd, [slot as u64, 0, 0, 0, 0, 0, 0]);
        return Err(errno);
    }
    args.start = start;
    user::write(args_at, &args)?;
    Ok(slot as u64)
}

fn variable(slot: u64, desc_at: u64) -> Outcome {
    let desc: VarDesc = user::read(desc_at)?;
    let index = arenas::with(slot, |arena| {
        if desc.check(arena.size_bytes()).is_err() {
            return Ok(None);
        }
        arena.set_variable(&desc).map(Some)
    })?;
    index.ok_or(Errno::EINVAL)
}

fn destroy(slot: u64) -> Outcome {
    let index = usize::try_from(slot).map_err(|_| Errno::ENOENT)?;
    arenas::remove(index)?;
    let start = arenas::address(index);
    process::with(|p| {
        p.aspace
            .remove(start, start + arenas::ARENA_SPAN, &mut |_| {});
    });
    answer(host::call(Call::ArenaEnd, [slot, 0, 0, 0, 0, 0, 0])[0])
}

fn stats(slot: u64, to: u64) -> Outcome {
    let stats = arenas::with(slot, |arena| {
        Ok(ArenaStats {
            generation: arena.generation,
            dropped: arena.dropped,
            discarded: arena.discarded,
            waited: arena.waited,
            cow_faults: arena.cow_faults(),
            held: arena.held_now(),
            segid: arena.segid,
            backing_page_bytes: arena.backing_page_bytes,
        })
    })?;
    user::write(to, &stats)?;
    Ok(0)
}

/// Which bank the chunks of a range should be copied to.
fn prefer(slot: u64, offset: u64, bytes: u64, bank: u64) -> Outcome {
    let bank = match u32::try_from(bank) {
        Ok(u32::MAX) => None,
        Ok(bank) => Some(bank),
        Err(_) => return Err(Errno::EINVAL),
    };
    arenas::with(slot, |arena| Ok(arena.prefer(offset, bytes, bank)))??;
    Ok(0)
}

/// Which chunks the newest generation brought, from the `first`-th on.
fn copied(slot: u64, first: u64, to: u64, most: u64) -> Outcome {
    let mut done = 0;
    while done < most {
        let mut words = [0_u64; 64];
        let room = words
            .len()
            .min(usize::try_from(most - done).unwrap_or(usize::MAX));
        let from = first.checked_add(done).ok_or(Errno::EINVAL)?;
        // Copied out without the arenas' lock: the program's memory may be one.
        let nr = arenas::with(slot, |arena| Ok(arena.copied(from, &mut words[..room])))?;
        let at = done.checked_mul(8).and_then(|bytes| to.checked_add(bytes));
        user::copy_out(at.ok_or(Errno::EFAULT)?, words[..nr].as_bytes())?;
        done += nr as u64;
        if nr < room {
            break;
        }
    }
    Ok(done)
}

/// A further name for the arena, or the plain segment, that starts at `address`.
fn make(address: u64, len: u64, name: u64, name_len: u64) -> Outcome {
    let Some((slot, size)) = arenas::find(address) else {
        return segment::name(address, len, name, name_len);
    };
    if address != arenas::address(slot) || len == 0 || len > size {
        return Err(Errno::EINVAL);
    }
    import::bounce_name(name, name_len)?;
    answer(host::call(Call::ArenaName, [slot as u64, name_len, 0, 0, 0, 0, 0])[0])
}

fn kernel_stats(to: u64) -> Outcome {
    let stats = KernelStats {
        mode: arch::mode() as u64,
        syscalls: misc::served(),
        forwarded: host::FORWARDED.load(Ordering::Relaxed),
        interrupts: arch::interrupts_taken(),
        cow_faults: arenas::total_faults(),
        publishes: arenas::total_publishes(),
        free_bytes: memory::free_bytes(),
        flush_method: u64::from(arch::flush_name() == "CR3 reload"),
    };
    user::write(to, &stats)?;
    Ok(0)
}

fn host_interrupt(send: u64) -> Outcome {
    if send > 1 {
        return Err(Errno::EINVAL);
    }
    answer(host::call(Call::Interrupt, [send, 0, 0, 0, 0, 0, 0])[0])
}

fn host_counters(to: u64) -> Outcome {
    user::check_writable(to, 32)?;
    let [result, a, b, c, d, ..] = host::call(Call::HostCounters, [0; 7]);
    answer(result)?;
    user::write(to, &[a, b, c, d])?;
    Ok(0)
}
