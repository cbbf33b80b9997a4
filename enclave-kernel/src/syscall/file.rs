//! File calls: packed into the bounce area and forwarded to the host.
//!
//! The packing is `enclave-abi/syscall`. Data is copied between program and
//! bounce area by the kernel, so a transfer into an arena goes through
//! copy-on-write like any other store. Nothing is decided here: descriptors,
//! paths and rights are the host's.

use enclave_abi::layout::{BOUNCE, BOUNCE_BYTES, USER_END};
use enclave_core::errno::Errno;
use enclave_core::signal::number::SIGPIPE;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Outcome, signal};
use crate::{clock, host, phys, signals, threads, user};

/// poll(2).
const POLL: u64 = 7;
const POLLIN: u16 = 1;
const POLLOUT: u16 = 4;
const NS_PER_MS: u64 = 1_000_000;
/// Offset of second paths and of in-out structures.
const SECOND: u64 = 4096;
/// Most pieces of a vectored transfer (Linux's UIO_MAXIOV).
const IOV_MAX: u64 = 1024;

fn result(value: i64) -> Outcome {
    if value < 0 {
        Err(errno(value))
    } else {
        Ok(value.cast_unsigned())
    }
}

fn errno(value: i64) -> Errno {
    Errno::from_result(value.cast_unsigned()).unwrap_or(Errno::EIO)
}

/// One piece of readv or writev.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Iovec {
    base: u64,
    len: u64,
}

/// read, write, pread64, pwrite64, readv, writev, preadv, pwritev.
pub(super) fn transfer(nr: u64, [fd, base, len, offset, ..]: [u64; 6]) -> Outcome {
    match nr {
        0 => read(fd, base, len, None),
        1 => write(fd, base, len, None),
        17 => read(fd, base, len, Some(offset)),
        18 => write(fd, base, len, Some(offset)),
        295 | 296 if offset.cast_signed() < 0 => Err(Errno::EINVAL),
        295 | 296 => vectored(nr == 295, fd, (base, len), Some(offset)),
        _ => vectored(nr == 19, fd, (base, len), None),
    }
}

fn vectored(reading: bool, fd: u64, (list, count): (u64, u64), offset: Option<u64>) -> Outcome {
    if count > IOV_MAX {
        return Err(Errno::EINVAL);
    }
    let piece = |n: u64| -> Result<Iovec, Errno> {
        let at = list.checked_add(n * 16).ok_or(Errno::EFAULT)?;
        let piece: Iovec = user::read(at)?;
        // Linux looks at all of them before it moves a byte.
        if piece.len.cast_signed() < 0 {
            return Err(Errno::EINVAL);
        }
        let end = piece.base.checked_add(piece.len);
        if end.is_none_or(|end| end > USER_END) {
            return Err(Errno::EFAULT);
        }
        Ok(piece)
    };
    for n in 0..count {
        piece(n)?;
    }
    let mut done = 0;
    for n in 0..count {
        let piece = piece(n)?;
        let offset = offset.map(|offset| offset.saturating_add(done));
        // Without a byte it still tells whether the descriptor is good.
        let part = if piece.len == 0 && n + 1 < count {
            continue;
        } else if reading {
            read(fd, piece.base, piece.len, offset)
        } else {
            write(fd, piece.base, piece.len, offset)
        };
        match part {
            Ok(bytes) if bytes == piece.len => done += bytes,
            Ok(bytes) => return Ok(done + bytes),
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Keeps a call that would wait for `events` of `fd` from holding the core while
/// other threads may run: the one it waits for may be among them.
///
/// # Errors
/// [`threads::LATER`] when it would wait.
fn give_way(fd: u64, events: u16) -> Result<(), Errno> {
    const FCNTL: u64 = 72;
    const F_GETFL: u64 = 3;
    const O_NONBLOCK: u64 = 0o4000;
    // Numbers of no descriptor are the call's own to refuse.
    let Ok(number) = i32::try_from(fd) else {
        return Ok(());
    };
    if number < 0 || !threads::others_may_run() {
        return Ok(());
    }
    let [a, b, c, d] = number.to_le_bytes();
    let [low, high] = events.to_le_bytes();
    phys::write_bytes(BOUNCE, &[a, b, c, d, low, high, 0, 0]);
    if host::forward(POLL, [0, 1, 0, 0, 0], 8) != 0 {
        return Ok(());
    }
    match result(host::forward(FCNTL, [fd, F_GETFL, 0, 0, 0], 0)) {
        Ok(flags) if flags & O_NONBLOCK == 0 => Err(threads::LATER),
        _ => Ok(()),
    }
}

/// Reads once, at most a bounce area full: short reads are every program's
/// to expect.
fn read(fd: u64, base: u64, len: u64, offset: Option<u64>) -> Outcome {
    let want = len.min(BOUNCE_BYTES);
    user::check_writable(base, want)?;
    let nr = if offset.is_some() { 17 } else { 0 };
    if offset.is_none() && want != 0 {
        give_way(fd, POLLIN)?;
    }
    let got = result(host::forward(nr, [fd, 0, want, offset.unwrap_or(0), 0], 0))?;
    if got > want {
        return Err(Errno::EIO);
    }
    user::copy_out_phys(base, BOUNCE, got)?;
    Ok(got)
}

/// Writes everything unless the host takes less.
fn write(fd: u64, base: u64, len: u64, offset: Option<u64>) -> Outcome {
    let nr = if offset.is_some() { 18 } else { 1 };
    let mut done = 0;
    loop {
        let part = (len - done).min(BOUNCE_BYTES);
        let from = base.checked_add(done).ok_or(Errno::EFAULT)?;
        let at = offset.unwrap_or(0).wrapping_add(done);
        if offset.is_none() && part != 0 {
            match give_way(fd, POLLOUT) {
                Err(_) if done > 0 => return Ok(done),
                other => other?,
            }
        }
        let copied = user::copy_in_phys(from, BOUNCE, part);
        let taken = copied.and_then(|()| result(host::forward(nr, [fd, 0, part, at, 0], part)));
        match taken {
            Ok(bytes) if bytes > part => return Err(Errno::EIO),
            Ok(bytes) => done += bytes,
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => {
                if errno == Errno::EPIPE {
                    signal::raise(SIGPIPE);
                }
                return Err(errno);
            }
        }
        if done == len || taken.is_ok_and(|bytes| bytes < part) {
            return Ok(done);
        }
    }
}

/// What a forwarded call's pointer argument means.
#[derive(Clone, Copy)]
enum Arg {
    /// A number, passed on.
    Number,
    /// A path, to the start of the bounce area.
    Path,
    /// As [`Arg::Path`]; null stands for an empty one.
    PathOrNull,
    /// A second path, behind the first.
    SecondPath,
    /// A structure of so many bytes that the host fills in.
    Out(u64),
    /// A structure that goes there; may be null.
    In(u64),
    /// One that goes there and comes back; may be null.
    InOut(u64),
    /// A buffer whose length is the next argument; the result says how much
    /// comes back.
    Buffer,
}

use Arg::{Buffer, In, InOut, Number, Out, Path, PathOrNull, SecondPath};

const STAT: u64 = 144;
const STATFS: u64 = 120;
const STATX: u64 = 256;

/// The forwarded calls and their arguments.
const CALLS: &[(u64, &[Arg])] = &[
    (2, &[Path, Number, Number]),                       // open
    (3, &[Number]),                                     // close
    (4, &[Path, Out(STAT)]),                            // stat
    (5, &[Number, Out(STAT)]),                          // fstat
    (6, &[Path, Out(STAT)]),                            // lstat
    (8, &[Number, Number, Number]),                     // lseek
    (21, &[Path, Number]),                              // access
    (22, &[Out(8)]),                                    // pipe
    (32, &[Number]),                                    // dup
    (33, &[Number, Number]),                            // dup2
    (40, &[Number, Number, InOut(8), Number]),          // sendfile
    (72, &[Number, Number, Number]),                    // fcntl
    (73, &[Number, Number]),                            // flock
    (74, &[Number]),                                    // fsync
    (75, &[Number]),                                    // fdatasync
    (76, &[Path, Number]),                              // truncate
    (77, &[Number, Number]),                            // ftruncate
    (79, &[Buffer, Number]),                            // getcwd
    (80, &[Path]),                                      // chdir
    (81, &[Number]),                                    // fchdir
    (82, &[Path, SecondPath]),                          // rename
    (83, &[Path, Number]),                              // mkdir
    (84, &[Path]),                                      // rmdir
    (85, &[Path, Number]),                              // creat
    (86, &[Path, SecondPath]),                          // link
    (87, &[Path]),                                      // unlink
    (88, &[Path, SecondPath]),                          // symlink
    (89, &[Path, Buffer, Number]),                      // readlink
    (90, &[Path, Number]),                              // chmod
    (91, &[Number, Number]),                            // fchmod
    (92, &[Path, Number, Number]),                      // chown
    (93, &[Number, Number, Number]),                    // fchown
    (94, &[Path, Number, Number]),                      // lchown
    (95, &[Number]),                                    // umask
    (137, &[Path, Out(STATFS)]),                        // statfs
    (138, &[Number, Out(STATFS)]),                      // fstatfs
    (217, &[Number, Buffer, Number]),                   // getdents64
    (221, &[Number, Number, Number, Number]),           // fadvise64
    (257, &[Number, Path, Number, Number]),             // openat
    (258, &[Number, Path, Number]),                     // mkdirat
    (260, &[Number, Path, Number, Number, Number]),     // fchownat
    (262, &[Number, Path, Out(STAT), Number]),          // newfstatat
    (263, &[Number, Path, Number]),                     // unlinkat
    (264, &[Number, Path, Number, SecondPath]),         // renameat
    (265, &[Number, Path, Number, SecondPath, Number]), // linkat
    (266, &[Path, Number, SecondPath]),                 // symlinkat
    (267, &[Number, Path, Buffer, Number]),             // readlinkat
    (268, &[Number, Path, Number]),                     // fchmodat
    (269, &[Number, Path, Number]),                     // faccessat
    (280, &[Number, PathOrNull, In(32), Number]),       // utimensat
    (285, &[Number, Number, Number, Number]),           // fallocate
    (292, &[Number, Number, Number]),                   // dup3
    (293, &[Out(8), Number]),                           // pipe2
    (316, &[Number, Path, Number, SecondPath, Number]), // renameat2
    (318, &[Buffer, Number, Number]),                   // getrandom
    (332, &[Number, Path, Number, Number, Out(STATX)]), // statx
    (439, &[Number, Path, Number, Number]),             // faccessat2
];

/// What has to be copied back after a forwarded call.
struct Back {
    to: u64,
    from: u64,
    /// `None`: as many bytes as the result says, at most the limit.
    bytes: Option<u64>,
    limit: u64,
}

/// Forwards `nr` if it is a file call.
pub(super) fn serve(nr: u64, a: [u64; 6]) -> Option<Outcome> {
    match nr {
        7 => return Some(poll(a[0], a[1], a[2])),
        271 => return Some(ppoll(a)),
        16 => return Some(ioctl(a[0], a[1], a[2])),
        _ => {}
    }
    let (_, shape) = CALLS.iter().find(|(number, _)| *number == nr)?;
    Some(forward(nr, a, shape))
}

fn forward(nr: u64, a: [u64; 6], shape: &[Arg]) -> Outcome {
    let mut packed = [a[0], a[1], a[2], a[3], a[4]];
    let mut back: Option<Back> = None;
    let mut bytes = 0;
    for (n, arg) in shape.iter().enumerate() {
        let (Some(place), Some(&value)) = (packed.get_mut(n), a.get(n)) else {
            continue;
        };
        match *arg {
            Number => {}
            PathOrNull if value == 0 => {
                phys::write_bytes(BOUNCE, &[0]);
                bytes = bytes.max(1);
                *place = 0;
            }
            Path | PathOrNull | SecondPath => {
                let at = if matches!(arg, SecondPath) { SECOND } else { 0 };
                let path = user::read_path(value)?;
                phys::write_bytes(BOUNCE + at, &path);
                bytes = bytes.max(at + path.len() as u64);
                *place = at;
            }
            Out(size) => {
                user::check_writable(value, size)?;
                back = Some(Back {
                    to: value,
                    from: SECOND,
                    bytes: Some(size),
                    limit: size,
                });
                *place = SECOND;
            }
            In(_) | InOut(_) if value == 0 => *place = u64::MAX,
            In(size) | InOut(size) => {
                if matches!(arg, InOut(_)) {
                    user::check_writable(value, size)?;
                    back = Some(Back {
                        to: value,
                        from: SECOND,
                        bytes: Some(size),
                        limit: size,
                    });
                }
                user::copy_in_phys(value, BOUNCE + SECOND, size)?;
                bytes = bytes.max(SECOND + size);
                *place = SECOND;
            }
            Buffer => {
                let limit = a.get(n + 1).map_or(0, |&len| len.min(BOUNCE_BYTES));
                user::check_writable(value, limit)?;
                back = Some(Back {
                    to: value,
                    from: 0,
                    bytes: None,
                    limit,
                });
                *place = 0;
            }
        }
    }
    let value = result(host::forward(nr, packed, bytes))?;
    if let Some(back) = back {
        let len = back.bytes.unwrap_or(value);
        if len > back.limit {
            return Err(Errno::EIO);
        }
        user::copy_out_phys(back.to, BOUNCE + back.from, len)?;
    }
    Ok(value)
}

/// ioctl(2): terminals and how much can be read; what other requests mean is
/// unknown here.
fn ioctl(fd: u64, request: u64, argument: u64) -> Outcome {
    const TCGETS: u64 = 0x5401;
    const TIOCGWINSZ: u64 = 0x5413;
    const FIONREAD: u64 = 0x541b;
    let size = match request {
        TCGETS => 36,
        TIOCGWINSZ => 8,
        FIONREAD => 4,
        _ => return result(host::forward(16, [fd, request, u64::MAX, 0, 0], 0)),
    };
    let value = result(host::forward(16, [fd, request, SECOND, 0, 0], 0))?;
    user::copy_out_phys(argument, BOUNCE + SECOND, size)?;
    Ok(value)
}

/// ppoll(2).
fn ppoll([list, count, timeout, mask, mask_bytes, _]: [u64; 6]) -> Outcome {
    const FOR_EVER: u64 = u64::MAX;
    let milliseconds = if timeout == 0 {
        FOR_EVER
    } else {
        let [seconds, nanoseconds]: [u64; 2] = user::read(timeout)?;
        if seconds.cast_signed() < 0 || nanoseconds >= 1000 * NS_PER_MS {
            return Err(Errno::EINVAL);
        }
        let whole = seconds.saturating_mul(1000);
        let part = nanoseconds.div_ceil(NS_PER_MS);
        // What poll(2) can say: about 24 days.
        whole.saturating_add(part).min(i32::MAX as u64)
    };
    if mask == 0 {
        return poll(list, count, milliseconds);
    }
    if mask_bytes != 8 {
        return Err(Errno::EINVAL);
    }
    signals::with_mask(user::read(mask)?)?;
    let outcome = poll(list, count, milliseconds);
    if !matches!(outcome, Err(Errno::EINTR | threads::LATER)) {
        signals::end_mask();
    }
    outcome
}

/// poll(2) on the program's descriptors.
fn poll(list: u64, count: u64, timeout: u64) -> Outcome {
    const POLLFD: u64 = 8;
    let bytes = count
        .checked_mul(POLLFD)
        .filter(|&bytes| bytes <= BOUNCE_BYTES)
        .ok_or(Errno::EINVAL)?;
    user::copy_in_phys(list, BOUNCE, bytes)?;
    // An int; a negative one is for ever.
    let limit = u32::try_from(timeout as i32).ok();
    let gives_way = limit != Some(0) && (threads::others_may_run() || threads::is_again());
    let wait = if gives_way { 0 } else { timeout };
    let value = result(host::forward(POLL, [0, count, wait, 0, 0], bytes));
    if gives_way && value == Ok(0) {
        let end = threads::patience(limit.map_or(u64::MAX, |ms| u64::from(ms) * NS_PER_MS));
        if clock::monotonic_ns() < end {
            return Err(threads::LATER);
        }
    }
    threads::no_patience();
    user::copy_out_phys(list, BOUNCE, bytes)?;
    value
}
