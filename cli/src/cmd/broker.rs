//! `broker`: how the XEMEM broker is, and stopping it; and for the other
//! verbs, reaching it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Subcommand;
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::ledger::RunDir;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;
use xemem_host::{Broker as Connection, ClientError, SOCKET_NAME};

use crate::launch::await_input;
use crate::locate;
use crate::output::{self, Format};

/// Look at or stop the XEMEM broker.
#[derive(Debug, Subcommand)]
pub(crate) enum Broker {
    /// Show what the broker holds.
    Status,
    /// End the broker.
    Stop {
        /// Even while enclaves or readers use it.
        #[arg(long)]
        force: bool,
    },
}

/// How long a broker and its keeper may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(3);

impl Broker {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        match self {
            Self::Status => status(format),
            Self::Stop { force } => stop(*force, format),
        }
    }
}

fn status(format: Format) -> Result<(), Failure> {
    let what = "ask the broker";
    let status = connect(what)?.status().map_err(|e| failure(what, &e))?;
    let uid = uid_of(status.pid);
    if format == Format::Json {
        return output::json(
            "broker",
            &json!({
                "pid": status.pid,
                "keeper": status.keeper,
                "uid": uid,
                "protocol_version": status.protocol_version,
                "abi_version": status.abi_version,
                "clients": status.clients,
                "enclaves": status.enclaves,
                "segments": status.segments,
                "attachments": status.attachments,
                "leases": status.leases,
                "protocol_errors": status.protocol_errors,
                "throttled": status.throttled,
                "retained": status.retained,
                "retained_bytes": status.retained_bytes,
                "uptime_ms": status.uptime_ms,
            }),
        );
    }
    output::line(&format!(
        "broker: pid {}{}, up {}, {} clients, {} enclaves, {} segments, {} attachments, {} leases, \
         {} retained arenas of {}",
        status.pid,
        uid.map_or_else(String::new, |uid| format!(" of uid {uid}")),
        output::duration(status.uptime_ms),
        status.clients,
        status.enclaves,
        status.segments,
        status.attachments,
        status.leases,
        status.retained,
        output::size(status.retained_bytes)
    ))
}

/// The user that a process really is, as the host kernel says; `None` if it is
/// in another process-id namespace, or gone.
pub(crate) fn uid_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    // Real, effective, saved, of files: the second is what it may do.
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn stop(force: bool, format: Format) -> Result<(), Failure> {
    let what = "stop the broker";
    end(connect(what)?, force).map_err(|e| {
        let failure = failure(what, &e);
        if e.refusal() == Some(Errno::BUSY) {
            return failure.with_hint("enclavectl broker stop --force");
        }
        failure
    })?;
    match format {
        Format::Json => output::json("broker", &json!({ "stopped": true })),
        Format::Text => Ok(()),
    }
}

/// Tells a broker to end, `force` even while it is used, and waits for the end
/// of its process and its keeper's, for [`END_TIMEOUT`] at most.
///
/// # Errors
/// [`ClientError`]: it could not be told, or refused.
pub(crate) fn end(mut broker: Connection, force: bool) -> Result<(), ClientError> {
    let status = broker.status()?;
    let process = |pid: u32| {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        pidfd_open(pid, PidfdFlags::empty()).ok()
    };
    let processes = [status.pid, status.keeper].map(process);
    broker.shutdown(force)?;
    // It waits for its last client to hear of it.
    drop(broker);
    let deadline = Instant::now() + END_TIMEOUT;
    for process in processes.iter().flatten() {
        // One that is late ends all the same, only not before us.
        let _ = await_input(process.as_fd(), deadline, None);
    }
    Ok(())
}

/// The broker's socket, absolute: a VMM leaves this directory.
pub(crate) fn socket() -> Result<PathBuf, Failure> {
    let path = RunDir::default_path()?.join(SOCKET_NAME);
    std::path::absolute(path).map_err(|e| Failure::io("find the broker's socket", e))
}

/// Connects to a running broker.
pub(crate) fn connect(what: &str) -> Result<Connection, Failure> {
    Connection::connect(&socket()?).map_err(|e| failure(what, &e))
}

/// Makes sure a broker runs: its socket, and a connection that keeps it from
/// ending for want of clients.
pub(crate) fn ensure_running() -> Result<(PathBuf, Connection), Failure> {
    let socket = socket()?;
    let exe = locate::program("xemem-broker")?;
    let connection = Connection::connect_or_start(&socket, &exe)
        .map_err(|error| failure("start the broker", &error))?;
    Ok((socket, connection))
}

/// A broker's or reader's error as the user sees it.
pub(crate) fn failure(what: &str, error: &ClientError) -> Failure {
    use xemem_host::snapshot::SnapshotError;
    let class = match error {
        ClientError::Connect { source, .. } if *source == Errno::CONNREFUSED => Class::NotFound,
        ClientError::Connect { source, .. } | ClientError::System { source, .. } => {
            class_of(*source)
        }
        ClientError::Refused { errno, .. } => class_of(*errno),
        ClientError::Wire(_)
        | ClientError::Answer
        | ClientError::Geometry(_)
        | ClientError::Memory => Class::Protocol,
        ClientError::Timeout | ClientError::NoAnswer { .. } => Class::Timeout,
        ClientError::Name(_) | ClientError::Unmovable { .. } => Class::Usage,
        ClientError::Snapshot(
            SnapshotError::NoVariable(_)
            | SnapshotError::NoRecord(_)
            | SnapshotError::Forgotten { .. },
        ) => Class::NotFound,
        ClientError::Snapshot(SnapshotError::AbiVersion(_)) => Class::Protocol,
        ClientError::Snapshot(SnapshotError::Runs { .. }) => Class::Resources,
        ClientError::Start { .. }
        | ClientError::BrokerGone
        | ClientError::Cancelled
        | ClientError::Forked
        | ClientError::Snapshot(_) => Class::Failure,
    };
    let hint = match error {
        ClientError::Connect { .. } => "enclavectl create NAME --mem 512M (it starts the broker)",
        ClientError::Snapshot(SnapshotError::Runs { .. }) => "sysctl vm.max_map_count=1048576",
        _ if class == Class::NotFound => "enclavectl snap ls",
        _ => "enclavectl broker status",
    };
    Failure::new(class, what, error).with_hint(hint)
}

fn class_of(errno: Errno) -> Class {
    match errno {
        Errno::NOENT | Errno::IDRM => Class::NotFound,
        Errno::ACCESS | Errno::PERM => Class::Permission,
        Errno::BUSY | Errno::EXIST => Class::Busy,
        Errno::NOMEM | Errno::NOSPC | Errno::MFILE | Errno::DQUOT => Class::Resources,
        Errno::TIMEDOUT => Class::Timeout,
        Errno::PROTO | Errno::PROTONOSUPPORT => Class::Protocol,
        Errno::INVAL => Class::Usage,
        _ => Class::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_their_class() {
        let class = |errno| {
            let text = "no".to_owned();
            failure("x", &ClientError::Refused { errno, text }).class
        };
        assert_eq!(class(Errno::NOENT), Class::NotFound);
        assert_eq!(class(Errno::ACCESS), Class::Permission);
        assert_eq!(class(Errno::TIMEDOUT), Class::Timeout);
        assert_eq!(class(Errno::BUSY), Class::Busy);
        assert_eq!(class(Errno::IO), Class::Failure);
    }

    #[test]
    fn the_user_of_a_process_is_what_the_host_kernel_says() {
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(uid_of(std::process::id()), Some(uid));
        assert_eq!(uid_of(0), None);
    }

    #[test]
    fn no_broker_is_not_found_and_says_what_starts_one() {
        let error = ClientError::Connect {
            path: "/x".into(),
            source: Errno::CONNREFUSED,
        };
        let failure = failure("ask the broker", &error);
        assert_eq!(failure.class, Class::NotFound);
        assert!(failure.hint.contains("enclavectl create"));
    }
}
