//! What a program may use, and what it has used.
//!
//! Limits are what the enclave gives: they are told, and may be asked for
//! again, but not raised.

use enclave_core::errno::Errno;
use enclave_core::thread::MAX_THREADS;

use super::Outcome;
use super::misc::{SECOND, now};
use crate::{process, user};

/// Serves `nr` if it is one of these; `None` otherwise.
pub(super) fn serve(nr: u64, a: [u64; 6]) -> Option<Outcome> {
    Some(match nr {
        97 => getrlimit(a[0], a[1]),
        98 => getrusage(a[0], a[1]),
        160 => setrlimit(a[0], a[1]),
        302 => prlimit(a),
        _ => return None,
    })
}

fn limit(resource: u64) -> [u64; 2] {
    const DATA: u64 = 2;
    const STACK: u64 = 3;
    const AS: u64 = 9;
    const CORE: u64 = 4;
    const NPROC: u64 = 6;
    const NOFILE: u64 = 7;
    let value = match resource {
        STACK => process::with(|p| p.stack_bytes),
        CORE => 0,
        DATA | AS => process::with(|p| match p.limit_bytes {
            0 => u64::MAX,
            bytes => bytes,
        }),
        NPROC => MAX_THREADS as u64,
        NOFILE => 1024,
        _ => u64::MAX,
    };
    [value, value]
}

fn getrlimit(resource: u64, to: u64) -> Outcome {
    if resource >= 16 {
        return Err(Errno::EINVAL);
    }
    user::write(to, &limit(resource))?;
    Ok(0)
}

fn prlimit([pid, resource, new, old, ..]: [u64; 6]) -> Outcome {
    if pid != 0 && pid != process::pid() {
        return Err(Errno::ESRCH);
    }
    if resource >= 16 {
        return Err(Errno::EINVAL);
    }
    if old != 0 {
        user::write(old, &limit(resource))?;
    }
    if new == 0 {
        return Ok(0);
    }
    setrlimit(resource, new)
}

fn setrlimit(resource: u64, from: u64) -> Outcome {
    let [soft, hard]: [u64; 2] = user::read(from)?;
    if resource >= 16 || soft > hard {
        return Err(Errno::EINVAL);
    }
    if hard > limit(resource)[1] {
        return Err(Errno::EPERM);
    }
    Ok(0)
}

fn getrusage(who: u64, to: u64) -> Outcome {
    const CHILDREN: u64 = u64::MAX;
    let mut usage = [0u64; 18];
    match who & 0xffff_ffff {
        // Itself, or its only thread.
        0 | 1 => {}
        who if who == CHILDREN & 0xffff_ffff => {
            user::write(to, &usage)?;
            return Ok(0);
        }
        _ => return Err(Errno::EINVAL),
    }
    let ns = now(2)?;
    usage[0] = ns / SECOND;
    usage[1] = ns % SECOND / 1000;
    usage[4] = process::with(|p| p.aspace.mapped_bytes()) / 1024;
    user::write(to, &usage)?;
    Ok(0)
}
