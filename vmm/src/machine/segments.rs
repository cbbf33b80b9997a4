//! Plain segments of the running program: its own, and pieces of others'.
//!
//! Called by the vCPU thread, beside [`super::imports`], whose table and
//! connection this uses. A segment's memory is an object of the broker's, as on
//! Linux: mapped here, given to KVM as a memslot of the import window, read-only
//! where the access is. It ends with the program's connection; who has attached
//! it keeps it. What the program passes is believed in nothing: ids are looked
//! up, sizes and places checked by the broker.

use std::os::fd::{AsFd, BorrowedFd};

use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE, align_up};
use enclave_abi::arena::text;
use enclave_abi::syscall::{
    MAX_SEGMENTS, SEGMENT_SIGNALS, SegmentArgs, XEMEM_BY_APID, XEMEM_BY_SEGID,
};
use kvm_bindings::KVM_MEM_READONLY;
use rustix::io::Errno;
use xemem_host::{Access, ApId, Ears, Heard, Hugetlb, SegId, SegmentGrant, SegmentRequest, Target};

use super::arenas::Mapping;
use super::imports::{Attached, ImportTable, Source, check_object, deadline};
use crate::machine::Backing;
use crate::memory::Supply;

/// A new segment, as the kernel is told: segid, guest-physical address, bytes of
/// a page.
pub(super) type Made = [u64; 3];

impl ImportTable {
    /// Attaches `size` bytes at `offset`, or all that follow if 0.
    pub(super) fn attach_piece(
        &mut self,
        slot: u32,
        apid: ApId,
        offset: u64,
        size: u64,
        whole: u64,
    ) -> Result<Attached, Errno> {
        let len = match size {
            0 => whole.checked_sub(offset).ok_or(Errno::INVAL)?,
            size => size,
        };
        let piece = self.ask(|broker| broker.attach_piece(apid, offset, len))?;
        let page_bytes = u64::from(piece.page_bytes);
        let placed = align_up(len, page_bytes)
            .ok_or(Errno::INVAL)
            .and_then(|bytes| {
                check_object(&piece.memfd, offset.checked_add(bytes).ok_or(Errno::INVAL)?)?;
                let mapping = Mapping::piece(&piece.memfd, offset, bytes, piece.access)?;
                let flags = match piece.access {
                    Access::ReadOnly => KVM_MEM_READONLY,
                    Access::ReadWrite => 0,
                };
                let placed = self.put(slot, Source::Piece(apid), mapping, flags)?;
                let (segment, place) = ((piece.segid, &piece.memfd), (offset, placed.1));
                self.shares().note(slot, segment, place, page_bytes)?;
                Ok(placed)
            });
        match placed {
            Ok((gpa, bytes)) => Ok(Attached {
                gpa,
                size_bytes: bytes,
                chunk_bytes: page_bytes,
                nr_banks: 0,
                writable: piece.access == Access::ReadWrite,
                rings: false,
            }),
            Err(errno) => {
                self.forget(slot);
                // What cannot be told to the broker ends with the connection.
                let _ = self.ask(|broker| broker.detach(apid));
                Err(errno)
            }
        }
    }

    /// Makes a plain segment; its memory, if it has any, goes to `slot`.
    pub(super) fn make(&mut self, slot: u64, args: &SegmentArgs) -> Result<Made, Errno> {
        let slot = self.free(slot)?;
        let request = self.request(args)?;
        if self.made.len() >= MAX_SEGMENTS {
            return Err(Errno::NOSPC);
        }
        self.has_room(args.size_bytes)?;
        let grant = self.ask(|broker| broker.segment_make(&request))?;
        let segid = grant.segid;
        self.made.insert(segid);
        let made = self.complete(slot, &grant, request.signallable);
        if made.is_err() {
            self.forget(slot);
            let _ = self.remove(segid.0);
        }
        made
    }

    /// What the broker is asked for.
    fn request(&self, args: &SegmentArgs) -> Result<SegmentRequest, Errno> {
        if args.flags & !SEGMENT_SIGNALS != 0 || args.pad != 0 {
            return Err(Errno::INVAL);
        }
        let hugetlb = match args.page_bytes {
            0 if self.backing == Backing::Small => Hugetlb::No,
            0 => Hugetlb::Auto,
            PAGE_SIZE => Hugetlb::No,
            LARGE_PAGE_SIZE => Hugetlb::Yes,
            _ => return Err(Errno::INVAL),
        };
        Ok(SegmentRequest {
            name: text(&args.name).ok_or(Errno::INVAL)?.to_owned(),
            size_bytes: args.size_bytes,
            mode: args.mode,
            gid: (args.gid != u32::MAX).then_some(args.gid),
            hugetlb,
            signallable: args.flags & SEGMENT_SIGNALS != 0,
        })
    }

    /// Prefaulting would find out too, after minutes and at the cost of everybody
    /// else on the host.
    fn has_room(&mut self, bytes: u64) -> Result<(), Errno> {
        if bytes > Supply::read(self.node).bytes() {
            // Arenas that ended may still be kept for their readers.
            let _ = self.ask(|broker| broker.make_room(bytes, false));
        }
        match bytes > Supply::read(self.node).bytes() {
            true => Err(Errno::NOMEM),
            false => Ok(()),
        }
    }

    /// Maps and allocates the memory of a new segment, then lets it be found.
    fn complete(&mut self, slot: u32, grant: &SegmentGrant, signals: bool) -> Result<Made, Errno> {
        let segid = grant.segid;
        if signals {
            self.subscribe_to(Target::Segment(segid))?;
        }
        let gpa = match &grant.memfd {
            Some(memfd) => {
                let mapping = Mapping::new(memfd, grant.size_bytes)?;
                mapping.place(self.node)?;
                mapping.populate().map_err(|_| Errno::NOMEM)?;
                self.put(slot, Source::Made(segid), mapping, 0)?.0
            }
            None => 0,
        };
        // Seals it, if nobody else may write.
        self.ask(|broker| broker.mapped(segid))?;
        if let Some(memfd) = &grant.memfd {
            let place = (0, grant.size_bytes);
            self.shares()
                .note(slot, (segid, memfd), place, grant.page_bytes)?;
        }
        Ok([segid.0, gpa, grant.page_bytes])
    }

    /// Gives a segment of the program's own a further name.
    pub(super) fn name(&mut self, segid: u64, name: &[u8]) -> Result<u64, Errno> {
        let name = std::str::from_utf8(name).map_err(|_| Errno::INVAL)?;
        self.owned(segid)?;
        self.ask(|broker| broker.arena_name(SegId(segid), name))
            .map(|()| segid)
    }

    /// Ends a segment of the program's own; its memory stays.
    pub(super) fn remove(&mut self, segid: u64) -> Result<u64, Errno> {
        let id = self.owned(segid)?;
        self.made.remove(&id);
        self.signals.remove(&Target::Segment(id));
        self.ears.remove(&Target::Segment(id));
        self.ask(|broker| broker.remove(id)).map(|()| 0)
    }

    /// Only what the program made itself: this process may be anybody's.
    fn owned(&self, segid: u64) -> Result<SegId, Errno> {
        let id = SegId(segid);
        self.made.contains(&id).then_some(id).ok_or(Errno::ACCESS)
    }

    /// Signals every other subscriber of a segment: from this thread to theirs, if
    /// the broker lets it.
    pub(super) fn signal(&mut self, id: u64, by: u64) -> Result<u64, Errno> {
        let target = target(id, by)?;
        let mut heard = self.ears.get(&target).map_or(Heard::Changed, Ears::signal);
        if heard == Heard::Changed {
            self.ears.remove(&target);
            // What is wrong the broker says below, too.
            if let Ok(ears) = self.ask(|broker| broker.ears(target)) {
                heard = self.ears.entry(target).insert_entry(ears).get().signal();
            }
        }
        if heard == Heard::Done {
            return Ok(0);
        }
        self.ask(|broker| broker.signal(target)).map(|()| 0)
    }

    /// Keeps signals from now on.
    pub(super) fn subscribe(&mut self, id: u64, by: u64) -> Result<u64, Errno> {
        self.subscribe_to(target(id, by)?).map(|()| 0)
    }

    fn subscribe_to(&mut self, target: Target) -> Result<(), Errno> {
        let signals = self.ask(|broker| broker.subscribe(target))?;
        self.signals.insert(target, signals);
        Ok(())
    }

    /// Waits for signals; 0 once the segment has ended and all were taken.
    pub(super) fn wait_for(
        &mut self,
        (id, by): (u64, u64),
        timeout_ms: u64,
        cancel: BorrowedFd<'_>,
    ) -> Result<u64, Errno> {
        let target = target(id, by)?;
        let deadline = deadline(timeout_ms);
        let mut is_lost = false;
        loop {
            let signals = self.signals.get_mut(&target).ok_or(Errno::NOTCONN)?;
            let count = signals.take().map_err(|error| error.errno())?;
            if count > 0 || signals.has_ended() {
                return Ok(count);
            }
            if is_lost {
                self.lose();
                return Err(Errno::CONNRESET);
            }
            match self.wait_at(signals_of(&self.signals, target)?, deadline, cancel) {
                // The broker's last words may have come meanwhile.
                Err(Errno::CONNRESET) => is_lost = true,
                other => other?,
            }
        }
    }
}

fn signals_of(
    all: &std::collections::BTreeMap<Target, xemem_host::Signals>,
    target: Target,
) -> Result<BorrowedFd<'_>, Errno> {
    all.get(&target).map(AsFd::as_fd).ok_or(Errno::NOTCONN)
}

fn target(id: u64, by: u64) -> Result<Target, Errno> {
    match by {
        XEMEM_BY_APID => Ok(Target::Access(ApId(id))),
        XEMEM_BY_SEGID => Ok(Target::Segment(SegId(id))),
        _ => Err(Errno::INVAL),
    }
}
