//! System calls beyond Linux's, and how forwarded Linux calls are packed.
//!
//! Numbers from 1024 up are ours; Linux answers them with ENOSYS, which is how
//! a program finds out where it runs. Arguments go in the Linux registers
//! (RDI, RSI, RDX, R10, R8, R9), results come back in RAX, negative errno on
//! failure.
//!
//! A *forwarded* call ([`crate::queue::Call::Forward`]) replaces each pointer
//! argument by an offset into the bounce area; what goes there and back:
//!
//! | call | to host | to guest |
//! |---|---|---|
//! | write, pwrite64 | the data at 0 | – |
//! | read, pread64, getdents64, getcwd, readlink, readlinkat | – | the data at 0 |
//! | open, stat, access, chdir, mkdir, unlink, rmdir … and their `at` forms | path at 0, zero terminated | struct stat at 4096 where there is one |
//! | rename, renameat, renameat2 | old path at 0, new path at 4096 | – |
//! | fstat, ioctl, pipe2 | in-out argument at 4096 | the same |
//! | poll | array of pollfd at 0 | the same |

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First number that is ours.
pub const BASE: u64 = 1024;
/// `() → ABI version`.
pub const XASM_VERSION: u64 = BASE;
/// `(*mut ArenaArgs) → arena slot`; fills in `start`.
pub const ARENA_CREATE: u64 = BASE + 1;
/// `(slot, *const VarDesc) → index`: adds or replaces a variable by name.
pub const ARENA_VAR: u64 = BASE + 2;
/// `(slot, step, time bits) → generation`; EAGAIN when the pool is exhausted.
pub const ARENA_PUBLISH: u64 = BASE + 3;
/// `(slot) → 0`: ends the arena and unmaps it.
pub const ARENA_DESTROY: u64 = BASE + 4;
/// `(slot, *mut ArenaStats) → 0`.
pub const ARENA_STATS: u64 = BASE + 5;
/// `(address, length, name, name length) → segid`: a (further) name for the
/// arena, or the plain segment of the program's own, that starts at `address`.
pub const XEMEM_MAKE: u64 = BASE + 6;
/// `(*mut KernelStats) → 0`: counters of this kernel.
pub const KERNEL_STATS: u64 = BASE + 7;
/// `(address) → arena slot` of the arena that contains `address`.
pub const ARENA_FIND: u64 = BASE + 8;
/// `(*mut [u64; 4]) → 0`: KVM's exact counters of this vCPU, as
/// [`crate::queue::Call::HostCounters`] gives them, for benchmarks.
pub const HOST_COUNTERS: u64 = BASE + 9;
/// `(send) → 0`: has the host send one command interrupt if `send` is 1, and
/// none if it is 0, for tests and benchmarks of the way from Linux into the
/// enclave. [`KernelStats::interrupts`] counts its arrival.
pub const HOST_INTERRUPT: u64 = BASE + 10;

/// `(slot, readers, timeout in ms) → readers attached`: waits until so many
/// readers are attached to an arena (a rendezvous); ETIMEDOUT. A timeout of 0 is
/// for ever.
pub const ARENA_WAIT_READERS: u64 = BASE + 11;

/// `(bit per arena slot, step, time bits) → arenas published`: one state of
/// several arenas, all of them or none; EAGAIN when one that may refuse is
/// exhausted.
pub const ARENA_PUBLISH_SET: u64 = BASE + 12;

/// `(name, name length, timeout in ms) → segid` of a live segment, whichever
/// kernel its exporter runs on. A timeout of 0 is no wait (ENOENT), of
/// `u32::MAX` for ever; ETIMEDOUT.
pub const XEMEM_LOOKUP: u64 = BASE + 13;
/// `(segid, XEMEM_RDONLY or XEMEM_RDWR) → apid`; EACCES without permission.
pub const XEMEM_GET: u64 = BASE + 14;
/// `(*mut AttachArgs) → address`. A plain segment, or a piece of it, is there at
/// once, to be written too if the access is for that; of an arena nothing can be
/// read before the first [`XEMEM_NEXT`].
pub const XEMEM_ATTACH: u64 = BASE + 15;
/// `(address, timeout in ms, *mut Imported) → 1`, or 0 at the end of the
/// stream, when the last generation stays. Gives the generation shown back,
/// waits for the next one (0 = no wait, `u32::MAX` = for ever; ETIMEDOUT) and
/// shows it at the same address. After an error the memory may not be read.
pub const XEMEM_NEXT: u64 = BASE + 16;
/// `(address) → 0`, also where nothing is attached. The memory of a segment of
/// the program's own goes away together with the segment.
pub const XEMEM_DETACH: u64 = BASE + 17;
/// `(apid) → 0`: detaches what is attached by it, gives the access back.
pub const XEMEM_RELEASE: u64 = BASE + 18;
/// `(address) → 1` while what is shown there is what was published, 0 once the
/// exporter has taken the generation away.
pub const XEMEM_VALID: u64 = BASE + 19;
/// `(address, index, *mut VarDesc) → 0`: a variable of the arena attached
/// there, checked; EINVAL where the exporter describes nonsense, ENOENT past
/// the last one.
pub const XEMEM_VARIABLE: u64 = BASE + 20;

/// `(*mut SegmentArgs) → segid`: makes a plain segment of fresh memory.
pub const XEMEM_SEGMENT: u64 = BASE + 21;
/// `(segid) → 0`: ends a plain segment of the program's own. Its memory stays
/// where it is, for this program and for whoever has attached it.
pub const XEMEM_REMOVE: u64 = BASE + 22;
/// `(id, XEMEM_BY_APID or XEMEM_BY_SEGID) → 0`: signals every subscriber of a
/// plain segment but the one named here; another's segid signals from outside.
pub const XEMEM_SIGNAL: u64 = BASE + 23;
/// `(id, XEMEM_BY_APID or XEMEM_BY_SEGID) → 0`: has signals kept from now on. Who
/// makes a segment with [`SEGMENT_SIGNALS`] has subscribed to it.
pub const XEMEM_SUBSCRIBE: u64 = BASE + 24;
/// `(id, XEMEM_BY_APID or XEMEM_BY_SEGID, timeout in ms) → signals` since the
/// last time, 0 if the segment has ended and all were taken. A timeout of 0 is
/// no wait, of `u32::MAX` for ever; ETIMEDOUT.
pub const XEMEM_WAIT: u64 = BASE + 25;
/// `(address, generation, timeout in ms) → newest generation`: waits until the
/// arena attached there has a generation after the one given, and leases none.
/// Returns earlier, with what there is, when the broker has something to say, as
/// at the end of the stream. ETIMEDOUT; EOPNOTSUPP where the exporter cannot
/// ring here.
pub const XEMEM_AWAIT: u64 = BASE + 28;

/// `(src, dst, start, extent) → 0`: shows the first 512 GiB of the sibling `src` to the
/// caller `dst` at `start`, 512 GiB times 1 to 12; `extent` is 512 GiB (SMARTMAP).
/// EPERM, EINVAL, ESRCH, EBUSY where another shows, EEXIST where it shows already.
pub const ASPACE_SMARTMAP: u64 = BASE + 29;
/// `(src, dst) → 0`: takes that back; ENOENT.
pub const ASPACE_UNSMARTMAP: u64 = BASE + 30;
/// `(id, rank) → 0`: the caller's place among its siblings; EPERM, EEXIST.
pub const ASPACE_SET_RANK: u64 = BASE + 31;
/// `(id) → rank`; ESRCH, ENOENT where it has none.
pub const ASPACE_GET_RANK: u64 = BASE + 32;
/// `(rank) → id`; ENOENT.
pub const ASPACE_OF_RANK: u64 = BASE + 33;

/// The id is an access.
pub const XEMEM_BY_APID: u64 = 0;
/// The id is a segment.
pub const XEMEM_BY_SEGID: u64 = 1;

/// `(slot, first byte, bytes, bank) → 0`: copies of the chunks that the range
/// touches go to `bank` from now on if that is free; a bank of `u32::MAX` takes
/// the wish back. EINVAL without [`PLACE_PREFERRED`] or such a bank, EFAULT for
/// a range outside the arena.
pub const ARENA_PREFER: u64 = BASE + 26;
/// `(slot, first, *mut u64, most) → n`: the `first`-th and up to `most` of the
/// chunks that were written between the newest publish and the one before, as
/// entries of the change log ([`crate::arena::split_log_entry`]); 0 past the last.
pub const ARENA_COPIED: u64 = BASE + 27;

/// Access to read.
pub const XEMEM_RDONLY: u64 = 1;
/// Access to read and write.
pub const XEMEM_RDWR: u64 = 2;

/// A timeout without limit.
pub const NO_LIMIT: u64 = u32::MAX as u64;

/// [`AttachArgs::policy`]: only the newest generation counts.
pub const FOLLOW_LATEST: u32 = 1;
/// Every generation, in order, as far as the exporter's pool goes.
pub const FOLLOW_EVERY: u32 = 2;

/// Attachments a program may have at once.
pub const MAX_IMPORTS: usize = 16;

/// Arguments of [`XEMEM_ATTACH`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct AttachArgs {
    /// The access.
    pub apid: u64,
    /// Bytes from the segment's start, whole pages of it; 0 for an arena.
    pub offset: u64,
    /// In: bytes, 0 = all that follow, an arena only whole; out: bytes attached,
    /// whole pages.
    pub size_bytes: u64,
    /// In: wanted address (512 GiB aligned) or 0; out: address.
    pub start: u64,
    /// [`FOLLOW_LATEST`] or [`FOLLOW_EVERY`]; of no meaning for a plain segment.
    pub policy: u32,
    /// Out: banks of the arena; 0 = it is a plain segment.
    pub nr_banks: u32,
    /// Out: bytes of a chunk of the arena, of a page of the plain segment.
    pub chunk_bytes: u64,
}

/// [`SegmentArgs::flags`]: it can be signalled.
pub const SEGMENT_SIGNALS: u32 = 1;
/// Plain segments that a program may have at once.
pub const MAX_SEGMENTS: usize = 64;

/// Arguments of [`XEMEM_SEGMENT`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentArgs {
    /// Name, UTF-8, zero padded; all zero = no name yet.
    pub name: [u8; 64],
    /// Bytes, whole pages; 0 = signals without memory.
    pub size_bytes: u64,
    /// In: 4 KiB or 2 MiB, 0 = as the host likes; out: bytes of a page behind it.
    pub page_bytes: u64,
    /// In: wanted address (512 GiB aligned) or 0; out: address, 0 without memory.
    pub start: u64,
    /// Who may read and write: unix mode bits for the user of the enclave, the
    /// group, others.
    pub mode: u32,
    /// Group of the permit; `u32::MAX` = the user's primary one.
    pub gid: u32,
    /// [`SEGMENT_SIGNALS`] or 0.
    pub flags: u32,
    /// Padding, zero.
    pub pad: u32,
}

/// Result of [`XEMEM_NEXT`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Imported {
    /// The generation shown; at the end of the stream the last one, 0 if none
    /// ever was.
    pub generation: u64,
    /// The exporter's time step.
    pub step: u64,
    /// The exporter's time, the bits of an f64.
    pub time_bits: u64,
    /// Wall-clock nanoseconds at the publish.
    pub unix_ns: u64,
    /// Chunks that the exporter copied since its publish before.
    pub chunks_copied: u64,
    /// Chunks that had to be mapped anew.
    pub chunks_mapped: u64,
    /// Address of the first byte.
    pub address: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// Why the stream ended: 0 = it has not, 1 = closed by its program, 2 =
    /// the program died, 3 = the exporter is gone, 4 = removed.
    pub end_reason: u64,
}

/// Policy when the pool is exhausted: refuse the publish, count it.
pub const POLICY_DISCARD_NEWEST: u32 = 0;
/// Take the oldest generation away from whoever reads it, count it; its
/// readers see that it is not valid any more.
pub const POLICY_DISCARD_OLDEST: u32 = 1;
/// Wait until a reader gives one back, at most [`ArenaArgs::timeout_ms`], then
/// refuse with ETIMEDOUT and count it.
pub const POLICY_BLOCK: u32 = 2;

/// A copy goes to the next bank in turn, chunk by chunk, so that chunks which
/// are written equally often lie side by side.
pub const PLACE_IN_TURN: u32 = 0;
/// To the first bank whose frame of the chunk no held generation needs: no more
/// memory is touched than there are generations held at once.
pub const PLACE_FIRST_FREE: u32 = 1;
/// To the bank that the program prefers ([`ARENA_PREFER`]) if that is free, else
/// as [`PLACE_FIRST_FREE`].
pub const PLACE_PREFERRED: u32 = 2;

/// Arguments of [`ARENA_CREATE`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ArenaArgs {
    /// Name, UTF-8, zero padded; all zero = no name yet.
    pub name: [u8; 64],
    /// Payload bytes, a multiple of `chunk_bytes`.
    pub size_bytes: u64,
    /// 4 KiB or 2 MiB.
    pub chunk_bytes: u64,
    /// Banks, see [`crate::arena`].
    pub nr_banks: u32,
    /// One of `POLICY_*`.
    pub policy: u32,
    /// In: wanted address (512 GiB aligned) or 0; out: address.
    pub start: u64,
    /// Group id that may read besides the owner; `u32::MAX` = none.
    pub reader_gid: u32,
    /// Longest wait of a publish with [`POLICY_BLOCK`] in milliseconds; 0 = no
    /// limit.
    pub timeout_ms: u32,
    /// Newest generations to keep although nobody leased them, below
    /// `nr_banks`; 0 counts as 1.
    pub retain: u32,
    /// One of `PLACE_*`.
    pub placement: u32,
}

/// Result of [`ARENA_STATS`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ArenaStats {
    /// Newest generation.
    pub generation: u64,
    /// Publishes refused.
    pub dropped: u64,
    /// Generations taken away from their readers ([`POLICY_DISCARD_OLDEST`]).
    pub discarded: u64,
    /// Publishes that waited for a reader ([`POLICY_BLOCK`]).
    pub waited: u64,
    /// Copy-on-write faults.
    pub cow_faults: u64,
    /// Generations held (published or leased).
    pub held: u64,
    /// XEMEM segment id.
    pub segid: u64,
    /// Bytes of a host page behind the arena: 4 KiB or 2 MiB.
    pub backing_page_bytes: u64,
}

/// Result of [`KERNEL_STATS`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct KernelStats {
    /// 0 or 3.
    pub mode: u64,
    /// System calls served.
    pub syscalls: u64,
    /// Calls forwarded to the host.
    pub forwarded: u64,
    /// Command interrupts taken.
    pub interrupts: u64,
    /// Copy-on-write faults.
    pub cow_faults: u64,
    /// Publishes.
    pub publishes: u64,
    /// Free bytes of RAM.
    pub free_bytes: u64,
    /// 0: upper-level store flushes; 1: CR3 reload.
    pub flush_method: u64,
}

const _: () = assert!(size_of::<ArenaArgs>() == 64 + 8 * 6);
const _: () = assert!(size_of::<AttachArgs>() == 8 * 6);
const _: () = assert!(size_of::<SegmentArgs>() == 64 + 8 * 5);
const _: () = assert!(size_of::<Imported>() == 8 * 9);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_one_call() {
        let calls = [
            XASM_VERSION,
            ARENA_CREATE,
            ARENA_VAR,
            ARENA_PUBLISH,
            ARENA_DESTROY,
            ARENA_STATS,
            XEMEM_MAKE,
            KERNEL_STATS,
            ARENA_FIND,
            HOST_COUNTERS,
            HOST_INTERRUPT,
            ARENA_WAIT_READERS,
            ARENA_PUBLISH_SET,
            XEMEM_LOOKUP,
            XEMEM_GET,
            XEMEM_ATTACH,
            XEMEM_NEXT,
            XEMEM_DETACH,
            XEMEM_RELEASE,
            XEMEM_VALID,
            XEMEM_VARIABLE,
            XEMEM_SEGMENT,
            XEMEM_REMOVE,
            XEMEM_SIGNAL,
            XEMEM_SUBSCRIBE,
            XEMEM_WAIT,
            ARENA_PREFER,
            ARENA_COPIED,
            XEMEM_AWAIT,
        ];
        assert!((BASE..).zip(calls).all(|(number, call)| number == call));
    }
}
