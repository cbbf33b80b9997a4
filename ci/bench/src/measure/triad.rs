//! Bandwidth of memory: an OpenMP program in the enclave and on the host, on the
//! same cores, in turn.

use super::{Plan, promised};
use crate::figures::{Bound, Figure, Figures};
use crate::session::{Enclave, Session, capture};
use crate::stats::{Pair, median};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bandwidth in the enclave over bandwidth on the host, and what a machine with
/// other work on it must keep.
const PROMISE: f64 = 0.95;
const BOUND: f64 = 0.8;

/// Measures and adds one figure.
pub(super) fn measure(
    plan: &Plan,
    session: &Session,
    enclave: &Enclave<'_>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let program = compiled(session)?;
    let cores: Vec<String> = enclave.cores().iter().map(usize::to_string).collect();
    let mut inside = session.program("enclavectl");
    inside.args(["run", &enclave.name, "--"]).arg(&program);
    let mut outside = Command::new("taskset");
    outside.args(["--cpu-list", &cores.join(",")]).arg(&program);
    let found = super::tries(|| {
        let mut speeds = Pair::default();
        for _ in 0..plan.blocks(5, 2) {
            speeds.first.push(speed(&mut inside)?);
            speeds.second.push(speed(&mut outside)?);
        }
        let middle = |values: &[f64]| median(values).unwrap_or_default();
        let figure = Figure::reported("OpenMP triad, enclave/host", speeds.ratio()?, "ratio")
            .detail("threads", cores.len())
            .detail("enclave_gb_s", middle(&speeds.first))
            .detail("host_gb_s", middle(&speeds.second));
        Ok(vec![promised(
            figure,
            Bound::AtLeast(PROMISE),
            Bound::AtLeast(BOUND),
        )])
    })?;
    found.into_iter().for_each(|figure| figures.add(figure));
    Ok(())
}

/// Gigabytes a second, as the program prints.
fn speed(command: &mut Command) -> anyhow::Result<f64> {
    let text = capture(command)?;
    let speed = text.trim().parse();
    speed.with_context(|| format!("the triad printed {text:?}"))
}

/// The program, made by the C compiler that the tests need, too.
fn compiled(session: &Session) -> anyhow::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/programs/c/triad.c");
    let program = session.folder("triad")?.join("triad");
    let mut compiler = Command::new("gcc");
    compiler.args(["-O3", "-fopenmp", "-static", "-o"]);
    capture(compiler.arg(&program).arg(source))?;
    Ok(program)
}
