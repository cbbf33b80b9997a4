//! Enclaves and their arenas: the exporter's side, and lists of segments.
//!
//! The state of a segment is drawn in [`super`]. A segment keeps the slot
//! words of its enclave's lease page until it ends; from then on the slot may
//! belong to another arena.

use super::doorbells::{PAUSE_MS, TokenBucket};
use super::leases::{Leases, Words};
use super::names::{NAMES_PER_SEGMENT, Name};
use super::{
    Broker, Credentials, Effect, Enclave, EnclaveId, Env, Fds, MAX_SEGMENTS, MAX_SEGMENTS_PER_USER,
    Making, PeerId, Refusal, Table, Ticket, count,
};
use crate::wire::{
    ApId, ArenaMake, EndReason, Hugetlb, LIST_PAGE, Reply, Role, SegId, SegmentInfo, SegmentState,
};
use enclave_abi::addr::LARGE_PAGE_SIZE;
use enclave_abi::arena::{Geometry, NAME_BYTES};
use enclave_abi::lease::MAX_ARENAS;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// Group id that means nobody.
const NO_GROUP: u32 = u32::MAX;

/// An exported arena.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) enclave: EnclaveId,
    pub(super) slot: u32,
    exporter: PeerId,
    enclave_name: Name,
    first_name: Option<Name>,
    nr_names: usize,
    owner_uid: u32,
    reader_gid: u32,
    pub(super) geometry: Geometry,
    pub(super) page_bytes: u32,
    state: SegmentState,
    pub(super) end_reason: Option<EndReason>,
    made_ms: u64,
    pub(super) leases: Leases,
    /// Apids granted for it, attached or not.
    pub(super) apids: BTreeSet<ApId>,
    bucket: TokenBucket,
    paused_until_ms: Option<u64>,
    throttled: u64,
}

impl Segment {
    pub(super) fn is_live(&self) -> bool {
        self.state == SegmentState::Live
    }

    pub(super) fn paused_until(&self) -> Option<u64> {
        self.paused_until_ms
    }

    pub(super) fn words<'a>(&self, env: Env<'a>) -> Words<'a> {
        Words {
            memory: env.memory,
            enclave: self.enclave,
            slot: self.slot,
        }
    }

    fn is_owner(&self, peer: &Credentials) -> bool {
        peer.uid == 0 || peer.uid == self.owner_uid
    }

    pub(super) fn may_read(&self, peer: &Credentials) -> bool {
        let in_group = peer.gid == self.reader_gid || peer.groups.contains(&self.reader_gid);
        self.is_owner(peer) || (self.reader_gid != NO_GROUP && in_group)
    }
}

impl Broker {
    pub(super) fn register_enclave(
        &mut self,
        peer: PeerId,
        seq: u32,
        name: &[u8; NAME_BYTES],
    ) -> Result<(), Refusal> {
        let name = Name::required(name)?;
        let exporter = self.peers.get(&peer).ok_or(Refusal::NotExporter)?;
        if exporter.role != Some(Role::Exporter) {
            return Err(Refusal::NotExporter);
        }
        if exporter.enclave.is_some() {
            return Err(Refusal::Registered);
        }
        if self.enclaves.values().any(|enclave| enclave.name == name) {
            return Err(Refusal::NameTaken);
        }
        let enclave = EnclaveId(self.next_id());
        let slots = BTreeMap::new();
        self.enclaves.insert(enclave, Enclave { name, slots });
        if let Some(exporter) = self.peers.get_mut(&peer) {
            exporter.enclave = Some(enclave);
        }
        let making = Making::LeasePage(enclave);
        let ticket = Ticket { peer, seq, making };
        self.effects.push(Effect::MakeLeasePage { ticket, enclave });
        Ok(())
    }

    pub(super) fn lease_page_made(
        &mut self,
        peer: PeerId,
        seq: u32,
        enclave: EnclaveId,
        result: Result<u64, Errno>,
    ) {
        match result {
            Ok(_) => self.reply_with(peer, seq, Reply::LeasePage, Fds::LeasePage(enclave)),
            Err(errno) => {
                self.enclaves.remove(&enclave);
                if let Some(exporter) = self.peers.get_mut(&peer) {
                    exporter.enclave = None;
                }
                let operation = super::Operation::MakeLeasePage;
                self.refuse(peer, seq, &Refusal::System(operation, errno));
            }
        }
    }

    pub(super) fn arena_make(
        &mut self,
        peer: PeerId,
        seq: u32,
        make: &ArenaMake,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        let exporter = self.peers.get(&peer).ok_or(Refusal::NotExporter)?;
        let owner_uid = exporter.credentials.uid;
        let id = exporter.enclave.ok_or(Refusal::NotExporter)?;
        let enclave = self.enclaves.get(&id).ok_or(Refusal::NotExporter)?;
        let enclave_name = enclave.name.clone();
        if usize::try_from(make.slot).map_or(true, |slot| slot >= MAX_ARENAS) {
            return Err(Refusal::Slot(make.slot));
        }
        if enclave.slots.contains_key(&make.slot) {
            return Err(Refusal::SlotTaken(make.slot));
        }
        let geometry = Geometry::new(make.size_bytes, make.chunk_bytes, make.nr_banks)
            .map_err(Refusal::Geometry)?;
        let hugetlb = hugetlb_for(make.hugetlb, make.chunk_bytes)?;
        self.room_for_segment(owner_uid)?;
        let first_name = Name::optional(&make.name)?;
        let segid = SegId(self.next_id());
        if let Some(name) = first_name.clone() {
            self.names.take(name, segid)?;
        }
        let segment = Segment {
            enclave: id,
            slot: make.slot,
            exporter: peer,
            enclave_name,
            nr_names: usize::from(first_name.is_some()),
            first_name,
            owner_uid,
            reader_gid: make.reader_gid,
            geometry,
            page_bytes: 0,
            state: SegmentState::Making,
            end_reason: None,
            made_ms: env.now_ms,
            leases: Leases::default(),
            apids: BTreeSet::new(),
            bucket: TokenBucket::new(self.settings.rings_per_second, env.now_ms),
            paused_until_ms: None,
            throttled: 0,
        };
        self.segments.insert(segid, segment);
        if let Some(enclave) = self.enclaves.get_mut(&id) {
            enclave.slots.insert(make.slot, segid);
        }
        let making = Making::Arena(segid);
        self.effects.push(Effect::MakeArena {
            ticket: Ticket { peer, seq, making },
            segid,
            object_bytes: geometry.object_bytes,
            hugetlb,
        });
        Ok(())
    }

    fn room_for_segment(&self, owner_uid: u32) -> Result<(), Refusal> {
        let of_user = |segment: &&Segment| segment.owner_uid == owner_uid;
        let nr_of_user = self.segments.values().filter(of_user).count();
        let limit = if self.segments.len() >= MAX_SEGMENTS {
            MAX_SEGMENTS
        } else if nr_of_user >= MAX_SEGMENTS_PER_USER && !self.is_privileged(owner_uid) {
            MAX_SEGMENTS_PER_USER
        } else {
            return Ok(());
        };
        let what = Table::Segments;
        Err(Refusal::Limit { what, limit })
    }

    pub(super) fn arena_made(
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
                let (enclave, slot) = (segment.enclave, segment.slot);
                let object_bytes = segment.geometry.object_bytes;
                env.memory.clear(enclave, slot);
                env.memory.set_retain(enclave, slot, 1, 0);
                let reply = Reply::Arena {
                    segid,
                    object_bytes,
                    page_bytes,
                };
                self.reply_with(peer, seq, reply, Fds::Arena(segid));
            }
            Err(errno) => {
                self.end_segment(segid, EndReason::Removed, env);
                let operation = super::Operation::MakeArena;
                self.refuse(peer, seq, &Refusal::System(operation, errno));
            }
        }
    }

    pub(super) fn arena_mapped(
        &mut self,
        peer: PeerId,
        seq: u32,
        segid: SegId,
    ) -> Result<(), Refusal> {
        let segment = self.exported_by(peer, segid)?;
        if segment.state != SegmentState::Making {
            return Err(Refusal::SegmentState(segid));
        }
        let making = Making::Sealed(segid);
        let ticket = Ticket { peer, seq, making };
        self.effects.push(Effect::SealArena { ticket, segid });
        Ok(())
    }

    pub(super) fn arena_sealed(
        &mut self,
        peer: PeerId,
        seq: u32,
        segid: SegId,
        result: Result<u64, Errno>,
        env: Env<'_>,
    ) {
        if let Err(errno) = result {
            // Half sealed is no state to go on from.
            self.end_segment(segid, EndReason::Removed, env);
            let operation = super::Operation::SealArena;
            self.refuse(peer, seq, &Refusal::System(operation, errno));
            return;
        }
        if let Some(segment) = self.segments.get_mut(&segid) {
            segment.state = SegmentState::Live;
        }
        self.reply(peer, seq, Reply::Ok);
        self.wake_lookups(segid);
    }

    pub(super) fn arena_name(
        &mut self,
        peer: PeerId,
        segid: SegId,
        name: &[u8; NAME_BYTES],
    ) -> Result<(), Refusal> {
        let name = Name::required(name)?;
        let segment = self.exported_by(peer, segid)?;
        if let Some(reason) = segment.end_reason {
            return Err(Refusal::SegmentEnded(segid, reason));
        }
        if segment.nr_names >= NAMES_PER_SEGMENT {
            return Err(Refusal::TooManyNames(NAMES_PER_SEGMENT));
        }
        self.names.take(name.clone(), segid)?;
        if let Some(segment) = self.segments.get_mut(&segid) {
            segment.nr_names += 1;
            segment.first_name.get_or_insert(name);
            if segment.is_live() {
                self.wake_lookups(segid);
            }
        }
        Ok(())
    }

    pub(super) fn arena_end(
        &mut self,
        peer: PeerId,
        segid: SegId,
        reason: EndReason,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        let segment = self.exported_by(peer, segid)?;
        // A segment that was removed meanwhile has ended already: fine.
        if segment.end_reason.is_none() {
            self.end_segment(segid, reason, env);
        }
        Ok(())
    }

    pub(super) fn remove(
        &mut self,
        peer: PeerId,
        segid: SegId,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        let segment = self.segments.get(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        let credentials = self.credentials(peer);
        let credentials = credentials.ok_or(Refusal::NoSegment(segid))?;
        if !segment.is_owner(credentials) {
            let uid = credentials.uid;
            return Err(Refusal::Permission { uid, segid });
        }
        if let Some(reason) = segment.end_reason {
            return Err(Refusal::SegmentEnded(segid, reason));
        }
        self.end_segment(segid, EndReason::Removed, env);
        Ok(())
    }

    /// The connection of `enclave` is gone, so its kernel is, too.
    pub(super) fn exporter_gone(&mut self, enclave: EnclaveId, env: Env<'_>) {
        let slots = self.enclaves.get(&enclave).map(|gone| gone.slots.clone());
        for segid in slots.unwrap_or_default().into_values() {
            self.end_segment(segid, EndReason::ExporterGone, env);
        }
        self.enclaves.remove(&enclave);
        self.effects.push(Effect::DropLeasePage(enclave));
    }

    /// Ends a segment once: queues what readers of each generation still may
    /// get, cuts it off the lease page, frees names and slot, wakes readers.
    fn end_segment(&mut self, segid: SegId, reason: EndReason, env: Env<'_>) {
        self.advance(segid, env);
        let Some(segment) = self.segments.get_mut(&segid) else {
            return;
        };
        if segment.end_reason.is_some() {
            return;
        }
        segment.leases.freeze(segment.words(env));
        segment.end_reason = Some(reason);
        segment.state = SegmentState::Ended;
        segment.paused_until_ms = None;
        let (enclave, slot) = (segment.enclave, segment.slot);
        let apids = segment.apids.clone();
        env.memory.clear(enclave, slot);
        self.names.free(segid);
        if let Some(enclave) = self.enclaves.get_mut(&enclave) {
            enclave.slots.remove(&slot);
        }
        self.effects.push(Effect::PauseDoorbell(segid));
        for apid in apids {
            self.effects.push(Effect::Notify(apid));
        }
        self.forget_if_unused(segid);
    }

    /// Drops an ended segment that nobody has access to.
    pub(super) fn forget_if_unused(&mut self, segid: SegId) {
        let unused = |segment: &Segment| segment.end_reason.is_some() && segment.apids.is_empty();
        if self.segments.get(&segid).is_some_and(unused) {
            self.segments.remove(&segid);
            self.effects.push(Effect::DropArena(segid));
        }
    }

    /// The doorbell of `segid` rang `rings` times since it was last read.
    pub fn doorbell(&mut self, segid: SegId, rings: u64, env: Env<'_>) {
        let Some(segment) = self.segments.get_mut(&segid) else {
            return;
        };
        if !segment.is_live() {
            return;
        }
        if !segment.bucket.take(rings, env.now_ms) {
            segment.paused_until_ms = Some(env.now_ms.saturating_add(PAUSE_MS));
            segment.throttled = segment.throttled.saturating_add(1);
            self.throttled = self.throttled.saturating_add(1);
            self.effects.push(Effect::PauseDoorbell(segid));
        }
        let apids = segment.apids.clone();
        self.advance(segid, env);
        let attached = |apid: &ApId| self.grants.get(apid).is_some_and(super::Grant::is_attached);
        let attached: Vec<ApId> = apids.into_iter().filter(attached).collect();
        self.effects
            .extend(attached.into_iter().map(Effect::Notify));
    }

    pub(super) fn resume_doorbells(&mut self, now_ms: u64) {
        for (&segid, segment) in &mut self.segments {
            if segment.paused_until_ms.is_some_and(|until| until <= now_ms) {
                segment.paused_until_ms = None;
                self.effects.push(Effect::ResumeDoorbell(segid));
            }
        }
    }

    pub(super) fn list(&self, after: SegId, env: Env<'_>) -> Reply {
        let from = SegId(after.0.saturating_add(1));
        let infos = self.segments.range(from..).take(LIST_PAGE);
        Reply::Segments(infos.map(|(&id, seg)| self.info(id, seg, env)).collect())
    }

    fn info(&self, segid: SegId, segment: &Segment, env: Env<'_>) -> SegmentInfo {
        let attached = |apid: &&ApId| {
            self.grants
                .get(*apid)
                .is_some_and(super::Grant::is_attached)
        };
        let counters = env.memory.counters(segid);
        let name = segment.first_name.as_ref().map_or("", Name::as_str);
        SegmentInfo {
            segid,
            name: name.to_owned(),
            enclave: segment.enclave_name.as_str().to_owned(),
            state: segment.state,
            end_reason: segment.end_reason,
            size_bytes: segment.geometry.size_bytes,
            chunk_bytes: segment.geometry.chunk_bytes,
            nr_banks: segment.geometry.nr_banks,
            page_bytes: segment.page_bytes,
            latest_generation: counters.latest_generation,
            dropped: counters.dropped,
            discarded: counters.discarded,
            waited: counters.waited,
            throttled: segment.throttled,
            readers: count(segment.apids.iter().filter(attached).count()),
            leases: count(segment.leases.count()),
            owner_uid: segment.owner_uid,
            reader_gid: segment.reader_gid,
            age_ms: env.now_ms.saturating_sub(segment.made_ms),
        }
    }

    /// The segment if this very connection exports it.
    fn exported_by(&self, peer: PeerId, segid: SegId) -> Result<&Segment, Refusal> {
        let segment = self.segments.get(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        if segment.exporter == peer {
            Ok(segment)
        } else {
            Err(Refusal::NotExporter)
        }
    }

    fn wake_lookups(&mut self, segid: SegId) {
        for (peer, waiter) in self.names.found(segid) {
            self.reply(peer, waiter.seq, Reply::Segment { segid });
        }
    }
}

/// Pages for chunks of `chunk_bytes`: large pages only behind large chunks.
fn hugetlb_for(wanted: Hugetlb, chunk_bytes: u64) -> Result<Hugetlb, Refusal> {
    match wanted {
        Hugetlb::Yes if chunk_bytes != LARGE_PAGE_SIZE => Err(Refusal::HugetlbChunk(chunk_bytes)),
        Hugetlb::Auto if chunk_bytes != LARGE_PAGE_SIZE => Ok(Hugetlb::No),
        other => Ok(other),
    }
}
