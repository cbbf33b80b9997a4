//! The VMM's own log: lines on standard error, which is `vmm.log` in an
//! enclave made by `enclavectl`.
//!
//! Called from every part of the VMM. Never fails (`eprintln!` would panic on
//! a full disk) and is bounded, because a guest may cause lines without end.

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes one process writes.
const MAX_BYTES: usize = 1 << 20;

/// Bytes written so far.
static WRITTEN: AtomicUsize = AtomicUsize::new(0);

/// Writes one line, unless the log is full.
pub fn note(text: impl Display) {
    // One write per line: lines of several threads stay whole.
    if let Some(line) = bounded(&WRITTEN, &text.to_string()) {
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// The line as it goes out; `None` once the log is full.
fn bounded(written: &AtomicUsize, text: &str) -> Option<String> {
    let line = format!("enclave-vmm: {}\n", text.replace('\n', "\n  "));
    let before = written.fetch_add(line.len(), Ordering::Relaxed);
    if before >= MAX_BYTES {
        // Stays above the limit and below an overflow.
        written.store(MAX_BYTES, Ordering::Relaxed);
        return None;
    }
    if before + line.len() >= MAX_BYTES {
        return Some("enclave-vmm: this log is full; what follows is dropped\n".to_owned());
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_says_so_once() {
        let written = AtomicUsize::new(0);
        let lines: Vec<String> = (0..MAX_BYTES)
            .map_while(|_| bounded(&written, &"x".repeat(1000)))
            .collect();
        assert!(lines.iter().map(String::len).sum::<usize>() <= MAX_BYTES + 100);
        assert!(lines.last().is_some_and(|line| line.contains("full")));
        assert_eq!(bounded(&written, "more"), None);
    }

    #[test]
    fn further_lines_of_a_text_are_told_from_new_ones() {
        let line = bounded(&AtomicUsize::new(0), "a\nb");
        assert_eq!(line.as_deref(), Some("enclave-vmm: a\n  b\n"));
    }
}
