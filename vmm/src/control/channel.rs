//! Lines and descriptors over a Unix stream socket, without interpretation.
//!
//! Used by server and client. Bounds everything the other side can make us
//! hold: a line by [`MAX_LINE_BYTES`], descriptors by [`RUN_FDS`]. Descriptors
//! belong to the line whose bytes they came with.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::protocol::{MAX_LINE_BYTES, RUN_FDS};

/// Bytes taken from the socket at once.
const CHUNK_BYTES: usize = 64 << 10;

/// A line and the descriptors that came with it.
#[derive(Debug)]
pub struct Line {
    /// The bytes, without the newline.
    pub bytes: Vec<u8>,
    /// The descriptors.
    pub fds: Vec<OwnedFd>,
}

/// What one look at the socket brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something; there may be more.
    Read,
    /// Nothing for now.
    Empty,
    /// The other side has closed.
    Closed,
}

/// What the other side sent that no well-behaved one sends.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A line without an end.
    #[error("a message of more than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// More descriptors than any message has.
    #[error("more than {RUN_FDS} descriptors with a message")]
    TooManyFds,
    /// The socket failed.
    #[error("the control socket failed: {0}")]
    Io(#[from] io::Error),
}

/// Bytes and descriptors received and not yet handed out.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    searched: usize,
}

impl Inbox {
    /// Receives once from `socket`.
    ///
    /// # Errors
    /// [`ChannelError`]; the connection is then of no further use.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<Progress, ChannelError> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RUN_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = match rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(socket, &mut parts, &mut control, flags)
        }) {
            Ok(message) => message,
            Err(rustix::io::Errno::AGAIN) => return Ok(Progress::Empty),
            Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::PIPE) => {
                return Ok(Progress::Closed);
            }
            Err(error) => return Err(ChannelError::Io(error.into())),
        };
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = ancillary {
                self.fds.extend(fds);
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > RUN_FDS {
            return Err(ChannelError::TooManyFds);
        }
        if message.bytes == 0 {
            return Ok(Progress::Closed);
        }
        self.bytes.extend_from_slice(&chunk[..message.bytes]);
        Ok(Progress::Read)
    }

    /// The next whole line, if there is one.
    ///
    /// # Errors
    /// [`ChannelError::TooLong`].
    pub fn next_line(&mut self) -> Result<Option<Line>, ChannelError> {
        let unseen = &self.bytes[self.searched..];
        let Some(found) = unseen.iter().position(|&b| b == b'\n') else {
            self.searched = self.bytes.len();
            if self.bytes.len() >= MAX_LINE_BYTES {
                return Err(ChannelError::TooLong);
            }
            return Ok(None);
        };
        let end = self.searched + found;
        if end >= MAX_LINE_BYTES {
            return Err(ChannelError::TooLong);
        }
        let rest = self.bytes.split_off(end + 1);
        let mut bytes = std::mem::replace(&mut self.bytes, rest);
        bytes.truncate(end);
        self.searched = 0;
        Ok(Some(Line {
            bytes,
            fds: std::mem::take(&mut self.fds),
        }))
    }
}

/// Sends what the socket takes of `bytes`, with `fds` along the first byte;
/// returns how many bytes went.
///
/// # Errors
/// That of the socket, `WouldBlock` included.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RUN_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let parts = [IoSlice::new(bytes)];
    Ok(rustix::net::sendmsg(
        socket,
        &parts,
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// Sends all of `bytes` on a blocking socket.
///
/// # Errors
/// That of the socket.
pub fn send_all(socket: impl AsFd, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(socket.as_fd(), bytes, fds) {
            Ok(count) => {
                bytes = &bytes[count..];
                fds = &[];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
