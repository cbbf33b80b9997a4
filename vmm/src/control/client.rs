//! The asking side of the control socket: blocking, with a time limit.
//!
//! Used by `enclavectl`. A reply that does not come is [`Class::Timeout`], one
//! that cannot be read is [`Class::Protocol`]. It never retries.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::channel::{ChannelError, Inbox, Progress, send_all};
use super::protocol::{Inspection, Reply, Request, decode, encode};
use crate::failure::{Class, Failure};
use crate::ledger::EnclaveDir;
use crate::machine::ProcessInfo;
use crate::machine::dump::Dump;
use crate::placement::Placement;

/// A connection to one enclave's VMM.
#[derive(Debug)]
pub struct Client {
    name: String,
    stream: UnixStream,
    inbox: Inbox,
}

impl Client {
    /// Connects; every reply must then come within `timeout`.
    ///
    /// # Errors
    /// [`Class::NotFound`] when nobody listens, others with the reason.
    pub fn connect(dir: &EnclaveDir, timeout: Duration) -> Result<Self, Failure> {
        let what = || format!("reach enclave {}", dir.name());
        if dir.socket_is_blocked() {
            return Err(Failure::new(Class::Failure, what(), dir.not_a_socket())
                .with_hint(format!("ls -l {}", dir.path().display())));
        }
        let stream = UnixStream::connect(dir.socket_path()).map_err(|error| {
            let refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
            let class = if refused {
                Class::NotFound
            } else {
                Class::of_io(&error)
            };
            Failure::new(class, what(), error).with_hint("enclavectl list")
        })?;
        let set = stream
            .set_read_timeout(Some(timeout))
            .and_then(|()| stream.set_write_timeout(Some(timeout)));
        set.map_err(|e| Failure::io(what(), e))?;
        Ok(Self {
            name: dir.name().to_owned(),
            stream,
            inbox: Inbox::default(),
        })
    }

    /// Sends a request; `fds` only with [`Request::Run`] and [`Request::Gdb`].
    ///
    /// # Errors
    /// Those of the socket, classed.
    pub fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let line = encode(request)?;
        send_all(&self.stream, &line, fds)
            .map_err(|e| Failure::io(format!("ask enclave {}", self.name), e))
    }

    /// Waits for the next reply; one that says error becomes the failure.
    ///
    /// # Errors
    /// The server's failure, a timeout, or a broken connection.
    pub fn receive(&mut self) -> Result<Reply, Failure> {
        loop {
            if let Some(reply) = self.buffered()? {
                return Ok(reply);
            }
            match self.inbox.receive(self.stream.as_fd()) {
                Ok(Progress::Read) => {}
                Ok(Progress::Empty) => {
                    return Err(self.fail(Class::Timeout, "no answer in time"));
                }
                Ok(Progress::Closed) => return Err(self.gone()),
                Err(error) => return Err(self.channel(&error)),
            }
        }
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// As [`Client::send`] and [`Client::receive`].
    pub fn call(&mut self, request: &Request) -> Result<Reply, Failure> {
        self.send(request, &[])?;
        self.receive()
    }

    /// Asks for everything.
    ///
    /// # Errors
    /// As [`Client::call`]; [`Class::Protocol`] for another kind of reply.
    pub fn inspect(&mut self) -> Result<Box<Inspection>, Failure> {
        match self.call(&Request::Inspect {})? {
            Reply::Inspection(inspection) => Ok(inspection),
            _ => Err(self.fail(Class::Protocol, "an answer of another kind")),
        }
    }

    /// Asks what runs.
    ///
    /// # Errors
    /// As [`Client::inspect`].
    pub fn processes(&mut self) -> Result<Vec<ProcessInfo>, Failure> {
        match self.call(&Request::Processes {})? {
            Reply::Processes { list } => Ok(list),
            _ => Err(self.fail(Class::Protocol, "an answer of another kind")),
        }
    }

    /// Asks where cores and memory really are.
    ///
    /// # Errors
    /// As [`Client::inspect`].
    pub fn placement(&mut self) -> Result<Box<Placement>, Failure> {
        match self.call(&Request::Placement {})? {
            Reply::Placement(placement) => Ok(placement),
            _ => Err(self.fail(Class::Protocol, "an answer of another kind")),
        }
    }

    /// Asks what the machine is doing below what its kernel says.
    ///
    /// # Errors
    /// As [`Client::inspect`].
    pub fn dump(&mut self) -> Result<Box<Dump>, Failure> {
        match self.call(&Request::Dump {})? {
            Reply::Dump(dump) => Ok(dump),
            _ => Err(self.fail(Class::Protocol, "an answer of another kind")),
        }
    }

    /// Has gdb at the other end of these descriptors debug the machine.
    ///
    /// # Errors
    /// [`Class::Busy`] when somebody does already; as [`Client::inspect`].
    pub fn debug(&mut self, input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> Result<(), Failure> {
        self.send(&Request::Gdb {}, &[input, output])?;
        self.receive().map(drop)
    }

    /// Whether a reply or the end of the connection can be read; for callers
    /// that poll [`Client::fd`] themselves.
    ///
    /// # Errors
    /// As [`Client::receive`].
    pub fn receive_ready(&mut self) -> Result<Option<Reply>, Failure> {
        match self.inbox.receive(self.stream.as_fd()) {
            Ok(Progress::Closed) => match self.buffered()? {
                Some(reply) => Ok(Some(reply)),
                None => Err(self.gone()),
            },
            Ok(_) => self.buffered(),
            Err(error) => Err(self.channel(&error)),
        }
    }

    /// A reply that was received already.
    ///
    /// # Errors
    /// The server's failure, or one of the protocol.
    pub fn buffered(&mut self) -> Result<Option<Reply>, Failure> {
        let Some(line) = self.inbox.next_line().map_err(|e| self.channel(&e))? else {
            return Ok(None);
        };
        match decode(&line.bytes)? {
            Reply::Error(failure) => Err(failure),
            reply => Ok(Some(reply)),
        }
    }

    /// The socket, to poll.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn fail(&self, class: Class, why: &str) -> Failure {
        Failure::new(class, format!("ask enclave {}", self.name), why)
            .with_hint(format!("enclavectl inspect {}", self.name))
    }

    fn gone(&self) -> Failure {
        self.fail(Class::Failure, "its enclave-vmm went away")
            .with_hint("enclavectl list")
    }

    fn channel(&self, error: &ChannelError) -> Failure {
        let class = match error {
            ChannelError::Io(error) => Class::of_io(error),
            _ => Class::Protocol,
        };
        Failure::new(class, format!("ask enclave {}", self.name), error)
    }
}
