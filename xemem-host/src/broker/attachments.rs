//! Access, attachments and leases: the importer's side.
//!
//! A *grant* is what an apid stands for: one segment, one connection. Once
//! attached it has a policy. A reader of [`Policy::Every`] has a queue: the
//! broker leases each generation for it as soon as the doorbell rings, and has
//! the exporter's kernel keep unleased ones for that long (`retain`). A reader
//! that does not empty its queue gets no more leases: generations it misses
//! then show as gaps in their numbers.

use super::leases::{ATTEMPTS, Leases, Words};
use super::segments::Body;
use super::signals::Subscription;
use super::{
    Broker, Effect, Env, Fds, MAX_APIDS, MAX_LEASES, Making, PeerId, Refusal, Table, Ticket,
};
use crate::wire::{
    Access, ApId, Attached, EndReason, LeaseReply, Policy, Reply, SegId, Target, Want,
};
use enclave_abi::arena::GenerationRecord;
use enclave_abi::lease::SLOTS;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};

/// What an apid stands for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Grant {
    pub(super) peer: PeerId,
    pub(super) segid: SegId,
    pub(super) access: Access,
    /// To an arena.
    attachment: Option<Attachment>,
    /// Pieces of a plain segment attached.
    pub(super) pieces: u32,
    /// To signals of a plain segment.
    pub(super) subscription: Option<Subscription>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Attachment {
    policy: Policy,
    /// Leased for this reader, not yet asked for; [`Policy::Every`] only.
    queue: VecDeque<u64>,
    /// Largest generation that ever was in the queue.
    queued: u64,
    /// Leased and given to this reader.
    delivered: BTreeSet<u64>,
}

impl Attachment {
    fn leases(&self) -> usize {
        self.queue.len() + self.delivered.len()
    }

    fn is_stuck(&self) -> bool {
        self.leases() >= SLOTS
    }
}

impl Grant {
    pub(super) fn is_attached(&self) -> bool {
        self.attachment.is_some() || self.pieces > 0
    }

    /// Of an arena that is attached.
    pub(super) fn policy(&self) -> Option<Policy> {
        self.attachment.as_ref().map(|attached| attached.policy)
    }

    /// Whether there must be an eventfd for it.
    pub(super) fn waits(&self) -> bool {
        self.attachment.is_some() || self.subscription.is_some()
    }

    #[cfg(test)]
    pub(super) fn peer(&self) -> PeerId {
        self.peer
    }

    #[cfg(test)]
    pub(super) fn segid(&self) -> SegId {
        self.segid
    }
}

impl Broker {
    pub(super) fn get(
        &mut self,
        peer: PeerId,
        segid: SegId,
        access: Access,
    ) -> Result<Reply, Refusal> {
        let segment = self.segments.get(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        let known = self.peers.get(&peer).ok_or(Refusal::NoSegment(segid))?;
        let is_arena = segment.arena().is_some();
        if is_arena && access == Access::ReadWrite {
            return Err(Refusal::ReadOnly);
        }
        if !segment.permit.allows(&known.credentials, access) {
            let uid = known.credentials.uid;
            return Err(Refusal::Permission { uid, segid });
        }
        // Without any writer in the permit no writable descriptor is kept.
        if access == Access::ReadWrite && !segment.permit.has_writers() {
            return Err(Refusal::ReadOnly);
        }
        match segment.end_reason {
            _ if segment.can_be_got() => {}
            Some(reason) => return Err(Refusal::SegmentEnded(segid, reason)),
            None => return Err(Refusal::SegmentState(segid)),
        }
        if known.apids.len() >= MAX_APIDS {
            let (what, limit) = (Table::Apids, MAX_APIDS);
            return Err(Refusal::Limit { what, limit });
        }
        let apid = ApId(self.next_id());
        self.grants.insert(
            apid,
            Grant {
                peer,
                segid,
                access,
                attachment: None,
                pieces: 0,
                subscription: None,
            },
        );
        if let Some(segment) = self.segments.get_mut(&segid) {
            segment.apids.insert(apid);
        }
        if let Some(known) = self.peers.get_mut(&peer) {
            known.apids.insert(apid);
        }
        Ok(Reply::Granted { apid })
    }

    pub(super) fn attach(
        &mut self,
        peer: PeerId,
        seq: u32,
        apid: ApId,
        policy: Policy,
    ) -> Result<(), Refusal> {
        let grant = self.grant(peer, apid)?;
        if grant.is_attached() {
            return Err(Refusal::Attached(apid));
        }
        let segid = grant.segid;
        if let Some(segment) = self.segments.get(&segid) {
            segment.arena().ok_or(Refusal::NotArena(segid))?;
            if let Some(reason) = segment.end_reason.filter(|_| !segment.is_retained()) {
                return Err(Refusal::SegmentEnded(segid, reason));
            }
        }
        if let Some(grant) = self.grants.get_mut(&apid) {
            grant.attachment = Some(Attachment {
                policy,
                queue: VecDeque::new(),
                queued: 0,
                delivered: BTreeSet::new(),
            });
        }
        let making = Making::Notify(apid);
        let ticket = Ticket { peer, seq, making };
        let target = Target::Access(apid);
        self.effects.push(Effect::MakeNotify { ticket, target });
        Ok(())
    }

    pub(super) fn notify_made(
        &mut self,
        peer: PeerId,
        seq: u32,
        apid: ApId,
        result: Result<u64, Errno>,
        env: Env<'_>,
    ) {
        let Some(grant) = self.grants.get_mut(&apid) else {
            return;
        };
        let segid = grant.segid;
        if let Err(errno) = result {
            grant.attachment = None;
            let operation = super::Operation::MakeNotify;
            self.refuse(peer, seq, &Refusal::System(operation, errno));
            return;
        }
        let Some(segment) = self.segments.get(&segid) else {
            return;
        };
        let Some(arena) = segment.arena() else {
            return;
        };
        // A new reader begins with the newest generation there is, not with
        // whatever older ones happen to be held.
        if let Some(attachment) = &mut grant.attachment {
            let newest = arena.leases.newest(arena.words(env), 0);
            attachment.queued = newest.map_or(0, |newest| newest.saturating_sub(1));
        }
        let attached = Attached {
            segid,
            size_bytes: arena.geometry.size_bytes,
            chunk_bytes: arena.geometry.chunk_bytes,
            nr_banks: arena.geometry.nr_banks,
            page_bytes: segment.page_bytes,
        };
        let fds = Fds::Attachment(segid, apid);
        self.reply_with(peer, seq, Reply::Attached(attached), fds);
        self.advance(segid, env);
    }

    pub(super) fn lease(
        &mut self,
        peer: PeerId,
        apid: ApId,
        want: Want,
        env: Env<'_>,
    ) -> Result<LeaseReply, Refusal> {
        let segid = self.grant(peer, apid)?.segid;
        self.advance(segid, env);
        let grant = self.grants.get(&apid).ok_or(Refusal::NoAccess(apid))?;
        let policy = grant.attachment.as_ref().map(|attached| attached.policy);
        let after = match want {
            Want::Latest => 0,
            Want::After(generation) => generation,
            Want::Exactly(generation) => {
                return self.lease_exactly(peer, apid, segid, generation, env);
            }
        };
        let policy = policy.ok_or(Refusal::NotAttached(apid))?;
        for _ in 0..ATTEMPTS {
            let found = match policy {
                Policy::Every => self.next_in_queue(peer, apid, segid, env),
                Policy::Latest => self.lease_newest(peer, apid, segid, after, env)?,
            };
            let Some(generation) = found else {
                break;
            };
            if let Some(record) = self.record(segid, generation, env) {
                return Ok(LeaseReply::Granted { generation, record });
            }
            // Its record was written over before we came to read it: it is missed.
            self.release_lease(peer, apid, generation, env)?;
        }
        let segment = self.segments.get(&segid);
        Ok(ended_or_none(
            segment.and_then(|segment| segment.end_reason),
        ))
    }

    /// The record of a generation that a reader has leased.
    fn record(&mut self, segid: SegId, generation: u64, env: Env<'_>) -> Option<GenerationRecord> {
        let arena = self.segments.get_mut(&segid)?.arena_mut()?;
        let read = || env.memory.record(segid, generation);
        arena.leases.record(generation, read)
    }

    /// Takes the oldest generation out of a reader's queue. What the kernel
    /// has taken away since is a gap for this reader.
    fn next_in_queue(
        &mut self,
        peer: PeerId,
        apid: ApId,
        segid: SegId,
        env: Env<'_>,
    ) -> Option<u64> {
        loop {
            let attachment = self.grants.get_mut(&apid)?.attachment.as_mut()?;
            let next = attachment.queue.pop_front()?;
            let had_before = attachment.delivered.contains(&next);
            let arena = self.segments.get(&segid)?.arena()?;
            let is_held = arena.leases.is_held(arena.words(env), next);
            if is_held && !had_before {
                attachment.delivered.insert(next);
                return Some(next);
            }
            // One lease is enough for a reader that asked for it by number.
            self.give_back(peer, segid, next, env);
            if is_held {
                return Some(next);
            }
        }
    }

    fn lease_newest(
        &mut self,
        peer: PeerId,
        apid: ApId,
        segid: SegId,
        after: u64,
        env: Env<'_>,
    ) -> Result<Option<u64>, Refusal> {
        let newest = |broker: &Self| {
            let arena = broker.segments.get(&segid)?.arena()?;
            arena.leases.newest(arena.words(env), after)
        };
        let Some(expected) = newest(self) else {
            return Ok(None);
        };
        if self.has_delivered(apid, expected) {
            return Ok(Some(expected));
        }
        self.take_lease(peer, apid, segid, env, |leases, words| {
            leases.lease_newest(words, after)
        })
    }

    /// Leases `generation` and no other, whatever the reader's policy.
    fn lease_exactly(
        &mut self,
        peer: PeerId,
        apid: ApId,
        segid: SegId,
        generation: u64,
        env: Env<'_>,
    ) -> Result<LeaseReply, Refusal> {
        let grant = self.grants.get(&apid).ok_or(Refusal::NoAccess(apid))?;
        if grant.attachment.is_none() {
            return Err(Refusal::NotAttached(apid));
        }
        if !self.has_delivered(apid, generation) {
            let taken = self.take_lease(peer, apid, segid, env, |leases, words| {
                leases.lease(words, generation).then_some(generation)
            })?;
            taken.ok_or(Refusal::NotHeld(generation))?;
        }
        let Some(record) = self.record(segid, generation, env) else {
            self.release_lease(peer, apid, generation, env)?;
            return Err(Refusal::NotHeld(generation));
        };
        Ok(LeaseReply::Granted { generation, record })
    }

    /// Whether this reader holds `generation` already: one lease is enough.
    fn has_delivered(&self, apid: ApId, generation: u64) -> bool {
        let attachment = self.grants.get(&apid);
        let attachment = attachment.and_then(|grant| grant.attachment.as_ref());
        attachment.is_some_and(|attached| attached.delivered.contains(&generation))
    }

    /// Adds a lease of `peer` by `lease`, within its limit. The kernel is told
    /// before to keep one generation less for nobody, so that the lease does
    /// not cost a publish.
    fn take_lease(
        &mut self,
        peer: PeerId,
        apid: ApId,
        segid: SegId,
        env: Env<'_>,
        lease: impl FnOnce(&mut Leases, Words<'_>) -> Option<u64>,
    ) -> Result<Option<u64>, Refusal> {
        let nr_leases = self.peers.get(&peer).map_or(0, |known| known.leases);
        if nr_leases >= MAX_LEASES {
            let (what, limit) = (Table::Leases, MAX_LEASES);
            return Err(Refusal::Limit { what, limit });
        }
        self.tell_kernel(segid, 1, env);
        let segment = self.segments.get_mut(&segid);
        let arena = segment.and_then(|segment| segment.arena_mut());
        let leased = arena.and_then(|arena| {
            let words = arena.words(env);
            lease(&mut arena.leases, words)
        });
        if let Some(generation) = leased {
            if let Some(known) = self.peers.get_mut(&peer) {
                known.leases += 1;
            }
            let grant = self.grants.get_mut(&apid);
            if let Some(attached) = grant.and_then(|grant| grant.attachment.as_mut()) {
                attached.delivered.insert(generation);
            }
        }
        self.tell_kernel(segid, 0, env);
        Ok(leased)
    }

    pub(super) fn release_lease(
        &mut self,
        peer: PeerId,
        apid: ApId,
        generation: u64,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        self.grant(peer, apid)?;
        let grant = self.grants.get_mut(&apid).ok_or(Refusal::NoAccess(apid))?;
        let attachment = grant.attachment.as_mut();
        let attachment = attachment.ok_or(Refusal::NotAttached(apid))?;
        if !attachment.delivered.remove(&generation) {
            return Err(Refusal::NotLeased { apid, generation });
        }
        let segid = grant.segid;
        self.give_back(peer, segid, generation, env);
        self.advance(segid, env);
        Ok(())
    }

    pub(super) fn detach(&mut self, peer: PeerId, apid: ApId, env: Env<'_>) -> Result<(), Refusal> {
        if !self.grant(peer, apid)?.is_attached() {
            return Err(Refusal::NotAttached(apid));
        }
        match self.grants.get_mut(&apid) {
            Some(grant) if grant.pieces > 0 => grant.pieces -= 1,
            _ => self.end_attachment(apid, env),
        }
        Ok(())
    }

    pub(super) fn release(
        &mut self,
        peer: PeerId,
        apid: ApId,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        self.grant(peer, apid)?;
        self.release_grant(apid, env);
        Ok(())
    }

    /// Takes back everything an apid stands for.
    pub(super) fn release_grant(&mut self, apid: ApId, env: Env<'_>) {
        self.end_attachment(apid, env);
        let Some(grant) = self.grants.remove(&apid) else {
            return;
        };
        if grant.subscription.is_some() {
            let target = Target::Access(apid);
            self.effects.push(Effect::DropNotify(target));
            env.memory.renew_subscribers(grant.segid);
        }
        if let Some(known) = self.peers.get_mut(&grant.peer) {
            known.apids.remove(&apid);
        }
        if let Some(segment) = self.segments.get_mut(&grant.segid) {
            segment.apids.remove(&apid);
        }
        self.forget_if_unused(grant.segid);
    }

    fn end_attachment(&mut self, apid: ApId, env: Env<'_>) {
        let Some(grant) = self.grants.get_mut(&apid) else {
            return;
        };
        let (peer, segid) = (grant.peer, grant.segid);
        let Some(attachment) = grant.attachment.take() else {
            return;
        };
        for generation in attachment.queue.into_iter().chain(attachment.delivered) {
            self.give_back(peer, segid, generation, env);
        }
        self.effects.push(Effect::DropNotify(Target::Access(apid)));
        self.drop_bell(segid, apid);
        self.advance(segid, env);
    }

    fn give_back(&mut self, peer: PeerId, segid: SegId, generation: u64, env: Env<'_>) {
        let latest = env.memory.counters(segid).latest_generation;
        let segment = self.segments.get_mut(&segid);
        if let Some(arena) = segment.and_then(|segment| segment.arena_mut()) {
            let words = arena.words(env);
            let oldest_kept = arena.oldest_kept(latest);
            arena.leases.release(words, generation, oldest_kept);
        }
        if let Some(known) = self.peers.get_mut(&peer) {
            known.leases = known.leases.saturating_sub(1);
        }
    }

    /// Leases new generations of `segid` for all readers that want each one,
    /// tells the exporter's kernel how many to keep, and frees what they have
    /// all had.
    pub(super) fn advance(&mut self, segid: SegId, env: Env<'_>) {
        let Some(segment) = self.segments.get_mut(&segid) else {
            return;
        };
        if segment.page_bytes == 0 {
            return;
        }
        let Body::Arena(arena) = &mut segment.body else {
            return;
        };
        let words = arena.words(env);
        // Up to which generation every reader that keeps up has had each one.
        let mut had: Option<u64> = None;
        for apid in &segment.apids {
            let Some(grant) = self.grants.get_mut(apid) else {
                continue;
            };
            let Some(attachment) = grant.attachment.as_mut() else {
                continue;
            };
            let Some(peer) = self.peers.get_mut(&grant.peer) else {
                continue;
            };
            if attachment.policy != Policy::Every {
                continue;
            }
            for generation in arena.leases.after(words, attachment.queued) {
                if attachment.is_stuck() || peer.leases >= MAX_LEASES {
                    break;
                }
                attachment.queued = generation;
                if !arena.leases.lease(words, generation) {
                    continue;
                }
                let record = || env.memory.record(segid, generation);
                if arena.leases.record(generation, record).is_none() {
                    arena.leases.release(words, generation, 0);
                } else {
                    attachment.queue.push_back(generation);
                    peer.leases += 1;
                }
            }
            if !attachment.is_stuck() && peer.leases < MAX_LEASES {
                let least = had.map_or(attachment.queued, |had| had.min(attachment.queued));
                had = Some(least);
            }
        }
        arena.queueing = had.is_some();
        self.tell_kernel(segid, 0, env);
        self.drop_superseded(segid, had, env);
    }

    /// The grant if it belongs to this very connection.
    pub(super) fn grant(&self, peer: PeerId, apid: ApId) -> Result<&Grant, Refusal> {
        let grant = self.grants.get(&apid);
        grant
            .filter(|grant| grant.peer == peer)
            .ok_or(Refusal::NoAccess(apid))
    }
}

fn ended_or_none(reason: Option<EndReason>) -> LeaseReply {
    reason.map_or(LeaseReply::None, LeaseReply::Ended)
}
