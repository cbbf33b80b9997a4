//! The headers of a program file, read from its first bytes.
//!
//! Used by [`super::plan`] only. Checks what a header says about the file and
//! its kind; what segments mean for memory is decided by the caller. Total on
//! any bytes: nothing is read that was not asked for by a checked slice.

use super::{ExecError, MAX_HEADERS};
use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader};
use elf::segment::SegmentTable;

const FILE_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
const DYNAMIC_ENTRY_BYTES: usize = 16;

/// The file header, checked as far as it stands alone.
pub(super) fn file_header(head: &[u8]) -> Result<FileHeader<LittleEndian>, ExecError> {
    let magic_seen = head.len().min(abi::ELFMAGIC.len());
    if head.get(..magic_seen) != abi::ELFMAGIC.get(..magic_seen) {
        return Err(ExecError::NotElf);
    }
    let bytes = head.get(..FILE_HEADER_BYTES).ok_or(ExecError::Truncated)?;
    let (ident, tail) = bytes.split_at(abi::EI_NIDENT);
    let is = |index: usize, value: u8| ident.get(index) == Some(&value);
    if !is(abi::EI_CLASS, abi::ELFCLASS64) || !is(abi::EI_DATA, abi::ELFDATA2LSB) {
        return Err(ExecError::WrongClass);
    }
    let ident = elf::file::parse_ident(ident).map_err(|_| ExecError::NotElf)?;
    let header = FileHeader::parse_tail(ident, tail).map_err(|_| ExecError::Truncated)?;
    if header.e_machine != abi::EM_X86_64 {
        return Err(ExecError::WrongMachine(header.e_machine));
    }
    if header.e_type != abi::ET_EXEC && header.e_type != abi::ET_DYN {
        return Err(ExecError::NotExecutable(header.e_type));
    }
    Ok(header)
}

/// The program headers, which must stand in `head`.
pub(super) fn segment_table<'a>(
    header: &FileHeader<LittleEndian>,
    head: &'a [u8],
    image_bytes: u64,
) -> Result<SegmentTable<'a, LittleEndian>, ExecError> {
    if header.e_phnum == 0 {
        return Err(ExecError::NoSegments);
    }
    if header.e_phnum > MAX_HEADERS {
        return Err(ExecError::TooManyHeaders);
    }
    if header.e_phentsize != PROGRAM_HEADER_BYTES {
        return Err(ExecError::BadHeaderSize(header.e_phentsize));
    }
    let bytes = u64::from(header.e_phnum) * u64::from(PROGRAM_HEADER_BYTES);
    let table = slice(head, header.e_phoff, bytes).ok_or_else(|| {
        let end = header.e_phoff.checked_add(bytes);
        if end.is_some_and(|end| end <= image_bytes) {
            ExecError::TooManyHeaders
        } else {
            ExecError::Truncated
        }
    })?;
    Ok(SegmentTable::new(LittleEndian, Class::ELF64, table))
}

/// `bytes` of `head` from `offset` on, or `None` when they are not all there.
fn slice(head: &[u8], offset: u64, bytes: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(bytes).ok()?)?;
    head.get(start..end)
}

/// Refuses programs that need an interpreter or, as far as `head` shows,
/// shared libraries.
pub(super) fn refuse_dynamic(
    table: &SegmentTable<LittleEndian>,
    head: &[u8],
) -> Result<(), ExecError> {
    for header in table.iter() {
        let needs = match header.p_type {
            abi::PT_INTERP => true,
            abi::PT_DYNAMIC => {
                slice(head, header.p_offset, header.p_filesz).is_some_and(needs_libraries)
            }
            _ => false,
        };
        if needs {
            return Err(ExecError::Dynamic);
        }
    }
    Ok(())
}

fn needs_libraries(dynamic: &[u8]) -> bool {
    dynamic
        .chunks_exact(DYNAMIC_ENTRY_BYTES)
        .filter_map(|entry| entry.first_chunk())
        .map(|tag| i64::from_le_bytes(*tag))
        .take_while(|&tag| tag != abi::DT_NULL)
        .any(|tag| tag == abi::DT_NEEDED)
}
