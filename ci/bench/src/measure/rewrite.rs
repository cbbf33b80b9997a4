//! What copy-on-write costs: writing every byte after a publish, against the
//! same writing without a publish plus one copy of the same bytes.

use super::{KIB4, MIB, MIB2, Plan, judged, tries};
use crate::figures::{Figure, Figures};
use crate::guest::Guest;
use crate::session::Session;
use crate::stats::{Pair, median};
use xasm_bench::protocol::Request;

/// Most the rewrite after a publish may take of rewrite and copy.
const BOUND: f64 = 1.5;

/// Measures by arena and chunk size; large chunks are bounded.
pub(super) fn measure(
    plan: &Plan,
    _: &Session,
    guest: &mut Guest,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let cases = [
        (64, MIB2, "2M", plan.blocks(15, 5), Some(BOUND)),
        (256, MIB2, "2M", plan.blocks(15, 3), Some(BOUND)),
        (64, KIB4, "4K", plan.blocks(7, 2), None),
        (256, KIB4, "4K", plan.blocks(3, 1), None),
    ];
    for (mib, chunk_bytes, chunk, blocks, bound) in cases {
        let backing = guest.make_warm("whole", mib * MIB, chunk_bytes, 2)?;
        let name = format!("rewrite after publish / rewrite + copy, {mib}M, chunks {chunk}");
        let found = tries(|| {
            let times = blocks_of(guest, blocks)?;
            let ms = |values: &[f64]| median(values).unwrap_or_default() / 1e6;
            let figure = Figure::reported(&name, times.ratio()?, "ratio")
                .detail("after_publish_ms", ms(&times.first))
                .detail("rewrite_and_copy_ms", ms(&times.second))
                .detail("ratio_of_minima", times.ratio_of_minima())
                .detail("blocks", blocks)
                .detail("backing_page_bytes", backing);
            Ok(vec![judged(figure, bound)])
        })?;
        found.into_iter().for_each(|figure| figures.add(figure));
        guest.end("whole")?;
    }
    Ok(())
}

/// Nanoseconds of both ways in turn; a first round does not count.
fn blocks_of(guest: &mut Guest, blocks: usize) -> anyhow::Result<Pair> {
    let name = || "whole".to_owned();
    let mut times = Pair::default();
    for block in 0..=blocks {
        let [after] = guest.times(&Request::RewriteAfterPublish { name: name() })?;
        let [writing, copy] = guest.times(&Request::RewriteAndCopy { name: name() })?;
        if block > 0 {
            times.first.push(after);
            times.second.push(writing + copy);
        }
    }
    Ok(times)
}
