//! Waiting for the signals of a plain segment.
//!
//! Each subscriber has an eventfd of its own, so none takes another's signals.
//! Signals that come faster than they are taken are taken together, their
//! number kept; the end of the segment comes the same way, after the last.

use super::connection::time_left;
use super::{Broker, ClientError};
use crate::wire::{Reply, Request, Target, WAIT_END};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// So many signals, at least one.
    Signals(u64),
    /// The segment has ended and all signals were taken.
    Ended,
}

/// A subscription to the signals of one segment. Ends with its apid, or with
/// the segment.
#[derive(Debug)]
pub struct Signals {
    wait: OwnedFd,
    /// Hangs up when the broker is gone.
    broker: Arc<OwnedFd>,
    ended: bool,
}

impl Signals {
    /// Signals since they were last taken, 0 if none; does not wait.
    ///
    /// # Errors
    /// The descriptor is no eventfd: a broker that does not keep its word.
    pub fn take(&mut self) -> Result<u64, ClientError> {
        let mut count = [0; size_of::<u64>()];
        let read = match poll_in(self.wait.as_fd())? {
            true => rustix::io::read(&self.wait, &mut count),
            false => Err(Errno::AGAIN),
        };
        match read {
            Ok(8) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Ok(_) => return Err(ClientError::Answer),
            Err(source) => {
                let what = "read the wait eventfd";
                return Err(ClientError::System { what, source });
            }
        }
        let count = u64::from_ne_bytes(count);
        self.ended |= count >= WAIT_END;
        Ok(count % WAIT_END)
    }

    /// Whether the end of the segment was seen.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Waits for at least one signal, or the end; up to `timeout`, for ever if
    /// `None`.
    ///
    /// # Errors
    /// [`ClientError::Timeout`]; [`ClientError::BrokerGone`] once nothing is
    /// left to take.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Waited, ClientError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let count = self.take()?;
            if count > 0 {
                return Ok(Waited::Signals(count));
            }
            if self.ended {
                return Ok(Waited::Ended);
            }
            let mut fds = [
                PollFd::new(&self.wait, PollFlags::IN),
                // Nothing asked for: what remains is hanging up.
                PollFd::new(&*self.broker, PollFlags::empty()),
            ];
            match poll(&mut fds, time_left(deadline).as_ref()) {
                Ok(0) => return Err(ClientError::Timeout),
                // Its last words may have come after its eventfd was looked at.
                Ok(_) if fds[0].revents().is_empty() && !poll_in(self.wait.as_fd())? => {
                    return Err(ClientError::BrokerGone);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(source) => {
                    let what = "wait for a signal";
                    return Err(ClientError::System { what, source });
                }
            }
        }
    }
}

impl AsFd for Signals {
    /// Readable when [`Signals::take`] would find something: for event loops.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wait.as_fd()
    }
}

impl Broker {
    /// Subscribes to the signals of a segment: as the holder of an apid, or as
    /// the exporter of a segid.
    ///
    /// # Errors
    /// EACCES if the segment was not made signallable, EEXIST if there is a
    /// subscription already, EIDRM if it has ended, EPERM for the segid of
    /// somebody else's segment.
    pub fn subscribe(&mut self, target: Target) -> Result<Signals, ClientError> {
        let (reply, fds) = self.call(&Request::Subscribe { target })?;
        match (reply, <[OwnedFd; 1]>::try_from(fds)) {
            (Reply::Subscribed, Ok([wait])) => Ok(Signals {
                wait,
                broker: Arc::clone(&self.connection.socket),
                ended: false,
            }),
            _ => Err(ClientError::Answer),
        }
    }

    /// Signals every subscriber of a segment but the one named here. The segid
    /// of another's segment means: get, signal, release.
    ///
    /// # Errors
    /// EACCES if the segment was not made signallable, or without read
    /// permission; EIDRM if it has ended; EBADFD if it is not mapped yet.
    pub fn signal(&mut self, target: Target) -> Result<(), ClientError> {
        self.done(&Request::Signal { target })
    }
}

/// Whether `fd` can be read at once, whatever it is: a descriptor that blocks
/// must not block us.
fn poll_in(fd: BorrowedFd<'_>) -> Result<bool, ClientError> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    match poll(&mut fds, Some(&now)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(source) => {
            let what = "look at the wait eventfd";
            Err(ClientError::System { what, source })
        }
    }
}
