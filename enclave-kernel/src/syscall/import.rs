//! XEMEM's importing side: find, get, attach, follow, let go.
//!
//! The host speaks to the broker and leases generations; the kernel maps them,
//! and pieces of plain segments ([`crate::imports`]). What the host refuses is
//! passed on as it is.

use alloc::vec;

use enclave_abi::arena::{Geometry, NAME_BYTES, name_field};
use enclave_abi::layout::BOUNCE;
use enclave_abi::queue::Call;
use enclave_abi::syscall as ours;
use enclave_abi::syscall::{AttachArgs, FOLLOW_EVERY, FOLLOW_LATEST, Imported};
use enclave_core::aspace::{Backing, Kind, Prot, Region};
use enclave_core::errno::Errno;
use enclave_core::import::Place;

use super::{Outcome, answer, segment};
use crate::imports::{self, IMPORT_SPAN, Source};
use crate::{bells, clock, cores, host, phys, process, threads, user};

/// Serves a call of the importing side.
pub(super) fn serve(nr: u64, a: [u64; 6]) -> Outcome {
    match nr {
        ours::XEMEM_LOOKUP => lookup(a[0], a[1], a[2]),
        ours::XEMEM_GET => get(a[0], a[1]),
        ours::XEMEM_ATTACH => attach(a[0]),
        ours::XEMEM_NEXT => next(a[0], a[1], a[2]),
        ours::XEMEM_DETACH => detach(a[0]),
        ours::XEMEM_RELEASE => release(a[0]),
        ours::XEMEM_VALID => {
            slot(a[0]).and_then(|slot| imports::is_valid(slot).map(u64::from).ok_or(Errno::EINVAL))
        }
        ours::XEMEM_AWAIT => wait(a[0], a[1], a[2]),
        ours::XEMEM_VARIABLE => variable(a[0], a[1], a[2]),
        _ => segment::serve(nr, a),
    }
}

pub(super) fn ask(kind: Call, args: [u64; 3]) -> Outcome {
    let [a, b, c] = args;
    answer(host::call(kind, [a, b, c, 0, 0, 0, 0])[0])
}

/// What `ask` answers that waits in the host for so many milliseconds. With several
/// cores it only looks there, and begins anew as long as the answer is `not_yet`.
pub(super) fn ask_patiently(
    timeout_ms: u64,
    not_yet: Errno,
    ask: impl FnOnce(u64) -> Outcome,
) -> Outcome {
    if !cores::are_needed() || timeout_ms == 0 {
        return ask(timeout_ms);
    }
    let found = match ask(0) {
        Err(errno) if errno == not_yet => None,
        other => Some(other),
    };
    threads::patiently(span_ns(timeout_ms), found)?
}

fn span_ns(timeout_ms: u64) -> u64 {
    match timeout_ms {
        ours::NO_LIMIT => u64::MAX,
        ms => ms * 1_000_000,
    }
}

/// A name of the program, copied to the bounce area.
pub(super) fn bounce_name(name: u64, len: u64) -> Result<(), Errno> {
    if len == 0 || len >= NAME_BYTES as u64 {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut bytes = vec![0; len as usize];
    user::copy_in(name, &mut bytes)?;
    let valid = core::str::from_utf8(&bytes).ok().and_then(name_field);
    if valid.is_none() {
        return Err(Errno::EINVAL);
    }
    phys::write_bytes(BOUNCE, &bytes);
    Ok(())
}

fn lookup(name: u64, len: u64, timeout_ms: u64) -> Outcome {
    if timeout_ms > ours::NO_LIMIT {
        return Err(Errno::EINVAL);
    }
    bounce_name(name, len)?;
    ask_patiently(timeout_ms, Errno::ENOENT, |timeout_ms| {
        ask(Call::ImportLookup, [len, timeout_ms, 0])
    })
}

/// Whether `id` can be a segid or an apid: both are positive.
pub(super) fn is_id(id: u64) -> bool {
    i64::try_from(id).is_ok_and(|id| id > 0)
}

fn get(segid: u64, flags: u64) -> Outcome {
    if !is_id(segid) || !matches!(flags, ours::XEMEM_RDONLY | ours::XEMEM_RDWR) {
        return Err(Errno::EINVAL);
    }
    ask(Call::ImportGet, [segid, flags, 0])
}

fn release(apid: u64) -> Outcome {
    if !is_id(apid) {
        return Err(Errno::EINVAL);
    }
    for slot in imports::attached_by(apid) {
        drop_import(slot);
    }
    ask(Call::ImportRelease, [apid, 0, 0])
}

fn attach(args_at: u64) -> Outcome {
    let mut args: AttachArgs = user::read(args_at)?;
    // Without a policy it can only be plain: the host refuses an arena.
    if !is_id(args.apid) || !matches!(args.policy, 0 | FOLLOW_LATEST | FOLLOW_EVERY) {
        return Err(Errno::EINVAL);
    }
    let slot = imports::free_slot().ok_or(Errno::ENOSPC)?;
    let start = imports::address(slot);
    if args.start != 0 && args.start != start {
        return Err(Errno::EINVAL);
    }
    user::check_writable(args_at, size_of::<AttachArgs>() as u64)?;
    let number = slot as u64;
    let (offset, wanted) = (args.offset, args.size_bytes);
    let policy = u64::from(args.policy);
    let [
        result,
        base,
        size_bytes,
        chunk_bytes,
        nr_banks,
        writable,
        rings,
    ] = host::call(
        Call::ImportAttach,
        [number, args.apid, policy, offset, wanted, 0, 0],
    );
    answer(result)?;
    let nr_banks = u32::try_from(nr_banks).unwrap_or(0);
    let installed = if nr_banks == 0 {
        let prot = if writable == 0 {
            Prot::READ
        } else {
            Prot::READ_WRITE
        };
        segment::put(slot, Source::Apid(args.apid), base, size_bytes, prot)
    } else if wanted != 0 && wanted != size_bytes {
        Err(Errno::EINVAL)
    } else {
        Geometry::new(size_bytes, chunk_bytes, nr_banks)
            .map_err(|_| Errno::EIO)
            .and_then(|geometry| install(slot, (args.apid, rings == 1), geometry, base))
    };
    if let Err(errno) = installed {
        let _ = ask(Call::ImportDetach, [number, 0, 0]);
        return Err(errno);
    }
    (args.size_bytes, args.chunk_bytes) = (size_bytes, chunk_bytes);
    (args.start, args.nr_banks) = (start, nr_banks);
    user::write(args_at, &args)?;
    Ok(start)
}

/// Reserves the addresses of `slot` and sets the import up.
fn install(slot: usize, apid: (u64, bool), geometry: Geometry, base: u64) -> Result<(), Errno> {
    reserve(slot, geometry.size_bytes, Prot::NONE)?;
    if imports::install(slot, apid, geometry, base) {
        return Ok(());
    }
    forget_region(slot);
    Err(Errno::ENOMEM)
}

/// Reserves the addresses of `slot` for `size_bytes`.
pub(super) fn reserve(slot: usize, size_bytes: u64, prot: Prot) -> Result<(), Errno> {
    let region = region(slot, size_bytes, prot);
    process::with(|p| {
        // Whatever else lies in the span would be lost with its tables.
        let end = region.start + IMPORT_SPAN;
        let next = p.aspace.ending_after(region.start).next();
        if next.is_some_and(|other| other.start < end) {
            return Err(Errno::EEXIST);
        }
        p.aspace.insert(region).map_err(|error| error.errno())
    })
}

fn region(slot: usize, size_bytes: u64, prot: Prot) -> Region {
    let start = imports::address(slot);
    Region {
        start,
        end: start + size_bytes,
        prot,
        backing: Backing::Import(slot as u32),
        kind: Kind::Import,
    }
}

pub(super) fn forget_region(slot: usize) {
    let start = imports::address(slot);
    process::with(|p| p.aspace.remove(start, start + IMPORT_SPAN, &mut |_| {}));
}

/// Says what the program may do with the import in `slot`.
fn set_prot(slot: usize, prot: Prot) {
    if let Some(size_bytes) = imports::size_bytes(slot) {
        forget_region(slot);
        // It was there before, so it fits.
        let _ = process::with(|p| p.aspace.insert(region(slot, size_bytes, prot)));
    }
}

fn drop_import(slot: usize) {
    if imports::remove(slot) {
        forget_region(slot);
    }
}

/// The slot of the arena attached at `address`.
fn slot(address: u64) -> Result<usize, Errno> {
    let slot = imports::slot_at(address).ok_or(Errno::EINVAL)?;
    imports::size_bytes(slot).map(|_| slot).ok_or(Errno::EINVAL)
}

fn next(address: u64, timeout_ms: u64, to: u64) -> Outcome {
    let slot = slot(address)?;
    if timeout_ms > ours::NO_LIMIT {
        return Err(Errno::EINVAL);
    }
    user::check_writable(to, size_of::<Imported>() as u64)?;
    let [result, step, time_bits, unix_ns, log_head, chunks_copied, _] = if imports::rings(slot) {
        lease_when_rung(slot, timeout_ms)?
    } else {
        lease_patiently(slot, timeout_ms)?
    };
    let mut imported = Imported {
        address,
        size_bytes: imports::size_bytes(slot).unwrap_or(0),
        ..Imported::default()
    };
    let generation = answer(result)?;
    if generation == 0 {
        imported.generation = imports::generation(slot).unwrap_or(0);
        imported.end_reason = step;
        user::write(to, &imported)?;
        return Ok(0);
    }
    let place = Place {
        generation,
        log_head,
    };
    let was_shown = imports::generation(slot).is_some();
    let Some(Ok(chunks_mapped)) = imports::show(slot, place) else {
        set_prot(slot, Prot::NONE);
        return Err(Errno::EIO);
    };
    if !was_shown {
        set_prot(slot, Prot::READ);
    }
    imported.generation = generation;
    (imported.step, imported.time_bits, imported.unix_ns) = (step, time_bits, unix_ns);
    (imported.chunks_copied, imported.chunks_mapped) = (chunks_copied, chunks_mapped);
    user::write(to, &imported)?;
    Ok(1)
}

/// Has the host lease the next generation; it waits there at most `timeout_ms`.
fn lease(slot: usize, timeout_ms: u64) -> [u64; 7] {
    host::call(Call::ImportNext, [slot as u64, timeout_ms, 0, 0, 0, 0, 0])
}

/// The same; see [`ask_patiently`].
fn lease_patiently(slot: usize, timeout_ms: u64) -> Result<[u64; 7], Errno> {
    if !cores::are_needed() || timeout_ms == 0 {
        return Ok(lease(slot, timeout_ms));
    }
    let leased = lease(slot, 0);
    let is_there = answer(leased[0]) != Err(Errno::ETIMEDOUT);
    threads::patiently(span_ns(timeout_ms), is_there.then_some(leased))
}

/// Has the host lease the next generation and waits for it here, asleep until
/// the exporter's bell or the broker's notice: the host is only asked again when
/// the exporter's control area, or a notice, says that it is worth it.
fn lease_when_rung(slot: usize, timeout_ms: u64) -> Result<[u64; 7], Errno> {
    let deadline_ns = deadline(timeout_ms);
    loop {
        let (newest, notices) = (imports::newest(slot), bells::notices());
        let leased = lease(slot, 0);
        if answer(leased[0]) != Err(Errno::ETIMEDOUT) || timeout_ms == 0 {
            threads::no_patience();
            return Ok(leased);
        }
        bells::wait(|| imports::newest(slot) != newest, notices, deadline_ns)?;
    }
}

/// When a wait of `timeout_ms` ends, by the monotonic clock.
fn deadline(timeout_ms: u64) -> u64 {
    if timeout_ms == ours::NO_LIMIT {
        return u64::MAX;
    }
    clock::monotonic_ns().saturating_add(timeout_ms * 1_000_000)
}

/// Waits for a generation after `after` without leasing it.
fn wait(address: u64, after: u64, timeout_ms: u64) -> Outcome {
    let slot = slot(address)?;
    if timeout_ms > ours::NO_LIMIT {
        return Err(Errno::EINVAL);
    }
    if !imports::rings(slot) {
        return Err(Errno::EOPNOTSUPP);
    }
    let is_there = || imports::newest(slot) > after;
    if !is_there() {
        bells::wait(is_there, bells::notices(), deadline(timeout_ms))?;
    }
    threads::no_patience();
    Ok(imports::newest(slot))
}

fn detach(address: u64) -> Outcome {
    if let Some(slot) = imports::slot_at(address) {
        drop_import(slot);
        return Ok(0);
    }
    let mapped = process::with(|p| p.aspace.at(address).is_some());
    // Nothing there is as good as detached; something else is a mistake.
    if mapped { Err(Errno::EINVAL) } else { Ok(0) }
}

fn variable(address: u64, index: u64, to: u64) -> Outcome {
    let slot = slot(address)?;
    let size_bytes = imports::size_bytes(slot).unwrap_or(0);
    let variable = imports::variable(slot, index).ok_or(Errno::ENOENT)?;
    variable.check(size_bytes).map_err(|_| Errno::EINVAL)?;
    user::write(to, &variable)?;
    Ok(0)
}
