//! `wait`: until an enclave is in the state asked for, or a run has ended.
//!
//! A run is the VMM's to tell of, and this process ends as `run` would have. For a
//! state it
//! looks at lock and control socket, as `list` does, twenty times a second:
//! states change in other processes, of which some die without a word. A state
//! from which the one asked for cannot come any more ends the wait at once.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use enclave_vmm::control::client::Client;
use enclave_vmm::control::protocol::{Reply, Request};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::lifecycle::Phase;
use enclave_vmm::machine::RunOutcome;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::run::{REPLY_TIMEOUT, RunFailure, TOOL_FAILED, exit_code, finish};
use super::show;
use crate::locate;
use crate::output::{self, Format};

const PAUSE: Duration = Duration::from_millis(50);
/// Exit code when a run did not end in time, as of timeout(1).
const TIMED_OUT: u8 = 124;

/// Wait until an enclave is in a state, or until a program has ended.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true)))]
pub(crate) struct Wait {
    /// Enclave.
    name: String,
    /// State; "ready" is idle or running, "gone" is destroyed or never there.
    #[arg(long = "for", value_enum, value_name = "STATE", group = "what")]
    state: Option<State>,
    /// Run, by its number (`ps`, `run --detach`); ends with the program's exit code,
    /// with 125 if that cannot be known, and with 124 if the time is over.
    #[arg(long, value_name = "N", group = "what")]
    run: Option<u64>,
    /// Give up after that many seconds, with exit code 7 of a state (default: never).
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=31_536_000))]
    timeout: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    Ready,
    Idle,
    Running,
    Failed,
    Dead,
    Gone,
}

/// How a state stands to the one asked for.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Reached,
    NotYet,
    Never,
}

impl Wait {
    pub(crate) fn run(&self, format: Format) -> ExitCode {
        match (self.run, self.state) {
            (Some(run), _) => finish(self.for_run(run, format)),
            (None, Some(state)) => match self.for_state(state, format) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => {
                    output::failure(&failure);
                    ExitCode::from(failure.class.exit_code())
                }
            },
            // clap lets one of them through.
            (None, None) => ExitCode::FAILURE,
        }
    }

    /// How run `run` ended. Failures to find that out have codes that programs do not
    /// use, as `run`'s own.
    fn for_run(&self, run: u64, format: Format) -> Result<u8, RunFailure> {
        let fail = |failure: Failure| RunFailure {
            code: match failure.class {
                Class::Timeout => TIMED_OUT,
                _ => TOOL_FAILED,
            },
            failure,
        };
        let outcome = self.outcome(run).map_err(fail)?;
        if format == Format::Json {
            output::json("outcome", &outcome).map_err(fail)?;
        }
        exit_code(&format!("run {run}"), &self.name, outcome)
    }

    fn outcome(&self, run: u64) -> Result<RunOutcome, Failure> {
        let dir = locate::enclave(&locate::run_dir()?, &self.name)?;
        let mut client = Client::connect(&dir, REPLY_TIMEOUT)?;
        client.send(&Request::Wait { run }, &[])?;
        let begin = Instant::now();
        let limit = self.limit();
        loop {
            if let Some(reply) = client.buffered()? {
                if let Reply::Finished { outcome, .. } = reply {
                    return Ok(outcome);
                }
                continue;
            }
            let left = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                let what = format!("wait for run {run} of enclave {}", self.name);
                let failure = Failure::new(Class::Timeout, what, "it still runs");
                return Err(failure.with_hint(format!("enclavectl ps {}", self.name)));
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::from_borrowed_fd(client.fd(), PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => {
                    if let Some(Reply::Finished { outcome, .. }) = client.receive_ready()? {
                        return Ok(outcome);
                    }
                }
                Err(error) => return Err(Failure::io("wait for the program", error)),
            }
        }
    }

    fn limit(&self) -> Option<Duration> {
        self.timeout
            .map(|seconds| Duration::from_secs(seconds.into()))
    }

    fn for_state(&self, wanted: State, format: Format) -> Result<(), Failure> {
        let what = || format!("wait for enclave {}", self.name);
        let run = locate::run_dir()?;
        let begin = Instant::now();
        let limit = self.limit();
        loop {
            let (phase, reason) = match show::phase(&run, &self.name)? {
                Some((phase, reason)) => (Some(phase), reason),
                None => (None, String::new()),
            };
            let state = phase.map_or("gone".to_owned(), |phase| phase.to_string());
            match verdict(wanted, phase) {
                Verdict::Reached => {
                    return match format {
                        Format::Json => output::json("state", &state),
                        Format::Text => Ok(()),
                    };
                }
                Verdict::Never => {
                    let why = match reason.as_str() {
                        "" => format!("it is {state}"),
                        reason => format!("it is {state}: {reason}"),
                    };
                    return Err(
                        Failure::new(Class::Failure, what(), why).with_hint("enclavectl list")
                    );
                }
                Verdict::NotYet => {}
            }
            if limit.is_some_and(|limit| begin.elapsed() >= limit) {
                let why = format!("it is still {state}");
                return Err(Failure::new(Class::Timeout, what(), why).with_hint("enclavectl list"));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// How `phase` (`None`: no such enclave) stands to `wanted`. One that is not
/// there yet may come; one that has failed or died is what it will be.
fn verdict(wanted: State, phase: Option<Phase>) -> Verdict {
    let reached = match wanted {
        State::Ready => matches!(phase, Some(Phase::Idle | Phase::Running)),
        State::Idle => phase == Some(Phase::Idle),
        State::Running => phase == Some(Phase::Running),
        State::Failed => phase == Some(Phase::Failed),
        State::Dead => phase == Some(Phase::Dead),
        State::Gone => phase.is_none(),
    };
    let over = match wanted {
        State::Ready | State::Idle | State::Running => {
            matches!(phase, Some(Phase::Failed | Phase::Dead | Phase::Broken))
        }
        State::Failed => phase == Some(Phase::Dead),
        State::Dead | State::Gone => false,
    };
    match (reached, over) {
        (true, _) => Verdict::Reached,
        (false, true) => Verdict::Never,
        (false, false) => Verdict::NotYet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_that_cannot_come_any_more_are_not_waited_for() {
        use Verdict::{Never, NotYet, Reached};
        for (wanted, phase, expected) in [
            (State::Ready, Some(Phase::Idle), Reached),
            (State::Ready, Some(Phase::Running), Reached),
            (State::Ready, None, NotYet),
            (State::Ready, Some(Phase::Creating), NotYet),
            (State::Ready, Some(Phase::Dead), Never),
            (State::Idle, Some(Phase::Running), NotYet),
            (State::Idle, Some(Phase::Failed), Never),
            (State::Running, Some(Phase::Unresponsive), NotYet),
            (State::Failed, Some(Phase::Idle), NotYet),
            (State::Failed, Some(Phase::Dead), Never),
            (State::Dead, None, NotYet),
            (State::Gone, None, Reached),
            (State::Gone, Some(Phase::Dead), NotYet),
        ] {
            assert_eq!(verdict(wanted, phase), expected, "{wanted:?} {phase:?}");
        }
    }
}
