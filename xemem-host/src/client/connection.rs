//! One request, one reply, within a time: the socket side of [`Broker`].
//!
//! A broker that hangs costs a client its time limit and no more. What was
//! asked may still be done when the broker goes on; its late answer is thrown
//! away with whatever descriptors it carries. So is one that comes twice, because
//! a broker was killed when it had just answered and its successor cannot know
//! ([`crate::keeper`]); that is all a client sees of it. A connection belongs to the
//! process that made it: after fork(2) the child's requests are refused here,
//! because two processes on one socket would take each other's answers.

use super::{Broker, ClientError};
use crate::wire::socket::{Packet, receive, send};
use crate::wire::{Reply, Request, Role, WireError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown,
    socket_with,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a broker may take to answer, unless told otherwise.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Attempts to be a client of a broker that hangs up at once.
const ATTEMPTS: u32 = 3;

/// The socket of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Shared with whoever waits for the broker's end.
    pub(super) socket: Arc<OwnedFd>,
    /// Lives exactly as long as this value, unlike the socket.
    pub(super) life: Arc<()>,
    seq: u32,
    limit: Duration,
    /// The process that connected.
    pid: u32,
}

impl Broker {
    /// Connects. A broker that was killed when it had accepted and not yet
    /// recorded a connection loses it; nothing was asked of it, so try again.
    pub(super) fn open(socket: &Path, role: Role, limit: Duration) -> Result<Self, ClientError> {
        for _ in 1..ATTEMPTS {
            match Self::try_open(socket, role, limit) {
                Err(ClientError::BrokerGone) => {}
                other => return other,
            }
        }
        Self::try_open(socket, role, limit)
    }

    fn try_open(socket: &Path, role: Role, limit: Duration) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect {
            path: socket.to_owned(),
            source,
        };
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let fd = socket_with(family, SocketType::SEQPACKET, flags, None).map_err(failed)?;
        // Also bounds connecting to a broker that does not accept.
        set_socket_timeout(&fd, Timeout::Send, Some(limit)).map_err(failed)?;
        let address = SocketAddrUnix::new(socket).map_err(failed)?;
        match connect(&fd, &address) {
            Err(Errno::AGAIN) => return Err(ClientError::NoAnswer { limit }),
            other => other.map_err(failed)?,
        }
        let mut broker = Self {
            connection: Connection {
                socket: Arc::new(fd),
                life: Arc::new(()),
                seq: 0,
                limit,
                pid: std::process::id(),
            },
        };
        let abi_version = enclave_abi::ABI_VERSION;
        match broker.call(&Request::Hello { role, abi_version })? {
            (Reply::Welcome { .. }, _) => Ok(broker),
            _ => Err(ClientError::Answer),
        }
    }

    /// How long the broker may take to answer from now on.
    ///
    /// # Errors
    /// The system refuses: a limit of zero, or none that fits.
    pub fn set_answer_limit(&mut self, limit: Duration) -> Result<(), ClientError> {
        let socket = &self.connection.socket;
        set_socket_timeout(socket, Timeout::Send, Some(limit)).map_err(|source| {
            let what = "set a time limit";
            ClientError::System { what, source }
        })?;
        self.connection.limit = limit;
        Ok(())
    }

    /// The connection, for event loops: hung up (POLLHUP) when the broker is
    /// gone. Readable without a request only if an answer comes too late.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.connection.socket.as_fd()
    }

    pub(super) fn done(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.call(request)?.0 {
            Reply::Ok => Ok(()),
            _ => Err(ClientError::Answer),
        }
    }

    /// One request, one reply.
    pub(super) fn call(&mut self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.connection.call(request, Duration::ZERO, None)
    }

    /// As [`Broker::call`], where the broker may take `more` time than usual.
    pub(super) fn call_patiently(
        &mut self,
        request: &Request,
        more: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.connection.call(request, more, None)
    }

    /// As [`Broker::call_patiently`], given up when `cancel` is readable.
    pub(super) fn call_unless(
        &mut self,
        request: &Request,
        more: Duration,
        cancel: BorrowedFd<'_>,
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.connection.call(request, more, Some(cancel))
    }
}

impl Connection {
    fn call(
        &mut self,
        request: &Request,
        more: Duration,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        if self.pid != std::process::id() {
            return Err(ClientError::Forked);
        }
        self.seq = self.seq.wrapping_add(1);
        let limit = self.limit.saturating_add(more);
        let deadline = Instant::now().checked_add(limit);
        let sent = send(&self.socket, &request.encode(self.seq), &[]);
        if sent == Err(Errno::AGAIN) {
            return Err(ClientError::NoAnswer { limit });
        }
        loop {
            self.wait_for_packet(deadline, limit, cancel)?;
            let packet = self.receive(sent)?;
            if let Some(answer) = self.answer(packet)? {
                return Ok(answer);
            }
        }
    }

    /// Waits until there is something to receive, the end included.
    fn wait_for_packet(
        &self,
        deadline: Option<Instant>,
        limit: Duration,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<(), ClientError> {
        loop {
            let socket = self.socket.as_fd();
            let answer = PollFd::from_borrowed_fd(socket, PollFlags::IN);
            let given_up = PollFd::from_borrowed_fd(cancel.unwrap_or(socket), PollFlags::IN);
            let mut fds = [answer, given_up];
            // The socket twice would not do without `cancel`: poll(2) looks at
            // one entry after the other, and the answer may come in between.
            let nr_fds = if cancel.is_some() { 2 } else { 1 };
            match poll(&mut fds[..nr_fds], time_left(deadline).as_ref()) {
                Ok(0) => return Err(ClientError::NoAnswer { limit }),
                // The answer counts if it is there.
                Ok(_) if fds[0].revents().is_empty() => return Err(ClientError::Cancelled),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(source) => {
                    let what = "wait for the broker";
                    return Err(ClientError::System { what, source });
                }
            }
        }
    }

    fn receive(&self, sent: Result<(), Errno>) -> Result<Packet, ClientError> {
        // A broker that has hung up may have said why before; the kernel
        // reports the hanging up first, once.
        let received = match receive(&self.socket) {
            Err(Errno::CONNRESET) => receive(&self.socket),
            other => other,
        };
        match (sent, received) {
            (_, Ok(packet)) if !packet.bytes.is_empty() => Ok(packet),
            (Ok(()) | Err(Errno::PIPE | Errno::CONNRESET), Ok(_))
            | (_, Err(Errno::PIPE | Errno::CONNRESET)) => Err(ClientError::BrokerGone),
            (Err(source), _) | (_, Err(source)) => {
                let what = "talk to the broker";
                Err(ClientError::System { what, source })
            }
        }
    }

    /// What the packet says to our request; `None` if it answers a former one.
    fn answer(&self, packet: Packet) -> Result<Option<(Reply, Vec<OwnedFd>)>, ClientError> {
        let (seq, reply) = Reply::decode(&packet.bytes)?;
        let (got, want) = (packet.fds.len(), reply.nr_fds());
        if packet.fds_cut || got != want {
            return Err(WireError::Fds { got, want }.into());
        }
        // To one of the requests before: late, or for the second time.
        if (1..self.seq).contains(&seq) {
            return Ok(None);
        }
        match reply {
            Reply::Error { errno, text } => {
                let errno = i32::try_from(errno).unwrap_or(0);
                let errno = Errno::from_raw_os_error(errno);
                Err(ClientError::Refused { errno, text })
            }
            _ if seq != self.seq => Err(ClientError::Answer),
            reply => Ok(Some((reply, packet.fds))),
        }
    }
}

impl Drop for Connection {
    /// Ends the connection even while somebody waits at its socket; not when a
    /// forked child lets go of its parent's.
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            let _ = shutdown(&self.socket, Shutdown::Both);
        }
    }
}

/// What is left until `deadline`; `None` = for ever.
pub(super) fn time_left(deadline: Option<Instant>) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Timespec::try_from(left).ok()
}
