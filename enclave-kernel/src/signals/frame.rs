//! Frames of handlers on a program's stack: written when one is called, taken
//! back by rt_sigreturn(2).
//!
//! Where they are and what they say is `enclave-core/signal`. What a program
//! hands back is checked there, too: nothing in it can make the kernel fault.

use alloc::vec;

use enclave_abi::addr::PAGE_SIZE;
use enclave_abi::layout::{SEL_USER_CS, SEL_USER_SS, USER_END};
use enclave_core::errno::Errno;
use enclave_core::signal::flag::{SA_ONSTACK, SA_RESTORER};
use enclave_core::signal::{
    Action, AltStack, Contents, FRAME_BYTES, FRAME_WORDS, Info, Place, Registers, Restored,
    compose, place,
};

use crate::arch::{TrapFrame, extended};
use crate::{fault, threads, user};

/// Vector of a frame that is no interrupted call: nothing about one is decided by
/// its RAX.
pub(super) const NO_CALL: u64 = 0x101;
/// TF, DF and RF, which no handler begins with.
const CLEARED: u64 = 1 << 8 | 1 << 10 | 1 << 16;

fn registers(f: &TrapFrame) -> Registers {
    [
        f.r8, f.r9, f.r10, f.r11, f.r12, f.r13, f.r14, f.r15, f.rdi, f.rsi, f.rbp, f.rbx, f.rdx,
        f.rax, f.rcx, f.rsp, f.rip, f.rflags,
    ]
}

fn set_registers(f: &mut TrapFrame, from: &Registers) {
    [
        f.r8, f.r9, f.r10, f.r11, f.r12, f.r13, f.r14, f.r15, f.rdi, f.rsi, f.rbp, f.rbx, f.rdx,
        f.rax, f.rcx, f.rsp, f.rip, f.rflags,
    ] = *from;
}

/// Lets the program go on with the handler of `action`.
///
/// # Errors
/// `EFAULT` when there is no place for its frame, or the handler is no address of
/// a program; nothing has changed then.
pub(super) fn enter(frame: &mut TrapFrame, info: Info, action: &Action) -> Result<(), Errno> {
    if action.handler >= USER_END || !action.has(SA_RESTORER) {
        return Err(Errno::EFAULT);
    }
    let alt = super::alt_stack();
    let layout = extended::layout();
    let on_alt = action.has(SA_ONSTACK);
    let at = place(frame.rsp, alt, on_alt, layout.frame_bytes()).ok_or(Errno::EFAULT)?;
    make_writable(at.frame, FRAME_BYTES)?;
    make_writable(at.state, layout.frame_bytes())?;
    let mut state = vec![0; layout.frame_bytes() as usize];
    extended::begin_handler(&mut state)?;
    user::copy_out(at.state, &state)?;
    let (mask, fault) = threads::with(|t| {
        let signals = &mut t.signals;
        let mask = signals.saved_mask.take().unwrap_or(signals.mask);
        signals.alt = alt.when_entered();
        signals.resume_end = None;
        (mask, signals.fault)
    });
    let words = compose(&Contents {
        restorer: action.restorer,
        registers: registers(frame),
        segments: [SEL_USER_CS, SEL_USER_SS],
        fault,
        mask,
        alt: alt.to_words(frame.rsp),
        state: at.state,
        info,
    });
    user::write(at.frame, &words)?;
    super::set_mask(action.mask_inside(super::mask(), info.signal()));
    begin(frame, info.signal(), action.handler, at);
    Ok(())
}

/// The registers of a handler's first instruction.
fn begin(frame: &mut TrapFrame, signal: u8, handler: u64, at: Place) {
    /// Offsets in the frame.
    const CONTEXT: u64 = 8;
    const INFO: u64 = 312;
    frame.rdi = u64::from(signal);
    frame.rsi = at.frame + INFO;
    frame.rdx = at.frame + CONTEXT;
    frame.rax = 0;
    frame.rip = handler;
    frame.rsp = at.frame;
    frame.rflags &= !CLEARED;
    is_programs(frame);
}

/// Whatever it was interrupted in, it goes on in a program's segments and in no
/// call.
fn is_programs(frame: &mut TrapFrame) {
    frame.cs = u64::from(SEL_USER_CS);
    frame.ss = u64::from(SEL_USER_SS);
    frame.vector = NO_CALL;
}

/// Checks that the program may write there, and gives it frozen chunks of its
/// own: a page fault's stack has no room for another page fault.
fn make_writable(base: u64, len: u64) -> Result<(), Errno> {
    const PRESENT_WRITE: u64 = 0b11;
    user::check_writable(base, len)?;
    let mut at = base;
    while at < base + len {
        fault::resolve(at, PRESENT_WRITE);
        at = (at / PAGE_SIZE + 1) * PAGE_SIZE;
    }
    Ok(())
}

/// rt_sigreturn(2): goes on where the frame on the program's stack says.
///
/// # Errors
/// `EFAULT` when it says nothing that can be done.
pub(crate) fn give_back(frame: &mut TrapFrame) -> Result<(), Errno> {
    // The restorer's address has been taken off it.
    let at = frame.rsp.checked_sub(8).ok_or(Errno::EFAULT)?;
    let words: [u64; FRAME_WORDS] = user::read(at)?;
    let restored = Restored::from_words(&words, frame.rflags).ok_or(Errno::EFAULT)?;
    if restored.state == 0 {
        extended::load_initial()?;
    } else {
        extended::end_handler(|offset, into| {
            let from = restored.state.checked_add(offset)?;
            user::copy_in(from, into).ok()
        })?;
    }
    set_registers(frame, &restored.registers);
    is_programs(frame);
    // As Linux: one that cannot be set stays as it is.
    if let Ok(alt) = AltStack::from_words(restored.alt)
        && !super::alt_stack().is_in_use(frame.rsp)
    {
        super::set_alt_stack(alt);
    }
    super::set_mask(restored.mask);
    Ok(())
}
