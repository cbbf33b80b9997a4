//! Signals as a file descriptor, and closing inherited descriptors.
//!
//! Used at the start of `enclave-vmm` and by `enclavectl run`: the only system
//! calls of the control side that have no safe wrapper. Must be called before
//! threads start, so that every thread inherits the blocked mask.

// UNSAFETY: signalfd, close_range and adopting an inherited descriptor by
// number have no safe wrapper.
#![expect(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use vmm_sys_util::signal::{block_signal, create_sigset};

/// Interrupt from the keyboard.
pub const SIGINT: i32 = libc::SIGINT;
/// Quit from the keyboard.
pub const SIGQUIT: i32 = libc::SIGQUIT;
/// Hang-up.
pub const SIGHUP: i32 = libc::SIGHUP;
/// Termination.
pub const SIGTERM: i32 = libc::SIGTERM;

/// Blocked signals, readable.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks `signals` in the calling thread and opens a descriptor for them.
    ///
    /// # Errors
    /// That of the operating system.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        for &signal in signals {
            match block_signal(signal) {
                Ok(()) | Err(vmm_sys_util::signal::Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
        let set = create_sigset(signals).map_err(io::Error::from)?;
        // SAFETY: `set` is an initialised signal set that outlives the call.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above has just made `fd`, nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next pending signal, `None` when there is none.
    ///
    /// # Errors
    /// That of the operating system.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut record[..]) {
            // The signal number is the first field (signalfd(2)).
            Ok(count) if count == record.len() => {
                let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
                Ok(i32::try_from(number).ok())
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Closes every descriptor above standard error except `keep`, which is
/// returned owned (`None` when it is not open).
///
/// Only for the first lines of `main`: descriptors that some value of this
/// process owns would be closed under it.
///
/// # Errors
/// That of the operating system.
pub fn keep_only(keep: Option<RawFd>) -> io::Result<Option<OwnedFd>> {
    let first = 3;
    let Some(fd) = keep.filter(|&fd| fd >= first) else {
        close_range(first, RawFd::MAX)?;
        return Ok(None);
    };
    if fd > first {
        close_range(first, fd - 1)?;
    }
    if fd < RawFd::MAX {
        close_range(fd + 1, RawFd::MAX)?;
    }
    // SAFETY: `fd` was inherited; no value of this process owns it, because
    // this runs before the process opened anything.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    if rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).is_err() {
        return Ok(None);
    }
    // SAFETY: as above, and fcntl has shown that it is open.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: closes descriptors nobody owns (see `keep_only`); no memory is
    // passed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_once() {
        // Thread-directed, so that other tests of this process never see it.
        let signals = SignalFd::new(&[libc::SIGUSR2]).unwrap();
        assert_eq!(signals.next().unwrap(), None);
        // SAFETY: the calling thread exists and has the signal blocked.
        let sent = unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
        assert_eq!(sent, 0);
        assert_eq!(signals.next().unwrap(), Some(libc::SIGUSR2));
        assert_eq!(signals.next().unwrap(), None);
    }
}
