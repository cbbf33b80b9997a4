//! How long it takes to give a running enclave a core or a block of memory and to
//! take it away, while its program computes. Reported beside what the paper on
//! Pisces (HPDC 2015) measured for its co-kernels, on another machine.

use super::Plan;
use crate::figures::{Figure, Figures};
use crate::guest::Guest;
use crate::session::{Enclave, Session, capture};
use crate::stats::median;
use anyhow::Context as _;
use std::thread::available_parallelism;
use std::time::Instant;
use xasm_bench::protocol::Request;

/// Memory of the enclave before.
const MEM_MIB: u64 = 256;
/// Longer than a round's changes take.
const COMPUTING_MS: u64 = 400;
/// What is changed, and the milliseconds that Pisces took, if it could do that.
const CHANGES: [(&str, [&str; 2], Option<f64>); 4] = [
    ("add a core", ["--add-cores", "1"], Some(34.0)),
    ("remove a core", ["--remove-cores", "1"], None),
    ("add 128 MiB", ["--add-mem", "128M"], Some(83.0)),
    ("remove 128 MiB", ["--remove-mem", "128M"], None),
];

/// Measures all four in turn.
pub(super) fn measure(plan: &Plan, session: &Session, figures: &mut Figures) -> anyhow::Result<()> {
    if available_parallelism().is_ok_and(|cores| cores.get() < 2) {
        eprintln!("==> bench: no second core to give away: update is left out");
        return Ok(());
    }
    let enclave = session.create("update", MEM_MIB, &["--max-cores", "2"])?;
    let mut guest = Guest::start(enclave.run("xasm-bench"))?;
    let mut took: [Vec<f64>; CHANGES.len()] = Default::default();
    for round in 0..=plan.blocks(20, 3) {
        guest.tell(&Request::Detours { ms: COMPUTING_MS })?;
        for ((_, change, _), times) in CHANGES.iter().zip(&mut took) {
            let time = timed(session, &enclave, change)?;
            // The first round loads what the others find.
            if round > 0 {
                times.push(time);
            }
        }
        guest.answer()?;
    }
    for ((what, _, pisces), times) in CHANGES.iter().zip(&took) {
        let middle = median(times).context("nothing was changed")?;
        let figure = Figure::reported(format!("update, {what}"), middle, "ms");
        let most = times.iter().copied().fold(0.0, f64::max);
        let figure = figure.detail("longest_ms", most);
        figures.add(match pisces {
            Some(ms) => figure.detail("pisces_ms", *ms),
            None => figure,
        });
    }
    Ok(())
}

/// One change, from the command's start to its end, in milliseconds.
fn timed(session: &Session, enclave: &Enclave<'_>, change: &[&str]) -> anyhow::Result<f64> {
    let mut command = session.program("enclavectl");
    command.args(["update", &enclave.name]).args(change);
    let start = Instant::now();
    capture(&mut command)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
