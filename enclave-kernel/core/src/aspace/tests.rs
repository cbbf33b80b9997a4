//! Address spaces by example, and against a map of single pages.

use super::*;
use alloc::collections::BTreeMap;
use alloc::vec;
use proptest::prelude::*;

const MIN: u64 = 0x1_0000;
const MAX: u64 = 0x5_0000;

fn region(start: u64, end: u64, backing: Backing) -> Region {
    Region {
        start,
        end,
        prot: Prot::READ_WRITE,
        backing,
        kind: Kind::Anonymous,
    }
}

fn with(regions: &[Region]) -> Aspace {
    let mut aspace = Aspace::new(MIN, MAX);
    for &region in regions {
        aspace.insert(region).expect("the examples do not overlap");
    }
    aspace
}

fn list(aspace: &Aspace) -> Vec<Region> {
    aspace.iter().copied().collect()
}

fn removed(aspace: &mut Aspace, start: u64, end: u64) -> Vec<Region> {
    let mut pieces = Vec::new();
    aspace.remove(start, end, &mut |piece| pieces.push(piece));
    pieces
}

#[test]
fn protections_print_as_in_proc_maps() {
    assert_eq!(
        alloc::format!("{} {:?}", Prot::READ_WRITE, Prot::EXEC),
        "rw- --x"
    );
}

#[test]
fn unknown_protection_bits_are_refused() {
    assert_eq!(Prot::from_linux(3), Some(Prot::READ | Prot::WRITE));
    for bits in [8, 0x100_0001, u64::MAX] {
        assert_eq!(Prot::from_linux(bits), None);
    }
}

#[test]
fn holes_are_found_from_the_top() {
    let aspace = with(&[region(0x4_0000, 0x4_8000, Backing::None)]);
    assert_eq!(aspace.find_hole(0x8000, 1, u64::MAX), Some(0x4_8000));
    assert_eq!(aspace.find_hole(0x8001, 1, u64::MAX), Some(0x3_7000));
    assert_eq!(aspace.find_hole(0x1000, 1, 0x4_4000), Some(0x3_f000));
    assert_eq!(aspace.find_hole(0x1000, 0x1_0000, 0x4_7fff), Some(0x3_0000));
    assert_eq!(aspace.find_hole(0x3_0000, 1, MAX), Some(MIN));
}

#[test]
fn holes_end_at_or_below_the_wanted_address() {
    let aspace = with(&[]);
    assert_eq!(aspace.find_hole(0x1000, 1, 0x2_0fff), Some(0x1_f000));
    assert_eq!(aspace.find_hole(0x1000, 1, MIN), None);
    assert_eq!(aspace.find_hole(0x1000, 1, 0), None);
}

#[test]
fn impossible_holes_are_not_found() {
    let aspace = with(&[]);
    for (len, align) in [
        (0, 1),
        (1, 0),
        (1, 3),
        (MAX - MIN + 1, 1),
        (u64::MAX, 1),
        (1, 1 << 63),
    ] {
        assert_eq!(
            aspace.find_hole(len, align, u64::MAX),
            None,
            "{len:#x} {align:#x}"
        );
    }
}

#[test]
fn a_region_that_continues_its_neighbours_joins_them() {
    let aspace = with(&[
        region(0x1_0000, 0x1_1000, Backing::Frames(0x9000)),
        region(0x1_2000, 0x1_3000, Backing::Frames(0xb000)),
        region(0x1_1000, 0x1_2000, Backing::Frames(0xa000)),
    ]);
    assert_eq!(
        list(&aspace),
        [region(0x1_0000, 0x1_3000, Backing::Frames(0x9000))]
    );
}

#[test]
fn regions_that_differ_in_backing_protection_or_kind_stay_apart() {
    let base = region(0x1_0000, 0x1_1000, Backing::Frames(0x9000));
    let next = region(0x1_1000, 0x1_2000, Backing::Frames(0xa000));
    for other in [
        Region {
            backing: Backing::Frames(0xb000),
            ..next
        },
        Region {
            backing: Backing::Device(0xa000),
            ..next
        },
        Region {
            prot: Prot::READ,
            ..next
        },
        Region {
            kind: Kind::Heap,
            ..next
        },
    ] {
        assert_eq!(with(&[base, other]).iter().len(), 2, "{other:?}");
    }
    let arenas = [
        region(0x1_0000, 0x1_1000, Backing::Arena(1)),
        region(0x1_1000, 0x1_2000, Backing::Arena(1)),
    ];
    assert_eq!(with(&arenas).iter().len(), 2);
}

#[test]
fn bad_regions_are_refused() {
    let mut aspace = with(&[region(0x2_0000, 0x2_2000, Backing::None)]);
    let none = Backing::None;
    let cases = [
        (region(0x2_1000, 0x2_3000, none), AspaceError::Overlap),
        (region(0x1_f000, 0x2_1000, none), AspaceError::Overlap),
        (region(0x1_f000, 0x2_3000, none), AspaceError::Overlap),
        (region(0x3_0000, 0x3_0000, none), AspaceError::OutOfRange),
        (region(0x3_1000, 0x3_0000, none), AspaceError::OutOfRange),
        (region(MIN - 0x1000, MIN, none), AspaceError::OutOfRange),
        (
            region(MAX - 0x1000, MAX + 0x1000, none),
            AspaceError::OutOfRange,
        ),
        (region(0x3_0001, 0x3_1000, none), AspaceError::Misaligned),
        (region(0x3_0000, u64::MAX, none), AspaceError::Misaligned),
        (
            region(0x3_0000, 0x3_1000, Backing::Frames(1)),
            AspaceError::Misaligned,
        ),
        (
            region(0x3_0000, 0x3_2000, Backing::Device(u64::MAX - 0xfff)),
            AspaceError::OutOfRange,
        ),
    ];
    for (bad, want) in cases {
        assert_eq!(aspace.insert(bad), Err(want), "{bad:x?}");
    }
    assert_eq!(aspace.mapped_bytes(), 0x2000);
}

#[test]
fn removal_cuts_and_reports_backing_of_its_own() {
    let mut aspace = with(&[region(0x1_0000, 0x1_4000, Backing::Frames(0x8000))]);
    let pieces = removed(&mut aspace, 0x1_1000, 0x1_2000);
    assert_eq!(
        pieces,
        [region(0x1_1000, 0x1_2000, Backing::Frames(0x9000))]
    );
    assert_eq!(
        list(&aspace),
        [
            region(0x1_0000, 0x1_1000, Backing::Frames(0x8000)),
            region(0x1_2000, 0x1_4000, Backing::Frames(0xa000)),
        ]
    );
}

#[test]
fn removal_takes_whole_pages_and_ignores_holes() {
    let low = region(0x1_0000, 0x1_1000, Backing::None);
    let high = region(0x1_3000, 0x1_4000, Backing::None);
    let mut aspace = with(&[low, high]);
    assert_eq!(removed(&mut aspace, 0x1_2000, 0x1_2fff), []);
    assert_eq!(removed(&mut aspace, 0x1_3fff, 0x1_3fff), []);
    assert_eq!(removed(&mut aspace, 0x1_4000, 0x1_0000), []);
    assert_eq!(removed(&mut aspace, 0x1_0fff, 0x1_3001), [low, high]);
    assert_eq!(removed(&mut aspace, 0, u64::MAX), []);
}

#[test]
fn protection_changes_report_the_old_pieces_and_join_again() {
    let whole = region(0x1_0000, 0x1_4000, Backing::Frames(0x8000));
    let mut aspace = with(&[whole]);
    let mut old = Vec::new();
    let mut protect = |aspace: &mut Aspace, end, prot| {
        aspace.protect(0x1_1000, end, prot, &mut |piece| old.push(piece))
    };
    assert_eq!(protect(&mut aspace, 0x1_2000, Prot::READ), Ok(()));
    assert_eq!(aspace.iter().len(), 3);
    assert_eq!(protect(&mut aspace, 0x1_4000, Prot::READ), Ok(()));
    assert_eq!(aspace.iter().len(), 2);
    assert_eq!(protect(&mut aspace, 0x1_4000, Prot::READ_WRITE), Ok(()));
    assert_eq!(list(&aspace), [whole]);
    let read_only = Region {
        prot: Prot::READ,
        ..region(0x1_1000, 0x1_4000, Backing::Frames(0x9000))
    };
    assert_eq!(
        old,
        [
            region(0x1_1000, 0x1_2000, Backing::Frames(0x9000)),
            region(0x1_2000, 0x1_4000, Backing::Frames(0xa000)),
            read_only,
        ]
    );
}

#[test]
fn protection_over_a_hole_or_an_arena_changes_nothing() {
    let regions = [
        region(0x1_0000, 0x1_1000, Backing::None),
        region(0x1_2000, 0x1_3000, Backing::Frames(0)),
        region(0x1_3000, 0x1_4000, Backing::Arena(0)),
    ];
    let mut aspace = with(&regions);
    let mut protect = |start, end| aspace.protect(start, end, Prot::NONE, &mut |_| unreachable!());
    assert_eq!(protect(0x1_0000, 0x1_3000), Err(AspaceError::Hole));
    assert_eq!(protect(0x1_2000, 0x1_4000), Err(AspaceError::Arena));
    assert_eq!(protect(0x1_2000, 0x1_2001), Err(AspaceError::Misaligned));
    assert_eq!(protect(0x1_2000, 0x1_2000), Err(AspaceError::OutOfRange));
    assert_eq!(list(&aspace), regions);
}

#[test]
fn a_reservation_is_committed_in_its_middle() {
    let reserved = Region {
        prot: Prot::NONE,
        ..region(0x1_0000, 0x1_4000, Backing::None)
    };
    let mut aspace = with(&[reserved]);
    assert_eq!(
        aspace.protect(0x1_1000, 0x1_3000, Prot::READ_WRITE, &mut |_| {}),
        Ok(())
    );
    assert_eq!(
        aspace.set_backing(0x1_1000, 0x1_2000, Backing::Frames(0x7000)),
        Ok(())
    );
    assert_eq!(
        aspace.set_backing(0x1_2000, 0x1_3000, Backing::Frames(0x8000)),
        Ok(())
    );
    assert_eq!(
        list(&aspace),
        [
            Region {
                end: 0x1_1000,
                ..reserved
            },
            region(0x1_1000, 0x1_3000, Backing::Frames(0x7000)),
            Region {
                start: 0x1_3000,
                ..reserved
            },
        ]
    );
}

#[test]
fn backing_is_refused_over_holes_and_arenas() {
    let regions = [
        region(0x1_0000, 0x1_1000, Backing::Arena(0)),
        region(0x1_2000, 0x1_3000, Backing::None),
    ];
    let mut aspace = with(&regions);
    let frames = Backing::Frames(0);
    assert_eq!(
        aspace.set_backing(0x1_2000, 0x1_4000, frames),
        Err(AspaceError::Hole)
    );
    assert_eq!(
        aspace.set_backing(0x1_0000, 0x1_1000, frames),
        Err(AspaceError::Arena)
    );
    assert_eq!(
        aspace.set_backing(0x1_2000, 0x1_3000, Backing::Arena(1)),
        Err(AspaceError::Arena)
    );
    assert_eq!(
        aspace.set_backing(0x1_2000, 0x1_3000, Backing::Frames(5)),
        Err(AspaceError::Misaligned)
    );
    assert_eq!(list(&aspace), regions);
}

#[test]
fn coverage_never_wraps() {
    let aspace = with(&[region(MIN, MAX, Backing::None)]);
    assert!(aspace.covers(MIN, MAX - MIN, Prot::READ_WRITE));
    assert!(!aspace.covers(MIN, MAX - MIN + 1, Prot::NONE));
    assert!(!aspace.covers(MIN, u64::MAX, Prot::NONE));
    assert!(!aspace.covers(u64::MAX, 2, Prot::NONE));
    assert!(aspace.covers(u64::MAX, 0, Prot::READ));
}

#[test]
fn a_region_holds_its_first_byte_and_not_its_end() {
    let aspace = with(&[region(0x1_0000, 0x1_1000, Backing::None)]);
    for (addr, holds) in [
        (0xffff, false),
        (0x1_0000, true),
        (0x1_0fff, true),
        (0x1_1000, false),
        (u64::MAX, false),
    ] {
        assert_eq!(aspace.at(addr).is_some(), holds, "{addr:#x}");
    }
}

#[test]
fn the_nearest_region_is_found_on_either_side() {
    let aspace = with(&[
        region(0x1_0000, 0x1_1000, Backing::None),
        region(0x1_3000, 0x1_4000, Backing::None),
    ]);
    for (addr, start) in [
        (0, 0x1_0000),
        (0x1_0fff, 0x1_0000),
        (0x1_1fff, 0x1_0000),
        (0x1_2001, 0x1_3000),
        (0x1_3000, 0x1_3000),
        (u64::MAX, 0x1_3000),
    ] {
        assert_eq!(
            aspace.nearest(addr).map(|r| r.start),
            Some(start),
            "{addr:#x}"
        );
    }
    assert_eq!(Aspace::new(MIN, MAX).nearest(0), None);
}

/// What the model knows of one page.
type Page = (Prot, Backing, Kind);
type Model = BTreeMap<u64, Page>;

#[derive(Clone, Debug)]
enum Step {
    Insert(Region),
    Remove(u64, u64),
    Protect(u64, u64, Prot),
    SetBacking(u64, u64, Backing),
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    // Some ranges stick out of the address space, some are empty.
    (0x0e..0x52u64, 0..0x12u64).prop_map(|(page, len)| (page << 12, (page + len) << 12))
}

fn step() -> impl Strategy<Value = Step> {
    let prot = (0u64..4).prop_map(|bits| Prot::from_linux(bits).unwrap_or_default());
    // Frames at the same distance everywhere make neighbours that join.
    let backing = |start: u64| {
        prop_oneof![
            3 => Just(Backing::None),
            3 => Just(Backing::Frames(start + 0x10_0000)),
            1 => Just(Backing::Frames(0x70_0000)),
            1 => Just(Backing::Device(start)),
            1 => (0u32..2).prop_map(Backing::Arena),
        ]
    };
    let kind = prop_oneof![3 => Just(Kind::Anonymous), 1 => Just(Kind::Heap)];
    let backed =
        move || range().prop_flat_map(move |(start, end)| (Just((start, end)), backing(start)));
    prop_oneof![
        3 => (backed(), prot.clone(), kind).prop_map(|(((start, end), backing), prot, kind)| {
            Step::Insert(Region { start, end, prot, backing, kind })
        }),
        1 => range().prop_map(|(start, end)| Step::Remove(start, end)),
        2 => (range(), prot).prop_map(|((start, end), prot)| Step::Protect(start, end, prot)),
        1 => backed().prop_map(|((start, end), backing)| Step::SetBacking(start, end, backing)),
    ]
}

fn pages(start: u64, end: u64) -> impl Iterator<Item = u64> + Clone {
    (start..end).step_by(0x1000)
}

/// A region as the pages it is made of.
fn spread(region: &Region) -> impl Iterator<Item = (u64, Page)> + use<> {
    let region = *region;
    pages(region.start, region.end).map(move |at| {
        let backing = match region.backing {
            Backing::Frames(gpa) => Backing::Frames(gpa + (at - region.start)),
            Backing::Device(gpa) => Backing::Device(gpa + (at - region.start)),
            other => other,
        };
        (at, (region.prot, backing, region.kind))
    })
}

fn in_limits(start: u64, end: u64) -> bool {
    start < end && start >= MIN && end <= MAX
}

/// Whether protection or backing of the range may change, by the model.
fn changeable(model: &Model, start: u64, end: u64) -> bool {
    let is_plain =
        |at| matches!(model.get(&at), Some((_, b, _)) if !matches!(b, Backing::Arena(_)));
    in_limits(start, end) && pages(start, end).all(is_plain)
}

fn apply(aspace: &mut Aspace, model: &mut Model, step: &Step) -> Result<(), TestCaseError> {
    match *step {
        Step::Insert(region) => {
            let free = pages(region.start, region.end).all(|at| !model.contains_key(&at));
            let valid = in_limits(region.start, region.end) && free;
            prop_assert_eq!(aspace.insert(region).is_ok(), valid);
            if valid {
                model.extend(spread(&region));
            }
        }
        Step::Remove(start, end) => {
            let gone: Vec<_> = removed(aspace, start, end)
                .iter()
                .flat_map(spread)
                .collect();
            let want: Vec<_> = model
                .range(start..end)
                .map(|(&at, &page)| (at, page))
                .collect();
            prop_assert_eq!(gone, want);
            model.retain(|&at, _| at < start || at >= end);
        }
        Step::Protect(start, end, prot) => {
            let mut pieces = Vec::new();
            let result = aspace.protect(start, end, prot, &mut |piece| pieces.push(piece));
            prop_assert_eq!(result.is_ok(), changeable(model, start, end));
            let mut want = vec![];
            if result.is_ok() {
                for (&at, page) in model.range_mut(start..end) {
                    if page.0 != prot {
                        want.push((at, *page));
                        page.0 = prot;
                    }
                }
            }
            prop_assert_eq!(pieces.iter().flat_map(spread).collect::<Vec<_>>(), want);
        }
        Step::SetBacking(start, end, backing) => {
            let valid = changeable(model, start, end) && !matches!(backing, Backing::Arena(_));
            prop_assert_eq!(aspace.set_backing(start, end, backing).is_ok(), valid);
            if valid {
                let new = spread(&region(start, end, backing));
                for (at, (_, backing, _)) in new {
                    if let Some(page) = model.get_mut(&at) {
                        page.1 = backing;
                    }
                }
            }
        }
    }
    Ok(())
}

fn agree(aspace: &Aspace, model: &Model) -> Result<(), TestCaseError> {
    let regions = list(aspace);
    let flat: Vec<_> = regions.iter().flat_map(spread).collect();
    let want: Vec<_> = model.iter().map(|(&at, &page)| (at, page)).collect();
    prop_assert_eq!(flat, want);
    prop_assert_eq!(
        aspace.mapped_bytes(),
        0x1000 * u64::try_from(model.len()).unwrap_or(0)
    );
    for pair in regions.windows(2) {
        prop_assert!(pair[0].end <= pair[1].start);
        prop_assert!(!pair[0].continues_in(&pair[1]), "{:x?}", pair);
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_page_is_what_the_model_says(
        steps in prop::collection::vec(step(), 1..40),
        ask in range(),
        odd in 0u64..0x1000,
        align_shift in 0u32..18,
    ) {
        let mut aspace = Aspace::new(MIN, MAX);
        let mut model = Model::new();
        for step in &steps {
            apply(&mut aspace, &mut model, step)?;
            agree(&aspace, &model)?;
        }

        let (start, end) = (ask.0 + odd, ask.1 + odd);
        let touched = pages(ask.0, end);
        for want in [Prot::NONE, Prot::READ, Prot::READ_WRITE] {
            let covered = start == end || touched.clone().all(|at| {
                model.get(&at).is_some_and(|page| page.0.contains(want))
            });
            prop_assert_eq!(aspace.covers(start, end - start, want), covered);
        }
        let holds = model.contains_key(&ask.0);
        prop_assert_eq!(aspace.at(start).is_some_and(|r| r.start <= start && start < r.end), holds);

        let (len, align) = (ask.1 - ask.0, 1u64 << align_shift);
        let fits = |at: &u64| {
            at.is_multiple_of(align) && at + len <= start.min(MAX)
                && pages(*at, at + len).all(|page| !model.contains_key(&page))
        };
        let hole = pages(MIN, MAX).filter(fits).last().filter(|_| len > 0);
        prop_assert_eq!(aspace.find_hole(len, align, start), hole);
    }
}
