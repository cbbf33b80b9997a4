//! The handler of SIGSEGV: a store to frozen arena memory is a copy, everything
//! else is somebody else's.
//!
//! Installed with the first arena, looked after at each publish, because only a
//! publish makes new faults of ours. A handler that was there before, or was put
//! over ours since, gets every fault that is not ours, with its own mask; the
//! default action is Linux's own. Runs on the thread's alternate stack if it has
//! one, else on its stack; makes system calls only.

// UNSAFETY: a signal handler, and the structures the kernel hands it.
#![expect(unsafe_code)]

use super::os::{self, call, pointer, set_blocked_signals};
use crate::errno::Errno;
use core::sync::atomic::{AtomicU64, Ordering};
use linux_raw_sys::general as raw;

/// `struct sigaction` of the kernel.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: os::SignalSet,
}

/// The default action, and ignoring.
const DEFAULT: u64 = 0;
const IGNORE: u64 = 1;

/// An action that the handler can read while another thread notes it.
#[derive(Debug)]
struct Noted {
    handler: AtomicU64,
    flags: AtomicU64,
    mask: AtomicU64,
}

impl Noted {
    const fn new() -> Self {
        Self {
            handler: AtomicU64::new(DEFAULT),
            flags: AtomicU64::new(0),
            mask: AtomicU64::new(0),
        }
    }

    fn set(&self, action: &Action) {
        self.flags.store(action.flags, Ordering::Relaxed);
        self.mask.store(action.mask, Ordering::Relaxed);
        self.handler.store(action.handler, Ordering::Release);
    }

    fn get(&self) -> Action {
        let handler = self.handler.load(Ordering::Acquire);
        Action {
            handler,
            flags: self.flags.load(Ordering::Relaxed),
            restorer: 0,
            mask: self.mask.load(Ordering::Relaxed),
        }
    }
}

/// What was there before our handler.
static BEFORE: Noted = Noted::new();
/// What was put over it since, if anything.
static OVER: Noted = Noted::new();

/// The kernel's `siginfo` of a fault.
#[repr(C)]
struct Info {
    signal: i32,
    errno: i32,
    code: i32,
    pad: i32,
    address: u64,
    rest: [u64; 12],
    /// The kernel leaves it 0: [`PASSED_ON`] once we have handed the signal to
    /// [`OVER`], so that we know it when that handler hands it back.
    mark: u64,
}

const PASSED_ON: u64 = u64::from_le_bytes(*b"xasmpass");

/// The kernel's `ucontext`, as far as it is looked at.
#[repr(C)]
struct Context {
    head: [u64; 5],
    registers: [u64; 19],
    error: u64,
    tail: [u64; 12],
    mask: os::SignalSet,
}

/// Bit of a page fault's error code: it was a store.
const STORE: u64 = 1 << 1;

/// Makes sure that the handler is ours.
///
/// # Errors
/// What sigaction(2) says.
pub(super) fn install() -> Result<(), Errno> {
    let ours = Action {
        handler: pointer(on_fault as *const ()),
        flags: u64::from(raw::SA_SIGINFO | raw::SA_ONSTACK | raw::SA_RESTORER),
        restorer: pointer(restore as *const ()),
        mask: os::SignalSet::MAX,
    };
    let found = action(None)?;
    if found.handler == ours.handler {
        return Ok(());
    }
    static INSTALLED: AtomicU64 = AtomicU64::new(0);
    if INSTALLED.swap(1, Ordering::AcqRel) == 0 {
        BEFORE.set(&found);
    } else {
        OVER.set(&found);
    }
    action(Some(&ours)).map(drop)
}

/// Reads and, if there is a new one, sets the action of SIGSEGV.
fn action(new: Option<&Action>) -> Result<Action, Errno> {
    let mut old = Action::default();
    let args = [
        u64::from(raw::SIGSEGV),
        new.map_or(0, |new| pointer(new)),
        pointer(&raw mut old),
        size_of::<os::SignalSet>() as u64,
        0,
        0,
    ];
    // SAFETY: the call reads one live structure and writes the other; the
    // handler may run at any time from here on, and is written for that.
    unsafe { call(raw::__NR_rt_sigaction, args) }?;
    Ok(old)
}

/// Returns from a signal handler; written as debuggers and unwinders know it.
#[unsafe(naked)]
extern "C" fn restore() {
    core::arch::naked_asm!("mov rax, 15", "syscall")
}

/// Called by the kernel, or by a handler that was put over this one.
extern "C" fn on_fault(signal: i32, info: *mut Info, context: *mut Context) {
    // SAFETY: the kernel hands both structures to a handler with SA_SIGINFO,
    // and a handler that passes a signal on hands on what it got.
    let (known, context) = unsafe { (&mut *info, &mut *context) };
    let is_ours = known.code == i32::try_from(raw::SEGV_ACCERR).unwrap_or(2)
        && context.error & STORE != 0
        && super::serve(known.address);
    if !is_ours {
        pass_on(signal, known, context);
    }
}

/// Does with the signal what would have been done without us.
fn pass_on(signal: i32, info: &mut Info, context: &mut Context) {
    let over = OVER.get();
    let is_back = info.mark == PASSED_ON;
    let next = if over.handler == DEFAULT || is_back {
        BEFORE.get()
    } else {
        info.mark = PASSED_ON;
        over
    };
    // Sent by a process and not by a fault: nothing happens again by itself.
    let is_sent = info.code <= 0;
    match next.handler {
        IGNORE if is_sent => {}
        DEFAULT | IGNORE => {
            // The same instruction faults once more, and Linux ends the program
            // with the right address in its core.
            let _ = action(Some(&Action::default()));
            if is_sent {
                os::raise(raw::SIGSEGV);
            }
        }
        _ => run(&next, signal, info, context),
    }
}

/// Runs another handler as the kernel would have.
fn run(next: &Action, signal: i32, info: &mut Info, context: &mut Context) {
    let flag = |bit: u32| next.flags & u64::from(bit) != 0;
    let own = if flag(raw::SA_NODEFER) {
        0
    } else {
        1 << (raw::SIGSEGV - 1)
    };
    if flag(raw::SA_RESETHAND) {
        BEFORE.set(&Action::default());
    }
    set_blocked_signals(context.mask | next.mask | own);
    let handler =
        core::ptr::with_exposed_provenance::<()>(usize::from_ne_bytes(next.handler.to_ne_bytes()));
    if flag(raw::SA_SIGINFO) {
        // SAFETY: the address was given to sigaction(2) as a handler with these
        // three arguments.
        let handler: extern "C" fn(i32, *mut Info, *mut Context) =
            unsafe { core::mem::transmute(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: as above, with one argument.
        let handler: extern "C" fn(i32) = unsafe { core::mem::transmute(handler) };
        handler(signal);
    }
}

const _: () = assert!(size_of::<Info>() == 128);
const _: () = assert!(core::mem::offset_of!(Context, error) == 192);
const _: () = assert!(core::mem::offset_of!(Context, mask) == 296);
