//! Memory that comes and goes while the kernel runs.
//!
//! Ordered by the VMM ([`crate::orders`]). Memory that comes is in the kernel's
//! direct map before a frame of it is handed out; memory that goes is given up whole
//! or not at all, and no core can reach it any more when the VMM is told. Nothing is
//! ever moved to make memory free.

use enclave_abi::addr::{LARGE_PAGE_SIZE, is_aligned};
use enclave_abi::layout::{ARENA_WINDOW, HIGH_RAM};
use enclave_core::errno::Errno;
use enclave_core::frame::RemoveError;

use crate::arch::{self, paging};
use crate::orders::Refused;
use crate::{memory, processes};

/// Whether blocks can be there.
fn check(start: u64, bytes: u64) -> Result<(), Refused> {
    let is_whole = is_aligned(start | bytes, LARGE_PAGE_SIZE) && bytes != 0;
    let is_inside = start >= HIGH_RAM
        && start
            .checked_add(bytes)
            .is_some_and(|end| end <= ARENA_WINDOW);
    if is_whole && is_inside {
        Ok(())
    } else {
        Err((Errno::EINVAL, 0, 0))
    }
}

/// Uses memory from now on.
///
/// # Errors
/// EINVAL; ENOMEM without room for tables; EEXIST where there is memory already.
pub(crate) fn add(start: u64, bytes: u64, is_zero: bool) -> Result<(), Refused> {
    check(start, bytes)?;
    if paging::map_direct(start, bytes).is_err() {
        paging::unmap_direct(start, bytes);
        return Err((Errno::ENOMEM, 0, 0));
    }
    if memory::add(start, bytes, is_zero) {
        Ok(())
    } else {
        // It has it already: the map is as it was.
        Err((Errno::EEXIST, 0, 0))
    }
}

/// Gives memory up.
///
/// # Errors
/// EBUSY with the bytes in use, and of these the program's; EINVAL; ENOENT.
pub(crate) fn remove(start: u64, bytes: u64) -> Result<(), Refused> {
    check(start, bytes)?;
    memory::remove(start, bytes).map_err(|error| match error {
        RemoveError::InUse(0) => (Errno::EBUSY, 0, 0),
        RemoveError::InUse(used) => {
            let of_program = processes::bytes_within(start, bytes).min(used);
            (Errno::EBUSY, used, of_program)
        }
        RemoveError::NotOwned => (Errno::ENOENT, 0, 0),
    })?;
    paging::unmap_direct(start, bytes);
    arch::flush_tlb();
    Ok(())
}
