//! Why a file cannot be run, in words for the person who started it.
//!
//! Made by [`super::plan`] only. Each error names what to change where the user
//! can change anything; [`ExecError::errno`] is what a program is told.

use core::fmt;

use super::MAX_HEADERS;
use crate::errno::Errno;
use elf::abi;

/// Why a file cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecError {
    /// No ELF file.
    NotElf,
    /// The file ends inside its headers.
    Truncated,
    /// For another processor (ELF machine number).
    WrongMachine(u16),
    /// Not 64 bits in little-endian order.
    WrongClass,
    /// Not a program but something else (ELF file type).
    NotExecutable(u16),
    /// Needs an interpreter or shared libraries.
    Dynamic,
    /// Nothing to load.
    NoSegments,
    /// Two segments claim the same bytes.
    Overlap,
    /// A segment runs past the end of 64 bits.
    Wrap,
    /// The segment at this address lies where programs may not be.
    OutOfRange(u64),
    /// A segment's bytes lie outside the file.
    SegmentBeyondFile,
    /// A segment has more bytes in the file than in memory.
    FileLargerThanMemory,
    /// A segment's alignment is no power of two, or its address and file
    /// offset contradict it.
    BadAlignment,
    /// Too many program headers, or headers too deep in the file.
    TooManyHeaders,
    /// Program headers of a size nobody defined.
    BadHeaderSize(u16),
    /// The entry point is in no executable segment.
    BadEntry(u64),
}

impl ExecError {
    /// What a program that asked for this one is told.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Dynamic => Errno::ELIBBAD,
            Self::OutOfRange(_) => Errno::ENOMEM,
            Self::Overlap | Self::Wrap | Self::BadAlignment | Self::FileLargerThanMemory => {
                Errno::EINVAL
            }
            _ => Errno::ENOEXEC,
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotElf => f.write_str("the file is not an ELF program"),
            Self::Truncated => f.write_str("the program file is cut off inside its headers"),
            Self::WrongMachine(abi::EM_AARCH64) => {
                f.write_str("the program is built for AArch64, not for x86-64")
            }
            Self::WrongMachine(machine) => write!(
                f,
                "the program is built for ELF machine {machine}, not for x86-64 (62)"
            ),
            Self::WrongClass => f.write_str("the program is not 64-bit little-endian"),
            Self::NotExecutable(abi::ET_REL) => {
                f.write_str("the file is an object file; link it with -static")
            }
            Self::NotExecutable(kind) => {
                write!(f, "the ELF file is not a program (type {kind})")
            }
            Self::Dynamic => f.write_str("the program is dynamically linked; link it with -static"),
            Self::NoSegments => f.write_str("the program has no segment to load"),
            Self::Overlap => f.write_str("two segments of the program overlap"),
            Self::Wrap => {
                f.write_str("a segment of the program runs past the end of the address space")
            }
            Self::OutOfRange(start) => write!(
                f,
                "the program's segment at {start:#x} is outside the memory of programs"
            ),
            Self::SegmentBeyondFile => f.write_str(
                "the program file is shorter than its segments; was it copied completely?",
            ),
            Self::FileLargerThanMemory => {
                f.write_str("a segment of the program is larger in the file than in memory")
            }
            Self::BadAlignment => f.write_str("a segment of the program is misaligned"),
            Self::TooManyHeaders => write!(
                f,
                "the program has more than {MAX_HEADERS} program headers, or they are not in its first 64 KiB"
            ),
            Self::BadHeaderSize(bytes) => {
                write!(f, "the program headers have {bytes} bytes each, not 56")
            }
            Self::BadEntry(entry) => write!(
                f,
                "the entry point {entry:#x} is not in executable memory; is the file a shared library?"
            ),
        }
    }
}

impl core::error::Error for ExecError {}
