//! A thousand publishes as fast as the program can, under two readers that
//! check every snapshot against the checksums stored in it.
//!
//! Exact: no snapshot may be torn, and every generation must be accounted for,
//! by each reader as seen or missed, by the producer's arena as published or
//! refused. One reader wants every generation, which makes the pool run out now
//! and then. The other takes the latest and keeps it until the program has gone
//! round all banks twice, then checks it again: a frame that was reused under
//! its lease shows.

use super::{KIB4, MIB, MIB2, Plan};
use crate::figures::{Bound, Figure, Figures};
use crate::guest::Guest;
use crate::session::Session;
use anyhow::{Context as _, anyhow, ensure};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use xasm_bench::pattern::Layout;
use xasm_bench::protocol::Request;
use xemem_host::{EndReason, Policy, Snapshot, Stream};

/// Name of the arena.
const ARENA: &str = "bench/storm";
/// Banks: one live, one published, one for each reader.
const BANKS: u32 = 4;
/// Newer generations that a kept snapshot has to outlive.
const OUTLIVED: u64 = 2 * BANKS as u64;
/// How long it is kept when no more come.
const KEPT: Duration = Duration::from_millis(500);
/// How long a reader may take to get the newest generation.
const PATIENCE: Duration = Duration::from_secs(20);

/// One storm.
struct Case {
    chunk_bytes: u64,
    chunk: &'static str,
    arena_mib: u64,
    /// Blocks rewritten before each publish.
    touched: u64,
}

/// Measures with both chunk sizes.
pub(super) fn measure(
    plan: &Plan,
    session: &Session,
    guest: &mut Guest,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let generations = plan.blocks(1000, 200) as u64;
    for case in [
        Case {
            chunk_bytes: MIB2,
            chunk: "2M",
            arena_mib: 16,
            touched: 2,
        },
        Case {
            chunk_bytes: KIB4,
            chunk: "4K",
            arena_mib: 8,
            touched: 48,
        },
    ] {
        let bytes = case.arena_mib * MIB;
        guest.make(ARENA, bytes, case.chunk_bytes, BANKS)?;
        let (newer, newest) = mpsc::channel();
        let readers = [
            Reader::start(session, Policy::Latest, Role::Keeps(newest)),
            Reader::start(session, Policy::Every, Role::Tells(newer)),
        ];
        let produced = Produced::by(guest, &readers, generations, case.touched);
        // Ends the streams, whether all went well or not.
        guest.end(ARENA)?;
        let seen = readers.map(Reader::finish);
        let produced = produced?;
        ensure!(
            produced.generations == generations,
            "{} generations were published, not {generations}",
            produced.generations
        );
        judge(&case, &produced, seen, figures)?;
    }
    Ok(())
}

fn judge(
    case: &Case,
    produced: &Produced,
    seen: [anyhow::Result<Seen>; 2],
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let name = |what: &str| format!("storm, {what}, chunks {}", case.chunk);
    let exact = |name, value: u64, want: u64| {
        Figure::reported(name, value as f64, "count").bounded(Bound::Exactly(want as f64))
    };
    let refused = name("refusals counted by the arena");
    figures.add(
        exact(refused, produced.dropped, produced.refused)
            .detail("refused", produced.refused)
            .detail("generations", produced.generations)
            .detail("copy_on_write_faults", produced.cow_faults),
    );
    for (policy, seen) in ["latest", "every"].into_iter().zip(seen) {
        let seen = seen.with_context(|| format!("reader with policy {policy}"))?;
        let torn = name(&format!("torn, policy {policy}"));
        let mut torn = exact(torn, seen.torn, 0)
            .detail("checked", seen.snapshots)
            .detail("outlived", seen.outlived);
        if let Some(first) = seen.first_torn {
            torn = torn.detail("first", first);
        }
        figures.add(torn);
        ensure!(
            policy == "every" || seen.outlived > 0,
            "no snapshot was kept over {OUTLIVED} newer ones: nothing was tried"
        );
        let accounted = name(&format!("seen + missed, policy {policy}"));
        figures.add(
            exact(
                accounted,
                seen.snapshots + seen.missed,
                produced.generations,
            )
            .detail("seen", seen.snapshots)
            .detail("missed", seen.missed),
        );
    }
    Ok(())
}

/// What the producer did, and what its arena counted.
struct Produced {
    generations: u64,
    refused: u64,
    cow_faults: u64,
    dropped: u64,
}

impl Produced {
    /// One generation that both readers see first, then the storm, then its
    /// last generation: seen and missed add up to all of them only if both
    /// ends are seen.
    fn by(
        guest: &mut Guest,
        readers: &[Reader; 2],
        generations: u64,
        touched: u64,
    ) -> anyhow::Result<Self> {
        let all_at_least = |generation| {
            let mut all = readers.iter();
            all.try_for_each(|reader| reader.wait_for(generation))
        };
        let mut storm = |generations| {
            let name = ARENA.to_owned();
            guest.counts::<4>(&Request::Storm {
                name,
                generations,
                touched,
            })
        };
        all_at_least(0)?;
        let [first, refused_first, ..] = storm(1)?;
        all_at_least(1)?;
        let [rest, refused, cow_faults, dropped] = storm(generations - 1)?;
        all_at_least(generations)?;
        Ok(Self {
            generations: first + rest,
            refused: refused_first + refused,
            cow_faults,
            dropped,
        })
    }
}

/// What a reader saw.
#[derive(Debug, Default)]
struct Seen {
    snapshots: u64,
    missed: u64,
    torn: u64,
    /// Snapshots that were right after [`OUTLIVED`] newer ones, or torn then.
    outlived: u64,
    first_torn: Option<String>,
}

/// What a reader does besides checking.
enum Role {
    /// Keeps each snapshot until this has told of enough newer ones.
    Keeps(Receiver<u64>),
    /// Tells which generation it saw.
    Tells(Sender<u64>),
}

/// A reader in a thread of its own.
struct Reader {
    thread: JoinHandle<anyhow::Result<Seen>>,
    /// Generations as they are seen, 0 once attached.
    progress: Receiver<u64>,
}

impl Reader {
    fn start(session: &Session, policy: Policy, role: Role) -> Self {
        let socket = session.socket();
        let (sender, progress) = mpsc::channel();
        let thread = std::thread::spawn(move || follow(&socket, policy, &role, &sender));
        Self { thread, progress }
    }

    fn wait_for(&self, generation: u64) -> anyhow::Result<()> {
        loop {
            let seen = self.progress.recv_timeout(PATIENCE);
            if seen.with_context(|| format!("no reader of generation {generation}"))? >= generation
            {
                return Ok(());
            }
        }
    }

    fn finish(self) -> anyhow::Result<Seen> {
        drop(self.progress);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow!("a reader panicked"))?
    }
}

/// Checks every snapshot until the arena ends.
fn follow(
    socket: &Path,
    policy: Policy,
    role: &Role,
    progress: &Sender<u64>,
) -> anyhow::Result<Seen> {
    let mut stream = Stream::attach(socket, ARENA, policy, PATIENCE)?;
    let geometry = *stream.geometry();
    let layout = Layout::new(geometry.size_bytes, geometry.chunk_bytes);
    let layout = layout.context("the arena is too small for the pattern")?;
    let mut seen = Seen::default();
    let mut last = 0;
    // Nobody may be listening any more; the arena's end is what ends us.
    let _ = progress.send(0);
    while let Some(snapshot) = stream.next(Some(PATIENCE))? {
        let generation = snapshot.generation();
        ensure!(
            generation > last,
            "generation {generation} came after {last}"
        );
        last = generation;
        let _ = progress.send(generation);
        seen.check(&layout, &snapshot);
        match role {
            Role::Keeps(newest) if wait_for_newer(newest, generation + OUTLIVED) => {
                seen.check(&layout, &snapshot);
                seen.outlived += 1;
            }
            Role::Keeps(_) => {}
            // The other reader may have failed: its own report says so.
            Role::Tells(newer) => drop(newer.send(generation)),
        }
        seen.snapshots += 1;
    }
    let reason = stream.end_reason();
    ensure!(
        reason == Some(EndReason::ClosedByProgram),
        "the arena ended for another reason: {reason:?}"
    );
    seen.missed = stream.missed();
    Ok(seen)
}

/// Whether the other reader tells of `wanted` or later before [`KEPT`] is over.
fn wait_for_newer(newest: &Receiver<u64>, wanted: u64) -> bool {
    let start = Instant::now();
    loop {
        match newest.recv_timeout(KEPT.saturating_sub(start.elapsed())) {
            Ok(generation) if generation >= wanted => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

impl Seen {
    /// Checks a snapshot, contents and frames.
    fn check(&mut self, layout: &Layout, snapshot: &Snapshot<'_>) {
        let step = snapshot.step();
        let checked = layout.check(snapshot.as_slice(), step);
        let is_valid = snapshot.valid();
        if checked.is_err() || !is_valid {
            self.torn += 1;
            let generation = snapshot.generation();
            let what =
                || format!("generation {generation}, step {step}: {checked:?}, valid {is_valid}");
            self.first_torn.get_or_insert_with(what);
        }
    }
}
