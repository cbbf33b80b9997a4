//! A hundred thousand publishes with none, one and sixteen readers that hold
//! what they took and never come back.
//!
//! Exact: no publish is refused, the arena's memory is what it was, the
//! generations held are those of the readers and the newest, and what each
//! reader holds is what it took. The publishes of the arenas are timed in turn;
//! compared are their 99th percentiles. A second arena without readers tells how
//! much two of the same differ on this machine.

use super::{KIB4, MIB, Plan, promised, tries};
use crate::figures::{Bound, Figure, Figures};
use crate::guest::Guest;
use crate::session::Session;
use crate::stats::percentile;
use anyhow::{Context as _, ensure};
use std::collections::BTreeSet;
use std::time::Duration;
use xasm_bench::protocol::Request;
use xemem_host::{Broker, OwnedSnapshot, Policy, Role, Stream};

/// Name and readers of each arena; the others are compared with the first.
const CROWDS: [(&str, usize); 4] = [
    ("none", 0),
    ("none again", 0),
    ("1 stuck", 1),
    ("16 stuck", 16),
];
/// Banks of each arena.
const BANKS: u32 = 8;
/// Generations that the readers of one arena hold at most.
const MOST_HELD: usize = 5;
/// Publishes of a block.
const PER_BLOCK: u64 = 500;
/// Chunks written before each publish.
const DIRTY: u64 = 1;
/// How long anything may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures.
pub(super) fn measure(
    plan: &Plan,
    session: &Session,
    guest: &mut Guest,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut crowds = Vec::new();
    for (label, readers) in CROWDS {
        crowds.push(Crowd::gather(session, guest, label, readers)?);
    }
    let blocks = plan.blocks(200, 10) as u64;
    let found = tries(|| {
        // Block by block in turn, and whatever is new the first time.
        for block in 0..=blocks {
            for crowd in &mut crowds {
                let times = crowd.publish(guest)?;
                match block {
                    0 => crowd.times.clear(),
                    _ => crowd.times.extend(times),
                }
            }
        }
        figures_of(&crowds)
    })?;
    found.into_iter().for_each(|figure| figures.add(figure));
    for crowd in &mut crowds {
        for figure in crowd.exact(session, guest)? {
            figures.add(figure);
        }
    }
    for crowd in crowds {
        let name = crowd.name.clone();
        drop(crowd);
        guest.end(&name)?;
    }
    Ok(())
}

/// The percentiles against those of the arena that nobody reads.
fn figures_of(crowds: &[Crowd]) -> anyhow::Result<Vec<Figure>> {
    let us = |crowd: &Crowd, part| percentile(&crowd.times, part).map(|ns| ns / 1e3);
    let [free, stuck @ ..] = crowds else {
        return Ok(Vec::new());
    };
    let base = us(free, 0.99).context("nothing was published")?;
    let figure = |crowd: &Crowd| {
        let name = format!("publish p99, readers: {} / none", crowd.label);
        let p99 = us(crowd, 0.99).context("nothing was published")?;
        let figure = Figure::reported(name, p99 / base, "ratio")
            .detail("p99_us", p99)
            .detail("p99_free_us", base)
            .detail("median_us", us(crowd, 0.5))
            .detail("median_free_us", us(free, 0.5))
            .detail("publishes", crowd.times.len());
        let (promise, bound) = (Bound::AtMost(1.1), Bound::AtMost(2.0));
        Ok(match crowd.readers.len() {
            0 => figure,
            _ => promised(figure, promise, bound),
        })
    };
    stuck.iter().map(figure).collect()
}

/// One arena and its readers.
struct Crowd {
    label: &'static str,
    name: String,
    readers: Vec<(Stream, OwnedSnapshot)>,
    /// Allocated memory of the object when all had come.
    allocated: i64,
    /// Newest generation as far as we have asked for it.
    published: u64,
    times: Vec<f64>,
}

impl Crowd {
    /// Makes an arena and lets each reader take a generation, as many
    /// different ones as may be held.
    fn gather(
        session: &Session,
        guest: &mut Guest,
        label: &'static str,
        readers: usize,
    ) -> anyhow::Result<Self> {
        let name = format!("bench/stuck-{}", label.replace(' ', "-"));
        guest.make_warm(&name, MIB, KIB4, BANKS)?;
        let mut crowd = Self {
            published: latest(session, &name)?,
            label,
            name,
            readers: Vec::new(),
            allocated: 0,
            times: Vec::new(),
        };
        for reader in 0..readers {
            if reader < MOST_HELD {
                crowd.step(guest)?;
            }
            let name = &crowd.name;
            let mut stream =
                Stream::attach(&session.socket(), name, Policy::Latest, Duration::ZERO)?;
            let snapshot = stream.next_owned(Some(PATIENCE))?;
            let snapshot = snapshot.context("the arena ended")?;
            crowd.readers.push((stream, snapshot));
        }
        crowd.allocated = allocated(session, &crowd.name)?;
        Ok(crowd)
    }

    /// Publishes a block; nanoseconds of each.
    fn publish(&mut self, guest: &mut Guest) -> anyhow::Result<Vec<f64>> {
        let (name, count, dirty) = (self.name.clone(), PER_BLOCK, DIRTY);
        let times = guest.all_times(&Request::Publish { name, count, dirty })?;
        self.published += count;
        Ok(times)
    }

    /// Publishes a number in the first word.
    fn step(&mut self, guest: &mut Guest) -> anyhow::Result<()> {
        let name = self.name.clone();
        let [generation] = guest.counts(&Request::Step { name })?;
        self.published = generation;
        Ok(())
    }

    /// What must be exactly so.
    fn exact(&self, session: &Session, guest: &mut Guest) -> anyhow::Result<Vec<Figure>> {
        let name = self.name.clone();
        let [generation, dropped, discarded, waited] = guest.counts(&Request::Stats { name })?;
        ensure!(
            generation == self.published,
            "generation {generation} is out, {} were published",
            self.published
        );
        let held: BTreeSet<u64> = self
            .readers
            .iter()
            .map(|(_, s)| s.record().generation)
            .collect();
        let mut broker = Broker::connect_as(&session.socket(), Role::Consumer)?;
        let segid = broker.lookup(&self.name, None)?;
        let generations = broker.generations(segid)?.len();
        let grown = allocated(session, &self.name)? - self.allocated;
        let torn = self.readers.iter().filter(|(_, snapshot)| {
            // A step stores its own number.
            let word = snapshot
                .as_slice()
                .and_then(|bytes| bytes.first_chunk::<8>());
            let is_whole = word.is_some_and(|w| u64::from_ne_bytes(*w) == snapshot.record().step);
            !is_whole || !snapshot.valid()
        });
        let exact = |what: &str, value: f64, want: f64| {
            let name = format!("{what}, readers: {}", self.label);
            Figure::reported(name, value, "count").bounded(Bound::Exactly(want))
        };
        let lost = dropped + discarded + waited;
        Ok(vec![
            exact("publishes refused or delayed", lost as f64, 0.0).detail("publishes", generation),
            exact("memory grown", grown as f64, 0.0),
            exact(
                "generations held",
                generations as f64,
                held.len() as f64 + 1.0,
            ),
            exact("snapshots torn", torn.count() as f64, 0.0),
        ])
    }
}

/// Bytes that the host has allocated to the arena's object.
fn allocated(session: &Session, name: &str) -> anyhow::Result<i64> {
    let mut broker = Broker::connect_as(&session.socket(), Role::Consumer)?;
    let segid = broker.lookup(name, None)?;
    let apid = broker.get(segid)?;
    let attachment = broker.attach(apid, Policy::Latest)?;
    let stat = rustix::fs::fstat(&attachment.memfd).context("look at an arena")?;
    Ok(stat.st_blocks * 512)
}

/// The newest generation.
fn latest(session: &Session, name: &str) -> anyhow::Result<u64> {
    let mut broker = Broker::connect_as(&session.socket(), Role::Consumer)?;
    let segid = broker.lookup(name, None)?;
    Ok(broker.info(segid)?.latest_generation)
}
