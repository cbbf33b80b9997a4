//! How long an enclave takes to be there: the command `create`, its phases,
//! and from its start to the first byte a program in the enclave prints.

use super::{MIB, Plan};
use crate::figures::{Figure, Figures};
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

/// Measures with and without touching the memory, in turn.
pub(super) fn measure(plan: &Plan, session: &Session, figures: &mut Figures) -> anyhow::Result<()> {
    let mut cases = [
        Case::new("prefault", &[]),
        Case::new("no prefault", &["--no-prefault"]),
    ];
    for round in 0..plan.blocks(5, 2) {
        for case in &mut cases {
            case.add(session, round)?;
        }
    }
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

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
