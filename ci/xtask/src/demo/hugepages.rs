//! Huge pages of 2 MiB, reserved for one run and given back after it.
//!
//! Called by the warden only. Reads and writes under a lock on the file, and
//! by difference, so that several runs on one host do not undo each other.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::time::{Duration, Instant};

const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// How long freed pages may take to come back.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of a huge page.
pub(crate) const PAGE_BYTES: u64 = 2 << 20;

/// Adds `count` pages to the pool and returns how many really came: fewer when
/// memory is fragmented, none without the right to ask.
pub(crate) fn reserve(count: u64) -> u64 {
    if count == 0 {
        return 0;
    }
    adjust(|total| total.saturating_add(count))
        .map_or(0, |(before, after)| after.saturating_sub(before))
}

/// Takes `count` pages out of the pool and returns how many are still in use.
pub(crate) fn give_back(count: u64) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    let mut left = count;
    while left > 0 {
        let step = left;
        match adjust(|total| total.saturating_sub(step)) {
            Some((before, after)) => left = left.saturating_sub(before.saturating_sub(after)),
            None => return left,
        }
        if Instant::now() > deadline {
            return left;
        }
    }
    left
}

/// Pages in the pool that nobody uses, 0 when unknown.
pub(crate) fn free() -> u64 {
    std::fs::read_to_string(format!("{FOLDER}/free_hugepages"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Changes the size of the pool; returns the size before and after.
fn adjust(change: impl Fn(u64) -> u64) -> Option<(u64, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("{FOLDER}/nr_hugepages"))
        .ok()?;
    file.lock().ok()?;
    let before = read(&mut file)?;
    file.rewind().ok()?;
    file.write_all(change(before).to_string().as_bytes()).ok()?;
    let after = read(&mut file)?;
    Some((before, after))
}

fn read(file: &mut File) -> Option<u64> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
