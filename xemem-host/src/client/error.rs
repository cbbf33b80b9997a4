//! Why a client did not get what it asked for.

use super::Unmovable;
use crate::snapshot::SnapshotError;
use crate::wire::WireError;
use enclave_abi::arena::GeometryError;
use rustix::io::Errno;
use std::path::PathBuf;
use std::time::Duration;

/// Why a request did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot connect to the broker at {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: Errno,
    },
    /// The broker could not be started.
    #[error("cannot start the broker {exe}: {why}")]
    Start {
        /// Its program file.
        exe: PathBuf,
        /// What happened.
        why: String,
    },
    /// The broker has ended, or dropped this connection.
    #[error("the broker is gone")]
    BrokerGone,
    /// The broker refused.
    #[error("refused: {text} ({errno})")]
    Refused {
        /// The reason as a number.
        errno: Errno,
        /// The reason in words.
        text: String,
    },
    /// The broker answered something that makes no sense.
    #[error("the broker does not speak this protocol: {0}")]
    Wire(#[from] WireError),
    /// The broker answered another question.
    #[error("the broker gave another answer than asked for")]
    Answer,
    /// The broker describes an impossible arena.
    #[error("the broker describes an impossible arena: {0:?}")]
    Geometry(GeometryError),
    /// Not a name.
    #[error("{0:?} is no name: 1 to 63 bytes, no control characters")]
    Name(String),
    /// Nothing came in time.
    #[error("nothing came within the time given")]
    Timeout,
    /// The broker did not answer in time. What was asked may yet be done.
    #[error("the broker did not answer within {limit:?}")]
    NoAnswer {
        /// How long it had.
        limit: Duration,
    },
    /// Whoever waits was told to stop. What was asked may yet be done.
    #[error("the wait was cancelled")]
    Cancelled,
    /// The connection was made before fork(2), by the parent.
    #[error("this connection belongs to the process that forked; connect again")]
    Forked,
    /// The broker handed out memory that it could take away again.
    #[error("the broker handed out memory that is too short, or could shrink")]
    Memory,
    /// Memory that cannot become a segment where it is.
    #[error("the memory at {address:#x} cannot be moved into a segment: {why}")]
    Unmovable {
        /// Where the range begins.
        address: usize,
        /// What is in the way.
        why: Unmovable,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: Errno,
    },
    /// The arena cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl ClientError {
    /// The broker's reason, if it refused.
    #[must_use]
    pub fn refusal(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// The error as a Linux number: the broker's own if it refused, ETIMEDOUT
    /// whenever time ran out, ECONNRESET if the broker is gone, ESTALE after
    /// fork(2), EPROTO if it answers nonsense.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. } => *errno,
            Self::Connect { source, .. } | Self::System { source, .. } => *source,
            Self::Timeout | Self::NoAnswer { .. } => Errno::TIMEDOUT,
            Self::Cancelled => Errno::INTR,
            Self::BrokerGone => Errno::CONNRESET,
            Self::Forked => Errno::STALE,
            Self::Unmovable { why, .. } => match why {
                Unmovable::Range => Errno::INVAL,
                Unmovable::Hole => Errno::NOMEM,
                Unmovable::Protection => Errno::ACCESS,
                Unmovable::Foreign => Errno::OPNOTSUPP,
                Unmovable::Shared => Errno::BUSY,
            },
            Self::Name(_) => Errno::INVAL,
            Self::Start { .. } => Errno::CONNREFUSED,
            Self::Wire(_) | Self::Answer | Self::Geometry(_) | Self::Memory => Errno::PROTO,
            Self::Snapshot(_) => Errno::IO,
        }
    }
}
