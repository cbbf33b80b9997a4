//! Which thread a clone(2) or clone3(2) asks for.
//!
//! Only threads are made: whatever asks for a process of its own is told apart,
//! so that the kernel refuses it as a call it does not have.

use crate::errno::Errno;
use enclave_abi::layout::USER_END;

const VM: u64 = 0x100;
const FS: u64 = 0x200;
const FILES: u64 = 0x400;
const SIGHAND: u64 = 0x800;
const PTRACE: u64 = 0x2000;
const THREAD: u64 = 0x1_0000;
const SYSVSEM: u64 = 0x4_0000;
const SETTLS: u64 = 0x8_0000;
const PARENT_SETTID: u64 = 0x10_0000;
const CHILD_CLEARTID: u64 = 0x20_0000;
const DETACHED: u64 = 0x40_0000;
const UNTRACED: u64 = 0x80_0000;
const CHILD_SETTID: u64 = 0x100_0000;
const IO: u64 = 0x8000_0000;

/// What a thread shares with the one that makes it.
const SHARED: u64 = VM | FS | FILES | SIGHAND | THREAD;
/// What else may be asked.
const OPTIONAL: u64 = PTRACE
    | SYSVSEM
    | SETTLS
    | PARENT_SETTID
    | CHILD_CLEARTID
    | DETACHED
    | UNTRACED
    | CHILD_SETTID
    | IO;
/// The low byte of clone's flags: a signal, which threads do not send.
const EXIT_SIGNAL: u64 = 0xff;

/// Why there is no new thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A process of its own was asked for.
    NotAThread,
    /// This, to the caller.
    Errno(Errno),
}

/// What clone3's structure or clone's registers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloneArgs {
    /// CLONE_… flags.
    pub flags: u64,
    /// Where the new number is stored in the new thread's memory.
    pub child_tid: u64,
    /// Where it is stored for the caller.
    pub parent_tid: u64,
    /// The new thread's stack pointer; 0 = the caller's.
    pub stack: u64,
    /// Thread-local storage.
    pub tls: u64,
}

/// The thread that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its stack pointer, if not the caller's.
    pub stack: Option<u64>,
    /// Its FS base, if not the caller's.
    pub tls: Option<u64>,
    /// Where its number is stored at once.
    pub store_tid: [Option<u64>; 2],
    /// The word that is cleared and woken when it ends.
    pub clear_tid: Option<u64>,
}

impl CloneArgs {
    /// Decides.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn check(&self) -> Result<Request, Refusal> {
        let flags = self.flags & !EXIT_SIGNAL;
        if flags & THREAD == 0 {
            return Err(Refusal::NotAThread);
        }
        if flags & SHARED != SHARED || flags & !(SHARED | OPTIONAL) != 0 {
            return Err(Refusal::Errno(Errno::EINVAL));
        }
        let given = |flag: u64, value: u64| (flags & flag != 0).then_some(value);
        let tls = given(SETTLS, self.tls);
        if tls.is_some_and(|tls| tls >= USER_END) || self.stack >= USER_END {
            return Err(Refusal::Errno(Errno::EPERM));
        }
        Ok(Request {
            stack: (self.stack != 0).then_some(self.stack),
            tls,
            store_tid: [
                given(PARENT_SETTID, self.parent_tid),
                given(CHILD_SETTID, self.child_tid),
            ],
            clear_tid: given(CHILD_CLEARTID, self.child_tid),
        })
    }

    /// The arguments of clone(2) on x86-64.
    #[must_use]
    pub const fn from_registers([flags, stack, parent_tid, child_tid, tls]: [u64; 5]) -> Self {
        Self {
            flags,
            child_tid,
            parent_tid,
            stack,
            tls,
        }
    }

    /// The arguments of clone3(2): the words of its structure, of which `words`
    /// are there. Flags and order of the fields: `linux/sched.h`.
    ///
    /// # Errors
    /// `EINVAL` when too little or nonsense is there, `E2BIG` when more is
    /// asked than is known.
    pub fn from_struct(words: &[u64]) -> Result<Self, Refusal> {
        let &[
            flags,
            _pidfd,
            child_tid,
            parent_tid,
            exit_signal,
            base,
            size,
            tls,
            ref more @ ..,
        ] = words
        else {
            return Err(Refusal::Errno(Errno::EINVAL));
        };
        let thread = flags & THREAD != 0;
        let [set_tid, set_tid_size] = core::array::from_fn(|n| more.get(n).copied().unwrap_or(0));
        if more.iter().skip(3).any(|&word| word != 0) {
            return Err(Refusal::Errno(Errno::E2BIG));
        }
        // The stack of a thread is given whole or not at all.
        let stack = match (base, size) {
            (0, 0) => Some(0),
            (0, _) | (_, 0) => None,
            _ => base.checked_add(size).filter(|&top| top < USER_END),
        };
        let strange = exit_signal | set_tid | set_tid_size;
        match stack {
            _ if !thread => Err(Refusal::NotAThread),
            Some(stack) if strange == 0 && flags & (EXIT_SIGNAL | DETACHED) == 0 => Ok(Self {
                flags,
                child_tid,
                parent_tid,
                stack,
                tls,
            }),
            _ => Err(Refusal::Errno(Errno::EINVAL)),
        }
    }
}
