//! XEMEM's calls, one function each.
//!
//! [`crate::Import`], [`crate::Segment`] and [`crate::Attachment`] are built on these; they are public for other language
//! forms (`xasm-c`). Each function is documented with the errors of kernel and
//! broker; all of them fail with ENOSYS outside an enclave.

// UNSAFETY: passes addresses of arguments to the kernel.
#![expect(unsafe_code)]

use crate::calls::address;
use crate::errno::Errno;
use crate::sys::syscall;
use enclave_abi::arena::VarDesc;
use enclave_abi::syscall::{self as numbers, AttachArgs, Imported, SegmentArgs};

/// Access to read.
pub const RDONLY: u64 = numbers::XEMEM_RDONLY;
/// Access to read and write.
pub const RDWR: u64 = numbers::XEMEM_RDWR;
/// A timeout without limit.
pub const NO_LIMIT: u32 = u32::MAX;

/// The id of the segment `name`, of whichever enclave or Linux process; waits
/// up to `timeout_ms` for it (0 = not at all).
///
/// # Errors
/// ENOENT without waiting, ETIMEDOUT after; EINVAL or ENAMETOOLONG for what is
/// no name; ECONNREFUSED or ECONNRESET without a broker.
pub fn lookup(name: &str, timeout_ms: u32) -> Result<u64, Errno> {
    let pointer = name.as_ptr().expose_provenance();
    let args = [
        address(pointer),
        address(name.len()),
        u64::from(timeout_ms),
        0,
    ];
    // SAFETY: `name` is a live string of the length passed, which the call
    // reads.
    let result = unsafe { syscall(numbers::XEMEM_LOOKUP, args) };
    Errno::from_result(result)
}

/// Access to a segment: an apid. `flags` is [`RDONLY`] or [`RDWR`].
///
/// # Errors
/// EACCES without permission, for writing to an arena always; ENOENT if there
/// is no such segment, EIDRM if it has ended; EINVAL.
pub fn get(segid: u64, flags: u64) -> Result<u64, Errno> {
    // SAFETY: the call takes numbers and touches no memory.
    let result = unsafe { syscall(numbers::XEMEM_GET, [segid, flags, 0, 0]) };
    Errno::from_result(result)
}

/// Who signals, or waits for signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The holder of an access.
    Access(u64),
    /// The program that made the segment; to signal, also anybody from outside.
    Segment(u64),
}

impl Target {
    fn args(self, timeout_ms: u32) -> [u64; 4] {
        let (id, by) = match self {
            Self::Access(apid) => (apid, numbers::XEMEM_BY_APID),
            Self::Segment(segid) => (segid, numbers::XEMEM_BY_SEGID),
        };
        [id, by, u64::from(timeout_ms), 0]
    }
}

/// Makes a plain segment of fresh memory, and says where that is; the segid.
///
/// # Errors
/// EINVAL for a size that is not whole pages (none only with signals), a mode,
/// page size or name that cannot be; EEXIST if the name is taken; ENOSPC with
/// 16 attached or made, or 64 made; ENOMEM.
pub fn segment(args: &mut SegmentArgs) -> Result<u64, Errno> {
    let pointer = core::ptr::from_mut(args).expose_provenance();
    // SAFETY: `args` is a live exclusive reference to exactly the structure
    // that the call reads and writes; new mappings overlap nothing.
    let result = unsafe { syscall(numbers::XEMEM_SEGMENT, [address(pointer), 0, 0, 0]) };
    Errno::from_result(result)
}

/// Ends a plain segment of this program; its memory stays, here and wherever it
/// is attached.
///
/// # Errors
/// EACCES for somebody else's, EIDRM if it has ended.
pub fn remove(segid: u64) -> Result<(), Errno> {
    // SAFETY: the call takes a number and touches no memory.
    let result = unsafe { syscall(numbers::XEMEM_REMOVE, [segid, 0, 0, 0]) };
    Errno::from_result(result).map(drop)
}

/// Signals every subscriber of a plain segment but the one named here.
///
/// # Errors
/// EACCES if it cannot be signalled, or not by this user; EINVAL for an arena;
/// EIDRM if it has ended; EBADF, ENOENT.
pub fn signal(by: Target) -> Result<(), Errno> {
    // SAFETY: the call takes numbers and touches no memory.
    let result = unsafe { syscall(numbers::XEMEM_SIGNAL, by.args(0)) };
    Errno::from_result(result).map(drop)
}

/// Has signals kept from now on. Who makes a segment for signals has subscribed.
///
/// # Errors
/// As [`signal`]; EEXIST if there is a subscription, EPERM for the segid of
/// somebody else's segment.
pub fn subscribe(by: Target) -> Result<(), Errno> {
    // SAFETY: the call takes numbers and touches no memory.
    let result = unsafe { syscall(numbers::XEMEM_SUBSCRIBE, by.args(0)) };
    Errno::from_result(result).map(drop)
}

/// Signals since the last time; waits up to `timeout_ms` for one. 0 once the
/// segment has ended and all were taken.
///
/// # Errors
/// ETIMEDOUT; ENOTCONN without a subscription; ECONNRESET if the broker is gone.
pub fn wait(by: Target, timeout_ms: u32) -> Result<u64, Errno> {
    // SAFETY: the call takes numbers and touches no memory.
    let result = unsafe { syscall(numbers::XEMEM_WAIT, by.args(timeout_ms)) };
    Errno::from_result(result)
}

/// Attaches an arena, or a piece of a plain segment; `args` say what of it, and
/// where it is afterwards. Without banks it is plain, and there at once.
///
/// # Errors
/// EBADF for an apid that is not this program's, EEXIST if it is an arena and
/// attached already, EINVAL for a part of an arena, or a piece that is outside
/// or does not begin at a page; EIDRM if it has ended, ENOSPC with 16 attached,
/// ENOMEM.
pub fn attach(args: &mut AttachArgs) -> Result<(), Errno> {
    let pointer = core::ptr::from_mut(args).expose_provenance();
    // SAFETY: `args` is a live exclusive reference to exactly the structure
    // that the call reads and writes; new mappings overlap nothing.
    let result = unsafe { syscall(numbers::XEMEM_ATTACH, [address(pointer), 0, 0, 0]) };
    Errno::from_result(result).map(drop)
}

/// Gives back the generation shown at `start` and shows the next one there;
/// waits up to `timeout_ms` for it. `None` at the end of the stream: then the
/// structure says why, and the last generation stays.
///
/// # Errors
/// ETIMEDOUT; EINVAL if nothing is attached there; EIO if the exporter describes
/// nonsense; ECONNRESET if the broker is gone. The memory may not be read then.
///
/// # Safety
/// Nothing may use the memory at `start` until this has shown a generation, and
/// nothing keeps references to what was there before.
pub unsafe fn next(start: u64, timeout_ms: u32) -> Result<(bool, Imported), Errno> {
    let mut imported = Imported::default();
    let pointer = core::ptr::from_mut(&mut imported).expose_provenance();
    let args = [start, u64::from(timeout_ms), address(pointer), 0];
    // SAFETY: `imported` is a live local of exactly the type the call writes;
    // the memory that changes is nobody's by this function's contract.
    let result = unsafe { syscall(numbers::XEMEM_NEXT, args) };
    Errno::from_result(result).map(|shown| (shown != 0, imported))
}

/// Waits until what is attached at `start` has a generation after `after`, and
/// leases none; the newest one there is, which is not later than `after` when
/// the broker has something to say, as at the end of the stream.
///
/// # Errors
/// ETIMEDOUT; EOPNOTSUPP where the exporter cannot ring here; EINVAL if nothing
/// is attached there.
pub fn await_newer(start: u64, after: u64, timeout_ms: u32) -> Result<u64, Errno> {
    let args = [start, after, u64::from(timeout_ms), 0];
    // SAFETY: the call reads and writes no memory of ours.
    let result = unsafe { syscall(numbers::XEMEM_AWAIT, args) };
    Errno::from_result(result)
}

/// Detaches what is attached at `start`; success if nothing is.
///
/// # Errors
/// EINVAL if something else is mapped there.
///
/// # Safety
/// Nothing may use the memory afterwards.
pub unsafe fn detach(start: u64) -> Result<(), Errno> {
    // SAFETY: the caller gives up the mapping; nothing else is touched.
    let result = unsafe { syscall(numbers::XEMEM_DETACH, [start, 0, 0, 0]) };
    Errno::from_result(result).map(drop)
}

/// Gives access back, and detaches what is attached by it.
///
/// # Errors
/// EBADF for an apid that is not this program's.
///
/// # Safety
/// Nothing may use what is attached by `apid` afterwards.
pub unsafe fn release(apid: u64) -> Result<(), Errno> {
    // SAFETY: the caller gives up the mappings; nothing else is touched.
    let result = unsafe { syscall(numbers::XEMEM_RELEASE, [apid, 0, 0, 0]) };
    Errno::from_result(result).map(drop)
}

/// Whether what is shown at `start` is what was published: not so once the
/// exporter has taken the generation away. To be asked after reading.
///
/// # Errors
/// EINVAL if nothing is attached there.
pub fn is_valid(start: u64) -> Result<bool, Errno> {
    // SAFETY: the call takes a number and touches no memory.
    let result = unsafe { syscall(numbers::XEMEM_VALID, [start, 0, 0, 0]) };
    Errno::from_result(result).map(|valid| valid != 0)
}

/// Variable `index` of the arena attached at `start`, checked by the kernel.
///
/// # Errors
/// ENOENT past the last one, EINVAL if its description is wrong.
pub fn variable(start: u64, index: u32) -> Result<VarDesc, Errno> {
    let mut desc = core::mem::MaybeUninit::<VarDesc>::zeroed();
    let pointer = desc.as_mut_ptr().expose_provenance();
    let args = [start, u64::from(index), address(pointer), 0];
    // SAFETY: `desc` is a live local of exactly the type the call writes.
    let result = unsafe { syscall(numbers::XEMEM_VARIABLE, args) };
    Errno::from_result(result)?;
    // SAFETY: all bytes were zeroed or written, and any bytes are a VarDesc.
    Ok(unsafe { desc.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn plain_linux_answers_enosys_to_every_call() {
        let enosys = Err(Errno::ENOSYS);
        assert_eq!(lookup("x", 0), enosys);
        assert_eq!(get(1, RDONLY), enosys);
        assert_eq!(attach(&mut AttachArgs::default()), Err(Errno::ENOSYS));
        assert_eq!(is_valid(0), Err(Errno::ENOSYS));
        let mut args = SegmentArgs::new_zeroed();
        assert_eq!(segment(&mut args), enosys);
        assert_eq!(remove(1), Err(Errno::ENOSYS));
        assert_eq!(signal(Target::Access(1)), Err(Errno::ENOSYS));
        assert_eq!(subscribe(Target::Segment(1)), Err(Errno::ENOSYS));
        assert_eq!(wait(Target::Access(1), 0), enosys);
        assert_eq!(variable(0, 0).map(drop), Err(Errno::ENOSYS));
        // SAFETY: nothing is attached, so nothing is used.
        let (next, detached, released) = unsafe { (next(0, 0), detach(0), release(1)) };
        assert_eq!(next, Err(Errno::ENOSYS));
        assert_eq!(
            (detached, released),
            (Err(Errno::ENOSYS), Err(Errno::ENOSYS))
        );
    }
}
