//! Whether a file is a program this kernel runs, and where each byte goes.
//!
//! Called by the kernel's loader with the first bytes of a file; what comes out
//! is a [`LoadPlan`]: page-disjoint [`Segment`]s, each to be backed by
//! contiguous zeroed frames, and [`FileCopy`]s, each inside one segment, to be
//! read from the file. Accepted are static x86-64 ELF programs, at fixed
//! addresses or position independent (those relocate themselves).
//!
//! Old linkers let the last page of one PT_LOAD be the first page of the next.
//! Such a page becomes a segment of its own that allows what either neighbour
//! allows, and receives the bytes of both:
//!
//! ```text
//! PT_LOAD   ▐───── r-x ─────▌ ▐──── rw- ────▌
//! pages     │       │       │       │       │
//! segments  ▐── r-x ────────▌                     copies: 1 split at a page
//!                           ▐─ rwx ─▌                     edge, 2 likewise
//!                                   ▐─ rw- ─▌
//! ```
//!
//! (Linux maps the later file page over the earlier one instead. As both
//! come from the same file page there, the contents agree; unlike Linux, the
//! earlier code stays executable.)
//!
//! Promises: total on any bytes; every address in a plan lies in the given
//! limits, every file range in the file. Does not read the file, and does not
//! follow the dynamic table beyond the bytes it was given: a shared library
//! whose table lies further on is recognised by its entry point only.

mod error;
mod header;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use elf::abi;
use elf::endian::LittleEndian;
use elf::file::FileHeader;
use elf::segment::{ProgramHeader, SegmentTable};
use enclave_abi::addr::{PAGE_SIZE, align_down, align_up};

use self::header::{file_header, refuse_dynamic, segment_table};
use crate::aspace::Prot;
pub use error::ExecError;

/// Bytes of the file that [`plan`] wants to see (fewer when the file is
/// smaller).
pub const HEAD_BYTES: u64 = 64 << 10;

/// Most program headers a program may have.
pub const MAX_HEADERS: u16 = 128;

/// Memory a program starts with; zero where no [`FileCopy`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte, page aligned.
    pub start: u64,
    /// End (exclusive), page aligned.
    pub end: u64,
    /// What the program may do.
    pub prot: Prot,
}

/// Bytes to read from the file, all into one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileCopy {
    /// Index of the segment in [`LoadPlan::segments`].
    pub segment: usize,
    /// Where they stand in the file.
    pub file_offset: u64,
    /// How many; at least 1.
    pub bytes: u64,
    /// Where they go.
    pub va: u64,
}

/// Everything the loader needs to know about a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Ascending; no two share a page.
    pub segments: Vec<Segment>,
    /// Ascending by address.
    pub copies: Vec<FileCopy>,
    /// First instruction, inside an executable segment.
    pub entry: u64,
    /// Address of the program headers in memory; 0 when they are not loaded.
    pub phdr: u64,
    /// Bytes of one program header.
    pub phent: u16,
    /// Number of program headers.
    pub phnum: u16,
    /// What was added to every address in the file; 0 unless `pie`.
    pub bias: u64,
    /// First address of the heap, page aligned.
    pub brk_start: u64,
    /// Whether the program is position independent.
    pub pie: bool,
    /// Whether it asks for an executable stack.
    pub exec_stack: bool,
}

/// Plans the loading of a program.
///
/// `head` is the first min([`HEAD_BYTES`], `image_bytes`) bytes of a file of
/// `image_bytes`; `pie_base` is where a position-independent program goes (or
/// the next address its alignment allows); `[min, max)` is what it may use.
///
/// # Errors
/// The first [`ExecError`] found.
pub fn plan(
    head: &[u8],
    image_bytes: u64,
    pie_base: u64,
    min: u64,
    max: u64,
) -> Result<LoadPlan, ExecError> {
    let header = file_header(head)?;
    let table = segment_table(&header, head, image_bytes)?;
    refuse_dynamic(&table, head)?;

    let pie = header.e_type == abi::ET_DYN;
    let bias = if pie { load_bias(&table, pie_base)? } else { 0 };
    let loads = loads(&table, image_bytes, bias, min, max)?;
    let segments = segments(&loads);
    let copies = copies(&loads, &segments);

    let entry = header.e_entry.checked_add(bias).ok_or(ExecError::Wrap)?;
    let is_code = |s: &Segment| s.prot.is_executable() && s.start <= entry && entry < s.end;
    if !segments.iter().any(is_code) {
        return Err(ExecError::BadEntry(entry));
    }
    let stack_header = table.iter().find(|p| p.p_type == abi::PT_GNU_STACK);
    Ok(LoadPlan {
        entry,
        phdr: headers_in_memory(&header, &loads),
        phent: header.e_phentsize,
        phnum: header.e_phnum,
        bias,
        brk_start: segments.last().map_or(0, |segment| segment.end),
        pie,
        exec_stack: stack_header.is_some_and(|p| p.p_flags & abi::PF_X != 0),
        segments,
        copies,
    })
}

/// Where address 0 of a position-independent file goes.
fn load_bias(table: &SegmentTable<LittleEndian>, pie_base: u64) -> Result<u64, ExecError> {
    let mut align = PAGE_SIZE;
    for header in table.iter().filter(|p| p.p_type == abi::PT_LOAD) {
        if header.p_align > 1 && !header.p_align.is_power_of_two() {
            return Err(ExecError::BadAlignment);
        }
        align = align.max(header.p_align);
    }
    align_up(pie_base, align).ok_or(ExecError::Wrap)
}

/// One PT_LOAD at its final address.
struct Load {
    start: u64,
    end: u64,
    file_offset: u64,
    file_bytes: u64,
    prot: Prot,
}

/// The PT_LOADs with any memory, checked, ascending and disjoint.
fn loads(
    table: &SegmentTable<LittleEndian>,
    image_bytes: u64,
    bias: u64,
    min: u64,
    max: u64,
) -> Result<Vec<Load>, ExecError> {
    let mut loads = Vec::new();
    for header in table.iter().filter(|p| p.p_type == abi::PT_LOAD) {
        let load = load(&header, image_bytes, bias)?;
        if load.start == load.end {
            continue;
        }
        let last_page_end = align_up(load.end, PAGE_SIZE).ok_or(ExecError::Wrap)?;
        if align_down(load.start, PAGE_SIZE) < min || last_page_end > max {
            return Err(ExecError::OutOfRange(load.start));
        }
        loads.push(load);
    }
    if loads.is_empty() {
        return Err(ExecError::NoSegments);
    }
    loads.sort_unstable_by_key(|load| load.start);
    let mut neighbours = loads.iter().zip(loads.iter().skip(1));
    if neighbours.any(|(low, high)| low.end > high.start) {
        return Err(ExecError::Overlap);
    }
    Ok(loads)
}

fn load(header: &ProgramHeader, image_bytes: u64, bias: u64) -> Result<Load, ExecError> {
    let align = header.p_align.max(1);
    if !align.is_power_of_two() {
        return Err(ExecError::BadAlignment);
    }
    // The standard ties address and file offset together; a file that breaks
    // this was not made by a linker.
    if header.p_vaddr % align != header.p_offset % align && header.p_filesz > 0 {
        return Err(ExecError::BadAlignment);
    }
    if header.p_filesz > header.p_memsz {
        return Err(ExecError::FileLargerThanMemory);
    }
    let file_end = header.p_offset.checked_add(header.p_filesz);
    if header.p_filesz > 0 && file_end.is_none_or(|end| end > image_bytes) {
        return Err(ExecError::SegmentBeyondFile);
    }
    let start = header.p_vaddr.checked_add(bias).ok_or(ExecError::Wrap)?;
    let end = start.checked_add(header.p_memsz).ok_or(ExecError::Wrap)?;
    Ok(Load {
        start,
        end,
        file_offset: header.p_offset,
        file_bytes: header.p_filesz,
        prot: prot(header.p_flags),
    })
}

/// The access of a segment with these `PF_*` bits. No x86-64 page that is
/// mapped for a program is unreadable, so stores and fetches imply loads.
fn prot(flags: u32) -> Prot {
    let mut prot = Prot::NONE;
    for (flag, access) in [
        (abi::PF_R, Prot::READ),
        (abi::PF_W, Prot::READ | Prot::WRITE),
        (abi::PF_X, Prot::READ | Prot::EXEC),
    ] {
        if flags & flag != 0 {
            prot = prot | access;
        }
    }
    prot
}

/// Page-disjoint segments for `loads`, which are ascending, disjoint and lie
/// below the last page of 64 bits.
fn segments(loads: &[Load]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::with_capacity(loads.len());
    for load in loads {
        let mut start = align_down(load.start, PAGE_SIZE);
        let end = align_up(load.end, PAGE_SIZE).unwrap_or(u64::MAX);
        // Disjoint bytes share one page at most: the last one so far.
        if let Some(last) = segments.last_mut().filter(|last| last.end > start) {
            let shared = Segment {
                start,
                end: last.end,
                prot: last.prot | load.prot,
            };
            if last.start == start {
                *last = shared;
            } else if last.prot != shared.prot {
                last.end = start;
                segments.push(shared);
            }
            start = shared.end;
        }
        push_joined(&mut segments, start, end, load.prot);
    }
    segments
}

/// Adds `[start, end)` unless it is empty; as part of the last segment when it
/// continues that one with the same protection.
fn push_joined(segments: &mut Vec<Segment>, start: u64, end: u64, prot: Prot) {
    if start >= end {
        return;
    }
    match segments.last_mut() {
        Some(last) if last.end == start && last.prot == prot => last.end = end,
        _ => segments.push(Segment { start, end, prot }),
    }
}

/// The file's bytes, cut where segments meet.
fn copies(loads: &[Load], segments: &[Segment]) -> Vec<FileCopy> {
    let mut copies = Vec::with_capacity(loads.len());
    for load in loads {
        let data_end = load.start + load.file_bytes;
        for (index, segment) in segments.iter().enumerate() {
            let va = segment.start.max(load.start);
            let end = segment.end.min(data_end);
            if va < end {
                copies.push(FileCopy {
                    segment: index,
                    file_offset: load.file_offset + (va - load.start),
                    bytes: end - va,
                    va,
                });
            }
        }
    }
    copies
}

/// Where the program headers are in memory: in the load that holds their file
/// range. 0 when none does; programs then do without, as under Linux.
fn headers_in_memory(header: &FileHeader<LittleEndian>, loads: &[Load]) -> u64 {
    let bytes = u64::from(header.e_phnum) * u64::from(header.e_phentsize);
    for load in loads {
        let Some(offset) = header.e_phoff.checked_sub(load.file_offset) else {
            continue;
        };
        if offset
            .checked_add(bytes)
            .is_some_and(|end| end <= load.file_bytes)
        {
            return load.start + offset;
        }
    }
    0
}
