//! The kernel's own messages: a ring that the VMM drains into a bounded log.
//!
//! Program output does not come here (it is forwarded as write calls). A full
//! ring drops bytes and counts them; the kernel never waits for the log.

use core::fmt::{Arguments, Write};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use enclave_abi::layout::CONSOLE;
use enclave_abi::queue::{CONSOLE_DATA_BYTES, CONSOLE_DATA_OFFSET, ConsoleRing};

use crate::phys;

struct Ring;

impl Write for Ring {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        put(text.as_bytes());
        Ok(())
    }
}

/// Appends bytes; what does not fit is counted.
fn put(bytes: &[u8]) {
    let head_word = phys::atomic32(CONSOLE + offset_of!(ConsoleRing, head) as u64);
    let tail =
        phys::atomic32(CONSOLE + offset_of!(ConsoleRing, tail) as u64).load(Ordering::Acquire);
    let head = head_word.load(Ordering::Relaxed);
    let room = CONSOLE_DATA_BYTES.saturating_sub(head.wrapping_sub(tail));
    let fits = bytes.len().min(room as usize);
    let start = head % CONSOLE_DATA_BYTES;
    let first = fits.min((CONSOLE_DATA_BYTES - start) as usize);
    let data = CONSOLE + CONSOLE_DATA_OFFSET;
    phys::write_bytes(data + u64::from(start), &bytes[..first]);
    phys::write_bytes(data, &bytes[first..fits]);
    if fits < bytes.len() {
        let dropped = phys::atomic(CONSOLE + offset_of!(ConsoleRing, dropped) as u64);
        dropped.fetch_add((bytes.len() - fits) as u64, Ordering::Relaxed);
    }
    head_word.store(head.wrapping_add(fits as u32), Ordering::Release);
}

/// Prints one line and lets the VMM take it.
pub(crate) fn line(text: Arguments<'_>) {
    let now = crate::clock::uptime_us();
    // The ring never fails to write.
    let _ = writeln!(
        Ring,
        "[{:5}.{:06}] {text}",
        now / 1_000_000,
        now % 1_000_000
    );
    phys::QUEUE_BELL.ring();
}
