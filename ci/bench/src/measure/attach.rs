//! What a reader pays for a large arena: the first attach in one piece, the
//! next generation after a twentieth changed, an attach in many pieces.

use super::{KIB4, MIB, MIB2, Plan};
use crate::figures::{Figure, Figures};
use crate::guest::Guest;
use crate::session::Session;
use crate::stats::median;
use anyhow::{Context as _, ensure};
use std::time::{Duration, Instant};
use xasm_bench::protocol::Request;
use xemem_host::{Policy, Stream};

/// Size of the arena.
const SIZE_MIB: u64 = 256;
/// One chunk in so many changes.
const CHANGED: u64 = 20;
/// How long a generation may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures with both chunk sizes.
pub(super) fn measure(
    plan: &Plan,
    session: &Session,
    guest: &mut Guest,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for (chunk_bytes, chunk) in [(MIB2, "2M"), (KIB4, "4K")] {
        let backing = guest.make_warm("bench/attached", SIZE_MIB * MIB, chunk_bytes, 2)?;
        let dirty = SIZE_MIB * MIB / chunk_bytes / CHANGED;
        let mut rounds = Rounds::default();
        for _ in 0..plan.blocks(5, 2) {
            rounds.add(session, guest, dirty)?;
        }
        for (what, times, pieces) in [
            ("attach", &rounds.whole, &rounds.whole_runs),
            ("next after 5 % changed", &rounds.next, &rounds.next_mapped),
            ("attach in pieces", &rounds.pieces, &rounds.pieces_runs),
        ] {
            let name = format!("{what}, {SIZE_MIB}M, chunks {chunk}");
            let middle = median(times).context("nothing was attached")?;
            figures.add(
                Figure::reported(name, middle, "us")
                    .detail("mappings", median(pieces).unwrap_or_default())
                    .detail("changed_chunks", dirty)
                    .detail("backing_page_bytes", backing),
            );
        }
        guest.end("bench/attached")?;
    }
    Ok(())
}

/// Microseconds and numbers of mappings by round.
#[derive(Default)]
struct Rounds {
    whole: Vec<f64>,
    whole_runs: Vec<f64>,
    next: Vec<f64>,
    next_mapped: Vec<f64>,
    pieces: Vec<f64>,
    pieces_runs: Vec<f64>,
}

impl Rounds {
    fn add(&mut self, session: &Session, guest: &mut Guest, dirty: u64) -> anyhow::Result<()> {
        let name = || "bench/attached".to_owned();
        let publish = |guest: &mut Guest, dirty| {
            let (name, count) = (name(), 1);
            guest.times::<1>(&Request::Publish { name, count, dirty })
        };
        // Rewritten whole, or with every change made twice over two banks, all
        // chunks lie in one bank: one piece.
        publish(guest, 0)?;
        let (mut stream, took, runs) = attach(session)?;
        ensure!(
            runs == 1,
            "a rewritten arena lies in {runs} pieces, not in 1"
        );
        self.whole.push(took);
        self.whole_runs.push(1.0);

        publish(guest, dirty)?;
        let before = stream.mappings_made();
        let start = Instant::now();
        let snapshot = stream.next(Some(PATIENCE))?;
        self.next.push(microseconds(start));
        drop(snapshot.context("the arena ended")?);
        self.next_mapped
            .push((stream.mappings_made() - before) as f64);
        drop(stream);

        let (_stream, took, runs) = attach(session)?;
        self.pieces.push(took);
        self.pieces_runs.push(runs as f64);
        publish(guest, dirty)?;
        Ok(())
    }
}

/// Attaches and maps the newest generation; microseconds and pieces.
fn attach(session: &Session) -> anyhow::Result<(Stream, f64, usize)> {
    let socket = session.socket();
    let start = Instant::now();
    let mut stream = Stream::attach(&socket, "bench/attached", Policy::Latest, Duration::ZERO)?;
    let snapshot = stream.next(Some(PATIENCE))?.context("the arena ended")?;
    let took = microseconds(start);
    let runs = snapshot.runs();
    drop(snapshot);
    Ok((stream, took, runs))
}

fn microseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}
