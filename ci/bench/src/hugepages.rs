//! Huge pages of 2 MiB, reserved for one run and given back after it.
//!
//! Called by the janitor only. Changes the pool under a lock on its file and
//! by difference, so that several runs on one host do not undo each other.
//! Counts *persistent* pages: those in use when the pool shrinks become
//! surplus, and the host kernel takes them back when they are freed.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};

const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// Bytes of a huge page.
pub(crate) const PAGE_BYTES: u64 = 2 << 20;
/// Memory left to everybody else.
const LEFT_FREE_BYTES: u64 = 1 << 30;

/// Adds up to `count` pages to the pool and returns how many came: fewer when
/// memory is short or fragmented, none without the right to ask.
pub(crate) fn reserve(count: u64) -> u64 {
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available_bytes(&text))
        .unwrap_or(0);
    let count = count.min(available.saturating_sub(LEFT_FREE_BYTES) / PAGE_BYTES);
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
    let surplus = std::fs::read_to_string(format!("{FOLDER}/surplus_hugepages")).ok()?;
    Some(total.saturating_sub(surplus.trim().parse().ok()?))
}

/// What `/proc/meminfo` says can be had without swapping.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:       24684096 kB\nMemAvailable:    7342080 kB\n";
        assert_eq!(available_bytes(text), Some(7_342_080 * 1024));
        assert_eq!(available_bytes("MemTotal: 1 kB\n"), None);
        assert_eq!(available_bytes("MemAvailable: many kB\n"), None);
    }
}
