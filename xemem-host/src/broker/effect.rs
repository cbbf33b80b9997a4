//! What the broker wants done: replies, objects, signals.
//!
//! Made by [`super::Broker`], carried out in order by [`crate::server`]. An
//! effect that can fail has a [`Ticket`], handed back with the outcome.

use super::{EnclaveId, PeerId};
use crate::wire::{ApId, Hugetlb, Reply, SegId};

/// Descriptors to go along with a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fds {
    /// None.
    None,
    /// The enclave's lease page.
    LeasePage(EnclaveId),
    /// The arena's read-write memfd and its doorbell.
    Arena(SegId),
    /// The read-only memfd of the segment and the notify eventfd of the apid.
    Attachment(SegId, ApId),
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
    /// Make the eventfd of an attachment, then `finish`.
    MakeNotify {
        /// For `finish`.
        ticket: Ticket,
        /// Its id.
        apid: ApId,
    },
    /// Signal an attachment.
    Notify(ApId),
    /// Stop watching a doorbell.
    PauseDoorbell(SegId),
    /// Watch it again.
    ResumeDoorbell(SegId),
    /// Close the eventfd of an attachment.
    DropNotify(ApId),
    /// Forget the arena object.
    DropArena(SegId),
    /// Forget the lease page.
    DropLeasePage(EnclaveId),
    /// Close a connection; [`super::Broker::disconnected`] has been dealt with.
    Disconnect(PeerId),
    /// End.
    Exit,
}
