//! Segments of both kinds: names, ends, lists.
//!
//! The state of a segment is drawn in [`super`]. What only arenas do is in
//! [`super::arenas`], what only plain segments do in [`super::plain`] and
//! [`super::signals`].

use super::arenas::Arena;
use super::doorbells::Meter;
use super::names::{NAMES_PER_SEGMENT, Name};
use super::permits::Permit;
use super::plain::Plain;
use super::{
    Broker, Effect, Env, MAX_SEGMENTS, MAX_SEGMENTS_PER_USER, Making, PeerId, Refusal, Table,
    Ticket, count,
};
use crate::wire::{
    ApId, EndReason, LIST_PAGE, Reply, SegId, SegmentInfo, SegmentKind, SegmentState, Target,
    WAIT_END,
};
use enclave_abi::arena::NAME_BYTES;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a segment is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Body {
    Arena(Box<Arena>),
    Plain(Plain),
}

/// An exported segment.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Segment {
    pub(super) body: Body,
    pub(super) exporter: PeerId,
    pub(super) enclave_name: Option<Name>,
    pub(super) first_name: Option<Name>,
    pub(super) nr_names: usize,
    pub(super) permit: Permit,
    /// 0 until there is an object.
    pub(super) page_bytes: u32,
    pub(super) state: SegmentState,
    pub(super) end_reason: Option<EndReason>,
    /// When it will be retained no longer, if it is.
    pub(super) retained_until_ms: Option<u64>,
    pub(super) made_ms: u64,
    /// Apids granted for it, attached or not.
    pub(super) apids: BTreeSet<ApId>,
    /// Of its doorbell, or of its signals. Begins anew with each broker.
    #[serde(skip)]
    pub(super) meter: Meter,
}

impl Segment {
    pub(super) fn is_live(&self) -> bool {
        self.state == SegmentState::Live
    }

    pub(super) fn paused_until(&self) -> Option<u64> {
        self.meter.paused_until()
    }

    pub(super) fn arena(&self) -> Option<&Arena> {
        match &self.body {
            Body::Arena(arena) => Some(arena),
            Body::Plain(_) => None,
        }
    }

    pub(super) fn arena_mut(&mut self) -> Option<&mut Arena> {
        match &mut self.body {
            Body::Arena(arena) => Some(arena),
            Body::Plain(_) => None,
        }
    }

    pub(super) fn plain(&self) -> Option<&Plain> {
        match &self.body {
            Body::Arena(_) => None,
            Body::Plain(plain) => Some(plain),
        }
    }

    pub(super) fn plain_mut(&mut self) -> Option<&mut Plain> {
        match &mut self.body {
            Body::Arena(_) => None,
            Body::Plain(plain) => Some(plain),
        }
    }
}

impl Broker {
    /// Makes sure that there may be one more segment of `owner_uid`: retained
    /// ones give way.
    pub(super) fn room_for_segment(&mut self, owner_uid: u32) -> Result<(), Refusal> {
        loop {
            match self.one_more_segment(owner_uid) {
                Err(_) if self.give_up_one(owner_uid, false).is_some() => {}
                other => return other,
            }
        }
    }

    fn one_more_segment(&self, owner_uid: u32) -> Result<(), Refusal> {
        let of_user = |segment: &&Segment| segment.permit.owner_uid == owner_uid;
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

    pub(super) fn mapped(&mut self, peer: PeerId, seq: u32, segid: SegId) -> Result<(), Refusal> {
        let segment = self.exported_by(peer, segid)?;
        if segment.state != SegmentState::Making {
            return Err(Refusal::SegmentState(segid));
        }
        let making = Making::Sealed(segid);
        let ticket = Ticket { peer, seq, making };
        let writable = segment.permit.has_writers();
        match &segment.body {
            Body::Arena(_) => self.effects.push(Effect::SealArena { ticket, segid }),
            // There is nothing to seal.
            Body::Plain(plain) if plain.size_bytes == 0 => self.go_live(peer, seq, segid),
            Body::Plain(_) => self.effects.push(Effect::SealSegment {
                ticket,
                segid,
                writable,
            }),
        }
        Ok(())
    }

    pub(super) fn sealed(
        &mut self,
        peer: PeerId,
        seq: u32,
        segid: SegId,
        result: Result<u64, Errno>,
        env: Env<'_>,
    ) {
        let Err(errno) = result else {
            self.go_live(peer, seq, segid);
            return;
        };
        let plain = self.segments.get(&segid).and_then(Segment::plain);
        let operation = match plain {
            Some(_) => super::Operation::SealSegment,
            None => super::Operation::SealArena,
        };
        // Half sealed is no state to go on from.
        self.end_segment(segid, EndReason::Removed, env);
        self.refuse(peer, seq, &Refusal::System(operation, errno));
    }

    fn go_live(&mut self, peer: PeerId, seq: u32, segid: SegId) {
        if let Some(segment) = self.segments.get_mut(&segid) {
            segment.state = SegmentState::Live;
        }
        self.effects.push(Effect::DropOpen(segid));
        self.reply(peer, seq, Reply::Ok);
        self.wake_lookups(segid);
    }

    pub(super) fn name(
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
        if !segment.permit.is_owner(credentials) {
            let uid = credentials.uid;
            return Err(Refusal::Permission { uid, segid });
        }
        match segment.end_reason {
            Some(_) if segment.is_retained() => self.evict(segid),
            Some(reason) => return Err(Refusal::SegmentEnded(segid, reason)),
            None => self.end_segment(segid, EndReason::Removed, env),
        }
        Ok(())
    }

    /// Ends a segment once: its names are free, and whoever waits is told. Of
    /// an arena, queues what readers of each generation still may get, cuts it
    /// off the lease page and retains it if there is anything to read; of a
    /// plain segment, hands out pending signals.
    pub(super) fn end_segment(&mut self, segid: SegId, reason: EndReason, env: Env<'_>) {
        self.advance(segid, env);
        let latest = env.memory.counters(segid).latest_generation;
        let Some(segment) = self.segments.get_mut(&segid) else {
            return;
        };
        if segment.end_reason.is_some() {
            return;
        }
        if let Some(arena) = segment.arena_mut() {
            let record = env.memory.record(segid, latest);
            let readable = record.map(|_| latest).filter(|&latest| latest > 0);
            arena.leases.freeze(arena.words(env), readable);
        }
        let segment = self.segments.get(&segid);
        let retain = segment.is_some_and(|s| self.is_worth_retaining(s, reason, env));
        let Some(segment) = self.segments.get_mut(&segid) else {
            return;
        };
        segment.end_reason = Some(reason);
        segment.state = SegmentState::Ended;
        if retain {
            segment.state = SegmentState::Retained;
            let until = env.now_ms.saturating_add(self.settings.retention.for_ms);
            segment.retained_until_ms = Some(until);
            self.names.retire(segid);
        } else {
            self.names.free(segid);
        }
        let _ = segment.meter.resume(None);
        let (exporter, apids) = (segment.exporter, segment.apids.clone());
        match &mut segment.body {
            Body::Arena(arena) => {
                let (enclave, slot) = (arena.enclave, arena.slot);
                if let Some(enclave) = self.enclaves.get_mut(&enclave) {
                    enclave.slots.remove(&slot);
                }
                self.effects.push(Effect::ClearSlot(enclave, slot));
                self.effects.push(Effect::PauseDoorbell(segid));
                for apid in apids {
                    let target = Target::Access(apid);
                    self.effects.push(Effect::Notify { target, count: 1 });
                }
            }
            Body::Plain(_) => {
                if let Some(peer) = self.peers.get_mut(&exporter) {
                    peer.segments.remove(&segid);
                }
                env.memory.renew_subscribers(segid);
                self.deliver(segid, WAIT_END);
                self.end_exporters_subscription(segid);
            }
        }
        self.forget_if_unused(segid);
        if retain {
            self.trim_retained(segid);
        }
    }

    /// Drops an ended segment that nobody has access to, nor may get.
    pub(super) fn forget_if_unused(&mut self, segid: SegId) {
        let unused =
            |segment: &Segment| segment.state == SegmentState::Ended && segment.apids.is_empty();
        if self.segments.get(&segid).is_some_and(unused) {
            let gone = self.segments.remove(&segid);
            let memory = gone.as_ref().and_then(Segment::plain);
            match memory.map(|plain| plain.size_bytes) {
                None => self.effects.push(Effect::DropArena(segid)),
                Some(0) => {}
                Some(_) => self.effects.push(Effect::DropSegment(segid)),
            }
            if memory.is_some() {
                self.effects.push(Effect::DropSignalPage(segid));
            }
        }
    }

    /// Ends the pauses of doorbells and signals that are over.
    pub(super) fn resume(&mut self, now_ms: u64) {
        let over = |(segid, segment): (&SegId, &mut Segment)| {
            let over = segment.meter.resume(Some(now_ms));
            over.then_some((*segid, segment.arena().is_some()))
        };
        let resumed: Vec<_> = self.segments.iter_unrecorded().filter_map(over).collect();
        for (segid, is_arena) in resumed {
            if is_arena {
                self.effects.push(Effect::ResumeDoorbell(segid));
            } else {
                self.deliver(segid, 0);
            }
        }
    }

    pub(super) fn list(&self, after: SegId, env: Env<'_>) -> Reply {
        let from = SegId(after.0.saturating_add(1));
        let infos = self.segments.range(from..).take(LIST_PAGE);
        Reply::Segments(infos.map(|(&id, seg)| self.info(id, seg, env)).collect())
    }

    pub(super) fn look_at(&self, segid: SegId, env: Env<'_>) -> Result<Reply, Refusal> {
        let segment = self.segments.get(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        Ok(Reply::Segments(vec![self.info(segid, segment, env)]))
    }

    fn info(&self, segid: SegId, segment: &Segment, env: Env<'_>) -> SegmentInfo {
        let attached = |apid: &&ApId| {
            self.grants
                .get(*apid)
                .is_some_and(super::Grant::is_attached)
        };
        let counters = env.memory.counters(segid);
        let name = segment.first_name.as_ref().map_or("", Name::as_str);
        let enclave = segment.enclave_name.as_ref().map_or("", Name::as_str);
        let (arena, plain) = (segment.arena(), segment.plain());
        let size_bytes = match &segment.body {
            Body::Arena(arena) => arena.geometry.size_bytes,
            Body::Plain(plain) => plain.size_bytes,
        };
        SegmentInfo {
            segid,
            kind: arena.map_or(SegmentKind::Plain, |_| SegmentKind::Arena),
            name: name.to_owned(),
            enclave: enclave.to_owned(),
            state: segment.state,
            end_reason: segment.end_reason,
            size_bytes,
            chunk_bytes: arena.map_or(0, |arena| arena.geometry.chunk_bytes),
            nr_banks: arena.map_or(0, |arena| arena.geometry.nr_banks),
            page_bytes: segment.page_bytes,
            latest_generation: counters.latest_generation,
            dropped: counters.dropped,
            discarded: counters.discarded,
            waited: counters.waited,
            policy: counters.policy,
            placement: counters.placement,
            high_water: arena.and_then(|arena| env.memory.frames_used(segid, &arena.geometry)),
            signals: plain.map_or(0, |plain| {
                let direct = env.memory.direct_signals(segid);
                plain.signals.saturating_add(direct)
            }),
            throttled: segment.meter.throttled(),
            readers: count(segment.apids.iter().filter(attached).count()),
            leases: arena.map_or(0, |arena| count(arena.leases.count())),
            owner_uid: segment.permit.owner_uid,
            gid: segment.permit.gid,
            mode: segment.permit.mode,
            age_ms: env.now_ms.saturating_sub(segment.made_ms),
            retain: arena.map_or(0, |arena| arena.retain),
            retained_ms: segment.retained_for_ms(env.now_ms),
        }
    }

    /// The segment if this very connection exports it.
    pub(super) fn exported_by(&self, peer: PeerId, segid: SegId) -> Result<&Segment, Refusal> {
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
