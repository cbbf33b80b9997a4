//! What is attached where, and unmapping it without hurting anybody.
//!
//! A program may munmap(2) an attachment itself, or map something else over
//! it. So before anything is unmapped here, `/proc/self/maps` must say that the
//! object of the segment is still there, at the right place in it. Children of
//! fork(2) do not inherit attachments, as under XPMEM.

// UNSAFETY: maps and unmaps at addresses that the program has chosen.
#![expect(unsafe_code)]

use crate::errors::Failure;
use crate::process::Handle;
use core::ffi::c_void;
use core::ops::Range;
use rustix::fs::{fstat, major, minor};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use xemem_host::maps::{Object, mappings};
use xemem_host::{Access, Piece};

/// A piece of an object at some addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) range: Range<usize>,
    pub(crate) object: Object,
    /// Where the range begins in the object.
    pub(crate) offset: u64,
}

impl Place {
    /// The part of this place that is inside `range`.
    pub(crate) fn part(&self, range: &Range<usize>) -> Option<Self> {
        let start = self.range.start.max(range.start);
        let end = self.range.end.min(range.end);
        if start >= end {
            return None;
        }
        let skipped = u64::try_from(start.checked_sub(self.range.start)?).ok()?;
        Some(Self {
            range: start..end,
            object: self.object,
            offset: self.offset.checked_add(skipped)?,
        })
    }

    /// What of this place is still mapped where it was, by `maps`.
    fn left(&self, maps: &str) -> Vec<Range<usize>> {
        let mapped = mappings(maps).filter_map(|mapping| {
            let there = Self {
                range: mapping.range,
                object: mapping.object,
                offset: mapping.offset,
            };
            let there = there.part(&self.range)?;
            (self.part(&there.range).as_ref() == Some(&there)).then_some(there.range)
        });
        mapped.collect()
    }
}

/// One attachment, or what other mappings have left of one.
#[derive(Clone, Debug)]
struct Attachment {
    handle: Handle,
    place: Place,
}

/// All attachments of the process, by their first address; none overlap.
#[derive(Debug, Default)]
pub(crate) struct Attachments(BTreeMap<usize, Attachment>);

impl Attachments {
    /// Maps `piece`, at `address` or, if that is null, anywhere.
    pub(crate) fn map(
        &mut self,
        handle: Handle,
        piece: &Piece,
        address: *mut c_void,
    ) -> Result<*mut c_void, Failure> {
        let page = u64::from(piece.page_bytes);
        let len = piece.len.checked_next_multiple_of(page);
        let len = len.and_then(|len| usize::try_from(len).ok());
        let len = len.ok_or_else(|| Failure::argument("too long for this address space"))?;
        let object = identity(&piece.memfd).map_err(failed("look at the segment"))?;
        if !address.is_null() {
            let end = address.addr().checked_add(len);
            let end = end.ok_or_else(|| Failure::argument("beyond the address space"))?;
            self.clear(&(address.addr()..end))?;
        }
        // SAFETY: see there; what the program has at `address` it gave away.
        let base = unsafe { map(&piece.memfd, piece.offset, len, address, piece.access) };
        let base = base.map_err(failed("map the segment"))?;
        let range = base.addr()..base.addr().saturating_add(len);
        self.cut(&range);
        let offset = piece.offset;
        let place = Place {
            range,
            object,
            offset,
        };
        let attachment = Attachment { handle, place };
        self.0.insert(base.addr(), attachment);
        Ok(base)
    }

    /// Refuses a range with an attachment in it; forgets what the program
    /// itself has unmapped there.
    fn clear(&mut self, range: &Range<usize>) -> Result<(), Failure> {
        let maps = own_maps()?;
        let is_there = |attachment: &Attachment| {
            let part = attachment.place.part(range);
            part.is_some_and(|part| !part.left(&maps).is_empty())
        };
        if self.0.values().any(is_there) {
            return Err(Failure::argument("another attachment is there"));
        }
        self.cut(range);
        Ok(())
    }

    /// Takes `range` out of all attachments: something else is there now.
    fn cut(&mut self, range: &Range<usize>) {
        let hit = |attachment: &&Attachment| attachment.place.part(range).is_some();
        let hit: Vec<Attachment> = self.0.values().filter(hit).cloned().collect();
        for Attachment { handle, place } in hit {
            self.0.remove(&place.range.start);
            for rest in [0..range.start, range.end..usize::MAX] {
                if let Some(place) = place.part(&rest) {
                    let start = place.range.start;
                    self.0.insert(start, Attachment { handle, place });
                }
            }
        }
    }

    /// Unmaps the attachment that `address` lies in and tells whose it was;
    /// `None` if there is nothing at all.
    pub(crate) fn detach(&mut self, address: usize) -> Result<Option<Handle>, Failure> {
        let maps = own_maps()?;
        let found = self.0.range(..=address).next_back();
        let found = found.filter(|(_, attachment)| attachment.place.range.contains(&address));
        let found = found.map(|(start, attachment)| (*start, attachment.clone()));
        let other = mappings(&maps).any(|mapping| mapping.range.contains(&address));
        let Some((start, Attachment { handle, place })) = found else {
            return match other {
                true => Err(Failure::argument("this is mapped, and no attachment")),
                false => Ok(None),
            };
        };
        let left = place.left(&maps);
        if other && !left.iter().any(|range| range.contains(&address)) {
            return Err(Failure::argument(
                "the program has mapped something else here",
            ));
        }
        unmap(&left)?;
        self.0.remove(&start);
        Ok(Some(handle))
    }

    /// Unmaps all attachments of `handle`.
    pub(crate) fn detach_all(&mut self, handle: Handle) -> Result<(), Failure> {
        let maps = own_maps()?;
        let its = self.0.values().filter(|found| found.handle == handle);
        for attachment in its {
            unmap(&attachment.place.left(&maps))?;
        }
        self.0.retain(|_, found| found.handle != handle);
        Ok(())
    }
}

/// The text of `/proc/self/maps`.
pub(crate) fn own_maps() -> Result<String, Failure> {
    std::fs::read_to_string("/proc/self/maps").map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        failed("read /proc/self/maps")(errno)
    })
}

fn identity(memfd: impl AsFd) -> Result<Object, Errno> {
    let stat = fstat(memfd)?;
    Ok(Object {
        device: (major(stat.st_dev), minor(stat.st_dev)),
        inode: stat.st_ino,
    })
}

/// # Safety
/// `address` is null, or whatever is mapped there is the caller's to replace.
unsafe fn map(
    memfd: &OwnedFd,
    offset: u64,
    len: usize,
    address: *mut c_void,
    access: Access,
) -> Result<*mut c_void, Errno> {
    let prot = match access {
        Access::ReadOnly => ProtFlags::READ,
        Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
    };
    let flags = match address.is_null() {
        true => MapFlags::SHARED,
        false => MapFlags::SHARED | MapFlags::FIXED,
    };
    // SAFETY: at an address of the kernel's choice, or the caller's promise.
    let base = unsafe { mmap(address, len, prot, flags, memfd, offset) }?;
    // SAFETY: mapped above; changes what children get, and no content.
    let hidden = unsafe { madvise(base, len, Advice::LinuxDontFork) };
    match hidden {
        Ok(()) => Ok(base),
        Err(errno) => {
            // SAFETY: mapped above, and nobody knows of it yet.
            let _ = unsafe { munmap(base, len) };
            Err(errno)
        }
    }
}

fn unmap(ranges: &[Range<usize>]) -> Result<(), Failure> {
    for range in ranges {
        let base = core::ptr::with_exposed_provenance_mut(range.start);
        // SAFETY: an attachment that the program gives back, seen in the maps
        // under the lock that all attaching and detaching is done under.
        unsafe { munmap(base, range.len()) }.map_err(failed("unmap an attachment"))?;
    }
    Ok(())
}

fn failed(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| Failure::new(errno, format!("cannot {what}: {errno}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
10000-12000 rw-s 00001000 00:01 77                       /memfd:xemem-segment (deleted)
12000-13000 rw-p 00000000 00:00 0 
13000-14000 rw-s 00000000 00:01 77                       /memfd:xemem-segment (deleted)
14000-15000 rw-s 00005000 00:01 77                       /memfd:xemem-segment (deleted)
";

    fn object(inode: u64) -> Object {
        let device = (0, 1);
        Object { device, inode }
    }

    fn place(range: Range<usize>, offset: u64) -> Place {
        let object = object(77);
        Place {
            range,
            object,
            offset,
        }
    }

    #[test]
    fn only_what_is_still_the_attachment_is_left() {
        let place = place(0x10000..0x15000, 0x1000);
        // Private memory and another part of the object lie in between.
        assert_eq!(place.left(MAPS), [0x10000..0x12000, 0x14000..0x15000]);
        let other = Place {
            object: object(78),
            ..place
        };
        assert_eq!(other.left(MAPS), []);
    }

    #[test]
    fn a_part_knows_its_place_in_the_object() {
        let whole = place(0x10000..0x15000, 0x1000);
        let part = whole.part(&(0x12000..0x20000));
        assert_eq!(part, Some(place(0x12000..0x15000, 0x3000)));
        assert_eq!(whole.part(&(0x15000..0x16000)), None);
    }

    #[test]
    fn what_is_mapped_over_is_cut_out() {
        let handle = Handle::from_program(1).expect("positive");
        let mut all = Attachments::default();
        let place = place(0x10000..0x15000, 0);
        all.0.insert(0x10000, Attachment { handle, place });
        all.cut(&(0x12000..0x13000));
        let ranges: Vec<_> = all
            .0
            .values()
            .map(|rest| rest.place.range.clone())
            .collect();
        assert_eq!(ranges, [0x10000..0x12000, 0x13000..0x15000]);
        assert_eq!(all.0[&0x13000].place.offset, 0x3000);
        all.cut(&(0..usize::MAX));
        assert!(all.0.is_empty());
    }
}
