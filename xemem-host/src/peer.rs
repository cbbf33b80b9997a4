//! Who is at the other end of a Unix socket, as the kernel says.
//!
//! Used by the server at accept. The kernel remembers user and groups as they
//! were when the peer connected; no message is believed.

// UNSAFETY: getsockopt(2) for options that rustix has no function for, or one
// that cannot express a peer outside our process-id namespace (pid 0).
#![expect(unsafe_code)]

use crate::broker::Credentials;
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// Most supplementary groups the kernel gives a process.
const MAX_GROUPS: usize = 65_536;

/// Credentials of the process that connected `socket`.
///
/// # Errors
/// What getsockopt(2) says.
pub(crate) fn credentials(socket: impl AsFd) -> Result<Credentials, Errno> {
    let mut peer = [libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    }];
    let filled = option(&socket, libc::SO_PEERCRED, &mut peer)?;
    let [peer] = peer;
    if filled != size_of::<libc::ucred>() {
        return Err(Errno::PROTO);
    }
    Ok(Credentials {
        uid: peer.uid,
        gid: peer.gid,
        groups: groups(socket)?,
    })
}

fn groups(socket: impl AsFd) -> Result<Vec<u32>, Errno> {
    let mut room = 64;
    while room <= MAX_GROUPS {
        let mut groups = vec![0_u32; room];
        match option(&socket, libc::SO_PEERGROUPS, &mut groups) {
            Ok(bytes) => {
                groups.truncate(bytes / size_of::<u32>());
                return Ok(groups);
            }
            Err(Errno::RANGE) => room *= 4,
            // Kernels before 4.13: the primary group has to do.
            Err(Errno::NOPROTOOPT) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::RANGE)
}

/// Fills `values` with a socket option; returns the bytes filled. `T` is plain
/// integers: [`libc::ucred`] or `u32`.
fn option<T: Plain>(socket: impl AsFd, name: i32, values: &mut [T]) -> Result<usize, Errno> {
    let bytes = size_of_val(values);
    let mut len = libc::socklen_t::try_from(bytes).map_err(|_| Errno::INVAL)?;
    // SAFETY: `values` is `len` writable bytes that may hold any bit pattern
    // (`Plain`); the kernel writes at most `len` of them and stores to `len`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    usize::try_from(len)
        .ok()
        .filter(|&filled| filled <= bytes)
        .ok_or(Errno::PROTO)
}

/// Types of which every bit pattern is a value.
trait Plain {}
impl Plain for u32 {}
impl Plain for libc::ucred {}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn our_own_pair_shows_our_own_identity() {
        let (left, _right) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socketpair");
        let peer = credentials(&left).expect("credentials");
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getgid().as_raw());
        let groups = rustix::process::getgroups().expect("getgroups");
        let mut ours: Vec<u32> = groups.iter().map(|group| group.as_raw()).collect();
        let mut seen = peer.groups;
        ours.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, ours);
    }
}
