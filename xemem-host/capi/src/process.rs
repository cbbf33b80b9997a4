//! What this process has got and attached by XEMEM's verbs.
//!
//! Called by [`crate::verbs`], one call at a time but for waits. A forked
//! child begins with nothing. After the broker's end everything mapped stays,
//! apids are gone, and the next call looks for a broker again.

use crate::answer::{Failure, wait};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use xemem_host::library::{PerProcess, reach};
use xemem_host::{
    Access, ApId, Broker, ClientError, OwnedSnapshot, PlainAttachment, Policy, Role, SegId,
    SegmentKind, Signals, Stream, Target,
};

/// Signals of one apid, waited for without the lock of the process.
pub(crate) type SharedSignals = Arc<Mutex<Signals>>;

/// Access that was got.
#[derive(Debug)]
struct Grant {
    apid: ApId,
    segid: SegId,
    kind: SegmentKind,
    size_bytes: u64,
    /// The connection it was got over.
    epoch: u64,
    signals: Option<SharedSignals>,
}

/// What lies at an address.
#[derive(Debug)]
enum Attached {
    Piece(PlainAttachment),
    Arena(OwnedSnapshot),
}

/// Everything of one process.
#[derive(Debug, Default)]
pub(crate) struct Process {
    broker: Option<Broker>,
    /// Counts connections.
    epoch: u64,
    last_apid: i64,
    grants: BTreeMap<i64, Grant>,
    /// By address: what it is, and the apid it came by.
    attached: BTreeMap<usize, (Attached, i64)>,
}

/// The calling process, for one call.
pub(crate) fn lock() -> MutexGuard<'static, Process> {
    static PROCESS: PerProcess<Process> = PerProcess::new();
    let process = PROCESS.get();
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds a segment, over a connection of its own: waiting is nobody's
/// business but the caller's.
pub(crate) fn lookup(name: &str, timeout: Option<Duration>) -> Result<SegId, Failure> {
    let mut broker = reach(Role::Consumer, Duration::ZERO)?;
    let limit = timeout.unwrap_or(Duration::MAX);
    Ok(broker.lookup(name, wait(limit, limit))?)
}

/// Maps a piece, or the newest generation of an arena; where it is. Waits for
/// the first generation without the lock of the process.
pub(crate) fn attach(apid: i64, offset: u64, len: u64) -> Result<usize, Failure> {
    let (segid, size_bytes) = {
        let mut process = lock();
        let grant = process.grant(apid)?;
        match grant.kind {
            SegmentKind::Plain => return process.attach_piece(apid, offset, len),
            SegmentKind::Arena => (grant.segid, grant.size_bytes),
        }
    };
    if offset != 0 || (len != 0 && len != size_bytes) {
        return Err(Failure::argument("an arena is attached whole"));
    }
    let snapshot = newest(segid)?;
    let payload = snapshot.as_slice().ok_or_else(Failure::null)?;
    let address = payload.as_ptr().addr();
    let mut process = lock();
    // Released by another thread meanwhile: nobody would detach it.
    process.grant(apid)?;
    let snapshot = Attached::Arena(snapshot);
    process.attached.insert(address, (snapshot, apid));
    Ok(address)
}

impl Process {
    pub(crate) fn get(&mut self, segid: SegId, access: Access) -> Result<i64, Failure> {
        let (apid, info) = self.ask(|broker| {
            let apid = broker.get_for(segid, access)?;
            Ok((apid, broker.info(segid)?))
        })?;
        self.last_apid = self.last_apid.saturating_add(1);
        let grant = Grant {
            apid,
            segid,
            kind: info.kind,
            size_bytes: info.size_bytes,
            epoch: self.epoch,
            signals: None,
        };
        self.grants.insert(self.last_apid, grant);
        Ok(self.last_apid)
    }

    /// Maps a piece of a plain segment.
    fn attach_piece(&mut self, apid: i64, offset: u64, len: u64) -> Result<usize, Failure> {
        let behind = self.grant(apid)?.size_bytes.saturating_sub(offset);
        let len = if len == 0 { behind } else { len };
        let (broker, grant) = self.connected(apid)?;
        let piece = broker.attach_segment(grant.apid, offset, len)?;
        let address = piece.memory.as_ptr().addr();
        let piece = Attached::Piece(piece);
        self.attached.insert(address, (piece, apid));
        Ok(address)
    }

    pub(crate) fn detach(&mut self, address: usize) {
        match self.attached.remove(&address) {
            Some((Attached::Piece(piece), apid)) => {
                drop(piece);
                if let Ok((broker, grant)) = self.connected(apid) {
                    // The broker only counts.
                    let _ = broker.detach(grant.apid);
                }
            }
            Some((Attached::Arena(snapshot), _)) => drop(snapshot),
            None => {}
        }
    }

    pub(crate) fn release(&mut self, apid: i64) -> Result<(), Failure> {
        self.grant(apid)?;
        let of_apid = self.attached.iter().filter(|(_, (_, by))| *by == apid);
        let addresses: Vec<usize> = of_apid.map(|(&address, _)| address).collect();
        for address in addresses {
            self.detach(address);
        }
        if let Ok((broker, grant)) = self.connected(apid) {
            // Fails only together with the broker, which then knows nothing.
            let _ = broker.release(grant.apid);
        }
        self.grants.remove(&apid);
        Ok(())
    }

    pub(crate) fn signal(&mut self, apid: i64) -> Result<(), Failure> {
        let (broker, grant) = self.connected(apid)?;
        Ok(broker.signal(Target::Access(grant.apid))?)
    }

    /// Signals a segment from outside.
    pub(crate) fn signal_segid(&mut self, segid: SegId) -> Result<(), Failure> {
        self.ask(|broker| broker.signal(Target::Segment(segid)))
    }

    /// The subscription of `apid`, begun if there is none.
    pub(crate) fn signals(&mut self, apid: i64) -> Result<SharedSignals, Failure> {
        if let Some(signals) = &self.grant(apid)?.signals {
            return Ok(Arc::clone(signals));
        }
        let (broker, grant) = self.connected(apid)?;
        let signals = broker.subscribe(Target::Access(grant.apid))?;
        let signals = Arc::new(Mutex::new(signals));
        grant.signals = Some(Arc::clone(&signals));
        Ok(signals)
    }

    fn grant(&self, apid: i64) -> Result<&Grant, Failure> {
        let none = || Failure::new(Errno::BADF, format!("this process has no apid {apid}"));
        self.grants.get(&apid).ok_or_else(none)
    }

    /// The connection that `apid` was got over.
    fn connected(&mut self, apid: i64) -> Result<(&mut Broker, &mut Grant), Failure> {
        self.grant(apid)?;
        let gone = || Failure::new(Errno::NOTCONN, "the broker it was got from is gone");
        let grant = self.grants.get_mut(&apid).ok_or_else(gone)?;
        let is_current = grant.epoch == self.epoch;
        let broker = self.broker.as_mut().filter(|_| is_current);
        Ok((broker.ok_or_else(gone)?, grant))
    }

    /// Asks the broker; once more, over a new connection, if it turns out that
    /// the former broker has ended since.
    fn ask<T>(
        &mut self,
        mut question: impl FnMut(&mut Broker) -> Result<T, ClientError>,
    ) -> Result<T, Failure> {
        let mut again = self.broker.is_some();
        loop {
            let broker = match &mut self.broker {
                Some(broker) => broker,
                none => {
                    self.epoch = self.epoch.saturating_add(1);
                    none.insert(reach(Role::Exporter, Duration::ZERO)?)
                }
            };
            match question(broker) {
                Ok(answer) => return Ok(answer),
                Err(ClientError::BrokerGone) => {
                    self.broker = None;
                    if !again {
                        return Err(ClientError::BrokerGone.into());
                    }
                    again = false;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The newest generation of an arena; waits for the first one.
fn newest(segid: SegId) -> Result<OwnedSnapshot, Failure> {
    let broker = reach(Role::Consumer, Duration::ZERO)?;
    let mut stream = Stream::over(broker, segid, Policy::Latest)?;
    let snapshot = stream.next_owned(None)?;
    snapshot.ok_or_else(|| Failure::new(Errno::IDRM, format!("{segid} has ended")))
}
