//! `wait`: until an enclave is in the state asked for.
//!
//! Looks at lock and control socket, as `list` does, twenty times a second:
//! states change in other processes, of which some die without a word. A state
//! from which the one asked for cannot come any more ends the wait at once.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::lifecycle::Phase;

use super::show;
use crate::locate;
use crate::output::{self, Format};

const PAUSE: Duration = Duration::from_millis(50);

/// Wait until an enclave is in a state.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Enclave.
    name: String,
    /// State; "ready" is idle or running, "gone" is destroyed or never there.
    #[arg(long = "for", value_enum, value_name = "STATE")]
    state: State,
    /// Give up after that many seconds, with exit code 7 (default: never).
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
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let what = || format!("wait for enclave {}", self.name);
        let run = locate::run_dir()?;
        let begin = Instant::now();
        let limit = self
            .timeout
            .map(|seconds| Duration::from_secs(seconds.into()));
        loop {
            let (phase, reason) = match show::phase(&run, &self.name)? {
                Some((phase, reason)) => (Some(phase), reason),
                None => (None, String::new()),
            };
            let state = phase.map_or("gone".to_owned(), |phase| phase.to_string());
            match verdict(self.state, phase) {
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
