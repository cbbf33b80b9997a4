//! Allocations in arenas: what `malloc` is for ordinary memory.
//!
//! Called by [`crate::Arena`] and by the C form (`xasm_malloc` and its family).
//! Any thread may call any function at any time; each heap has a lock of its own.
//! Promises:
//!
//! - the books are outside the arena: no allocation or release stores a byte
//!   there, so none causes a copy, and a snapshot holds data only;
//! - what was given back twice, belongs to nobody or starts elsewhere is
//!   refused with an errno, and nothing changes;
//! - allocations start at multiples of 64 bytes and share no cache line;
//! - a forked child has no heap, as it has no arenas (ENOENT).
//!
//! Does not do: handing out memory in signal handlers.

mod blocks;
mod index;
mod lock;
mod nodes;
mod pages;

use crate::errno::Errno;
use blocks::Blocks;
use core::sync::atomic::{AtomicU64, Ordering};
use enclave_abi::lease::MAX_ARENAS;
use lock::Lock;
use pages::ForkMark;

pub(crate) use pages::Pages;

pub use blocks::{Given, Usage};

/// A heap of this process: the slot of its arena, and which of the arenas
/// that had the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    pub(crate) slot: usize,
    serial: u64,
}

/// Says on standard error what a program that ignores errnos would never hear:
/// that it gave back what it did not have.
pub fn report_refused(function: &str, address: u64) {
    let digits: [u8; 16] = core::array::from_fn(|at| {
        let digit = address >> (60 - 4 * at) & 0xf;
        b"0123456789abcdef"
            .get(usize::try_from(digit).unwrap_or(0))
            .copied()
            .unwrap_or(b'?')
    });
    crate::say::line(&[
        function.as_bytes(),
        b": 0x",
        &digits,
        b": no allocation starts there (freed twice?), nothing done",
    ]);
}

/// One slot; serial 0 while there is no arena.
struct Entry {
    serial: AtomicU64,
    blocks: Lock<Blocks>,
}

static HEAPS: [Entry; MAX_ARENAS] = [const {
    Entry {
        serial: AtomicU64::new(0),
        blocks: Lock::new(Blocks::new()),
    }
}; MAX_ARENAS];
static SERIAL: AtomicU64 = AtomicU64::new(1);
static MARK: ForkMark = ForkMark::new();

impl Heap {
    /// The heap of a new arena of `bytes` at `base`, all zero.
    ///
    /// # Errors
    /// EPROTO for a slot that cannot be, ENOMEM.
    pub fn open(slot: u32, base: u64, bytes: u64) -> Result<Self, Errno> {
        let slot = usize::try_from(slot).map_err(|_| Errno::EPROTO)?;
        let entry = HEAPS.get(slot).ok_or(Errno::EPROTO)?;
        if MARK.set()? {
            for entry in &HEAPS {
                entry.serial.store(0, Ordering::Relaxed);
                entry.blocks.break_open();
            }
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        entry.blocks.with(|blocks| {
            *blocks = Blocks::new();
            blocks.base = base;
            blocks.bytes = bytes;
            entry.serial.store(serial, Ordering::Release);
        });
        Ok(Self { slot, serial })
    }

    /// The heap of the arena that has that slot now.
    ///
    /// # Errors
    /// ENOENT when none has.
    pub fn of(slot: u32) -> Result<Self, Errno> {
        let slot = usize::try_from(slot).map_err(|_| Errno::ENOENT)?;
        let entry = HEAPS.get(slot).ok_or(Errno::ENOENT)?;
        match entry.serial.load(Ordering::Acquire) {
            0 => Err(Errno::ENOENT),
            serial => Ok(Self { slot, serial }),
        }
    }

    /// Ends it: every allocation in it is gone.
    pub fn close(self) {
        let _ = self.with(|blocks, serial| {
            serial.store(0, Ordering::Release);
            *blocks = Blocks::new();
        });
    }

    /// Takes room for `bytes` (0 counts as 1) at a multiple of `align`, a
    /// power of two; at least 64 is used.
    ///
    /// # Errors
    /// ENOMEM when no free block is large enough, EINVAL for an `align` that
    /// is no power of two, ENOENT when the arena has ended.
    pub fn allocate(self, bytes: u64, align: u64) -> Result<Given, Errno> {
        self.with(|blocks, _| blocks.allocate(bytes, align))?
    }

    /// Gives back what starts at `address`.
    ///
    /// # Errors
    /// EINVAL when no allocation starts there (any more), ENOENT when the
    /// arena has ended.
    pub fn release(self, address: u64) -> Result<(), Errno> {
        self.with(|blocks, _| blocks.release(address))?
    }

    /// Makes what starts at `address` larger or smaller without moving it;
    /// `false` when that cannot be.
    ///
    /// # Errors
    /// As [`Heap::release`]; ENOMEM for the books.
    pub fn resize(self, address: u64, bytes: u64) -> Result<bool, Errno> {
        self.with(|blocks, _| blocks.resize(address, bytes))?
    }

    /// Bytes that can be used of what starts at `address`.
    ///
    /// # Errors
    /// As [`Heap::release`].
    pub fn size(self, address: u64) -> Result<u64, Errno> {
        self.with(|blocks, _| blocks.size(address))?
    }

    /// Counters.
    ///
    /// # Errors
    /// ENOENT when the arena has ended.
    pub fn usage(self) -> Result<Usage, Errno> {
        self.with(|blocks, _| blocks.usage())
    }

    /// Runs `f` on the books if the arena is still the one this heap is of.
    fn with<R>(self, f: impl FnOnce(&mut Blocks, &AtomicU64) -> R) -> Result<R, Errno> {
        let entry = HEAPS.get(self.slot).ok_or(Errno::ENOENT)?;
        if !MARK.is_set() {
            return Err(Errno::ENOENT);
        }
        entry.blocks.with(|blocks| {
            if entry.serial.load(Ordering::Acquire) != self.serial {
                return Err(Errno::ENOENT);
            }
            Ok(f(blocks, &entry.serial))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_threads_share_a_heap_and_get_different_memory() {
        let heap = Heap::open(20, 1 << 40, 1 << 24).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                scope.spawn(move || {
                    for round in 0..200 {
                        let bytes = 1 + (round * 37 + thread * 911) % 5000;
                        let held: Vec<u64> = (0..10)
                            .map(|_| heap.allocate(bytes, 0).unwrap().address)
                            .collect();
                        // Given twice, one of them could not be given back.
                        for address in held {
                            assert_eq!(heap.release(address), Ok(()));
                        }
                    }
                });
            }
        });
        let usage = heap.usage().unwrap();
        assert_eq!((usage.used, usage.largest_free), (0, 1 << 24));
        heap.close();
    }

    #[test]
    fn an_arena_that_ended_has_no_heap() {
        let first = Heap::open(21, 1 << 40, 4096).unwrap();
        let address = first.allocate(8, 0).unwrap().address;
        assert_eq!(Heap::of(21), Ok(first));
        first.close();
        assert_eq!(Heap::of(21), Err(Errno::ENOENT));
        let second = Heap::open(21, 1 << 40, 4096).unwrap();
        assert_eq!(second.allocate(8, 0).map(|g| g.address), Ok(address));
        assert_eq!(first.release(address), Err(Errno::ENOENT));
        assert_eq!(Heap::open(32, 0, 4096), Err(Errno::EPROTO));
        assert_eq!(Heap::of(32), Err(Errno::ENOENT));
    }
}
