//! One line on standard error, where an errno would leave the user puzzled.
//!
//! Called when the user's wish for a backend cannot be met, and by the Linux
//! backend before it has to end the program. Works in a signal handler.

// UNSAFETY: one system call that reads a buffer.
#![expect(unsafe_code)]

use crate::sys::syscall;

/// Linux's `write`.
const WRITE: u64 = 1;
const STANDARD_ERROR: u64 = 2;
/// Longer lines are cut.
const MOST: usize = 400;

/// Writes "xasm: ", the pieces and a line feed, at once.
pub(crate) fn line(pieces: &[&[u8]]) {
    let mut text = [0u8; MOST];
    let all = [&b"xasm: "[..]].into_iter().chain(pieces.iter().copied());
    let bytes = all.flatten().take(MOST - 1).chain(b"\n");
    let mut len = 0;
    for (to, from) in text.iter_mut().zip(bytes) {
        *to = *from;
        len += 1;
    }
    let at = text.as_ptr().expose_provenance() as u64;
    // SAFETY: the call reads `len` bytes of the live array.
    let _ = unsafe { syscall(WRITE, [STANDARD_ERROR, at, len, 0]) };
}
