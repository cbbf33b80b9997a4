//! The allocator by example, and against a table of single frames.

use super::*;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn allocator(pieces: &[(u64, u64, bool)]) -> FrameAllocator {
    let mut frames = FrameAllocator::new();
    for &(start, len_bytes, clean) in pieces {
        assert!(frames.add(start, len_bytes, clean));
    }
    frames
}

#[test]
fn memory_is_cut_to_whole_frames() {
    let mut frames = allocator(&[(0x1001, 0x2fff, true)]);
    assert_eq!(frames.free_bytes(), 0x2000);
    assert_eq!(frames.alloc(1, 1).map(|b| b.start), Some(0x2000));
}

#[test]
fn memory_that_wraps_overlaps_or_is_too_small_is_not_added() {
    let mut frames = allocator(&[(0x10000, 0x4000, true)]);
    for (start, len) in [
        (0x13000, 0x1000),
        (0xf000, 0x2000),
        (0, 0),
        (0x20001, 0x1ffe),
        (u64::MAX - 0xfff, 0x1000),
        (u64::MAX, 1),
    ] {
        assert!(!frames.add(start, len, true), "{start:#x}+{len:#x}");
    }
    assert_eq!(frames.free_bytes(), 0x4000);
}

#[test]
fn a_block_is_clean_only_the_first_time() {
    let mut frames = allocator(&[(0, 4 * MIB, true)]);
    let first = frames.alloc(0x3000, 0x1000).expect("memory is there");
    assert!(first.clean);
    assert!(frames.free(first.start, first.len_bytes));
    let whole = frames.alloc(4 * MIB, 0x1000).expect("merged again");
    assert!(!whole.clean);
}

#[test]
fn memory_added_as_used_is_never_clean() {
    let mut frames = allocator(&[(0, 2 * MIB, false)]);
    assert_eq!(frames.alloc(0x1000, 1).map(|b| b.clean), Some(false));
}

#[test]
fn clean_memory_goes_before_used_memory() {
    let mut frames = allocator(&[(0, 2 * MIB, false), (4 * MIB, 4 * MIB, true)]);
    let block = frames.alloc(2 * MIB, 2 * MIB).expect("memory is there");
    assert_eq!((block.start, block.clean), (4 * MIB, true));
}

/// 4 MiB to stay, and 8 MiB from 64 MiB on that may go.
fn with_removable() -> FrameAllocator {
    let mut frames = allocator(&[(0, 4 * MIB, true)]);
    assert!(frames.add_removable(64 * MIB, 8 * MIB, true));
    frames
}

#[test]
fn memory_that_may_go_is_used_last_even_before_it_is_dirty() {
    let mut frames = with_removable();
    let first = frames.alloc(4 * MIB, 1).expect("all that stays");
    assert!(frames.free(first.start, first.len_bytes));
    for len in [0x1000, MIB, 2 * MIB] {
        let block = frames.alloc(len, 1).expect("memory is there");
        assert!(block.start < 64 * MIB, "{len:#x} at {:#x}", block.start);
    }
    assert!(
        frames
            .alloc(2 * MIB, 1)
            .is_some_and(|b| b.start == 64 * MIB)
    );
    let rest = frames.alloc_up_to(64 * MIB, 1).expect("the largest piece");
    assert_eq!((rest.start, rest.len_bytes), (66 * MIB, 6 * MIB));
}

#[test]
fn no_piece_lies_across_the_border_to_what_may_go() {
    let mut frames = allocator(&[(0, 4 * MIB, true)]);
    assert!(frames.add_removable(4 * MIB, 4 * MIB, true));
    assert_eq!(frames.alloc(6 * MIB, 1), None);
    let piece = frames.alloc_up_to(6 * MIB, 1).expect("one of both");
    assert_eq!(piece.len_bytes, 4 * MIB);
}

#[test]
fn free_memory_goes_whole_and_can_come_again() {
    let mut frames = with_removable();
    assert_eq!(frames.remove(66 * MIB, 2 * MIB), Ok(()));
    assert_eq!(frames.free_bytes(), 10 * MIB);
    assert!(!frames.free(66 * MIB, 0x1000));
    assert_eq!(frames.alloc(8 * MIB, 1), None);
    assert!(frames.add_removable(66 * MIB, 2 * MIB, false));
    let block = frames.alloc(8 * MIB, 1).expect("whole again");
    assert_eq!((block.start, block.clean), (64 * MIB, false));
}

#[test]
fn memory_in_use_does_not_go_and_says_how_much_is() {
    let mut frames = with_removable();
    let block = frames.alloc(6 * MIB, 1).expect("memory is there");
    assert_eq!(block.start, 64 * MIB);
    let part = frames.remove(68 * MIB, 4 * MIB);
    assert_eq!(part, Err(RemoveError::InUse(2 * MIB)));
    assert_eq!(frames.free_bytes(), 6 * MIB);
    assert!(frames.free(68 * MIB, 2 * MIB));
    assert_eq!(frames.remove(68 * MIB, 4 * MIB), Ok(()));
    assert_eq!(frames.free_bytes(), 4 * MIB);
}

#[test]
fn what_is_not_owned_or_not_whole_does_not_go() {
    let mut frames = with_removable();
    for (start, len) in [
        (0x800, 0x1000),
        (64 * MIB, 0),
        (64 * MIB, 0x800),
        (63 * MIB, 2 * MIB),
        (71 * MIB, 2 * MIB),
        (u64::MAX - 0xfff, 0x1000),
        (0x1000, u64::MAX),
    ] {
        let gone = frames.remove(start, len);
        assert_eq!(gone, Err(RemoveError::NotOwned), "{start:#x}+{len:#x}");
    }
    assert_eq!(frames.free_bytes(), 12 * MIB);
}

#[test]
fn small_requests_leave_whole_large_pages_alone() {
    let mut frames = allocator(&[(2 * MIB, 4 * MIB, true), (8 * MIB + 0x5000, 0x3000, true)]);
    let starts: Vec<_> = (0..3).filter_map(|_| frames.alloc(0x1000, 1)).collect();
    let starts: Vec<_> = starts.iter().map(|block| block.start).collect();
    assert_eq!(
        starts,
        [8 * MIB + 0x5000, 8 * MIB + 0x6000, 8 * MIB + 0x7000]
    );
    assert!(frames.alloc(0x1000, 1).is_some_and(|b| b.start == 2 * MIB));
    assert!(
        frames
            .alloc(0x1000, 1)
            .is_some_and(|b| b.start == 2 * MIB + 0x1000)
    );
    assert!(
        frames
            .alloc(2 * MIB, 2 * MIB)
            .is_some_and(|b| b.start == 4 * MIB)
    );
}

#[test]
fn small_requests_use_both_ends_of_a_long_piece_before_a_whole_block() {
    let mut frames = allocator(&[
        (2 * MIB, 2 * MIB, true),
        (8 * MIB - 0x1000, 2 * MIB + 0x2000, true),
    ]);
    let starts: Vec<_> = (0..3).filter_map(|_| frames.alloc(0x1000, 1)).collect();
    let starts: Vec<_> = starts.iter().map(|block| block.start).collect();
    assert_eq!(starts, [8 * MIB - 0x1000, 10 * MIB, 2 * MIB]);
}

#[test]
fn small_requests_too_take_clean_memory_first() {
    let mut frames = allocator(&[(0, MIB, false), (4 * MIB, MIB, true)]);
    let block = frames.alloc(0x1000, 1).expect("memory is there");
    assert_eq!((block.start, block.clean), (4 * MIB, true));
}

#[test]
fn clean_and_used_neighbours_serve_one_large_request() {
    let mut frames = allocator(&[(0, MIB, true), (MIB, MIB, false)]);
    let block = frames.alloc(2 * MIB, 2 * MIB).expect("both together");
    assert_eq!((block.start, block.clean), (0, false));
}

#[test]
fn what_does_not_fit_comes_in_pieces_the_largest_first() {
    let mut frames = allocator(&[(0, MIB, true), (2 * MIB, 3 * MIB, true)]);
    assert_eq!(frames.alloc(4 * MIB, 0x1000), None);
    let lens: Vec<_> = core::iter::from_fn(|| frames.alloc_up_to(4 * MIB, 0x1000))
        .map(|block| block.len_bytes)
        .collect();
    assert_eq!(lens, [3 * MIB, MIB]);
    assert_eq!(frames.free_bytes(), 0);
}

#[test]
fn impossible_requests_are_refused() {
    let mut frames = allocator(&[(0x1000, 2 * MIB, true)]);
    for (len, align) in [
        (0, 0x1000),
        (0x1000, 0),
        (0x1000, 0x3000),
        (0x1000, 1 << 63),
        (u64::MAX, 0x1000),
        (u64::MAX - 0xfff, 0x1000),
        (4 * MIB, 0x1000),
    ] {
        assert_eq!(frames.alloc(len, align), None, "{len:#x} at {align:#x}");
    }
    assert_eq!(frames.alloc_up_to(0, 1), None);
    assert_eq!(frames.alloc_up_to(0x1000, 1 << 63), None);
    assert_eq!(frames.free_bytes(), 2 * MIB);
}

#[test]
fn wrong_frees_are_refused_and_change_nothing() {
    let mut frames = allocator(&[(0x10000, 0x10000, true)]);
    let block = frames.alloc(0x4000, 0x1000).expect("memory is there");
    for (start, len) in [
        (block.start, 0),
        (block.start, 0x800),
        (block.start + 1, 0x1000),
        (block.start, 0x5000),
        (block.start - 0x1000, 0x2000),
        (0x100_0000, 0x1000),
        (u64::MAX - 0xfff, 0x1000),
        (u64::MAX - 0xfff, 0x2000),
    ] {
        assert!(!frames.free(start, len), "{start:#x}+{len:#x}");
    }
    assert_eq!(frames.free_bytes(), 0xc000);
    assert!(frames.free(block.start, block.len_bytes));
    assert!(!frames.free(block.start, block.len_bytes));
}

/// State of one frame in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Foreign,
    Clean,
    Used,
    Taken,
}

impl Cell {
    fn is_free(self) -> bool {
        matches!(self, Self::Clean | Self::Used)
    }
}

const CELLS: usize = 1600;
const LARGE_CELLS: usize = 512;

/// The same memory frame by frame.
struct Model(Vec<Cell>);

impl Model {
    /// Length of the free run that starts at each frame.
    fn runs(&self) -> Vec<usize> {
        let mut runs = vec![0; CELLS];
        let mut run = 0;
        for (cell, slot) in self.0.iter().zip(&mut runs).rev() {
            run = if cell.is_free() { run + 1 } else { 0 };
            *slot = run;
        }
        runs
    }

    /// Longest free run that starts at a multiple of `align`.
    fn longest(&self, align: usize) -> usize {
        self.runs().into_iter().step_by(align).max().unwrap_or(0)
    }

    /// For each place where `len` frames fit, the number of whole free 2 MiB
    /// blocks that taking it would break.
    fn fits(&self, len: usize, align: usize) -> BTreeMap<usize, usize> {
        let runs = self.runs();
        let is_whole = |block: &usize| {
            let run = runs.get(block * LARGE_CELLS);
            run.is_some_and(|&run| run >= LARGE_CELLS)
        };
        let breaks = |start: usize| {
            let blocks = start / LARGE_CELLS..(start + len).div_ceil(LARGE_CELLS);
            blocks.filter(is_whole).count()
        };
        let starts = (0..CELLS)
            .step_by(align)
            .filter(|&start| runs[start] >= len);
        starts.map(|start| (start, breaks(start))).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc { len: usize, align_shift: u32 },
    AllocUpTo { len: usize, align_shift: u32 },
    FreeBlock(prop::sample::Index),
    FreeHalf(prop::sample::Index),
    FreeRange { start: usize, len: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => 1usize..20, 2 => 20usize..600, 1 => Just(512usize)];
    let shift = prop_oneof![3 => Just(0u32), 1 => 0u32..10];
    let request = (len, shift);
    prop_oneof![
        5 => request.clone().prop_map(|(len, align_shift)| Step::Alloc { len, align_shift }),
        1 => request.prop_map(|(len, align_shift)| Step::AllocUpTo { len, align_shift }),
        3 => any::<prop::sample::Index>().prop_map(Step::FreeBlock),
        1 => any::<prop::sample::Index>().prop_map(Step::FreeHalf),
        1 => (0..CELLS, 1usize..30).prop_map(|(start, len)| Step::FreeRange { start, len }),
    ]
}

fn bytes(cells: usize) -> u64 {
    u64::try_from(cells).expect("small") * PAGE_SIZE
}

fn cells(bytes: u64) -> usize {
    usize::try_from(bytes / PAGE_SIZE).expect("small")
}

/// Checks a block against the model and marks it taken.
fn take(model: &mut Model, block: Block, align: usize) -> Result<(usize, usize), TestCaseError> {
    let (start, len) = (cells(block.start), cells(block.len_bytes));
    prop_assert_eq!((bytes(start), bytes(len)), (block.start, block.len_bytes));
    prop_assert_eq!(start % align, 0);
    let taken = &mut model.0[start..start + len];
    let all_free = taken.iter().all(|cell| cell.is_free());
    prop_assert!(all_free, "handed out twice");
    prop_assert_eq!(block.clean, taken.iter().all(|&cell| cell == Cell::Clean));
    taken.fill(Cell::Taken);
    Ok((start, len))
}

fn free(
    frames: &mut FrameAllocator,
    model: &mut Model,
    start: usize,
    len: usize,
) -> Result<(), TestCaseError> {
    let range = model.0.get_mut(start..start + len);
    let valid = range.filter(|range| range.iter().all(|&cell| cell == Cell::Taken));
    prop_assert_eq!(frames.free(bytes(start), bytes(len)), valid.is_some());
    if let Some(range) = valid {
        range.fill(Cell::Used);
    }
    Ok(())
}

fn run(
    frames: &mut FrameAllocator,
    model: &mut Model,
    steps: &[Step],
) -> Result<(), TestCaseError> {
    let mut blocks: Vec<(usize, usize)> = Vec::new();
    for step in steps {
        match *step {
            Step::Alloc { len, align_shift } => {
                let align = 1 << align_shift;
                let fits = model.fits(len, align);
                let block = frames.alloc(bytes(len), bytes(align));
                prop_assert_eq!(block.is_some(), !fits.is_empty());
                let Some(block) = block else { continue };
                let breaks = fits.get(&cells(block.start));
                if len < LARGE_CELLS && align < LARGE_CELLS && fits.values().any(|&n| n == 0) {
                    prop_assert_eq!(breaks, Some(&0));
                }
                let taken = take(model, block, align)?;
                prop_assert_eq!(taken.1, len);
                blocks.push(taken);
            }
            Step::AllocUpTo { len, align_shift } => {
                let align = 1 << align_shift;
                let want = len.min(model.longest(align));
                match frames.alloc_up_to(bytes(len), bytes(align)) {
                    None => prop_assert_eq!(want, 0),
                    Some(block) => {
                        let taken = take(model, block, align)?;
                        prop_assert_eq!(taken.1, want);
                        blocks.push(taken);
                    }
                }
            }
            Step::FreeBlock(index) if !blocks.is_empty() => {
                let (start, len) = blocks.swap_remove(index.index(blocks.len()));
                free(frames, model, start, len)?;
                prop_assert!(!frames.free(bytes(start), bytes(len)), "freed twice");
            }
            Step::FreeHalf(index) if !blocks.is_empty() => {
                let (start, len) = blocks.swap_remove(index.index(blocks.len()));
                free(frames, model, start, len.div_ceil(2))?;
            }
            Step::FreeRange { start, len } => free(frames, model, start, len)?,
            Step::FreeBlock(_) | Step::FreeHalf(_) => {}
        }
        let nr_free = model.0.iter().filter(|cell| cell.is_free()).count();
        prop_assert_eq!(frames.free_bytes(), bytes(nr_free));
        prop_assert_eq!(frames.largest(), bytes(model.longest(1)));
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_frame_is_where_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let mut frames = FrameAllocator::new();
        let mut model = Model(vec![Cell::Foreign; CELLS]);
        // A hole, a clean and a used part that touch, odd ends.
        for (start, end, cell) in [(3, 700, Cell::Clean), (700, 800, Cell::Used), (1000, 1590, Cell::Clean)] {
            model.0[start..end].fill(cell);
            prop_assert!(frames.add(bytes(start), bytes(end - start), cell == Cell::Clean));
        }
        run(&mut frames, &mut model, &steps)?;
    }
}
