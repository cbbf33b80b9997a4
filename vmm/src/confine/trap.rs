//! What happens when a call is blocked: a note, then the end.
//!
//! The filters raise SIGSYS in place of the call. The handler writes which call
//! and which thread to the log and to the enclave's `crash` note, from which
//! `list` tells the reason, and ends the process. Taking the handler away would
//! win an attacker nothing: the call has not run, and without a handler the
//! signal kills.

// UNSAFETY: a signal handler, which may only use async-signal-safe calls.
#![expect(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use super::names;

/// Exit code of a process that tried a blocked call, as Firecracker has it.
pub const BLOCKED_EXIT: i32 = 148;
/// Where `siginfo_t` of a SIGSYS has the call's number, in 32-bit words
/// (siginfo(2): signal, errno, code, padding, address, number).
const CALL_WORD: usize = 6;

/// What lines of the VMM's log begin with.
const HEAD: &[u8] = b"enclave-vmm: ";

/// Directory of the note.
static NOTES: AtomicI32 = AtomicI32::new(-1);

/// Installs the handler.
pub(super) fn install(notes: RawFd) -> io::Result<()> {
    NOTES.store(notes, Ordering::Relaxed);
    vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, blocked).map_err(io::Error::from)
}

extern "C" fn blocked(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`, which is 128 bytes long
    // and aligned for words; the word read is inside it.
    let nr = unsafe { info.cast::<i32>().add(CALL_WORD).read() };
    let mut thread = [0u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, the size of `thread`.
    unsafe { libc::prctl(libc::PR_GET_NAME, thread.as_mut_ptr()) };
    // One line in the log, the same without its head in the note.
    let mut note = Note::default();
    note.text(HEAD);
    note.text(b"blocked system call ");
    note.number(nr.unsigned_abs());
    note.text(b" (");
    note.text(names::of(nr.into()).unwrap_or("no name").as_bytes());
    note.text(b") on thread ");
    note.text(thread.split(|&byte| byte == 0).next().unwrap_or_default());
    note.text(b"\n");
    let text = note.written();
    // SAFETY: writes from a buffer of that length; `openat` is given a string
    // that ends in 0. Both are async-signal-safe, as is `_exit`. A descriptor
    // that is not open makes them fail, which loses the note only.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        let dir = NOTES.load(Ordering::Relaxed);
        let file = libc::openat(dir, c"crash".as_ptr(), flags, 0o600);
        if file >= 0 {
            let text = text.get(HEAD.len()..).unwrap_or_default();
            libc::write(file, text.as_ptr().cast(), text.len());
        }
        libc::_exit(BLOCKED_EXIT);
    }
}

/// Text put together without an allocation; what does not fit is cut.
struct Note {
    bytes: [u8; 128],
    len: usize,
}

impl Default for Note {
    fn default() -> Self {
        Self {
            bytes: [0; 128],
            len: 0,
        }
    }
}

impl Note {
    fn text(&mut self, text: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *to = *from;
            self.len += 1;
        }
    }

    fn number(&mut self, mut number: u32) {
        let mut digits = [0u8; 10];
        let mut first = digits.len();
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
            first -= 1;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.text(digits.get(first..).unwrap_or_default());
    }

    fn written(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_join_and_are_cut_at_the_end() {
        let mut note = Note::default();
        note.number(0);
        note.text(b" ");
        note.number(4_294_967_295);
        assert_eq!(note.written(), b"0 4294967295");
        note.text(&[b'x'; 200]);
        assert_eq!(note.written().len(), 128);
    }
}
