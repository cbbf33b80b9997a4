//! What keeper and broker say to each other: descriptors and what they are.
//!
//! A SOCK_SEQPACKET pair that nobody else has an end of. Who takes over is
//! given everything there is ([`Message::Put`] each, then [`Message::End`]);
//! from then on the broker says what comes and goes. A descriptor that was sent
//! is kept even if its sender dies at once: the kernel holds it until the
//! keeper looks. Both ends are one program file, so there is no version.

use crate::broker::{EnclaveId, PeerId};
use crate::wire::socket::{receive, send};
use crate::wire::{ApId, SegId, Target};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How long the other side may take where it must answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// The listening socket.
    Listener,
    /// The lock of the run directory, held.
    Lock,
    /// The journal ([`crate::server`]).
    Journal,
    /// The broker's process, for a keeper that did not start it.
    Broker,
    /// A connection.
    Connection(PeerId),
    /// The process that made it.
    Process(PeerId),
    /// The lease page of an enclave.
    LeasePage(EnclaveId),
    /// An arena as its exporter gets it; gone once it is sealed.
    Arena(SegId),
    /// An arena as its readers get it.
    ArenaReaders(SegId),
    /// The doorbell of an arena.
    Doorbell(SegId),
    /// A plain segment, writable.
    Segment(SegId),
    /// A plain segment, read-only.
    SegmentReaders(SegId),
    /// The eventfd of somebody who waits.
    Notify(Target),
    /// A bell of an arena.
    Bell(SegId, u8),
    /// The page that the signallers of a plain segment share.
    SignalPage(SegId),
}

impl Key {
    fn pack(self) -> (u32, u64) {
        match self {
            Self::Listener => (0, 0),
            Self::Lock => (1, 0),
            Self::Journal => (2, 0),
            Self::Broker => (3, 0),
            Self::Connection(PeerId(id)) => (4, id),
            Self::Process(PeerId(id)) => (5, id),
            Self::LeasePage(EnclaveId(id)) => (6, id),
            Self::Arena(SegId(id)) => (7, id),
            Self::ArenaReaders(SegId(id)) => (8, id),
            Self::Doorbell(SegId(id)) => (9, id),
            Self::Segment(SegId(id)) => (10, id),
            Self::SegmentReaders(SegId(id)) => (11, id),
            Self::Notify(Target::Access(ApId(id))) => (12, id),
            Self::Notify(Target::Segment(SegId(id))) => (13, id),
            // Ids count from 1 and stay below 2^56.
            Self::Bell(SegId(id), bell) => (14, id << 8 | u64::from(bell)),
            Self::SignalPage(SegId(id)) => (15, id),
        }
    }

    fn unpack(kind: u32, id: u64) -> Option<Self> {
        Some(match kind {
            0 => Self::Listener,
            1 => Self::Lock,
            2 => Self::Journal,
            3 => Self::Broker,
            4 => Self::Connection(PeerId(id)),
            5 => Self::Process(PeerId(id)),
            6 => Self::LeasePage(EnclaveId(id)),
            7 => Self::Arena(SegId(id)),
            8 => Self::ArenaReaders(SegId(id)),
            9 => Self::Doorbell(SegId(id)),
            10 => Self::Segment(SegId(id)),
            11 => Self::SegmentReaders(SegId(id)),
            12 => Self::Notify(Target::Access(ApId(id))),
            13 => Self::Notify(Target::Segment(SegId(id))),
            14 => Self::Bell(SegId(id >> 8), u8::try_from(id & 0xff).ok()?),
            15 => Self::SignalPage(SegId(id)),
            _ => return None,
        })
    }
}

/// One message.
#[derive(Debug)]
pub(crate) enum Message {
    /// Keep this.
    Put(Key, OwnedFd),
    /// Let go of this, if there is such a thing.
    Drop(Key),
    /// That was everything.
    End,
    /// Say [`Message::Synced`] when everything before is done.
    Sync,
    /// It is.
    Synced,
    /// The broker serves.
    Ready,
    /// The broker ends because it should: no other is to be started.
    Leaving,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    what: u32,
    kind: u32,
    id: u64,
}

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Both ends.
    pub(crate) fn pair() -> Result<(Self, Self), Errno> {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(family, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(ours), Self(theirs)))
    }

    /// An end that was inherited.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// From now on a message that the other side does not take for
    /// [`PATIENCE`] fails.
    pub(crate) fn be_impatient(&self) {
        // At worst a keeper that hangs makes the broker hang.
        let _ = set_socket_timeout(&self.0, Timeout::Send, Some(PATIENCE));
    }

    /// To be inherited.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    pub(crate) fn put(&self, key: Key, fd: impl AsFd) -> Result<(), Errno> {
        let (kind, id) = key.pack();
        self.say(0, kind, id, &[fd.as_fd()])
    }

    pub(crate) fn drop(&self, key: Key) -> Result<(), Errno> {
        let (kind, id) = key.pack();
        self.say(1, kind, id, &[])
    }

    /// Says one of the messages without content.
    pub(crate) fn tell(&self, message: &Message) -> Result<(), Errno> {
        let what = match message {
            Message::End => 2,
            Message::Sync => 3,
            Message::Synced => 4,
            Message::Ready => 5,
            Message::Leaving => 6,
            Message::Put(..) | Message::Drop(_) => return Err(Errno::INVAL),
        };
        self.say(what, 0, 0, &[])
    }

    fn say(&self, what: u32, kind: u32, id: u64, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        send(&self.0, Raw { what, kind, id }.as_bytes(), fds)
    }

    /// The next message; `None` when the other side is gone.
    pub(crate) fn hear(&self) -> Result<Option<Message>, Errno> {
        let packet = match receive(&self.0) {
            Ok(packet) if packet.bytes.is_empty() => return Ok(None),
            Ok(packet) => packet,
            Err(Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let raw = Raw::read_from_bytes(&packet.bytes).map_err(|_| Errno::PROTO)?;
        let key = Key::unpack(raw.kind, raw.id).ok_or(Errno::PROTO)?;
        Ok(Some(match raw.what {
            0 => {
                let fd = packet.fds.into_iter().next().ok_or(Errno::MFILE)?;
                Message::Put(key, fd)
            }
            1 => Message::Drop(key),
            2 => Message::End,
            3 => Message::Sync,
            4 => Message::Synced,
            5 => Message::Ready,
            6 => Message::Leaving,
            _ => return Err(Errno::PROTO),
        }))
    }

    /// As [`Channel::hear`], for [`PATIENCE`].
    pub(crate) fn hear_soon(&self) -> Result<Option<Message>, Errno> {
        let timeout = Timespec::try_from(PATIENCE).map_err(|_| Errno::INVAL)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? {
            0 => Err(Errno::TIMEDOUT),
            _ => self.hear(),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
