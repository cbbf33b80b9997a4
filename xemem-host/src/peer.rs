//! Who is at the other end of a Unix socket, as the kernel says.
//!
//! Used by the server at accept. The kernel remembers user, groups and process
//! as they were when the peer connected; no message is believed.

// UNSAFETY: getsockopt(2) for options that rustix has no function for, or one
// that cannot express a peer outside our process-id namespace (pid 0).
#![expect(unsafe_code)]

use crate::broker::Credentials;
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Socket option, include/uapi/asm-generic/socket.h.
const SO_PEERPIDFD: i32 = 77;
/// Most supplementary groups the kernel gives a process.
const MAX_GROUPS: usize = 65_536;

/// Credentials of the process that connected `socket`.
///
/// # Errors
/// What getsockopt(2) says.
pub(crate) fn credentials(socket: impl AsFd) -> Result<Credentials, Errno> {
    let peer = peer(&socket)?;
    Ok(Credentials {
        uid: peer.uid,
        gid: peer.gid,
        groups: groups(socket)?,
    })
}

fn peer(socket: impl AsFd) -> Result<libc::ucred, Errno> {
    let mut peer = [libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    }];
    let filled = option(socket, libc::SO_PEERCRED, &mut peer)?;
    let [peer] = peer;
    if filled == size_of::<libc::ucred>() {
        Ok(peer)
    } else {
        Err(Errno::PROTO)
    }
}

/// Readable when the process that connected `socket` has ended, even if a child
/// of it still holds the other end. `None` if there is no telling, as for a
/// process outside our process-id namespace before Linux 6.5.
pub(crate) fn process(socket: impl AsFd) -> Option<OwnedFd> {
    let mut fd = [u32::MAX];
    let filled = option(&socket, SO_PEERPIDFD, &mut fd);
    let raw = i32::try_from(fd[0]).ok();
    match raw.filter(|_| filled == Ok(size_of::<u32>())) {
        // SAFETY: the kernel has just made this descriptor for us alone.
        Some(raw) => Some(unsafe { OwnedFd::from_raw_fd(raw) }),
        None => process_of_id(peer(socket).ok()?.pid),
    }
}

/// The process that has this id now. Should that be another one by now, the
/// one that connected has ended, and its connection ends with the other.
fn process_of_id(pid: i32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
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
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn a_process_that_lives_is_not_said_to_have_ended() {
        let flags = SocketFlags::CLOEXEC;
        let (left, _right) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair");
        let pid = i32::try_from(std::process::id()).expect("a pid");
        for process in [process(&left), process_of_id(pid)] {
            let process = process.expect("a process");
            let mut fds = [PollFd::new(&process, PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&Timespec::default())), Ok(0));
            let flags = rustix::io::fcntl_getfd(&process).expect("flags");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        // What the kernel says of one that is in another namespace.
        assert!(process_of_id(0).is_none());
    }

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
