//! One machine per self-test: started, heard, judged, ended.
//!
//! Each is a real `enclave-vmm` in the private run directory, as `create`
//! starts it. It ends with this process, whatever becomes of it. A machine
//! that says nothing is killed and named.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use enclave_vmm::config::{CoreRequest, EnclaveConfig};
use enclave_vmm::console_log::Follower;
use enclave_vmm::control::protocol::Started;
use enclave_vmm::failure::Failure;
use enclave_vmm::features::Features;
use enclave_vmm::ledger::{Occupancy, RunDir, allowed_cores};
use enclave_vmm::machine::{Backing, MachineState, Ring, Selftest};

use super::place::Place;
use super::report::Verdict;
use crate::launch::{Launch, Lifetime, Word};
use crate::locate;

/// Longest time one machine may take to report.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(10);
/// A machine cut off by the end of all time hung if it had this long.
const HUNG_AFTER: Duration = Duration::from_secs(2);
/// How long a VMM may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Private memory of each machine.
const MEM_BYTES: u64 = 64 << 20;
/// Most of a console that a report takes, from its end.
const CONSOLE_BYTES: usize = 16 << 10;
/// Most of a VMM's log that is read.
const MAX_LOG_BYTES: u64 = 1 << 20;
/// Name of every enclave here; there is one at a time.
pub(super) const NAME: &str = "selftest";

/// Why the tests end early.
pub(super) enum Stop {
    /// The front is gone, and with it whoever wanted to know.
    Left,
    /// Something failed that is no test.
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What all machines share.
pub(super) struct Machines<'a> {
    pub(super) place: &'a Place,
    vmm: PathBuf,
    kernel: PathBuf,
    core: usize,
    /// Closed when the front goes.
    pub(super) front: BorrowedFd<'a>,
    /// When everything has to be over.
    pub(super) deadline: Instant,
}

/// What one machine said.
pub(super) struct Heard {
    pub(super) end: End,
    pub(super) console: String,
    pub(super) took: Duration,
}

/// How its start ended.
pub(super) enum End {
    Up(Box<Started>),
    /// It did not come up: why.
    Down(String),
    /// It was killed for saying nothing.
    Late,
}

impl<'a> Machines<'a> {
    pub(super) fn new(
        place: &'a Place,
        kernel: Option<&Path>,
        front: BorrowedFd<'a>,
        deadline: Instant,
    ) -> Result<Self, Failure> {
        Ok(Self {
            place,
            vmm: locate::program("enclave-vmm")?,
            kernel: locate::kernel(kernel)?,
            core: free_core()?,
            front,
            deadline,
        })
    }

    pub(super) fn is_time_up(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Boots a machine with self-test `number` (0 = none), hears it and ends
    /// it.
    pub(super) fn boot(&self, ring: Ring, number: u32) -> Result<Heard, Stop> {
        let begin = Instant::now();
        let (launch, word) = self.start(ring, number)?;
        // Still there: a VMM removes its files only when it ends by itself.
        let console = self.console();
        launch.end(END_TIMEOUT);
        if let Ok(Some(left)) = self.place.run.enclave(NAME, false) {
            left.remove_dead(&self.place.run)?;
        }
        let end = match word {
            Word::Up(started) => End::Up(started),
            Word::Refused(failure) => End::Down(failure.to_string()),
            Word::Died(end) => End::Down(format!("enclave-vmm ended without a report ({end})")),
            Word::Late | Word::Called => End::Late,
        };
        Ok(Heard {
            end,
            console,
            took: begin.elapsed(),
        })
    }

    /// Starts a machine; one that is late is killed, its files are not.
    pub(super) fn start(&self, ring: Ring, number: u32) -> Result<(Launch, Word), Stop> {
        let config = self.config(ring, number);
        let lifetime = Lifetime::OfCreator(self.place.run.path());
        let mut launch = Launch::start(&self.vmm, &config, lifetime)?;
        let deadline = self.deadline.min(Instant::now() + MACHINE_TIMEOUT);
        let word = launch.wait(deadline, Some(self.front));
        match word {
            Ok(Word::Called) => {
                launch.kill();
                Err(Stop::Left)
            }
            Ok(word) => {
                if matches!(word, Word::Late) {
                    launch.kill();
                }
                Ok((launch, word))
            }
            Err(failure) => {
                launch.kill();
                Err(failure.into())
            }
        }
    }

    fn config(&self, ring: Ring, selftest: u32) -> EnclaveConfig {
        EnclaveConfig {
            cores: CoreRequest::List(vec![self.core]),
            kernel: self.kernel.clone(),
            broker_socket: self.place.socket.clone(),
            ..small(ring, selftest)
        }
    }

    /// The end of what the kernel's console said, and of what its VMM noted.
    pub(super) fn console(&self) -> String {
        let Ok(Some(dir)) = self.place.run.enclave(NAME, false) else {
            return String::new();
        };
        let read = Follower::new(dir.fd(), false).and_then(|mut follower| follower.read_new());
        let mut text = end_of(&read.unwrap_or_default());
        let mut noted = Vec::new();
        let log = dir.open_file("vmm.log");
        // Without a log there is nothing to add.
        drop(log.and_then(|file| file.take(MAX_LOG_BYTES).read_to_end(&mut noted)));
        for line in end_of(&noted).lines() {
            text.push_str("vmm: ");
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// A small enclave, wherever its parts are.
fn small(ring: Ring, selftest: u32) -> EnclaveConfig {
    EnclaveConfig {
        name: NAME.into(),
        cores: CoreRequest::Count(1),
        max_cores: None,
        share_cores: true,
        isolation: enclave_vmm::isolation::Isolation::Auto,
        mem_bytes: MEM_BYTES,
        node: None,
        exports: Vec::new(),
        ring,
        without: Features::default(),
        backing: Backing::Auto,
        prefault: false,
        kernel: PathBuf::new(),
        broker_socket: PathBuf::new(),
        selftest,
    }
}

/// The end of a text, as much as a report takes.
fn end_of(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(CONSOLE_BYTES);
    String::from_utf8_lossy(&bytes[from..]).into_owned()
}

/// A core that no enclave of this user has to itself, the lowest: the host's
/// own, where there is one.
fn free_core() -> Result<usize, Failure> {
    let allowed = allowed_cores()?;
    let mut held = BTreeSet::new();
    if let Some(run) = RunDir::open(&RunDir::default_path()?)? {
        for name in run.names()? {
            if let Some(dir) = run.enclave(&name, false)?
                && let Occupancy::Live(record) = dir.occupancy()?
                && !record.share_cores
            {
                held.extend(record.cores);
            }
        }
    }
    let free = allowed.difference(&held).next();
    Ok(free.or(allowed.first()).copied().unwrap_or_default())
}

/// What a machine that was to run self-test `number` (0 = none) shows, and
/// why if it is not a pass. `mode` is the kernel mode asked for, if one was.
pub(super) fn judge(heard: &Heard, number: u32, mode: Option<&str>) -> (Verdict, String) {
    let started = match &heard.end {
        End::Up(started) => started,
        End::Down(why) => return (Verdict::Failed, why.clone()),
        End::Late if heard.took < HUNG_AFTER => {
            return (Verdict::NotRun, "the time was up".to_owned());
        }
        End::Late => {
            let why = format!("hung: no report within {:.1} s", heard.took.as_secs_f64());
            return (Verdict::Failed, why);
        }
    };
    let report = &started.report;
    let told = told(&heard.console, number).map(|(_, words)| words.to_owned());
    let wrong_mode = mode.filter(|mode| *mode != report.kernel_mode);
    match (&started.machine, report.selftest) {
        (MachineState::Failed { reason }, _) => {
            let line = heard
                .console
                .lines()
                .find(|line| line.contains("there is no such test"));
            let words = line.map(without_time).or(told.as_deref());
            let why = words.map_or(reason.clone(), |words| format!("{reason}: {words}"));
            (Verdict::Failed, why)
        }
        _ if wrong_mode.is_some() => {
            let why = format!("the kernel runs in {}", report.kernel_mode);
            (Verdict::Failed, why)
        }
        (_, Selftest::None) if number == 0 => (Verdict::Passed, String::new()),
        (_, Selftest::Passed) => (Verdict::Passed, String::new()),
        (_, Selftest::NotCovered) => {
            let words = told.unwrap_or_default();
            let why = words.strip_prefix("not covered: ").unwrap_or(&words);
            (Verdict::NotCovered, why.to_owned())
        }
        (_, Selftest::None | Selftest::Failed) => {
            (Verdict::Failed, "the kernel did not run it".to_owned())
        }
    }
}

/// Name and verdict that the console tells of self-test `number`:
/// `self-test N (name): verdict`.
pub(super) fn told(console: &str, number: u32) -> Option<(&str, &str)> {
    let head = format!("self-test {number} (");
    let line = console
        .lines()
        .map(without_time)
        .find_map(|line| line.strip_prefix(&head))?;
    line.split_once("): ")
}

/// The self-tests that the console lists: `self-test N (name)`.
pub(super) fn listed(console: &str) -> Vec<(u32, String)> {
    let item = |line| {
        let (number, name) = without_time(line)
            .strip_prefix("self-test ")?
            .split_once(" (")?;
        Some((number.parse().ok()?, name.strip_suffix(')')?.to_owned()))
    };
    console.lines().filter_map(item).collect()
}

/// A console line without its time stamp.
fn without_time(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use enclave_vmm::control::protocol::Effective;
    use enclave_vmm::machine::{MachineReport, MemoryNode};
    use enclave_vmm::placement::Placement;

    use super::*;

    const CONSOLE: &str = "[    0.000001] enclave-kernel 0.1.0: ring3 mode\n\
        [    0.000002] self-test 2 (a name (odd)): not covered: no x: none\n";

    #[test]
    fn the_console_tells_name_and_verdict() {
        assert_eq!(
            told(CONSOLE, 2),
            Some(("a name (odd)", "not covered: no x: none"))
        );
        assert_eq!(told(CONSOLE, 1), None);
        assert_eq!(told("", 2), None);
    }

    fn heard(machine: MachineState, selftest: Selftest, console: &str) -> Heard {
        let started = Started {
            effective: Effective {
                config: small(Ring::Auto, 1),
                cores: vec![0],
                idle: Vec::new(),
                memory_node: MemoryNode::Any,
                warnings: Vec::new(),
                added_bytes: 0,
                pid: 1,
                created_unix_ms: 0,
            },
            machine,
            report: MachineReport {
                kernel_mode: "ring3".into(),
                selftest,
                ..MachineReport::default()
            },
            placement: Placement::default(),
        };
        Heard {
            end: End::Up(Box::new(started)),
            console: console.into(),
            took: Duration::from_secs(1),
        }
    }

    #[test]
    fn only_what_the_kernel_calls_passed_has_passed() {
        let idle = MachineState::Idle;
        let verdict = |heard: &Heard, number, mode| judge(heard, number, mode).0;
        let passed = heard(idle.clone(), Selftest::Passed, "");
        assert_eq!(verdict(&passed, 1, Some("ring3")), Verdict::Passed);
        assert_eq!(verdict(&passed, 1, None), Verdict::Passed);
        assert_eq!(verdict(&passed, 1, Some("ring0")), Verdict::Failed);
        let none = heard(idle.clone(), Selftest::None, "");
        assert_eq!(verdict(&none, 0, None), Verdict::Passed);
        assert_eq!(verdict(&none, 1, None), Verdict::Failed);
        let odd = heard(idle, Selftest::Failed, "");
        assert_eq!(verdict(&odd, 1, None), Verdict::Failed);
    }

    #[test]
    fn a_failure_is_told_in_the_words_of_whoever_saw_it() {
        let reason = "kernel panic: no".to_owned();
        let panicked = heard(MachineState::Failed { reason }, Selftest::None, "");
        let wanted = (Verdict::Failed, "kernel panic: no".to_owned());
        assert_eq!(judge(&panicked, 1, None), wanted);
        let lacking = heard(MachineState::Idle, Selftest::NotCovered, CONSOLE);
        let wanted = (Verdict::NotCovered, "no x: none".to_owned());
        assert_eq!(judge(&lacking, 2, None), wanted);
        let down = Heard {
            end: End::Down("no /dev/kvm".into()),
            ..lacking
        };
        let wanted = (Verdict::Failed, "no /dev/kvm".to_owned());
        assert_eq!(judge(&down, 0, None), wanted);
    }

    #[test]
    fn a_machine_that_had_time_and_said_nothing_hung() {
        let late = |took| Heard {
            end: End::Late,
            console: String::new(),
            took,
        };
        assert_eq!(judge(&late(HUNG_AFTER), 1, None).0, Verdict::Failed);
        let cut = late(HUNG_AFTER / 2);
        assert_eq!(judge(&cut, 1, None).0, Verdict::NotRun);
    }

    #[test]
    fn a_list_is_read_and_other_lines_are_not() {
        let console = format!(
            "{CONSOLE}[ 0.1] self-test 9: there is no such test\n\
             [ 0.2] self-test 1 (one)\nself-test 2 (two (2))\n[ 0.3] self-test x (y)\n"
        );
        let wanted = [(1, "one".to_owned()), (2, "two (2)".to_owned())];
        assert_eq!(listed(&console), wanted);
    }
}
