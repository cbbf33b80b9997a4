//! The books of a heap against a model that is a map of addresses.

use super::*;
use std::collections::BTreeMap;

const BASE: u64 = 0x80_0000_0000;

fn heap(bytes: u64) -> Blocks {
    let mut blocks = Blocks::new();
    blocks.base = BASE;
    blocks.bytes = bytes;
    blocks
}

#[test]
fn allocations_follow_each_other_from_the_start() {
    let mut heap = heap(4096);
    let at = |heap: &mut Blocks, bytes, align| heap.allocate(bytes, align).map(|g| g.address);
    assert_eq!(at(&mut heap, 100, 0), Ok(BASE));
    assert_eq!(at(&mut heap, 1, 256), Ok(BASE + 256));
    assert_eq!(at(&mut heap, 64, 64), Ok(BASE + 128));
    assert_eq!(at(&mut heap, 0, 8), Ok(BASE + 192));
    assert_eq!(heap.usage().blocks, 4);
    assert_eq!(heap.usage().used, 128 + 64 + 64 + 64);
}

#[test]
fn the_whole_arena_can_be_had_at_once_and_again() {
    // Sizes that are no least of their bin, too.
    for bytes in [64, 4096, 4096 * 13, (4 << 30) + 4096 * 7] {
        let mut heap = heap(bytes);
        for _ in 0..3 {
            assert_eq!(heap.usage().largest_free, bytes);
            assert_eq!(heap.allocate(bytes, 4096).map(|g| g.address), Ok(BASE));
            assert_eq!(heap.allocate(1, 1), Err(Errno::ENOMEM));
            assert_eq!(heap.release(BASE), Ok(()));
        }
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut heap = heap(4096);
    assert_eq!(heap.allocate(64, 3), Err(Errno::EINVAL));
    for bytes in [4097, 1 << 40, u64::MAX] {
        assert_eq!(heap.allocate(bytes, 0), Err(Errno::ENOMEM));
        assert_eq!(heap.allocate(bytes, 1 << 63), Err(Errno::ENOMEM));
    }
    assert_eq!(heap.allocate(1, 1 << 63), Err(Errno::ENOMEM));
    assert_eq!(heap.usage().used, 0);
    assert_eq!(heap.allocate(4096, 0).map(|g| g.dirty), Ok(0));
}

#[test]
fn only_the_start_of_an_allocation_can_be_given_back_and_only_once() {
    let mut heap = heap(1 << 20);
    let first = heap.allocate(1000, 0).unwrap().address;
    let second = heap.allocate(1000, 0).unwrap().address;
    let wrong = [
        first + 1,
        first + 64,
        BASE - 64,
        BASE + (1 << 20),
        0,
        u64::MAX,
    ];
    for address in wrong {
        assert_eq!(heap.release(address), Err(Errno::EINVAL), "{address:#x}");
        assert_eq!(heap.resize(address, 8), Err(Errno::EINVAL));
        assert_eq!(heap.size(address), Err(Errno::EINVAL));
    }
    assert_eq!(heap.release(first), Ok(()));
    assert_eq!(heap.release(first), Err(Errno::EINVAL));
    assert_eq!(heap.release(second), Ok(()));
    assert_eq!(heap.usage().largest_free, 1 << 20);
}

#[test]
fn a_block_grows_into_free_room_behind_it_and_no_further() {
    let mut heap = heap(4096);
    let first = heap.allocate(64, 0).unwrap().address;
    let second = heap.allocate(64, 0).unwrap().address;
    assert_eq!(heap.resize(first, 65), Ok(false));
    assert_eq!(heap.resize(second, 4096 - 64), Ok(true));
    assert_eq!(heap.resize(second, 4096 - 63), Ok(false));
    assert_eq!(heap.resize(second, u64::MAX), Ok(false));
    assert_eq!(heap.resize(second, 0), Ok(true));
    assert_eq!(heap.size(second), Ok(64));
    assert_eq!(heap.release(second), Ok(()));
    assert_eq!(heap.resize(first, 4096), Ok(true));
    assert_eq!(heap.usage().used, 4096);
}

#[test]
fn only_memory_that_was_used_before_counts_as_dirty() {
    let mut heap = heap(1 << 20);
    assert_eq!(heap.allocate(640, 0).unwrap().dirty, 0);
    assert_eq!(heap.release(BASE), Ok(()));
    assert_eq!(heap.allocate(1280, 0).unwrap().dirty, 640);
    assert_eq!(heap.resize(BASE, 6400), Ok(true));
    assert_eq!(heap.release(BASE), Ok(()));
    assert_eq!(heap.allocate(1 << 20, 0).unwrap().dirty, 6400);
}

#[test]
fn bins_hold_sizes_in_order() {
    for len in 1..5000u64 {
        assert!(bin_of(len) <= bin_of(len + 1));
        let least = bin_of(len - 1) != bin_of(len);
        assert_eq!(is_least_of_bin(len), least, "{len}");
    }
    assert!(bin_of(u64::MAX) < BINS);
}

/// A generator that needs no crate: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn random_allocations_never_overlap_and_all_room_comes_back() {
    const BYTES: u64 = 1 << 22;
    for seed in 1..9 {
        let (mut heap, mut random) = (heap(BYTES), Random(0x0012_3456_789a_bcdf + seed));
        // Address to bytes.
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        for _ in 0..2000 {
            let bits = random.below(16);
            let bytes = random.below(1 << bits) + 1;
            match random.below(8) {
                0..4 => {
                    let align = 1 << random.below(14);
                    let Ok(given) = heap.allocate(bytes, align) else {
                        continue;
                    };
                    assert!(given.address.is_multiple_of(align));
                    assert!(given.address >= BASE);
                    assert!(given.address + bytes <= BASE + BYTES);
                    model.insert(given.address, bytes);
                }
                4..7 => {
                    let at = random.below(BYTES) + BASE;
                    let Some((&address, _)) = model.range(at..).next() else {
                        continue;
                    };
                    model.remove(&address);
                    assert_eq!(heap.release(address), Ok(()));
                    assert_eq!(heap.release(address), Err(Errno::EINVAL));
                }
                _ => {
                    let at = random.below(BYTES) + BASE;
                    let Some((&address, _)) = model.range(at..).next() else {
                        continue;
                    };
                    if heap.resize(address, bytes) == Ok(true) {
                        model.insert(address, bytes);
                    }
                }
            }
            let ends = model.iter().map(|(&at, &bytes)| at + bytes);
            assert!(
                ends.zip(model.keys().skip(1))
                    .all(|(end, &next)| end <= next)
            );
            assert_eq!(heap.usage().blocks, model.len() as u64);
            let used: u64 = model.values().map(|b| b.next_multiple_of(GRANULE)).sum();
            assert_eq!(heap.usage().used, used);
        }
        for &address in model.keys() {
            assert_eq!(heap.release(address), Ok(()));
        }
        assert_eq!(heap.usage().largest_free, BYTES);
    }
}
