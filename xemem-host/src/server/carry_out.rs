//! One event from decision to outcome: effects become system calls.
//!
//! ```text
//!  decide ──► make what is wanted ──► record ──► say and let go
//!               └─ finish, decide again           └─ unreachable: another event
//! ```
//!
//! Nobody hears of anything before it is recorded; so a broker that is killed
//! at any point has either not done a request at all, and its successor finds
//! it in the socket, or recorded all of it, and its successor says what was not
//! said ([`super::take_over`]). What may be said twice: a reply, which clients
//! know by its number, and a wake-up.

use super::journal::{Journal, Record, Redo};
use super::{Server, Source, now_ms};
use crate::broker::{Broker, Effect, Env, Fds, PeerId, Ticket};
use crate::keeper::channel::Key;
use crate::wire::socket::send;
use crate::wire::{Reply, SegId, Target};
use rustix::event::epoll;
use rustix::io::Errno;
use std::collections::VecDeque;

impl Server {
    /// Lets the broker decide and carries out what it wants, also what
    /// follows from the outcome. `served` is the request, if it is one.
    pub(super) fn with_broker(
        &mut self,
        served: Option<(PeerId, u32)>,
        decide: impl FnOnce(&mut Broker, Env<'_>),
    ) {
        let mut unreachable = self.turn(served, decide);
        while let Some(peer) = unreachable.pop() {
            // The request is in its socket still.
            let decide = |broker: &mut Broker, env: Env<'_>| broker.disconnected(peer, env);
            unreachable.extend(self.turn(served, decide));
            self.close(peer);
        }
    }

    /// One event; returns who could not be reached.
    fn turn(
        &mut self,
        served: Option<(PeerId, u32)>,
        decide: impl FnOnce(&mut Broker, Env<'_>),
    ) -> Vec<PeerId> {
        let now_ms = now_ms();
        decide(&mut self.broker, env(&self.objects, now_ms));
        let mut effects: VecDeque<Effect> = self.broker.take_effects().into();
        let mut outbox = Vec::new();
        while let Some(effect) = effects.pop_front() {
            if let Some((ticket, result)) = self.make(effect, &mut outbox) {
                let env = env(&self.objects, now_ms);
                self.broker.finish(ticket, result, env);
                effects.extend(self.broker.take_effects());
            }
        }
        let is_recorded = self.record(served, &outbox);
        let mut unreachable = Vec::new();
        for effect in outbox {
            let is_counted = is_recorded && is_redone(&effect);
            unreachable.extend(self.say(effect));
            if let Some(journal) = self.journal.as_mut().filter(|_| is_counted) {
                journal.said();
            }
        }
        unreachable
    }

    /// Carries out what nobody hears of; the rest goes to `outbox`.
    fn make(
        &mut self,
        effect: Effect,
        outbox: &mut Vec<Effect>,
    ) -> Option<(Ticket, Result<u64, Errno>)> {
        let objects = &mut self.objects;
        let made = match effect {
            Effect::MakeLeasePage { ticket, enclave } => {
                let made = objects.make_lease_page(enclave);
                (ticket, made.map(|()| 0))
            }
            Effect::MakeArena {
                ticket,
                segid,
                object_bytes,
                hugetlb,
            } => {
                self.let_go_early(outbox);
                let made = self.objects.make_arena(segid, object_bytes, hugetlb);
                (ticket, made)
            }
            Effect::SealArena { ticket, segid } => {
                let sealed = objects.seal_arena(segid);
                let watched = sealed.and_then(|()| self.watch(segid));
                (ticket, watched.map(|()| 0))
            }
            Effect::MakeSegment {
                ticket,
                segid,
                size_bytes,
                hugetlb,
            } => {
                let made = objects.make_segment(segid, size_bytes, hugetlb);
                (ticket, made)
            }
            Effect::SealSegment {
                ticket,
                segid,
                writable,
            } => {
                let sealed = objects.seal_segment(segid, writable);
                (ticket, sealed.map(|()| 0))
            }
            Effect::MakeNotify { ticket, target } => {
                let made = objects.make_notify(target);
                (ticket, made.map(|()| 0))
            }
            Effect::MakeBell {
                ticket,
                segid,
                bell,
            } => {
                let made = objects.make_bell(segid, bell);
                (ticket, made.map(|()| 0))
            }
            Effect::MakeSignalPage { ticket, segid } => {
                let made = objects.make_signal_page(segid);
                (ticket, made.map(|()| 0))
            }
            Effect::PauseDoorbell(segid) => {
                if let Some(fd) = objects.doorbell(segid) {
                    // Not watched if the arena never was sealed.
                    let _ = epoll::delete(&self.epoll, fd);
                }
                return None;
            }
            Effect::ResumeDoorbell(segid) => {
                // Out of memory at worst; the reader's next request advances.
                let _ = self.watch(segid);
                return None;
            }
            other => {
                outbox.push(other);
                return None;
            }
        };
        Some(made)
    }

    /// Retained arenas that were given up for want of memory must be gone
    /// before it is asked for again. Should we die now, they went early.
    fn let_go_early(&mut self, outbox: &mut Vec<Effect>) {
        let is_memory = |effect: &mut Effect| matches!(effect, Effect::DropArena(_));
        let early: Vec<Effect> = outbox.extract_if(.., is_memory).collect();
        for effect in early {
            // Nobody is told anything by these.
            let _ = self.say(effect);
        }
        self.objects.custody.settle();
    }

    fn record(&mut self, served: Option<(PeerId, u32)>, outbox: &[Effect]) -> bool {
        let changes = self.broker.changes();
        // Also what changed nothing is served once: a second time it may well
        // change something, and its reply be ignored for the first one.
        let is_nothing = changes.is_empty() && served.is_none();
        if is_nothing || !self.objects.custody.is_wanted() {
            return false;
        }
        let record = Record {
            changes,
            redo: outbox.iter().filter_map(redo).collect(),
            served,
        };
        let written = self.journal.as_mut().map(|journal| journal.append(&record));
        if written != Some(true) {
            self.begin_journal(record);
        }
        true
    }

    /// Writes everything to a journal of its own, with the last event; the
    /// keeper gets that instead of the old one.
    pub(super) fn begin_journal(&mut self, last: Record) {
        let whole = Record {
            changes: self.broker.whole(),
            ..last
        };
        let custody = &self.objects.custody;
        match Journal::new(&whole) {
            Ok(journal) => {
                custody.put(Key::Journal, journal.fd());
                self.journal = Some(journal);
            }
            Err(errno) => {
                // Better none than one that is not true.
                custody.withdraw(Key::Journal);
                self.journal = None;
                crate::keeper::log(format_args!(
                    "no memory for the journal ({errno}): a restart would begin afresh"
                ));
            }
        }
    }

    /// Carries out what others hear of; returns a peer that does not listen.
    pub(super) fn say(&mut self, effect: Effect) -> Option<PeerId> {
        let objects = &mut self.objects;
        match effect {
            Effect::Send {
                peer,
                seq,
                reply,
                fds,
            } => {
                objects.custody.settle();
                return self.send(peer, seq, &reply, fds).err();
            }
            Effect::Notify { target, count } => objects.notify(target, count),
            Effect::ClearSlot(enclave, slot) => {
                crate::broker::LeaseMemory::clear(objects, enclave, slot);
            }
            Effect::DropNotify(target) => objects.drop_notify(target),
            Effect::DropBell(segid, bell) => objects.drop_bell(segid, bell),
            Effect::DropSignalPage(segid) => objects.drop_signal_page(segid),
            Effect::DropArena(segid) => objects.drop_arena(segid),
            Effect::DropSegment(segid) => objects.drop_segment(segid),
            Effect::DropOpen(segid) => objects.withdraw_open(segid),
            Effect::DropLeasePage(enclave) => objects.drop_lease_page(enclave),
            Effect::Disconnect(peer) => self.close(peer),
            Effect::Exit => self.done = true,
            // Made before.
            Effect::MakeLeasePage { .. }
            | Effect::MakeArena { .. }
            | Effect::SealArena { .. }
            | Effect::MakeSegment { .. }
            | Effect::SealSegment { .. }
            | Effect::MakeNotify { .. }
            | Effect::MakeBell { .. }
            | Effect::MakeSignalPage { .. }
            | Effect::PauseDoorbell(_)
            | Effect::ResumeDoorbell(_) => {}
        }
        None
    }

    pub(super) fn watch(&self, segid: SegId) -> Result<(), Errno> {
        let doorbell = self.objects.doorbell(segid).ok_or(Errno::NOENT)?;
        let source = Source::Doorbell(segid).pack();
        epoll::add(&self.epoll, doorbell, source, epoll::EventFlags::IN)
    }

    fn send(&self, peer: PeerId, seq: u32, reply: &Reply, fds: Fds) -> Result<(), PeerId> {
        let objects = &self.objects;
        let fds = match fds {
            Fds::None => Some(Vec::new()),
            Fds::LeasePage(enclave) => objects.lease_page(enclave).map(|page| vec![page]),
            Fds::Arena(segid) => objects
                .open_arena(segid)
                .zip(objects.doorbell(segid))
                .map(|(memory, doorbell)| vec![memory, doorbell]),
            Fds::Attachment(segid, apid) => objects
                .sealed_arena(segid)
                .zip(objects.notify_fd(Target::Access(apid)))
                .map(|(memory, notify)| vec![memory, notify]),
            Fds::Segment(segid) => objects.open_segment(segid).map(|memory| vec![memory]),
            Fds::Memory(segid, access) => objects
                .segment_memory(segid, access)
                .map(|memory| vec![memory]),
            Fds::SignalPage(segid) => objects.ears(segid, &[]),
            Fds::Ears(segid, sender) => objects.ears(segid, &self.broker.ears_of(segid, sender)),
            Fds::Bell(segid, bell) => objects.bells(segid, 1 << bell),
            Fds::Bells(segid, mask) => objects.bells(segid, mask),
            Fds::Wait(target) => objects.notify_fd(target).map(|wait| vec![wait]),
        };
        let connected = self.connections.get(&peer);
        let sent = connected.zip(fds).map(|(connected, fds)| {
            debug_assert_eq!(fds.len(), reply.nr_fds(), "descriptors of {reply:?}");
            send(&connected.socket, &reply.encode(seq), &fds)
        });
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(peer),
        }
    }
}

fn is_redone(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Send { .. } | Effect::Notify { .. } | Effect::ClearSlot(..) | Effect::Disconnect(_)
    )
}

/// What the journal has of an effect; `None` for those that a successor finds
/// to be necessary by itself.
fn redo(effect: &Effect) -> Option<Redo> {
    Some(match *effect {
        Effect::Send {
            peer,
            seq,
            ref reply,
            fds,
        } => Redo::Send {
            peer,
            bytes: reply.encode(seq),
            fds,
        },
        Effect::Notify { target, count } => Redo::Notify { target, count },
        Effect::ClearSlot(enclave, slot) => Redo::ClearSlot(enclave, slot),
        Effect::Disconnect(peer) => Redo::Disconnect(peer),
        _ => return None,
    })
}

fn env<'a>(memory: &'a super::Objects, now_ms: u64) -> Env<'a> {
    Env { memory, now_ms }
}
