//! Keeping the host in line with the enclaves there are: their cores alone, and
//! everything back when they are gone, however they went.
//!
//! Called by `main` before the verbs that look at enclaves, so that an enclave
//! whose VMM was killed gives its interrupts back by the next of them, and by
//! `create` and `destroy` for their own.

use std::path::Path;

use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::isolation::{Held, Isolation, Report, report, settle};
use enclave_vmm::ledger::{Occupancy, RunDir};

use crate::cmd::destroy;
use crate::output;

/// Settles what earlier commands left. Nothing to do with this command: so what
/// goes wrong is told and stops nobody.
pub(crate) fn tidy() {
    // Where there is no run directory there is nothing to settle, nor to make.
    if let Ok(Some(run)) = RunDir::open(&xemem_host::run_dir_path()) {
        tell(settle(Path::new("/"), &run));
    }
}

/// As [`tidy`], with the run directory at hand.
pub(super) fn tidy_in(run: &RunDir) {
    tell(settle(Path::new("/"), run));
}

fn tell(settled: Result<Vec<String>, Failure>) {
    // Whoever is no administrator cannot isolate, and is told by `inspect`.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    match settled {
        Ok(troubles) => troubles.iter().for_each(|trouble| output::warning(trouble)),
        Err(failure) => output::warning(&failure.to_string()),
    }
}

/// Isolates the cores of a fresh enclave; how far that went. One that requires
/// more than it gets is ended again.
pub(super) fn fresh(
    run: &RunDir,
    name: &str,
    wanted: Isolation,
) -> Result<Option<Report>, Failure> {
    tidy_in(run);
    let found = of(run, name)?;
    if wanted != Isolation::Require {
        return Ok(found);
    }
    let why = match &found {
        Some(report) if report.is_whole() => return Ok(found),
        Some(report) => shortfall(report),
        None => "it has ended".to_owned(),
    };
    let advice = found.map_or_else(String::new, |report| report.advice);
    // The shortfall is what is told.
    drop(destroy::end(run, name));
    tidy_in(run);
    let what = format!("isolate the cores of enclave {name}");
    let hint = match advice.is_empty() {
        true => "enclavectl doctor".to_owned(),
        false => advice,
    };
    Err(Failure::new(Class::Resources, what, why).with_hint(hint))
}

/// How far the enclave has its cores alone, read back; `None` for a dead one.
pub(super) fn of(run: &RunDir, name: &str) -> Result<Option<Report>, Failure> {
    let Some(dir) = run.enclave(name, false)? else {
        return Ok(None);
    };
    Ok(match dir.occupancy()? {
        Occupancy::Live(record) => Some(report(Path::new("/"), name, &record)),
        Occupancy::Dead(_) => None,
    })
}

/// In a few words.
pub(super) fn words(report: &Report) -> &'static str {
    match &report.held {
        Held::Isolated | Held::Partition if report.interrupts.is_empty() => "isolated",
        Held::Isolated | Held::Partition => "isolated but for interrupts",
        Held::Exclusive => "exclusive to it among sets",
        Held::Affinity { .. } => "pinned only",
    }
}

/// What keeps a report from being whole.
fn shortfall(report: &Report) -> String {
    let held = match &report.held {
        Held::Isolated | Held::Partition => String::new(),
        Held::Exclusive => "the kernel has exclusive sets only, which the host's own tasks \
                            are not kept out of"
            .to_owned(),
        Held::Affinity { reason } => reason.clone(),
    };
    let interrupts = match report.interrupts.is_empty() {
        true => String::new(),
        false => format!("interrupts {} arrive there", report.interrupts.join(", ")),
    };
    let texts: Vec<String> = [held, interrupts]
        .into_iter()
        .filter(|t| !t.is_empty())
        .collect();
    texts.join("; ")
}
