//! Plain segments: memory as it is, without generations.
//!
//! Made by any connection with [`Role::Exporter`], enclave or not. The object
//! is a memfd of the broker's; the exporter fills it before `Mapped` lets it be
//! found. What an importer may do is decided at `Get` and shows in the
//! descriptor that `SegmentAttach` hands out. When the segment ends, importers
//! keep what they have mapped: nothing is taken from under a process.

use super::doorbells::Meter;
use super::names::Name;
use super::permits::Permit;
use super::segments::{Body, Segment};
use super::signals::Subscription;
use super::{
    Broker, Effect, Env, Fds, Making, Operation, PeerId, Refusal, SEGMENT_BYTES_MAX, Ticket,
};
use crate::wire::{
    ApId, EndReason, Hugetlb, Memory, Reply, Role, SegId, SegmentMake, SegmentState,
};
use enclave_abi::addr::{LARGE_PAGE_SIZE, PAGE_SIZE};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What only plain segments have.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plain {
    /// 0 = signals only.
    pub(super) size_bytes: u64,
    pub(super) signallable: bool,
    /// Signals accepted.
    pub(super) signals: u64,
    /// The exporter's.
    pub(super) subscription: Option<Subscription>,
}

impl Broker {
    pub(super) fn segment_make(
        &mut self,
        peer: PeerId,
        seq: u32,
        make: &SegmentMake,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        let exporter = self.peers.get(&peer).ok_or(Refusal::Role)?;
        if exporter.role != Some(Role::Exporter) {
            return Err(Refusal::Role);
        }
        let permit = Permit::of_mode(&exporter.credentials, make.gid, make.mode)?;
        let hugetlb = pages_for(make)?;
        let enclave = exporter.enclave.and_then(|id| self.enclaves.get(&id));
        let registered = enclave.map(|enclave| enclave.name.clone());
        let enclave_name = registered.or_else(|| exporter.serves.clone());
        self.room_for_segment(permit.owner_uid)?;
        let first_name = Name::optional(&make.name)?;
        let segid = SegId(self.next_id());
        if let Some(name) = first_name.clone() {
            self.names.take(name, segid)?;
        }
        let segment = Segment {
            body: Body::Plain(Plain {
                size_bytes: make.size_bytes,
                signallable: make.signallable,
                signals: 0,
                subscription: None,
            }),
            exporter: peer,
            enclave_name,
            nr_names: usize::from(first_name.is_some()),
            first_name,
            permit,
            page_bytes: 0,
            state: SegmentState::Making,
            end_reason: None,
            retained_until_ms: None,
            made_ms: env.now_ms,
            apids: BTreeSet::new(),
            meter: Meter::new(self.settings.rings_per_second, env.now_ms),
        };
        self.segments.insert(segid, segment);
        if let Some(exporter) = self.peers.get_mut(&peer) {
            exporter.segments.insert(segid);
        }
        let making = Making::Segment(segid);
        let ticket = Ticket { peer, seq, making };
        if make.size_bytes == 0 {
            self.segment_made(peer, seq, segid, Ok(PAGE_SIZE), env);
        } else {
            self.effects.push(Effect::MakeSegment {
                ticket,
                segid,
                size_bytes: make.size_bytes,
                hugetlb,
            });
        }
        Ok(())
    }

    pub(super) fn segment_made(
        &mut self,
        peer: PeerId,
        seq: u32,
        segid: SegId,
        result: Result<u64, Errno>,
        env: Env<'_>,
    ) {
        let Some(segment) = self.segments.get_mut(&segid) else {
            return;
        };
        match result {
            Ok(page_bytes) => {
                segment.page_bytes = u32::try_from(page_bytes).unwrap_or(0);
                let size_bytes = segment.plain().map_or(0, |plain| plain.size_bytes);
                let fds = if size_bytes == 0 {
                    Fds::None
                } else {
                    Fds::Segment(segid)
                };
                let reply = Reply::Made {
                    segid,
                    size_bytes,
                    page_bytes,
                };
                self.reply_with(peer, seq, reply, fds);
            }
            Err(errno) => {
                self.end_segment(segid, EndReason::Removed, env);
                self.refuse(peer, seq, &Refusal::System(Operation::MakeSegment, errno));
            }
        }
    }

    pub(super) fn segment_attach(
        &mut self,
        peer: PeerId,
        seq: u32,
        apid: ApId,
        offset: u64,
        len: u64,
    ) -> Result<(), Refusal> {
        let grant = self.grant(peer, apid)?;
        let (segid, access) = (grant.segid, grant.access);
        let segment = self.segments.get(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        let plain = segment.plain().ok_or(Refusal::NotPlain(segid))?;
        if let Some(reason) = segment.end_reason {
            return Err(Refusal::SegmentEnded(segid, reason));
        }
        let size_bytes = plain.size_bytes;
        let page_bytes = segment.page_bytes;
        let end = offset.checked_add(len).filter(|end| *end <= size_bytes);
        if len == 0 || end.is_none() || !offset.is_multiple_of(u64::from(page_bytes)) {
            return Err(Refusal::Piece {
                offset,
                len,
                size_bytes,
                page_bytes,
            });
        }
        if let Some(grant) = self.grants.get_mut(&apid) {
            grant.pieces = grant.pieces.saturating_add(1);
        }
        let memory = Memory {
            segid,
            size_bytes,
            page_bytes,
            access,
        };
        let fds = Fds::Memory(segid, access);
        self.reply_with(peer, seq, Reply::Memory(memory), fds);
        Ok(())
    }
}

/// Pages for a segment: large ones only for whole numbers of them.
fn pages_for(make: &SegmentMake) -> Result<Hugetlb, Refusal> {
    let size = make.size_bytes;
    let signals_only = size == 0 && make.signallable;
    let whole = size > 0 && size <= SEGMENT_BYTES_MAX && size.is_multiple_of(PAGE_SIZE);
    let large = size.is_multiple_of(LARGE_PAGE_SIZE);
    match make.hugetlb {
        _ if !whole && !signals_only => Err(Refusal::Size(size)),
        Hugetlb::Yes if !large || signals_only => Err(Refusal::Size(size)),
        Hugetlb::Auto if !large => Ok(Hugetlb::No),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::NO_GROUP;
    use enclave_abi::arena::NAME_BYTES;

    #[test]
    fn sizes_are_whole_pages_or_signals_alone() {
        let with = |size_bytes, hugetlb, signallable| {
            pages_for(&SegmentMake {
                name: [0; NAME_BYTES],
                size_bytes,
                mode: 0o600,
                gid: NO_GROUP,
                hugetlb,
                signallable,
            })
        };
        let large = LARGE_PAGE_SIZE;
        assert_eq!(with(4096, Hugetlb::Auto, false), Ok(Hugetlb::No));
        assert_eq!(with(large, Hugetlb::Auto, false), Ok(Hugetlb::Auto));
        assert_eq!(with(large, Hugetlb::Yes, false), Ok(Hugetlb::Yes));
        assert_eq!(with(0, Hugetlb::Auto, true), Ok(Hugetlb::Auto));
        for (size, hugetlb, signallable) in [
            (0, Hugetlb::No, false),
            (0, Hugetlb::Yes, true),
            (1, Hugetlb::No, true),
            (4097, Hugetlb::Auto, false),
            (large + 4096, Hugetlb::Yes, false),
            (SEGMENT_BYTES_MAX + 4096, Hugetlb::No, false),
            (u64::MAX - 4095, Hugetlb::No, false),
        ] {
            let refused = with(size, hugetlb, signallable);
            assert_eq!(refused, Err(Refusal::Size(size)));
        }
    }
}
