//! Ordinary and hostile programs, made byte by byte.

use super::*;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

const MIN: u64 = 0x1_0000;
const MAX: u64 = 0x8000_0000_0000;
const PIE_BASE: u64 = 0x5555_5555_4000;
const R: u32 = abi::PF_R;
const RW: u32 = abi::PF_R | abi::PF_W;
const RX: u32 = abi::PF_R | abi::PF_X;
const READ_EXEC: Prot = Prot::READ.union(Prot::EXEC);

/// One program header to be written.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u32,
    flags: u32,
    offset: u64,
    va: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

fn load(flags: u32, offset: u64, va: u64, file_bytes: u64, memory_bytes: u64) -> Header {
    Header {
        kind: abi::PT_LOAD,
        flags,
        offset,
        va,
        file_bytes,
        memory_bytes,
        align: 0x1000,
    }
}

fn special(kind: u32, flags: u32, offset: u64, bytes: u64) -> Header {
    Header {
        kind,
        align: 8,
        ..load(flags, offset, offset, bytes, bytes)
    }
}

/// A program file; fields are overwritten by offset.
#[derive(Clone)]
struct Image(Vec<u8>);

impl Image {
    fn new(kind: u16, entry: u64, headers: &[Header], bytes: usize) -> Self {
        let mut image = Self(vec![0; bytes]);
        image.put(0, &abi::ELFMAGIC);
        image.put(4, &[abi::ELFCLASS64, abi::ELFDATA2LSB, abi::EV_CURRENT]);
        image.put(16, &kind.to_le_bytes());
        image.put(18, &abi::EM_X86_64.to_le_bytes());
        image.put(20, &1u32.to_le_bytes());
        image.put(24, &entry.to_le_bytes());
        image.put(32, &64u64.to_le_bytes());
        image.put(52, &64u16.to_le_bytes());
        image.put(54, &56u16.to_le_bytes());
        let count = u16::try_from(headers.len()).expect("few");
        image.put(56, &count.to_le_bytes());
        for (index, header) in headers.iter().enumerate() {
            let at = 64 + 56 * index;
            image.put(at, &header.kind.to_le_bytes());
            image.put(at + 4, &header.flags.to_le_bytes());
            let words = [header.offset, header.va, header.va, header.file_bytes];
            for (word, value) in words.iter().enumerate() {
                image.put(at + 8 + 8 * word, &value.to_le_bytes());
            }
            image.put(at + 40, &header.memory_bytes.to_le_bytes());
            image.put(at + 48, &header.align.to_le_bytes());
        }
        image
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }

    fn plan(&self) -> Result<LoadPlan, ExecError> {
        let bytes = self.0.len();
        let head = &self.0[..bytes.min(64 << 10)];
        plan(
            head,
            u64::try_from(bytes).expect("small"),
            PIE_BASE,
            MIN,
            MAX,
        )
    }
}

/// What a static link gives: headers and read-only data, text, data and bss.
fn ordinary() -> Image {
    Image::new(abi::ET_EXEC, 0x40_1010, &ordinary_headers(), 0x4000)
}

fn ordinary_headers() -> [Header; 4] {
    [
        load(R, 0, 0x40_0000, 0x800, 0x800),
        load(RX, 0x1000, 0x40_1000, 0x1234, 0x1234),
        load(RW, 0x2e00, 0x40_3e00, 0x300, 0x2500),
        special(abi::PT_GNU_STACK, RW, 0, 0),
    ]
}

fn with_load(header: Header) -> Image {
    let mut headers = ordinary_headers();
    headers[2] = header;
    Image::new(abi::ET_EXEC, 0x40_1010, &headers, 0x4000)
}

fn segment(start: u64, end: u64, prot: Prot) -> Segment {
    Segment { start, end, prot }
}

#[test]
fn a_static_program_is_planned_as_linked() {
    let plan = ordinary().plan().expect("valid");
    assert_eq!(
        plan.segments,
        [
            segment(0x40_0000, 0x40_1000, Prot::READ),
            segment(0x40_1000, 0x40_3000, READ_EXEC),
            segment(0x40_3000, 0x40_7000, Prot::READ_WRITE),
        ]
    );
    let copies: Vec<_> = plan
        .copies
        .iter()
        .map(|c| (c.segment, c.file_offset, c.bytes, c.va))
        .collect();
    assert_eq!(
        copies,
        [
            (0, 0, 0x800, 0x40_0000),
            (1, 0x1000, 0x1234, 0x40_1000),
            (2, 0x2e00, 0x300, 0x40_3e00),
        ]
    );
    assert_eq!(
        (plan.entry, plan.phdr, plan.phent, plan.phnum),
        (0x40_1010, 0x40_0040, 56, 4)
    );
    assert_eq!((plan.bias, plan.brk_start), (0, 0x40_7000));
    assert!(!plan.pie && !plan.exec_stack);
}

#[test]
fn a_static_pie_is_moved_as_a_whole() {
    let headers = [
        load(R, 0, 0, 0x800, 0x800),
        load(RX, 0x1000, 0x1000, 0x100, 0x100),
        load(RW, 0x2000, 0x2000, 0x100, 0x1000),
        special(abi::PT_DYNAMIC, RW, 0x2000, 0x20),
    ];
    let plan = Image::new(abi::ET_DYN, 0x1000, &headers, 0x4000)
        .plan()
        .expect("valid");
    assert_eq!((plan.bias, plan.entry), (PIE_BASE, PIE_BASE + 0x1000));
    assert_eq!(
        (plan.phdr, plan.brk_start),
        (PIE_BASE + 64, PIE_BASE + 0x3000)
    );
    assert_eq!(
        plan.copies.last().map(|copy| copy.va),
        Some(PIE_BASE + 0x2000)
    );
    assert!(plan.pie);
}

#[test]
fn a_static_pie_keeps_its_alignment() {
    let mut header = load(RX, 0, 0, 0x800, 0x800);
    header.align = 0x20_0000;
    let plan = Image::new(abi::ET_DYN, 0x100, &[header], 0x1000)
        .plan()
        .expect("valid");
    assert_eq!(plan.bias, PIE_BASE.next_multiple_of(0x20_0000));
}

#[test]
fn a_shared_page_gets_both_permissions_and_both_contents() {
    let headers = [
        load(RX, 0, 0x40_0000, 0x2800, 0x2800),
        load(RW, 0x2800, 0x40_2800, 0x1800, 0x3000),
    ];
    let plan = Image::new(abi::ET_EXEC, 0x40_1000, &headers, 0x4000)
        .plan()
        .expect("valid");
    assert_eq!(
        plan.segments,
        [
            segment(0x40_0000, 0x40_2000, READ_EXEC),
            segment(0x40_2000, 0x40_3000, READ_EXEC | Prot::WRITE),
            segment(0x40_3000, 0x40_6000, Prot::READ_WRITE),
        ]
    );
    let copies: Vec<_> = plan
        .copies
        .iter()
        .map(|c| (c.segment, c.file_offset, c.bytes))
        .collect();
    assert_eq!(
        copies,
        [
            (0, 0, 0x2000),
            (1, 0x2000, 0x800),
            (1, 0x2800, 0x800),
            (2, 0x3000, 0x1000)
        ]
    );
}

#[test]
fn segments_in_one_page_or_out_of_order_are_one_plan() {
    let headers = [
        load(RW, 0x300, 0x40_0300, 0x100, 0x100),
        load(RX, 0x1200, 0x40_0200, 0x100, 0x100),
        load(R, 0x2100, 0x40_0100, 0x100, 0x100),
    ];
    let plan = Image::new(abi::ET_EXEC, 0x40_0200, &headers, 0x3000)
        .plan()
        .expect("valid");
    assert_eq!(
        plan.segments,
        [segment(0x40_0000, 0x40_1000, READ_EXEC | Prot::WRITE)]
    );
    let starts: Vec<_> = plan.copies.iter().map(|copy| copy.va).collect();
    assert_eq!(starts, [0x40_0100, 0x40_0200, 0x40_0300]);
}

#[test]
fn headers_that_are_not_loaded_have_no_address() {
    let headers = [load(RX, 0x1000, 0x40_1000, 0x100, 0x100)];
    let plan = Image::new(abi::ET_EXEC, 0x40_1000, &headers, 0x2000)
        .plan()
        .expect("valid");
    assert_eq!(plan.phdr, 0);
}

#[test]
fn headers_are_loaded_only_when_the_last_one_is() {
    let planned = |bytes| {
        let headers = [load(RX, 0, 0x40_0000, bytes, 0x1000)];
        let image = Image::new(abi::ET_EXEC, 0x40_0000, &headers, 0x1000);
        image.plan().map(|plan| plan.phdr)
    };
    assert_eq!(planned(64 + 56), Ok(0x40_0040));
    assert_eq!(planned(64 + 55), Ok(0));
}

#[test]
fn a_segment_without_file_bytes_may_name_any_offset() {
    for offset in [1, 0x10_0000, u64::MAX] {
        let plan = with_load(load(RW, offset, 0x40_4000, 0, 0x100)).plan();
        assert_eq!(plan.map(|plan| plan.copies.len()), Ok(2), "{offset:#x}");
    }
}

#[test]
fn an_executable_stack_is_seen() {
    let mut headers = ordinary_headers();
    headers[3].flags = RW | abi::PF_X;
    let plan = Image::new(abi::ET_EXEC, 0x40_1010, &headers, 0x4000)
        .plan()
        .expect("valid");
    assert!(plan.exec_stack);
}

#[test]
fn a_program_with_an_interpreter_is_refused() {
    let mut headers = ordinary_headers();
    headers[3] = special(abi::PT_INTERP, R, 0x300, 0x1c);
    let error = Image::new(abi::ET_EXEC, 0x40_1010, &headers, 0x4000).plan();
    assert_eq!(error, Err(ExecError::Dynamic));
    let text = ExecError::Dynamic.to_string();
    assert_eq!(
        text,
        "the program is dynamically linked; link it with -static"
    );
}

#[test]
fn a_program_that_needs_libraries_is_refused() {
    let mut headers = ordinary_headers();
    headers[3] = special(abi::PT_DYNAMIC, RW, 0x300, 0x30);
    let image = Image::new(abi::ET_EXEC, 0x40_1010, &headers, 0x4000);
    assert!(image.plan().is_ok());
    let needed = abi::DT_NEEDED.to_le_bytes();
    assert_eq!(
        image.clone().with(0x300, &needed).plan(),
        Err(ExecError::Dynamic)
    );
    // Entries after the end mark say nothing.
    assert!(image.with(0x310, &needed).plan().is_ok());
}

#[test]
fn a_shared_library_is_refused_by_its_entry() {
    let headers = [
        load(R, 0, 0, 0x800, 0x800),
        load(RX, 0x1000, 0x1000, 0x100, 0x100),
    ];
    let error = Image::new(abi::ET_DYN, 0, &headers, 0x2000).plan();
    assert_eq!(error, Err(ExecError::BadEntry(PIE_BASE)));
}

#[test]
fn files_of_another_kind_are_refused_by_name() {
    let cases: [(usize, &[u8], ExecError); 7] = [
        (0, b"#!/b", ExecError::NotElf),
        (4, &[1], ExecError::WrongClass),
        (5, &[2], ExecError::WrongClass),
        (6, &[9], ExecError::NotElf),
        (18, &[183, 0], ExecError::WrongMachine(183)),
        (16, &[1, 0], ExecError::NotExecutable(1)),
        (16, &[4, 0], ExecError::NotExecutable(4)),
    ];
    for (at, bytes, want) in cases {
        assert_eq!(
            ordinary().with(at, bytes).plan(),
            Err(want),
            "{bytes:?} at {at}"
        );
    }
}

#[test]
fn a_file_cut_anywhere_in_its_headers_is_truncated() {
    let image = ordinary().0;
    for bytes in 0..64 + 4 * 56 {
        let cut = Image(image[..bytes].to_vec());
        assert_eq!(cut.plan(), Err(ExecError::Truncated), "{bytes}");
    }
}

#[test]
fn a_file_cut_in_its_segments_is_refused() {
    let image = ordinary().0;
    for bytes in [64 + 4 * 56, 0x7ff, 0x2000, 0x30ff] {
        let cut = Image(image[..bytes].to_vec());
        assert_eq!(cut.plan(), Err(ExecError::SegmentBeyondFile), "{bytes:#x}");
    }
    assert!(Image(image[..0x3100].to_vec()).plan().is_ok());
}

#[test]
fn absurd_header_tables_are_refused() {
    let cases: [(usize, &[u8], ExecError); 8] = [
        (56, &0u16.to_le_bytes(), ExecError::NoSegments),
        (56, &129u16.to_le_bytes(), ExecError::TooManyHeaders),
        (56, &u16::MAX.to_le_bytes(), ExecError::TooManyHeaders),
        (54, &32u16.to_le_bytes(), ExecError::BadHeaderSize(32)),
        (54, &0u16.to_le_bytes(), ExecError::BadHeaderSize(0)),
        (32, &0x3f80u64.to_le_bytes(), ExecError::Truncated),
        (32, &u64::MAX.to_le_bytes(), ExecError::Truncated),
        (32, &(u64::MAX - 100).to_le_bytes(), ExecError::Truncated),
    ];
    for (at, bytes, want) in cases {
        assert_eq!(
            ordinary().with(at, bytes).plan(),
            Err(want),
            "{bytes:?} at {at}"
        );
    }
}

#[test]
fn headers_deep_in_a_large_file_are_refused() {
    let mut image = ordinary();
    image.0.resize(0x2_0000, 0);
    let image = image.with(32, &0x1_8000u64.to_le_bytes());
    assert_eq!(image.plan(), Err(ExecError::TooManyHeaders));
}

#[test]
fn a_program_with_nothing_to_load_is_refused() {
    let stack_only = [special(abi::PT_GNU_STACK, RW, 0, 0)];
    let empty_load = [load(RX, 0, 0x40_0000, 0, 0)];
    for headers in [stack_only, empty_load] {
        let error = Image::new(abi::ET_EXEC, 0x40_0000, &headers, 0x1000).plan();
        assert_eq!(error, Err(ExecError::NoSegments));
    }
}

#[test]
fn hostile_segments_are_refused() {
    let low = MIN - 0x1000;
    let cases = [
        (
            load(RW, 0x2000, 0x40_2000, 0x100, 0x1000),
            ExecError::Overlap,
        ),
        (load(RW, 0, 0x40_0000, 0x100, 0x4000), ExecError::Overlap),
        (
            load(RW, 0x2000, 0x40_4000, 0x101, 0x100),
            ExecError::FileLargerThanMemory,
        ),
        (
            load(RW, 0x2000, 0x40_4000, 0x2001, 0x3000),
            ExecError::SegmentBeyondFile,
        ),
        (
            load(RW, u64::MAX - 0xfff, 0x40_4000, 0x1000, 0x1000),
            ExecError::SegmentBeyondFile,
        ),
        (
            load(RW, u64::MAX - 0xfff, 0x40_4000, 0x2000, 0x2000),
            ExecError::SegmentBeyondFile,
        ),
        (
            load(RW, 0x2000, u64::MAX - 0xfff, 0, 0x1000),
            ExecError::Wrap,
        ),
        (
            load(RW, 0x2000, u64::MAX - 0xfff, 0, 0xfff),
            ExecError::Wrap,
        ),
        (load(RW, 0x2000, 0x40_4000, 0, u64::MAX), ExecError::Wrap),
        (load(RW, 0x2000, low, 0, 0x100), ExecError::OutOfRange(low)),
        (load(RW, 0x2000, MAX, 0, 0x1000), ExecError::OutOfRange(MAX)),
        (
            load(RW, 0x2000, MAX - 0x1000, 0, 0x1001),
            ExecError::OutOfRange(MAX - 0x1000),
        ),
        (
            load(RW, 0x2001, 0x40_4000, 0x100, 0x100),
            ExecError::BadAlignment,
        ),
    ];
    for (header, want) in cases {
        assert_eq!(with_load(header).plan(), Err(want), "{header:x?}");
    }
    for align in [3, 0x1001, u64::MAX] {
        let header = Header {
            align,
            ..load(RW, 0x2000, 0x40_4000, 0x100, 0x100)
        };
        assert_eq!(
            with_load(header).plan(),
            Err(ExecError::BadAlignment),
            "{align:#x}"
        );
    }
}

#[test]
fn a_segment_may_touch_the_limits() {
    let headers = [
        load(RX, 0, MIN, 0x100, 0x100),
        load(RW, 0, MAX - 0x1000, 0, 0x1000),
    ];
    let plan = Image::new(abi::ET_EXEC, MIN, &headers, 0x1000)
        .plan()
        .expect("valid");
    assert_eq!(plan.brk_start, MAX);
}

#[test]
fn limits_inside_a_page_exclude_that_page() {
    let image = ordinary();
    let limited = |min, max| plan(&image.0, 0x4000, PIE_BASE, min, max).map(|plan| plan.brk_start);
    assert_eq!(limited(0x40_0000, 0x40_7000), Ok(0x40_7000));
    assert_eq!(
        limited(0x40_0000, 0x40_6f00),
        Err(ExecError::OutOfRange(0x40_3e00))
    );
    assert_eq!(
        limited(0x40_0001, 0x40_7000),
        Err(ExecError::OutOfRange(0x40_0000))
    );
}

#[test]
fn a_pie_that_would_leave_the_limits_is_refused() {
    for (align, want) in [
        (1 << 47, ExecError::OutOfRange(1 << 47)),
        (1 << 63, ExecError::OutOfRange(1 << 63)),
    ] {
        let header = Header {
            align,
            ..load(RX, 0, 0, 0x100, 0x100)
        };
        let error = Image::new(abi::ET_DYN, 0, &[header], 0x1000).plan();
        assert_eq!(error, Err(want), "{align:#x}");
    }
    let header = load(RX, 0, u64::MAX - 0xfff, 0x100, 0x100);
    let error = Image::new(abi::ET_DYN, 0, &[header], 0x1000).plan();
    assert_eq!(error, Err(ExecError::Wrap));
}

#[test]
fn an_entry_outside_code_is_refused() {
    for entry in [0, 0x40_0000, 0x40_0fff, 0x40_3000, u64::MAX] {
        let error = ordinary().with(24, &entry.to_le_bytes()).plan();
        assert_eq!(error, Err(ExecError::BadEntry(entry)));
    }
}

/// What every plan promises, whatever the file was.
fn keeps_promises(plan: &LoadPlan, image_bytes: u64) -> Result<(), TestCaseError> {
    let mut end = MIN;
    for segment in &plan.segments {
        prop_assert!(segment.start % PAGE_SIZE == 0 && segment.end % PAGE_SIZE == 0);
        prop_assert!(end <= segment.start && segment.start < segment.end);
        end = segment.end;
    }
    prop_assert!(end <= MAX);
    prop_assert_eq!(plan.brk_start, end);
    let mut written = 0;
    for copy in &plan.copies {
        let segment = plan.segments[copy.segment];
        prop_assert!(copy.bytes > 0 && written <= copy.va);
        written = copy.va + copy.bytes;
        prop_assert!(segment.start <= copy.va && written <= segment.end);
        prop_assert!(copy.file_offset + copy.bytes <= image_bytes);
    }
    let holds_entry = |s: &Segment| s.start <= plan.entry && plan.entry < s.end;
    prop_assert!(
        plan.segments
            .iter()
            .any(|s| holds_entry(s) && s.prot.is_executable())
    );
    Ok(())
}

/// Headers that are mostly in order and close together, so that they meet in
/// pages, overlap, and now and then leave the file.
fn close_header() -> impl Strategy<Value = Header> {
    let kind = prop_oneof![8 => Just(abi::PT_LOAD), 1 => Just(abi::PT_DYNAMIC), 1 => 0u32..8];
    let place = (0u64..0x3800, 0u64..0x1800, 0u64..0x1800);
    (kind, 0u32..8, place, 0u64..4).prop_map(|(kind, flags, (offset, file_bytes, more), page)| {
        Header {
            kind,
            ..load(
                flags,
                offset,
                0x40_0000 + offset + page * 0x1000,
                file_bytes,
                file_bytes + more,
            )
        }
    })
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Image(bytes).plan().is_err());
    }

    #[test]
    fn random_bytes_after_a_valid_start_never_panic(
        tail in prop::collection::vec(any::<u8>(), 40..400),
        count in 0u16..8,
    ) {
        let mut image = Image::new(abi::ET_EXEC, 0x40_0000, &[], 64);
        image.0.truncate(24);
        image.0.extend_from_slice(&tail);
        let image = image.with(32, &64u64.to_le_bytes()).with(54, &56u16.to_le_bytes());
        let image = image.with(56, &count.to_le_bytes());
        if let Ok(plan) = image.plan() {
            keeps_promises(&plan, u64::try_from(image.0.len()).unwrap_or(0))?;
        }
    }

    #[test]
    fn one_wild_field_never_panics_nor_breaks_a_promise(
        at in 0usize..64 + 4 * 56 - 8,
        value in prop_oneof![
            any::<u64>(),
            (0u32..64).prop_map(|bit| 1 << bit),
            (0u64..0x2000).prop_map(|n| u64::MAX - n),
            0u64..0x50_0000,
        ],
        pie: bool,
    ) {
        let kind = if pie { abi::ET_DYN } else { abi::ET_EXEC };
        let image = Image::new(kind, 0x40_1010, &ordinary_headers(), 0x4000);
        if let Ok(plan) = image.with(at, &value.to_le_bytes()).plan() {
            keeps_promises(&plan, 0x4000)?;
        }
    }

    #[test]
    fn plans_hold_every_byte_of_every_load(
        headers in prop::collection::vec(close_header(), 1..6),
        pie: bool,
    ) {
        let kind = if pie { abi::ET_DYN } else { abi::ET_EXEC };
        let Ok(plan) = Image::new(kind, 0x40_0000 + headers[0].offset, &headers, 0x4000).plan() else {
            return Ok(());
        };
        keeps_promises(&plan, 0x4000)?;
        for header in headers.iter().filter(|h| h.kind == abi::PT_LOAD && h.memory_bytes > 0) {
            let start = header.va + plan.bias;
            for at in [start, start + header.memory_bytes - 1] {
                let holder = plan.segments.iter().find(|s| s.start <= at && at < s.end);
                prop_assert!(holder.is_some_and(|s| s.prot.contains(prot(header.flags))));
            }
            for at in [start, (start + header.file_bytes).saturating_sub(1)] {
                if header.file_bytes > 0 {
                    let copy = plan.copies.iter().find(|c| c.va <= at && at < c.va + c.bytes);
                    let offset = copy.map(|c| c.file_offset + (at - c.va));
                    prop_assert_eq!(offset, Some(header.offset + (at - start)));
                }
            }
        }
        let copied: u64 = plan.copies.iter().map(|copy| copy.bytes).sum();
        let loads = headers.iter().filter(|h| h.kind == abi::PT_LOAD);
        prop_assert_eq!(copied, loads.map(|h| h.file_bytes).sum::<u64>());
    }
}
