//! Behaviour of a session on the host, against real files.
//!
//! [`Twin`] makes each call twice, through a session and natively in a twin
//! directory, and compares results and errors: Linux is the specification.
//! What has no native counterpart (exports, kills, limits) is tested directly.

mod attributes;
mod control;
mod escapes;
mod files;
mod hostile;
mod names;
mod native;
mod streams;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::EventfdFlags;

use super::{DATA_MAX, Exports, Reply, SECOND, Session, Tee};
use crate::machine::Export;

/// A directory of its own for one test, removed at the end.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nr = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("enclave-forward-{}-{nr}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// An argument of a call, for both sides.
#[derive(Clone, Copy)]
enum A<'a> {
    /// A plain number.
    N(i64),
    /// Descriptors opened by [`Twin::open`]: the session's and the native one.
    Fd(Fd),
    /// A guest path at 0, with its native counterpart.
    Path(&'a str),
    /// A guest path at 4096.
    Second(&'a str),
    /// Bytes at 0.
    Data(&'a [u8]),
    /// A buffer at 0 that the call fills.
    Out,
    /// A structure at 4096.
    Struct(&'a [u8]),
}

/// The same open file on both sides.
#[derive(Clone, Copy, Debug)]
struct Fd {
    guest: i32,
    native: i32,
}

/// What both sides answered.
struct Answer {
    guest: Reply,
    native: i64,
    bounce: Vec<u8>,
}

impl Answer {
    /// The native bytes where the session's stand.
    fn native_data(&self) -> &[u8] {
        let start = self.guest.data_offset;
        &self.bounce[start..start + self.guest.data.len()]
    }
}

/// A session over one directory and the same tree natively in another.
struct Twin {
    session: Session,
    cancel: OwnedFd,
    dir: TempDir,
    native: TempDir,
}

impl Twin {
    fn new() -> Self {
        let (dir, native) = (TempDir::new(), TempDir::new());
        Self {
            session: session(&[(dir.path(), "/data", true)]),
            cancel: eventfd(0),
            dir,
            native,
        }
    }

    /// Puts a file into both directories.
    fn file(&self, name: &str, content: &[u8]) {
        for dir in [&self.dir, &self.native] {
            fs::write(dir.join(name), content).unwrap();
        }
    }

    /// Puts a symbolic link into both directories.
    fn link(&self, target: &str, name: &str) {
        for dir in [&self.dir, &self.native] {
            std::os::unix::fs::symlink(target, dir.join(name)).unwrap();
        }
    }

    /// Makes the call on both sides, without comparing.
    fn both(&mut self, nr: i64, args: &[A<'_>]) -> Answer {
        let mut input = vec![0; 2 * SECOND];
        let mut bounce = vec![0; DATA_MAX];
        let (mut guest_args, mut native_args) = ([0; 5], [native::Argument::Number(0); 5]);
        for (at, arg) in args.iter().enumerate() {
            (guest_args[at], native_args[at]) = match *arg {
                A::N(value) => (value.cast_unsigned(), native::Argument::Number(value)),
                A::Fd(fd) => (
                    i64::from(fd.guest).cast_unsigned(),
                    native::Argument::Number(i64::from(fd.native)),
                ),
                A::Path(path) => self.put_path(path, 0, &mut input, &mut bounce),
                A::Second(path) => self.put_path(path, SECOND, &mut input, &mut bounce),
                A::Data(data) => put(data, data, 0, &mut input, &mut bounce),
                A::Out => (0, native::Argument::Offset(0)),
                A::Struct(data) => put(data, data, SECOND, &mut input, &mut bounce),
            };
        }
        let nr_guest = nr.cast_unsigned();
        let cancel = self.cancel.as_fd();
        let guest = self.session.call(nr_guest, guest_args, &input, cancel);
        let native = native::call(nr, native_args, &mut bounce);
        Answer {
            guest,
            native,
            bounce,
        }
    }

    /// Makes the call on both sides; results must be the same.
    #[track_caller]
    fn same(&mut self, nr: i64, args: &[A<'_>]) -> Answer {
        let answer = self.both(nr, args);
        assert_eq!(answer.guest.result, answer.native, "session and native");
        answer
    }

    /// [`Twin::same`] with an expected result.
    #[track_caller]
    fn expect(&mut self, nr: i64, args: &[A<'_>], result: i64) -> Answer {
        let answer = self.same(nr, args);
        assert_eq!(answer.native, result);
        answer
    }

    /// [`Twin::same`] with an expected error.
    #[track_caller]
    fn refuse(&mut self, nr: i64, args: &[A<'_>], errno: i32) {
        self.expect(nr, args, -i64::from(errno));
    }

    /// Opens a file on both sides.
    #[track_caller]
    fn open(&mut self, path: &str, flags: i32) -> Fd {
        self.opens(
            libc::SYS_open,
            &[A::Path(path), A::N(flags.into()), A::N(0o644)],
        )
    }

    /// Makes a call that returns a descriptor on both sides.
    #[track_caller]
    fn opens(&mut self, nr: i64, args: &[A<'_>]) -> Fd {
        let answer = self.both(nr, args);
        let (guest, native) = (answer.guest.result, answer.native);
        assert!(guest >= 0 && native >= 0, "{guest} and natively {native}");
        Fd {
            guest: i32::try_from(guest).unwrap(),
            native: i32::try_from(native).unwrap(),
        }
    }

    fn put_path(
        &self,
        path: &str,
        at: usize,
        input: &mut [u8],
        bounce: &mut [u8],
    ) -> (u64, native::Argument) {
        let native = path.replacen("/data", self.native.path().to_str().unwrap(), 1);
        put(
            format!("{path}\0").as_bytes(),
            format!("{native}\0").as_bytes(),
            at,
            input,
            bounce,
        )
    }
}

fn put(
    guest: &[u8],
    native: &[u8],
    at: usize,
    input: &mut [u8],
    bounce: &mut [u8],
) -> (u64, native::Argument) {
    input[at..at + guest.len()].copy_from_slice(guest);
    bounce[at..at + native.len()].copy_from_slice(native);
    (u64::try_from(at).unwrap(), native::Argument::Offset(at))
}

/// A session over `list` with an empty standard input and no output.
fn session(list: &[(&Path, &str, bool)]) -> Session {
    let null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    Session::new(&exports(list), "/data", [null(), null(), null()], None)
}

fn exports(list: &[(&Path, &str, bool)]) -> Exports {
    let list: Vec<Export> = list
        .iter()
        .map(|&(host, guest, writable)| Export {
            host: host.to_path_buf(),
            guest: guest.to_owned(),
            writable,
        })
        .collect();
    Exports::open(&list).unwrap()
}

fn eventfd(value: u32) -> OwnedFd {
    rustix::event::eventfd(value, EventfdFlags::CLOEXEC).unwrap()
}

/// One call on a session alone: `first` at 0, `second` at 4096.
fn call(session: &mut Session, nr: i64, args: [i64; 5], first: &[u8], second: &[u8]) -> Reply {
    let mut input = vec![0; 2 * SECOND];
    input[..first.len()].copy_from_slice(first);
    input[SECOND..SECOND + second.len()].copy_from_slice(second);
    let cancel = eventfd(0);
    let args = args.map(i64::cast_unsigned);
    session.call(nr.cast_unsigned(), args, &input, cancel.as_fd())
}

/// [`call`] with one path.
fn path_call(session: &mut Session, nr: i64, path: &str, a1: i64, a2: i64) -> i64 {
    let bytes = format!("{path}\0");
    call(session, nr, [0, a1, a2, 0, 0], bytes.as_bytes(), &[]).result
}

/// [`call`] with two paths.
fn two_paths(session: &mut Session, nr: i64, old: &str, new: &str) -> i64 {
    let (old, new) = (format!("{old}\0"), format!("{new}\0"));
    let second = i64::try_from(SECOND).unwrap();
    call(
        session,
        nr,
        [0, second, 0, 0, 0],
        old.as_bytes(),
        new.as_bytes(),
    )
    .result
}

fn refused(errno: i32) -> i64 {
    -i64::from(errno)
}

fn tee_into(log: &std::sync::Arc<std::sync::Mutex<Vec<u8>>>) -> Tee {
    let log = std::sync::Arc::clone(log);
    std::sync::Arc::new(move |bytes: &[u8]| log.lock().unwrap().extend_from_slice(bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
