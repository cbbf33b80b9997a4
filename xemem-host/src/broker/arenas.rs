//! Enclaves and their arenas: the exporter's side.
//!
//! An arena keeps the slot words of its enclave's lease page until it ends;
//! from then on the slot may belong to another arena. What arenas and plain
//! segments have in common is in [`super::segments`].

use super::bells::Bells;
use super::doorbells::Meter;
use super::leases::{Leases, Words};
use super::names::Name;
use super::permits::Permit;
use super::segments::{Body, Segment};
use super::{Broker, Effect, Enclave, EnclaveId, Env, Fds, Making, Peer, PeerId, Refusal, Ticket};
use crate::wire::{ApId, ArenaMake, EndReason, Hugetlb, Reply, Role, SegId, SegmentState, Target};
use enclave_abi::addr::LARGE_PAGE_SIZE;
use enclave_abi::arena::{Geometry, NAME_BYTES};
use enclave_abi::lease::MAX_ARENAS;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What only arenas have.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Arena {
    pub(super) enclave: EnclaveId,
    pub(super) slot: u32,
    #[serde(with = "super::record::geometry")]
    pub(super) geometry: Geometry,
    pub(super) leases: Leases,
    /// Newest generations that stay although nobody leased them, at least 1.
    pub(super) retain: u32,
    /// Pages asked for.
    pub(super) hugetlb: Hugetlb,
    /// Whether readers want each generation and keep up.
    pub(super) queueing: bool,
    /// Of importers in enclaves.
    pub(super) bells: Bells,
}

impl Arena {
    pub(super) fn words<'a>(&self, env: Env<'a>) -> Words<'a> {
        Words {
            memory: env.memory,
            enclave: self.enclave,
            slot: self.slot,
        }
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

    /// Notes what `peer` says of itself. The name of an enclave that another
    /// user has registered is not to be had, so that lists do not deceive.
    pub(super) fn for_enclave(
        &mut self,
        peer: PeerId,
        name: &[u8; NAME_BYTES],
    ) -> Result<(), Refusal> {
        let name = Name::required(name)?;
        let exporter = self.peers.get(&peer).ok_or(Refusal::Role)?;
        if exporter.role != Some(Role::Exporter) {
            return Err(Refusal::Role);
        }
        if exporter.enclave.is_some() || exporter.serves.is_some() {
            return Err(Refusal::Registered);
        }
        let uid = exporter.credentials.uid;
        let is_another = |other: &Peer| {
            let enclave = other.enclave.and_then(|id| self.enclaves.get(&id));
            let has_it = enclave.is_some_and(|enclave| enclave.name == name);
            has_it && other.credentials.uid != uid
        };
        if !self.is_privileged(uid) && self.peers.values().any(is_another) {
            return Err(Refusal::NameTaken);
        }
        if let Some(exporter) = self.peers.get_mut(&peer) {
            exporter.serves = Some(name);
        }
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
        let retain = Arena::checked_retain(make.retain, make.nr_banks)?;
        self.room_for_segment(owner_uid)?;
        let first_name = Name::optional(&make.name)?;
        let segid = SegId(self.next_id());
        if let Some(name) = first_name.clone() {
            self.names.take(name, segid)?;
        }
        let segment = Segment {
            body: Body::Arena(Box::new(Arena {
                enclave: id,
                slot: make.slot,
                geometry,
                leases: Leases::default(),
                retain,
                hugetlb,
                queueing: false,
                bells: Bells::default(),
            })),
            exporter: peer,
            enclave_name: Some(enclave_name),
            nr_names: usize::from(first_name.is_some()),
            first_name,
            permit: Permit::of_arena(owner_uid, make.reader_gid),
            page_bytes: 0,
            state: SegmentState::Making,
            end_reason: None,
            retained_until_ms: None,
            made_ms: env.now_ms,
            apids: BTreeSet::new(),
            meter: Meter::new(self.settings.rings_per_second, env.now_ms),
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
        // Retained arenas may be what there is too little memory for.
        let uid = segment.permit.owner_uid;
        let Some(arena) = segment.arena() else {
            return;
        };
        let (object_bytes, wanted) = (arena.geometry.object_bytes, arena.hugetlb);
        let large = LARGE_PAGE_SIZE;
        let short = match result {
            Err(Errno::NOMEM) => true,
            Ok(page_bytes) => wanted != Hugetlb::No && page_bytes != large,
            Err(_) => false,
        };
        if short && self.give_up_one(uid, wanted != Hugetlb::No).is_some() {
            let making = Making::Arena(segid);
            self.effects.push(Effect::DropArena(segid));
            self.effects.push(Effect::MakeArena {
                ticket: Ticket { peer, seq, making },
                segid,
                object_bytes,
                hugetlb: wanted,
            });
            return;
        }
        let Some(segment) = self.segments.get_mut(&segid) else {
            return;
        };
        match result {
            Ok(page_bytes) => {
                segment.page_bytes = u32::try_from(page_bytes).unwrap_or(0);
                let Some(arena) = segment.arena() else {
                    return;
                };
                let (enclave, slot) = (arena.enclave, arena.slot);
                env.memory.clear(enclave, slot);
                env.memory.set_retain(enclave, slot, arena.retain, 0);
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

    pub(super) fn arena_end(
        &mut self,
        peer: PeerId,
        segid: SegId,
        reason: EndReason,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        let segment = self.exported_by(peer, segid)?;
        segment.arena().ok_or(Refusal::NotArena(segid))?;
        // A segment that was removed meanwhile has ended already: fine.
        if segment.end_reason.is_none() {
            self.end_segment(segid, reason, env);
        }
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

    /// The doorbell of `segid` rang `rings` times since it was last read.
    pub fn doorbell(&mut self, segid: SegId, rings: u64, env: Env<'_>) {
        let Some(segment) = self.segments.get_mut(&segid) else {
            return;
        };
        if !segment.is_live() || segment.arena().is_none() {
            return;
        }
        if !segment.meter.take(rings, env.now_ms) {
            self.throttled = self.throttled.saturating_add(1);
            self.effects.push(Effect::PauseDoorbell(segid));
        }
        // The others have been told by the exporter.
        let rung = |apid: &ApId| segment.arena().is_some_and(|a| a.bells.rings(*apid));
        let apids: Vec<ApId> = segment.apids.iter().filter(|a| !rung(a)).copied().collect();
        self.advance(segid, env);
        let attached = |apid: &ApId| self.grants.get(apid).is_some_and(super::Grant::is_attached);
        let attached: Vec<ApId> = apids.into_iter().filter(attached).collect();
        for apid in attached {
            let target = Target::Access(apid);
            self.effects.push(Effect::Notify { target, count: 1 });
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
