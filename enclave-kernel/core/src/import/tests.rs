//! An exporter as it should be, one that lies, and what the importer makes of
//! either.

use std::cell::RefCell;
use std::collections::BTreeMap;

use enclave_abi::arena::log_entry;
use proptest::prelude::*;

use super::*;

extern crate std;

/// A control area of an exporter; words never written are 0.
struct Area {
    geometry: Geometry,
    words: BTreeMap<u64, u64>,
    /// Loads so far.
    loads: RefCell<u64>,
}

impl Control for Area {
    fn word(&self, offset: u64) -> u64 {
        assert!(offset.is_multiple_of(8) && offset < self.geometry.control_bytes);
        *self.loads.borrow_mut() += 1;
        self.words.get(&offset).copied().unwrap_or(0)
    }
}

impl Area {
    fn new(geometry: Geometry) -> Self {
        let mut this = Self {
            geometry,
            words: BTreeMap::new(),
            loads: RefCell::new(0),
        };
        this.set(offset_of!(ArenaHeader, magic), ARENA_MAGIC);
        this.set(
            offset_of!(ArenaHeader, abi_version),
            u64::from(ABI_VERSION) | 1 << 32,
        );
        this.set(offset_of!(ArenaHeader, size_bytes), geometry.size_bytes);
        this.set(offset_of!(ArenaHeader, chunk_bytes), geometry.chunk_bytes);
        this.set(
            offset_of!(ArenaHeader, nr_banks),
            u64::from(geometry.nr_banks) | 3 << 32,
        );
        for chunk in 0..geometry.nr_chunks {
            this.birth(chunk, 0, 1);
        }
        this
    }

    fn set(&mut self, offset: usize, word: u64) {
        self.words.insert(offset as u64, word);
    }

    fn birth(&mut self, chunk: u64, bank: u32, generation: u64) {
        let offset = self.geometry.birth_offset(chunk, bank).unwrap();
        self.words.insert(offset, generation);
    }

    fn log(&mut self, entry: u64, chunk: u64, bank: u32) {
        let offset = self.geometry.log_entry_offset(entry);
        self.words.insert(offset, log_entry(chunk, bank));
        self.set(offset_of!(ArenaHeader, log_head), entry + 1);
    }
}

/// Leaves that refuse what is outside.
struct Table {
    geometry: Geometry,
    banks: Vec<Option<u32>>,
}

impl Table {
    fn new(geometry: Geometry) -> Self {
        let nr_chunks = usize::try_from(geometry.nr_chunks).unwrap();
        Self {
            geometry,
            banks: std::vec![None; nr_chunks],
        }
    }
}

use std::vec::Vec;

impl Leaves for Table {
    fn bank(&self, chunk: u64) -> Option<u32> {
        self.banks[usize::try_from(chunk).unwrap()]
    }

    fn map(&mut self, chunk: u64, bank: u32, offset: u64) {
        assert_eq!(self.geometry.frame_offset(chunk, bank), Some(offset));
        assert!(offset + self.geometry.chunk_bytes <= self.geometry.object_bytes);
        self.banks[usize::try_from(chunk).unwrap()] = Some(bank);
    }
}

fn geometry(nr_chunks: u64, nr_banks: u32) -> Geometry {
    Geometry::new(nr_chunks * 4096, 4096, nr_banks).unwrap()
}

fn place(generation: u64, log_head: u64) -> Place {
    Place {
        generation,
        log_head,
    }
}

#[test]
fn the_first_generation_maps_all_and_the_next_what_the_log_names() {
    let geometry = geometry(64, 3);
    let (mut area, mut table) = (Area::new(geometry), Table::new(geometry));
    let mut follower = Follower::new(geometry);
    assert_eq!(follower.generation(), None);
    assert_eq!(follower.show(place(1, 0), &area, &mut table), Ok(64));
    area.birth(7, 1, 2);
    area.log(0, 7, 1);
    area.birth(9, 1, 2);
    area.log(1, 9, 1);
    *area.loads.borrow_mut() = 0;
    assert_eq!(follower.show(place(2, 2), &area, &mut table), Ok(2));
    // Five words of the header, its log_head, two entries, two births of three
    // words: nothing of the other chunks.
    assert_eq!(*area.loads.borrow(), 5 + 1 + 2 + 6);
    assert_eq!((table.bank(7), table.bank(8)), (Some(1), Some(0)));
    assert_eq!(follower.generation(), Some(2));
    assert!(follower.holds(&area, &table));
    // The exporter takes the frame away: not what was published any more.
    area.birth(9, 1, 5);
    assert!(!follower.holds(&area, &table));
}

#[test]
fn a_log_that_wrapped_is_not_believed() {
    let geometry = geometry(16, 2);
    let (mut area, mut table) = (Area::new(geometry), Table::new(geometry));
    let mut follower = Follower::new(geometry);
    assert_eq!(follower.show(place(1, 0), &area, &mut table), Ok(16));
    // All entries say chunk 0; chunk 5 moved as well.
    area.birth(5, 1, 2);
    area.log(0, 0, 0);
    for head in [geometry.log_entries, geometry.log_entries + 9] {
        area.set(offset_of!(ArenaHeader, log_head), head);
        let mut fresh = follower;
        let mut banks = Table::new(geometry);
        banks.banks.clone_from(&table.banks);
        assert_eq!(fresh.show(place(2, 1), &area, &mut banks), Ok(1));
        assert_eq!(banks.bank(5), Some(1));
    }
    // Nor one that would have to be longer than it is, or that shrank.
    for head in [geometry.log_entries + 1, u64::MAX] {
        let mut fresh = follower;
        assert_eq!(fresh.show(place(2, head), &area, &mut table), Ok(1));
        table.banks[5] = Some(0);
    }
}

#[test]
fn a_chunk_without_a_frame_is_an_error_and_the_next_show_looks_at_all() {
    let geometry = geometry(8, 2);
    let (mut area, mut table) = (Area::new(geometry), Table::new(geometry));
    let mut follower = Follower::new(geometry);
    area.birth(3, 0, 9);
    let refused = follower.show(place(1, 0), &area, &mut table);
    assert_eq!(refused, Err(ImportError::NoFrame(3)));
    assert_eq!(follower.generation(), None);
    assert!(!follower.holds(&area, &table));
    area.birth(3, 0, 1);
    assert_eq!(follower.show(place(1, 0), &area, &mut table), Ok(5));
}

#[test]
fn another_arenas_header_is_refused() {
    let geometry = geometry(8, 2);
    let good = Area::new(geometry);
    let follower = Follower::new(geometry);
    assert_eq!(follower.check_header(&good), Ok(()));
    assert_eq!(follower.nr_variables(&good, 128), 3);
    assert_eq!(follower.nr_variables(&good, 2), 2);
    for (offset, word) in [
        (offset_of!(ArenaHeader, magic), 0),
        (
            offset_of!(ArenaHeader, abi_version),
            u64::from(ABI_VERSION) + 1,
        ),
        (offset_of!(ArenaHeader, size_bytes), u64::MAX),
        (offset_of!(ArenaHeader, chunk_bytes), 4097),
        (offset_of!(ArenaHeader, nr_banks), u64::MAX),
    ] {
        let mut bad = Area::new(geometry);
        bad.set(offset, word);
        assert_eq!(follower.check_header(&bad), Err(ImportError::Header));
        let mut table = Table::new(geometry);
        let shown = Follower::new(geometry).show(place(1, 0), &bad, &mut table);
        assert_eq!(shown, Err(ImportError::Header));
        assert!(table.banks.iter().all(Option::is_none));
    }
}

proptest! {
    /// A whole exporter: chunks change banks at random, the importer looks now
    /// and then, and always has what the births say.
    #[test]
    fn what_is_shown_is_what_the_births_name(
        nr_chunks in 1u64..40,
        nr_banks in 2u32..6,
        steps in proptest::collection::vec(
            (proptest::collection::vec((any::<u64>(), any::<u32>()), 0..60), any::<bool>()),
            1..60,
        ),
    ) {
        let geometry = geometry(nr_chunks, nr_banks);
        let (mut area, mut table) = (Area::new(geometry), Table::new(geometry));
        let mut follower = Follower::new(geometry);
        let mut head = 0;
        for (generation, (writes, looks)) in (1u64..).zip(steps) {
            for (chunk, bank) in writes {
                let (chunk, bank) = (chunk % nr_chunks, bank % nr_banks);
                if generation > 1 {
                    area.birth(chunk, bank, generation);
                    area.log(head, chunk, bank);
                    head += 1;
                }
            }
            if !looks {
                continue;
            }
            prop_assert!(follower.show(place(generation, head), &area, &mut table).is_ok());
            for chunk in 0..nr_chunks {
                let births: Vec<u64> = (0..nr_banks)
                    .map(|bank| area.word(geometry.birth_offset(chunk, bank).unwrap()))
                    .collect();
                prop_assert_eq!(table.bank(chunk), bank_in_generation(&births, generation));
            }
            prop_assert!(follower.holds(&area, &table));
        }
    }

    /// An exporter that writes anything anywhere: nothing outside the object is
    /// mapped (the table checks), nothing panics, work is bounded.
    #[test]
    fn a_hostile_exporter_gets_nothing_mapped_outside(
        nr_chunks in 1u64..20,
        nr_banks in 2u32..17,
        noise in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..400),
        small in proptest::collection::vec((0u64..40, 0u64..4), 0..200),
        places in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..6),
    ) {
        let geometry = geometry(nr_chunks, nr_banks);
        let (mut area, mut table) = (Area::new(geometry), Table::new(geometry));
        let mut follower = Follower::new(geometry);
        let words = geometry.control_bytes / 8;
        let used = (geometry.log_offset + geometry.log_entries * 8) / 8;
        for (at, word) in noise {
            // Beyond the header, so that something of it is looked at.
            let at = 32 + at % (if at % 2 == 0 { used } else { words } - 32);
            area.words.insert(at * 8, word);
        }
        for (at, word) in small {
            area.words.insert(geometry.births_offset + at * 8, word);
        }
        for (generation, log_head) in places {
            for place in [place(generation, log_head), place(generation % 3, log_head % 2000)] {
                *area.loads.borrow_mut() = 0;
                let _ = follower.show(place, &area, &mut table);
                let most = 8 + (geometry.log_entries + nr_chunks) * (1 + u64::from(nr_banks));
                prop_assert!(*area.loads.borrow() <= most);
            }
            let _ = follower.holds(&area, &table);
        }
    }
}
