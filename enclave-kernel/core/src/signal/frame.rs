//! The frame of a signal handler, as Linux's x86-64 ABI has it: what glibc's and
//! musl's restorers hand back, and what debuggers and unwinders look for.
//!
//! ```text
//! rsp → return address (restorer)      8 bytes
//!       ucontext: flags, link, stack   40
//!                 registers           256
//!                 mask                  8
//!       siginfo                       128
//!       … XSAVE area, 64-byte aligned, below the interrupted stack
//! ```

use super::{AltStack, Info, UNBLOCKABLE};
use enclave_abi::addr::align_down;
use enclave_abi::layout::USER_END;

/// Words of the frame.
pub const FRAME_WORDS: usize = 55;
/// Bytes of the frame.
pub const FRAME_BYTES: u64 = 8 * FRAME_WORDS as u64;
/// Bytes below a stack pointer that belong to the function there.
const RED_ZONE: u64 = 128;

/// Positions of words.
const FLAGS: usize = 1;
const ALT: usize = 3;
const REGISTERS: usize = 6;
const SEGMENTS: usize = 24;
const ERROR: usize = 25;
const VECTOR: usize = 26;
const OLD_MASK: usize = 27;
const ADDRESS: usize = 28;
const STATE: usize = 29;
const MASK: usize = 38;
const INFO: usize = 39;

/// UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS.
const UC_FLAGS: u64 = 0b111;
/// What of RFLAGS a handler may set: AC, RF, OF, DF, TF, SF, ZF, AF, PF, CF.
const FLAGS_OF_PROGRAM: u64 = 0x5_0dd5;

/// General registers in the frame's order: R8 to R15, RDI, RSI, RBP, RBX, RDX,
/// RAX, RCX, RSP, RIP, RFLAGS.
pub type Registers = [u64; 18];
/// Positions in [`Registers`].
const RIP: usize = 16;
const RFLAGS: usize = 17;

/// What a frame says.
#[derive(Clone, Copy, Debug)]
pub struct Contents {
    /// Where the handler returns to.
    pub restorer: u64,
    /// What was interrupted.
    pub registers: Registers,
    /// Code and stack segment.
    pub segments: [u16; 2],
    /// Error code, vector and address of the thread's newest fault.
    pub fault: [u64; 3],
    /// What was blocked.
    pub mask: u64,
    /// The alternate stack, in words.
    pub alt: [u64; 3],
    /// Address of the extended state.
    pub state: u64,
    /// What the handler is told.
    pub info: Info,
}

/// The words of a frame.
#[must_use]
pub fn compose(contents: &Contents) -> [u64; FRAME_WORDS] {
    let [code, stack] = contents.segments.map(u64::from);
    let [error, vector, address] = contents.fault;
    let mut words = [0; FRAME_WORDS];
    let mut put = |at: usize, values: &[u64]| {
        for (to, from) in words.iter_mut().skip(at).zip(values) {
            *to = *from;
        }
    };
    put(0, &[contents.restorer]);
    put(FLAGS, &[UC_FLAGS]);
    put(ALT, &contents.alt);
    put(REGISTERS, &contents.registers);
    put(SEGMENTS, &[code | stack << 48]);
    put(ERROR, &[error]);
    put(VECTOR, &[vector]);
    put(OLD_MASK, &[contents.mask]);
    put(ADDRESS, &[address]);
    put(STATE, &[contents.state]);
    put(MASK, &[contents.mask]);
    put(INFO, &contents.info.to_words());
    words
}

/// What a frame that a program hands back means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The registers; RIP is in the program's half, RFLAGS are a program's.
    pub registers: Registers,
    /// What is blocked from now on.
    pub mask: u64,
    /// The alternate stack, in words, to be set if it can be.
    pub alt: [u64; 3],
    /// Where the extended state is; 0 = the initial one.
    pub state: u64,
}

impl Restored {
    /// Reads a frame; `rflags` are those in force. `None` when its RIP is no
    /// program's.
    #[must_use]
    pub fn from_words(words: &[u64; FRAME_WORDS], rflags: u64) -> Option<Self> {
        let mut registers: Registers = words.get(REGISTERS..)?.first_chunk().copied()?;
        let alt = words.get(ALT..)?.first_chunk().copied()?;
        if *registers.get(RIP)? >= USER_END {
            return None;
        }
        let flags = registers.get_mut(RFLAGS)?;
        *flags = rflags & !FLAGS_OF_PROGRAM | *flags & FLAGS_OF_PROGRAM;
        Some(Self {
            registers,
            mask: words.get(MASK)? & !UNBLOCKABLE,
            alt,
            state: *words.get(STATE)?,
        })
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Address of the frame: the handler's stack pointer.
    pub frame: u64,
    /// Address of the extended state.
    pub state: u64,
}

/// Finds a place for a frame and `state_bytes` of extended state below `rsp`, or
/// on the alternate stack `alt` if the handler asks for it (`wants_alt`). `None`
/// when it does not fit there or would leave the program's half.
#[must_use]
pub fn place(rsp: u64, alt: AltStack, wants_alt: bool, state_bytes: u64) -> Option<Place> {
    let entered = if wants_alt { alt.top(rsp) } else { None };
    let top = match entered {
        Some(top) => top,
        None => rsp.checked_sub(RED_ZONE)?,
    };
    let state = align_down(top.checked_sub(state_bytes)?, 64);
    // As behind a CALL: the frame's address plus 8 is a multiple of 16.
    let frame = align_down(state.checked_sub(FRAME_BYTES)?, 16).checked_sub(8)?;
    if top > USER_END {
        return None;
    }
    let on_alt = entered.is_some() || alt.is_in_use(rsp);
    if on_alt && !alt.holds(frame) {
        return None;
    }
    Some(Place { frame, state })
}
