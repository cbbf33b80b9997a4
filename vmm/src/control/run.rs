//! One program on its way into the machine and out again.
//!
//! The pure check of a `run` request, and the thread that waits for its end.
//! Called by [`super::server`], which owns the connections.

use std::os::fd::OwnedFd;
use std::sync::mpsc;

use vmm_sys_util::eventfd::EventFd;

use super::Control;
use super::protocol::{Effective, RUN_FDS, Request, Updated};
use crate::failure::{Class, Failure};
use crate::machine::{RunError, RunOutcome, RunSpec, StartPhases};

/// What a run's thread reports.
pub(super) enum Report {
    Accepted {
        id: u64,
        run: u64,
        program: String,
        /// It goes on when its client is gone.
        is_detached: bool,
    },
    Refused {
        id: u64,
        error: RunError,
    },
    Finished {
        id: u64,
        run: u64,
        outcome: RunOutcome,
        phases: StartPhases,
    },
    Updated {
        id: u64,
        result: Result<Updated, Failure>,
    },
}

/// The whole life of one run, on its own thread.
pub(super) fn run_to_end(
    control: &dyn Control,
    id: u64,
    (spec, is_detached): (RunSpec, bool),
    reports: &mpsc::Sender<Report>,
    wake: &EventFd,
) {
    // The loop may have ended already; then nobody needs the report.
    let report = |report| {
        drop(reports.send(report));
        drop(wake.write(1));
    };
    let program = spec.path.clone();
    match control.run(spec) {
        Ok(run) => {
            report(Report::Accepted {
                id,
                run,
                program,
                is_detached,
            });
            let outcome = control.wait(run);
            let phases = control.start_phases(run);
            report(Report::Finished {
                id,
                run,
                outcome,
                phases,
            });
        }
        Err(error) => report(Report::Refused { id, error }),
    }
}

/// Checks a run request and turns it into what the machine takes.
pub(super) fn run_spec(
    request: Request,
    fds: Vec<OwnedFd>,
    effective: &Effective,
) -> Result<RunSpec, Failure> {
    let what = "run a program";
    let usage = |why: String| Failure::new(Class::Usage, what, why);
    let Request::Run {
        path,
        argv,
        envp,
        cwd,
        host_cwd,
        stack_bytes,
        limit_bytes,
        detached: _,
    } = request
    else {
        return Err(usage("not a run request".to_owned()));
    };
    let count = fds.len();
    let Ok([image, stdin, stdout, stderr]) = <[OwnedFd; RUN_FDS]>::try_from(fds) else {
        let why = format!("{count} descriptors came, {RUN_FDS} are needed");
        return Err(Failure::new(Class::Protocol, what, why));
    };
    check_strings(&path, &argv, &envp, cwd.as_deref()).map_err(|why| usage(why.to_owned()))?;
    // Anything else (a pipe, a terminal) could block the reader for ever.
    let stat = rustix::fs::fstat(&image).map_err(|e| Failure::io(what, e))?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(usage(format!("{path} is not a regular file")));
    }
    let cwd = cwd
        .or_else(|| effective.config.guest_path(host_cwd.as_ref()))
        .unwrap_or_else(|| "/".to_owned());
    Ok(RunSpec {
        image,
        path,
        argv,
        envp,
        cwd,
        stdio: [stdin, stdout, stderr],
        stack_bytes,
        limit_bytes,
    })
}

/// Why a run was not accepted, as the user sees it.
pub(super) fn run_failure(error: &RunError) -> Failure {
    let class = match error {
        RunError::Busy { .. } | RunError::Frozen => Class::Busy,
        RunError::NotRunning(_) => Class::Failure,
        RunError::ArgumentsTooLong { .. } => Class::Usage,
    };
    Failure::new(class, "run a program", error)
}

/// Checks the strings of a run request against what a kernel can take.
fn check_strings(
    path: &str,
    argv: &[String],
    envp: &[String],
    cwd: Option<&str>,
) -> Result<(), &'static str> {
    let given = argv.iter().chain(envp).map(String::as_str);
    if given
        .chain([path])
        .chain(cwd)
        .any(|text| text.contains('\0'))
    {
        return Err("a string contains a zero byte");
    }
    if argv.is_empty() {
        return Err("no argument strings");
    }
    if cwd.is_some_and(|cwd| !cwd.starts_with('/')) {
        return Err("the working directory is not absolute");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_a_kernel_cannot_take_are_refused() {
        let one = [String::from("a")];
        assert_eq!(check_strings("/p", &one, &[], None), Ok(()));
        assert_eq!(check_strings("/p", &one, &one, Some("/")), Ok(()));
        assert!(check_strings("/p", &[], &[], None).is_err());
        assert!(check_strings("/p\0", &one, &[], None).is_err());
        assert!(check_strings("/p", &one, &["K=\0".into()], None).is_err());
        assert!(check_strings("/p", &one, &[], Some("rel")).is_err());
        assert!(check_strings("/p", &one, &[], Some("/\0")).is_err());
    }
}
