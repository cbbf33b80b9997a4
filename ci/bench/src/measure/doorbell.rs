//! From a publish in the enclave to a reader on Linux that was blocked, against
//! a bare eventfd that one thread writes and another was blocked on, on the same
//! two cores.
//!
//! The way of a doorbell: a store of the kernel, KVM's ioeventfd, which is the
//! readers' bell. Times are differences of time stamp counters, which
//! the enclave and Linux share where the host gives guests no offset; elsewhere
//! nothing is measured.

use super::{KIB4, MIB, Plan, promised, tries};
use crate::figures::{Bound, Figure, Figures};
use crate::guest::Guest;
use crate::raw::cycles;
use crate::session::Session;
use crate::stats::{Pair, median};
use anyhow::{Context as _, anyhow};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;
use xasm_bench::protocol::Request;
use xemem_host::{Policy, Stream};

/// Name of the arena.
const ARENA: &str = "bench/doorbell";
/// How long anything may take to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Cycles that the writer of a bare eventfd lets pass, so that its reader is
/// blocked.
const PAUSE: u64 = 1_000_000;
/// No doorbell takes so many cycles: the clocks are not the same.
const ABSURD: u64 = 10_000_000_000;

/// Measures where there are two cores and one clock.
pub(super) fn measure(
    plan: &Plan,
    session: &Session,
    guest: &mut Guest,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let Some(writer) = Writer::start()? else {
        eprintln!("    doorbell: one core only, nothing to compare");
        return Ok(());
    };
    guest.make(ARENA, MIB, KIB4, 4)?;
    let mut stream = Stream::attach(&session.socket(), ARENA, Policy::Latest, PATIENCE)?;
    settle(guest, &mut stream)?;
    let found = tries(|| {
        let mut times = Pair::default();
        for block in 0..=plan.blocks(400, 40) {
            let Some(ours) = ring(guest, &mut stream)? else {
                eprintln!("    doorbell: guests have a clock of their own here");
                return Ok(Vec::new());
            };
            let theirs = writer.wake()?;
            if block > 0 {
                times.first.push(ours);
                times.second.push(theirs);
            }
        }
        let figure = Figure::reported(
            "publish to blocked reader / eventfd wake",
            times.ratio()?,
            "ratio",
        );
        let figure = figure
            .detail("doorbell_cycles", median(&times.first))
            .detail("eventfd_cycles", median(&times.second))
            .detail("ratio_of_minima", times.ratio_of_minima());
        Ok(vec![promised(
            figure,
            Bound::AtMost(1.3),
            Bound::AtMost(2.0),
        )])
    })?;
    found.into_iter().for_each(|figure| figures.add(figure));
    drop(stream);
    guest.end(ARENA)
}

/// Publishes until the exporter has fetched the readers' bell, and the broker has
/// said so: what wakes from then on is the next publish.
fn settle(guest: &mut Guest, stream: &mut Stream) -> anyhow::Result<()> {
    for _ in 0..2 {
        let _ = stream.notify_fd();
        guest.tell(&publish())?;
        guest.answer()?;
        stream.next(Some(PATIENCE))?.context("the arena ended")?;
    }
    Ok(())
}

fn publish() -> Request {
    let (name, count, dirty) = (ARENA.to_owned(), 1, 1);
    Request::Publish { name, count, dirty }
}

/// One publish, waited for; cycles from it to us. None if the clocks differ.
fn ring(guest: &mut Guest, stream: &mut Stream) -> anyhow::Result<Option<f64>> {
    // The request takes longer to arrive than we to be blocked.
    guest.tell(&publish())?;
    wait(stream.notify_fd())?;
    let now = cycles();
    let snapshot = stream.next(Some(PATIENCE))?.context("the arena ended")?;
    let took = now.wrapping_sub(snapshot.record().publish_tsc);
    drop(snapshot);
    guest.answer()?;
    Ok((took < ABSURD).then_some(took as f64))
}

fn wait(fd: impl AsFd) -> anyhow::Result<()> {
    let timeout = Timespec::try_from(PATIENCE).context("a timeout")?;
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&timeout)).context("wait for an eventfd")?;
    anyhow::ensure!(ready == 1, "nothing came within {PATIENCE:?}");
    Ok(())
}

/// A thread on another core than ours that writes an eventfd when told to.
struct Writer {
    event: Arc<OwnedFd>,
    go: Option<Sender<()>>,
    wrote: Receiver<u64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// None with one core.
    fn start() -> anyhow::Result<Option<Self>> {
        let Some(cores) = others()? else {
            return Ok(None);
        };
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).context("an eventfd")?);
        let (go, told) = mpsc::channel::<()>();
        let (tell, wrote) = mpsc::channel();
        let to = Arc::clone(&event);
        let thread = std::thread::spawn(move || {
            // Without it the figure is that of one core: too good, not wrong.
            let _ = sched_setaffinity(None, &cores);
            while told.recv().is_ok() {
                let start = cycles();
                while cycles().wrapping_sub(start) < PAUSE {
                    std::hint::spin_loop();
                }
                let now = cycles();
                if rustix::io::write(&*to, &1_u64.to_ne_bytes()).is_err() || tell.send(now).is_err()
                {
                    return;
                }
            }
        });
        Ok(Some(Self {
            event,
            go: Some(go),
            wrote,
            thread: Some(thread),
        }))
    }

    /// Cycles from its write to us, who were blocked.
    fn wake(&self) -> anyhow::Result<f64> {
        let gone = || anyhow!("the writer of the eventfd is gone");
        let go = self.go.as_ref().ok_or_else(gone)?;
        go.send(()).map_err(|_| gone())?;
        wait(&*self.event)?;
        let now = cycles();
        rustix::io::read(&*self.event, &mut [0_u8; 8]).context("read an eventfd")?;
        let wrote = self.wrote.recv_timeout(PATIENCE).map_err(|_| gone())?;
        Ok(now.wrapping_sub(wrote) as f64)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.go = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The cores that this process keeps off: those of the enclave.
fn others() -> anyhow::Result<Option<CpuSet>> {
    let ours = sched_getaffinity(None).context("our cores")?;
    let mut others = CpuSet::new();
    let nr_cores = std::fs::read_to_string("/proc/stat").context("the host's cores")?;
    let nr_cores = nr_cores.lines().filter(|line| line.starts_with("cpu"));
    for core in 0..nr_cores.count().saturating_sub(1).min(CpuSet::MAX_CPU) {
        if !ours.is_set(core) {
            others.set(core);
        }
    }
    Ok((others.count() > 0).then_some(others))
}
