//! Which broker, and where its program is.
//!
//! `$XEMEM_SOCKET` names the socket, else it is in the run directory that all
//! tools agree on. Where nobody listens a broker is started: the program
//! `xemem-broker` beside this library, in `../bin` of it, or on the PATH.

// UNSAFETY: asks the dynamic linker where this library is.
#![expect(unsafe_code)]

use crate::errors::Failure;
use core::ffi::{CStr, c_void};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use xemem_host::{Broker, SOCKET_NAME};

/// The broker's program.
const BROKER: &str = "xemem-broker";
/// Variable that names the broker's socket.
const SOCKET_VARIABLE: &str = "XEMEM_SOCKET";

/// A connection, to a broker started for it if there is none.
pub(crate) fn connect() -> Result<Broker, Failure> {
    // SAFETY: reads the auxiliary vector, which never changes.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        // The environment is somebody else's: neither path can be trusted.
        let why = "not in programs that run with more rights than their caller";
        return Err(Failure::new(Errno::PERM, why));
    }
    let named = std::env::var_os(SOCKET_VARIABLE).filter(|value| !value.is_empty());
    let socket = match named {
        Some(path) => PathBuf::from(path),
        None => xemem_host::run_dir()
            .map_err(|error| Failure::new(Errno::ACCESS, error.to_string()))?
            .join(SOCKET_NAME),
    };
    match program() {
        Some(program) => Ok(Broker::connect_or_start_apart(&socket, &program)?),
        None => Ok(Broker::connect(&socket)?),
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
