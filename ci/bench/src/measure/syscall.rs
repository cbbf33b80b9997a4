//! getpid in the enclave over getpid on Linux: the same program file, in turn.

use super::Plan;
use crate::figures::{Figure, Figures};
use crate::guest::Guest;
use crate::session::Session;
use crate::stats::{Pair, median};
use xasm_bench::protocol::Request;

/// Calls of one block.
const CALLS: u64 = 2000;

/// Measures and adds one figure.
pub(super) fn measure(
    plan: &Plan,
    session: &Session,
    guest: &mut Guest,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut native = Guest::start(session.program("xasm-bench"))?;
    let request = Request::GetPid { count: CALLS };
    let mut times = Pair::default();
    for block in 0..=plan.blocks(15, 5) {
        let [enclave] = guest.times(&request)?;
        let [linux] = native.times(&request)?;
        // The first block loads what the others find.
        if block > 0 {
            times.first.push(enclave / CALLS as f64);
            times.second.push(linux / CALLS as f64);
        }
    }
    let middle = |values: &[f64]| median(values).unwrap_or_default();
    figures.add(
        Figure::reported("getpid, enclave / linux", times.ratio()?, "ratio")
            .detail("enclave_ns", middle(&times.first))
            .detail("linux_ns", middle(&times.second))
            .detail("ratio_of_minima", times.ratio_of_minima())
            .detail("blocks", times.first.len()),
    );
    Ok(())
}
