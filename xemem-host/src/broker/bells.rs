//! Bells: how an importer in an enclave hears of a publish without this broker.
//!
//! ```text
//!  importer: Bell ──► eventfd ──► KVM irqfd of its enclave
//!                        ▲
//!  exporter: Bells ──────┴──────► KVM ioeventfds of its enclave
//! ```
//!
//! The broker makes the eventfd, hands it to both, and is in no publish from
//! then on. When bells come or go it says so in the lease page; the exporter's
//! kernel has them fetched before its next publish. Until then, and for whoever
//! got no bell, the broker's own notify does the work. A number is used again
//! only when the exporter knows that its bell is gone: nobody's rings reach the
//! next one.
//!
//! An enclave needs a bell of its own, because its KVM takes from it. Readers on
//! Linux share one, the *crowd's*, which nobody takes from: a publish costs the
//! same for one reader and for many.
//!
//! Bells are for the arena's owner only: whoever holds an eventfd can hang as
//! much to it as it wants, at the cost of the publish that rings it.

use super::attachments::Grant;
use super::segments::Segment;
use super::{Broker, Effect, Env, Fds, Making, Operation, PeerId, Refusal, Ticket};
use crate::wire::{ApId, Policy, Reply, SegId, Target};
use enclave_abi::lease::bells::{CHANGED, QUIET, RING};
use enclave_abi::queue::doorbell::BELLS;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Whose bell it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Who {
    Importer(ApId),
    Crowd,
}

/// One bell of an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Bell {
    #[default]
    Free,
    /// Its eventfd is being made.
    Making(Who),
    /// The exporter has not fetched it yet.
    Made(Who),
    /// Each publish rings it.
    Rings(Who),
    /// It is nobody's any more; the exporter does not know that yet.
    Gone,
}

impl Bell {
    fn who(self) -> Option<Who> {
        match self {
            Self::Making(who) | Self::Made(who) | Self::Rings(who) => Some(who),
            Self::Free | Self::Gone => None,
        }
    }
}

/// The bells of one arena.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Bells {
    all: [Bell; BELLS],
    /// Who shares the crowd's bell; there is one as long as this has members.
    crowd: BTreeSet<ApId>,
}

impl Bells {
    fn index(&self, who: Who) -> Option<usize> {
        self.all.iter().position(|bell| bell.who() == Some(who))
    }

    /// Whose bell tells `apid`, if it had one.
    fn who(&self, apid: ApId) -> Who {
        if self.crowd.contains(&apid) {
            Who::Crowd
        } else {
            Who::Importer(apid)
        }
    }

    /// Whether each publish rings a bell of `apid`.
    pub(super) fn rings(&self, apid: ApId) -> bool {
        self.all.contains(&Bell::Rings(self.who(apid)))
    }

    /// Everybody whom the bell of `who` tells.
    fn hearers(&self, who: Who) -> Vec<ApId> {
        match who {
            Who::Importer(apid) => vec![apid],
            Who::Crowd => self.crowd.iter().copied().collect(),
        }
    }

    /// Gives the bell of `who` up; its number, if there is one.
    fn give_up(&mut self, who: Who) -> Option<usize> {
        let index = self.index(who)?;
        let bell = self.all.get_mut(index)?;
        *bell = match *bell {
            Bell::Rings(_) => Bell::Gone,
            _ => Bell::Free,
        };
        Some(index)
    }

    /// What the exporter's kernel has to know.
    fn flags(&self) -> u32 {
        let is_news = |bell: &Bell| matches!(bell, Bell::Made(_) | Bell::Gone);
        let changed = if self.all.iter().any(is_news) {
            CHANGED
        } else {
            0
        };
        let rings = |bell: &Bell| matches!(bell, Bell::Rings(_));
        changed | if self.all.iter().any(rings) { RING } else { 0 }
    }
}

/// A number as it goes over the wire.
fn number(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(u8::MAX)
}

impl Broker {
    /// The importer's side: a bell for an attachment, or a share in the crowd's.
    pub(super) fn bell(
        &mut self,
        peer: PeerId,
        seq: u32,
        (apid, shared): (ApId, bool),
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        let grant = self.grant(peer, apid)?;
        if !grant.is_attached() {
            return Err(Refusal::NotAttached(apid));
        }
        let segid = grant.segid;
        let uid = self.credentials(peer).map(|known| known.uid);
        let uid = uid.ok_or(Refusal::NoAccess(apid))?;
        let is_privileged = self.is_privileged(uid);
        let segment = self.segments.get_mut(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        if let Some(reason) = segment.end_reason {
            return Err(Refusal::SegmentEnded(segid, reason));
        }
        if segment.permit.owner_uid != uid && !is_privileged {
            return Err(Refusal::Permission { uid, segid });
        }
        let arena = segment.arena_mut().ok_or(Refusal::NotArena(segid))?;
        let bells = &mut arena.bells;
        if bells.crowd.contains(&apid) || bells.index(Who::Importer(apid)).is_some() {
            return Err(Refusal::Subscribed);
        }
        if shared && let Some(index) = bells.index(Who::Crowd) {
            if matches!(bells.all.get(index), Some(Bell::Making(_))) {
                return Err(Refusal::NoBell(segid));
            }
            bells.crowd.insert(apid);
            let fds = Fds::Bell(segid, number(index));
            self.reply_with(peer, seq, Reply::Bell, fds);
            self.tell_kernel(segid, 0, env);
            return Ok(());
        }
        let index = bells.all.iter().position(|bell| *bell == Bell::Free);
        let index = index.ok_or(Refusal::NoBell(segid))?;
        let who = if shared {
            bells.crowd.insert(apid);
            Who::Crowd
        } else {
            Who::Importer(apid)
        };
        if let Some(bell) = bells.all.get_mut(index) {
            *bell = Bell::Making(who);
        }
        let bell = number(index);
        let making = Making::Bell(segid, bell);
        let ticket = Ticket { peer, seq, making };
        self.effects.push(Effect::MakeBell {
            ticket,
            segid,
            bell,
        });
        Ok(())
    }

    pub(super) fn bell_made(
        &mut self,
        peer: PeerId,
        seq: u32,
        (segid, bell): (SegId, u8),
        result: Result<u64, Errno>,
        env: Env<'_>,
    ) {
        let Some(place) = self.bell_of(segid, bell) else {
            return;
        };
        let Bell::Making(who) = *place else {
            return;
        };
        match result {
            Ok(_) => {
                *place = Bell::Made(who);
                self.reply_with(peer, seq, Reply::Bell, Fds::Bell(segid, bell));
                self.tell_kernel(segid, 0, env);
            }
            Err(errno) => {
                *place = Bell::Free;
                if who == Who::Crowd
                    && let Some(arena) = self.segments.get_mut(&segid).and_then(Segment::arena_mut)
                {
                    arena.bells.crowd.clear();
                }
                let operation = Operation::MakeNotify;
                self.refuse(peer, seq, &Refusal::System(operation, errno));
            }
        }
    }

    fn bell_of(&mut self, segid: SegId, bell: u8) -> Option<&mut Bell> {
        let arena = self.segments.get_mut(&segid)?.arena_mut()?;
        arena.bells.all.get_mut(usize::from(bell))
    }

    /// The exporter's side: all bells that a publish has to ring, with those
    /// that are new. Who gets a bell by that is told once more: a publish that
    /// began before may not ring it.
    pub(super) fn bells(
        &mut self,
        peer: PeerId,
        seq: u32,
        segid: SegId,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        self.exported_by(peer, segid)?;
        let segment = self.segments.get_mut(&segid);
        let arena = segment.and_then(|segment| segment.arena_mut());
        let arena = arena.ok_or(Refusal::NotArena(segid))?;
        let (mut all, mut fresh, mut told) = (0_u16, 0_u16, Vec::new());
        for (index, bell) in arena.bells.all.iter_mut().enumerate() {
            match *bell {
                Bell::Free | Bell::Making(_) => {}
                Bell::Gone => *bell = Bell::Free,
                Bell::Rings(_) => all |= 1 << index,
                Bell::Made(who) => {
                    *bell = Bell::Rings(who);
                    all |= 1 << index;
                    fresh |= 1 << index;
                    told.push(who);
                }
            }
        }
        let told = told.into_iter().flat_map(|who| arena.bells.hearers(who));
        let told: Vec<ApId> = told.collect();
        let reply = Reply::Bells { all, fresh };
        self.reply_with(peer, seq, reply, Fds::Bells(segid, fresh));
        self.tell_kernel(segid, 0, env);
        for apid in told {
            let target = Target::Access(apid);
            self.effects.push(Effect::Notify { target, count: 1 });
        }
        Ok(())
    }

    /// The attachment of `apid` ends; what the kernel has to know then is told
    /// by the caller.
    pub(super) fn drop_bell(&mut self, segid: SegId, apid: ApId) {
        let segment = self.segments.get_mut(&segid);
        let Some(arena) = segment.and_then(|segment| segment.arena_mut()) else {
            return;
        };
        let who = arena.bells.who(apid);
        arena.bells.crowd.remove(&apid);
        if who == Who::Crowd && !arena.bells.crowd.is_empty() {
            return;
        }
        if let Some(index) = arena.bells.give_up(who) {
            let bell = number(index);
            self.effects.push(Effect::DropBell(segid, bell));
        }
    }

    /// The flags of `segid` for its exporter's kernel: [`QUIET`] when every
    /// reader has a bell that rings and none needs leases beforehand.
    pub(super) fn bell_flags(&self, segid: SegId) -> u32 {
        let segment = self.segments.get(&segid);
        let Some((segment, arena)) = segment.and_then(|s| s.arena().map(|arena| (s, arena))) else {
            return 0;
        };
        let flags = arena.bells.flags();
        if flags & RING == 0 {
            return flags;
        }
        let attached = |apid: &&ApId| self.grants.get(*apid).is_some_and(Grant::is_attached);
        let is_deaf = |apid: &ApId| {
            let grant = self.grants.get(apid);
            let policy = grant.and_then(Grant::policy);
            policy == Some(Policy::Latest) && arena.bells.rings(*apid)
        };
        if segment.apids.iter().filter(attached).all(is_deaf) {
            flags | QUIET
        } else {
            flags
        }
    }
}
