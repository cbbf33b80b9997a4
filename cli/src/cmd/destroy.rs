//! `destroy`: stops enclaves for good, politely first.
//!
//! The VMM is asked over its socket (SIGTERM if that fails), killed after a
//! grace of half a second, and waited for through a pidfd; then whatever files
//! it could not remove itself are removed. Several are stopped at once.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use clap::Args;
use enclave_vmm::control::client::Client;
use enclave_vmm::control::protocol::Request;
use enclave_vmm::event_log::{self, Happened};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::ledger::{EnclaveDir, Occupancy, RunDir};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cmd::isolate;
use crate::locate;
use crate::output::{self, Format};

/// How long a VMM may take to end by itself.
const GRACE: Duration = Duration::from_millis(500);
/// How long the host may take to clear a killed VMM away.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the socket may take to take the request.
const ASK_TIMEOUT: Duration = Duration::from_millis(200);

/// Stop enclaves and give their cores and memory back.
#[derive(Debug, Args)]
pub(crate) struct Destroy {
    /// Enclaves.
    #[arg(required_unless_present = "all")]
    names: Vec<String>,
    /// All enclaves.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Do not fail for enclaves that are not there.
    #[arg(long)]
    ignore_missing: bool,
}

/// An enclave whose VMM has been asked to end.
struct Ending {
    dir: EnclaveDir,
    /// `None` when it was dead already.
    vmm: Option<OwnedFd>,
    asked: Instant,
}

impl Destroy {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let run = locate::run_dir()?;
        let names = if self.all {
            run.names()?
        } else {
            self.names.clone()
        };
        let mut first_failure = None;
        let mut note = |failure: Failure| {
            if first_failure.is_none() {
                first_failure = Some(failure);
            } else {
                output::failure(&failure);
            }
        };
        let mut ending = Vec::new();
        for name in &names {
            match ask(&run, name) {
                Ok(one) => ending.push(one),
                Err(e) if e.class == Class::NotFound && (self.ignore_missing || self.all) => {}
                Err(failure) => note(failure),
            }
        }
        let mut destroyed = Vec::new();
        for one in ending {
            match finish(&run, &one) {
                Ok(()) => destroyed.push(one.dir.name().to_owned()),
                Err(failure) => note(failure),
            }
        }
        isolate::tidy_in(&run);
        match format {
            Format::Json => output::json("destroyed", &destroyed)?,
            Format::Text => {
                for name in &destroyed {
                    output::line(name)?;
                }
            }
        }
        first_failure.map_or(Ok(()), Err)
    }
}

/// Stops one enclave and removes what it leaves.
pub(crate) fn end(run: &RunDir, name: &str) -> Result<(), Failure> {
    finish(run, &ask(run, name)?)
}

/// Asks the VMM of `name` to end.
fn ask(run: &RunDir, name: &str) -> Result<Ending, Failure> {
    let dir = locate::enclave(run, name)?;
    let vmm = holder(&dir)?;
    if let Some(vmm) = &vmm {
        let asked = Client::connect(&dir, ASK_TIMEOUT)
            .and_then(|mut client| client.call(&Request::Stop {}));
        if asked.is_err() {
            signal(&dir, vmm, Signal::TERM)?;
        }
    }
    Ok(Ending {
        dir,
        vmm,
        asked: Instant::now(),
    })
}

/// A descriptor of the process that holds the enclave's lock.
///
/// The pid comes from the lock file. The holder wrote it, and the lock is
/// found held with the same pid after the descriptor was opened: so the
/// process behind the descriptor is the holder and no later one of that pid.
fn holder(dir: &EnclaveDir) -> Result<Option<OwnedFd>, Failure> {
    let what = || format!("destroy enclave {}", dir.name());
    for _ in 0..100 {
        let Occupancy::Live(before) = dir.occupancy()? else {
            return Ok(None);
        };
        let Some(pid) = Pid::from_raw(before.pid).filter(|_| before.pid > 0) else {
            // Locked a moment ago, not yet recorded.
            std::thread::yield_now();
            continue;
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => match dir.occupancy()? {
                Occupancy::Live(after) if after.pid == before.pid => return Ok(Some(fd)),
                _ => {}
            },
            Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(Failure::io(what(), error)),
        }
    }
    Err(Failure::new(
        Class::Busy,
        what(),
        "its lock is held by a process that cannot be told",
    ))
}

fn signal(dir: &EnclaveDir, vmm: &OwnedFd, signal: Signal) -> Result<(), Failure> {
    match pidfd_send_signal(vmm, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Failure::io(
            format!("destroy enclave {}", dir.name()),
            error,
        )),
    }
}

/// Waits for the VMM's end, by force if need be, and clears up behind it.
fn finish(run: &RunDir, ending: &Ending) -> Result<(), Failure> {
    let dir = &ending.dir;
    // One that ends by itself says so itself.
    let mut told = if ending.vmm.is_none() {
        "what a dead enclave-vmm left is removed"
    } else {
        ""
    };
    let grace = GRACE.saturating_sub(ending.asked.elapsed());
    if let Some(vmm) = ending.vmm.as_ref().filter(|vmm| !wait(vmm, grace)) {
        signal(dir, vmm, Signal::KILL)?;
        told = "killed: it did not end by itself";
        if !wait(vmm, KILL_TIMEOUT) {
            let why = format!("its enclave-vmm did not end within {KILL_TIMEOUT:?} of SIGKILL");
            let what = format!("destroy enclave {}", dir.name());
            return Err(Failure::new(Class::Timeout, what, why));
        }
    }
    match run.enclave(dir.name(), false)? {
        Some(left) => match left.occupancy()? {
            // Somebody has made a new one of that name meanwhile.
            Occupancy::Live(_) if ending.vmm.is_some() => Ok(()),
            _ => {
                left.remove_dead(run)?;
                if !told.is_empty() {
                    let reason = told.to_owned();
                    event_log::tell_for(run, dir.name(), Happened::Destroyed { reason });
                }
                Ok(())
            }
        },
        None => Ok(()),
    }
}

/// Whether the process ended within `timeout`.
fn wait(vmm: &OwnedFd, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else {
            return false;
        };
        let mut fds = [PollFd::new(vmm, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
