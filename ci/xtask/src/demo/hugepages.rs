//! Huge pages of 2 MiB, reserved for one run and given back after it.
//!
//! Called by the warden only. Changes the pool under a lock on its file and by
//! difference, so that several runs on one host do not undo each other. Counts
//! *persistent* pages: those that somebody uses when the pool shrinks become
//! surplus, and the host kernel takes them back when they are freed. Whether it
//! is this run that still uses memory is for [`super::leftovers`] to find out.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};

const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

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

/// Takes `count` pages out of the pool and returns how many it would not give.
pub(crate) fn give_back(count: u64) -> u64 {
    if count == 0 {
        return 0;
    }
    let given = adjust(|total| total.saturating_sub(count))
        .map_or(0, |(before, after)| before.saturating_sub(after));
    count.saturating_sub(given)
}

/// Pages in the pool that nobody uses, 0 when unknown.
pub(crate) fn free() -> u64 {
    number("free_hugepages").unwrap_or(0)
}

/// Changes the number of persistent pages; returns it before and after.
fn adjust(change: impl Fn(u64) -> u64) -> Option<(u64, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("{FOLDER}/nr_hugepages"))
        .ok()?;
    file.lock().ok()?;
    let before = persistent(&mut file)?;
    file.rewind().ok()?;
    file.write_all(change(before).to_string().as_bytes()).ok()?;
    let after = persistent(&mut file)?;
    Some((before, after))
}

/// All pages of the pool but those that go when they are freed.
fn persistent(file: &mut File) -> Option<u64> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    let total: u64 = text.trim().parse().ok()?;
    Some(total.saturating_sub(number("surplus_hugepages")?))
}

/// One of the pool's figures.
fn number(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("{FOLDER}/{name}")).ok()?;
    text.trim().parse().ok()
}
