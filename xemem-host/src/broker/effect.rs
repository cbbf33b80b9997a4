//! What the broker wants done: replies, objects, signals.
//!
//! Made by [`super::Broker`], carried out in order by [`crate::server`]. An
//! effect that can fail has a [`Ticket`], handed back with the outcome.

use super::{EnclaveId, PeerId};
use crate::wire::{Access, ApId, Hugetlb, Reply, SegId, Target};
use serde::{Deserialize, Serialize};

/// Descriptors to go along with a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fds {
    /// None.
    None,
    /// The enclave's lease page.
    LeasePage(EnclaveId),
    /// The arena's read-write memfd and its doorbell.
    Arena(SegId),
    /// The arena's read-only memfd and the notify eventfd of the apid.
    Attachment(SegId, ApId),
    /// The exporter's read-write memfd of a plain segment.
    Segment(SegId),
    /// An importer's memfd of a plain segment.
    Memory(SegId, Access),
    /// A wait eventfd.
    Wait(Target),
    /// A bell of an arena.
    Bell(SegId, u8),
    /// The page of a plain segment that its signallers share.
    SignalPage(SegId),
    /// That page, and the wait eventfds of all subscribers but this one.
    Ears(SegId, Option<Target>),
    /// The bells of an arena that have a bit here, ascending.
    Bells(SegId, u16),
}

/// Whom to answer once an effect is carried out, and what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(super) peer: PeerId,
    pub(super) seq: u32,
    pub(super) making: Making,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Making {
    LeasePage(EnclaveId),
    Arena(SegId),
    Sealed(SegId),
    Notify(ApId),
    Segment(SegId),
    Subscription(Target),
    Bell(SegId, u8),
    SignalPage(Target),
}

/// What the server has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a reply; a peer that cannot take it is to be disconnected.
    Send {
        /// To whom.
        peer: PeerId,
        /// Sequence number of the request.
        seq: u32,
        /// The reply.
        reply: Reply,
        /// Descriptors.
        fds: Fds,
    },
    /// Make and map a lease page, then [`super::Broker::finish`].
    MakeLeasePage {
        /// For `finish`.
        ticket: Ticket,
        /// Its id.
        enclave: EnclaveId,
    },
    /// Make arena object and doorbell, then `finish` with the page bytes.
    MakeArena {
        /// For `finish`.
        ticket: Ticket,
        /// Its id.
        segid: SegId,
        /// Bytes.
        object_bytes: u64,
        /// Pages to use; `Auto` falls back.
        hugetlb: Hugetlb,
    },
    /// Seal the object, map its header, watch its doorbell, then `finish`.
    SealArena {
        /// For `finish`.
        ticket: Ticket,
        /// Its id.
        segid: SegId,
    },
    /// Make the object of a plain segment, then `finish` with the page bytes.
    MakeSegment {
        /// For `finish`.
        ticket: Ticket,
        /// Its id.
        segid: SegId,
        /// Bytes.
        size_bytes: u64,
        /// Pages to use; `Auto` falls back.
        hugetlb: Hugetlb,
    },
    /// Seal the object and make the importers' descriptors, then `finish`.
    SealSegment {
        /// For `finish`.
        ticket: Ticket,
        /// Its id.
        segid: SegId,
        /// Whether any importer may write.
        writable: bool,
    },
    /// Make an eventfd to wait at, then `finish`.
    MakeNotify {
        /// For `finish`.
        ticket: Ticket,
        /// Whose.
        target: Target,
    },
    /// Add to an eventfd.
    Notify {
        /// Whose.
        target: Target,
        /// How much.
        count: u64,
    },
    /// Clear the words of an arena slot: nobody holds anything of it.
    ClearSlot(EnclaveId, u32),
    /// Stop watching a doorbell.
    PauseDoorbell(SegId),
    /// Watch it again.
    ResumeDoorbell(SegId),
    /// Close an eventfd.
    DropNotify(Target),
    /// Make the eventfd of a bell, then `finish`.
    MakeBell {
        /// For `finish`.
        ticket: Ticket,
        /// The arena.
        segid: SegId,
        /// Its number.
        bell: u8,
    },
    /// Close it.
    DropBell(SegId, u8),
    /// Make the page that the signallers of a plain segment share, then `finish`.
    MakeSignalPage {
        /// For `finish`.
        ticket: Ticket,
        /// The segment.
        segid: SegId,
    },
    /// Forget that page, if there is one.
    DropSignalPage(SegId),
    /// Forget the arena object.
    DropArena(SegId),
    /// Forget the object of a plain segment.
    DropSegment(SegId),
    /// It is recorded that the object is sealed: nobody needs the exporter's
    /// descriptor again.
    DropOpen(SegId),
    /// Forget the lease page.
    DropLeasePage(EnclaveId),
    /// Close a connection; [`super::Broker::disconnected`] has been dealt with.
    Disconnect(PeerId),
    /// End.
    Exit,
}
