//! The version store: which generations of an arena stay, and which there are.
//!
//! A generation stays while a reader holds it, and as long as it is one of the
//! newest `retain`, held or not. The exporter's kernel takes back the others;
//! the broker tells it, in the `retain` word, how many published ones to spare.
//! Retained generations give way to leased ones: with every spare bank in use
//! a lease would otherwise cost the next publish. Readers that want each
//! generation need all of them kept until the broker has leased them; then the
//! broker itself frees what they all have had. A kernel whose policy is to wait
//! is told to take back none at all meanwhile: however late the broker is, it
//! waits rather than lose one.

use super::arenas::Arena;
use super::attachments::Grant;
use super::{Broker, Env, PeerId, Refusal, count};
use crate::wire::{Access, Generation, Reply, SegId};
use enclave_abi::syscall::POLICY_BLOCK;

impl Arena {
    /// Generations that can be held at once.
    fn spare(&self) -> u32 {
        self.geometry.nr_banks.saturating_sub(1)
    }

    /// The oldest generation that stays although nobody holds it, when
    /// `latest` is the newest.
    pub(super) fn oldest_kept(&self, latest: u64) -> u64 {
        latest.saturating_sub(u64::from(self.retain.saturating_sub(1)))
    }

    /// How many published generations the kernel spares, with `leased` words
    /// in the hands of readers.
    fn spared(&self, leased: u32, policy: u32) -> u32 {
        if self.loses_none(policy) {
            self.spare().saturating_add(1)
        } else if self.queueing {
            self.spare().max(1)
        } else {
            self.retain.min(self.spare().saturating_sub(leased)).max(1)
        }
    }

    /// Whether the kernel takes back nothing at all: it waits where its words
    /// are full, and readers want each generation. With one spare bank nothing
    /// could be published beside a newest generation that everybody has had.
    fn loses_none(&self, policy: u32) -> bool {
        self.queueing && policy == POLICY_BLOCK && self.spare() > 1
    }

    /// How many generations may be held when the kernel spares all published
    /// ones: always so few that the next publish finds room.
    fn most_held(&self, leased: u32, policy: u32) -> u32 {
        let takes_none = leased > 0 || self.loses_none(policy);
        self.spare().saturating_sub(u32::from(takes_none)).max(1)
    }

    /// `retain` for an arena of `nr_banks`; 0 means 1.
    pub(super) fn checked_retain(wanted: u32, nr_banks: u32) -> Result<u32, Refusal> {
        let most = nr_banks.saturating_sub(1);
        match wanted {
            0 => Ok(1),
            wanted if wanted <= most => Ok(wanted),
            wanted => Err(Refusal::Retain { wanted, most }),
        }
    }
}

impl Broker {
    /// Tells the exporter's kernel how many generations to spare, when
    /// `coming` more are about to be leased, and how many readers there are.
    pub(super) fn tell_kernel(&self, segid: SegId, coming: u32, env: Env<'_>) {
        let Some(segment) = self.segments.get(&segid) else {
            return;
        };
        let Some(arena) = segment.arena() else {
            return;
        };
        if segment.end_reason.is_some() {
            return;
        }
        let is_reader = |apid: &&super::ApId| {
            let grant = self.grants.get(*apid);
            grant.is_some_and(Grant::is_attached)
        };
        let readers = count(segment.apids.iter().filter(is_reader).count());
        let leased = count(arena.leases.count()).saturating_add(coming);
        let words = arena.words(env);
        let policy = env.memory.counters(segid).policy;
        let told = arena.spared(leased, policy) | self.bell_flags(segid);
        words
            .memory
            .set_retain(words.enclave, words.slot, told, readers);
    }

    /// Frees what readers of each generation have all `had`.
    pub(super) fn drop_superseded(&self, segid: SegId, had: Option<u64>, env: Env<'_>) {
        let Some(segment) = self.segments.get(&segid) else {
            return;
        };
        if segment.end_reason.is_some() {
            return;
        }
        if let Some((arena, had)) = segment.arena().zip(had) {
            let policy = env.memory.counters(segid).policy;
            let most = arena.most_held(count(arena.leases.count()), policy);
            let words = arena.words(env);
            arena.leases.drop_superseded(words, had, arena.retain, most);
        }
    }

    pub(super) fn generations(
        &self,
        peer: PeerId,
        segid: SegId,
        env: Env<'_>,
    ) -> Result<Reply, Refusal> {
        let segment = self.segments.get(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        let known = self.credentials(peer).ok_or(Refusal::NoSegment(segid))?;
        if !segment.permit.allows(known, Access::ReadOnly) {
            let uid = known.uid;
            return Err(Refusal::Permission { uid, segid });
        }
        let arena = segment.arena().ok_or(Refusal::NotArena(segid))?;
        let found = arena.leases.after(arena.words(env), 0);
        let of = |generation| Generation {
            generation,
            is_leased: arena.leases.has_readers(generation),
            record: env.memory.record(segid, generation).unwrap_or_default(),
        };
        Ok(Reply::Generations(found.into_iter().map(of).collect()))
    }

    pub(super) fn retain(
        &mut self,
        peer: PeerId,
        segid: SegId,
        wanted: u32,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        let segment = self.segments.get(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        let known = self.credentials(peer).ok_or(Refusal::NoSegment(segid))?;
        if !segment.permit.is_owner(known) {
            let uid = known.uid;
            return Err(Refusal::Permission { uid, segid });
        }
        let arena = segment.arena().ok_or(Refusal::NotArena(segid))?;
        if let Some(reason) = segment.end_reason {
            return Err(Refusal::SegmentEnded(segid, reason));
        }
        let retain = Arena::checked_retain(wanted, arena.geometry.nr_banks)?;
        let segment = self.segments.get_mut(&segid);
        if let Some(arena) = segment.and_then(|segment| segment.arena_mut()) {
            arena.retain = retain;
        }
        self.advance(segid, env);
        Ok(())
    }
}
