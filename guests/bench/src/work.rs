//! The work itself: arenas by name, and what is timed on them.
//!
//! Called by `main` for each request. Only the stated operation lies between
//! two looks at the clock.

use crate::detours;
use crate::imports::Imports;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};
use xasm::{Arena, Chunk, Errno, Options, QueueFull, publish_set};
use xasm_bench::pattern::Layout;
use xasm_bench::protocol::{Full, Request};

/// How long a storm is refused before it gives up: by time, because a reader's
/// lease lasts as long on a fast machine as on a slow one.
const REFUSED_FOR_LONG: Duration = Duration::from_secs(20);

/// An arena and what is known of it.
struct Named {
    arena: Arena,
    chunk_bytes: u64,
    banks: u32,
    /// Steps published or refused.
    step: u64,
    /// Value of the last rewrite.
    filling: u64,
}

/// Everything that lives between two requests.
#[derive(Default)]
pub(crate) struct Work {
    arenas: BTreeMap<String, Named>,
    imports: Imports,
    /// Target of copies, as long as the largest arena copied.
    copy: Vec<u64>,
}

impl Work {
    /// Does what is asked and returns its numbers.
    pub(crate) fn serve(&mut self, request: &Request) -> Result<Vec<u64>, String> {
        match request {
            Request::Make {
                name,
                bytes,
                chunk_bytes,
                banks,
                full,
                retain,
            } => {
                let queue_full = match *full {
                    Full::Newest => QueueFull::DiscardNewest,
                    Full::Oldest => QueueFull::DiscardOldest,
                    Full::Block(timeout_ms) => QueueFull::Block { timeout_ms },
                };
                let options = Options {
                    banks: *banks,
                    queue_full,
                    retain: *retain,
                    ..Options::default()
                };
                self.make(name, *bytes, *chunk_bytes, options)
            }
            Request::Step { name } => self.named(name)?.publish_step(),
            Request::StepSet { names, step } => self.step_set(names, *step),
            Request::WaitReaders {
                name,
                readers,
                timeout_ms,
            } => {
                let attached = self.named(name)?.arena.wait_readers(*readers, *timeout_ms);
                let attached = attached.map_err(|errno| format!("wait for readers: {errno}"))?;
                Ok(vec![attached.into()])
            }
            Request::Stats { name } => {
                let stats = self.named(name)?.arena.stats().map_err(text)?;
                Ok(vec![
                    stats.generation,
                    stats.dropped,
                    stats.discarded,
                    stats.waited,
                ])
            }
            Request::End { name } => {
                self.copy = Vec::new();
                self.arenas
                    .remove(name)
                    .map(|_| Vec::new())
                    .ok_or_else(|| unknown(name))
            }
            Request::Warm { name } => self.named(name)?.warm(),
            Request::Publish { name, count, dirty } => self.named(name)?.publish(*count, *dirty),
            Request::RewriteAfterPublish { name } => self.named(name)?.rewrite_after_publish(),
            Request::RewriteAndCopy { name } => self.rewrite_and_copy(name),
            Request::GetPid { count } => Ok(vec![get_pid(*count)]),
            Request::Detours { ms } => Ok(detours::count(*ms).to_vec()),
            Request::Storm {
                name,
                generations,
                touched,
            } => self.named(name)?.storm(*generations, *touched),
            Request::Rally {
                name,
                other,
                first,
                rounds,
                timeout_ms,
            } => {
                let timeout = Duration::from_millis((*timeout_ms).into());
                self.rally(name, other, (*first, *rounds), timeout)
            }
            other => self.imports.serve(other),
        }
    }

    fn rally(
        &mut self,
        name: &str,
        other: &str,
        (first, rounds): (bool, u64),
        timeout: Duration,
    ) -> Result<Vec<u64>, String> {
        let own = self.arenas.get_mut(name).ok_or_else(|| unknown(name))?;
        let other = self.imports.named(other)?;
        let (mut heard, mut wakes) = (0, 0);
        for round in 0..rounds {
            while heard < round + u64::from(!first) {
                let newest = other.wait(heard, Some(timeout));
                heard = newest.map_err(|errno| format!("wait in round {round}: {errno}"))?;
                wakes += 1;
            }
            own.next_publish()?;
        }
        Ok(vec![rounds, wakes])
    }

    fn step_set(&mut self, names: &[String], step: u64) -> Result<Vec<u64>, String> {
        let mut set: Vec<&mut Arena> = Vec::new();
        for (name, named) in &mut self.arenas {
            if names.contains(name) {
                let word = named.arena.slice_mut::<u64>(0, 1);
                word.map_err(text)?.fill(step);
                set.push(&mut named.arena);
            }
        }
        if set.len() != names.len() {
            return Err(unknown(&names.join(",")));
        }
        let published = publish_set(&mut set, step, 0.0);
        published.map_err(|errno| format!("publish step {step} of a set: {errno}"))?;
        Ok(vec![step])
    }

    fn named(&mut self, name: &str) -> Result<&mut Named, String> {
        self.arenas.get_mut(name).ok_or_else(|| unknown(name))
    }

    fn make(
        &mut self,
        name: &str,
        bytes: u64,
        chunk_bytes: u64,
        options: Options,
    ) -> Result<Vec<u64>, String> {
        let chunk = Chunk::from_bytes(chunk_bytes);
        let chunk = chunk.ok_or_else(|| format!("no chunks of {chunk_bytes} bytes"))?;
        let (banks, options) = (options.banks, Options { chunk, ..options });
        let failed = |errno: Errno| format!("make arena {name} of {bytes} bytes: {errno}");
        let arena = Arena::create(name, bytes, options).map_err(failed)?;
        let backing = arena.stats().map_err(failed)?.backing_page_bytes;
        let named = Named {
            arena,
            chunk_bytes,
            banks,
            step: 0,
            filling: 0,
        };
        self.arenas.insert(name.to_owned(), named);
        Ok(vec![backing])
    }

    fn rewrite_and_copy(&mut self, name: &str) -> Result<Vec<u64>, String> {
        let Self { arenas, copy, .. } = self;
        let named = arenas.get_mut(name).ok_or_else(|| unknown(name))?;
        let writing = named.rewrite()?;
        let content = named.arena.get(whole(&named.arena)?).map_err(text)?;
        if copy.len() < content.len() {
            // Written, not only reserved: its first touch must not be timed.
            copy.resize(content.len(), 1);
        }
        let target = copy.get_mut(..content.len()).unwrap_or_default();
        let start = Instant::now();
        target.copy_from_slice(content);
        black_box(target);
        Ok(vec![writing, nanoseconds(start)])
    }
}

impl Named {
    fn warm(&mut self) -> Result<Vec<u64>, String> {
        for _ in 0..=self.banks {
            self.rewrite()?;
            self.next_publish()?;
        }
        self.rewrite().map(|_| Vec::new())
    }

    fn publish_step(&mut self) -> Result<Vec<u64>, String> {
        let word = self.arena.slice_mut::<u64>(0, 1);
        word.map_err(text)?.fill(self.step + 1);
        self.next_publish().map(|generation| vec![generation])
    }

    fn next_publish(&mut self) -> Result<u64, String> {
        self.step += 1;
        let published = self.arena.publish(self.step, 0.0);
        published.map_err(|errno| format!("publish step {}: {errno}", self.step))
    }

    fn publish(&mut self, count: u64, dirty: u64) -> Result<Vec<u64>, String> {
        let chunks = self.arena.size_bytes() / self.chunk_bytes;
        if dirty > chunks {
            return Err(format!("{dirty} chunks are more than the arena's {chunks}"));
        }
        let mut times = Vec::new();
        for _ in 0..count {
            for n in 0..dirty {
                let chunk = n * chunks / dirty;
                let word = self.arena.slice_mut::<u64>(chunk * self.chunk_bytes, 1);
                word.map_err(text)?.fill(self.step);
            }
            let start = Instant::now();
            self.next_publish()?;
            times.push(nanoseconds(start));
        }
        Ok(times)
    }

    /// Writes every word; returns the nanoseconds.
    fn rewrite(&mut self) -> Result<u64, String> {
        self.filling += 1;
        let filling = self.filling;
        let content = whole(&self.arena).and_then(|all| self.arena.get_mut(all).map_err(text))?;
        let start = Instant::now();
        content.fill(filling);
        black_box(content);
        Ok(nanoseconds(start))
    }

    fn rewrite_after_publish(&mut self) -> Result<Vec<u64>, String> {
        self.next_publish()?;
        Ok(vec![self.rewrite()?])
    }

    fn storm(&mut self, generations: u64, touched: u64) -> Result<Vec<u64>, String> {
        let layout = Layout::new(self.arena.size_bytes(), self.chunk_bytes);
        let layout = layout.ok_or("the arena is too small for the pattern")?;
        let (mut published, mut refused) = (0, 0);
        let mut refused_since = None;
        while published < generations {
            let words = whole(&self.arena).and_then(|all| self.arena.get_mut(all).map_err(text))?;
            layout.write(words, self.step, touched);
            match self.arena.publish(self.step, 0.0) {
                Ok(_) => {
                    published += 1;
                    refused_since = None;
                }
                Err(Errno::EAGAIN) => {
                    refused += 1;
                    let since: &mut Instant = refused_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > REFUSED_FOR_LONG {
                        return Err(format!(
                            "{refused} publishes were refused, {published} were not"
                        ));
                    }
                }
                Err(errno) => return Err(format!("publish step {}: {errno}", self.step)),
            }
            self.step += 1;
        }
        let stats = self.arena.stats().map_err(text)?;
        Ok(vec![published, refused, stats.cow_faults, stats.dropped])
    }
}

/// All words of an arena.
fn whole(arena: &Arena) -> Result<xasm::array::Array<u64>, String> {
    let words = usize::try_from(arena.size_bytes() / 8).map_err(|error| error.to_string())?;
    Ok(xasm::array::Array::at(0, words))
}

/// Calls getpid by the instruction itself; returns the nanoseconds.
fn get_pid(count: u64) -> u64 {
    let start = Instant::now();
    for _ in 0..count {
        let _ = black_box(xasm::calls::process_id());
    }
    nanoseconds(start)
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn unknown(name: &str) -> String {
    format!("no arena {name}")
}

fn text(errno: Errno) -> String {
    errno.to_string()
}
