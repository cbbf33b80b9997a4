//! The loop over snapshots.
//!
//! Called by `main`: attaches the arena, reads snapshot after snapshot, prints
//! each, and sums up. A broker is started if none is there, so that this may be
//! started before the producer.

use crate::output::{Format, Output, Summary};
use crate::reading::{Reading, Verdict};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use xemem_host::client::ClientError;
use xemem_host::{Broker, EndReason, Policy, Stream};

/// Exit code: something was torn, or failed.
const FAILED: u8 = 1;
/// Exit code: the name never appeared.
const NOT_FOUND: u8 = 3;
/// Exit code: the broker's permits forbid it.
const FORBIDDEN: u8 = 5;
/// Exit code: nothing came in time.
const TIMED_OUT: u8 = 7;

/// What to follow, and for how long.
#[derive(Debug)]
pub(crate) struct Request {
    /// Name of the arena.
    pub(crate) name: String,
    /// Which snapshots.
    pub(crate) policy: Policy,
    /// Longest wait for the name, and for each snapshot.
    pub(crate) timeout: Duration,
    /// Most snapshots.
    pub(crate) steps: u64,
    /// The broker's socket, if not the usual one.
    pub(crate) socket: Option<PathBuf>,
}

/// What went wrong, why, what to try; and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    why: String,
    hint: String,
    /// Exit code of the program.
    pub(crate) code: u8,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spectrum: {}\n  {}\ntry: {}",
            self.what, self.why, self.hint
        )
    }
}

/// Follows an arena to its end; returns the exit code.
pub(crate) fn follow(request: &Request, format: Format) -> Result<u8, Failure> {
    let mut stream = attach(request)?;
    let mut output = Output::new(format, io::stdout());
    let mut summary = Summary::default();
    let mut code = match read_all(request, &mut stream, &mut output, &mut summary) {
        Ok(code) => code,
        // Nobody reads us any more: that is an end like any other.
        Err(Stop::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
        Err(Stop::Output(error)) => return Err(failure("print", error, FAILED)),
        Err(Stop::Reading(why)) => {
            let what = format!("read a snapshot of {}", request.name);
            return Err(failure(what, why, FAILED)
                .with_hint(format!("enclavectl snap schema {}", request.name)));
        }
    };
    if summary.torn > 0 {
        code = FAILED;
    }
    match output.summary(&summary) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(failure("print", error, FAILED))
        }
        _ => Ok(code),
    }
}

/// Why the loop could not go on.
enum Stop {
    Output(io::Error),
    Reading(String),
}

/// Reads until the end, the count or the timeout; returns the exit code.
fn read_all(
    request: &Request,
    stream: &mut Stream,
    output: &mut Output<impl io::Write>,
    summary: &mut Summary,
) -> Result<u8, Stop> {
    while summary.snapshots < request.steps {
        let reading = match stream.next(Some(request.timeout)) {
            Ok(Some(snapshot)) => {
                let reading = Reading::of(&snapshot);
                Some(reading.map_err(|error| Stop::Reading(format!("{error:#}")))?)
            }
            Ok(None) => None,
            Err(ClientError::Timeout) => {
                summary.end = format!("no snapshot within {:?}", request.timeout);
                return Ok(TIMED_OUT);
            }
            Err(error) => return Err(Stop::Reading(error.to_string())),
        };
        let Some(reading) = reading else {
            end_text(stream.end_reason()).clone_into(&mut summary.end);
            return Ok(0);
        };
        summary.missed = stream.missed();
        count(summary, reading.verdict());
        output
            .reading(&reading, summary.missed)
            .map_err(Stop::Output)?;
    }
    summary.end = "as many as were asked for".to_owned();
    Ok(0)
}

/// Adds one snapshot.
fn count(summary: &mut Summary, verdict: Verdict) {
    summary.snapshots += 1;
    match verdict {
        Verdict::Verified => summary.verified += 1,
        Verdict::Unverified => summary.unverified += 1,
        Verdict::Torn => summary.torn += 1,
    }
}

/// Finds the broker and attaches the arena.
fn attach(request: &Request) -> Result<Stream, Failure> {
    let socket = match &request.socket {
        Some(socket) => socket.clone(),
        None => xemem_host::run_dir()
            .map_err(|error| failure("find the run directory", error, FAILED))?
            .join(xemem_host::SOCKET_NAME),
    };
    // Held until attached, so that a broker started for us does not end.
    let _connection = match broker_program() {
        Some(program) => Broker::connect_or_start(&socket, &program),
        None => Broker::connect(&socket),
    }
    .map_err(|error| {
        failure("reach the broker", error, FAILED).with_hint("enclavectl doctor".to_owned())
    })?;
    let name = &request.name;
    Stream::attach(&socket, name, request.policy, request.timeout).map_err(|error| {
        let code = attach_code(error.refusal().map(|errno| errno.raw_os_error()), &error);
        let what = format!("attach {name}");
        failure(what, error, code).with_hint("enclavectl arena ls".to_owned())
    })
}

/// The exit code for a refused attachment.
fn attach_code(errno: Option<i32>, error: &ClientError) -> u8 {
    const ENOENT: i32 = 2;
    const EACCES: i32 = 13;
    const ETIMEDOUT: i32 = 110;
    match (errno, error) {
        (Some(ENOENT | ETIMEDOUT), _) | (None, ClientError::Timeout) => NOT_FOUND,
        (Some(EACCES), _) => FORBIDDEN,
        _ => FAILED,
    }
}

/// `xemem-broker` beside this program, if it is there.
fn broker_program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.with_file_name("xemem-broker");
    program.is_file().then_some(program)
}

fn end_text(reason: Option<EndReason>) -> &'static str {
    match reason {
        Some(EndReason::ClosedByProgram) => "closed by its program",
        Some(EndReason::ProgramDied) => "its program died",
        Some(EndReason::ExporterGone) => "its enclave is gone",
        Some(EndReason::Removed) => "removed",
        None => "the stream ended",
    }
}

fn failure(what: impl Into<String>, why: impl fmt::Display, code: u8) -> Failure {
    Failure {
        what: what.into(),
        why: why.to_string(),
        hint: "spectrum --help".to_owned(),
        code,
    }
}

impl Failure {
    fn with_hint(self, hint: String) -> Self {
        Self { hint, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_apart() {
        let mut summary = Summary::default();
        for verdict in [
            Verdict::Verified,
            Verdict::Torn,
            Verdict::Unverified,
            Verdict::Verified,
        ] {
            count(&mut summary, verdict);
        }
        let counts = (
            summary.snapshots,
            summary.verified,
            summary.unverified,
            summary.torn,
        );
        assert_eq!(counts, (4, 2, 1, 1));
    }

    #[test]
    fn refusals_have_their_own_exit_codes() {
        let error = ClientError::BrokerGone;
        assert_eq!(attach_code(Some(110), &error), NOT_FOUND);
        assert_eq!(attach_code(Some(2), &error), NOT_FOUND);
        assert_eq!(attach_code(Some(13), &error), FORBIDDEN);
        assert_eq!(attach_code(None, &error), FAILED);
    }

    #[test]
    fn failures_have_three_lines() {
        let text = failure("attach x", "no such name", 3).to_string();
        assert_eq!(text.lines().count(), 3);
        assert!(text.starts_with("spectrum: attach x\n"));
    }
}
