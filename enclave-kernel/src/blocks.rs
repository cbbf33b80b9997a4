//! Memory that comes and goes while the kernel runs.
//!
//! The VMM orders it by [`Command::Memory`]; [`host`] keeps the order until there
//! is a good moment: on the way back to the program, between two programs, or while
//! the program waits. Memory that comes is in the kernel's direct map before a frame
//! of it is handed out; memory that goes is given up whole or not at all, and no
//! core can reach it any more when the VMM is told. Nothing is ever moved to make
//! memory free.
//!
//! [`Command::Memory`]: enclave_abi::queue::Command::Memory

use enclave_abi::addr::{LARGE_PAGE_SIZE, is_aligned};
use enclave_abi::layout::{ARENA_WINDOW, HIGH_RAM};
use enclave_abi::queue::{Call, MEMORY_ADD, MEMORY_REMOVE};
use enclave_core::errno::Errno;
use enclave_core::frame::RemoveError;

use crate::arch::{self, paging};
use crate::{host, memory, processes};

/// Carries out the order that came, if one did.
pub(crate) fn attend() {
    if let Some(order) = host::take_memory() {
        let [number, what, start, bytes, is_zero, ..] = order;
        let (result, used, of_program) = match carry_out(what, start, bytes, is_zero == 1) {
            Ok(()) => (0, 0, 0),
            Err((errno, used)) => {
                let of_program = match used {
                    0 => 0,
                    _ => processes::bytes_within(start, bytes).min(used),
                };
                (errno.to_result(), used, of_program)
            }
        };
        host::call(
            Call::MemoryDone,
            [number, result, used, of_program, 0, 0, 0],
        );
    }
}

fn carry_out(what: u64, start: u64, bytes: u64, is_zero: bool) -> Result<(), (Errno, u64)> {
    let is_whole = is_aligned(start | bytes, LARGE_PAGE_SIZE) && bytes != 0;
    let is_inside = start >= HIGH_RAM
        && start
            .checked_add(bytes)
            .is_some_and(|end| end <= ARENA_WINDOW);
    if !is_whole || !is_inside {
        return Err((Errno::EINVAL, 0));
    }
    match what {
        MEMORY_ADD => add(start, bytes, is_zero).map_err(|errno| (errno, 0)),
        MEMORY_REMOVE => remove(start, bytes),
        _ => Err((Errno::ENOSYS, 0)),
    }
}

fn add(start: u64, bytes: u64, is_zero: bool) -> Result<(), Errno> {
    if paging::map_direct(start, bytes).is_err() {
        paging::unmap_direct(start, bytes);
        return Err(Errno::ENOMEM);
    }
    if memory::add(start, bytes, is_zero) {
        Ok(())
    } else {
        // It has it already: the map is as it was.
        Err(Errno::EEXIST)
    }
}

fn remove(start: u64, bytes: u64) -> Result<(), (Errno, u64)> {
    memory::remove(start, bytes).map_err(|error| match error {
        RemoveError::InUse(used) => (Errno::EBUSY, used),
        RemoveError::NotOwned => (Errno::ENOENT, 0),
    })?;
    paging::unmap_direct(start, bytes);
    arch::flush_tlb();
    Ok(())
}
