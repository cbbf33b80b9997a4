//! The calls of the library, one function each, by arena slot: system calls of
//! an enclave's kernel, or what the Linux backend does in their place.
//!
//! [`crate::Arena`] is built on these; they are public for other language
//! forms (`xasm-c`), which keep their own table of arenas. Each function is
//! documented with the errors of the kernel.

// UNSAFETY: passes addresses of arguments to the kernel.
#![expect(unsafe_code)]

use crate::backend::{Backend, backend};
use crate::errno::Errno;
use crate::linux;
use crate::sys::syscall;
use enclave_abi::arena::VarDesc;
use enclave_abi::syscall::{self as numbers, ArenaArgs, ArenaStats, KernelStats};

/// Linux's `getpid`, which the enclave's kernel serves too.
const GETPID: u64 = 39;

/// Whether the program can publish: an enclave kernel that speaks this library's
/// version is below, or Linux and a broker.
#[must_use]
pub fn available() -> bool {
    require().is_ok()
}

/// Fails unless [`available`], and says why.
///
/// # Errors
/// As [`backend`].
pub fn require() -> Result<(), Errno> {
    backend().map(drop)
}

/// Version of the interface that an enclave kernel speaks.
///
/// # Errors
/// ENOSYS outside an enclave, also where a system-call filter answers
/// something else for numbers it does not know.
pub fn version() -> Result<u32, Errno> {
    // SAFETY: the call takes no pointers and changes nothing.
    let result = unsafe { syscall(numbers::XASM_VERSION, [0; 4]) };
    let version = Errno::from_result(result).map_err(|_| Errno::ENOSYS)?;
    u32::try_from(version).map_err(|_| Errno::EPROTO)
}

/// Makes an arena and returns its slot; `args.start` becomes its address.
///
/// # Errors
/// EINVAL for a size, chunk, bank count, address or name that cannot be;
/// EEXIST when the name is taken; ENOMEM when the host has no memory for it;
/// ENOSPC when the enclave has all its arenas; EACCES when the broker's
/// permits forbid the name; ENOSYS without a backend.
pub fn arena_create(args: &mut ArenaArgs) -> Result<u32, Errno> {
    if backend()? == Backend::Linux {
        return linux::arena_create(args);
    }
    let pointer = core::ptr::from_mut(args).expose_provenance();
    // SAFETY: `args` is a live exclusive reference to exactly the structure
    // that the call reads and writes; new mappings overlap nothing.
    let result = unsafe { syscall(numbers::ARENA_CREATE, [address(pointer), 0, 0, 0]) };
    slot(Errno::from_result(result)?)
}

/// Adds or replaces (by name) a variable of an arena; returns its index.
///
/// # Errors
/// ENOENT for an unknown slot, EINVAL when [`VarDesc::check`] refuses the
/// description, ENOSPC when the table is full, ENOSYS without a backend.
pub fn arena_var(slot: u32, desc: &VarDesc) -> Result<u32, Errno> {
    if backend()? == Backend::Linux {
        return linux::arena_var(slot, desc);
    }
    let pointer = core::ptr::from_ref(desc).expose_provenance();
    // SAFETY: `desc` is a live reference to the structure the call reads.
    let result = unsafe {
        syscall(
            numbers::ARENA_VAR,
            [u64::from(slot), address(pointer), 0, 0],
        )
    };
    let index = Errno::from_result(result)?;
    u32::try_from(index).map_err(|_| Errno::EPROTO)
}

/// Publishes the arena's present contents; returns the new generation.
///
/// The caller must not hold a mutable Rust borrow of arena memory across this
/// call: the compiler could delay its stores past it and the snapshot would
/// lack them. [`crate::Arena::publish`] enforces that.
///
/// # Errors
/// EAGAIN when every bank is held (the refusal is counted), ENOENT for an
/// unknown slot, ENOSYS without a backend.
pub fn arena_publish(slot: u32, step: u64, time: f64) -> Result<u64, Errno> {
    if backend()? == Backend::Linux {
        return linux::arena_publish(slot, step, time.to_bits());
    }
    // SAFETY: no pointers; the arena keeps its contents and its address.
    let result = unsafe {
        syscall(
            numbers::ARENA_PUBLISH,
            [u64::from(slot), step, time.to_bits(), 0],
        )
    };
    Errno::from_result(result)
}

/// Publishes one state of the arenas in `slots`, all of them or none.
///
/// # Errors
/// As [`arena_publish`]; EINVAL without a slot, or with one beyond 31.
pub fn arena_publish_set(slots: &[u32], step: u64, time: f64) -> Result<(), Errno> {
    let set = slots.iter().try_fold(0_u64, |set, &slot| {
        let bit = 1_u64.checked_shl(slot).ok_or(Errno::EINVAL)?;
        Ok(set | bit)
    })?;
    if backend()? == Backend::Linux {
        return linux::arena_publish_set(set, step, time.to_bits()).map(drop);
    }
    // SAFETY: as in `arena_publish`.
    let result = unsafe { syscall(numbers::ARENA_PUBLISH_SET, [set, step, time.to_bits(), 0]) };
    Errno::from_result(result).map(drop)
}

/// Has copies of the chunks that a range of an arena touches go to `bank` if
/// that is free; `None` takes the wish back.
///
/// # Errors
/// ENOENT for an unknown slot; EINVAL for an arena without
/// [`Placement::Preferred`](crate::Placement::Preferred) or that bank; EFAULT
/// for a range outside the arena; ENOSYS without a backend.
pub fn arena_prefer(slot: u32, offset: u64, bytes: u64, bank: Option<u32>) -> Result<(), Errno> {
    if backend()? == Backend::Linux {
        return linux::arena_prefer(slot, offset, bytes, bank);
    }
    let bank = u64::from(bank.unwrap_or(u32::MAX));
    // SAFETY: the call takes numbers and touches no memory.
    let result = unsafe {
        syscall(
            numbers::ARENA_PREFER,
            [u64::from(slot), offset, bytes, bank],
        )
    };
    Errno::from_result(result).map(drop)
}

/// Chunks that were written between the newest publish and the one before: from
/// the `first`-th on as many as `into` takes, each with the bank it went to, as
/// entries of the change log. How many they are; 0 past the last.
///
/// # Errors
/// ENOENT for an unknown slot; ENOSYS without a backend.
pub fn arena_copied(slot: u32, first: u64, into: &mut [u64]) -> Result<usize, Errno> {
    if backend()? == Backend::Linux {
        return linux::arena_copied(slot, first, into);
    }
    let most = into.len();
    let pointer = into.as_mut_ptr().expose_provenance();
    let args = [u64::from(slot), first, address(pointer), address(most)];
    // SAFETY: `into` is a live exclusive slice of the words that the call may
    // write.
    let result = unsafe { syscall(numbers::ARENA_COPIED, args) };
    let nr = Errno::from_result(result)?;
    usize::try_from(nr)
        .ok()
        .filter(|&nr| nr <= most)
        .ok_or(Errno::EPROTO)
}

/// Ends an arena and unmaps it.
///
/// # Errors
/// ENOENT for an unknown slot, ENOSYS without a backend.
///
/// # Safety
/// Nothing may use the arena's memory afterwards.
pub unsafe fn arena_destroy(slot: u32) -> Result<(), Errno> {
    if backend()? == Backend::Linux {
        return linux::arena_destroy(slot);
    }
    // SAFETY: the caller gives up the mapping; nothing else is touched.
    let result = unsafe { syscall(numbers::ARENA_DESTROY, [u64::from(slot), 0, 0, 0]) };
    Errno::from_result(result).map(|_| ())
}

/// Makes arena memory writable now that stores would make writable one chunk
/// after the other. Needed only before Linux is to store there for the program
/// (`read(2)` into an arena), and only outside an enclave; harmless anywhere.
///
/// # Errors
/// ENOENT when `start` is in no arena, EFAULT when the range is not inside it,
/// ENOSYS without a backend.
pub fn arena_touch(start: *const u8, bytes: u64) -> Result<(), Errno> {
    match backend()? {
        Backend::Linux => linux::touch(address(start.addr()), bytes),
        // The kernel stores as the program does.
        Backend::Enclave => arena_find(start).map(drop),
    }
}

/// Counters of an arena.
///
/// # Errors
/// ENOENT for an unknown slot, ENOSYS without a backend.
pub fn arena_stats(slot: u32) -> Result<ArenaStats, Errno> {
    if backend()? == Backend::Linux {
        return linux::arena_stats(slot);
    }
    let mut stats = ArenaStats::default();
    let pointer = core::ptr::from_mut(&mut stats).expose_provenance();
    // SAFETY: `stats` is a live local of exactly the type the call writes.
    let result = unsafe {
        syscall(
            numbers::ARENA_STATS,
            [u64::from(slot), address(pointer), 0, 0],
        )
    };
    Errno::from_result(result)?;
    Ok(stats)
}

/// Slot of the arena that contains `pointer`; the pointee is not touched.
///
/// # Errors
/// ENOENT when no arena does, ENOSYS without a backend.
pub fn arena_find(pointer: *const u8) -> Result<u32, Errno> {
    if backend()? == Backend::Linux {
        return linux::arena_find(address(pointer.addr()));
    }
    // SAFETY: the call compares the address and dereferences nothing.
    let result = unsafe { syscall(numbers::ARENA_FIND, [address(pointer.addr()), 0, 0, 0]) };
    slot(Errno::from_result(result)?)
}

/// Gives the arena that starts at `start` a further name; returns the segid.
///
/// # Errors
/// EINVAL when no arena of `bytes` starts there or the name cannot be, EEXIST
/// when the name is taken, ENOSYS without a backend.
pub fn xemem_make(start: *const u8, bytes: u64, name: &str) -> Result<u64, Errno> {
    if backend()? == Backend::Linux {
        return linux::xemem_make(address(start.addr()), bytes, name);
    }
    let name_pointer = name.as_ptr().expose_provenance();
    let args = [
        address(start.addr()),
        bytes,
        address(name_pointer),
        address(name.len()),
    ];
    // SAFETY: `name` is a live string of the length passed, which the call
    // reads; the arena itself is only looked up.
    let result = unsafe { syscall(numbers::XEMEM_MAKE, args) };
    Errno::from_result(result)
}

/// Counters of the kernel below.
///
/// # Errors
/// ENOSYS without a backend.
pub fn kernel_stats() -> Result<KernelStats, Errno> {
    enclave_only()?;
    let mut stats = KernelStats::default();
    let pointer = core::ptr::from_mut(&mut stats).expose_provenance();
    // SAFETY: `stats` is a live local of exactly the type the call writes.
    let result = unsafe { syscall(numbers::KERNEL_STATS, [address(pointer), 0, 0, 0]) };
    Errno::from_result(result)?;
    Ok(stats)
}

/// KVM's exact counters of the virtual CPU that runs this program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HostCounters {
    /// Instructions the host interpreted.
    pub emulated_instructions: u64,
    /// Exits from the guest.
    pub exits: u64,
    /// Page faults given to the guest.
    pub guest_page_faults: u64,
    /// Interrupts given to the guest.
    pub injected_interrupts: u64,
}

/// Counters the host keeps, for benchmarks; the call costs a fixed number of
/// emulated instructions itself.
///
/// # Errors
/// ENOSYS without a backend.
pub fn host_counters() -> Result<HostCounters, Errno> {
    enclave_only()?;
    let mut counters = HostCounters::default();
    let pointer = core::ptr::from_mut(&mut counters).expose_provenance();
    // SAFETY: `counters` is a live local of the four words the call writes.
    let result = unsafe { syscall(numbers::HOST_COUNTERS, [address(pointer), 0, 0, 0]) };
    Errno::from_result(result)?;
    Ok(counters)
}

/// Id of the calling process, which is the id of its address space.
///
/// # Errors
/// None known; the kernel's word is passed on.
pub fn process_id() -> Result<u32, Errno> {
    // SAFETY: the call takes no pointers and changes nothing.
    let result = unsafe { syscall(GETPID, [0; 4]) };
    slot(Errno::from_result(result)?)
}

/// ENOSYS for what only an enclave has.
fn enclave_only() -> Result<(), Errno> {
    match backend()? {
        Backend::Enclave => Ok(()),
        Backend::Linux => Err(Errno::ENOSYS),
    }
}

/// A machine word as an argument register.
pub(crate) fn address(word: usize) -> u64 {
    const { assert!(size_of::<usize>() <= size_of::<u64>()) };
    word as u64
}

/// A small number out of a result register.
fn slot(value: u64) -> Result<u32, Errno> {
    u32::try_from(value).map_err(|_| Errno::EPROTO)
}

const _: () = assert!(size_of::<HostCounters>() == size_of::<[u64; 4]>());

/// Waits until `readers` are attached to the arena in `slot`, at most
/// `timeout_ms` milliseconds (0 = no limit); returns how many there are.
///
/// # Errors
/// ENOENT without such an arena, ETIMEDOUT.
pub fn arena_wait_readers(slot: u32, readers: u32, timeout_ms: u32) -> Result<u32, Errno> {
    if backend()? == Backend::Linux {
        return linux::arena_wait_readers(slot, readers, timeout_ms);
    }
    let args = [
        u64::from(slot),
        u64::from(readers),
        u64::from(timeout_ms),
        0,
    ];
    // SAFETY: the call takes numbers and touches no memory.
    let result = unsafe { syscall(numbers::ARENA_WAIT_READERS, args) };
    Errno::from_result(result).map(|attached| u32::try_from(attached).unwrap_or(u32::MAX))
}

/// Has the host send one command interrupt into the enclave if `send` is set,
/// and makes the same way without it if not, for tests and benchmarks.
///
/// # Errors
/// ENOSYS without a backend.
pub fn host_interrupt(send: bool) -> Result<(), Errno> {
    enclave_only()?;
    // SAFETY: the call takes a number and touches no memory.
    let result = unsafe { syscall(numbers::HOST_INTERRUPT, [u64::from(send), 0, 0, 0]) };
    Errno::from_result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_backend_every_call_answers_enosys() {
        assert_eq!(crate::select(crate::Choice::Off), Ok(()));
        assert!(!available());
        assert_eq!(version(), Err(Errno::ENOSYS));
        assert_eq!(arena_publish(0, 1, 0.0), Err(Errno::ENOSYS));
        assert_eq!(arena_stats(0), Err(Errno::ENOSYS));
        assert_eq!(arena_find(core::ptr::null()), Err(Errno::ENOSYS));
        assert_eq!(xemem_make(core::ptr::null(), 0, "x"), Err(Errno::ENOSYS));
        assert_eq!(kernel_stats(), Err(Errno::ENOSYS));
        assert_eq!(host_counters(), Err(Errno::ENOSYS));
    }

    #[test]
    fn linux_calls_go_through_the_same_instruction() {
        assert_eq!(process_id(), Ok(std::process::id()));
    }
}
