//! `events`: what happened to enclaves, from the log that VMMs share, and
//! which of them are dead.
//!
//! A VMM that is killed cannot write that down: its death is seen by its lock,
//! when somebody looks, and told with that time. Following waits on inotify;
//! the look once a second is for those deaths.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use clap::Args;
use enclave_vmm::event_log::{Event, Happened, Reader};
use enclave_vmm::failure::Failure;
use enclave_vmm::ledger::{Occupancy, RunDir};
use enclave_vmm::machine::RunOutcome;
use enclave_vmm::topology::cpu_list;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::locate;
use crate::output::{self, Format};

const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Show what happened to enclaves: created, programs started and ended, failed,
/// died, destroyed.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Enclave (default: all).
    name: Option<String>,
    /// Go on with what comes, until interrupted.
    #[arg(short, long)]
    follow: bool,
}

impl Events {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let run = locate::run_dir()?;
        let failed = |e| Failure::io("read the events", e);
        // Before the first look, so that nothing falls between.
        let changes = watch(&run).map_err(failed)?;
        let mut reader = Reader::new(&run).map_err(failed)?;
        let mut dead = BTreeSet::new();
        loop {
            let mut events = reader.read_new().map_err(failed)?;
            events.extend(deaths(&run, &mut dead)?);
            for event in &events {
                if self
                    .name
                    .as_ref()
                    .is_some_and(|name| *name != event.enclave)
                {
                    continue;
                }
                let reader = match format {
                    Format::Json => output::json_line("event", event)?,
                    Format::Text => output::stream(text(event).as_bytes())?,
                };
                if reader == output::Reader::Gone {
                    return Ok(());
                }
            }
            if !self.follow {
                return Ok(());
            }
            let mut fds = [PollFd::new(&changes, PollFlags::IN)];
            match poll(&mut fds, Some(&LOOK_AGAIN)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => drain(&changes),
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

fn watch(run: &RunDir) -> std::io::Result<OwnedFd> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let events = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
    let path = format!("/proc/self/fd/{}", run.fd().as_raw_fd());
    inotify::add_watch(&changes, path, events)?;
    Ok(changes)
}

/// Takes all changes; what they say does not matter, the log is read anyway.
fn drain(changes: &OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(changes, &mut buffer);
    while reader.next().is_ok() {}
}

/// Enclaves that have died since the last look; `told` are those known.
fn deaths(run: &RunDir, told: &mut BTreeSet<String>) -> Result<Vec<Event>, Failure> {
    let mut dead = BTreeSet::new();
    let mut events = Vec::new();
    for name in run.names()? {
        let Some(dir) = run.enclave(&name, false)? else {
            continue;
        };
        if let Ok(Occupancy::Dead(reason)) = dir.occupancy() {
            if !told.contains(&name) {
                events.push(Event::now(&name, Happened::Died { reason }));
            }
            dead.insert(name);
        }
    }
    *told = dead;
    Ok(events)
}

/// An event as people read it.
fn text(event: &Event) -> String {
    let (what, detail) = match &event.happened {
        Happened::Created { cores, mem_bytes } => {
            let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
            let mem = output::size(*mem_bytes);
            ("created", format!("core {}, {mem}", cores.join(",")))
        }
        Happened::CreateFailed { reason } => ("create-failed", reason.clone()),
        Happened::ProgramStarted { run, program } => {
            ("program-started", format!("run {run}: {program}"))
        }
        Happened::ProgramEnded { run, outcome } => {
            ("program-ended", format!("run {run}: {}", end(outcome)))
        }
        Happened::Failed { reason } => ("failed", reason.clone()),
        Happened::Died { reason } => ("died", reason.clone()),
        Happened::MemoryAdded { bytes, mem_bytes } => ("memory-added", change(*bytes, *mem_bytes)),
        Happened::MemoryRemoved { bytes, mem_bytes } => {
            ("memory-removed", change(*bytes, *mem_bytes))
        }
        Happened::CoresAdded { cores } => ("cores-added", now(cores)),
        Happened::CoresRemoved { cores } => ("cores-removed", now(cores)),
        Happened::Reset {} => ("reset", String::new()),
        Happened::Destroyed { reason } => ("destroyed", reason.clone()),
    };
    let (time, enclave) = (output::time(event.unix_ms), &event.enclave);
    let line = format!("{time} {enclave} {what} {detail}");
    format!("{}\n", output::printable(line.trim_end()))
}

fn now(cores: &[usize]) -> String {
    let cores = cores.iter().copied().collect();
    format!("cores {} now", cpu_list(&cores))
}

fn change(bytes: u64, now: u64) -> String {
    format!("{}, {} now", output::size(bytes), output::size(now))
}

fn end(outcome: &RunOutcome) -> String {
    match outcome {
        RunOutcome::Exited { code } => format!("exit code {code}"),
        RunOutcome::Signaled { signal, report } => format!("signal {signal} {report}"),
        RunOutcome::Refused { reason } => format!("refused: {reason}"),
        RunOutcome::MachineStopped { reason } => format!("the machine stopped: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let event = Event {
            unix_ms: 1_700_000_000_123,
            enclave: "a1".into(),
            happened: Happened::ProgramStarted {
                run: 3,
                program: "/p\n\x1b[2J".into(),
            },
        };
        let line = "2023-11-14T22:13:20.123Z a1 program-started run 3: /p??[2J\n";
        assert_eq!(text(&event), line);
    }
}
