//! Following one arena: lookup, get, attach, then lease after lease.

use super::ear::Ear;
use super::{Broker, ClientError};
use crate::snapshot::{
    ArenaReader, Diff, MapCounts, OwnedSnapshot, Pool, Snapshot, SnapshotError, Views,
};
use crate::wire::{ApId, EndReason, Generation, LeaseReply, Policy, Role, SegId, Want};
use enclave_abi::arena::{GenerationRecord, Geometry, VarDesc};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Rings for nothing that one wait takes without a pause, and how long that is
/// after each further one: an exporter may ring as often as it likes.
const IDLE_AT_ONCE: u32 = 4;
const PAUSE: Duration = Duration::from_millis(1);

/// A reader of one arena, on a connection of its own.
#[derive(Debug)]
pub struct Stream {
    link: Arc<Link>,
    /// The connection's socket, to see its end without the lock.
    hang_up: Arc<OwnedFd>,
    segid: SegId,
    reader: ArenaReader,
    /// For owned snapshots; the reader has its own.
    views: Arc<Views>,
    policy: Policy,
    ear: Ear,
    page_bytes: u32,
    /// Newest generation seen, 0 at first.
    last: u64,
    missed: u64,
    end_reason: Option<EndReason>,
}

impl Stream {
    /// Attaches the arena `name`, waiting up to `timeout` for a live one. If
    /// none came, one that has ended and is retained gives its last
    /// generation, then the end.
    ///
    /// # Errors
    /// No broker, no such name in time (ETIMEDOUT; ENOENT if `timeout` is 0),
    /// no permission (EACCES).
    pub fn attach(
        socket: &Path,
        name: &str,
        policy: Policy,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let mut broker = Broker::connect_as(socket, Role::Consumer)?;
        let segid = broker.lookup(name, Some(timeout))?;
        Self::over(broker, segid, policy)
    }

    /// As [`Stream::attach`], but never one that has ended and is retained.
    ///
    /// # Errors
    /// As [`Stream::attach`].
    pub fn attach_live(
        socket: &Path,
        name: &str,
        policy: Policy,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let mut broker = Broker::connect_as(socket, Role::Consumer)?;
        let segid = broker.lookup_live(name, Some(timeout))?;
        Self::over(broker, segid, policy)
    }

    /// Attaches the arena `segid` over a connection.
    ///
    /// # Errors
    /// No such segment, or no permission.
    pub fn over(mut broker: Broker, segid: SegId, policy: Policy) -> Result<Self, ClientError> {
        let apid = broker.get(segid)?;
        let attachment = broker.attach(apid, policy)?;
        let reader = ArenaReader::with_geometry(attachment.memfd, attachment.geometry)?;
        let hang_up = Arc::clone(&broker.connection.socket);
        Ok(Self {
            link: Arc::new(Link {
                state: Mutex::new(State {
                    broker,
                    held: BTreeMap::new(),
                }),
                apid,
                pid: std::process::id(),
            }),
            hang_up,
            segid,
            views: Views::of(&reader),
            reader,
            policy,
            ear: Ear::new(attachment.notify),
            page_bytes: attachment.page_bytes,
            last: 0,
            missed: 0,
            end_reason: None,
        })
    }

    /// The next generation by this stream's policy; `None` at the end of the
    /// stream. Waits up to `timeout`, for ever if `None`.
    ///
    /// The next generation takes the place of the one before, so a snapshot
    /// has to go first:
    ///
    /// ```compile_fail,E0499
    /// # fn two(stream: &mut xemem_host::Stream) -> Option<u64> {
    /// let first = stream.next(None).ok()??;
    /// let second = stream.next(None).ok()??;
    /// Some(first.generation() + second.generation())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Timeout`]; [`ClientError::BrokerGone`]; the generation
    /// cannot be read.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Snapshot<'_>>, ClientError> {
        while let Some((generation, record)) = self.wait_for_lease(timeout)? {
            self.count(generation);
            match self.map(generation, record) {
                Ok(record) => return Ok(Some(self.snapshot(record))),
                Err(error) => self.pass_over(error)?,
            }
        }
        Ok(None)
    }

    /// Generation `generation`, whatever was read before; the stream goes on
    /// where it was.
    ///
    /// # Errors
    /// ENOENT if it is not published yet, or not kept any more;
    /// [`ClientError::BrokerGone`]; the generation cannot be read.
    pub fn at(&mut self, generation: u64) -> Result<Snapshot<'_>, ClientError> {
        match self.link.lease(Want::Exactly(generation))? {
            LeaseReply::Granted { record, .. } => {
                let record = self.map(generation, record)?;
                Ok(self.snapshot(record))
            }
            _ => Err(ClientError::Answer),
        }
    }

    /// Maps a generation that was leased; gives it back if that fails.
    fn map(
        &mut self,
        generation: u64,
        record: GenerationRecord,
    ) -> Result<GenerationRecord, ClientError> {
        let mapped = whole_record(&self.reader, generation, record).and_then(|record| {
            self.reader.show(&record)?;
            Ok(record)
        });
        if mapped.is_err() {
            self.link.release(generation);
        }
        mapped
    }

    /// What [`Stream::map`] has mapped.
    fn snapshot(&self, record: GenerationRecord) -> Snapshot<'_> {
        let held = Held {
            link: &*self.link,
            generation: record.generation,
        };
        Snapshot::new(&self.reader, record, Some(held))
    }

    /// Goes on after a generation that was taken away from us between the lease
    /// and the mapping, as its exporter's policy may have it; any other error
    /// is one.
    fn pass_over(&mut self, error: ClientError) -> Result<(), ClientError> {
        match error {
            ClientError::Snapshot(SnapshotError::NoFrame { .. } | SnapshotError::NoRecord(_)) => {
                self.missed = self.missed.saturating_add(1);
                Ok(())
            }
            other => Err(other),
        }
    }

    /// The generations that [`Stream::at`] would find now, ascending.
    ///
    /// # Errors
    /// [`ClientError::BrokerGone`].
    pub fn generations(&self) -> Result<Vec<Generation>, ClientError> {
        self.link.state().broker.generations(self.segid)
    }

    /// How much of the arena's banks was used until now.
    ///
    /// # Errors
    /// The arena is not set up yet.
    pub fn pool(&self) -> Result<Pool, ClientError> {
        Ok(self.reader.pool()?)
    }

    /// What changed between two generations; see [`ArenaReader::diff`].
    ///
    /// # Errors
    /// There are no such generations, or what changed is not known any more.
    pub fn diff(&self, a: u64, b: u64) -> Result<Diff, ClientError> {
        Ok(self.reader.diff(a, b)?)
    }

    /// As [`Stream::next`], but the snapshot stays when the next one comes:
    /// for readers in other languages. It costs an address range of its own
    /// and, until it is dropped or detached, a bank of the arena: who keeps
    /// many makes the exporter drop snapshots.
    ///
    /// # Errors
    /// As [`Stream::next`].
    pub fn next_owned(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<Option<OwnedSnapshot>, ClientError> {
        while let Some((generation, record)) = self.wait_for_lease(timeout)? {
            self.count(generation);
            match self.own(generation, record) {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(error) => self.pass_over(error)?,
            }
        }
        Ok(None)
    }

    /// As [`Stream::at`], but the snapshot stays when the next one comes.
    ///
    /// # Errors
    /// As [`Stream::at`].
    pub fn at_owned(&mut self, generation: u64) -> Result<OwnedSnapshot, ClientError> {
        match self.link.lease(Want::Exactly(generation))? {
            LeaseReply::Granted { record, .. } => self.own(generation, record),
            _ => Err(ClientError::Answer),
        }
    }

    fn own(&self, generation: u64, record: GenerationRecord) -> Result<OwnedSnapshot, ClientError> {
        let held = Held {
            link: Arc::clone(&self.link),
            generation,
        };
        let record = whole_record(&self.reader, generation, record)?;
        Ok(OwnedSnapshot::new(&self.views, record, held)?)
    }

    /// Notes which generation came, and how many did not.
    fn count(&mut self, generation: u64) {
        if self.last != 0 {
            let gap = generation.saturating_sub(self.last).saturating_sub(1);
            self.missed = self.missed.saturating_add(gap);
        }
        self.last = self.last.max(generation);
    }

    /// Generations published since the first one seen that this reader never
    /// got.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Why the stream ended, if it did.
    #[must_use]
    pub fn end_reason(&self) -> Option<EndReason> {
        self.end_reason
    }

    /// Where everything in the arena is.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        self.reader.geometry()
    }

    /// The segment.
    #[must_use]
    pub fn segid(&self) -> SegId {
        self.segid
    }

    /// Bytes of a host page behind the arena.
    #[must_use]
    pub fn page_bytes(&self) -> u32 {
        self.page_bytes
    }

    /// The variables whose descriptions are right.
    #[must_use]
    pub fn variables(&self) -> Vec<VarDesc> {
        self.reader.variables()
    }

    /// Mappings made so far.
    #[must_use]
    pub fn mappings_made(&self) -> u64 {
        self.reader.mappings_made()
    }

    /// What mapping the snapshots has cost so far.
    #[must_use]
    pub fn map_counts(&self) -> MapCounts {
        self.reader.map_counts().plus(self.views.counts())
    }

    /// Readable when it may be worth calling [`Stream::next`]: for event loops. It
    /// is to be waited at, not to be read.
    #[must_use]
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        // Who wants each generation waits until the broker has leased it.
        let wants = self.policy == Policy::Latest;
        self.ear.at(|| wants.then(|| self.link.bell()).flatten())
    }

    fn wait_for_lease(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<Option<(u64, GenerationRecord)>, ClientError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut nr_idle = 0;
        loop {
            // Cleared before asking: what comes after shows in the eventfd.
            self.ear.clear()?;
            match self.link.lease(Want::After(self.last))? {
                LeaseReply::Granted { generation, record } => {
                    return Ok(Some((generation, record)));
                }
                LeaseReply::Ended(reason) => {
                    self.end_reason = Some(reason);
                    return Ok(None);
                }
                LeaseReply::None => {
                    // A bell that never stops would keep the wait from being over.
                    if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                        return Err(ClientError::Timeout);
                    }
                    if nr_idle > IDLE_AT_ONCE {
                        self.poll(None, Some(Instant::now() + PAUSE))?;
                    }
                    let is_over = self.poll(Some(self.notify_fd()), deadline)?;
                    if is_over {
                        return Err(ClientError::Timeout);
                    }
                    nr_idle += 1;
                }
            }
        }
    }

    /// Sleeps until `fd` can be read, or the deadline is over: whether it is.
    fn poll(
        &self,
        fd: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> Result<bool, ClientError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        // Only its end is looked for: what can be read is the answer to
        // another thread that gives a lease back.
        let mut fds = vec![PollFd::new(&*self.hang_up, PollFlags::empty())];
        fds.extend(fd.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => Ok(true),
            Ok(_) if fds.first().is_some_and(|fd| !fd.revents().is_empty()) => {
                Err(ClientError::BrokerGone)
            }
            Ok(_) | Err(Errno::INTR) => Ok(false),
            Err(source) => {
                let what = "wait for a generation";
                Err(ClientError::System { what, source })
            }
        }
    }
}

// Readers follow arenas from threads of their own.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Stream>();
    is_send::<Snapshot<'_>>();
    is_send::<OwnedSnapshot>();
};

/// The broker's copy of the record of `generation`, or our own where it had
/// none.
fn whole_record(
    reader: &ArenaReader,
    generation: u64,
    record: GenerationRecord,
) -> Result<GenerationRecord, ClientError> {
    if record.generation == generation {
        return Ok(record);
    }
    Ok(reader.record(generation)?)
}

/// A connection with one attachment, shared by a stream and its leases.
#[derive(Debug)]
pub(crate) struct Link {
    state: Mutex<State>,
    apid: ApId,
    /// A forked process has the connection, too, but no business on it.
    pid: u32,
}

#[derive(Debug)]
struct State {
    broker: Broker,
    /// Snapshots of each leased generation: the broker counts one lease.
    held: BTreeMap<u64, u32>,
}

impl Link {
    /// Held for one request and its reply, never while something is waited for.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The exporter's bell for all readers, if it rings for this one.
    fn bell(&self) -> Option<OwnedFd> {
        // Others hear from the broker, as does who asks one that is gone.
        self.state().broker.shared_bell(self.apid).ok()
    }

    fn lease(&self, want: Want) -> Result<LeaseReply, ClientError> {
        let mut state = self.state();
        let reply = state.broker.lease(self.apid, want)?;
        if let LeaseReply::Granted { generation, .. } = reply {
            *state.held.entry(generation).or_default() += 1;
        }
        Ok(reply)
    }

    fn release(&self, generation: u64) {
        if self.pid != std::process::id() {
            return;
        }
        let mut state = self.state();
        let left = state.held.get_mut(&generation).map(|snapshots| {
            *snapshots -= 1;
            *snapshots
        });
        if left == Some(0) {
            state.held.remove(&generation);
            // A broker that is gone holds no leases.
            let _ = state.broker.release_lease(self.apid, generation);
        }
    }
}

/// A lease; given back when dropped, by whatever thread.
#[derive(Debug)]
pub(crate) struct Held<L: Deref<Target = Link>> {
    link: L,
    generation: u64,
}

impl<L: Deref<Target = Link>> Drop for Held<L> {
    fn drop(&mut self) {
        self.link.release(self.generation);
    }
}
