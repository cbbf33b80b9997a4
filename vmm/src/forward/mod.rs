//! Linux system calls forwarded to the host (Kitten's "hio").
//!
//! The thread that runs the enclave hands each forwarded call to the
//! [`Session`] of the running program and posts the [`Reply`] back. A session
//! serves file calls inside the directories exported at create, the three
//! standard descriptors, pipes and three devices, and nothing else.
//!
//! Promises: no call leaves the exports (paths go through `openat2` beneath an
//! export's directory); a read-only export is never changed; no call waits
//! longer than until the cancel eventfd is readable, disk input and output
//! excepted; memory used per call is bounded by the bounce area; nothing a
//! program passes makes the VMM panic. Not done here: access control between
//! programs (they act as the VMM's user), sockets, device nodes, set-user-id
//! files, memory mappings of files.
//!
//! Packing of arguments: [`enclave_abi::syscall`]. Beyond its table: `link`
//! and `linkat` are packed as `rename`; `statfs`, `fstatfs` and `pipe` answer
//! at 4096; `getrandom` answers at 0; `utimensat` takes its times, `sendfile`
//! its in-out offset at 4096; an empty path in `utimensat` stands for a null
//! one; `nanosleep` takes relative nanoseconds as its only argument. A null
//! pointer is 0 or `u64::MAX`, where 4096 would stand for one that is not.
//!
//! ```text
//! Session ── Table ── number → Description (shared by duplicates)
//!    │                             └─ host descriptor │ listing
//!    └── Exports ── guest path → Place ── Root::open (openat2, beneath)
//! ```

mod attributes;
mod calls;
mod control;
mod encode;
mod exports;
mod files;
mod names;
mod open;
mod path;
mod poll;
mod stat;
mod stream;
mod table;
mod target;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

pub use self::calls::name;
pub use self::exports::{Exports, ForwardError};

use self::exports::Place;
use self::path::GuestPath;
use self::table::{Description, Object, Origin, Table};

/// Most bytes a call returns: the bounce area.
const DATA_MAX: usize = 1 << 20;
const _: () = assert!(DATA_MAX as u64 == enclave_abi::layout::BOUNCE_BYTES);
/// Where structures and second paths stand in the bounce area.
const SECOND: usize = 4096;
/// Mode bits taken away from new files until the program says otherwise.
const UMASK_AT_START: u32 = 0o022;

/// Gets a copy of what a program writes to its standard output and error.
pub type Tee = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// One running program: its descriptors, working directory and umask.
pub struct Session {
    exports: Exports,
    table: Table,
    cwd: Vec<u8>,
    program: Vec<u8>,
    umask: u32,
    tee: Option<Tee>,
}

// A session starts where the control socket is served and lives on a vCPU's
// thread.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Session>();
};

/// Answer to a forwarded call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Value, or negative errno.
    pub result: i64,
    /// Bytes for the bounce area, at most its size.
    pub data: Vec<u8>,
    /// Where in the bounce area they go: 0 or 4096.
    pub data_offset: usize,
}

/// One call as it came: integers unchecked, bytes private.
struct Request<'a> {
    args: [u64; 5],
    input: &'a [u8],
    cancel: BorrowedFd<'a>,
}

impl Session {
    /// Starts a program's session in `cwd` (`/` when that is not a directory
    /// of the program's tree), with `stdio` as descriptors 0, 1 and 2.
    #[must_use]
    pub fn new(exports: &Exports, cwd: &str, stdio: [OwnedFd; 3], tee: Option<Tee>) -> Self {
        let mut session = Self {
            exports: exports.clone(),
            table: Table::default(),
            cwd: b"/".to_vec(),
            program: Vec::new(),
            umask: UMASK_AT_START,
            tee,
        };
        for (fd, host) in (0..).zip(stdio) {
            let origin = match fd {
                0 => Origin::Input,
                _ => Origin::Output,
            };
            let (file, status) = stream::standard(host, origin, exports);
            let description = Description::new(Object::Host(file), status, None);
            session
                .table
                .place(fd, description, false)
                .expect("numbers 0 to 2 are in range");
        }
        let start = GuestPath::join(b"/", cwd.as_bytes());
        if session.directory(&start).is_ok() {
            session.cwd = start.as_bytes().to_vec();
        }
        session
    }

    /// Sets what `/proc/self/exe` leads to.
    pub fn set_program(&mut self, path: &str) {
        self.program = path.as_bytes().to_vec();
    }

    /// Serves call `nr`. `input` is a private copy of the bounce bytes that
    /// came along; `cancel` is readable when the program is being killed or
    /// the VMM stops, and ends a wait with EINTR. Unknown calls get ENOSYS.
    pub fn call(&mut self, nr: u64, args: [u64; 5], input: &[u8], cancel: BorrowedFd<'_>) -> Reply {
        let request = Request {
            args,
            input,
            cancel,
        };
        let outcome = match calls::handler(nr) {
            Some(handler) => handler(self, &request),
            None => Err(Errno::NOSYS),
        };
        outcome.unwrap_or_else(|errno| Reply::value(-i64::from(errno.raw_os_error())))
    }

    /// The path at `at` in the bounce area, seen from directory `dirfd`.
    ///
    /// # Errors
    ///
    /// ENOENT when it is empty, EBADF and ENOTDIR for a bad `dirfd`.
    fn path(&self, request: &Request<'_>, dirfd: i32, at: usize) -> Result<GuestPath, Errno> {
        let path = path::c_string(request.input, at)?;
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        let base = match dirfd {
            _ if path.starts_with(b"/") => b"/",
            libc::AT_FDCWD => self.cwd.as_slice(),
            fd => self.directory_of(fd)?,
        };
        Ok(GuestPath::join(base, path))
    }

    /// Guest path of the directory that `fd` has open.
    fn directory_of(&self, fd: i32) -> Result<&[u8], Errno> {
        let description = self.table.get(fd)?;
        description.directory.as_deref().ok_or(Errno::NOTDIR)
    }

    /// Checks that `path` is a directory that may be entered.
    fn directory(&self, path: &GuestPath) -> Result<(), Errno> {
        match self.exports.place(path) {
            Place::Inside(root, mut rest) => {
                // Opening its `.` takes the right to search it.
                rest.extend_from_slice(b"/.");
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                root.open(&rest, flags, rustix::fs::Mode::empty()).map(drop)
            }
            Place::Listing(_) => Ok(()),
            Place::Device(_) | Place::Program => Err(Errno::NOTDIR),
            Place::Nowhere { .. } => Err(Errno::NOENT),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("table", &self.table)
            .field("cwd", &String::from_utf8_lossy(&self.cwd))
            .finish_non_exhaustive()
    }
}

impl Reply {
    fn value(result: i64) -> Self {
        Self {
            result,
            ..Self::default()
        }
    }

    /// A length or count: always far below the limit of its type.
    fn count(count: usize) -> Self {
        Self::value(i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// Bytes at the start of the bounce area, their number as the result.
    fn bytes(data: Vec<u8>) -> Self {
        Self {
            data,
            ..Self::count(0)
        }
        .counted()
    }

    fn counted(mut self) -> Self {
        self.result = i64::try_from(self.data.len()).unwrap_or(i64::MAX);
        self
    }

    /// A structure at 4096, result 0.
    fn structure(data: Vec<u8>) -> Self {
        Self {
            result: 0,
            data,
            data_offset: SECOND,
        }
    }
}

impl Request<'_> {
    /// Argument `at` as the kernel takes an `int`: its low half.
    fn int(&self, at: usize) -> i32 {
        self.unsigned(at).cast_signed()
    }

    /// Argument `at` as an `unsigned int`.
    fn unsigned(&self, at: usize) -> u32 {
        u32::try_from(self.args[at] & u64::from(u32::MAX)).unwrap_or(u32::MAX)
    }

    /// Argument `at` as a signed long.
    fn long(&self, at: usize) -> i64 {
        self.args[at].cast_signed()
    }

    /// Argument `at` as a buffer length, capped to what a reply can carry.
    fn length(&self, at: usize) -> usize {
        usize::try_from(self.args[at]).map_or(DATA_MAX, |length| length.min(DATA_MAX))
    }

    /// The bytes that a write hands over: never more than came along.
    fn data(&self, at: usize) -> &[u8] {
        &self.input[..self.length(at).min(self.input.len())]
    }

    /// Is pointer argument `at` to a structure at 4096 null?
    fn is_null(&self, at: usize) -> bool {
        matches!(self.args[at], 0 | u64::MAX)
    }
}
