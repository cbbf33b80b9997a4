//! All parts at work: an enclave, a program that publishes snapshots from it,
//! and a reader on Linux that verifies them.
//!
//! Uses the demo's programs where they stand beside `enclavectl`; without them
//! the test is not covered. The program runs by `enclavectl run`, as a user's
//! does.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use enclave_vmm::failure::Failure;
use enclave_vmm::machine::Ring;
use serde_json::Value;

use super::machines::{Machines, NAME, Stop};
use super::report::Verdict;
use crate::launch::{Waited, Word, wait_child};
use crate::locate;

/// What this test is called.
pub(super) const TITLE: &str = "end to end: a program publishes, a reader verifies";
/// Longest time both programs may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long the VMM may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Most of a program's output that a report takes.
const OUTPUT_BYTES: usize = 4 << 10;
/// A cube of 64 cells and five time steps, in the form of SNAP.
const DECK: &[u8] = b"&invar\n ndimen=3 nx=4 ny=4 nz=4 lx=4.0 ly=4.0 lz=4.0\n \
    nang=2 ng=2 epsi=1.0D-3 iitm=4 oitm=8 timedep=1 tf=0.5 nsteps=5\n \
    mat_opt=1 src_opt=1 fixup=1 popout=0\n/\n";

/// What came of it: verdict, why, and what was printed if it failed.
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    pub(super) why: String,
    pub(super) output: String,
}

impl Outcome {
    fn failed(why: impl Into<String>, output: String) -> Self {
        Self {
            verdict: Verdict::Failed,
            why: why.into(),
            output,
        }
    }
}

/// Runs it in a machine of mode `ring`.
pub(super) fn run(machines: &Machines<'_>, ring: Ring) -> Result<Outcome, Stop> {
    let (Some(program), Some(reader)) = (locate::beside("snap-mini"), locate::beside("spectrum"))
    else {
        return Ok(Outcome {
            verdict: Verdict::NotCovered,
            why: "snap-mini and spectrum are not beside enclavectl".into(),
            output: String::new(),
        });
    };
    let (launch, word) = machines.start(ring, 0)?;
    let outcome = match word {
        Word::Up(_) => both(machines, program, reader),
        Word::Refused(failure) => Ok(Outcome::failed(failure.to_string(), String::new())),
        Word::Died(end) => Ok(Outcome::failed(end, String::new())),
        Word::Late | Word::Called => Ok(Outcome::failed("hung while booting", String::new())),
    };
    let console = machines.console();
    launch.end(END_TIMEOUT);
    if let Ok(Some(left)) = machines.place.run.enclave(NAME, false) {
        left.remove_dead(&machines.place.run)?;
    }
    let mut outcome = outcome?;
    if outcome.verdict == Verdict::Failed {
        outcome.output.push_str(&console);
    }
    Ok(outcome)
}

/// Program and reader, both until their end.
fn both(machines: &Machines<'_>, program: PathBuf, reader: PathBuf) -> Result<Outcome, Stop> {
    let deadline = machines.deadline.min(Instant::now() + TIMEOUT);
    let reader = {
        let mut command = Command::new(reader);
        command.args(["snap/flux", "--json", "--timeout", "15", "--socket"]);
        command.arg(&machines.place.socket);
        Running::start(machines, "reader", command, b"")?
    };
    let own = std::env::current_exe().map_err(|e| Failure::io("find this program", e))?;
    let mut command = Command::new(own);
    command
        .args(["run", NAME, "--"])
        .arg(program)
        .args(["--input", "-"]);
    command.env("ENCLAVE_RUNDIR", machines.place.run.path());
    let program = Running::start(machines, "program", command, DECK)?;
    let (program_end, program_said) = program.finish(machines, deadline)?;
    let (reader_end, reader_said) = reader.finish(machines, deadline)?;
    let output = format!(
        "snap-mini ({program_end}):\n{program_said}\nspectrum ({reader_end}):\n{reader_said}\n"
    );
    if program_end != "exit status: 0" {
        return Ok(Outcome::failed(format!("snap-mini: {program_end}"), output));
    }
    // The last of its lines is the summary.
    let verified = reader_said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|line| line["verified"].as_u64())
        .next_back()
        .unwrap_or(0);
    if reader_end != "exit status: 0" || verified == 0 {
        let why = format!("spectrum: {reader_end}, {verified} snapshots verified");
        return Ok(Outcome::failed(why, output));
    }
    Ok(Outcome {
        verdict: Verdict::Passed,
        why: String::new(),
        output: String::new(),
    })
}

/// A program with its output in a file of the private directory.
struct Running {
    child: Child,
    output: PathBuf,
}

impl Running {
    fn start(
        machines: &Machines<'_>,
        name: &str,
        mut command: Command,
        input: &[u8],
    ) -> Result<Self, Failure> {
        let what = || format!("start {}", command.get_program().display());
        let output = machines.place.run.path().join(name);
        let file = File::create(&output).map_err(|e| Failure::io(what(), e))?;
        let copy = file.try_clone().map_err(|e| Failure::io(what(), e))?;
        let what = what();
        command.stdin(Stdio::piped()).stdout(file).stderr(copy);
        let mut child = command.spawn().map_err(|e| Failure::io(what, e))?;
        if let Some(mut stdin) = child.stdin.take() {
            // Shorter than a pipe holds; a program that is gone says so.
            let _ = stdin.write_all(input);
        }
        Ok(Self { child, output })
    }

    /// How it ended and what it printed; killed at `deadline`.
    fn finish(
        mut self,
        machines: &Machines<'_>,
        deadline: Instant,
    ) -> Result<(String, String), Stop> {
        let waited = wait_child(&mut self.child, deadline, Some(machines.front));
        let end = match waited {
            Ok(Waited::Ended(status)) => status.to_string(),
            Ok(Waited::Late) => "hung, killed".to_owned(),
            Ok(Waited::Called) => return Err(Stop::Left),
            Err(error) => return Err(Failure::io("wait for a program", error).into()),
        };
        let said = fs::read(&self.output).unwrap_or_default();
        let from = said.len().saturating_sub(OUTPUT_BYTES);
        Ok((end, String::from_utf8_lossy(&said[from..]).into_owned()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
