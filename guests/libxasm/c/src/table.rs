//! The arenas of this process, by slot.
//!
//! Written when an arena is made or ended, read by every other function. All
//! words are atomic, so any thread may call any function; making and ending
//! the same arena at once is the program's mistake and yields an errno, not a
//! wild access.

use core::ffi::c_void;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use enclave_abi::lease::MAX_ARENAS;
use guest::Errno;
use guest::heap::Heap;

/// One arena; `bytes` is 0 while the slot is free.
#[derive(Debug)]
struct Entry {
    base: AtomicU64,
    bytes: AtomicU64,
    /// The program's placement policy, a function, and what it gets; or NULL.
    policy: AtomicPtr<c_void>,
    policy_data: AtomicPtr<c_void>,
}

/// What is known of a live arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The kernel's number for it.
    pub(crate) slot: u32,
    /// Address of the first byte.
    pub(crate) base: u64,
    /// Bytes of it.
    pub(crate) bytes: u64,
}

/// The table; one per process, more of them in tests.
#[derive(Debug)]
pub(crate) struct Table {
    entries: [Entry; MAX_ARENAS],
}

/// The arenas of this process.
pub(crate) static ARENAS: Table = Table::new();

impl Table {
    /// An empty table.
    pub(crate) const fn new() -> Self {
        Self {
            entries: [const {
                Entry {
                    base: AtomicU64::new(0),
                    bytes: AtomicU64::new(0),
                    policy: AtomicPtr::new(null_mut()),
                    policy_data: AtomicPtr::new(null_mut()),
                }
            }; MAX_ARENAS],
        }
    }

    /// Notes a new arena and opens its heap. EPROTO when the kernel's slot is
    /// beyond the table, ENOMEM.
    pub(crate) fn insert(&self, place: Place) -> Result<(), Errno> {
        let index = usize::try_from(place.slot).map_err(|_| Errno::EPROTO)?;
        let entry = self.entries.get(index).ok_or(Errno::EPROTO)?;
        Heap::open(place.slot, place.base, place.bytes)?;
        entry.policy.store(null_mut(), Ordering::Relaxed);
        entry.base.store(place.base, Ordering::Relaxed);
        entry.bytes.store(place.bytes, Ordering::Release);
        Ok(())
    }

    /// The arena with that number. ENOENT when there is none.
    pub(crate) fn find(&self, arena: i32) -> Result<Place, Errno> {
        let (slot, entry) = self.entry(arena)?;
        let bytes = entry.bytes.load(Ordering::Acquire);
        if bytes == 0 {
            return Err(Errno::ENOENT);
        }
        let base = entry.base.load(Ordering::Relaxed);
        Ok(Place { slot, base, bytes })
    }

    /// The arena that `address` is in. ENOENT when it is in none.
    pub(crate) fn containing(&self, address: u64) -> Result<Place, Errno> {
        let contains = |place: &Place| address.wrapping_sub(place.base) < place.bytes;
        self.iter().find(contains).ok_or(Errno::ENOENT)
    }

    /// Forgets an arena and says what it was. ENOENT when there is none.
    pub(crate) fn remove(&self, arena: i32) -> Result<Place, Errno> {
        let place = self.find(arena)?;
        let (_, entry) = self.entry(arena)?;
        match entry.bytes.swap(0, Ordering::AcqRel) {
            0 => Err(Errno::ENOENT),
            _ => {
                // A forked child has none.
                let _ = Heap::of(place.slot).map(Heap::close);
                Ok(place)
            }
        }
    }

    /// Notes the policy of an arena, NULL for none. ENOENT when there is no
    /// such arena.
    pub(crate) fn set_policy(
        &self,
        arena: i32,
        policy: *mut c_void,
        data: *mut c_void,
    ) -> Result<(), Errno> {
        self.find(arena)?;
        let (_, entry) = self.entry(arena)?;
        entry.policy_data.store(data, Ordering::Relaxed);
        entry.policy.store(policy, Ordering::Release);
        Ok(())
    }

    /// The policy of the arena in `slot`, as it was noted, and its data.
    pub(crate) fn policy(&self, slot: u32) -> Option<(*mut c_void, *mut c_void)> {
        let entry = self.entries.get(usize::try_from(slot).ok()?)?;
        let policy = entry.policy.load(Ordering::Acquire);
        (!policy.is_null()).then(|| (policy, entry.policy_data.load(Ordering::Relaxed)))
    }

    /// Every live arena.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Place> {
        (0i32..)
            .zip(&self.entries)
            .filter_map(|(arena, _)| self.find(arena).ok())
    }

    fn entry(&self, arena: i32) -> Result<(u32, &Entry), Errno> {
        let slot = u32::try_from(arena).map_err(|_| Errno::ENOENT)?;
        let index = usize::try_from(slot).map_err(|_| Errno::ENOENT)?;
        let entry = self.entries.get(index).ok_or(Errno::ENOENT)?;
        Ok((slot, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let table = Table::new();
        for slot in [0, 31] {
            let base = 0x80_0000_0000 * u64::from(slot + 1);
            table
                .insert(Place {
                    slot,
                    base,
                    bytes: 4096,
                })
                .unwrap();
        }
        table
    }

    #[test]
    fn arenas_are_found_until_they_are_removed() {
        let table = table();
        assert_eq!(table.find(31).unwrap().base, 0x80_0000_0000 * 32);
        assert_eq!(table.iter().map(|p| p.slot).collect::<Vec<_>>(), [0, 31]);
        assert!(table.remove(31).is_ok());
        assert_eq!(table.remove(31), Err(Errno::ENOENT));
        assert_eq!(table.iter().count(), 1);
    }

    #[test]
    fn a_policy_ends_with_its_arena() {
        let table = table();
        let [policy, data] = [1, 2].map(core::ptr::without_provenance_mut::<c_void>);
        assert_eq!(table.policy(31), None);
        assert_eq!(table.set_policy(31, policy, data), Ok(()));
        assert_eq!(table.policy(31), Some((policy, data)));
        assert_eq!(table.policy(0), None);
        assert_eq!(table.set_policy(30, policy, data), Err(Errno::ENOENT));
        let place = table.remove(31).unwrap();
        table.insert(place).unwrap();
        assert_eq!(table.policy(31), None);
        assert_eq!(table.policy(32), None);
    }

    #[test]
    fn numbers_that_are_no_arena_are_refused() {
        let table = table();
        for arena in [-38, -1, 1, 32, i32::MAX] {
            assert_eq!(table.find(arena), Err(Errno::ENOENT));
        }
        let beyond = Place {
            slot: 32,
            base: 0,
            bytes: 1,
        };
        assert_eq!(table.insert(beyond), Err(Errno::EPROTO));
    }

    #[test]
    fn an_address_is_in_the_arena_around_it_until_that_ends() {
        let table = Table::new();
        let place = Place {
            slot: 5,
            base: 1 << 40,
            bytes: 4096,
        };
        table.insert(place).unwrap();
        let heap = Heap::of(5).unwrap();
        assert_eq!(table.containing(1 << 40), Ok(place));
        assert_eq!(table.containing((1 << 40) + 4095), Ok(place));
        for address in [0, (1 << 40) - 1, (1 << 40) + 4096, u64::MAX] {
            assert_eq!(table.containing(address), Err(Errno::ENOENT));
        }
        table.remove(5).unwrap();
        assert_eq!(table.containing(1 << 40), Err(Errno::ENOENT));
        assert_eq!(heap.allocate(8, 8), Err(Errno::ENOENT));
    }
}
