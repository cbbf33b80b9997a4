//! Frames and descriptors over a Unix SOCK_SEQPACKET socket.
//!
//! Used by [`crate::server`] and [`crate::client`]. One call moves one packet;
//! whatever descriptors came with it are owned by the returned [`Packet`], so
//! dropping that closes them. Knows nothing of what messages mean.

use super::{MAX_FDS, MAX_MESSAGE};
use core::mem::MaybeUninit;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One received packet.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes; one more than [`MAX_MESSAGE`] when it was longer. Empty at
    /// the end of the connection (an empty packet counts as the end, too).
    pub bytes: Vec<u8>,
    /// Its descriptors, about [`MAX_FDS`] at most.
    pub fds: Vec<OwnedFd>,
    /// There were more descriptors than fit; the kernel closed those.
    pub fds_cut: bool,
}

/// Receives one packet; blocks if `socket` does.
///
/// # Errors
/// What recvmsg(2) says; `EINTR` is handled.
pub fn receive(socket: impl AsFd) -> Result<Packet, Errno> {
    receive_with(socket, RecvFlags::CMSG_CLOEXEC)
}

/// As [`receive`], but the packet stays; its descriptors are further ones.
///
/// # Errors
/// As there.
pub fn peek(socket: impl AsFd) -> Result<Packet, Errno> {
    receive_with(socket, RecvFlags::CMSG_CLOEXEC | RecvFlags::PEEK)
}

/// Takes a packet that [`peek`] has shown, descriptors included.
///
/// # Errors
/// What recv(2) says.
pub fn discard(socket: impl AsFd) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::net::recv(&socket, &mut [0; 0], RecvFlags::empty()))?;
    Ok(())
}

fn receive_with(socket: impl AsFd, flags: RecvFlags) -> Result<Packet, Errno> {
    let mut bytes = vec![0; MAX_MESSAGE + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(&socket, &mut parts, &mut control, flags) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    bytes.truncate(received.bytes);
    Ok(Packet {
        bytes,
        fds,
        fds_cut: received.flags.contains(ReturnFlags::CTRUNC),
    })
}

/// Sends one packet; blocks if `socket` does.
///
/// # Errors
/// What sendmsg(2) says (`EPIPE` without a signal); `EINTR` is handled.
/// `EMSGSIZE` if `fds` are more than [`MAX_FDS`].
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MAX_FDS {
        return Err(Errno::MSGSIZE);
    }
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    loop {
        let parts = [IoSlice::new(bytes)];
        match rustix::net::sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other.map(|_| ()),
        }
    }
}
