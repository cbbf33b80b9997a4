//! How long an enclave takes to be there: the command `create`, its phases,
//! from its start to the first byte a program in the enclave prints, against
//! what KVM alone needs; and the memory its VMM takes for itself.

use super::{MIB, Plan, promised};
use crate::bare;
use crate::figures::{Bound, Figure, Figures};
use crate::guest::Guest;
use crate::session::{Session, capture};
use crate::stats::median;
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Instant;
use xasm_bench::protocol::Request;

/// Memory of the enclaves.
const MEM_MIB: u64 = 512;
/// What the VMM does by the end of which its kernel is up.
const LAST_PHASE: &str = "kernel";
/// `create` over a bare machine, and what a busy machine must keep.
const OVER_BARE: (f64, f64) = (5.0, 10.0);
/// Bytes a VMM takes beside its enclave's memory.
const OWN_BYTES: u64 = 5 * MIB;

/// Measures with and without touching the memory, in turn.
pub(super) fn measure(plan: &Plan, session: &Session, figures: &mut Figures) -> anyhow::Result<()> {
    let mut cases = [
        Case::new("prefault", &[]),
        Case::new("no prefault", &["--no-prefault"]),
    ];
    let mut bare = Vec::new();
    for round in 0..plan.blocks(5, 2) {
        for case in &mut cases {
            case.add(session, round)?;
            let took = bare::set_up(usize::try_from(MEM_MIB * MIB)?)?;
            bare.push(took.as_secs_f64() * 1e3);
        }
    }
    let [_, unfilled] = &cases;
    figures.add(unfilled.over_bare(&bare)?);
    figures.add(unfilled.own_memory()?);
    for case in cases {
        case.figures(figures)?;
    }
    Ok(())
}

/// One way to create an enclave, with its times in milliseconds.
struct Case {
    what: &'static str,
    arguments: &'static [&'static str],
    created: Vec<f64>,
    first_byte: Vec<f64>,
    /// By phase, since the start of the VMM.
    phases: BTreeMap<String, Vec<f64>>,
    backing: u64,
    /// Bytes each VMM had for itself.
    own: Vec<f64>,
}

impl Case {
    fn new(what: &'static str, arguments: &'static [&'static str]) -> Self {
        Self {
            what,
            arguments,
            created: Vec::new(),
            first_byte: Vec::new(),
            phases: BTreeMap::new(),
            backing: 0,
            own: Vec::new(),
        }
    }

    fn add(&mut self, session: &Session, round: usize) -> anyhow::Result<()> {
        let name = format!("round{round}");
        let start = Instant::now();
        let enclave = session.create(&name, MEM_MIB, self.arguments)?;
        self.created.push(milliseconds(start));
        let mut guest = Guest::start(enclave.run("xasm-bench"))?;
        guest.times::<1>(&Request::GetPid { count: 1 })?;
        self.first_byte.push(milliseconds(start));
        // What "up" means: the kernel has spoken by the time `create` returns.
        let console = capture(session.program("enclavectl").args(["logs", &name]))?;
        ensure!(
            console.contains("enclave-kernel"),
            "the console of {name} starts without its kernel"
        );
        let pid = enclave.created["effective"]["pid"].as_u64();
        self.own.push(own_bytes(pid.context("no process")?)?);
        let report = &enclave.created["report"];
        self.backing = report["backing_page_bytes"].as_u64().unwrap_or(0);
        for phase in report["phases"].as_array().into_iter().flatten() {
            if let (Some(name), Some(us)) = (phase[0].as_str(), phase[1].as_f64()) {
                let times = self.phases.entry(name.to_owned()).or_default();
                times.push(us / 1e3);
            }
        }
        Ok(())
    }

    /// From the VMM's start until its kernel is up, over a bare machine.
    fn over_bare(&self, bare: &[f64]) -> anyhow::Result<Figure> {
        let up = self.phases.get(LAST_PHASE).and_then(|times| median(times));
        let up = up.context("no enclave was created")?;
        let bare = median(bare).context("no bare machine was made")?;
        let figure = Figure::reported(
            format!("create, {}/bare KVM", self.what),
            up / bare,
            "ratio",
        );
        let (promise, bound) = OVER_BARE;
        let figure = promised(figure, Bound::AtMost(promise), Bound::AtMost(bound));
        Ok(figure.detail("create_ms", up).detail("bare_ms", bare))
    }

    /// What the VMM takes beside the memory it gives away.
    fn own_memory(&self) -> anyhow::Result<Figure> {
        let own = median(&self.own).context("no enclave was created")?;
        let figure = Figure::reported("VMM's memory beside the guest's", own, "bytes");
        Ok(figure.bounded(Bound::AtMost(OWN_BYTES as f64)))
    }

    fn figures(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let middle = |times: &[f64]| median(times).context("no enclave was created");
        let phases: Vec<String> = self
            .phases
            .iter()
            .filter_map(|(name, times)| Some(format!("{name} {:.1}", median(times)?)))
            .collect();
        let sized = |figure: Figure| {
            figure
                .detail("mem_bytes", MEM_MIB * MIB)
                .detail("backing_page_bytes", self.backing)
        };
        let what = self.what;
        figures.add(sized(
            Figure::reported(
                format!("create, {what}, kernel up"),
                middle(&self.created)?,
                "ms",
            )
            .detail("phases_ms", Value::from(phases.join(" "))),
        ));
        figures.add(sized(Figure::reported(
            format!("create, {what}, to a program's first byte"),
            middle(&self.first_byte)?,
            "ms",
        )));
        Ok(())
    }
}

/// Resident bytes of a process that are not shared memory: its own, and its
/// program's file (`proc_pid_status(5)`).
fn own_bytes(pid: u64) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    let own = kib("RssAnon:").zip(kib("RssFile:"));
    let (own, file) = own.context("no resident sizes in /proc")?;
    Ok(((own + file) * 1024) as f64)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
