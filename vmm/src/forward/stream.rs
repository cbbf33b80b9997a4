//! Reads and writes that may have to wait, and that a kill can interrupt.
//!
//! Called by the handlers of read, write and sendfile. The VMM's thread must
//! never be stuck in a call on behalf of a program: before anything that can
//! wait it polls the descriptor together with the cancel eventfd, and the call
//! itself does not wait. Terminals of the caller that cannot be opened a
//! second time are the one exception: there, a reader that takes the input
//! between poll and read lets the read wait for the next line.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::exports::Exports;
use super::table::{HostFile, Origin, Wait};

/// Most bytes a plain write can take without waiting once poll said a pipe is
/// writable (pipe(7), PIPE_BUF).
const PIPE_BUF: usize = 4096;
/// The position argument that means "the current position" (preadv2(2)).
const CURRENT_POSITION: u64 = u64::MAX;

/// Waits until `fd` is ready for `events` or in error.
///
/// # Errors
///
/// EINTR when `cancel` is readable first.
pub(super) fn wait_ready(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    cancel: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let mut fds = [
        PollFd::from_borrowed_fd(fd, events),
        PollFd::from_borrowed_fd(cancel, PollFlags::IN),
    ];
    poll_until(&mut fds, None)?;
    if fds[1].revents().is_empty() {
        Ok(())
    } else {
        Err(Errno::INTR)
    }
}

/// Waits `time`, or for ever.
///
/// # Errors
///
/// EINTR when `cancel` is readable.
pub(super) fn pause(cancel: BorrowedFd<'_>, time: Option<Duration>) -> Result<(), Errno> {
    let deadline = time.and_then(|time| Instant::now().checked_add(time));
    let mut fds = [PollFd::from_borrowed_fd(cancel, PollFlags::IN)];
    match poll_until(&mut fds, deadline)? {
        0 => Ok(()),
        _ => Err(Errno::INTR),
    }
}

/// Polls until one of `fds` answers or `deadline` is over; signals do not end
/// it.
///
/// # Errors
///
/// The kernel's, EINTR excepted.
pub(super) fn poll_until(
    fds: &mut [PollFd<'_>],
    deadline: Option<Instant>,
) -> Result<usize, Errno> {
    loop {
        let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Reads at the current position.
///
/// # Errors
///
/// The kernel's; EINTR when cancelled, EAGAIN when `nonblocking` and nothing
/// is there.
pub(super) fn read(
    file: &HostFile,
    nonblocking: bool,
    buffer: &mut [u8],
    cancel: BorrowedFd<'_>,
) -> Result<usize, Errno> {
    let waits = file.wait != Wait::Never && !nonblocking && !buffer.is_empty();
    loop {
        if waits {
            wait_ready(file.fd.as_fd(), PollFlags::IN, cancel)?;
        }
        match read_once(file, buffer) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if waits => {}
            other => return other,
        }
    }
}

/// Writes at the current position: all of `data` where that may wait, else
/// what fits.
///
/// # Errors
///
/// As [`read`]; an error after some bytes were written is not reported, the
/// count is.
pub(super) fn write(
    file: &HostFile,
    nonblocking: bool,
    data: &[u8],
    cancel: BorrowedFd<'_>,
) -> Result<usize, Errno> {
    if file.wait == Wait::Never {
        return rustix::io::retry_on_intr(|| rustix::io::write(&file.fd, data));
    }
    let waits = !nonblocking && !data.is_empty();
    let mut done = 0;
    loop {
        let ready = if waits {
            wait_ready(file.fd.as_fd(), PollFlags::OUT, cancel)
        } else {
            Ok(())
        };
        let rest = &data[done..];
        match ready.and_then(|()| rustix::io::retry_on_intr(|| write_once(file, rest))) {
            Ok(0) => return Ok(done),
            Ok(count) => done += count,
            Err(Errno::AGAIN) if waits => {}
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => return Ok(done),
        }
        if done >= data.len() || !waits {
            return Ok(done);
        }
    }
}

fn read_once(file: &HostFile, buffer: &mut [u8]) -> Result<usize, Errno> {
    if file.wait != Wait::Shared {
        return rustix::io::read(&file.fd, buffer);
    }
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = ReadWriteFlags::NOWAIT;
    match rustix::io::preadv2(&file.fd, &mut parts, CURRENT_POSITION, flags) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        other => return other,
    }
    if !is_ready(file.fd.as_fd(), PollFlags::IN) {
        return Err(Errno::AGAIN);
    }
    rustix::io::read(&file.fd, buffer)
}

fn write_once(file: &HostFile, data: &[u8]) -> Result<usize, Errno> {
    if file.wait != Wait::Shared {
        return rustix::io::write(&file.fd, data);
    }
    let parts = [IoSlice::new(data)];
    let flags = ReadWriteFlags::NOWAIT;
    match rustix::io::pwritev2(&file.fd, &parts, CURRENT_POSITION, flags) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        other => return other,
    }
    if !is_ready(file.fd.as_fd(), PollFlags::OUT) {
        return Err(Errno::AGAIN);
    }
    rustix::io::write(&file.fd, &data[..data.len().min(PIPE_BUF)])
}

fn is_ready(fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, events)];
    matches!(
        rustix::event::poll(&mut fds, Some(&Timespec::default())),
        Ok(1)
    )
}

/// Wraps a standard descriptor of the caller.
///
/// A pseudo-terminal is opened a second time so that it can be read without
/// waiting and without touching the caller's flags.
pub(super) fn standard(fd: OwnedFd, origin: Origin, exports: &Exports) -> (HostFile, u32) {
    let status = rustix::fs::fcntl_getfl(&fd).map_or(0, |flags| flags.bits());
    let kind = rustix::fs::fstat(&fd).map(|stat| (FileType::from_raw_mode(stat.st_mode), stat));
    let (fd, wait) = match kind {
        Ok((FileType::RegularFile | FileType::Directory | FileType::BlockDevice, _)) => {
            (fd, Wait::Never)
        }
        // Majors 136 to 143 are the terminal side of pseudo-terminals.
        Ok((_, stat)) if (136..=143).contains(&rustix::fs::major(stat.st_rdev)) => {
            match reopen(&fd, status, exports) {
                Some(private) => (private, Wait::Private),
                None => (fd, Wait::Shared),
            }
        }
        _ => (fd, Wait::Shared),
    };
    (HostFile { fd, wait, origin }, status)
}

fn reopen(fd: &OwnedFd, status: u32, exports: &Exports) -> Option<OwnedFd> {
    let access = OFlags::from_bits_retain(status) & OFlags::ACCMODE;
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let (descriptors, name) = exports.descriptor(fd.as_fd());
    rustix::fs::openat(descriptors, name, flags, Mode::empty()).ok()
}
