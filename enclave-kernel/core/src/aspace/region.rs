//! A region: a contiguous range of an address space with one protection, one
//! backing and one purpose.
//!
//! Plain values, made by the kernel and kept by [`super::Aspace`]. They promise
//! nothing by themselves; the address space checks what it takes in.

use core::{fmt, ops::BitOr};

use enclave_abi::addr::{PAGE_SIZE, is_aligned};

/// What a program may do with memory; the bits are those of Linux `PROT_*`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Prot(u8);

impl Prot {
    /// No access.
    pub const NONE: Self = Self(0);
    /// Loads.
    pub const READ: Self = Self(1);
    /// Stores.
    pub const WRITE: Self = Self(2);
    /// Instruction fetches.
    pub const EXEC: Self = Self(4);
    /// Loads and stores.
    pub const READ_WRITE: Self = Self(3);

    /// The access that Linux `PROT_*` bits ask for, or `None` when a bit other
    /// than read, write and execute is set.
    #[must_use]
    pub fn from_linux(bits: u64) -> Option<Self> {
        u8::try_from(bits).ok().filter(|&b| b <= 7).map(Self)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether everything in `want` is allowed.
    #[must_use]
    pub const fn contains(self, want: Self) -> bool {
        self.0 & want.0 == want.0
    }

    /// Whether nothing is allowed.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether stores are allowed.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.contains(Self::WRITE)
    }

    /// Whether instruction fetches are allowed.
    #[must_use]
    pub const fn is_executable(self) -> bool {
        self.contains(Self::EXEC)
    }

    /// What either allows.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOr for Prot {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl fmt::Display for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::EXEC, "x")] {
            f.write_str(if self.contains(bit) { letter } else { "-" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What stands behind a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: a reservation that faults.
    None,
    /// Frames from the allocator, contiguous; guest-physical address of the
    /// region's start.
    Frames(u64),
    /// The arena in this slot.
    Arena(u32),
    /// The arena of somebody else that is attached in this slot.
    Import(u32),
    /// Memory that is no RAM of ours; guest-physical address of the region's
    /// start.
    Device(u64),
}

impl Backing {
    /// The backing `offset` bytes further on. Nobody backs the last bytes of
    /// 64 bits, so saturating never shows.
    pub(super) fn advanced(self, offset: u64) -> Self {
        match self {
            Self::Frames(gpa) => Self::Frames(gpa.saturating_add(offset)),
            Self::Device(gpa) => Self::Device(gpa.saturating_add(offset)),
            Self::None | Self::Arena(_) | Self::Import(_) => self,
        }
    }

    /// Whether it is an arena, our own or somebody else's: one region, whole.
    #[must_use]
    pub const fn is_arena(self) -> bool {
        matches!(self, Self::Arena(_) | Self::Import(_))
    }

    pub(super) fn is_aligned(self) -> bool {
        match self {
            Self::Frames(gpa) | Self::Device(gpa) => is_aligned(gpa, PAGE_SIZE),
            Self::None | Self::Arena(_) | Self::Import(_) => true,
        }
    }
}

/// What a region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A segment of the program.
    Image,
    /// The first thread's stack.
    Stack,
    /// Memory below the program break.
    Heap,
    /// Memory from mmap.
    Anonymous,
    /// A snapshot arena.
    Arena,
    /// A snapshot of somebody else's arena.
    Import,
    /// Code and data the kernel shares with programs.
    Vdso,
}

/// A contiguous range of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte, page aligned.
    pub start: u64,
    /// End (exclusive), page aligned.
    pub end: u64,
    /// What the program may do.
    pub prot: Prot,
    /// What stands behind it.
    pub backing: Backing,
    /// What it is for.
    pub kind: Kind,
}

impl Region {
    /// Bytes of the region.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// The part in `[start, end)`, which shares a byte with the region.
    pub(super) fn cut(&self, start: u64, end: u64) -> Self {
        let start = start.max(self.start);
        Self {
            start,
            end: end.min(self.end),
            backing: self.backing.advanced(start - self.start),
            ..*self
        }
    }

    /// Whether `next` carries on where this region ends, in every respect.
    /// Two arenas never do: each is one region, whole.
    pub(super) fn continues_in(&self, next: &Self) -> bool {
        self.end == next.start
            && self.prot == next.prot
            && self.kind == next.kind
            && !self.backing.is_arena()
            && self.backing.advanced(self.len_bytes()) == next.backing
    }
}
