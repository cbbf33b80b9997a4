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
//! Bells are for the arena's owner only: whoever holds an eventfd can hang as
//! much to it as it wants, at the cost of the publish that rings it.

use super::attachments::Grant;
use super::{Broker, Effect, Env, Fds, Making, Operation, PeerId, Refusal, Ticket};
use crate::wire::{ApId, Policy, Reply, SegId, Target};
use enclave_abi::lease::bells::{CHANGED, QUIET, RING};
use enclave_abi::queue::doorbell::BELLS;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// One bell of an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Bell {
    #[default]
    Free,
    /// Its eventfd is being made.
    Making(ApId),
    /// The exporter has not fetched it yet.
    Made(ApId),
    /// Each publish rings it.
    Rings(ApId),
    /// It is nobody's any more; the exporter does not know that yet.
    Gone,
}

impl Bell {
    fn apid(self) -> Option<ApId> {
        match self {
            Self::Making(apid) | Self::Made(apid) | Self::Rings(apid) => Some(apid),
            Self::Free | Self::Gone => None,
        }
    }
}

/// The bells of one arena.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Bells([Bell; BELLS]);

impl Bells {
    fn index(&self, apid: ApId) -> Option<usize> {
        self.0.iter().position(|bell| bell.apid() == Some(apid))
    }

    /// Whether each publish rings a bell of `apid`.
    pub(super) fn rings(&self, apid: ApId) -> bool {
        self.0.contains(&Bell::Rings(apid))
    }

    /// What the exporter's kernel has to know.
    fn flags(&self) -> u32 {
        let is_news = |bell: &Bell| matches!(bell, Bell::Made(_) | Bell::Gone);
        let changed = if self.0.iter().any(is_news) {
            CHANGED
        } else {
            0
        };
        let rings = |bell: &Bell| matches!(bell, Bell::Rings(_));
        changed | if self.0.iter().any(rings) { RING } else { 0 }
    }
}

/// A number as it goes over the wire.
fn number(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(u8::MAX)
}

impl Broker {
    /// The importer's side: a bell for an attachment.
    pub(super) fn bell(&mut self, peer: PeerId, seq: u32, apid: ApId) -> Result<(), Refusal> {
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
        if arena.bells.index(apid).is_some() {
            return Err(Refusal::Subscribed);
        }
        let index = arena.bells.0.iter().position(|bell| *bell == Bell::Free);
        let index = index.ok_or(Refusal::NoBell(segid))?;
        if let Some(bell) = arena.bells.0.get_mut(index) {
            *bell = Bell::Making(apid);
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
        let Bell::Making(apid) = *place else {
            return;
        };
        match result {
            Ok(_) => {
                *place = Bell::Made(apid);
                self.reply_with(peer, seq, Reply::Bell, Fds::Bell(segid, bell));
                self.tell_kernel(segid, 0, env);
            }
            Err(errno) => {
                *place = Bell::Free;
                let operation = Operation::MakeNotify;
                self.refuse(peer, seq, &Refusal::System(operation, errno));
            }
        }
    }

    fn bell_of(&mut self, segid: SegId, bell: u8) -> Option<&mut Bell> {
        let arena = self.segments.get_mut(&segid)?.arena_mut()?;
        arena.bells.0.get_mut(usize::from(bell))
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
        for (index, bell) in arena.bells.0.iter_mut().enumerate() {
            match *bell {
                Bell::Free | Bell::Making(_) => {}
                Bell::Gone => *bell = Bell::Free,
                Bell::Rings(_) => all |= 1 << index,
                Bell::Made(apid) => {
                    *bell = Bell::Rings(apid);
                    all |= 1 << index;
                    fresh |= 1 << index;
                    told.push(apid);
                }
            }
        }
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
        let Some(index) = arena.bells.index(apid) else {
            return;
        };
        if let Some(bell) = arena.bells.0.get_mut(index) {
            *bell = match *bell {
                Bell::Rings(_) => Bell::Gone,
                _ => Bell::Free,
            };
        }
        let bell = number(index);
        self.effects.push(Effect::DropBell(segid, bell));
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
