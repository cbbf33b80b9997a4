//! Who a program is: its process, users, groups and names.
//!
//! There is one user, root of its enclave, and one process group.

use enclave_core::errno::Errno;

use super::Outcome;
use crate::threads::{self, NAME_BYTES};
use crate::{boot, process, user};

/// The parent of a program, which does not exist here.
const PPID: u64 = 1;

/// Serves `nr` if it is one of these; `None` otherwise.
pub(super) fn serve(nr: u64, a: [u64; 6]) -> Option<Outcome> {
    Some(match nr {
        63 => uname(a[0]),
        102 | 104 | 107 | 108 => Ok(0), // uid, gid
        105 | 106 | 109 | 112 => Ok(0), // setuid, setgid, setpgid, setsid
        110 => Ok(PPID),
        111 => Ok(process::pid()), // getpgrp
        115 => getgroups(a[0]),
        118 | 120 => three_ids(a),   // getresuid, getresgid
        121 | 124 => group_of(a[0]), // getpgid, getsid
        135 => personality(a[0]),
        157 => prctl(a[0], a[1]),
        _ => return None,
    })
}

/// No supplementary groups.
fn getgroups(size: u64) -> Outcome {
    // An int.
    if size as i32 >= 0 {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

fn three_ids([real, effective, saved, ..]: [u64; 6]) -> Outcome {
    for to in [real, effective, saved] {
        user::write(to, &0u32)?;
    }
    Ok(0)
}

/// Process group and session of a process: its own.
fn group_of(pid: u64) -> Outcome {
    match pid {
        0 => Ok(process::pid()),
        pid if pid == process::pid() => Ok(pid),
        _ => Err(Errno::ESRCH),
    }
}

/// Only Linux, as it is.
fn personality(wanted: u64) -> Outcome {
    const ASK: u64 = 0xffff_ffff;
    match wanted & ASK {
        0 | ASK => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// prctl(2): the thread's name, nothing else.
fn prctl(option: u64, argument: u64) -> Outcome {
    const SET_NAME: u64 = 15;
    const GET_NAME: u64 = 16;
    match option {
        SET_NAME => {
            let mut name = [0; NAME_BYTES];
            for (at, byte) in (argument..).zip(&mut name).take(NAME_BYTES - 1) {
                *byte = user::read(at)?;
                if *byte == 0 {
                    break;
                }
            }
            threads::with(|t| t.name = name);
            Ok(0)
        }
        GET_NAME => {
            let name = threads::with(|t| t.name);
            user::write(argument, &name)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn uname(to: u64) -> Outcome {
    let mut names = [[0u8; 65]; 6];
    let host_name = enclave_abi::arena::text(&boot::info().name).unwrap_or("enclave");
    // Programs compare the release with the oldest kernel they run on.
    let texts = [
        "Linux",
        host_name,
        "6.1.0-xasm",
        concat!("#1 XASM ", env!("CARGO_PKG_VERSION")),
        "x86_64",
        "(none)",
    ];
    for (field, text) in names.iter_mut().zip(texts) {
        for (to, from) in field.iter_mut().take(64).zip(text.bytes()) {
            *to = from;
        }
    }
    user::write(to, &names)?;
    Ok(0)
}
