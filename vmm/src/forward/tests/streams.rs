//! Standard descriptors, pipes, FIFOs, terminals: waits, kills, copies.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use libc::{EAGAIN, EINTR, EINVAL, ENOTTY, EPERM, EPIPE, O_NONBLOCK, O_RDONLY, O_WRONLY};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use super::super::SECOND;
use super::{Session, TempDir, call, eventfd, exports, path_call, refused, session, tee_into};

fn null() -> OwnedFd {
    fs::File::open("/dev/null").unwrap().into()
}

/// A session with these as descriptors 0 and 1.
fn session_with(dir: &TempDir, input: OwnedFd, output: OwnedFd) -> Session {
    let exports = exports(&[(dir.path(), "/data", true)]);
    Session::new(&exports, "/data", [input, output, null()], None)
}

fn read(session: &mut Session, fd: i64, cancel: &OwnedFd) -> (i64, Vec<u8>) {
    let args = [fd, 0, 100, 0, 0].map(i64::cast_unsigned);
    let reply = session.call(0, args, &[], cancel.as_fd());
    (reply.result, reply.data)
}

/// Two numbers out of a reply of pipe2.
fn pipe(session: &mut Session, flags: i32) -> (i64, i64) {
    let args = [4096, flags.into(), 0, 0, 0];
    let reply = call(session, libc::SYS_pipe2, args, &[], &[]);
    assert_eq!((reply.result, reply.data_offset), (0, SECOND));
    let fd = |at: usize| i32::from_le_bytes(reply.data[at..at + 4].try_into().unwrap());
    (fd(0).into(), fd(4).into())
}

#[test]
fn a_kill_ends_every_wait() {
    let dir = TempDir::new();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
    let (input, _keep) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (_full, output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut session = session_with(&dir, input, output);
    let fifo = path_call(
        &mut session,
        libc::SYS_open,
        "/data/fifo",
        O_RDONLY.into(),
        0,
    );
    let cancelled = eventfd(1);
    assert_eq!(read(&mut session, 0, &cancelled).0, refused(EINTR));
    assert_eq!(read(&mut session, fifo, &cancelled).0, refused(EINTR));
    let write = session.call(1, [1, 0, 1, 0, 0], b"x", cancelled.as_fd());
    assert_eq!(write.result, refused(EINTR));
    let entry = [0, 0, 0, 0, 1, 0, 0, 0];
    let poll = session.call(7, [0, 1, u64::MAX, 0, 0], &entry, cancelled.as_fd());
    assert_eq!(poll.result, refused(EINTR));
    let for_ever = session.call(35, [u64::MAX, 0, 0, 0, 0], &[], cancelled.as_fd());
    assert_eq!(for_ever.result, refused(EINTR));
    fs::write(dir.join("lock"), b"").unwrap();
    let held = fs::File::open(dir.join("lock")).unwrap();
    held.lock().unwrap();
    let fd = path_call(&mut session, libc::SYS_open, "/data/lock", 0, 0);
    let args = [fd.cast_unsigned(), 2, 0, 0, 0];
    assert_eq!(
        session.call(73, args, &[], cancelled.as_fd()).result,
        refused(EINTR)
    );
}

#[test]
fn a_waiting_read_is_cancelled_from_another_thread() {
    let dir = TempDir::new();
    let (input, _keep) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut session = session_with(&dir, input, null());
    let cancel = eventfd(0);
    let result = thread::scope(|scope| {
        let reader = scope.spawn(|| read(&mut session, 0, &cancel).0);
        rustix::io::write(&cancel, &1_u64.to_ne_bytes()).unwrap();
        reader.join().unwrap()
    });
    assert_eq!(result, refused(EINTR));
}

#[test]
fn a_waiting_read_gets_what_comes() {
    let dir = TempDir::new();
    let (input, keep) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut session = session_with(&dir, input, null());
    let cancel = eventfd(0);
    let (first, end) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let first = read(&mut session, 0, &cancel);
            (first, read(&mut session, 0, &cancel))
        });
        fs::File::from(keep).write_all(b"line\n").unwrap();
        reader.join().unwrap()
    });
    assert_eq!(first, (5, b"line\n".to_vec()));
    assert_eq!(end, (0, Vec::new()));
}

#[test]
fn a_large_write_reaches_a_slow_reader_whole() {
    let dir = TempDir::new();
    let (reader, output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut session = session_with(&dir, null(), output);
    let data: Vec<u8> = (0..500_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let cancel = eventfd(0);
    let received = thread::scope(|scope| {
        let received = scope.spawn(|| {
            let mut bytes = Vec::new();
            fs::File::from(reader).read_to_end(&mut bytes).unwrap();
            bytes
        });
        let args = [1, 0, 500_000, 0, 0];
        let reply = session.call(1, args, &data, cancel.as_fd());
        assert_eq!(reply.result, 500_000);
        drop(session);
        received.join().unwrap()
    });
    assert_eq!(received, data);
}

#[test]
fn flags_of_the_caller_s_descriptors_stay() {
    let dir = TempDir::new();
    let (input, _keep) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let same = rustix::io::dup(&input).unwrap();
    let mut session = session_with(&dir, input, null());
    let mut fcntl = |command: i32, value: i32| {
        let args = [0, command.into(), value.into(), 0, 0];
        call(&mut session, libc::SYS_fcntl, args, &[], &[]).result
    };
    assert_eq!(fcntl(libc::F_SETFL, O_NONBLOCK), 0);
    assert_eq!(fcntl(libc::F_GETFL, 0), i64::from(O_NONBLOCK));
    assert_eq!(fcntl(libc::F_SETFL, libc::O_APPEND), refused(EPERM));
    assert!(
        !rustix::fs::fcntl_getfl(&same)
            .unwrap()
            .contains(OFlags::NONBLOCK)
    );
    // The program's own view counts: it asked not to wait.
    assert_eq!(read(&mut session, 0, &eventfd(0)).0, refused(EAGAIN));
    let reply = call(
        &mut session,
        libc::SYS_fchmod,
        [0, 0o777, 0, 0, 0],
        &[],
        &[],
    );
    assert_eq!(reply.result, refused(EPERM));
}

#[test]
fn output_is_copied_to_the_log_through_duplicates() {
    let dir = TempDir::new();
    let log = Arc::new(Mutex::new(Vec::new()));
    let output = fs::File::create(dir.join("out")).unwrap();
    let error = fs::File::create(dir.join("err")).unwrap();
    let stdio = [null(), output.into(), error.into()];
    let exports = exports(&[(dir.path(), "/data", true)]);
    let mut session = Session::new(&exports, "/data", stdio, Some(tee_into(&log)));
    let mut write = |fd: u64, data: &[u8]| {
        let length = u64::try_from(data.len()).unwrap();
        let reply = session.call(1, [fd, 0, length, 0, 0], data, eventfd(0).as_fd());
        assert_eq!(reply.result, i64::try_from(data.len()).unwrap());
    };
    write(1, b"one ");
    write(2, b"two ");
    call(&mut session, libc::SYS_dup2, [1, 9, 0, 0, 0], &[], &[]);
    let write = |session: &mut Session, fd: u64, data: &[u8]| {
        session.call(1, [fd, 0, 6, 0, 0], data, eventfd(0).as_fd());
    };
    write(&mut session, 9, b"three ");
    // Redirected into a file, it is no output any more.
    path_call(&mut session, libc::SYS_creat, "/data/file", 0o644, 0);
    call(&mut session, libc::SYS_dup2, [3, 1, 0, 0, 0], &[], &[]);
    write(&mut session, 1, b"quiet ");
    assert_eq!(*log.lock().unwrap(), b"one two three ");
    assert_eq!(fs::read(dir.join("out")).unwrap(), b"one three ");
}

#[test]
fn pipes_carry_end_and_break() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let (reader, writer) = pipe(&mut session, 0);
    let cancel = eventfd(0);
    let write = [writer.cast_unsigned(), 0, 3, 0, 0];
    assert_eq!(session.call(1, write, b"abc", cancel.as_fd()).result, 3);
    assert_eq!(read(&mut session, reader, &cancel), (3, b"abc".to_vec()));
    call(
        &mut session,
        libc::SYS_close,
        [writer, 0, 0, 0, 0],
        &[],
        &[],
    );
    assert_eq!(read(&mut session, reader, &cancel), (0, Vec::new()));
    let (reader, writer) = pipe(&mut session, O_NONBLOCK);
    assert_eq!(read(&mut session, reader, &cancel).0, refused(EAGAIN));
    call(
        &mut session,
        libc::SYS_close,
        [reader, 0, 0, 0, 0],
        &[],
        &[],
    );
    let write = [writer.cast_unsigned(), 0, 3, 0, 0];
    let broken = session.call(1, write, b"abc", cancel.as_fd());
    assert_eq!(broken.result, refused(EPIPE));
    let reply = call(&mut session, libc::SYS_pipe2, [4096, 1, 0, 0, 0], &[], &[]);
    assert_eq!(reply.result, refused(EINVAL));
}

#[test]
fn a_fifo_waits_for_its_writer_without_blocking_open() {
    let dir = TempDir::new();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let open = |session: &mut Session, flags: i32| {
        path_call(session, libc::SYS_open, "/data/fifo", flags.into(), 0)
    };
    assert_eq!(
        open(&mut session, O_WRONLY | O_NONBLOCK),
        refused(libc::ENXIO)
    );
    let cancelled = eventfd(1);
    let args = [0, 1, 0, 0, 0];
    let reply = session.call(2, args, b"/data/fifo\0", cancelled.as_fd());
    assert_eq!(reply.result, refused(EINTR));
    let reader = open(&mut session, O_RDONLY);
    assert_eq!(reader, 3);
    let cancel = eventfd(0);
    let got = thread::scope(|scope| {
        let got = scope.spawn(|| read(&mut session, reader, &cancel));
        let mut writer = fs::OpenOptions::new()
            .write(true)
            .open(dir.join("fifo"))
            .unwrap();
        writer.write_all(b"late").unwrap();
        got.join().unwrap()
    });
    assert_eq!(got, (4, b"late".to_vec()));
}

#[test]
fn poll_answers_for_each_descriptor() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let (reader, writer) = pipe(&mut session, 0);
    let root = path_call(&mut session, libc::SYS_open, "/", 0, 0);
    let entry = |fd: i64, events: i16| {
        let mut bytes = i32::try_from(fd).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(&events.to_le_bytes());
        bytes.extend_from_slice(&[0xff; 2]);
        bytes
    };
    let (input, output) = (libc::POLLIN, libc::POLLOUT);
    let list = [
        entry(reader, input),
        entry(writer, output),
        entry(-1, input),
        entry(777, input),
        entry(root, input),
    ];
    let args = [0, 5, 1_000_000, 0, 0];
    let reply = call(&mut session, libc::SYS_poll, args, &list.concat(), &[]);
    let answers: Vec<i16> = reply
        .data
        .chunks_exact(8)
        .map(|entry| i16::from_le_bytes([entry[6], entry[7]]))
        .collect();
    assert_eq!(answers, [0, output, 0, libc::POLLNVAL, input]);
    assert_eq!((reply.result, reply.data_offset), (3, 0));
    let reply = call(&mut session, libc::SYS_poll, [0, 1, 1, 0, 0], &list[0], &[]);
    assert_eq!(reply.result, 0, "time runs out");
    let reply = call(&mut session, libc::SYS_poll, [0, 1025, 0, 0, 0], &[], &[]);
    assert_eq!(reply.result, refused(EINVAL));
}

#[test]
fn a_terminal_answers_and_cannot_be_changed() {
    let dir = TempDir::new();
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let main = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&main).unwrap();
    let name = rustix::pty::ptsname(&main, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = rustix::fs::open(&*name, flags, Mode::empty()).unwrap();
    let copy = rustix::io::dup(&terminal).unwrap();
    let mut session = session_with(&dir, terminal, copy);
    let cancel = eventfd(0);
    let mut ioctl = |request: u64| {
        let request = i64::try_from(request).unwrap();
        call(
            &mut session,
            libc::SYS_ioctl,
            [0, request, 4096, 0, 0],
            &[],
            &[],
        )
    };
    let reply = ioctl(libc::TCGETS);
    let host = rustix::termios::tcgetattr(&main).unwrap();
    assert_eq!((reply.result, reply.data.len()), (0, 36));
    assert_eq!(reply.data[12..16], host.local_modes.bits().to_le_bytes());
    assert_eq!(
        reply.data[17],
        host.special_codes[rustix::termios::SpecialCodeIndex::VINTR]
    );
    let size = rustix::termios::Winsize {
        ws_row: 50,
        ws_col: 132,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&main, size).unwrap();
    assert_eq!(ioctl(libc::TIOCGWINSZ).data, [50, 0, 132, 0, 0, 0, 0, 0]);
    assert_eq!(ioctl(libc::TCSETS).result, refused(EINVAL));
    rustix::io::write(&main, b"typed\n").unwrap();
    assert_eq!(read(&mut session, 0, &cancel), (6, b"typed\n".to_vec()));
    assert_eq!(read(&mut session, 0, &eventfd(1)).0, refused(EINTR));
    let reply = call(
        &mut session,
        libc::SYS_ioctl,
        [2, 0x5401, 4096, 0, 0],
        &[],
        &[],
    );
    assert_eq!(reply.result, refused(ENOTTY));
}

#[test]
fn sleeping_takes_its_time() {
    let dir = TempDir::new();
    let mut session = session(&[(dir.path(), "/data", true)]);
    let start = Instant::now();
    let reply = call(
        &mut session,
        libc::SYS_nanosleep,
        [30_000_000, 0, 0, 0, 0],
        &[],
        &[],
    );
    assert_eq!(reply.result, 0);
    assert!(start.elapsed() >= Duration::from_millis(30));
}
