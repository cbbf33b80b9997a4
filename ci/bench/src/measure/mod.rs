//! The measurements, in the order that disturbs the later ones least.
//!
//! Called by `main`. Each file measures one thing and adds its figures; here
//! are the enclave they share, what is interleaved how often, and the rule of
//! tries.

mod attach;
mod create;
mod doorbell;
mod publish;
mod quiet;
mod reading;
mod rewrite;
mod storm;
mod stuck;
mod syscall;
mod transport;
mod triad;
mod update;

use crate::figures::{Bound, Figure, Figures};
use crate::guest::Guest;
use crate::hugepages::PAGE_BYTES;
use crate::session::{Enclave, Session};
use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;
/// Memory of the measured enclave in MiB: program, and a copy of the largest
/// arena.
const ENCLAVE_MIB: u64 = 512;
/// Largest arenas alive at once in MiB, all banks and control areas, and private
/// memory to compare with.
const ARENAS_MIB: u64 = 816;
/// Small chunk.
const KIB4: u64 = 4096;
/// Large chunk.
const MIB2: u64 = 2 << 20;
/// Measurements of a bounded ratio before it counts as missed.
const TRIES: u32 = 3;

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// getpid in the enclave and on Linux.
    Syscall,
    /// Publish by arena size, and against fork.
    Publish,
    /// The rewrite after a publish against rewrite and copy.
    Rewrite,
    /// Attaching and following a large arena.
    Attach,
    /// Attach, follow and read against what Linux alone costs.
    Reading,
    /// From a publish to a blocked reader, against a bare eventfd.
    Doorbell,
    /// A hundred thousand publishes under readers that are stuck.
    Stuck,
    /// A thousand publishes under two checking readers.
    Storm,
    /// snap-mini with and without snapshots.
    Transport,
    /// Exits and detours of a computation.
    Quiet,
    /// Memory bandwidth of an OpenMP program.
    Triad,
    /// From create to the first byte.
    Create,
    /// Cores and memory that come and go.
    Update,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// All blocks.
    Full,
    /// A few: to see that everything works.
    Quick,
}

/// What is to be measured.
#[derive(Debug)]
pub(crate) struct Plan {
    /// How much.
    pub(crate) effort: Effort,
    /// Only these; all if empty.
    pub(crate) only: Vec<Name>,
}

impl Plan {
    fn includes(&self, name: Name) -> bool {
        self.only.is_empty() || self.only.contains(&name)
    }

    /// `full` blocks, or `quick` ones.
    fn blocks(&self, full: usize, quick: usize) -> usize {
        match self.effort {
            Effort::Full => full,
            Effort::Quick => quick,
        }
    }
}

/// Huge pages that enclave and arenas need.
pub(crate) fn hugepages_wanted() -> u64 {
    (ENCLAVE_MIB + ARENAS_MIB) * MIB / PAGE_BYTES
}

/// Measures everything planned.
///
/// # Errors
/// The first thing that cannot be measured. A missed bound is no error here.
pub(crate) fn all(plan: &Plan, session: &Session, figures: &mut Figures) -> anyhow::Result<()> {
    inside(plan, session, figures)?;
    if plan.includes(Name::Create) {
        eprintln!("==> bench: create");
        create::measure(plan, session, figures)?;
    }
    if plan.includes(Name::Update) {
        eprintln!("==> bench: update");
        update::measure(plan, session, figures)?;
    }
    Ok(())
}

/// The measurements in one enclave.
fn inside(plan: &Plan, session: &Session, figures: &mut Figures) -> anyhow::Result<()> {
    type Measure = fn(&Plan, &Session, &mut Guest, &mut Figures) -> anyhow::Result<()>;
    let export = format!("{}=/data", transport::decks(session)?.display());
    let enclave = session.create("bench", ENCLAVE_MIB, &["--export", &export])?;
    for key in ["kernel_mode", "platform", "flush"] {
        figures.measured_on(key, &enclave.created["report"][key]);
    }
    let _pinned = Pinned::away_from(&enclave);
    let guided: [(Name, Measure); 8] = [
        (Name::Syscall, syscall::measure),
        (Name::Publish, publish::measure),
        (Name::Rewrite, rewrite::measure),
        (Name::Attach, attach::measure),
        (Name::Reading, reading::measure),
        (Name::Doorbell, doorbell::measure),
        (Name::Stuck, stuck::measure),
        (Name::Storm, storm::measure),
    ];
    for (name, measure) in guided {
        if plan.includes(name) {
            eprintln!("==> bench: {name:?}");
            // A guest each, so that none inherits another's memory.
            let mut guest = Guest::start(enclave.run("xasm-bench"))?;
            measure(plan, session, &mut guest, figures)?;
        }
    }
    if plan.includes(Name::Quiet) {
        eprintln!("==> bench: Quiet");
        quiet::measure(plan, session, &enclave, figures)?;
    }
    if plan.includes(Name::Triad) {
        eprintln!("==> bench: Triad");
        triad::measure(plan, session, &enclave, figures)?;
    }
    if plan.includes(Name::Transport) {
        eprintln!("==> bench: Transport");
        transport::measure(plan, session, &enclave, figures)?;
    }
    Ok(())
}

/// Measures up to [`TRIES`] times, until no figure of a try is missed; the last
/// try counts.
fn tries(mut measure: impl FnMut() -> anyhow::Result<Vec<Figure>>) -> anyhow::Result<Vec<Figure>> {
    let mut nr_tries = 1;
    loop {
        let found = measure()?;
        if nr_tries == TRIES || !found.iter().any(Figure::is_missed) {
            return Ok(found.into_iter().map(|f| f.after(nr_tries)).collect());
        }
        nr_tries += 1;
    }
}

/// Keeps this process, and what it starts, off an enclave's cores.
struct Pinned(Option<CpuSet>);

impl Pinned {
    fn away_from(enclave: &Enclave<'_>) -> Self {
        let Ok(before) = sched_getaffinity(None) else {
            return Self(None);
        };
        let mut others = before;
        for core in enclave.cores() {
            others.unset(core);
        }
        // On a machine of one core everything shares it.
        if others.count() == 0 || sched_setaffinity(None, &others).is_err() {
            return Self(None);
        }
        Self(Some(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // The set was ours before, so it is allowed.
            let _ = sched_setaffinity(None, &before);
        }
    }
}

/// A promise, and the bound that a busy machine must keep, too.
fn promised(figure: Figure, promise: Bound, bound: Bound) -> Figure {
    figure.promised(promise).bounded(bound)
}

/// A bound only where there is one.
fn judged(figure: Figure, bound: Option<f64>) -> Figure {
    match bound {
        Some(most) => figure.bounded(Bound::AtMost(most)),
        None => figure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(values: &[f64]) -> (u32, bool) {
        let mut left = values.iter();
        let found = tries(|| {
            let value = *left.next().expect("no more tries than values");
            Ok(vec![judged(Figure::reported("r", value, ""), Some(1.0))])
        });
        let figures = found.unwrap();
        let used = values.len() - left.len();
        (u32::try_from(used).unwrap(), figures[0].is_missed())
    }

    #[test]
    fn a_missed_bound_is_measured_up_to_three_times() {
        assert_eq!(attempt(&[0.5]), (1, false));
        assert_eq!(attempt(&[2.0, 0.5]), (2, false));
        assert_eq!(attempt(&[2.0, 2.0, 2.0]), (3, true));
    }

    #[test]
    fn an_error_is_not_tried_again() {
        let mut calls = 0;
        let failed = tries(|| {
            calls += 1;
            anyhow::bail!("gone")
        });
        assert!(failed.is_err());
        assert_eq!(calls, 1);
    }
}
