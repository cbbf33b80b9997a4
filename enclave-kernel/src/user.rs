//! Copies between the kernel and the running program.
//!
//! Called by system calls. Promises: a range is checked against the program's
//! regions before it is touched (there is no demand paging, so a checked range
//! can only fault for copy-on-write, which fault.rs resolves and resumes);
//! what a program sends is copied once and decoded from the copy. Program memory
//! is open to the kernel only during a copy ([`UserAccess`]).

// UNSAFETY: turns checked program addresses into copies.
#![expect(unsafe_code)]

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use enclave_core::aspace::Prot;
use enclave_core::errno::Errno;
use enclave_core::user_slice::UserSlice;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::arch::UserAccess;
use crate::{arch, phys, process};

/// Longest path, as Linux's PATH_MAX.
pub(crate) const PATH_MAX: u64 = 4096;

/// Opens `[base, base + len)` of the program, if it may be used as wanted.
fn open(base: u64, len: u64, want: Prot) -> Result<UserAccess, Errno> {
    check(base, len, want)?;
    Ok(UserAccess::open())
}

fn check(base: u64, len: u64, want: Prot) -> Result<(), Errno> {
    let slice = UserSlice::new(base, len)?;
    let mapped = process::with(|p| slice.is_mapped(&p.aspace, want));
    if mapped { Ok(()) } else { Err(Errno::EFAULT) }
}

fn pointer(base: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(base as usize)
}

/// Copies bytes out of the program.
pub(crate) fn copy_in(base: u64, into: &mut [u8]) -> Result<(), Errno> {
    let _access = open(base, into.len() as u64, Prot::READ)?;
    // SAFETY: the source was just checked to be mapped and readable, the
    // target is a Rust slice; one program at a time, so nothing unmaps it.
    unsafe { arch::copy_bytes(into.as_mut_ptr(), pointer(base), into.len()) };
    Ok(())
}

/// Copies bytes into the program.
pub(crate) fn copy_out(base: u64, from: &[u8]) -> Result<(), Errno> {
    let _access = open(base, from.len() as u64, Prot::WRITE)?;
    // SAFETY: as in `copy_in`, the other way.
    unsafe { arch::copy_bytes(pointer(base), from.as_ptr(), from.len()) };
    Ok(())
}

/// Copies `len` bytes of the program to physical memory.
pub(crate) fn copy_in_phys(base: u64, pa: u64, len: u64) -> Result<(), Errno> {
    let _access = open(base, len, Prot::READ)?;
    // SAFETY: the range was just checked.
    unsafe { phys::copy_user(base, pa, len, false) };
    Ok(())
}

/// Copies `len` bytes of physical memory to the program.
pub(crate) fn copy_out_phys(base: u64, pa: u64, len: u64) -> Result<(), Errno> {
    let _access = open(base, len, Prot::WRITE)?;
    // SAFETY: the range was just checked.
    unsafe { phys::copy_user(base, pa, len, true) };
    Ok(())
}

/// Whether the program may write `[base, base + len)`.
pub(crate) fn check_writable(base: u64, len: u64) -> Result<(), Errno> {
    check(base, len, Prot::WRITE)
}

/// Copies a structure out of the program.
pub(crate) fn read<T: FromBytes + FromZeros + IntoBytes>(base: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    copy_in(base, value.as_mut_bytes())?;
    Ok(value)
}

/// Copies a structure into the program.
pub(crate) fn write<T: IntoBytes + Immutable>(base: u64, value: &T) -> Result<(), Errno> {
    copy_out(base, value.as_bytes())
}

/// Changes the aligned word at `base` to what `change` makes of it, if anything,
/// in one step for every thread; the word before.
pub(crate) fn update_word(base: u64, change: impl FnMut(u32) -> Option<u32>) -> Result<u32, Errno> {
    if !base.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    let _access = open(base, 4, Prot::WRITE)?;
    // SAFETY: the word was just checked to be mapped and writable, it is aligned,
    // and programs share it by atomic accesses.
    let word = unsafe { AtomicU32::from_ptr(pointer(base).cast()) };
    let updated = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
    Ok(updated.unwrap_or_else(|unchanged| unchanged))
}

/// A zero-terminated string of the program, with its terminator.
pub(crate) fn read_path(base: u64) -> Result<Vec<u8>, Errno> {
    let mut path = Vec::new();
    let mut at = base;
    while (path.len() as u64) < PATH_MAX {
        // Up to the next page: the page after it may not be mapped.
        let part = (4096 - at % 4096).min(PATH_MAX - path.len() as u64);
        let mut bytes = vec![0; part as usize];
        copy_in(at, &mut bytes)?;
        if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
            path.extend_from_slice(&bytes[..=end]);
            return Ok(path);
        }
        path.extend_from_slice(&bytes);
        at += part;
    }
    Err(Errno::ENAMETOOLONG)
}

/// Moves bytes within the program (the ranges do not overlap).
pub(crate) fn move_within(to: u64, from: u64, len: u64) -> Result<(), Errno> {
    check(from, len, Prot::READ)?;
    let _access = open(to, len, Prot::WRITE)?;
    // SAFETY: both ranges were just checked and do not overlap.
    unsafe { arch::copy_bytes(pointer(to), pointer(from), len as usize) };
    Ok(())
}

/// Zeroes bytes of the program.
pub(crate) fn zero(base: u64, len: u64) -> Result<(), Errno> {
    let _access = open(base, len, Prot::WRITE)?;
    // SAFETY: the range was just checked.
    unsafe { arch::zero_bytes(pointer(base), len as usize) };
    Ok(())
}
