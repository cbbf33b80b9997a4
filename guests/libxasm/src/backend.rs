//! Which kernel is below: an enclave's, or Linux with a broker.
//!
//! Chosen once per process, at the first call that needs it, and asked by
//! [`crate::calls`] at each. An enclave kernel answers XASM_VERSION; without
//! one, a process of Linux publishes through a broker, if one can be reached or
//! started. `XASM_BACKEND` says otherwise: `enclave` and `linux` insist, `off`
//! has neither. What makes no sense, or cannot be had though insisted on, is an
//! error of every call, and one line on standard error says why.

use crate::environ;
use crate::errno::Errno;
use crate::linux;
use crate::{calls, say};
use core::sync::atomic::{AtomicU32, Ordering};

/// What the library found below the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// An enclave kernel.
    Enclave,
    /// Linux, and a broker.
    Linux,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// An enclave kernel, else Linux with a broker.
    #[default]
    Auto,
    /// An enclave kernel or nothing.
    Enclave,
    /// Linux with a broker or nothing.
    Linux,
    /// Nothing: every call answers ENOSYS.
    Off,
}

/// The variable that says what is wanted.
const VARIABLE: &str = "XASM_BACKEND";

/// Not chosen yet; else a [`Backend`], or an errno from [`FAILED`] on.
const UNKNOWN: u32 = 0;
const ENCLAVE: u32 = 1;
const LINUX: u32 = 2;
const FAILED: u32 = 1 << 16;

static CHOSEN: AtomicU32 = AtomicU32::new(UNKNOWN);

/// The backend; chosen now if this is the first call.
///
/// # Errors
/// ENOSYS with neither; EPROTO under a kernel of another version; EINVAL when
/// `XASM_BACKEND` makes no sense; ENOTCONN when it insists on Linux and there
/// is no broker.
#[inline]
pub fn backend() -> Result<Backend, Errno> {
    match CHOSEN.load(Ordering::Acquire) {
        UNKNOWN => choose(None),
        known => decode(known),
    }
}

/// Chooses in the program's own words, whatever `XASM_BACKEND` says.
///
/// # Errors
/// As [`backend`]; EBUSY when another choice was made before.
pub fn select(choice: Choice) -> Result<(), Errno> {
    let before = CHOSEN.load(Ordering::Acquire);
    let chosen = match before {
        UNKNOWN => choose(Some(choice)),
        known => decode(known),
    };
    let fits = match choice {
        Choice::Auto => true,
        Choice::Enclave => chosen == Ok(Backend::Enclave),
        Choice::Linux => chosen == Ok(Backend::Linux),
        Choice::Off => chosen == Err(Errno::ENOSYS),
    };
    match chosen {
        _ if !fits && before != UNKNOWN => Err(Errno::EBUSY),
        Err(errno) if choice != Choice::Off => Err(errno),
        _ => Ok(()),
    }
}

#[cold]
fn choose(choice: Option<Choice>) -> Result<Backend, Errno> {
    let found = match choice {
        Some(choice) => find(choice),
        None => wanted().and_then(find),
    };
    let code = match found {
        Ok(Backend::Enclave) => ENCLAVE,
        Ok(Backend::Linux) => LINUX,
        Err(errno) => FAILED + errno.raw().unsigned_abs(),
    };
    // Two threads may have chosen at once: the first one's choice holds.
    let first = CHOSEN.compare_exchange(UNKNOWN, code, Ordering::AcqRel, Ordering::Acquire);
    decode(first.map_or_else(|other| other, |_| code))
}

fn decode(code: u32) -> Result<Backend, Errno> {
    match code {
        ENCLAVE => Ok(Backend::Enclave),
        LINUX => Ok(Backend::Linux),
        other => {
            let number = i32::try_from(other.wrapping_sub(FAILED)).unwrap_or(0);
            Err(Errno::from_raw(number).unwrap_or(Errno::ENOSYS))
        }
    }
}

/// What `XASM_BACKEND` says.
fn wanted() -> Result<Choice, Errno> {
    let Some(value) = environ::variable(VARIABLE) else {
        return Ok(Choice::Auto);
    };
    match value.to_bytes() {
        b"enclave" => Ok(Choice::Enclave),
        b"linux" => Ok(Choice::Linux),
        b"off" => Ok(Choice::Off),
        other => {
            say::line(&[
                b"XASM_BACKEND=",
                other,
                b" makes no sense: it is enclave, linux or off",
            ]);
            Err(Errno::EINVAL)
        }
    }
}

fn find(choice: Choice) -> Result<Backend, Errno> {
    let below = calls::version();
    let enclave = match below {
        Ok(enclave_abi::ABI_VERSION) => Ok(Backend::Enclave),
        Ok(_) => Err(Errno::EPROTO),
        Err(errno) => Err(errno),
    };
    match choice {
        Choice::Off => Err(Errno::ENOSYS),
        Choice::Enclave => enclave.inspect_err(|_| {
            say::line(&[
                b"the backend is to be an enclave, but no such kernel is below this program",
            ]);
        }),
        Choice::Linux if below.is_ok() => {
            say::line(&[b"the backend is to be Linux, but this is an enclave"]);
            Err(Errno::ENOSYS)
        }
        Choice::Linux => linux::reach().map(|()| Backend::Linux).inspect_err(|_| {
            say::line(&[
                b"the backend is to be Linux, but no broker answers in the run directory, and \
                  no xemem-broker could be started from the program's folder or $PATH",
            ]);
        }),
        Choice::Auto => match below {
            Ok(_) => enclave,
            Err(_) => linux::reach()
                .map(|()| Backend::Linux)
                .map_err(|_| Errno::ENOSYS),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_holds_for_the_whole_process() {
        assert_eq!(select(Choice::Off), Ok(()));
        assert_eq!(backend(), Err(Errno::ENOSYS));
        assert_eq!(select(Choice::Off), Ok(()));
        assert_eq!(select(Choice::Linux), Err(Errno::EBUSY));
        assert_eq!(select(Choice::Enclave), Err(Errno::EBUSY));
        assert_eq!(select(Choice::Auto), Err(Errno::ENOSYS));
        assert_eq!(backend(), Err(Errno::ENOSYS));
    }

    #[test]
    fn codes_come_back_as_what_they_were() {
        assert_eq!(decode(ENCLAVE), Ok(Backend::Enclave));
        assert_eq!(decode(LINUX), Ok(Backend::Linux));
        assert_eq!(decode(FAILED + 22), Err(Errno::EINVAL));
        assert_eq!(decode(FAILED), Err(Errno::ENOSYS));
    }
}
