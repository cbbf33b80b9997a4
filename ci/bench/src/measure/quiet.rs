//! How much of a core a computation gets: what leaves to the host while it
//! computes, and for how long it is interrupted, against a process on the same
//! core.

use super::{Plan, promised};
use crate::figures::{Bound, Figure, Figures};
use crate::guest::Guest;
use crate::session::{Enclave, Session, capture};
use anyhow::{Context as _, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;
use std::collections::BTreeMap;
use xasm_bench::protocol::Request;

/// The window in which nothing may leave because of the enclave, milliseconds.
const WINDOW_MS: u64 = 1000;
/// One side's turn, milliseconds.
const TURN_MS: u64 = 200;
/// Time lost in an enclave over time lost on Linux, and what a machine with
/// other work on it must keep.
const LOST: (f64, f64) = (1.1, 3.0);
/// KVM's counts of what a guest does: instructions and addresses it has no
/// right to, waits, hypercalls, and interrupts that its host gives it. What
/// interrupts the host itself is not among them (`exits`, `irq_exits`,
/// `signal_exits`), nor what the host's memory management takes from it.
const GUESTS_OWN: [&str; 6] = [
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "hypercalls",
    "insn_emulation",
    "irq_injections",
];

/// Measures both.
pub(super) fn measure(
    plan: &Plan,
    session: &Session,
    enclave: &Enclave<'_>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut guest = Guest::start(enclave.run("xasm-bench"))?;
    figures.add(window(session, enclave, &mut guest)?);
    let mut native = Guest::start(session.program("xasm-bench"))?;
    pin(&native, enclave)?;
    let found = super::tries(|| Ok(vec![detours(plan, &mut guest, &mut native)?]))?;
    found.into_iter().for_each(|figure| figures.add(figure));
    Ok(())
}

/// Time lost in the enclave over time lost by a process, in turn.
fn detours(plan: &Plan, guest: &mut Guest, native: &mut Guest) -> anyhow::Result<Figure> {
    let request = Request::Detours { ms: TURN_MS };
    let (mut inside, mut outside) = (Lost::default(), Lost::default());
    for block in 0..=plan.blocks(15, 4) {
        let (here, there) = (guest.times(&request)?, native.times(&request)?);
        // The first block loads what the others find.
        if block > 0 {
            inside.add(here);
            outside.add(there);
        }
    }
    let ratio = inside.part()? / outside.part()?;
    let figure = Figure::reported("time lost to detours, enclave/process", ratio, "ratio")
        .detail("enclave_percent", inside.part()? * 100.0)
        .detail("process_percent", outside.part()? * 100.0)
        .detail("enclave_detours", inside.detours)
        .detail("process_detours", outside.detours)
        .detail("enclave_longest_us", inside.longest / 1e3)
        .detail("process_longest_us", outside.longest / 1e3);
    let (promise, bound) = LOST;
    Ok(promised(
        figure,
        Bound::AtMost(promise),
        Bound::AtMost(bound),
    ))
}

/// Detours of one side.
#[derive(Debug, Default)]
struct Lost {
    detours: f64,
    ns: f64,
    longest: f64,
    whole: f64,
}

impl Lost {
    fn add(&mut self, [detours, ns, longest, whole]: [f64; 4]) {
        self.detours += detours;
        self.ns += ns;
        self.longest = self.longest.max(longest);
        self.whole += whole;
    }

    /// Lost nanoseconds of one.
    fn part(&self) -> anyhow::Result<f64> {
        ensure!(self.ns > 0.0, "a core that nothing ever interrupts");
        Ok(self.ns / self.whole)
    }
}

/// Exits that the enclave itself causes in [`WINDOW_MS`] of computation: what is
/// counted over a request that computes, less what is counted over one that does
/// not.
fn window(session: &Session, enclave: &Enclave<'_>, guest: &mut Guest) -> anyhow::Result<Figure> {
    let mut counted = |ms| -> anyhow::Result<BTreeMap<String, f64>> {
        let before = counts(session, enclave)?;
        guest.times::<4>(&Request::Detours { ms })?;
        let after = counts(session, enclave)?;
        let grown = |(name, count): (&String, &f64)| {
            (name.clone(), count - before.get(name).unwrap_or(&0.0))
        };
        Ok(after.iter().map(grown).collect())
    };
    // The first time loads what the others find.
    counted(1)?;
    let empty = counted(0)?;
    let full = counted(WINDOW_MS)?;
    let more = |name: &str| match (full.get(name), empty.get(name)) {
        (Some(full), Some(empty)) => Ok(full - empty),
        _ => Err(anyhow::anyhow!("KVM does not count {name}")),
    };
    let mut figure = Figure::reported("exits an enclave causes in 1 s", 0.0, "exits");
    let mut all = 0.0;
    for name in GUESTS_OWN {
        let count = more(name)?;
        all += count.abs();
        if count != 0.0 {
            figure = figure.detail(name, count);
        }
    }
    let host = more("exits")?;
    let figure = figure.detail("exits_of_all_kinds", host).with_value(all);
    Ok(figure.bounded(Bound::Exactly(0.0)))
}

/// KVM's counts of the enclave's processors, all together.
fn counts(session: &Session, enclave: &Enclave<'_>) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut inspect = session.program("enclavectl");
    inspect.args(["inspect", &enclave.name, "--json"]);
    let text = capture(&mut inspect)?;
    let parsed: Value = serde_json::from_str(&text).context("understand inspect --json")?;
    let kvm = parsed["enclave"]["live"]["report"]["kvm"].as_object();
    let counts = kvm.context("inspect shows no counts of KVM")?.iter();
    Ok(counts
        .filter_map(|(name, count)| Some((name.clone(), count.as_f64()?)))
        .collect())
}

/// Moves a native guest to the first core of the enclave.
fn pin(native: &Guest, enclave: &Enclave<'_>) -> anyhow::Result<()> {
    let mut cores = CpuSet::new();
    let cores_of_it = enclave.cores();
    cores.set(*cores_of_it.first().context("an enclave without a core")?);
    let pid = Pid::from_raw(i32::try_from(native.id())?);
    sched_setaffinity(pid, &cores).context("move a process to the enclave's core")
}
