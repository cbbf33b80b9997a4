//! Memory calls: mmap, munmap, mprotect, mremap, madvise, brk.
//!
//! Everything is backed at once by physically contiguous memory; PROT_NONE
//! reserves addresses without memory and mprotect commits it. Translations are
//! changed in a batch and flushed once per call.

use alloc::vec::Vec;

use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE, align_up, is_aligned};
use enclave_abi::layout::USER_MIN;
use enclave_core::aspace::{Backing, Kind, Prot, Region};
use enclave_core::errno::Errno;

use super::{Outcome, file};
use crate::arch::{self, paging};
use crate::{memory, process, user, windows};

const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_TYPE: u64 = 0xf;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
/// Addresses a program may map: below the stack's guard.
const LIMIT: u64 = 0x7fff_ffff_e000;

/// Where a new mapping goes.
enum Place {
    /// Anywhere below the usual top.
    Anywhere,
    /// Exactly here, replacing what is there.
    Fixed(u64),
    /// Exactly here, if nothing is there.
    Free(u64),
}

/// mmap(2): anonymous memory, or a private copy of a file's contents.
pub(super) fn mmap([addr, len, prot, flags, fd, offset]: [u64; 6]) -> Outcome {
    let prot = Prot::from_linux(prot).ok_or(Errno::EINVAL)?;
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let len = align_up(len, PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    let anonymous = flags & MAP_ANONYMOUS != 0;
    match flags & MAP_TYPE {
        MAP_PRIVATE => {}
        MAP_SHARED if anonymous => {}
        // Shared file mappings would need the host's page cache.
        MAP_SHARED | 3 => return Err(Errno::ENODEV),
        _ => return Err(Errno::EINVAL),
    }
    if flags & (MAP_GROWSDOWN | MAP_HUGETLB) != 0 || !is_aligned(offset, PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let place = if flags & MAP_FIXED_NOREPLACE != 0 {
        Place::Free(addr)
    } else if flags & MAP_FIXED != 0 {
        Place::Fixed(addr)
    } else {
        Place::Anywhere
    };
    let start = reserve(place, addr, len)?;
    // A file's contents are written before a read-only mapping is sealed.
    let first = if anonymous { prot } else { Prot::READ_WRITE };
    commit(start, start + len, first, Kind::Anonymous)?;
    if !anonymous {
        if let Err(errno) = fill_from_file(start, len, fd, offset) {
            drop_range(start, start + len);
            return Err(errno);
        }
        mprotect(start, len, u64::from(prot.bits()))?;
    }
    Ok(start)
}

/// Picks and clears the address range.
fn reserve(place: Place, hint: u64, len: u64) -> Outcome {
    match place {
        Place::Fixed(addr) | Place::Free(addr) => {
            let end = addr.checked_add(len).ok_or(Errno::ENOMEM)?;
            if !is_aligned(addr, PAGE_SIZE) {
                return Err(Errno::EINVAL);
            }
            if addr < USER_MIN || end > LIMIT || windows::touches(addr, end) {
                return Err(Errno::ENOMEM);
            }
            let taken = overlaps(addr, end);
            if taken && matches!(place, Place::Free(_)) {
                return Err(Errno::EEXIST);
            }
            if taken {
                munmap(addr, len)?;
            }
            Ok(addr)
        }
        Place::Anywhere => {
            let fits = |at: u64| {
                at.checked_add(len).is_some_and(|end| {
                    end <= LIMIT && !overlaps(at, end) && !windows::touches(at, end)
                })
            };
            if hint >= USER_MIN && is_aligned(hint, PAGE_SIZE) && fits(hint) {
                return Ok(hint);
            }
            let align = if len >= LARGE_PAGE_SIZE {
                LARGE_PAGE_SIZE
            } else {
                PAGE_SIZE
            };
            process::with(|p| p.aspace.find_hole(len, align, process::MMAP_TOP))
                .ok_or(Errno::ENOMEM)
        }
    }
}

fn overlaps(start: u64, end: u64) -> bool {
    process::with(|p| {
        p.aspace
            .ending_after(start)
            .next()
            .is_some_and(|region| region.start < end)
    })
}

/// Backs and maps `[start, end)`, which is free, in as few pieces as memory
/// allows. On failure nothing of it stays.
fn commit(start: u64, end: u64, prot: Prot, kind: Kind) -> Result<(), Errno> {
    if prot.is_none() {
        let region = Region {
            start,
            end,
            prot,
            backing: Backing::None,
            kind,
        };
        return process::with(|p| p.aspace.insert(region)).map_err(|error| error.errno());
    }
    if !process::with(|p| p.may_have(end - start)) {
        return Err(Errno::ENOMEM);
    }
    let mut at = start;
    while at < end {
        let Some((pa, bytes)) = piece(at, end) else {
            drop_range(start, at);
            return Err(Errno::ENOMEM);
        };
        let region = Region {
            start: at,
            end: at + bytes,
            prot,
            backing: Backing::Frames(pa),
            kind,
        };
        if let Err(error) = process::with(|p| p.aspace.insert(region)) {
            memory::free(pa, bytes);
            drop_range(start, at);
            return Err(error.errno());
        }
        if paging::map(at, pa, bytes, paging::user_bits(prot)).is_err() {
            drop_range(start, at + bytes);
            return Err(Errno::ENOMEM);
        }
        at += bytes;
    }
    Ok(())
}

/// One contiguous piece for `[at, …)`, at most up to `end`.
fn piece(at: u64, end: u64) -> Option<(u64, u64)> {
    let len = end - at;
    if len >= LARGE_PAGE_SIZE && is_aligned(at, LARGE_PAGE_SIZE) {
        let whole = len & !(LARGE_PAGE_SIZE - 1);
        let found = memory::alloc_up_to(whole, LARGE_PAGE_SIZE);
        if found.is_some() {
            return found;
        }
    }
    memory::alloc_up_to(len, PAGE_SIZE)
}

/// Removes whatever is mapped in `[start, end)` and gives its frames back.
fn drop_range(start: u64, end: u64) {
    let mut pieces = Vec::new();
    process::with(|p| p.aspace.remove(start, end, &mut |piece| pieces.push(piece)));
    if pieces.is_empty() {
        return;
    }
    for piece in &pieces {
        if piece.backing != Backing::None {
            // Splitting a large page may need a table; without one the whole
            // page stays mapped for the moment and is only unreachable by name.
            let _ = paging::change(piece.start, piece.end - piece.start, None);
        }
    }
    arch::flush_tlb();
    pieces.iter().for_each(process::release);
}

/// munmap(2). Arenas are not its business.
pub(super) fn munmap(addr: u64, len: u64) -> Outcome {
    let len = align_up(len, PAGE_SIZE)
        .filter(|&len| len != 0)
        .ok_or(Errno::EINVAL)?;
    let end = addr
        .checked_add(len)
        .filter(|&end| end <= LIMIT)
        .ok_or(Errno::EINVAL)?;
    if !is_aligned(addr, PAGE_SIZE) || touches_arena(addr, end) {
        return Err(Errno::EINVAL);
    }
    drop_range(addr, end);
    Ok(0)
}

fn touches_arena(start: u64, end: u64) -> bool {
    process::with(|p| {
        p.aspace
            .ending_after(start)
            .take_while(|region| region.start < end)
            .any(|region| region.backing.is_arena())
    })
}

/// mprotect(2); commits reservations.
pub(super) fn mprotect(addr: u64, len: u64, prot: u64) -> Outcome {
    let prot = Prot::from_linux(prot).ok_or(Errno::EINVAL)?;
    let len = align_up(len, PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    let end = addr.checked_add(len).ok_or(Errno::ENOMEM)?;
    if !is_aligned(addr, PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let mut changed = Vec::new();
    process::with(|p| {
        p.aspace
            .protect(addr, end, prot, &mut |old| changed.push(old))
    })
    .map_err(|error| error.errno())?;
    if changed.is_empty() {
        return Ok(0);
    }
    for old in &changed {
        apply_protection(old, prot)?;
    }
    arch::flush_tlb();
    Ok(0)
}

/// Brings the tables of one piece from its old protection to `prot`.
fn apply_protection(old: &Region, prot: Prot) -> Result<(), Errno> {
    let len = old.end - old.start;
    let bits = paging::user_bits(prot);
    match old.backing {
        Backing::None if prot.is_none() => Ok(()),
        Backing::None => {
            // A reservation: replace it by memory.
            process::with(|p| p.aspace.remove(old.start, old.end, &mut |_| {}));
            let committed = commit(old.start, old.end, prot, old.kind);
            if committed.is_err() {
                commit(old.start, old.end, Prot::NONE, old.kind)?;
            }
            committed
        }
        Backing::Frames(_) if prot.is_none() => {
            paging::change(old.start, len, None).map_err(|_| Errno::ENOMEM)
        }
        Backing::Frames(pa) if old.prot.is_none() => {
            paging::map(old.start, pa, len, bits).map_err(|_| Errno::ENOMEM)
        }
        _ => paging::change(old.start, len, Some(bits)).map_err(|_| Errno::ENOMEM),
    }
}

/// brk(2): the new break, or the old one when it cannot be moved.
pub(super) fn brk(wanted: u64) -> u64 {
    let (start, now) = process::with(|p| (p.brk_start, p.brk));
    let (Some(old_end), Some(new_end)) = (align_up(now, PAGE_SIZE), align_up(wanted, PAGE_SIZE))
    else {
        return now;
    };
    if wanted < start || new_end > LIMIT {
        return now;
    }
    if new_end > old_end {
        if overlaps(old_end, new_end)
            || commit(old_end, new_end, Prot::READ_WRITE, Kind::Heap).is_err()
        {
            return now;
        }
    } else {
        drop_range(new_end, old_end);
    }
    process::with(|p| p.brk = wanted);
    wanted
}

/// mremap(2) without MREMAP_FIXED.
pub(super) fn mremap([addr, old_len, new_len, flags, ..]: [u64; 6]) -> Outcome {
    const MAYMOVE: u64 = 1;
    if flags & !MAYMOVE != 0 || !is_aligned(addr, PAGE_SIZE) || old_len == 0 {
        return Err(Errno::EINVAL);
    }
    let old = align_up(old_len, PAGE_SIZE).ok_or(Errno::EINVAL)?;
    let new = align_up(new_len, PAGE_SIZE)
        .filter(|&len| len != 0)
        .ok_or(Errno::EINVAL)?;
    let end = addr.checked_add(old).ok_or(Errno::EFAULT)?;
    if touches_arena(addr, end) {
        return Err(Errno::EINVAL);
    }
    let prot =
        process::with(|p| p.aspace.at(addr).map(|region| region.prot)).ok_or(Errno::EFAULT)?;
    if new <= old {
        drop_range(addr + new, end);
        return Ok(addr);
    }
    let wanted = addr.checked_add(new).ok_or(Errno::ENOMEM)?;
    if wanted <= LIMIT && !overlaps(end, wanted) {
        commit(end, wanted, prot, Kind::Anonymous)?;
        return Ok(addr);
    }
    if flags & MAYMOVE == 0 {
        return Err(Errno::ENOMEM);
    }
    let target = reserve(Place::Anywhere, 0, new)?;
    commit(target, target + new, Prot::READ_WRITE, Kind::Anonymous)?;
    user::move_within(target, addr, old).inspect_err(|_| drop_range(target, target + new))?;
    drop_range(addr, end);
    mprotect(target, new, u64::from(prot.bits()))?;
    Ok(target)
}

/// madvise(2): MADV_DONTNEED zeroes private memory, other advice is taken note
/// of and not followed.
pub(super) fn madvise(addr: u64, len: u64, advice: u64) -> Outcome {
    const DONTNEED: u64 = 4;
    if !is_advice(advice) {
        return Err(Errno::EINVAL);
    }
    if !is_aligned(addr, PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let len = align_up(len, PAGE_SIZE).ok_or(Errno::EINVAL)?;
    let end = addr.checked_add(len).ok_or(Errno::EINVAL)?;
    let mapped = if is_mapped(addr, end) {
        Ok(0)
    } else {
        Err(Errno::ENOMEM)
    };
    if advice != DONTNEED || len == 0 {
        return mapped;
    }
    if touches_arena(addr, end) {
        return Err(Errno::EINVAL);
    }
    let mut pieces = Vec::new();
    process::with(|p| {
        for region in p
            .aspace
            .ending_after(addr)
            .take_while(|region| region.start < end)
        {
            pieces.push((region.start.max(addr), region.end.min(end), region.prot));
        }
    });
    for (start, stop, prot) in pieces {
        if prot.contains(Prot::WRITE) {
            user::zero(start, stop - start)?;
        }
    }
    mapped
}

/// Whether Linux knows it: most of it means nothing here, because memory is
/// there at once and is never taken away.
fn is_advice(advice: u64) -> bool {
    const FREE: u64 = 8;
    matches!(advice, 0..=4 | FREE | 10..=25)
}

/// msync, mincore and the calls that keep memory from being paged out: all of
/// it stays, so they check their arguments.
pub(super) fn resident(nr: u64, [addr, len, argument, ..]: [u64; 6]) -> Outcome {
    const MSYNC: u64 = 26;
    const MINCORE: u64 = 27;
    /// MS_ASYNC, MS_INVALIDATE, MS_SYNC; the first excludes the last.
    const MS_ALL: u64 = 7;
    const MS_BOTH: u64 = 5;
    if matches!(nr, 151 | 152) {
        return Ok(0); // mlockall, munlockall
    }
    let is_sync = nr == MSYNC;
    if is_sync && (argument & !MS_ALL != 0 || argument & MS_BOTH == MS_BOTH) {
        return Err(Errno::EINVAL);
    }
    if (is_sync || nr == MINCORE) && !is_aligned(addr, PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let start = addr & !(PAGE_SIZE - 1);
    let end = addr.checked_add(len).ok_or(Errno::ENOMEM)?;
    let end = align_up(end, PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    if nr == MINCORE {
        user::check_writable(argument, (end - start) / PAGE_SIZE)?;
    }
    if !is_mapped(start, end) {
        return Err(Errno::ENOMEM);
    }
    if nr == MINCORE {
        for page in 0..(end - start) / PAGE_SIZE {
            user::write(argument + page, &1u8)?;
        }
    }
    Ok(0)
}

/// Whether every address from `start` to `end` is in some region.
fn is_mapped(start: u64, end: u64) -> bool {
    process::with(|p| {
        let mut at = start;
        for region in p.aspace.ending_after(start) {
            if at >= end || region.start > at {
                break;
            }
            at = region.end;
        }
        at >= end
    })
}

/// Reads a file's contents into a fresh mapping (a private copy, not shared
/// with the page cache; short files leave zeros).
fn fill_from_file(start: u64, len: u64, fd: u64, offset: u64) -> Result<(), Errno> {
    const PREAD64: u64 = 17;
    let mut done = 0;
    while done < len {
        let got = file::transfer(PREAD64, [fd, start + done, len - done, offset + done, 0, 0])?;
        if got == 0 {
            break;
        }
        done += got;
    }
    Ok(())
}
