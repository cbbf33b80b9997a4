//! What lies behind a range of our own addresses, from `/proc/self/maps`.
//!
//! Used before memory is moved into a segment: only private anonymous memory
//! can be, or memory that a segment which has ended left behind. The XPMEM
//! library finds out with it what its program did to attachments. Pure: the
//! text is an argument. proc(5) says what its fields are.

use core::ops::Range;

/// Identity of a mapped file or memory object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Major and minor number of the file system.
    pub device: (u32, u32),
    /// Its number there; 0 = no object, private memory.
    pub inode: u64,
}

/// Why a range cannot be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmovable {
    /// Empty, not whole pages, or beyond the address space.
    Range,
    /// Something in it is not mapped.
    Hole,
    /// Something in it cannot be read and written, or can be executed.
    Protection,
    /// Something in it is a file, a stack, or the kernel's.
    Foreign,
    /// Something in it is shared already: an attachment, an arena, or part of a
    /// segment that has not ended.
    Shared,
}

impl core::fmt::Display for Unmovable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Range => "not a range of whole pages",
            Self::Hole => "not mapped throughout",
            Self::Protection => "not readable and writable throughout, or executable",
            Self::Foreign => "a file, a stack or the kernel's",
            Self::Shared => "shared already",
        })
    }
}

/// One line.
#[derive(Clone, Debug)]
pub struct Mapping<'a> {
    /// Addresses.
    pub range: Range<usize>,
    /// Read, write, execute, private or shared: `rw-p`.
    pub protection: &'a str,
    /// Where it begins in the object, in bytes.
    pub offset: u64,
    /// What is mapped.
    pub object: Object,
    /// Path or pseudo-path, may be empty.
    pub name: &'a str,
}

/// All mappings in the text of `/proc/self/maps`, by address.
pub fn mappings(maps: &str) -> impl Iterator<Item = Mapping<'_>> {
    maps.lines().filter_map(parse)
}

/// Checks that all of `range` is memory that can be moved; returns the shared
/// objects in it, which the caller has to know for left over.
pub(super) fn movable(maps: &str, range: &Range<usize>) -> Result<Vec<Object>, Unmovable> {
    let mut shared = Vec::new();
    let mut at = range.start;
    for mapping in mappings(maps) {
        let apart = mapping.range.end <= at || mapping.range.start >= range.end;
        if apart || at >= range.end {
            continue;
        }
        if mapping.range.start > at {
            return Err(Unmovable::Hole);
        }
        match judge(&mapping)? {
            Some(object) if !shared.contains(&object) => shared.push(object),
            _ => {}
        }
        at = mapping.range.end;
    }
    if at >= range.end {
        Ok(shared)
    } else {
        Err(Unmovable::Hole)
    }
}

/// All objects that are mapped.
pub(super) fn objects(maps: &str) -> Vec<Object> {
    mappings(maps).map(|mapping| mapping.object).collect()
}

/// The shared object behind a mapping, `None` if it is private memory.
fn judge(mapping: &Mapping<'_>) -> Result<Option<Object>, Unmovable> {
    let is_private = match mapping.protection.as_bytes() {
        [b'r', b'w', b'-', b'p', ..] => true,
        [b'r', b'w', b'-', b's', ..] => false,
        _ => return Err(Unmovable::Protection),
    };
    if !is_private {
        return Ok(Some(mapping.object));
    }
    let named =
        mapping.name.is_empty() || mapping.name == "[heap]" || mapping.name.starts_with("[anon:");
    if named && mapping.object.inode == 0 {
        Ok(None)
    } else {
        Err(Unmovable::Foreign)
    }
}

/// `start-end perms offset major:minor inode   name`
fn parse(line: &str) -> Option<Mapping<'_>> {
    let mut fields = line.splitn(6, ' ');
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = fields.next()?.split_once('-')?;
    let protection = fields.next()?;
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let device = (number(major)?, number(minor)?);
    let inode = fields.next()?.parse().ok()?;
    Some(Mapping {
        range: hex(start)?..hex(end)?,
        protection,
        offset,
        object: Object { device, inode },
        name: fields.next().unwrap_or("").trim(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
1000-3000 rw-p 00000000 00:00 0 
3000-4000 rw-p 00000000 00:00 0                          [heap]
4000-5000 rw-p 00000000 00:00 0                          [anon: my pool]
5000-6000 r--p 00000000 00:00 0 
6000-7000 rw-p 00001000 fe:01 1234                       /lib/a file
7000-8000 rw-s 00000000 00:01 77                         /memfd:xemem-segment (deleted)
8000-9000 rw-p 00000000 00:00 0                          [stack]
9000-a000 rwxp 00000000 00:00 0 
b000-c000 rw-p 00000000 00:00 0 
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]
";

    #[test]
    fn private_anonymous_memory_can_be_moved_in_any_pieces() {
        for range in [
            0x1000..0x2000,
            0x2000..0x3000,
            0x1000..0x5000,
            0xb000..0xc000,
        ] {
            assert_eq!(movable(MAPS, &range), Ok(Vec::new()), "{range:x?}");
        }
    }

    #[test]
    fn anything_else_in_the_range_is_named() {
        for (range, reason) in [
            (0x0..0x1000, Unmovable::Hole),
            (0x0..0x2000, Unmovable::Hole),
            (0xa000..0xb000, Unmovable::Hole),
            (0xb000..0xd000, Unmovable::Hole),
            (0x4000..0x6000, Unmovable::Protection),
            (0x6000..0x7000, Unmovable::Foreign),
            (0x8000..0x9000, Unmovable::Foreign),
            (0x9000..0xa000, Unmovable::Protection),
            (
                0xffff_ffff_ff60_0000..0xffff_ffff_ff60_1000,
                Unmovable::Protection,
            ),
        ] {
            assert_eq!(movable(MAPS, &range), Err(reason), "{range:x?}");
        }
    }

    #[test]
    fn shared_objects_are_handed_to_the_caller() {
        let object = Object {
            device: (0, 1),
            inode: 77,
        };
        assert_eq!(movable(MAPS, &(0x7000..0x8000)), Ok(vec![object]));
        assert!(objects(MAPS).contains(&object));
    }

    #[test]
    fn lines_that_make_no_sense_are_no_mappings() {
        for line in [
            "",
            "x",
            "1-",
            "1000-2000",
            "1000-2000 rw-p",
            "1000-2000 rw-p 0 0:0 x",
        ] {
            assert!(parse(line).is_none(), "{line}");
        }
    }

    #[test]
    fn our_own_heap_is_found_in_our_own_maps() {
        let page = vec![1_u8; 1 << 20];
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let start = page.as_ptr().addr().next_multiple_of(4096);
        assert_eq!(movable(&maps, &(start..start + 4096)), Ok(Vec::new()));
    }
}
