//! Where the broker is, and starting one when there is none.
//!
//! Called by [`super::broker`]. The run directory is the one that the host's
//! programs use (`xemem_host::run_dir`): `$ENCLAVE_RUNDIR`, else `/run/enclave`
//! for root, else `$XDG_RUNTIME_DIR/enclave`, else `/tmp/enclave-UID`. Whom the
//! directory belongs to is not looked at here, because the user of the process
//! that answers is: see [`super::broker`].

use super::os::{self, Program};
use crate::environ;
use crate::errno::Errno;
use core::ffi::CStr;
use enclave_abi::exporter::SOCKET_NAME;
use linux_raw_sys::general as raw;

/// File name of the broker's program.
const PROGRAM: &str = "xemem-broker";
/// File name of the log, beside the socket.
const LOG_NAME: &str = "xemem.log";
/// What a broker says once it serves.
const READY: &[u8] = b"ready\n";
/// How long it may take for that.
const READY_WITHIN_MS: u32 = 10_000;

/// A path in a fixed place; a longer one is no path.
#[derive(Debug)]
pub(super) struct Path {
    /// Ends with at least one zero byte.
    bytes: [u8; Self::MOST + 1],
    len: usize,
}

impl Path {
    const MOST: usize = 1023;

    /// The pieces in a row.
    fn new(pieces: &[&[u8]]) -> Result<Self, Errno> {
        let mut path = Self {
            bytes: [0; Self::MOST + 1],
            len: 0,
        };
        for piece in pieces {
            let end = path.len + piece.len();
            let place = path.bytes.get_mut(path.len..end);
            match place {
                Some(place) if end <= Self::MOST => place.copy_from_slice(piece),
                _ => return Err(Errno::ENAMETOOLONG),
            }
            path.len = end;
        }
        Ok(path)
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The path as the kernel takes it.
    pub(super) fn as_c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    /// The path of a file in this directory.
    fn join(&self, name: &str) -> Result<Self, Errno> {
        Self::new(&[self.as_bytes(), b"/", name.as_bytes()])
    }
}

/// Decimal digits of a number.
pub(super) struct Digits([u8; 10], usize);

impl Digits {
    /// Of `number`.
    pub(super) fn new(number: u32) -> Self {
        let (mut digits, mut at, mut left) = ([b'0'; 10], 10, number);
        while at > 0 && (left > 0 || at == 10) {
            at -= 1;
            if let Some(place) = digits.get_mut(at) {
                *place = b'0' + (left % 10) as u8;
            }
            left /= 10;
        }
        Self(digits, at)
    }

    /// As text.
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.get(self.1..).unwrap_or_default()
    }
}

fn run_directory() -> Result<Path, Errno> {
    let user = os::user_id();
    let set = |name| environ::variable(name).map(CStr::to_bytes);
    match (set("ENCLAVE_RUNDIR"), user, set("XDG_RUNTIME_DIR")) {
        (Some(path), _, _) => Path::new(&[path]),
        (None, 0, _) => Path::new(&[b"/run/enclave"]),
        (None, _, Some(runtime)) => Path::new(&[runtime, b"/enclave"]),
        (None, user, None) => Path::new(&[b"/tmp/enclave-", Digits::new(user).as_bytes()]),
    }
}

/// The broker's socket.
pub(super) fn socket() -> Result<Path, Errno> {
    run_directory()?.join(SOCKET_NAME)
}

/// Starts a broker and waits until it, or another one, serves.
pub(super) fn start_broker() -> Result<(), Errno> {
    let program = find_program()?;
    let directory = run_directory()?;
    // There already, usually; if it cannot be made, the broker says so.
    let _ = os::make_directory(directory.as_c(), 0o755);
    let socket = directory.join(SOCKET_NAME)?;
    let null = os::open(c"/dev/null", raw::O_RDWR, 0)?;
    let log = log_in(&directory).ok();
    let (answers, says) = os::pipe()?;
    os::run_apart(&Program {
        file: program.as_c(),
        arguments: [program.as_c(), c"--detach", c"--socket", socket.as_c()],
        environment: environ::all(),
        streams: [&null, &says, log.as_ref().unwrap_or(&null)],
    })?;
    drop(says);
    let mut said = [0u8; READY.len()];
    let mut len = 0;
    while let Some(rest) = said.get_mut(len..).filter(|rest| !rest.is_empty()) {
        if !os::is_readable(&answers, READY_WITHIN_MS) {
            return Err(Errno::ETIMEDOUT);
        }
        match os::read(&answers, rest) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    if said == READY {
        Ok(())
    } else {
        Err(Errno::ENOTCONN)
    }
}

fn log_in(directory: &Path) -> Result<os::Fd, Errno> {
    let flags = raw::O_WRONLY | raw::O_CREAT | raw::O_APPEND | raw::O_NOFOLLOW;
    os::open(directory.join(LOG_NAME)?.as_c(), flags, 0o600)
}

/// The broker's program: next to this one, else in `$PATH`.
fn find_program() -> Result<Path, Errno> {
    let mut own = [0; Path::MOST];
    let len = os::read_link(c"/proc/self/exe", &mut own).unwrap_or(0);
    let own = own.get(..len).unwrap_or_default();
    let folder = own.rsplitn(2, |&byte| byte == b'/').nth(1);
    let path = environ::variable("PATH").map_or(&b""[..], CStr::to_bytes);
    folder
        .into_iter()
        .chain(path.split(|&byte| byte == b':'))
        .filter(|folder| !folder.is_empty())
        .filter_map(|folder| Path::new(&[folder]).ok()?.join(PROGRAM).ok())
        .find(|file| os::is_executable(file.as_c()))
        .ok_or(Errno::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_number() {
        for number in [0, 7, 10, 1000, u32::MAX] {
            assert_eq!(
                Digits::new(number).as_bytes(),
                number.to_string().as_bytes()
            );
        }
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let long = [b'x'; Path::MOST];
        assert!(Path::new(&[&long]).is_ok());
        assert_eq!(Path::new(&[&long, b"y"]).unwrap_err(), Errno::ENAMETOOLONG);
        let path = Path::new(&[b"/run", b"/enclave"]).unwrap();
        assert_eq!(path.join("a").unwrap().as_c(), c"/run/enclave/a");
    }
}
