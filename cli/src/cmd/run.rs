//! `run`: a program in an enclave, with this process's input and output.
//!
//! The three standard descriptors go to the VMM; this process only waits,
//! turns signals into kills, and ends as the program ended. A second signal
//! leaves at once, and the VMM hangs up on the program.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use enclave_vmm::config::parse_size;
use enclave_vmm::control::client::Client;
use enclave_vmm::control::protocol::{Reply, Request};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::ledger::Occupancy;
use enclave_vmm::machine::{RunOutcome, StartPhases};
use enclave_vmm::signals::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};

use crate::cmd::timeline;
use crate::output::Format;
use crate::{locate, output};

/// Exit code when this tool or the enclave failed.
pub(super) const TOOL_FAILED: u8 = 125;
/// Exit code for a program that cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Exit code for a program that is not there.
const NOT_FOUND: u8 = 127;
/// Variables a program gets from here without asking.
const INHERITED: [&str; 4] = ["PATH", "HOME", "TERM", "LANG"];
/// How long the VMM may take to answer anything but the end of the run.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Run a program in an enclave, with this terminal's input and output.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Enclave.
    name: String,
    /// Working directory in the enclave [default: this one where it is
    /// exported, else /].
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Environment variable; without a value, passed on from here. PATH, HOME,
    /// TERM and LANG are passed on anyway.
    #[arg(long, value_name = "K[=V]", value_parser = variable)]
    env: Vec<String>,
    /// Stack size, such as 8M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0", hide_default_value = true)]
    stack: u64,
    /// Most memory that the program may have, such as 64M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0", hide_default_value = true)]
    limit_mem: u64,
    /// Show on standard error how long it took from the request to the program's
    /// first instruction.
    #[arg(long, conflicts_with = "detach")]
    timeline: bool,
    /// Print the run's number and leave; the program goes on. It has no input, its
    /// output is in `logs`, and `wait NAME --run N` tells how it ended.
    #[arg(long)]
    detach: bool,
    /// Program (a file of this host) and its arguments.
    #[arg(last = true, required = true, value_name = "PROGRAM [ARGS]")]
    command: Vec<OsString>,
}

/// A failure with the exit code `run` gives it.
pub(super) struct RunFailure {
    pub(super) code: u8,
    pub(super) failure: Failure,
}

impl From<Failure> for RunFailure {
    fn from(failure: Failure) -> Self {
        Self {
            code: TOOL_FAILED,
            failure,
        }
    }
}

impl Run {
    pub(crate) fn run(&self, format: Format) -> ExitCode {
        finish(self.attempt(format))
    }

    fn attempt(&self, format: Format) -> Result<u8, RunFailure> {
        let signals = SignalFd::new(&[SIGINT, SIGTERM, SIGHUP, SIGQUIT])
            .map_err(|e| Failure::io("watch signals", e))?;
        let run_dir = locate::run_dir()?;
        let dir = locate::enclave(&run_dir, &self.name)?;
        if let Occupancy::Dead(reason) = dir.occupancy()? {
            let what = format!("run in enclave {}", self.name);
            return Err(
                Failure::new(Class::Failure, what, format!("it is dead: {reason}"))
                    .with_hint(format!("enclavectl create {} …", self.name))
                    .into(),
            );
        }
        let (image, path) = self.open_program()?;
        let request = self.request(&path)?;
        let mut client = Client::connect(&dir, REPLY_TIMEOUT)?;
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        if self.detach {
            let null = File::options().read(true).write(true).open("/dev/null");
            let null = null.map_err(|e| Failure::io("open /dev/null", e))?;
            let null = null.as_fd();
            client.send(&request, &[image.as_fd(), null, null, null])?;
            return self.leave(&mut client, format);
        }
        let fds = [image.as_fd(), stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        client.send(&request, &fds)?;
        drop(image);
        let outcome = match follow(&mut client, &signals)? {
            Followed::Ended(outcome, phases) => {
                if self.timeline {
                    output::talk(format_args!("{}", timeline::of_start(&phases).trim_end()));
                }
                outcome
            }
            Followed::Left(signal) => return Ok(signal_code(signal)),
        };
        exit_code(&path.display().to_string(), &self.name, outcome)
    }

    /// Tells the number of the run once it is accepted.
    fn leave(&self, client: &mut Client, format: Format) -> Result<u8, RunFailure> {
        let Reply::Accepted { run } = client.receive()? else {
            let what = format!("run in enclave {}", self.name);
            let failure = Failure::new(Class::Protocol, what, "an answer of another kind");
            return Err(failure.with_hint("enclavectl version").into());
        };
        match format {
            Format::Json => output::json("run", &run)?,
            Format::Text => output::line(&run.to_string())?,
        }
        Ok(0)
    }

    fn open_program(&self) -> Result<(File, PathBuf), RunFailure> {
        let given = self.command.first().map(Path::new).unwrap_or(Path::new(""));
        let what = || format!("run {}", given.display());
        let fail = |code, class, why: String| RunFailure {
            code,
            failure: Failure::new(class, what(), why)
                .with_hint(format!("ls -l {}", given.display())),
        };
        let path = if given.components().count() > 1 || given.is_absolute() {
            given.to_owned()
        } else {
            // As a shell: a bare name is looked up in $PATH only.
            given.to_str().and_then(locate::in_path).ok_or_else(|| {
                let why = "it is not in $PATH (a file here needs ./)".to_owned();
                fail(NOT_FOUND, Class::NotFound, why)
            })?
        };
        let image = File::open(&path).map_err(|error| {
            let class = Class::of_io(&error);
            let missing =
                class == Class::NotFound || error.kind() == std::io::ErrorKind::NotADirectory;
            let code = if missing { NOT_FOUND } else { NOT_EXECUTABLE };
            fail(code, class, error.to_string())
        })?;
        let is_file = image.metadata().is_ok_and(|meta| meta.is_file());
        if !is_file {
            let why = "it is not a regular file".to_owned();
            return Err(fail(NOT_EXECUTABLE, Class::Failure, why));
        }
        if !locate::is_executable(&path) {
            let why = "it is not executable".to_owned();
            return Err(fail(NOT_EXECUTABLE, Class::Permission, why));
        }
        let path = std::path::absolute(&path).unwrap_or(path);
        Ok((image, path))
    }

    fn request(&self, path: &Path) -> Result<Request, Failure> {
        let what = format!("run {}", path.display());
        let text = |value: &OsString| {
            value.to_str().map(str::to_owned).ok_or_else(|| {
                let why = format!("the argument {value:?} is no UTF-8");
                Failure::new(Class::Usage, &what, why)
            })
        };
        let host_cwd = std::env::current_dir().unwrap_or_default();
        Ok(Request::Run {
            path: text(&path.as_os_str().to_owned())?,
            argv: self.command.iter().map(text).collect::<Result<_, _>>()?,
            envp: environment(&self.env, |name| std::env::var(name).ok()),
            cwd: self.cwd.clone(),
            host_cwd: host_cwd.to_string_lossy().into_owned(),
            stack_bytes: self.stack,
            limit_bytes: self.limit_mem,
            detached: self.detach,
        })
    }
}

/// Tells what went wrong, and ends so.
pub(super) fn finish(outcome: Result<u8, RunFailure>) -> ExitCode {
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(RunFailure { code, failure }) => {
            output::failure(&failure);
            ExitCode::from(code)
        }
    }
}

/// The exit code for a program that ended so in enclave `name`.
pub(super) fn exit_code(program: &str, name: &str, outcome: RunOutcome) -> Result<u8, RunFailure> {
    let what = || format!("run {program} in enclave {name}");
    match outcome {
        RunOutcome::Exited { code } => Ok(code),
        RunOutcome::Signaled { signal, report } => {
            let signal = i32::from(signal);
            let by = signal_name(signal);
            output::talk(format_args!("enclavectl: {program} was killed by {by}"));
            for line in report.lines() {
                output::talk(format_args!("  {}", output::printable(line)));
            }
            Ok(signal_code(signal))
        }
        RunOutcome::Refused { reason } => Err(RunFailure {
            code: NOT_EXECUTABLE,
            failure: Failure::new(Class::Failure, what(), reason)
                .with_hint(format!("file {program}")),
        }),
        RunOutcome::MachineStopped { reason } => Err(Failure::new(Class::Failure, what(), reason)
            .with_hint(format!("enclavectl logs {name}"))
            .into()),
    }
}

/// Checks `K` or `K=V`.
fn variable(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('=') {
        return Err("a variable needs a name".to_owned());
    }
    Ok(text.to_owned())
}

/// The program's environment: a few variables from here, then those given.
fn environment(given: &[String], here: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| {
        variables.retain(|(known, _)| known != name);
        variables.push((name.to_owned(), value));
    };
    for name in INHERITED {
        if let Some(value) = here(name) {
            set(name, value);
        }
    }
    for entry in given {
        match entry.split_once('=') {
            Some((name, value)) => set(name, value.to_owned()),
            None => {
                if let Some(value) = here(entry) {
                    set(entry, value);
                }
            }
        }
    }
    variables
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

enum Followed {
    Ended(RunOutcome, StartPhases),
    Left(i32),
}

/// Waits for the end of the run, passing signals on.
fn follow(client: &mut Client, signals: &SignalFd) -> Result<Followed, Failure> {
    let mut run = None;
    let mut first_signal = None;
    loop {
        while let Some(reply) = client.buffered()? {
            if let Some((outcome, phases)) = handle(client, reply, &mut run, first_signal)? {
                return Ok(Followed::Ended(outcome, phases));
            }
        }
        let mut fds = [
            PollFd::from_borrowed_fd(client.fd(), PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::io("wait for the program", error)),
        }
        let (answered, signalled) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if signalled && let Ok(Some(signal)) = signals.next() {
            if first_signal.is_some() {
                return Ok(Followed::Left(signal));
            }
            first_signal = Some(signal);
            if let Some(run) = run {
                kill(client, run, signal)?;
            }
        }
        if answered
            && let Some(reply) = client.receive_ready()?
            && let Some((outcome, phases)) = handle(client, reply, &mut run, first_signal)?
        {
            return Ok(Followed::Ended(outcome, phases));
        }
    }
}

/// Takes one reply; the outcome if it was the last.
fn handle(
    client: &mut Client,
    reply: Reply,
    run: &mut Option<u64>,
    signal: Option<i32>,
) -> Result<Option<(RunOutcome, StartPhases)>, Failure> {
    match reply {
        Reply::Accepted { run: number } => {
            *run = Some(number);
            if let Some(signal) = signal {
                kill(client, number, signal)?;
            }
            Ok(None)
        }
        Reply::Finished {
            outcome, phases, ..
        } => Ok(Some((outcome, phases))),
        Reply::Ok
        | Reply::Inspection(_)
        | Reply::Placement(_)
        | Reply::Dump(_)
        | Reply::Processes { .. }
        | Reply::Updated(_)
        | Reply::Error(_) => Ok(None),
    }
}

fn kill(client: &mut Client, run: u64, signal: i32) -> Result<(), Failure> {
    let signal = u8::try_from(signal).unwrap_or(9);
    client.send(&Request::Kill { run, signal }, &[])
}

/// 128 + the signal, as shells have it.
fn signal_code(signal: i32) -> u8 {
    u8::try_from(signal.saturating_add(128)).unwrap_or(u8::MAX)
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_few_variables_and_those_given_reach_the_program() {
        let here = |name: &str| match name {
            "PATH" => Some("/bin".to_owned()),
            "SECRET" => Some("s".to_owned()),
            _ => None,
        };
        let given = ["A=1=2", "SECRET", "ABSENT", "PATH=/x", "A=3"].map(str::to_owned);
        assert_eq!(environment(&given, here), ["SECRET=s", "PATH=/x", "A=3"]);
        assert_eq!(environment(&[], here), ["PATH=/bin"]);
    }

    #[test]
    fn signals_become_exit_codes() {
        assert_eq!(signal_code(11), 139);
        assert_eq!(signal_code(127), 255);
        assert_eq!(signal_code(i32::MAX), 255);
    }
}
