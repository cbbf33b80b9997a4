//! Explicit signals of plain segments: from whoever may, to every subscriber.
//!
//! ```text
//!  Signal ──► accepted and counted ──► pending of each subscriber but the sender
//!                                         │ within budget: at once
//!                                         ▼ else when the pause is over
//!                                      its wait eventfd += pending
//! ```
//!
//! A flood costs at most one eventfd write per subscriber and pause; what is
//! pending when a segment ends goes out before the end does. So signals are
//! late or taken together, never lost, and their number stays right.

use super::{Broker, Effect, Env, Fds, Making, Operation, PeerId, Refusal, Ticket};
use crate::wire::{Access, Reply, SegId, Target, WAIT_END};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Somebody who waits for signals.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Subscription {
    /// Signals accepted, not yet delivered.
    pending: u64,
}

impl Broker {
    pub(super) fn subscribe(
        &mut self,
        peer: PeerId,
        seq: u32,
        target: Target,
    ) -> Result<(), Refusal> {
        let segid = match target {
            Target::Access(apid) => self.grant(peer, apid)?.segid,
            Target::Segment(segid) => {
                self.exported_by(peer, segid)?;
                segid
            }
        };
        let segment = self.segments.get(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        let plain = segment.plain().ok_or(Refusal::NotPlain(segid))?;
        if let Some(reason) = segment.end_reason {
            return Err(Refusal::SegmentEnded(segid, reason));
        }
        if !plain.signallable {
            return Err(Refusal::NotSignallable(segid));
        }
        let subscription = self.subscription(target);
        let subscription = subscription.ok_or(Refusal::NoSegment(segid))?;
        if subscription.is_some() {
            return Err(Refusal::Subscribed);
        }
        *subscription = Some(Subscription::default());
        let making = Making::Subscription(target);
        let ticket = Ticket { peer, seq, making };
        self.effects.push(Effect::MakeNotify { ticket, target });
        Ok(())
    }

    pub(super) fn subscription_made(
        &mut self,
        peer: PeerId,
        seq: u32,
        target: Target,
        result: Result<u64, Errno>,
        env: Env<'_>,
    ) {
        match result {
            Ok(_) => {
                // Who signals from now on knows of it.
                self.subscribers_changed(target, env);
                self.reply_with(peer, seq, Reply::Subscribed, Fds::Wait(target));
            }
            Err(errno) => {
                if let Some(subscription) = self.subscription(target) {
                    *subscription = None;
                }
                let operation = Operation::MakeNotify;
                self.refuse(peer, seq, &Refusal::System(operation, errno));
            }
        }
    }

    pub(super) fn signal(
        &mut self,
        peer: PeerId,
        target: Target,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        let (segid, sender) = self.sender(peer, target)?;
        self.check_signallable(segid)?;
        let rate = self.settings.rings_per_second;
        let segment = self.segments.get_mut(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        let plain = segment.plain_mut().ok_or(Refusal::NotPlain(segid))?;
        plain.signals = plain.signals.saturating_add(1);
        let paused = segment.meter.is_paused();
        let within = !paused
            && segment.meter.take(1, env.now_ms)
            // What went past us counts, too.
            && env.memory.take_signal(segid, rate);
        if !within {
            segment.meter.pause(env.now_ms);
        }
        if !paused && !within {
            self.throttled = self.throttled.saturating_add(1);
        }
        for subscriber in self.subscribers(segid) {
            if Some(subscriber) != sender
                && let Some(Some(subscription)) = self.subscription(subscriber)
            {
                subscription.pending = subscription.pending.saturating_add(1);
            }
        }
        if within {
            self.deliver(segid, 0);
        }
        Ok(())
    }

    /// Whether it is one that can be signalled now.
    pub(super) fn check_signallable(&self, segid: SegId) -> Result<(), Refusal> {
        let segment = self.segments.get(&segid);
        let segment = segment.ok_or(Refusal::NoSegment(segid))?;
        if let Some(reason) = segment.end_reason {
            return Err(Refusal::SegmentEnded(segid, reason));
        }
        if !segment.is_live() {
            return Err(Refusal::SegmentState(segid));
        }
        let plain = segment.plain().ok_or(Refusal::NotPlain(segid))?;
        match plain.signallable {
            true => Ok(()),
            false => Err(Refusal::NotSignallable(segid)),
        }
    }

    /// Says so to those who signal without us.
    pub(super) fn subscribers_changed(&self, target: Target, env: Env<'_>) {
        let segid = match target {
            Target::Access(apid) => self.grants.get(&apid).map(|grant| grant.segid),
            Target::Segment(segid) => Some(segid),
        };
        if let Some(segid) = segid {
            env.memory.renew_subscribers(segid);
        }
    }

    /// Which segment is signalled, and which subscriber need not hear of it.
    pub(super) fn sender(
        &self,
        peer: PeerId,
        target: Target,
    ) -> Result<(SegId, Option<Target>), Refusal> {
        match target {
            Target::Access(apid) => Ok((self.grant(peer, apid)?.segid, Some(target))),
            Target::Segment(segid) => {
                let segment = self.segments.get(&segid);
                let segment = segment.ok_or(Refusal::NoSegment(segid))?;
                if segment.exporter == peer {
                    return Ok((segid, Some(target)));
                }
                let known = self.credentials(peer);
                let known = known.ok_or(Refusal::NoSegment(segid))?;
                if !segment.permit.allows(known, Access::ReadOnly) {
                    let uid = known.uid;
                    return Err(Refusal::Permission { uid, segid });
                }
                Ok((segid, None))
            }
        }
    }

    /// Hands out what is pending, and `more` besides.
    pub(super) fn deliver(&mut self, segid: SegId, more: u64) {
        for target in self.subscribers(segid) {
            let Some(Some(subscription)) = self.subscription(target) else {
                continue;
            };
            let pending = core::mem::take(&mut subscription.pending);
            let count = pending.min(WAIT_END - 1).saturating_add(more);
            if count > 0 {
                self.effects.push(Effect::Notify { target, count });
            }
        }
    }

    /// The exporter has been told the end: the broker needs no eventfd for it.
    pub(super) fn end_exporters_subscription(&mut self, segid: SegId) {
        let target = Target::Segment(segid);
        if self.subscription(target).and_then(Option::take).is_some() {
            self.effects.push(Effect::DropNotify(target));
        }
    }

    /// Everybody who waits for signals of `segid`.
    pub(super) fn subscribers(&self, segid: SegId) -> Vec<Target> {
        let Some(segment) = self.segments.get(&segid) else {
            return Vec::new();
        };
        let exporter = segment
            .plain()
            .and_then(|plain| plain.subscription.as_ref());
        let exporter = exporter.map(|_| Target::Segment(segid));
        let subscribed = |apid| {
            let grant = self.grants.get(apid)?;
            grant.subscription.as_ref().map(|_| Target::Access(*apid))
        };
        let importers = segment.apids.iter().filter_map(subscribed);
        exporter.into_iter().chain(importers).collect()
    }

    /// Where the subscription of `target` is kept, if that exists.
    fn subscription(&mut self, target: Target) -> Option<&mut Option<Subscription>> {
        match target {
            Target::Access(apid) => {
                let grant = self.grants.get_mut(&apid)?;
                Some(&mut grant.subscription)
            }
            Target::Segment(segid) => {
                let segment = self.segments.get_mut(&segid)?;
                segment.plain_mut().map(|plain| &mut plain.subscription)
            }
        }
    }
}
