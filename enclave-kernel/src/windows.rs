//! SMARTMAP: a process sees a sibling's memory at a fixed distance.
//!
//! Called by the address-space calls of `syscall`, and when processes end. All that a
//! program maps by itself lies in the first top-level entry of its table, and the
//! entries from 1 on are *windows*: each shows the first entry of one sibling, so that
//! its address `a` is `a + (n << 39)` there (Kitten's SMARTMAP). Attaching is one
//! store, and what the sibling maps and unmaps later shows by itself. Rights are the
//! sibling's own, without execution. Arenas and attachments lie elsewhere and do not
//! show: their copy-on-write is their owner's.
//!
//! One process has the cores at a time, and changing it flushes all translations; so
//! what must be flushed here is only what the running process loses.

use enclave_abi::queue::MAX_PROCESSES;
use enclave_core::errno::Errno;
use enclave_core::thread::Tid;

use crate::arch::{self, paging};
use crate::process::{self, Process};
use crate::processes;

/// Bits of an address within an entry.
const SHIFT: u32 = 39;
/// Bytes of a window.
const WINDOW_BYTES: u64 = 1 << SHIFT;

/// The siblings that a process sees: whose window the entry `n + 1` is.
pub(crate) type Windows = [Option<Tid>; MAX_PROCESSES];

/// Whether a range of addresses touches the windows: nothing else goes there.
pub(crate) fn touches(start: u64, end: u64) -> bool {
    start < WINDOW_BYTES * (MAX_PROCESSES as u64 + 1) && end > WINDOW_BYTES
}

/// Shows process `src` to the running process `dst` at `start`.
///
/// # Errors
/// EPERM for another `dst`; EINVAL for a range that is no window, or the process
/// itself; ESRCH without such a sibling; EBUSY where another one shows; EEXIST where
/// it shows already.
pub(crate) fn attach(src: u64, dst: u64, start: u64, extent: u64) -> Result<(), Errno> {
    let own = process::pid();
    if dst != own {
        return Err(Errno::EPERM);
    }
    let entry = start >> SHIFT;
    let place = usize::try_from(entry).ok().and_then(|n| n.checked_sub(1));
    let place = place.filter(|&n| n < MAX_PROCESSES).ok_or(Errno::EINVAL)?;
    if start != entry << SHIFT || extent != WINDOW_BYTES || src == own {
        return Err(Errno::EINVAL);
    }
    let src = Tid::try_from(src).map_err(|_| Errno::ESRCH)?;
    let root = processes::root_of(src).ok_or(Errno::ESRCH)?;
    process::with(|p| {
        if p.windows.contains(&Some(src)) {
            return Err(Errno::EEXIST);
        }
        match p.windows.get_mut(place) {
            Some(window @ None) => *window = Some(src),
            _ => return Err(Errno::EBUSY),
        }
        // Nothing was there: no translation to forget.
        paging::show(p.root, entry, root);
        Ok(())
    })
}

/// Hides process `src` from the running process `dst` again.
///
/// # Errors
/// EPERM for another `dst`; ENOENT where it does not show.
pub(crate) fn detach(src: u64, dst: u64) -> Result<(), Errno> {
    if dst != process::pid() {
        return Err(Errno::EPERM);
    }
    let src = Tid::try_from(src).map_err(|_| Errno::ENOENT)?;
    let was_there = process::with(|p| hide(p, src));
    if was_there {
        arch::flush_tlb();
    }
    was_there.then_some(()).ok_or(Errno::ENOENT)
}

/// Hides `src` from `p`, translations aside; whether it showed.
fn hide(p: &mut Process, src: Tid) -> bool {
    let mut windows = (1..).zip(p.windows.iter_mut());
    let Some((entry, window)) = windows.find(|(_, window)| **window == Some(src)) else {
        return false;
    };
    *window = None;
    paging::hide(p.root, entry);
    true
}

/// Process `pid` ends: nobody sees it any more, before its tables go.
pub(crate) fn forget(pid: Tid) {
    let is_running_one = process::if_any(|p| hide(p, pid)) == Some(true);
    processes::for_parked(|p| {
        hide(p, pid);
    });
    if is_running_one {
        arch::flush_tlb();
    }
}

/// The tables of siblings leave those of a process that ends, which no core uses.
pub(crate) fn close_all(p: &mut Process) {
    for (entry, window) in (1..).zip(p.windows.iter_mut()) {
        if window.take().is_some() {
            paging::hide(p.root, entry);
        }
    }
}

/// Says which rank the running process has among its siblings.
///
/// # Errors
/// EPERM for another process's id; EINVAL for a rank beyond 32 bits; EEXIST where a
/// sibling has it.
pub(crate) fn set_rank(id: u64, rank: u64) -> Result<(), Errno> {
    if id != process::pid() {
        return Err(Errno::EPERM);
    }
    let rank = u32::try_from(rank).map_err(|_| Errno::EINVAL)?;
    let mut is_taken = false;
    processes::for_parked(|p| is_taken |= p.rank == Some(rank));
    if is_taken {
        return Err(Errno::EEXIST);
    }
    process::with(|p| p.rank = Some(rank));
    Ok(())
}

/// The rank of a process.
///
/// # Errors
/// ESRCH without such a process; ENOENT where it has none.
pub(crate) fn rank_of(id: u64) -> Result<u64, Errno> {
    let id = Tid::try_from(id).map_err(|_| Errno::ESRCH)?;
    let mut found = process::with(|p| (p.pid == id).then_some(p.rank));
    processes::for_parked(|p| found = found.or((p.pid == id).then_some(p.rank)));
    let rank = found.ok_or(Errno::ESRCH)?.ok_or(Errno::ENOENT)?;
    Ok(rank.into())
}

/// The process that has a rank.
///
/// # Errors
/// ENOENT without one.
pub(crate) fn of_rank(rank: u64) -> Result<u64, Errno> {
    let rank = Some(u32::try_from(rank).map_err(|_| Errno::ENOENT)?);
    let mut found = process::with(|p| (p.rank == rank).then_some(p.pid));
    processes::for_parked(|p| found = found.or((p.rank == rank).then_some(p.pid)));
    found.map(u64::from).ok_or(Errno::ENOENT)
}
