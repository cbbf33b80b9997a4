//! Waiting: for several descriptors of a program at once, or for time.
//!
//! Handlers of the table in [`super::calls`]. Numbers that are not open answer
//! POLLNVAL and synthetic directories are always ready, as on Linux; the
//! cancel eventfd is watched along with the rest.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::table::{Object, TABLE_SLOTS};
use super::{Reply, Request, Session, stream};

/// Bytes of `struct pollfd`.
const ENTRY_BYTES: usize = 8;
/// What a file that never waits answers, of what was asked.
const ALWAYS_READY: PollFlags = PollFlags::IN
    .union(PollFlags::OUT)
    .union(PollFlags::RDNORM)
    .union(PollFlags::WRNORM);

/// `poll(array at 0, entries, timeout in milliseconds)`.
pub(super) fn poll(session: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    let count = usize::try_from(request.unsigned(1)).map_err(|_| Errno::INVAL)?;
    if count > TABLE_SLOTS {
        return Err(Errno::INVAL);
    }
    let mut data = request
        .input
        .get(..count * ENTRY_BYTES)
        .ok_or(Errno::FAULT)?
        .to_vec();
    // Which entry each host descriptor answers for; the last is the cancel.
    let mut owners = Vec::with_capacity(count);
    let mut fds = Vec::with_capacity(count + 1);
    let mut ready = 0;
    for (at, entry) in data.chunks_exact_mut(ENTRY_BYTES).enumerate() {
        let [a, b, c, d, low, high, _, _] = *entry else {
            return Err(Errno::FAULT);
        };
        let fd = i32::from_le_bytes([a, b, c, d]);
        let events = PollFlags::from_bits_retain(u16::from_le_bytes([low, high]));
        let answer = match session.table.get(fd) {
            Ok(description) => match &description.object {
                Object::Host(file) => {
                    owners.push(at);
                    fds.push(PollFd::from_borrowed_fd(file.fd.as_fd(), events));
                    PollFlags::empty()
                }
                Object::Listing { .. } => events & ALWAYS_READY,
            },
            Err(_) if fd < 0 => PollFlags::empty(),
            Err(_) => PollFlags::NVAL,
        };
        ready += i64::from(!answer.is_empty());
        entry[6..].copy_from_slice(&answer.bits().to_le_bytes());
    }
    fds.push(PollFd::from_borrowed_fd(request.cancel, PollFlags::IN));
    let timeout = if ready > 0 { 0 } else { request.int(2) };
    // A negative timeout is none.
    let timeout = u64::try_from(timeout).ok().map(Duration::from_millis);
    let deadline = timeout.map(|time| Instant::now() + time);
    stream::poll_until(&mut fds, deadline)?;
    if fds
        .last()
        .is_some_and(|cancel| !cancel.revents().is_empty())
    {
        return Err(Errno::INTR);
    }
    for (fd, at) in fds.iter().zip(owners) {
        let answer = fd.revents();
        ready += i64::from(!answer.is_empty());
        let start = at * ENTRY_BYTES + 6;
        data[start..start + 2].copy_from_slice(&answer.bits().to_le_bytes());
    }
    Ok(Reply {
        result: ready,
        data,
        data_offset: 0,
    })
}

/// `nanosleep(nanoseconds)`: the kernel has already made it relative.
pub(super) fn nanosleep(_: &mut Session, request: &Request<'_>) -> Result<Reply, Errno> {
    stream::pause(request.cancel, Some(Duration::from_nanos(request.args[0])))?;
    Ok(Reply::value(0))
}
