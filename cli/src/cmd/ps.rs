//! `ps` and `kill`: the processes of an enclave, and signals for one of them.
//!
//! The enclave's kernel is asked; while it does not answer (one core and a program
//! that is being debugged, say) what it told last is shown.

use std::time::Duration;

use clap::Args;
use enclave_vmm::control::client::Client;
use enclave_vmm::control::protocol::Request;
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::machine::{ProcessInfo, ProcessState};
use serde_json::{Value, json};

use crate::locate;
use crate::output::{self, Format};

/// Longer than a VMM waits for its kernel.
const TIMEOUT: Duration = Duration::from_secs(10);

/// List the processes of an enclave.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Enclave.
    name: String,
}

/// Send a process of an enclave a signal.
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Enclave, and which of its processes if there are several.
    #[arg(value_name = "NAME[:PID]")]
    process: String,
    /// Signal: a number, or a name such as TERM.
    #[arg(long, short, default_value = "TERM", value_parser = signal)]
    signal: u8,
}

impl Ps {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let processes = connect(&self.name)?.processes()?;
        match format {
            Format::Json => {
                let list: Vec<Value> = processes.iter().map(document).collect();
                output::json("processes", &list)
            }
            Format::Text => {
                let heading = ["PID", "RUN", "STATE", "THREADS", "CPU", "MEMORY", "PROGRAM"];
                let rows: Vec<Vec<String>> = processes.iter().map(row).collect();
                output::table(&heading, &rows)
            }
        }
    }
}

impl Kill {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let what = || format!("send {} a signal", self.process);
        let (name, pid) = match self.process.split_once(':') {
            None => (self.process.as_str(), None),
            Some((name, pid)) => {
                let pid = pid.parse::<u32>().map_err(|_| {
                    let why = format!("{pid:?} is no process number");
                    Failure::new(Class::Usage, what(), why)
                        .with_hint(format!("enclavectl ps {name}"))
                })?;
                (name, Some(pid))
            }
        };
        let mut client = connect(name)?;
        let processes = client.processes()?;
        let fitting = |one: &&ProcessInfo| pid.is_none_or(|pid| one.pid == pid);
        let fitting: Vec<&ProcessInfo> = processes.iter().filter(fitting).collect();
        let fail = |class, why: String| {
            Err(Failure::new(class, what(), why).with_hint(format!("enclavectl ps {name}")))
        };
        match (fitting.as_slice(), pid) {
            ([one], _) => {
                let (run, signal) = (one.run, self.signal);
                client.call(&Request::Kill { run, signal }).map(drop)
            }
            ([], Some(pid)) => fail(Class::NotFound, format!("there is no process {pid}")),
            ([], None) => fail(Class::NotFound, "no program runs".to_owned()),
            (several, _) => fail(
                Class::Usage,
                format!("it has {} processes; name one", several.len()),
            ),
        }
    }
}

fn connect(name: &str) -> Result<Client, Failure> {
    let dir = locate::enclave(&locate::run_dir()?, name)?;
    Client::connect(&dir, TIMEOUT)
}

const fn state(state: ProcessState) -> &'static str {
    match state {
        ProcessState::Starting => "starting",
        ProcessState::Running => "running",
        ProcessState::Ready => "ready",
        ProcessState::Waiting => "waiting",
    }
}

fn document(one: &ProcessInfo) -> Value {
    json!({
        "pid": one.pid,
        "run": one.run,
        "program": one.program,
        "threads": one.threads,
        "state": state(one.state),
        "cpu_ns": one.cpu_ns,
        "memory_bytes": one.memory_bytes,
    })
}

fn row(one: &ProcessInfo) -> Vec<String> {
    vec![
        one.pid.to_string(),
        one.run.to_string(),
        state(one.state).to_owned(),
        one.threads.to_string(),
        output::duration(one.cpu_ns / 1_000_000),
        output::size(one.memory_bytes),
        output::printable(&one.program),
    ]
}

/// A signal by number or name.
fn signal(text: &str) -> Result<u8, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ABRT" => 6,
        "KILL" => 9,
        "USR1" => 10,
        "USR2" => 12,
        "TERM" => 15,
        "CONT" => 18,
        other => other.parse().unwrap_or(0),
    };
    if (1..=64).contains(&number) {
        Ok(number)
    } else {
        Err("a signal is a number from 1 to 64 or a name such as TERM".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_by_name_and_number() {
        assert_eq!(signal("TERM"), Ok(15));
        assert_eq!(signal("sigkill"), Ok(9));
        assert_eq!(signal("34"), Ok(34));
        for bad in ["", "0", "65", "-1", "SIG", "NOPE", "999999"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }
}
