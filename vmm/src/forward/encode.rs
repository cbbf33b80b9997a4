//! Structures of Linux x86-64 as bytes, field by field.
//!
//! Called by the handlers. What goes to a program is built here and nowhere
//! else, so that no padding of the VMM's memory can leak and no `unsafe` is
//! needed. Layouts: `arch/x86/include/uapi/asm/stat.h`, `linux/stat.h`, `dirent.h`,
//! `asm-generic/statfs.h`, `asm-generic/termbits.h`.

use rustix::fs::{FileType, Stat, StatFs};
use rustix::termios::{SpecialCodeIndex, Termios, Winsize};

/// Bytes of `struct stat`.
const STAT_BYTES: usize = 144;
/// Bytes of `struct statx`.
const STATX_BYTES: usize = 256;
/// What is known of every file (`STATX_BASIC_STATS`).
const STATX_BASIC_STATS: u32 = 0x7ff;
/// Bytes of a directory entry before its name.
const DIRENT_HEAD: usize = 19;

/// A growing byte string in the machine's order.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    fn u16(mut self, value: u16) -> Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn i64(self, value: i64) -> Self {
        self.u64(value.cast_unsigned())
    }

    fn zeros(mut self, count: usize) -> Self {
        self.bytes.resize(self.bytes.len() + count, 0);
        self
    }

    fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// `struct stat` of a host file.
pub(super) fn stat(stat: &Stat) -> Vec<u8> {
    Encoder::default()
        .u64(stat.st_dev)
        .u64(stat.st_ino)
        .u64(stat.st_nlink)
        .u32(stat.st_mode)
        .u32(stat.st_uid)
        .u32(stat.st_gid)
        .zeros(4)
        .u64(stat.st_rdev)
        .i64(stat.st_size)
        .i64(stat.st_blksize)
        .i64(stat.st_blocks)
        .i64(stat.st_atime)
        .u64(stat.st_atime_nsec)
        .i64(stat.st_mtime)
        .u64(stat.st_mtime_nsec)
        .i64(stat.st_ctime)
        .u64(stat.st_ctime_nsec)
        .zeros(24)
        .finish()
}

/// `struct stat` of a synthetic directory: readable, of nobody's size.
pub(super) fn stat_listing(ino: u64) -> Vec<u8> {
    Encoder::default()
        .zeros(8)
        .u64(ino)
        .u64(2)
        .u32(0o040_555)
        .zeros(12)
        .zeros(16)
        .i64(4096)
        .zeros(STAT_BYTES - 64)
        .finish()
}

/// `struct statx` of a host file, with all that `struct stat` has.
pub(super) fn statx(stat: &Stat) -> Vec<u8> {
    let time = |encoder: Encoder, seconds: i64, nanoseconds: u64| {
        let nanoseconds = u32::try_from(nanoseconds).unwrap_or(0);
        encoder.i64(seconds).u32(nanoseconds).zeros(4)
    };
    let head = Encoder::default()
        .u32(STATX_BASIC_STATS)
        .u32(u32::try_from(stat.st_blksize).unwrap_or(4096))
        .zeros(8)
        .u32(u32::try_from(stat.st_nlink).unwrap_or(u32::MAX))
        .u32(stat.st_uid)
        .u32(stat.st_gid)
        .u32(stat.st_mode & 0xffff)
        .u64(stat.st_ino)
        .i64(stat.st_size)
        .i64(stat.st_blocks)
        .zeros(8);
    // When the file was made is not known, so that stays zero.
    let times = time(head, stat.st_atime, stat.st_atime_nsec).zeros(16);
    let times = time(times, stat.st_ctime, stat.st_ctime_nsec);
    let mut bytes = time(times, stat.st_mtime, stat.st_mtime_nsec)
        .u32(rustix::fs::major(stat.st_rdev))
        .u32(rustix::fs::minor(stat.st_rdev))
        .u32(rustix::fs::major(stat.st_dev))
        .u32(rustix::fs::minor(stat.st_dev))
        .finish();
    bytes.resize(STATX_BYTES, 0);
    bytes
}

/// `struct statx` of a synthetic directory.
pub(super) fn statx_listing(ino: u64) -> Vec<u8> {
    let mut bytes = Encoder::default()
        .u32(STATX_BASIC_STATS)
        .u32(4096)
        .zeros(8)
        .u32(2)
        .zeros(8)
        .u32(0o040_555)
        .u64(ino)
        .finish();
    bytes.resize(STATX_BYTES, 0);
    bytes
}

/// `struct statfs` of a host file system; `read_only` adds that flag.
pub(super) fn statfs(stat: &StatFs, read_only: bool) -> Vec<u8> {
    let flags = stat.f_flags | i64::from(read_only);
    Encoder::default()
        .i64(stat.f_type)
        .i64(stat.f_bsize)
        .u64(stat.f_blocks)
        .u64(stat.f_bfree)
        .u64(stat.f_bavail)
        .u64(stat.f_files)
        .u64(stat.f_ffree)
        .zeros(8)
        .i64(stat.f_namelen)
        .i64(stat.f_frsize)
        .i64(flags)
        .zeros(32)
        .finish()
}

/// `struct statfs` of the synthetic directories: an empty, read-only tmpfs.
pub(super) fn statfs_listing() -> Vec<u8> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    Encoder::default()
        .i64(TMPFS_MAGIC)
        .i64(4096)
        .zeros(48)
        .i64(255)
        .i64(4096)
        .i64(1)
        .zeros(32)
        .finish()
}

/// One entry of getdents64.
pub(super) fn dirent(ino: u64, next: u64, kind: FileType, name: &[u8]) -> Vec<u8> {
    let length = (DIRENT_HEAD + name.len() + 1).next_multiple_of(8);
    let kind = match kind {
        FileType::Fifo => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 4,
        FileType::BlockDevice => 6,
        FileType::RegularFile => 8,
        FileType::Symlink => 10,
        FileType::Socket => 12,
        FileType::Unknown => 0,
    };
    let mut encoder = Encoder::default()
        .u64(ino)
        .u64(next)
        .u16(u16::try_from(length).unwrap_or(u16::MAX));
    encoder.bytes.push(kind);
    encoder.bytes.extend_from_slice(name);
    encoder.bytes.resize(length, 0);
    encoder.finish()
}

/// The kernel's `struct termios` (TCGETS).
pub(super) fn termios(termios: &Termios) -> Vec<u8> {
    /// Control characters in the order of the structure.
    const ORDER: [SpecialCodeIndex; 17] = [
        SpecialCodeIndex::VINTR,
        SpecialCodeIndex::VQUIT,
        SpecialCodeIndex::VERASE,
        SpecialCodeIndex::VKILL,
        SpecialCodeIndex::VEOF,
        SpecialCodeIndex::VTIME,
        SpecialCodeIndex::VMIN,
        SpecialCodeIndex::VSWTC,
        SpecialCodeIndex::VSTART,
        SpecialCodeIndex::VSTOP,
        SpecialCodeIndex::VSUSP,
        SpecialCodeIndex::VEOL,
        SpecialCodeIndex::VREPRINT,
        SpecialCodeIndex::VDISCARD,
        SpecialCodeIndex::VWERASE,
        SpecialCodeIndex::VLNEXT,
        SpecialCodeIndex::VEOL2,
    ];
    let mut encoder = Encoder::default()
        .u32(termios.input_modes.bits())
        .u32(termios.output_modes.bits())
        .u32(termios.control_modes.bits())
        .u32(termios.local_modes.bits());
    encoder.bytes.push(termios.line_discipline);
    let codes = ORDER.iter().map(|&index| termios.special_codes[index]);
    encoder.bytes.extend(codes);
    encoder.zeros(2).finish()
}

/// `struct winsize` (TIOCGWINSZ).
pub(super) fn winsize(size: Winsize) -> Vec<u8> {
    Encoder::default()
        .u16(size.ws_row)
        .u16(size.ws_col)
        .u16(size.ws_xpixel)
        .u16(size.ws_ypixel)
        .finish()
}

/// Two descriptor numbers (pipe2).
pub(super) fn two_fds(first: i32, second: i32) -> Vec<u8> {
    Encoder::default()
        .u32(first.cast_unsigned())
        .u32(second.cast_unsigned())
        .finish()
}

/// A little-endian number at `at`; `None` past the end.
pub(super) fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    let end = at.checked_add(8)?;
    bytes.get(at..end)?.try_into().ok().map(i64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_kernel_s() {
        let file = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
        let file = file.unwrap();
        let host = rustix::fs::fstat(&file).unwrap();
        assert_eq!(stat(&host).len(), STAT_BYTES);
        assert_eq!(stat_listing(1).len(), STAT_BYTES);
        let host = rustix::fs::fstatfs(&file).unwrap();
        assert_eq!(statfs(&host, true).len(), 120);
        assert_eq!(statfs_listing().len(), 120);
        assert_eq!(dirent(1, 2, FileType::Directory, b"a").len(), 24);
        assert_eq!(dirent(1, 2, FileType::Directory, b"12345").len(), 32);
    }
}
