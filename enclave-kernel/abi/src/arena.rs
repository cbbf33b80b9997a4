//! The arena object: one memfd that holds control area and banks.
//!
//! ```text
//! 0            header            ArenaHeader, one page
//! 0x1000       generation ring   64 × GenerationRecord
//! 0x2000       variable table    128 × VarDesc
//! births_off   births            nr_chunks × nr_banks × u64
//! log_off      change log        log_entries × u64
//! control_bytes  bank 0 … bank k-1, size_bytes each
//! ```
//!
//! Written by the exporter's kernel, mapped read-only by everyone else, so a
//! reader believes nothing: it builds the geometry from the header once, by
//! [`Geometry::new`], on a private copy.
//!
//! Frames are *index preserving*: chunk `i` lives at slot `i` of some bank.
//! `births[i * nr_banks + b]` is the first generation that contains the frame
//! (i, b), 0 if it was never used. The frame of chunk `i` in generation `g` is
//! the one with the largest birth ≤ `g`. While `g` is held (see
//! [`crate::lease`]) that frame is not reused; any other frame of the chunk may
//! be, but then its birth grows beyond `g`. So a reader needs no lock.

use crate::addr::{LARGE_PAGE_SIZE, PAGE_SIZE, align_up, is_aligned};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `"XASMARNA"` in little endian.
pub const ARENA_MAGIC: u64 = u64::from_le_bytes(*b"XASMARNA");
/// Longest name of an arena, segment or enclave in bytes.
pub const NAME_BYTES: usize = 64;
/// Fewest banks: one live, one for a snapshot.
pub const MIN_BANKS: u32 = 2;
/// Most banks; held generations stay below it.
pub const MAX_BANKS: u32 = 16;
/// Records in the generation ring.
pub const GENERATION_RECORDS: usize = 64;
/// Entries of the variable table.
pub const MAX_VARS: usize = 128;
/// Offset of the generation ring.
pub const GENERATIONS_OFFSET: u64 = 0x1000;
/// Offset of the variable table.
pub const VARS_OFFSET: u64 = 0x2000;
/// Offset of the births.
pub const BIRTHS_OFFSET: u64 = VARS_OFFSET + (MAX_VARS * size_of::<VarDesc>()) as u64;
/// Largest arena payload (one bank): 512 GiB, what one top-level entry maps.
pub const MAX_ARENA_BYTES: u64 = 512 << 30;

/// Values of [`ArenaHeader::state`].
pub mod state {
    /// Being set up; nothing to read yet.
    pub const CREATING: u32 = 0;
    /// In use.
    pub const LIVE: u32 = 1;
    /// Ended by its program: no further generation will come.
    pub const ENDED: u32 = 2;
}

/// First page of the object.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ArenaHeader {
    /// [`ARENA_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// One of [`state`].
    pub state: u32,
    /// Payload bytes (one bank).
    pub size_bytes: u64,
    /// Bytes of a copy-on-write chunk: 4 KiB or 2 MiB.
    pub chunk_bytes: u64,
    /// Number of banks.
    pub nr_banks: u32,
    /// Number of variables in use.
    pub nr_vars: u32,
    /// Newest published generation; 0 = none yet.
    pub latest_generation: u64,
    /// Publishes refused because the pool was exhausted.
    pub dropped: u64,
    /// Change-log entries of first writes before the first publish, which
    /// copied nothing; `log_head` minus these are the copy-on-write faults.
    pub uncopied: u64,
    /// Change-log entries ever written; entry `n` is at `n % log_entries`.
    pub log_head: u64,
    /// Virtual address the producer maps the payload at.
    pub producer_base: u64,
    /// Generations taken away from their readers
    /// ([`crate::syscall::POLICY_DISCARD_OLDEST`]).
    pub discarded: u64,
    /// Publishes that waited for a reader ([`crate::syscall::POLICY_BLOCK`]).
    pub waited: u64,
    /// What happens when the pool is exhausted, `POLICY_*` of
    /// [`crate::syscall`].
    pub policy: u32,
    /// Which bank a copy goes to, `PLACE_*` of [`crate::syscall`].
    pub placement: u32,
    /// Name, UTF-8, zero padded.
    pub name: [u8; NAME_BYTES],
}

/// One published generation; generation `g` is at `g % GENERATION_RECORDS`.
///
/// The kernel writes `generation` = 0 first and the number last, so a reader
/// that finds `g` before and after its copy has a whole record.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct GenerationRecord {
    /// The generation, 0 while the record is being written.
    pub generation: u64,
    /// The program's time step.
    pub step: u64,
    /// The program's time, the bits of an f64.
    pub time_bits: u64,
    /// Guest TSC at the publish.
    pub publish_tsc: u64,
    /// Wall-clock nanoseconds at the publish.
    pub unix_ns: u64,
    /// Change-log entries written up to this publish.
    pub log_head: u64,
    /// Chunks copied since the previous publish.
    pub chunks_copied: u64,
    /// TSC cycles the kernel spent in this publish, doorbell excluded.
    pub publish_cycles: u64,
}

/// DLPack type codes used in [`VarDesc::dtype_code`].
pub mod dtype {
    /// Signed integer.
    pub const INT: u8 = 0;
    /// Unsigned integer.
    pub const UINT: u8 = 1;
    /// IEEE floating point.
    pub const FLOAT: u8 = 2;
    /// Complex of two floats.
    pub const COMPLEX: u8 = 5;
}

/// Most dimensions of a variable.
pub const MAX_NDIM: usize = 8;

/// One variable of an arena.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VarDesc {
    /// Name, UTF-8, zero padded; `/` makes a path.
    pub name: [u8; 120],
    /// One of [`dtype`].
    pub dtype_code: u8,
    /// Bits of one element.
    pub dtype_bits: u8,
    /// Lanes of one element (1 = scalar).
    pub dtype_lanes: u16,
    /// Number of dimensions, at most [`MAX_NDIM`]; 0 = scalar.
    pub ndim: u32,
    /// Elements per dimension.
    pub shape: [u64; MAX_NDIM],
    /// Bytes between neighbours per dimension.
    pub strides: [i64; MAX_NDIM],
    /// Bytes from the arena's start.
    pub offset: u64,
    /// Bytes the variable covers.
    pub nbytes: u64,
    /// `b'C'` or `b'F'`.
    pub order: u8,
    /// 0 data, 1 coordinate, 2 field on elements, 3 field on vertices.
    pub role: u8,
    /// Padding, zero.
    pub pad: [u8; 6],
    /// Unit, UTF-8, zero padded.
    pub unit: [u8; 32],
    /// Comma-separated axis labels, UTF-8, zero padded.
    pub axis_labels: [u8; 64],
    /// Reserved, zero.
    pub reserved: [u8; 136],
}

const _: () = assert!(size_of::<ArenaHeader>() <= 4096);
const _: () = assert!(size_of::<GenerationRecord>() * GENERATION_RECORDS == 4096);
const _: () = assert!(size_of::<VarDesc>() == 512);

/// Why a variable description was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VarError {
    /// Empty name, or bytes that are no UTF-8.
    Name,
    /// Unknown element type or width.
    Dtype,
    /// Too many dimensions, or an order that is neither C nor F.
    Shape,
    /// Some element lies outside the arena, or `nbytes` does not cover them.
    Bounds,
}

impl VarDesc {
    /// The name as text, or `None` when it is empty or no UTF-8.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        text(&self.name).filter(|name| !name.is_empty())
    }

    /// Bytes of one element.
    #[must_use]
    pub fn element_bytes(&self) -> u64 {
        u64::from(self.dtype_bits) / 8 * u64::from(self.dtype_lanes)
    }

    /// Checks every field against an arena of `size_bytes`.
    ///
    /// # Errors
    /// The first [`VarError`] found; on success every element lies inside
    /// `[offset, offset + nbytes)` and that range inside the arena.
    pub fn check(&self, size_bytes: u64) -> Result<(), VarError> {
        if self.name().is_none() {
            return Err(VarError::Name);
        }
        let known = matches!(
            self.dtype_code,
            dtype::INT | dtype::UINT | dtype::FLOAT | dtype::COMPLEX
        );
        if !known || !matches!(self.dtype_bits, 8 | 16 | 32 | 64 | 128) || self.dtype_lanes == 0 {
            return Err(VarError::Dtype);
        }
        let ndim = usize::try_from(self.ndim).map_err(|_| VarError::Shape)?;
        if ndim > MAX_NDIM || !matches!(self.order, b'C' | b'F') {
            return Err(VarError::Shape);
        }
        let mut last = self.element_bytes();
        for (&count, &stride) in self.shape.iter().zip(&self.strides).take(ndim) {
            let stride = u64::try_from(stride).map_err(|_| VarError::Bounds)?;
            let Some(steps) = count.checked_sub(1) else {
                return Err(VarError::Shape);
            };
            last = stride
                .checked_mul(steps)
                .and_then(|bytes| last.checked_add(bytes))
                .ok_or(VarError::Bounds)?;
        }
        let inside = crate::addr::range_within(self.offset, self.nbytes, size_bytes);
        if last > self.nbytes || !inside {
            return Err(VarError::Bounds);
        }
        Ok(())
    }
}

/// The text before the first zero byte, or `None` when it is no UTF-8.
#[must_use]
pub fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    core::str::from_utf8(bytes.get(..end)?).ok()
}

/// `name` in a zero-padded field, or `None` when it is empty, too long or
/// contains a zero byte or a control character.
#[must_use]
pub fn name_field(name: &str) -> Option<[u8; NAME_BYTES]> {
    let mut field = [0; NAME_BYTES];
    if name.is_empty() || name.len() >= NAME_BYTES || name.chars().any(char::is_control) {
        return None;
    }
    field
        .get_mut(..name.len())?
        .copy_from_slice(name.as_bytes());
    Some(field)
}

/// Why a geometry was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometryError {
    /// The chunk size is neither 4 KiB nor 2 MiB.
    ChunkBytes(u64),
    /// The size is 0, larger than [`MAX_ARENA_BYTES`] or no multiple of the
    /// chunk size.
    SizeBytes(u64),
    /// Fewer than [`MIN_BANKS`] or more than [`MAX_BANKS`].
    Banks(u32),
}

/// Where everything in an arena object is: one computation for kernel, VMM,
/// broker and readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Payload bytes of one bank.
    pub size_bytes: u64,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Number of chunks.
    pub nr_chunks: u64,
    /// Number of banks.
    pub nr_banks: u32,
    /// Offset of the births.
    pub births_offset: u64,
    /// Offset of the change log.
    pub log_offset: u64,
    /// Entries of the change log, a power of two.
    pub log_entries: u64,
    /// Bytes of the control area; bank 0 starts here. Multiple of 2 MiB.
    pub control_bytes: u64,
    /// Bytes from one bank to the next: `size_bytes` rounded up to 2 MiB.
    pub bank_stride: u64,
    /// Bytes of the whole object. Multiple of 2 MiB.
    pub object_bytes: u64,
}

impl Geometry {
    /// Lays out an arena.
    ///
    /// # Errors
    /// [`GeometryError`] names the value that cannot be.
    pub fn new(size_bytes: u64, chunk_bytes: u64, nr_banks: u32) -> Result<Self, GeometryError> {
        if chunk_bytes != PAGE_SIZE && chunk_bytes != LARGE_PAGE_SIZE {
            return Err(GeometryError::ChunkBytes(chunk_bytes));
        }
        if size_bytes == 0 || size_bytes > MAX_ARENA_BYTES || !is_aligned(size_bytes, chunk_bytes) {
            return Err(GeometryError::SizeBytes(size_bytes));
        }
        if !(MIN_BANKS..=MAX_BANKS).contains(&nr_banks) {
            return Err(GeometryError::Banks(nr_banks));
        }
        let too_large = GeometryError::SizeBytes(size_bytes);
        let nr_chunks = size_bytes / chunk_bytes;
        let births_bytes = nr_chunks * u64::from(nr_banks) * 8;
        let log_offset = align_up(BIRTHS_OFFSET + births_bytes, PAGE_SIZE).ok_or(too_large)?;
        let log_entries = (2 * nr_chunks).next_power_of_two().max(1024);
        let control_bytes =
            align_up(log_offset + log_entries * 8, LARGE_PAGE_SIZE).ok_or(too_large)?;
        let bank_stride = align_up(size_bytes, LARGE_PAGE_SIZE).ok_or(too_large)?;
        Ok(Self {
            size_bytes,
            chunk_bytes,
            nr_chunks,
            nr_banks,
            births_offset: BIRTHS_OFFSET,
            log_offset,
            log_entries,
            control_bytes,
            bank_stride,
            object_bytes: control_bytes + bank_stride * u64::from(nr_banks),
        })
    }

    /// The geometry a (private copy of a) header describes.
    ///
    /// # Errors
    /// As [`Geometry::new`].
    pub fn from_header(header: &ArenaHeader) -> Result<Self, GeometryError> {
        Self::new(header.size_bytes, header.chunk_bytes, header.nr_banks)
    }

    /// Offset of the birth word of (chunk, bank); `None` out of range.
    #[must_use]
    pub fn birth_offset(&self, chunk: u64, bank: u32) -> Option<u64> {
        (chunk < self.nr_chunks && bank < self.nr_banks)
            .then(|| self.births_offset + (chunk * u64::from(self.nr_banks) + u64::from(bank)) * 8)
    }

    /// Offset of change-log entry number `n` (free running).
    #[must_use]
    pub fn log_entry_offset(&self, n: u64) -> u64 {
        self.log_offset + (n & (self.log_entries - 1)) * 8
    }

    /// The change-log entries that say what differs between two places of the
    /// log; `None` if the log is too short for that, or goes backwards.
    #[must_use]
    pub fn log_between(&self, from: u64, to: u64) -> Option<core::ops::Range<u64>> {
        (to.checked_sub(from)? <= self.log_entries).then_some(from..to)
    }

    /// Whether no entry from `from` on had been written over by the time the log
    /// had `head` entries, which is to be read after them.
    #[must_use]
    pub fn log_reaches(&self, from: u64, head: u64) -> bool {
        // Strictly: the entry at `head` may be in the writing.
        head.checked_sub(from)
            .is_some_and(|behind| behind < self.log_entries)
    }

    /// Offset in the object of the frame (chunk, bank); `None` out of range.
    #[must_use]
    pub fn frame_offset(&self, chunk: u64, bank: u32) -> Option<u64> {
        (chunk < self.nr_chunks && bank < self.nr_banks).then(|| {
            self.control_bytes + u64::from(bank) * self.bank_stride + chunk * self.chunk_bytes
        })
    }
}

/// A change-log entry: chunk in the upper bits, bank in the lowest byte.
#[must_use]
pub const fn log_entry(chunk: u64, bank: u32) -> u64 {
    chunk << 8 | (bank as u64 & 0xff)
}

/// Chunk and bank of a change-log entry.
#[must_use]
pub const fn split_log_entry(entry: u64) -> (u64, u32) {
    (entry >> 8, (entry & 0xff) as u32)
}

/// The bank that holds a chunk in generation `generation`: the one with the
/// largest birth that is neither 0 nor later. `None` when there is none.
#[must_use]
pub fn bank_in_generation(births: &[u64], generation: u64) -> Option<u32> {
    let mut best: Option<(u64, u32)> = None;
    for (bank, &birth) in (0u32..).zip(births) {
        if birth != 0 && birth <= generation && best.is_none_or(|(found, _)| birth > found) {
            best = Some((birth, bank));
        }
    }
    best.map(|(_, bank)| bank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_is_disjoint_and_aligned() {
        for (size, chunk, banks) in [
            (4096, 4096, 2),
            (64 << 20, 4096, 4),
            (1 << 30, LARGE_PAGE_SIZE, 4),
            (12 << 20, LARGE_PAGE_SIZE, 16),
        ] {
            let g = Geometry::new(size, chunk, banks).unwrap();
            assert!(g.births_offset + g.nr_chunks * u64::from(banks) * 8 <= g.log_offset);
            assert!(g.log_offset + g.log_entries * 8 <= g.control_bytes);
            assert!(is_aligned(g.control_bytes, LARGE_PAGE_SIZE));
            let last = g.frame_offset(g.nr_chunks - 1, banks - 1).unwrap();
            assert!(last + chunk <= g.object_bytes);
            assert_eq!(g.frame_offset(g.nr_chunks, 0), None);
            assert_eq!(g.birth_offset(0, banks), None);
        }
    }

    #[test]
    fn absurd_geometries_are_refused() {
        assert_eq!(
            Geometry::new(4096, 8192, 2),
            Err(GeometryError::ChunkBytes(8192))
        );
        assert_eq!(Geometry::new(0, 4096, 2), Err(GeometryError::SizeBytes(0)));
        assert_eq!(
            Geometry::new(!4095, 4096, 2),
            Err(GeometryError::SizeBytes(!4095))
        );
        assert_eq!(
            Geometry::new(4097, 4096, 2),
            Err(GeometryError::SizeBytes(4097))
        );
        assert_eq!(Geometry::new(4096, 4096, 1), Err(GeometryError::Banks(1)));
        assert_eq!(Geometry::new(4096, 4096, 17), Err(GeometryError::Banks(17)));
    }

    #[test]
    fn the_frame_of_a_generation_is_the_youngest_not_later() {
        assert_eq!(bank_in_generation(&[1, 0, 0], 1), Some(0));
        assert_eq!(bank_in_generation(&[1, 3, 2], 2), Some(2));
        assert_eq!(bank_in_generation(&[1, 3, 2], 9), Some(1));
        assert_eq!(bank_in_generation(&[0, 4, 0], 3), None);
    }

    fn var() -> VarDesc {
        let mut var = VarDesc::read_from_bytes(&[0; 512]).unwrap();
        var.name[..4].copy_from_slice(b"flux");
        (var.dtype_code, var.dtype_bits, var.dtype_lanes) = (dtype::FLOAT, 64, 1);
        (var.ndim, var.order) = (2, b'F');
        var.shape[..2].copy_from_slice(&[4, 8]);
        var.strides[..2].copy_from_slice(&[8, 32]);
        (var.offset, var.nbytes) = (0, 256);
        var
    }

    #[test]
    fn a_variable_must_fit_its_arena() {
        assert_eq!(var().check(256), Ok(()));
        assert_eq!(var().check(255), Err(VarError::Bounds));
        type Spoil = fn(&mut VarDesc);
        let cases: [(Spoil, VarError); 7] = [
            (|v| v.nbytes = 255, VarError::Bounds),
            (|v| v.strides[0] = -8, VarError::Bounds),
            (|v| v.shape[1] = u64::MAX, VarError::Bounds),
            (|v| v.offset = u64::MAX, VarError::Bounds),
            (|v| v.ndim = 9, VarError::Shape),
            (|v| v.dtype_bits = 7, VarError::Dtype),
            (|v| v.name[0] = 0, VarError::Name),
        ];
        for (spoil, want) in cases {
            let mut v = var();
            spoil(&mut v);
            assert_eq!(v.check(4096), Err(want));
        }
    }

    #[test]
    fn names_are_bounded_and_printable() {
        assert!(name_field("snap/flux").is_some());
        assert!(name_field("").is_none());
        assert!(name_field("a\nb").is_none());
        assert!(name_field(core::str::from_utf8(&[b'x'; 64]).unwrap()).is_none());
    }
}
