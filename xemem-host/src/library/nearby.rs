//! Which broker, and where its program is.
//!
//! `$XEMEM_SOCKET` names the socket, else it is in the run directory that all
//! tools agree on. Where nobody listens a broker is started: the program
//! `xemem-broker` beside this library (or the program that it is linked
//! into), in `../bin` of it, or on the PATH.

// UNSAFETY: asks the dynamic linker where this library is.
#![expect(unsafe_code)]

use crate::wire::Role;
use crate::{Broker, ClientError, RunDirError, SOCKET_NAME};
use core::ffi::{CStr, c_void};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The broker's program.
const BROKER: &str = "xemem-broker";
/// Variable that names the broker's socket.
const SOCKET_VARIABLE: &str = "XEMEM_SOCKET";
/// Pause between two looks for a broker that cannot be started.
const PAUSE: Duration = Duration::from_millis(20);

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The environment is somebody else's: neither path can be trusted.
    #[error("not in programs that run with more rights than their caller")]
    Privileged,
    /// No run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// It cannot be reached, or not be started.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl ReachError {
    /// The error as a Linux number: EPERM, EACCES, or as
    /// [`ClientError::errno`] has it.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Privileged => Errno::PERM,
            Self::RunDir(_) => Errno::ACCESS,
            Self::Client(error) => error.errno(),
        }
    }
}

/// A connection in a role, to a broker started for it if there is none and
/// its program can be found; else waits up to `timeout` for somebody to start
/// one. A broker started here is no child of the calling process.
///
/// # Errors
/// There is none in that time, it refuses us, or we must not look for one.
pub fn reach(role: Role, timeout: Duration) -> Result<Broker, ReachError> {
    // SAFETY: reads the auxiliary vector, which never changes.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        return Err(ReachError::Privileged);
    }
    let named = std::env::var_os(SOCKET_VARIABLE).filter(|value| !value.is_empty());
    let socket = match named {
        Some(path) => PathBuf::from(path),
        None => crate::run_dir()?.join(SOCKET_NAME),
    };
    let program = program();
    let deadline = Instant::now().checked_add(timeout);
    loop {
        let error = match attempt(&socket, program.as_deref(), role) {
            Err(error) if may_come(&error) => error,
            connected => return Ok(connected?),
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match left {
            Some(Duration::ZERO) => return Err(error.into()),
            left => std::thread::sleep(left.unwrap_or(PAUSE).min(PAUSE)),
        }
    }
}

fn attempt(socket: &Path, program: Option<&Path>, role: Role) -> Result<Broker, ClientError> {
    let Some(program) = program else {
        return Broker::connect_as(socket, role);
    };
    let broker = Broker::connect_or_start_apart(socket, program)?;
    match role {
        Role::Exporter => Ok(broker),
        // The first connection keeps a broker started for us until then.
        other => Broker::connect_as(socket, other),
    }
}

/// Whether a broker may still come to where there is none.
fn may_come(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { source, .. } => {
            matches!(*source, Errno::NOENT | Errno::CONNREFUSED)
        }
        _ => false,
    }
}

fn program() -> Option<PathBuf> {
    let beside = own_folder();
    let beside = beside.iter();
    let near = beside.flat_map(|dir| [dir.to_owned(), dir.join("../bin")]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    near.chain(std::env::split_paths(&path))
        // A relative entry would run whatever lies in the working directory.
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(BROKER))
        .find(|program| program.is_file())
}

/// The folder of the file this code was loaded from.
fn own_folder() -> Option<PathBuf> {
    let here: fn() -> Option<PathBuf> = own_folder;
    let mut info = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for; `info` is room for the answer.
    let found = unsafe { libc::dladdr(here as *const c_void, info.as_mut_ptr()) };
    if found == 0 {
        return None;
    }
    // SAFETY: all zero is a value of this structure, and dladdr filled it in.
    let name = unsafe { info.assume_init() }.dli_fname;
    if name.is_null() {
        return None;
    }
    // SAFETY: a string of the linker's, which lives as long as the library.
    let name = unsafe { CStr::from_ptr(name) };
    let file = Path::new(OsStr::from_bytes(name.to_bytes()));
    let file = std::fs::canonicalize(file).ok()?;
    file.parent().map(Path::to_owned)
}
