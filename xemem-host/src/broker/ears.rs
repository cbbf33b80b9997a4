//! Ears: the eventfds of a segment's subscribers, for those who signal much.
//!
//! Whoever has them signals without this broker. What a signal means stays the
//! same: it is counted and has a budget, in a page that all of them share with the
//! broker, and a subscriber who comes later is heard of there before it is told
//! that it is one. Beyond the budget signals come here, as all did.
//!
//! An ear is for the user of its subscriber, and root: its holder can say whatever
//! that one believes, the end of the segment included.

use super::{Broker, Effect, Env, Fds, Making, Operation, PeerId, Refusal, Ticket};
use crate::wire::{MAX_FDS, Reply, SegId, Target};
use rustix::io::Errno;

impl Broker {
    pub(super) fn ears(
        &mut self,
        peer: PeerId,
        seq: u32,
        target: Target,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        let (segid, _) = self.sender(peer, target)?;
        self.check_signallable(segid)?;
        if env.memory.signal_version(segid).is_some() {
            return self.give_ears(peer, seq, target, env);
        }
        let making = Making::SignalPage(target);
        let ticket = Ticket { peer, seq, making };
        self.effects.push(Effect::MakeSignalPage { ticket, segid });
        Ok(())
    }

    pub(super) fn signal_page_made(
        &mut self,
        peer: PeerId,
        seq: u32,
        target: Target,
        result: Result<u64, Errno>,
        env: Env<'_>,
    ) {
        let given = match result {
            Ok(_) => self.give_ears(peer, seq, target, env),
            Err(errno) => Err(Refusal::System(Operation::MakeNotify, errno)),
        };
        if let Err(refusal) = given {
            self.refuse(peer, seq, &refusal);
        }
    }

    fn give_ears(
        &mut self,
        peer: PeerId,
        seq: u32,
        target: Target,
        env: Env<'_>,
    ) -> Result<(), Refusal> {
        let (segid, sender) = self.sender(peer, target)?;
        let uid = self.uid(peer);
        let ears = self.ears_of(segid, sender);
        let of_ours = |ear: &Target| uid == Some(0) || self.uid_behind(*ear) == uid;
        let direct = ears.len() < MAX_FDS && uid.is_some() && ears.iter().all(of_ours);
        let (rate, count, fds) = if direct {
            let rate = self.settings.rings_per_second;
            (rate, ears.len() as u64, Fds::Ears(segid, sender))
        } else {
            (0, 0, Fds::SignalPage(segid))
        };
        let version = env.memory.signal_version(segid).unwrap_or(0);
        let reply = Reply::Ears {
            version,
            rate,
            count,
        };
        self.reply_with(peer, seq, reply, fds);
        Ok(())
    }

    /// Every subscriber of `segid` but the `sender`.
    #[must_use]
    pub fn ears_of(&self, segid: SegId, sender: Option<Target>) -> Vec<Target> {
        let subscribers = self.subscribers(segid).into_iter();
        subscribers.filter(|ear| Some(*ear) != sender).collect()
    }

    fn uid(&self, peer: PeerId) -> Option<u32> {
        self.credentials(peer).map(|known| known.uid)
    }

    /// Whose ear it is.
    fn uid_behind(&self, ear: Target) -> Option<u32> {
        let peer = match ear {
            Target::Access(apid) => self.grants.get(&apid)?.peer,
            Target::Segment(segid) => self.segments.get(&segid)?.exporter,
        };
        self.uid(peer)
    }
}
