//! The command queue and the console ring between a kernel and its VMM.
//!
//! Two single-producer single-consumer rings of 64-byte records in one shared
//! page pair. The kernel posts a [`Record`] to `to_host` and stores to the
//! queue doorbell; the VMM answers in `to_guest` with the same `seq`. Unasked
//! commands (`seq` 0) travel the same way. Either side treats the other's
//! indices as hostile: the difference is checked, a record is copied once and
//! then decoded.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `"XASMQUEU"` in little endian.
pub const QUEUE_MAGIC: u64 = u64::from_le_bytes(*b"XASMQUEU");
/// Records in each ring; a power of two.
pub const RING_RECORDS: u32 = 32;

/// One message.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Record {
    /// Record format; [`RECORD_VERSION`].
    pub version: u16,
    /// One of [`Call`] (to host) or [`Command`] (to guest) as a number.
    pub kind: u16,
    /// Number chosen by the asker; answers repeat it; 0 = unasked.
    pub seq: u32,
    /// Meaning depends on `kind`.
    pub args: [u64; 7],
}

/// Version of [`Record`].
pub const RECORD_VERSION: u16 = 1;

/// [`Call::Booted`]: no self-test was asked for.
pub const SELFTEST_NONE: u64 = 0;
/// [`Call::Booted`]: the self-test passed.
pub const SELFTEST_PASSED: u64 = 1;
/// [`Call::Booted`]: the self-test failed, or there is none of that number.
pub const SELFTEST_FAILED: u64 = 2;
/// [`Call::Booted`]: this CPU lacks what the self-test is about. The console
/// line `self-test N (name): not covered: reason` says what.
pub const SELFTEST_NOT_COVERED: u64 = 3;

/// A ring: free-running indices, entry = index modulo [`RING_RECORDS`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ring {
    /// Next record the producer writes (written by the producer only).
    pub head: u32,
    /// Padding to a cache line.
    pub pad0: [u32; 15],
    /// Next record the consumer reads (written by the consumer only).
    pub tail: u32,
    /// Padding to a cache line.
    pub pad1: [u32; 15],
    /// The records.
    pub records: [Record; RING_RECORDS as usize],
}

/// The shared pages.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QueuePage {
    /// [`QUEUE_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// Command interrupts the kernel has taken and left the interrupt stack of.
    /// The VMM sends the next one only then: on a host that nests interrupts
    /// before their end it would start at the top of that stack again.
    pub interrupts_taken: u32,
    /// Bells of attached arenas taken ([`crate::layout::VECTOR_BELL`]); several
    /// that ring before one is taken are one.
    pub bells_taken: u32,
    /// Notices taken ([`crate::layout::VECTOR_NOTICE`]).
    pub notices_taken: u32,
    /// Bells taken that were about nothing new.
    pub bells_idle: u32,
    /// Times that bells were held off because they rang for nothing.
    pub bells_paused: u32,
    /// Run whose process has the cores; forwarded calls are its own. 0 = none.
    pub current_run: u64,
    /// Padding.
    pub pad: [u32; 6],
    /// Kernel → VMM.
    pub to_host: Ring,
    /// VMM → kernel.
    pub to_guest: Ring,
}

const _: () = assert!(size_of::<Record>() == 64);
const _: () = assert!(size_of::<Ring>() == 128 + 2048);
const _: () = assert!(size_of::<QueuePage>() == 64 + 2 * 2176);
const _: () = assert!(size_of::<QueuePage>() <= 8192);

macro_rules! numbers {
    ($(#[$m:meta])* $name:ident { $($(#[$v:meta])* $var:ident = $n:literal),* $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum $name { $($(#[$v])* $var = $n),* }
        impl TryFrom<u16> for $name {
            type Error = u16;
            fn try_from(value: u16) -> Result<Self, u16> {
                match value { $($n => Ok(Self::$var),)* other => Err(other) }
            }
        }
    };
}

numbers! {
    /// Kernel → VMM: what the kernel asks. Every call is answered by one
    /// record with the same `kind` and `seq`; `args[0]` of the answer is the
    /// result, negative Linux errno on failure.
    Call {
        /// Nothing to run: block until a [`Command`] is there. No answer.
        Idle = 1,
        /// The kernel is up. `args` = {mode, verdict of the self-test (one of
        /// `SELFTEST_…`), flush method, gate seen, number of self-tests the
        /// kernel has}. No answer.
        Booted = 2,
        /// A process ended. `args` = {run id, wait status as of wait(2), reason
        /// bytes in the bounce area, monotonic nanoseconds when its image was
        /// loaded and when it was entered first; 0 = never}. No answer.
        ProcessExit = 3,
        /// Read the program image of run `args[0]`: {run id, file offset,
        /// guest-physical target, length}. Answer: bytes read.
        ImageRead = 4,
        /// A forwarded system call. `args` = {number, a0..a4, bytes of the bounce
        /// area that go along}; pointers are replaced as in [`crate::syscall`].
        Forward = 5,
        /// Make an arena. An [`crate::syscall::ArenaArgs`] stands in the bounce
        /// area; `args[0]` = arena slot. Answer: {0 or -errno, guest-physical
        /// address, segid, object bytes, page bytes of the backing}.
        ArenaMake = 6,
        /// The arena in slot `args[0]` ended; reason `args[1]` (0 = closed by its
        /// program, 1 = program died). The VMM unmaps it. Answer: 0.
        ArenaEnd = 7,
        /// Give arena slot `args[0]` a further name: bytes in the bounce area,
        /// length `args[1]`. Answer: segid or -errno.
        ArenaName = 8,
        /// The kernel met a state it cannot go on from; text in the bounce area,
        /// length `args[0]`. Never answered.
        Panic = 9,
        /// A kernel self-test or probe result: {id, value, …}. No answer.
        Report = 10,
        /// KVM's counters of this vCPU, for benchmarks. Answer: `args` = {0,
        /// insn_emulation, exits, pf_guest, irq_injections, …}; the call
        /// itself costs a fixed number of emulated instructions.
        HostCounters = 11,
        /// Send a command interrupt if `args[0]` is 1, as for any command; it
        /// arrives after the answer. Answer: 0.
        Interrupt = 12,
        /// Nothing to do for `args[0]` milliseconds (at most 1,000), or until
        /// the program is to be killed: the kernel waits for something in
        /// shared memory. Answer: 0.
        Pause = 13,
        /// Find a segment: its name in the bounce area, `args` = {length of the
        /// name, timeout in ms as in [`crate::syscall::XEMEM_LOOKUP`]}. Answer:
        /// segid or -errno; EINTR when the program is to be killed.
        ImportLookup = 14,
        /// Ask for access: {segid, flags of [`crate::syscall::XEMEM_GET`]}.
        /// Answer: apid or -errno.
        ImportGet = 15,
        /// Attach an arena or a piece of a plain segment: {import slot, apid,
        /// policy, offset, bytes or 0 = all}. Answer: {0 or -errno,
        /// guest-physical address, payload bytes, bytes of a chunk or page,
        /// banks or 0 = plain, 1 = to be written, 1 = publishes interrupt}. The
        /// memory is there from then on, read-only unless the word says more.
        ImportAttach = 16,
        /// Lease the next generation for import slot `args[0]` and give the one
        /// before back; wait for it at most `args[1]` milliseconds as in
        /// [`crate::syscall::XEMEM_NEXT`]. Answer: {generation, 0 = end of the
        /// stream, or -errno; then of its record: step, time bits, unix_ns,
        /// log_head, chunks copied}; at the end of the stream the second word
        /// is the reason.
        ImportNext = 17,
        /// The kernel has unmapped import slot `args[0]`. Answer: 0 or -errno.
        ImportDetach = 18,
        /// Give access `args[0]` back. Answer: 0 or -errno.
        ImportRelease = 19,
        /// Make a plain segment. A [`crate::syscall::SegmentArgs`] stands in the
        /// bounce area; `args[0]` = import slot. Answer: {0 or -errno, segid,
        /// guest-physical address, bytes of a page}. [`Call::ImportDetach`] takes
        /// its memory away.
        SegmentMake = 20,
        /// Give segment `args[0]` a further name: bytes in the bounce area,
        /// length `args[1]`. Answer: segid or -errno.
        SegmentName = 21,
        /// End segment `args[0]`; its memory stays. Answer: 0 or -errno.
        SegmentRemove = 22,
        /// Signal: {id, [`crate::syscall::XEMEM_BY_APID`] or
        /// [`crate::syscall::XEMEM_BY_SEGID`]}. Answer: 0 or -errno.
        SegmentSignal = 23,
        /// Subscribe to signals: as [`Call::SegmentSignal`].
        SegmentSubscribe = 24,
        /// Wait for signals: the same, then milliseconds as in
        /// [`crate::syscall::XEMEM_WAIT`]. Answer: their number, 0 = the segment
        /// has ended, or -errno; EINTR when the program is to be killed.
        SegmentWait = 25,
        /// The broker has changed the bells of arena slot `args[0]`: install
        /// what it gives. Answer: {0 or -errno, mask of the bells to ring}.
        ArenaBells = 26,
        /// Ring-3 mode: sleep until a bell or a notice of an attached arena, or
        /// a kill, at most `args[0]` nanoseconds. Answer: {0, 1 = a bell rang, 1
        /// = the broker, or its end, has something to say}.
        AwaitBell = 27,
        /// Exchange the vCPU's extended state (x87 and vector registers): save it
        /// to the page at guest-physical `args[0]`, then load the one at `args[1]`;
        /// 0 = not. Where ring 0 is interpreted and cannot do it. Answer: 0 or
        /// -errno, when KVM refuses the state to load.
        ExtendedState = 28,
        /// The kernel has taken the signals of run `args[0]` that
        /// [`Command::Kill`] brought for its program: waits on its behalf need
        /// not end any more. Answer: 0.
        SignalsTaken = 29,
        /// What has become of a [`Command::Change`]: {its number, 0 or -errno, then
        /// for EBUSY of memory the bytes in use, and of these the program's, and of
        /// a core the thread that may run nowhere else}. Answer: 0.
        ChangeDone = 32,
        /// In `args[1]` nanoseconds a timer of the program of run `args[0]` is due:
        /// send [`Command::Kill`] with signal 0 then, `u64::MAX` = not. What was
        /// asked for before is over. Answer: 0.
        Alarm = 40,
        /// What [`Command::Run`] told of: the next program to start. Answer: {run
        /// id, image bytes, bytes of the bounce area that hold [`RunArgs`] and its
        /// strings}; run 0 = there is none.
        TakeRun = 30,
        /// What [`Command::List`] asked for: `args[0]` bytes of
        /// [`ProcessEntry`] in the bounce area. Answer: 0.
        Processes = 31,
    }
}

numbers! {
    /// VMM → kernel, unasked.
    Command {
        /// There is a program to start: [`Call::TakeRun`] fetches it.
        Run = 1,
        /// Signal `args[1]` for the program of run `args[0]`: it ends by it, or,
        /// if `args[2]` is 1, does what it does by default or has a handler for.
        /// Signal 0 is none: the kernel looks at its timers ([`Call::Alarm`]).
        Kill = 2,
        /// Stop: answer with nothing, go idle for ever.
        Stop = 3,
        /// Tell of all processes: [`Call::Processes`].
        List = 4,
        /// Memory or a core comes or goes: {number of the order, [`MEMORY_ADD`] or
        /// [`MEMORY_REMOVE`], guest-physical start, bytes (both multiples of 2
        /// MiB), 1 = it is zero}, or {number, [`CORE_ADD`] or [`CORE_REMOVE`], the
        /// core}. It is there before it comes and until it has gone;
        /// [`Call::ChangeDone`] answers.
        Change = 5,
    }
}

/// [`Command::Change`]: memory to be used from now on.
pub const MEMORY_ADD: u64 = 1;
/// [`Command::Change`]: memory not to be used any more.
pub const MEMORY_REMOVE: u64 = 2;
/// [`Command::Change`]: a core to be used from now on.
pub const CORE_ADD: u64 = 3;
/// [`Command::Change`]: a core not to be used any more.
pub const CORE_REMOVE: u64 = 4;

/// Head of the strings of [`Command::Run`] in the bounce area, followed by
/// `argc` then `envc` zero-terminated strings, then the program's path.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RunArgs {
    /// Number of argument strings.
    pub argc: u32,
    /// Number of environment strings.
    pub envc: u32,
    /// Bytes of all strings, path included.
    pub strings_bytes: u32,
    /// Padding.
    pub pad: u32,
    /// Stack bytes wanted; 0 = default.
    pub stack_bytes: u64,
    /// Most bytes of memory it may have; 0 = no limit of its own.
    pub limit_bytes: u64,
}

/// Most processes of an enclave at once.
pub const MAX_PROCESSES: usize = 12;

/// A process, as [`Call::Processes`] tells of it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ProcessEntry {
    /// The VMM's number for it.
    pub run: u64,
    /// Its own number.
    pub pid: u32,
    /// Its threads.
    pub threads: u32,
    /// One of `PROCESS_…`.
    pub state: u64,
    /// Bytes of memory behind what it has mapped, arenas and imports not counted.
    pub memory_bytes: u64,
    /// Nanoseconds that its threads ran.
    pub cpu_ns: u64,
}

/// [`ProcessEntry::state`]: it has the cores.
pub const PROCESS_RUNS: u64 = 0;
/// [`ProcessEntry::state`]: it would run, but another has the cores.
pub const PROCESS_READY: u64 = 1;
/// [`ProcessEntry::state`]: all its threads wait.
pub const PROCESS_WAITS: u64 = 2;

/// Head of the console ring; `data_bytes` bytes of data follow it.
///
/// The kernel writes at `head`, the VMM reads at `tail`; both run freely,
/// position = index modulo `data_bytes` (a power of two below the ring size).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConsoleRing {
    /// Written by the kernel.
    pub head: u32,
    /// Written by the VMM.
    pub tail: u32,
    /// Bytes the kernel had to drop because the ring was full.
    pub dropped: u64,
}

/// Offset of the console data from the ring's start.
pub const CONSOLE_DATA_OFFSET: u64 = 64;
/// Bytes of console data; a power of two.
pub const CONSOLE_DATA_BYTES: u32 = 0x8000;

/// Doorbell offsets in [`crate::layout::DOORBELL_PAGE`].
pub mod doorbell {
    /// Leaves to the VMM's vCPU thread, which drains the command queue.
    pub const QUEUE: u64 = 0;
    /// Rung by the kernel's entry for debuggers ([`crate::layout::VECTOR_DEBUG`]).
    pub const DEBUG: u64 = 0xf0;
    /// The core sleeps until it is woken by [`WAKE_BASE`], 8 bytes wide: for so many
    /// nanoseconds at most, `u64::MAX` = for ever.
    pub const SLEEP: u64 = 0x10;
    /// The core waits for another one's: its host core may do something else.
    pub const GIVE_WAY: u64 = 0x18;
    /// Wakes core `n` at `WAKE_BASE + 4 n`, 4 bytes wide; one that does not sleep
    /// does not do so the next time.
    pub const WAKE_BASE: u64 = 0x400;
    const _: () = assert!(WAKE_BASE + 4 * crate::boot::MAX_CORES as u64 <= BELL_BASE);
    /// First arena doorbell; slot `n` is at `ARENA_BASE + 8 n`, 4 bytes wide.
    pub const ARENA_BASE: u64 = 0x100;
    /// First bell of importers; bell `b` of arena slot `n` is at
    /// `BELL_BASE + 4 (BELLS n + b)`, 4 bytes wide.
    pub const BELL_BASE: u64 = 0x800;
    /// Bells of one arena.
    pub const BELLS: usize = 16;
    const _: () = assert!(BELL_BASE + 4 * (BELLS * crate::lease::MAX_ARENAS) as u64 == 4096);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_numbers_stay_numbers() {
        assert_eq!(Call::try_from(5), Ok(Call::Forward));
        assert_eq!(Call::try_from(0), Err(0));
        assert_eq!(Command::try_from(77), Err(77));
    }
}
