//! `selftest`: the kernel's self-tests on this machine, one small enclave
//! each, and a report to file a bug with.
//!
//! ```text
//!  enclavectl selftest (front)          its worker, in a session of its own
//!    signals, exit code     stdin       private run directory, broker,
//!    ───────────────────── pipe ──────► one enclave-vmm after the other
//! ```
//!
//! The worker does everything and prints. The front only waits, so that
//! nothing is left behind however it ends: when it goes (Ctrl-C, SIGKILL), its
//! pipe closes, and the worker ends its enclave, its broker and its directory.
//! When the worker is killed instead, its VMM ends by itself and the front
//! clears the rest.

mod facts;
mod machines;
mod parts;
mod place;
mod report;
mod scrub;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::ledger::RunDir;
use enclave_vmm::machine::Ring;
use enclave_vmm::signals::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SignalFd};
use serde_json::json;

use self::facts::Facts;
use self::machines::{End, Heard, Machines, Stop, judge, listed, told};
use self::place::Place;
use self::report::{Paper, Report, Row, Verdict};
use self::scrub::Scrub;
use super::doctor;
use crate::launch::{Waited, wait_child};
use crate::output::{self, Format};

/// Name of the test that every mode begins with.
const BOOTS: &str = "the kernel comes up";
/// Most self-tests that are run.
const MOST_TESTS: u32 = 1000;
/// How long the worker may take to clear up when told to leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Further time for the worker beyond that of its tests.
const WORKER_MARGIN: Duration = Duration::from_secs(30);

/// Run the kernel's self-tests here, and print a report for a bug.
#[derive(Debug, Args)]
pub(crate) struct Selftest {
    /// Privilege ring of the kernel: what create would choose, one, or both in
    /// turn.
    #[arg(long, value_enum, default_value_t = Rings::Both)]
    ring: Rings,
    /// Only the self-test of this number, or those with this in their name.
    #[arg(long, value_name = "N|NAME")]
    only: Option<Wanted>,
    /// List the kernel's self-tests, run none.
    #[arg(long, conflicts_with_all = ["only", "output"])]
    list: bool,
    /// Write the report to a file.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Longest time for everything.
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Kernel image.
    #[arg(
        long,
        value_name = "PATH",
        env = "ENCLAVE_KERNEL",
        hide_env_values = true
    )]
    kernel: Option<PathBuf>,
    /// The worker: does the work in this directory until its input ends.
    #[arg(long, value_name = "DIR", hide = true)]
    worker: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rings {
    Auto,
    #[value(name = "0")]
    Ring0,
    #[value(name = "3")]
    Ring3,
    Both,
}

impl Rings {
    /// The modes in turn: the ring, and the kernel mode it must come to.
    fn modes(self) -> &'static [(Ring, Option<&'static str>)] {
        const RING0: (Ring, Option<&str>) = (Ring::Ring0, Some("ring0"));
        const RING3: (Ring, Option<&str>) = (Ring::Ring3, Some("ring3"));
        match self {
            Self::Auto => &[(Ring::Auto, None)],
            Self::Ring0 => &[RING0],
            Self::Ring3 => &[RING3],
            Self::Both => &[RING0, RING3],
        }
    }
}

/// Which self-tests.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Number(u32),
    Name(String),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a number or a part of a name is wanted".into());
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self::Name(text.to_lowercase()));
        }
        match text.parse() {
            Ok(0) => Err("self-tests are numbered from 1".into()),
            Ok(number) => Ok(Self::Number(number)),
            Err(error) => Err(format!("{text}: {error}")),
        }
    }
}

impl Wanted {
    fn is_in(&self, name: &str) -> bool {
        matches!(self, Self::Name(part) if name.to_lowercase().contains(part))
    }
}

impl Selftest {
    pub(crate) fn run(&self, format: Format) -> ExitCode {
        let ended = match &self.worker {
            None => self.front(),
            Some(path) => self.work(path, format).map(|()| ExitCode::SUCCESS),
        };
        ended.unwrap_or_else(|failure| {
            output::failure(&failure);
            ExitCode::from(failure.class.exit_code())
        })
    }

    /// Starts the worker, waits for it, and ends as it ended.
    fn front(&self) -> Result<ExitCode, Failure> {
        let what = "run the self-tests";
        let failed = |e: std::io::Error| Failure::io(what, e);
        // Blocked before the worker is there, so that none is lost.
        let signals = SignalFd::new(&[SIGINT, SIGTERM, SIGHUP, SIGQUIT]).map_err(failed)?;
        let path = Place::new_path();
        let own = std::env::current_exe().map_err(failed)?;
        let mut worker = Command::new(own)
            .args(std::env::args_os().skip(1))
            .arg("--worker")
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let pipe = worker.stdin.take();
        let limit = Duration::from_secs(self.timeout) + WORKER_MARGIN;
        let mut waited = wait_child(&mut worker, Instant::now() + limit, Some(signals.as_fd()));
        let mut signal = None;
        if !matches!(waited, Ok(Waited::Ended(_))) {
            signal = signals.next().map_err(failed)?;
            drop(pipe);
            waited = wait_child(&mut worker, Instant::now() + LEAVE_TIMEOUT, None);
        }
        if !matches!(waited, Ok(Waited::Ended(_))) {
            // Fails only for one that has ended.
            let _ = worker.kill();
            let _ = worker.wait();
        }
        place::clear(&path);
        if let Some(signal) = signal {
            return Ok(ExitCode::from(128 + u8::try_from(signal).unwrap_or(0)));
        }
        match waited.map_err(failed)? {
            Waited::Ended(status) => match status.code() {
                Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))),
                None => {
                    let signal = status.signal().unwrap_or_default();
                    let why = format!("their process was killed by signal {signal}");
                    Err(Failure::new(Class::Failure, what, why))
                }
            },
            Waited::Late | Waited::Called => {
                let why = format!("their process did not end within {limit:?}");
                Err(Failure::new(Class::Timeout, what, why))
            }
        }
    }

    /// Everything, in the directory `path`.
    fn work(&self, path: &Path, format: Format) -> Result<(), Failure> {
        // Ctrl-C is the front's; fails only for the leader of a group.
        let _ = rustix::process::setsid();
        let place = Place::make(path)?;
        let ended = self.tests(&place, format);
        drop(place);
        place::clear(path);
        match ended {
            Ok(()) => Ok(()),
            Err(Stop::Failed(failure)) => Err(failure),
            // Nobody is there to be told.
            Err(Stop::Left) => Err(Failure::new(Class::Failure, "self-test", "interrupted")),
        }
    }

    fn tests(&self, place: &Place, format: Format) -> Result<(), Stop> {
        let front = std::io::stdin();
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        let machines = Machines::new(place, self.kernel.as_deref(), front.as_fd(), deadline)?;
        if self.list {
            return Ok(list(&names(&machines)?, format)?);
        }
        let run_dir = RunDir::default_path().ok();
        let scrub = Scrub::of_this_process(place.run.path(), run_dir.as_deref());
        let mut session = Session {
            wanted: self.wanted_numbers(&machines)?,
            machines,
            only: self.only.as_ref(),
            names: Vec::new(),
            report: Report {
                facts: Facts::read(Path::new("/")),
                checks: doctor::checks(),
                machines: BTreeMap::new(),
                tests: Vec::new(),
            },
            paper: Paper::new(format, self.output.as_deref(), scrub)?,
        };
        session.paper.head(&session.report)?;
        for &(ring, mode) in self.ring.modes() {
            session.mode(ring, mode)?;
        }
        let Session { report, paper, .. } = session;
        paper.finish(&report)?;
        Ok(report.verdict()?)
    }

    /// The numbers asked for; `None` for all there are.
    fn wanted_numbers(&self, machines: &Machines<'_>) -> Result<Option<Vec<u32>>, Stop> {
        let part = match &self.only {
            None => return Ok(None),
            Some(Wanted::Number(number)) => return Ok(Some(vec![*number])),
            Some(name) => name,
        };
        let found = names(machines)?
            .into_iter()
            .filter(|(_, name)| part.is_in(name));
        let numbers: Vec<u32> = found.map(|(number, _)| number).collect();
        if numbers.is_empty() && !part.is_in(parts::TITLE) {
            let Wanted::Name(part) = part else {
                return Ok(Some(numbers));
            };
            let why = format!("none has \"{part}\" in its name");
            return Err(Failure::new(Class::Usage, "choose self-tests", why)
                .with_hint("enclavectl selftest --list")
                .into());
        }
        Ok(Some(numbers))
    }
}

/// The kernel's list of its self-tests: what it prints when asked for one past
/// the end.
fn names(machines: &Machines<'_>) -> Result<Vec<(u32, String)>, Stop> {
    let heard = machines.boot(Ring::Auto, u32::MAX)?;
    let names = listed(&heard.console);
    if names.is_empty() {
        let why = match heard.end {
            End::Down(why) => why,
            End::Late => "the kernel does not come up".to_owned(),
            End::Up(_) => "the kernel lists none".to_owned(),
        };
        let failure = Failure::new(Class::Failure, "list the kernel's self-tests", why);
        return Err(failure.with_hint("enclavectl doctor").into());
    }
    Ok(names)
}

fn list(names: &[(u32, String)], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let items = names
            .iter()
            .map(|(number, name)| json!({ "number": number, "name": name }));
        return output::json("selftests", &items.collect::<Vec<_>>());
    }
    for (number, name) in names {
        output::line(&format!("{number:>3}  {name}"))?;
    }
    Ok(())
}

/// The tests on their way into the report.
struct Session<'a> {
    machines: Machines<'a>,
    /// Numbers asked for; `None` for all there are.
    wanted: Option<Vec<u32>>,
    only: Option<&'a Wanted>,
    /// The kernel's self-tests by number, once they are known.
    names: Vec<(u32, String)>,
    report: Report,
    paper: Paper,
}

impl Session<'_> {
    /// Everything in one mode; `mode` is what the kernel must report.
    fn mode(&mut self, ring: Ring, mode: Option<&str>) -> Result<(), Stop> {
        let heard = self.machines.boot(ring, 0)?;
        let started = match &heard.end {
            End::Up(started) => Some(&started.report),
            _ => None,
        };
        let label = started.map_or(mode.unwrap_or("auto"), |report| &report.kernel_mode);
        let label = label.to_owned();
        let count = started.map_or(0, |report| report.selftest_count);
        if let Some(report) = started {
            self.report.machines.insert(label.clone(), report.clone());
        }
        if self.row(&label, None, &heard, mode)? != Verdict::Passed {
            return Ok(());
        }
        // A self-test tells its name when it ends, which one that hangs never
        // does.
        if self.names.is_empty() && !self.machines.is_time_up() {
            self.names = match names(&self.machines) {
                Err(Stop::Failed(_)) => Vec::new(),
                listed => listed?,
            };
        }
        // No kernel has so many; the number is the guest's word.
        let all = 1..=count.min(MOST_TESTS);
        let numbers = self.wanted.clone().unwrap_or_else(|| all.collect());
        for number in numbers {
            if self.machines.is_time_up() {
                let name = format!("the kernel's self-tests from {number} on");
                self.not_run(&label, name)?;
                break;
            }
            let heard = self.machines.boot(ring, number)?;
            self.row(&label, Some(number), &heard, mode)?;
        }
        if self.only.is_none_or(|only| only.is_in(parts::TITLE)) {
            self.parts(ring, &label)?;
        }
        Ok(())
    }

    fn row(
        &mut self,
        label: &str,
        number: Option<u32>,
        heard: &Heard,
        mode: Option<&str>,
    ) -> Result<Verdict, Failure> {
        let (verdict, why) = judge(heard, number.unwrap_or(0), mode);
        let name = match number {
            None => BOOTS,
            Some(number) => told(&heard.console, number)
                .map(|(name, _)| name)
                .or_else(|| {
                    let mut names = self.names.iter();
                    let found = names.find(|(listed, _)| *listed == number);
                    found.map(|(_, name)| name.as_str())
                })
                .unwrap_or("a self-test"),
        };
        let failed = verdict == Verdict::Failed;
        let console = if failed {
            heard.console.clone()
        } else {
            String::new()
        };
        self.add(Row {
            ring: label.to_owned(),
            number,
            name: name.to_owned(),
            verdict,
            why,
            milliseconds: milliseconds(heard.took),
            console,
        })?;
        Ok(verdict)
    }

    fn parts(&mut self, ring: Ring, label: &str) -> Result<(), Stop> {
        if self.machines.is_time_up() {
            return Ok(self.not_run(label, parts::TITLE.to_owned())?);
        }
        let begin = Instant::now();
        let outcome = parts::run(&self.machines, ring)?;
        Ok(self.add(Row {
            ring: label.to_owned(),
            number: None,
            name: parts::TITLE.to_owned(),
            verdict: outcome.verdict,
            why: outcome.why,
            milliseconds: milliseconds(begin.elapsed()),
            console: outcome.output,
        })?)
    }

    fn not_run(&mut self, label: &str, name: String) -> Result<(), Failure> {
        self.add(Row {
            ring: label.to_owned(),
            number: None,
            name,
            verdict: Verdict::NotRun,
            why: "the time was up".to_owned(),
            milliseconds: 0,
            console: String::new(),
        })
    }

    fn add(&mut self, row: Row) -> Result<(), Failure> {
        self.paper.row(&row)?;
        self.report.tests.push(row);
        Ok(())
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_a_number_from_1_or_a_part_of_a_name() {
        let parsed = |text: &str| text.parse::<Wanted>();
        assert_eq!(parsed("12"), Ok(Wanted::Number(12)));
        assert_eq!(parsed("Heap"), Ok(Wanted::Name("heap".into())));
        assert!(parsed("heap").unwrap().is_in("The HEAP holds"));
        assert!(!parsed("3").unwrap().is_in("3"));
        for text in ["", "0", "000", "4294967296"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
