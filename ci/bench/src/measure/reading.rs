//! What a reader pays, against what Linux alone would cost: attaching in one
//! piece against the same `mmap`, following against attaching anew, reading an
//! attached snapshot against private memory in huge pages.
//!
//! Each way ends with a read of one word of every host page, so that the page
//! tables are part of all of them.

use super::{KIB4, MIB, MIB2, Plan, promised, tries};
use crate::figures::{Bound, Figure, Figures};
use crate::guest::Guest;
use crate::raw::Mapping;
use crate::session::Session;
use crate::stats::{Pair, median};
use anyhow::{Context as _, ensure};
use std::hint::black_box;
use std::time::{Duration, Instant};
use xasm_bench::protocol::Request;
use xemem_host::client::Attachment;
use xemem_host::snapshot::ArenaReader;
use xemem_host::{Broker, Policy, Role, Stream};

/// Name of the arena.
const ARENA: &str = "bench/reading";
/// Its size.
const SIZE_MIB: u64 = 256;
/// One chunk in so many changes.
const CHANGED: u64 = 20;
/// How long a generation may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures with both chunk sizes; large chunks are bounded.
pub(super) fn measure(
    plan: &Plan,
    session: &Session,
    guest: &mut Guest,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    for (chunk_bytes, chunk) in [(MIB2, "2M"), (KIB4, "4K")] {
        let page_bytes = guest.make_warm(ARENA, SIZE_MIB * MIB, chunk_bytes, 2)?;
        publish(guest, 0)?;
        let arena = Arena {
            session,
            attachment: attached(session)?,
            page_bytes: usize::try_from(page_bytes)?,
            dirty: SIZE_MIB * MIB / chunk_bytes / CHANGED,
            chunk,
            is_bounded: chunk_bytes == MIB2,
        };
        let blocks = plan.blocks(31, 5);
        let found = tries(|| arena.mapping(blocks))?;
        found.into_iter().for_each(|figure| figures.add(figure));
        let found = tries(|| arena.bandwidth(plan.blocks(15, 3)))?;
        found.into_iter().for_each(|figure| figures.add(figure));
        for layout in [Layout::FewPieces, Layout::Scattered] {
            if layout == Layout::Scattered {
                if chunk_bytes == KIB4 {
                    // More pieces than Linux lets a process map.
                    continue;
                }
                // Every second chunk moves to the other bank.
                publish(guest, SIZE_MIB * MIB / chunk_bytes / 2)?;
            }
            let found = tries(|| arena.following(guest, layout, plan.blocks(15, 3)))?;
            found.into_iter().for_each(|figure| figures.add(figure));
        }
        drop(arena);
        guest.end(ARENA)?;
    }
    Ok(())
}

fn publish(guest: &mut Guest, dirty: u64) -> anyhow::Result<()> {
    let (name, count) = (ARENA.to_owned(), 1);
    let times = guest.times::<1>(&Request::Publish { name, count, dirty });
    times.map(drop)
}

/// The object itself, to map without a snapshot.
fn attached(session: &Session) -> anyhow::Result<Attachment> {
    let mut broker = Broker::connect_as(&session.socket(), Role::Consumer)?;
    let segid = broker.lookup(ARENA, None)?;
    let apid = broker.get(segid)?;
    Ok(broker.attach(apid, Policy::Latest)?)
}

/// How the chunks of a generation lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// In one bank, but for those that changed: few system calls map them all.
    FewPieces,
    /// Each in another bank than its neighbours.
    Scattered,
}

/// The measured arena.
struct Arena<'a> {
    session: &'a Session,
    attachment: Attachment,
    page_bytes: usize,
    dirty: u64,
    chunk: &'static str,
    is_bounded: bool,
}

impl Arena<'_> {
    fn figure(&self, what: &str, value: f64) -> Figure {
        let name = format!("{what}, {SIZE_MIB}M, chunks {}", self.chunk);
        Figure::reported(name, value, "ratio").detail("backing_page_bytes", self.page_bytes)
    }

    /// With the promise behind it, for large chunks.
    fn promised(&self, figure: Figure, promise: Bound, bound: Bound) -> Figure {
        if self.is_bounded {
            promised(figure, promise, bound)
        } else {
            figure
        }
    }

    /// The mapping of a generation in one piece, and that of its bank.
    fn mapping(&self, blocks: usize) -> anyhow::Result<Vec<Figure>> {
        let geometry = self.attachment.geometry;
        let offset = geometry.frame_offset(0, 0).context("bank 0")?;
        let bytes = usize::try_from(geometry.size_bytes)?;
        let mut times = Pair::default();
        for block in 0..=blocks {
            let memfd = self.attachment.memfd.try_clone().context("the object")?;
            let start = Instant::now();
            let mut reader = ArenaReader::with_geometry(memfd, geometry)?;
            let latest = reader.latest_generation()?;
            let snapshot = reader.snapshot(latest)?;
            touch(snapshot.as_slice(), self.page_bytes);
            let ours = nanoseconds(start);
            ensure!(
                snapshot.runs() == 1,
                "it lies in {} pieces",
                snapshot.runs()
            );
            drop(snapshot);
            drop(reader);

            let start = Instant::now();
            let raw = Mapping::shared(&self.attachment.memfd, offset, bytes)?;
            touch(raw.as_slice(), self.page_bytes);
            let theirs = nanoseconds(start);
            if block > 0 {
                times.first.push(ours);
                times.second.push(theirs);
            }
        }
        let figure = pair(
            self.figure("attach in one run / raw mmap", times.ratio()?),
            &times,
        );
        Ok(vec![self.promised(
            figure,
            Bound::AtMost(1.3),
            Bound::AtMost(1.6),
        )])
    }

    /// A generation with a twentieth changed: mapping what is new of it against
    /// mapping it whole, and both again with all that the broker is asked on
    /// the way, which for somebody new begins with a connection.
    fn following(
        &self,
        guest: &mut Guest,
        layout: Layout,
        blocks: usize,
    ) -> anyhow::Result<Vec<Figure>> {
        let socket = self.session.socket();
        let mut stream = Stream::attach(&socket, ARENA, Policy::Latest, Duration::ZERO)?;
        drop(stream.next(Some(PATIENCE))?);
        let mut mapped = self.reader()?;
        let mut times = Pair::default();
        let mut maps = Pair::default();
        let mut pieces = Vec::new();
        for block in 0..=blocks {
            publish(guest, self.dirty)?;
            let start = Instant::now();
            self.touch_latest(&mut mapped)?;
            let delta = nanoseconds(start);
            let start = Instant::now();
            self.touch_latest(&mut self.reader()?)?;
            let full = nanoseconds(start);

            let before = stream.map_counts().chunks_mapped;
            let start = Instant::now();
            let snapshot = stream.next(Some(PATIENCE))?.context("the arena ended")?;
            touch(snapshot.as_slice(), self.page_bytes);
            let next = nanoseconds(start);
            drop(snapshot);
            let chunks = stream.map_counts().chunks_mapped - before;
            ensure!(
                chunks == self.dirty,
                "{chunks} chunks were mapped, not {}",
                self.dirty
            );
            let start = Instant::now();
            let mut anew = Stream::attach(&socket, ARENA, Policy::Latest, Duration::ZERO)?;
            let snapshot = anew.next(Some(PATIENCE))?.context("the arena ended")?;
            touch(snapshot.as_slice(), self.page_bytes);
            let whole = nanoseconds(start);
            if block > 0 {
                times.first.push(next);
                times.second.push(whole);
                maps.first.push(delta);
                maps.second.push(full);
                pieces.push(snapshot.runs() as f64);
            }
        }
        let lies = match layout {
            Layout::FewPieces => "few pieces",
            Layout::Scattered => "scattered",
        };
        let told = |what: &str, times: &Pair| -> anyhow::Result<Figure> {
            let figure = self.figure(&format!("{what}, {lies}"), times.ratio()?);
            Ok(pair(figure, times)
                .detail("chunks_mapped", self.dirty)
                .detail("pieces", median(&pieces)))
        };
        let attach = told("delta attach of 5 % / full attach", &maps)?;
        Ok(vec![
            // In few pieces all of it is a few system calls: little to save.
            match layout {
                Layout::FewPieces => attach,
                Layout::Scattered => self.promised(attach, Bound::AtMost(0.15), Bound::AtMost(0.3)),
            },
            told("next after 5 % / attach anew", &times)?,
        ])
    }

    /// A reader that shows nothing yet.
    fn reader(&self) -> anyhow::Result<ArenaReader> {
        let memfd = self.attachment.memfd.try_clone().context("the object")?;
        Ok(ArenaReader::with_geometry(memfd, self.attachment.geometry)?)
    }

    /// Maps what `reader` has not of the newest generation, and reads all of it.
    fn touch_latest(&self, reader: &mut ArenaReader) -> anyhow::Result<()> {
        let latest = reader.latest_generation()?;
        touch(reader.snapshot(latest)?.as_slice(), self.page_bytes);
        Ok(())
    }

    /// The sum over an attached snapshot, and over private memory.
    fn bandwidth(&self, blocks: usize) -> anyhow::Result<Vec<Figure>> {
        let socket = self.session.socket();
        let mut stream = Stream::attach(&socket, ARENA, Policy::Latest, Duration::ZERO)?;
        let snapshot = stream.next(Some(PATIENCE))?.context("the arena ended")?;
        let attached = snapshot.as_slice();
        let private = Mapping::private(attached.len())?;
        let gigabytes = |start: Instant| attached.len() as f64 / nanoseconds(start);
        let mut speeds = Pair::default();
        for block in 0..=blocks {
            let start = Instant::now();
            black_box(sum(attached));
            let ours = gigabytes(start);
            let start = Instant::now();
            black_box(sum(private.as_slice()));
            let theirs = gigabytes(start);
            if block > 0 {
                speeds.first.push(ours);
                speeds.second.push(theirs);
            }
        }
        let figure = self
            .figure("read attached / private huge pages", speeds.ratio()?)
            .detail("attached_gb_per_s", median(&speeds.first))
            .detail("private_gb_per_s", median(&speeds.second))
            .detail("pieces", snapshot.runs());
        Ok(vec![self.promised(
            figure,
            Bound::AtLeast(0.95),
            Bound::AtLeast(0.8),
        )])
    }
}

/// Both medians of nanoseconds in microseconds.
fn pair(figure: Figure, times: &Pair) -> Figure {
    let us = |values: &[f64]| median(values).map(|ns| ns / 1e3);
    figure
        .detail("ours_us", us(&times.first))
        .detail("theirs_us", us(&times.second))
        .detail("ratio_of_minima", times.ratio_of_minima())
}

/// Reads one word of every page.
fn touch(bytes: &[u8], page_bytes: usize) {
    let words = bytes.iter().step_by(page_bytes);
    black_box(words.fold(0_u64, |sum, &byte| sum.wrapping_add(byte.into())));
}

/// The sum of all words.
fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_ne_bytes(*word));
    words.fold(0, u64::wrapping_add)
}

fn nanoseconds(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64
}
