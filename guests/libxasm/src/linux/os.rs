//! The few system calls of Linux that the backend needs, by name.
//!
//! Called by everything in this folder. Each function is one call: numbers in,
//! a checked result out. No C library is involved, because `libxasm.a` is
//! linked into programs with any of them and may be called in a signal handler.

// UNSAFETY: a system call has no safe form; each block says what the call may
// touch.
#![expect(unsafe_code)]

use crate::errno::Errno;
use crate::sys::syscall6;
use core::ffi::CStr;
use linux_raw_sys::general as raw;
use linux_raw_sys::net;

/// A descriptor of ours, closed when dropped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fd(i32);

impl Fd {
    /// Takes a number that the kernel has just handed out.
    pub(super) fn own(number: i32) -> Option<Self> {
        (number >= 0).then_some(Self(number))
    }

    /// The number.
    pub(super) fn raw(&self) -> i32 {
        self.0
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours, and nobody uses it any more.
        let _ = unsafe { call(raw::__NR_close, [word(self.0), 0, 0, 0, 0, 0]) };
    }
}

/// A system call of Linux.
///
/// # Safety
/// As [`syscall6`].
pub(super) unsafe fn call(number: u32, args: [u64; 6]) -> Result<u64, Errno> {
    // SAFETY: this function's contract is that of `syscall6`.
    Errno::from_result(unsafe { syscall6(u64::from(number), args) })
}

/// A signed number as an argument register.
pub(super) fn word(number: i32) -> u64 {
    i64::from(number).cast_unsigned()
}

/// An address as an argument register; the pointee is used by the call.
pub(super) fn pointer<T>(to: *const T) -> u64 {
    const { assert!(size_of::<usize>() == size_of::<u64>()) };
    to.expose_provenance() as u64
}

/// A result that is a small number.
fn small(value: u64) -> Result<i32, Errno> {
    i32::try_from(value).map_err(|_| Errno::EIO)
}

/// Calls that take numbers only and touch no memory of ours.
fn numbers(number: u32, args: [u64; 3]) -> Result<u64, Errno> {
    let [a, b, c] = args;
    // SAFETY: callers pass calls whose arguments are numbers.
    unsafe { call(number, [a, b, c, 0, 0, 0]) }
}

/// Id of this process.
pub(super) fn process_id() -> u32 {
    // It cannot fail; 0 is no process.
    numbers(raw::__NR_getpid, [0; 3]).map_or(0, |id| u32::try_from(id).unwrap_or(0))
}

/// Effective user id.
pub(super) fn user_id() -> u32 {
    numbers(raw::__NR_geteuid, [0; 3]).map_or(u32::MAX, |id| u32::try_from(id).unwrap_or(u32::MAX))
}

/// Writes `bytes`, once.
pub(super) fn write(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    let args = [
        word(fd),
        pointer(bytes.as_ptr()),
        bytes.len() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the call reads the live slice.
    let written = unsafe { call(raw::__NR_write, args) }?;
    usize::try_from(written).map_err(|_| Errno::EIO)
}

/// Reads into `bytes`, once.
pub(super) fn read(fd: &Fd, bytes: &mut [u8]) -> Result<usize, Errno> {
    let at = pointer(bytes.as_mut_ptr());
    let args = [word(fd.raw()), at, bytes.len() as u64, 0, 0, 0];
    // SAFETY: the call writes into the live slice, at most its length.
    let read = unsafe { call(raw::__NR_read, args) }?;
    usize::try_from(read).map_err(|_| Errno::EIO)
}

/// Nanoseconds of a clock.
fn clock(which: u32) -> u64 {
    let mut time = raw::__kernel_timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let args = [u64::from(which), pointer(&raw mut time), 0, 0, 0, 0];
    // SAFETY: the call writes the live local.
    let _ = unsafe { call(raw::__NR_clock_gettime, args) };
    time.tv_sec
        .cast_unsigned()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.tv_nsec.cast_unsigned())
}

/// Nanoseconds since 1970.
pub(super) fn unix_ns() -> u64 {
    clock(raw::CLOCK_REALTIME)
}

/// Nanoseconds of a clock that nobody sets.
pub(super) fn monotonic_ns() -> u64 {
    clock(raw::CLOCK_MONOTONIC)
}

/// Sleeps so many milliseconds, or until a signal was handled.
pub(super) fn sleep_ms(ms: u32) {
    let time = raw::__kernel_timespec {
        tv_sec: i64::from(ms / 1000),
        tv_nsec: i64::from(ms % 1000) * 1_000_000,
    };
    let args = [pointer(&raw const time), 0, 0, 0, 0, 0];
    // SAFETY: the call reads the live local.
    let _ = unsafe { call(raw::__NR_nanosleep, args) };
}

/// Waits while `at` holds `value`; may return at any time.
pub(super) fn futex_wait(at: &core::sync::atomic::AtomicU32, value: u32) {
    let operation = u64::from(raw::FUTEX_WAIT | raw::FUTEX_PRIVATE_FLAG);
    let args = [pointer(at.as_ptr()), operation, u64::from(value), 0, 0, 0];
    // SAFETY: the call reads the live word; no time limit is passed.
    let _ = unsafe { call(raw::__NR_futex, args) };
}

/// Wakes one that waits at `at`.
pub(super) fn futex_wake(at: &core::sync::atomic::AtomicU32) {
    let operation = u64::from(raw::FUTEX_WAKE | raw::FUTEX_PRIVATE_FLAG);
    let args = [pointer(at.as_ptr()), operation, 1, 0, 0, 0];
    // SAFETY: the call takes the address as a name and touches nothing.
    let _ = unsafe { call(raw::__NR_futex, args) };
}

/// A set of signals, bit n - 1 for signal n.
pub(super) type SignalSet = u64;

/// Sets this thread's blocked signals; returns those before.
pub(super) fn set_blocked_signals(set: SignalSet) -> SignalSet {
    let mut before: SignalSet = 0;
    let args = [
        u64::from(raw::SIG_SETMASK),
        pointer(&raw const set),
        pointer(&raw mut before),
        size_of::<SignalSet>() as u64,
        0,
        0,
    ];
    // SAFETY: the call reads one live local and writes the other.
    let _ = unsafe { call(raw::__NR_rt_sigprocmask, args) };
    before
}

/// Whether the other end of a socket has hung up.
pub(super) fn is_hung_up(socket: i32) -> bool {
    let mut fd = raw::pollfd {
        fd: socket,
        events: 0,
        revents: 0,
    };
    let args = [pointer(&raw mut fd), 1, 0, 0, 0, 0];
    // SAFETY: the call reads and writes the one live structure.
    let polled = unsafe { call(raw::__NR_poll, args) };
    matches!(polled, Ok(1..))
}

/// A connected SOCK_SEQPACKET socket; `ms` limits each later wait.
pub(super) fn connect(path: &CStr, ms: u32) -> Result<Fd, Errno> {
    const FAMILY: usize = size_of::<u16>();
    let kind = u64::from(net::SOCK_SEQPACKET) | u64::from(raw::O_CLOEXEC);
    let socket = numbers(raw::__NR_socket, [u64::from(net::AF_UNIX), kind, 0])?;
    let socket = Fd::own(small(socket)?).ok_or(Errno::EIO)?;
    for option in [net::SO_RCVTIMEO_OLD, net::SO_SNDTIMEO_OLD] {
        let time = [u64::from(ms / 1000), u64::from(ms % 1000) * 1000];
        let args = [
            word(socket.raw()),
            u64::from(net::SOL_SOCKET),
            u64::from(option),
            pointer(time.as_ptr()),
            size_of_val(&time) as u64,
            0,
        ];
        // SAFETY: the call reads the live structure, a timeval.
        unsafe { call(raw::__NR_setsockopt, args) }?;
    }
    let mut address = [0u8; 110];
    let name = path.to_bytes_with_nul();
    let (family, rest) = address.split_at_mut(FAMILY);
    family.copy_from_slice(&1u16.to_ne_bytes());
    let place = rest.get_mut(..name.len()).ok_or(Errno::ENAMETOOLONG)?;
    place.copy_from_slice(name);
    let len = (FAMILY + name.len()) as u64;
    let args = [word(socket.raw()), pointer(address.as_ptr()), len, 0, 0, 0];
    // SAFETY: the call reads the live address, whose length is passed.
    unsafe { call(raw::__NR_connect, args) }?;
    Ok(socket)
}

/// User id of whoever listened at the other end of `socket`.
pub(super) fn peer_user(socket: &Fd) -> Result<u32, Errno> {
    let mut peer = net::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut len = size_of::<net::ucred>() as u64;
    let args = [
        word(socket.raw()),
        u64::from(net::SOL_SOCKET),
        u64::from(net::SO_PEERCRED),
        pointer(&raw mut peer),
        pointer(&raw mut len),
        0,
    ];
    // SAFETY: the call writes the two live locals, the first at most its size.
    unsafe { call(raw::__NR_getsockopt, args) }?;
    Ok(peer.uid)
}

/// Sends one packet of two pieces.
pub(super) fn send(socket: &Fd, first: &[u8], second: &[u8]) -> Result<(), Errno> {
    let mut pieces = [first, second].map(|piece| [pointer(piece.as_ptr()), piece.len() as u64]);
    let message = Message::new(&mut pieces, &mut []);
    let flags = u64::from(net::MSG_NOSIGNAL);
    let args = [
        word(socket.raw()),
        pointer(&raw const message),
        flags,
        0,
        0,
        0,
    ];
    retry(|| {
        // SAFETY: the call reads the header and the slices, which are live.
        unsafe { call(raw::__NR_sendmsg, args) }
    })
    .map(drop)
}

/// One received packet: how long it was, and what came with it.
#[derive(Debug)]
pub(super) struct Received {
    /// Bytes written; 0 at the end of the connection.
    pub(super) len: usize,
    /// Whether it was longer, or had more descriptors than fit.
    pub(super) cut: bool,
    /// Its descriptors, in order.
    pub(super) fds: [Option<Fd>; 2],
}

/// Receives one packet into `bytes`.
pub(super) fn receive(socket: &Fd, bytes: &mut [u8]) -> Result<Received, Errno> {
    /// Room for one control message with two descriptors.
    const CONTROL_WORDS: usize = 3;
    let mut control = [0u64; CONTROL_WORDS];
    let mut pieces = [[pointer(bytes.as_mut_ptr()), bytes.len() as u64]];
    let mut message = Message::new(&mut pieces, &mut control);
    let flags = u64::from(net::MSG_CMSG_CLOEXEC);
    let args = [
        word(socket.raw()),
        pointer(&raw mut message),
        flags,
        0,
        0,
        0,
    ];
    let len = retry(|| {
        // SAFETY: the call writes the live header, the live slice and the live
        // control words, each at most as long as the header says.
        unsafe { call(raw::__NR_recvmsg, args) }
    })?;
    let (cut, used) = (
        message.flags & (net::MSG_TRUNC | net::MSG_CTRUNC) != 0,
        message.control_len,
    );
    Ok(Received {
        len: usize::try_from(len).map_err(|_| Errno::EIO)?,
        cut,
        fds: descriptors(&control, used),
    })
}

/// The descriptors in a control message of `used` bytes: its length, level and
/// type, then 32-bit numbers.
fn descriptors(control: &[u64; 3], used: u64) -> [Option<Fd>; 2] {
    const HEADER: u64 = 16;
    let [len, kind, numbers] = *control;
    let rights = u64::from(net::SCM_RIGHTS) << 32 | u64::from(net::SOL_SOCKET);
    if used < HEADER || kind != rights {
        return [None, None];
    }
    let [a, b, c, d, e, f, g, h] = numbers.to_ne_bytes();
    let both = [
        i32::from_ne_bytes([a, b, c, d]),
        i32::from_ne_bytes([e, f, g, h]),
    ];
    let count = len.min(used).saturating_sub(HEADER) / 4;
    let mut index = 0;
    both.map(|number| {
        index += 1;
        (index <= count).then(|| Fd::own(number)).flatten()
    })
}

/// `struct msghdr` of a connected socket.
#[repr(C)]
struct Message {
    name: u64,
    name_len: u64,
    pieces: u64,
    pieces_len: u64,
    control: u64,
    control_len: u64,
    flags: u32,
    pad: u32,
}

impl Message {
    fn new(pieces: &mut [[u64; 2]], control: &mut [u64]) -> Self {
        Self {
            name: 0,
            name_len: 0,
            pieces: pointer(pieces.as_mut_ptr()),
            pieces_len: pieces.len() as u64,
            control: pointer(control.as_mut_ptr()),
            control_len: size_of_val(control) as u64,
            flags: 0,
            pad: 0,
        }
    }
}

const _: () = assert!(size_of::<Message>() == size_of::<net::msghdr>());

/// Repeats a call that a signal interrupts.
fn retry(mut f: impl FnMut() -> Result<u64, Errno>) -> Result<u64, Errno> {
    loop {
        match f() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Opens a file, close-on-exec.
pub(super) fn open(path: &CStr, flags: u32, mode: u32) -> Result<Fd, Errno> {
    let flags = u64::from(flags | raw::O_CLOEXEC);
    let args = [pointer(path.as_ptr()), flags, u64::from(mode), 0, 0, 0];
    // SAFETY: the call reads the live string.
    let fd = unsafe { call(raw::__NR_open, args) }?;
    Fd::own(small(fd)?).ok_or(Errno::EIO)
}

/// Makes a directory.
pub(super) fn make_directory(path: &CStr, mode: u32) -> Result<(), Errno> {
    let args = [pointer(path.as_ptr()), u64::from(mode), 0, 0, 0, 0];
    // SAFETY: the call reads the live string.
    unsafe { call(raw::__NR_mkdir, args) }.map(drop)
}

/// Whether this user may execute the file.
pub(super) fn is_executable(path: &CStr) -> bool {
    let args = [pointer(path.as_ptr()), u64::from(raw::X_OK), 0, 0, 0, 0];
    // SAFETY: the call reads the live string.
    unsafe { call(raw::__NR_access, args) }.is_ok()
}

/// Where a symbolic link points; bytes written.
pub(super) fn read_link(path: &CStr, into: &mut [u8]) -> Result<usize, Errno> {
    let at = pointer(into.as_mut_ptr());
    let args = [pointer(path.as_ptr()), at, into.len() as u64, 0, 0, 0];
    // SAFETY: the call reads the live string and writes the live slice, at most
    // its length.
    let len = unsafe { call(raw::__NR_readlink, args) }?;
    usize::try_from(len).map_err(|_| Errno::EIO)
}

/// A pipe: the end to read, the end to write.
pub(super) fn pipe() -> Result<(Fd, Fd), Errno> {
    let mut ends = [-1i32; 2];
    let args = [
        pointer(ends.as_mut_ptr()),
        u64::from(raw::O_CLOEXEC),
        0,
        0,
        0,
        0,
    ];
    // SAFETY: the call writes the two live numbers.
    unsafe { call(raw::__NR_pipe2, args) }?;
    let [read, write] = ends.map(Fd::own);
    read.zip(write).ok_or(Errno::EIO)
}

/// What a new process runs.
#[derive(Debug)]
pub(super) struct Program<'a> {
    /// The file.
    pub(super) file: &'a CStr,
    /// Its arguments, its own name first.
    pub(super) arguments: [&'a CStr; 4],
    /// Its environment: addresses of strings, a 0 at the end.
    pub(super) environment: u64,
    /// Its standard input, output, error output.
    pub(super) streams: [&'a Fd; 3],
}

/// Runs a program that is nobody's child: its exit status goes to init, and no
/// SIGCHLD comes here.
pub(super) fn run_apart(program: &Program<'_>) -> Result<(), Errno> {
    let [a, b, c, d] = program.arguments.map(|argument| pointer(argument.as_ptr()));
    let arguments = [a, b, c, d, 0];
    // SAFETY: without CLONE_VM the child has memory of its own; as it may be
    // one thread of many that were copied in the middle of something, it makes
    // system calls only, all below, until it is another program or ends.
    let child = unsafe { call(raw::__NR_clone, [0; 6]) }?;
    if child == 0 {
        // SAFETY: as above: a copy of a copy, whose parent ends at once.
        let again = unsafe { call(raw::__NR_clone, [0; 6]) };
        if again == Ok(0) {
            execute(program, &arguments);
        }
        exit(u64::from(again.is_err()));
    }
    let mut status = 0i32;
    let options = u64::from(raw::__WALL);
    let args = [child, pointer(&raw mut status), options, 0, 0, 0];
    retry(|| {
        // SAFETY: the call writes the live local.
        unsafe { call(raw::__NR_wait4, args) }
    })?;
    if status == 0 {
        Ok(())
    } else {
        Err(Errno::EAGAIN)
    }
}

/// Becomes the program, or returns.
fn execute(program: &Program<'_>, arguments: &[u64; 5]) {
    for (target, stream) in (0u64..).zip(program.streams) {
        if numbers(raw::__NR_dup2, [word(stream.raw()), target, 0]).is_err() {
            return;
        }
    }
    // The program is to start with nothing blocked.
    set_blocked_signals(0);
    let args = [
        pointer(program.file.as_ptr()),
        pointer(arguments.as_ptr()),
        program.environment,
        0,
        0,
        0,
    ];
    // SAFETY: the call reads live strings and arrays that end with 0.
    let _ = unsafe { call(raw::__NR_execve, args) };
}

/// Ends this process without ceremony.
pub(super) fn exit(status: u64) -> ! {
    loop {
        let _ = numbers(raw::__NR_exit_group, [status, 0, 0]);
    }
}

/// Sends `signal` to this thread.
pub(super) fn raise(signal: u32) {
    if let Ok(thread) = numbers(raw::__NR_gettid, [0; 3]) {
        let process = u64::from(process_id());
        let _ = numbers(raw::__NR_tgkill, [process, thread, u64::from(signal)]);
    }
}

/// Whether there is something to read, or nobody is left to write, within `ms`
/// milliseconds.
pub(super) fn is_readable(fd: &Fd, ms: u32) -> bool {
    let mut one = raw::pollfd {
        fd: fd.raw(),
        events: i16::try_from(raw::POLLIN).unwrap_or(1),
        revents: 0,
    };
    let args = [pointer(&raw mut one), 1, u64::from(ms), 0, 0, 0];
    let polled = retry(|| {
        // SAFETY: the call reads and writes the one live structure.
        unsafe { call(raw::__NR_poll, args) }
    });
    matches!(polled, Ok(1..))
}
