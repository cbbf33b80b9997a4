//! The publish call: whether it depends on the arena's size, and how it
//! compares with the `fork` of a process that has as much memory.

use super::{KIB4, MIB, MIB2, Plan, judged, tries};
use crate::figures::{Figure, Figures};
use crate::forks::Memory;
use crate::guest::Guest;
use crate::session::Session;
use crate::stats::{Pair, median};
use anyhow::Context as _;
use xasm_bench::protocol::Request;

/// Large arena, and memory of the forked process.
const LARGE_MIB: u64 = 256;
/// Small arena.
const SMALL_MIB: u64 = 16;
/// Chunks written before each publish.
const DIRTY: u64 = 4;
/// Publishes of a block that count.
const PER_BLOCK: u64 = 10;
/// Forks of a block.
const FORKS: usize = 3;
/// Most a publish may depend on the size.
const SIZE_BOUND: f64 = 1.5;
/// Most a publish may take of a fork.
const FORK_BOUND: f64 = 0.02;

/// Measures with large chunks (bounded) and small ones (reported).
pub(super) fn measure(
    plan: &Plan,
    _: &Session,
    guest: &mut Guest,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let memory = Memory::touch(usize::try_from(LARGE_MIB * MIB)?)?;
    for (chunk_bytes, chunk, is_bounded) in [(MIB2, "2M", true), (KIB4, "4K", false)] {
        let backing = guest.make_warm("large", LARGE_MIB * MIB, chunk_bytes, 2)?;
        guest.make_warm("small", SMALL_MIB * MIB, chunk_bytes, 2)?;
        let blocks = plan.blocks(15, 5);
        let found = tries(|| {
            let times = Times::of(guest, &memory, blocks)?;
            times.figures(chunk, is_bounded, backing)
        })?;
        found.into_iter().for_each(|figure| figures.add(figure));
        guest.end("large")?;
        guest.end("small")?;
    }
    Ok(())
}

/// Nanoseconds by block.
#[derive(Default)]
struct Times {
    large: Vec<f64>,
    small: Vec<f64>,
    fork: Vec<f64>,
}

impl Times {
    fn of(guest: &mut Guest, memory: &Memory, blocks: usize) -> anyhow::Result<Self> {
        let mut times = Self::default();
        for _ in 0..blocks {
            times.large.push(block(guest, "large")?);
            times.small.push(block(guest, "small")?);
            let forks = (0..FORKS).map(|_| memory.fork().map(|took| took.as_nanos() as f64));
            let forks = forks.collect::<anyhow::Result<Vec<f64>>>()?;
            times.fork.push(median(&forks).context("no fork")?);
        }
        Ok(times)
    }

    fn figures(self, chunk: &str, is_bounded: bool, backing: u64) -> anyhow::Result<Vec<Figure>> {
        let us = |values: &[f64]| median(values).unwrap_or_default() / 1e3;
        let (large_us, small_us) = (us(&self.large), us(&self.small));
        let (fork_us, blocks) = (us(&self.fork), self.large.len());
        let by_size = Pair {
            first: self.large.clone(),
            second: self.small,
        };
        let by_fork = Pair {
            first: self.large,
            second: self.fork,
        };
        let size = format!("publish {LARGE_MIB}M / {SMALL_MIB}M, chunks {chunk}");
        let size = Figure::reported(size, by_size.ratio()?, "ratio")
            .detail("large_us", large_us)
            .detail("small_us", small_us)
            .detail("ratio_of_minima", by_size.ratio_of_minima());
        let fork = format!("publish {LARGE_MIB}M / fork {LARGE_MIB}M, chunks {chunk}");
        let fork = Figure::reported(fork, by_fork.ratio()?, "ratio")
            .detail("publish_us", large_us)
            .detail("fork_us", fork_us)
            .detail("ratio_of_minima", by_fork.ratio_of_minima());
        let [size, fork] = [size, fork].map(|figure| {
            figure
                .detail("blocks", blocks)
                .detail("backing_page_bytes", backing)
        });
        Ok(vec![
            judged(size, is_bounded.then_some(SIZE_BOUND)),
            judged(fork, is_bounded.then_some(FORK_BOUND)),
        ])
    }
}

/// Median of one block; its first publish, after a pause, does not count.
fn block(guest: &mut Guest, name: &str) -> anyhow::Result<f64> {
    let times = guest.all_times(&Request::Publish {
        name: name.to_owned(),
        count: PER_BLOCK + 1,
        dirty: DIRTY,
    })?;
    let counted = times.get(1..).unwrap_or_default();
    median(counted).context("no publish was timed")
}
