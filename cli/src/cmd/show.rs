//! `list` and `inspect`: what is there, told from locks and answers, never
//! from files alone.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use enclave_vmm::control::client::Client;
use enclave_vmm::control::protocol::{Effective, Inspection};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::isolation::{Report, report};
use enclave_vmm::ledger::{EnclaveDir, Occupancy, Record, RunDir};
use enclave_vmm::lifecycle::Phase;
use enclave_vmm::machine::MachineState;
use enclave_vmm::placement::Placement;
use serde::Serialize;

use crate::locate;
use crate::output::{self, Format};

/// How long one enclave may take to answer before it counts as unresponsive.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long it may look at every page of an enclave.
const PLACEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between looks at a lock that is about to be free.
const DYING_PAUSE: Duration = Duration::from_millis(5);
/// Longest configuration read back.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// List the enclaves.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print names only.
    #[arg(short, long)]
    quiet: bool,
}

/// Show everything about an enclave, as JSON.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Enclave.
    name: String,
}

/// One enclave as `list` shows it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) cores: Vec<usize>,
    pub(super) mem_bytes: u64,
    pub(super) arenas: usize,
    pub(super) program: String,
    pub(super) uptime_ms: Option<u64>,
    pub(super) pid: Option<i32>,
    pub(super) reason: String,
}

/// What is known of one enclave.
struct Seen {
    phase: Phase,
    /// What the holder of the lock was granted, if somebody holds it.
    record: Option<Record>,
    reason: String,
    inspection: Option<Box<Inspection>>,
}

impl List {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let run = locate::run_dir()?;
        let rows = rows(&run)?;
        match format {
            Format::Json => output::json("enclaves", &rows),
            Format::Text if self.quiet => rows.iter().try_for_each(|row| output::line(&row.name)),
            Format::Text => print(&rows),
        }
    }
}

/// Every enclave.
pub(super) fn rows(run: &RunDir) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for name in run.names()? {
        // Destroyed since the names were read.
        let Some(dir) = run.enclave(&name, false)? else {
            continue;
        };
        rows.push(row(&dir, &look(&dir)));
    }
    Ok(rows)
}

/// Enclaves that answer, all or the one named.
pub(super) fn inspections(
    run: &RunDir,
    only: Option<&str>,
) -> Result<Vec<(String, Box<Inspection>)>, Failure> {
    let names = match only {
        Some(name) => {
            locate::enclave(run, name)?;
            vec![name.to_owned()]
        }
        None => run.names()?,
    };
    let mut answers = Vec::new();
    for name in names {
        let dir = run.enclave(&name, false)?;
        if let Some(inspection) = dir.and_then(|dir| look(&dir).inspection) {
            answers.push((name, inspection));
        }
    }
    Ok(answers)
}

/// What enclave `name` is doing, and why if that needs a reason; `None` when
/// there is none.
pub(super) fn phase(run: &RunDir, name: &str) -> Result<Option<(Phase, String)>, Failure> {
    let seen = run.enclave(name, false)?.map(|dir| look(&dir));
    Ok(seen.map(|seen| (seen.phase, seen.reason)))
}

/// Asks the lock and, if somebody holds it, the holder.
fn look(dir: &EnclaveDir) -> Seen {
    let (phase, reason) = match dir.occupancy() {
        Ok(Occupancy::Live(record)) => return look_at_live(dir, record),
        Ok(Occupancy::Dead(reason)) => (Phase::Dead, reason),
        Err(failure) => (Phase::Broken, failure.why),
    };
    Seen {
        phase,
        record: None,
        reason,
        inspection: None,
    }
}

fn look_at_live(dir: &EnclaveDir, record: Record) -> Seen {
    let answer = Client::connect(dir, ANSWER_TIMEOUT).and_then(|mut client| client.inspect());
    if let Err(failure) = &answer
        && failure.class != Class::Timeout
        && let Some(reason) = dies(dir)
    {
        return Seen {
            phase: Phase::Dead,
            record: None,
            reason,
            inspection: None,
        };
    }
    match answer {
        Ok(inspection) => Seen {
            phase: Phase::of_machine(&inspection.machine),
            reason: match &inspection.machine {
                MachineState::Failed { reason } => reason.clone(),
                _ => String::new(),
            },
            record: Some(record),
            inspection: Some(inspection),
        },
        Err(failure) => {
            let listens = dir.open_file("config.json").is_ok();
            Seen {
                phase: if listens {
                    Phase::Unresponsive
                } else {
                    Phase::Creating
                },
                reason: if listens { failure.why } else { String::new() },
                record: Some(record),
                inspection: None,
            }
        }
    }
}

/// Waits a moment for the end of a VMM that has let go of its socket: its lock
/// goes a little later. The reason if it has died.
fn dies(dir: &EnclaveDir) -> Option<String> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        if let Ok(Occupancy::Dead(reason)) = dir.occupancy() {
            return Some(reason);
        }
        let is_up = dir.open_file("config.json").is_ok();
        if !is_up || Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(DYING_PAUSE);
    }
}

fn row(dir: &EnclaveDir, seen: &Seen) -> Row {
    let (mut cores, mut mem_bytes, mut pid) = (Vec::new(), 0, None);
    if let Some(record) = &seen.record {
        cores.clone_from(&record.cores);
        mem_bytes = record.mem_bytes;
        pid = (record.pid > 0).then_some(record.pid);
    }
    let inspection = seen.inspection.as_ref();
    let program = match inspection.map(|i| &i.machine) {
        Some(MachineState::Running { program } | MachineState::Frozen { program }) => {
            program.clone()
        }
        _ => String::new(),
    };
    Row {
        name: dir.name().to_owned(),
        state: seen.phase.to_string(),
        cores,
        mem_bytes,
        arenas: inspection.map_or(0, |i| i.report.arenas.len()),
        program,
        uptime_ms: inspection.map(|i| i.uptime_ms),
        pid,
        reason: seen.reason.clone(),
    }
}

fn print(rows: &[Row]) -> Result<(), Failure> {
    let or_dash = |text: String| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text
        }
    };
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let cores: Vec<String> = row.cores.iter().map(usize::to_string).collect();
            let mem = if row.mem_bytes == 0 {
                String::new()
            } else {
                output::size(row.mem_bytes)
            };
            vec![
                row.name.clone(),
                row.state.clone(),
                or_dash(cores.join(",")),
                or_dash(mem),
                row.arenas.to_string(),
                or_dash(output::printable(&row.program)),
                or_dash(row.uptime_ms.map(output::duration).unwrap_or_default()),
                output::printable(&row.reason),
            ]
        })
        .collect();
    let heading = [
        "NAME", "STATE", "CORES", "MEM", "ARENAS", "PROGRAM", "UPTIME", "REASON",
    ];
    output::table(&heading, &cells)
}

/// The JSON of `inspect`.
#[derive(Debug, Serialize)]
struct Document {
    name: String,
    state: String,
    reason: String,
    directory: String,
    effective: Option<Effective>,
    live: Option<Box<Inspection>>,
    /// Where cores and memory really are, as the host kernel tells it.
    placement: Option<Box<Placement>>,
    /// How far it has its cores alone, as the host kernel tells it.
    isolation: Option<Report>,
}

impl Inspect {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let run = locate::run_dir()?;
        let dir = locate::enclave(&run, &self.name)?;
        let seen = look(&dir);
        let effective = match &seen.inspection {
            Some(inspection) => Some(inspection.effective.clone()),
            None => written_config(&dir),
        };
        // One that has gone since it answered is somewhere no more.
        let placement = seen.inspection.as_ref().and_then(|_| placement(&dir).ok());
        let isolation = seen
            .record
            .as_ref()
            .map(|record| report(Path::new("/"), &self.name, record));
        output::json(
            "enclave",
            &Document {
                name: self.name.clone(),
                state: seen.phase.to_string(),
                reason: seen.reason,
                directory: dir.path().display().to_string(),
                effective,
                live: seen.inspection,
                placement,
                isolation,
            },
        )
    }
}

/// Asks a VMM that has just answered where it is.
fn placement(dir: &EnclaveDir) -> Result<Box<Placement>, Failure> {
    Client::connect(dir, PLACEMENT_TIMEOUT)?.placement()
}

/// What a silent or dead VMM wrote down; `None` when it did not get so far.
fn written_config(dir: &EnclaveDir) -> Option<Effective> {
    let mut text = String::new();
    let file = dir.open_file("config.json").ok()?;
    file.take(MAX_CONFIG_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}
