//! The broker's decisions, without sockets, descriptors or clocks.
//!
//! ```text
//!  server: (peer, seq, Request) ──► handle ──► Effects, in order ──► server
//!          doorbell, time, end of a peer          │
//!            ▲                                    ▼
//!            └────────── finish(Ticket, result) ◄─ effects that can fail
//! ```
//!
//! The server calls one method at a time, then carries out
//! [`Broker::take_effects`] in order. A segment lives like this:
//!
//! ```text
//!  ArenaMake, SegmentMake ──► Making ──Mapped──► Live ──ArenaEnd, Remove──► Ended ──► gone
//!                                └──────── exporter's connection closes ──────▲   when the last
//!                                                                                apid is released
//! ```
//!
//! Promises: no input panics; tables are bounded; a refused request changes
//! nothing; when a peer is gone, so are its leases, subscriptions and apids, and
//! the segments it exports have ended.
//! Does not know what a descriptor is, nor who may connect.

mod arenas;
mod attachments;
mod bells;
mod doorbells;
mod ears;
mod effect;
mod leases;
mod names;
mod permits;
mod plain;
mod record;
mod recorded;
mod refusal;
mod retained;
mod segments;
mod signals;
mod store;
#[cfg(test)]
mod tests;

pub use doorbells::{PAUSE_MS, RINGS_PER_SECOND};
pub use effect::{Effect, Fds, Ticket};
pub use leases::{Counters, LeaseMemory};
pub use record::RecordError;
pub use refusal::{Operation, Refusal, Table};
pub use retained::{RETAINED_PER_USER, Retention};

use crate::wire::{
    ApId, EndReason, PROTOCOL_VERSION, Reply, Request, Role, SegId, Status, WireError,
};
use attachments::Grant;
use effect::Making;
use names::{Name, Names};
use recorded::Recorded;
use rustix::io::Errno;
use segments::Segment;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most connections.
pub const MAX_CLIENTS: usize = 256;
/// Most connections of one user other than root and the broker's own.
pub const MAX_CLIENTS_PER_USER: usize = 128;
/// Most segments, ended ones included.
pub const MAX_SEGMENTS: usize = 1024;
/// Most segments of one user other than root and the broker's own.
pub const MAX_SEGMENTS_PER_USER: usize = 512;
/// Most bytes of one plain segment: more than any machine has.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 46;
/// Most apids of one client.
pub const MAX_APIDS: usize = 256;
/// Most leases of one client, queued ones included.
pub const MAX_LEASES: usize = 64;

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(pub u64);

/// A registered enclave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EnclaveId(pub u64);

/// Who a peer is, as the kernel said when it connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// What surrounds one call: shared memory and the time.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// Memory shared with exporters.
    pub memory: &'a dyn LeaseMemory,
    /// Monotonic milliseconds.
    pub now_ms: u64,
}

impl core::fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Env").field("now_ms", &self.now_ms).finish()
    }
}

/// What a broker is told at start.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// User the broker runs as.
    pub owner_uid: u32,
    /// Its process id.
    pub pid: u32,
    /// Its keeper's, 0 without one.
    pub keeper: u32,
    /// How long to stay without any client.
    pub linger_ms: u64,
    /// Budget of each doorbell.
    pub rings_per_second: u64,
    /// For how long and how much ended arenas are retained.
    pub retention: Retention,
}

#[derive(Debug, Serialize, Deserialize)]
struct Peer {
    credentials: Credentials,
    role: Option<Role>,
    enclave: Option<EnclaveId>,
    /// The enclave whose program it serves, as it says itself.
    serves: Option<Name>,
    /// Plain segments it exports, none of them ended.
    segments: BTreeSet<SegId>,
    apids: BTreeSet<ApId>,
    /// Leases over all apids, bounded by [`MAX_LEASES`].
    leases: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Enclave {
    name: Name,
    slots: BTreeMap<u32, SegId>,
}

/// The state machine.
#[derive(Debug)]
pub struct Broker {
    settings: Settings,
    started_ms: u64,
    /// Since when there is no client.
    idle_since_ms: Option<u64>,
    peers: Recorded<PeerId, Peer>,
    enclaves: Recorded<EnclaveId, Enclave>,
    segments: Recorded<SegId, Segment>,
    grants: Recorded<ApId, Grant>,
    names: Names,
    last_id: u64,
    protocol_errors: u64,
    throttled: u64,
    /// What the journal has of the numbers.
    recorded: Option<record::Numbers>,
    effects: Vec<Effect>,
}

impl Broker {
    /// A broker without clients.
    #[must_use]
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        Self {
            settings,
            started_ms: now_ms,
            idle_since_ms: Some(now_ms),
            peers: Recorded::default(),
            enclaves: Recorded::default(),
            segments: Recorded::default(),
            grants: Recorded::default(),
            names: Names::default(),
            last_id: 0,
            protocol_errors: 0,
            throttled: 0,
            recorded: None,
            effects: Vec::new(),
        }
    }

    /// What has to be done, in order. Call after every other method.
    #[must_use]
    pub fn take_effects(&mut self) -> Vec<Effect> {
        core::mem::take(&mut self.effects)
    }

    /// A connection was accepted.
    pub fn connected(&mut self, peer: PeerId, credentials: Credentials) {
        let uid = credentials.uid;
        let of_user = |known: &&Peer| known.credentials.uid == uid;
        let nr_of_user = self.peers.values().filter(of_user).count();
        let full = self.peers.len() >= MAX_CLIENTS;
        let greedy = nr_of_user >= MAX_CLIENTS_PER_USER && !self.is_privileged(uid);
        if full || greedy {
            let limit = if full {
                MAX_CLIENTS
            } else {
                MAX_CLIENTS_PER_USER
            };
            let what = Table::Clients;
            self.refuse(peer, 0, &Refusal::Limit { what, limit });
            self.effects.push(Effect::Disconnect(peer));
            return;
        }
        self.idle_since_ms = None;
        self.peers.insert(
            peer,
            Peer {
                credentials,
                role: None,
                enclave: None,
                serves: None,
                segments: BTreeSet::new(),
                apids: BTreeSet::new(),
                leases: 0,
            },
        );
    }

    /// A connection has ended, whoever ended it.
    pub fn disconnected(&mut self, peer: PeerId, env: Env<'_>) {
        let Some(gone) = self.peers.get(&peer) else {
            return;
        };
        let (apids, enclave) = (gone.apids.clone(), gone.enclave);
        let segments = gone.segments.clone();
        self.names.stop_waiting(peer);
        for apid in apids {
            self.release_grant(apid, env);
        }
        for segid in segments {
            self.end_segment(segid, EndReason::ExporterGone, env);
        }
        if let Some(enclave) = enclave {
            self.exporter_gone(enclave, env);
        }
        self.peers.remove(&peer);
        if self.peers.is_empty() {
            self.idle_since_ms = Some(env.now_ms);
        }
    }

    /// `peer` sent something that is no request: tell it, and drop it.
    pub fn protocol_error(&mut self, peer: PeerId, seq: u32, error: &WireError, env: Env<'_>) {
        let errno = match error {
            WireError::Version(_) => Errno::PROTONOSUPPORT,
            _ => Errno::PROTO,
        };
        let text = error.to_string();
        self.drop_peer(peer, seq, errno, text, env);
    }

    /// Serves one request.
    pub fn handle(&mut self, peer: PeerId, seq: u32, request: &Request, env: Env<'_>) {
        let Some(role) = self.peers.get(&peer).map(|known| known.role) else {
            return;
        };
        if role.is_some() == matches!(request, Request::Hello { .. }) {
            let refusal = Refusal::Hello;
            self.drop_peer(peer, seq, refusal.errno(), refusal.to_string(), env);
            return;
        }
        match self.serve(peer, seq, request, env) {
            Ok(Some(reply)) => self.reply(peer, seq, reply),
            Ok(None) => {}
            Err(refusal @ Refusal::AbiVersion(_)) => {
                self.drop_peer(peer, seq, refusal.errno(), refusal.to_string(), env);
            }
            Err(refusal) => self.refuse(peer, seq, &refusal),
        }
        if matches!(request, Request::Shutdown { .. }) && self.shutdown_granted(peer, request) {
            self.effects.push(Effect::Exit);
        }
    }

    /// An effect with a ticket was carried out (`Ok`, with the page bytes of a
    /// new arena) or failed.
    pub fn finish(&mut self, ticket: Ticket, result: Result<u64, Errno>, env: Env<'_>) {
        let Ticket { peer, seq, making } = ticket;
        match making {
            Making::LeasePage(enclave) => self.lease_page_made(peer, seq, enclave, result),
            Making::Arena(segid) => self.arena_made(peer, seq, segid, result, env),
            Making::Segment(segid) => self.segment_made(peer, seq, segid, result, env),
            Making::Sealed(segid) => self.sealed(peer, seq, segid, result, env),
            Making::Notify(apid) => self.notify_made(peer, seq, apid, result, env),
            Making::Bell(segid, bell) => self.bell_made(peer, seq, (segid, bell), result, env),
            Making::Subscription(target) => {
                self.subscription_made(peer, seq, target, result, env);
            }
            Making::SignalPage(target) => self.signal_page_made(peer, seq, target, result, env),
        }
    }

    /// When [`Broker::tick`] has to be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let idle = self.idle_since_ms.filter(|_| self.retained().0 == 0);
        let idle = idle.map(|since| since.saturating_add(self.settings.linger_ms));
        let paused = self.segments.values().filter_map(Segment::paused_until);
        idle.into_iter()
            .chain(self.names.next_deadline())
            .chain(paused)
            .chain(self.retained_deadline())
            .min()
    }

    /// Time has passed.
    pub fn tick(&mut self, env: Env<'_>) {
        self.end_lookups(env.now_ms);
        self.resume(env.now_ms);
        self.expire_retained(env.now_ms);
        let linger_ms = self.settings.linger_ms;
        let idle = |since: u64| since.saturating_add(linger_ms) <= env.now_ms;
        if self.idle_since_ms.is_some_and(idle) && self.retained().0 == 0 {
            self.effects.push(Effect::Exit);
        }
    }

    /// The one match from request to decision. `None`: the reply comes later.
    fn serve(
        &mut self,
        peer: PeerId,
        seq: u32,
        request: &Request,
        env: Env<'_>,
    ) -> Result<Option<Reply>, Refusal> {
        let ok = |()| Some(Reply::Ok);
        match *request {
            Request::Hello { role, abi_version } => self.hello(peer, role, abi_version).map(Some),
            Request::RegisterEnclave { name } => {
                self.register_enclave(peer, seq, &name).map(|()| None)
            }
            Request::ForEnclave { name } => self.for_enclave(peer, &name).map(ok),
            Request::ArenaMake(ref make) => self.arena_make(peer, seq, make, env).map(|()| None),
            Request::Mapped { segid } => self.mapped(peer, seq, segid).map(|()| None),
            Request::Name { segid, name } => self.name(peer, segid, &name).map(ok),
            Request::ArenaEnd { segid, reason } => self.arena_end(peer, segid, reason, env).map(ok),
            Request::Lookup {
                name,
                timeout_ms,
                live_only,
            } => self.lookup(peer, seq, &name, timeout_ms, live_only, env),
            Request::MakeRoom { bytes, huge } => Ok(Some(self.make_room(peer, bytes, huge))),
            Request::Get { segid, access } => self.get(peer, segid, access).map(Some),
            Request::Attach { apid, policy } => self.attach(peer, seq, apid, policy).map(|()| None),
            Request::Lease { apid, want } => {
                let lease = self.lease(peer, apid, want, env)?;
                Ok(Some(Reply::Lease(lease)))
            }
            Request::ReleaseLease { apid, generation } => {
                self.release_lease(peer, apid, generation, env).map(ok)
            }
            Request::Detach { apid } => self.detach(peer, apid, env).map(ok),
            Request::Release { apid } => self.release(peer, apid, env).map(ok),
            Request::Remove { segid } => self.remove(peer, segid, env).map(ok),
            Request::List { after } => Ok(Some(self.list(after, env))),
            Request::Status => Ok(Some(Reply::Status(self.status(env)))),
            Request::Shutdown { force } => self.shutdown(peer, force).map(ok),
            Request::SegmentMake(ref make) => {
                self.segment_make(peer, seq, make, env).map(|()| None)
            }
            Request::SegmentAttach { apid, offset, len } => {
                let attached = self.segment_attach(peer, seq, apid, offset, len);
                attached.map(|()| None)
            }
            Request::Subscribe { target } => self.subscribe(peer, seq, target).map(|()| None),
            Request::Ears { target } => self.ears(peer, seq, target, env).map(|()| None),
            Request::Signal { target } => self.signal(peer, target, env).map(ok),
            Request::Info { segid } => self.look_at(segid, env).map(Some),
            Request::Generations { segid } => self.generations(peer, segid, env).map(Some),
            Request::Bell { apid, shared } => {
                self.bell(peer, seq, (apid, shared), env).map(|()| None)
            }
            Request::Bells { segid } => self.bells(peer, seq, segid, env).map(|()| None),
            Request::Retain { segid, count } => self.retain(peer, segid, count, env).map(ok),
        }
    }

    fn hello(&mut self, peer: PeerId, role: Role, abi_version: u32) -> Result<Reply, Refusal> {
        if abi_version != enclave_abi::ABI_VERSION {
            return Err(Refusal::AbiVersion(abi_version));
        }
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.role = Some(role);
        }
        Ok(Reply::Welcome {
            abi_version: enclave_abi::ABI_VERSION,
            pid: self.settings.pid,
        })
    }

    fn lookup(
        &mut self,
        peer: PeerId,
        seq: u32,
        name: &[u8; enclave_abi::arena::NAME_BYTES],
        timeout_ms: u32,
        live_only: bool,
        env: Env<'_>,
    ) -> Result<Option<Reply>, Refusal> {
        let name = Name::required(name)?;
        let is_live = |segid: &SegId| self.segments.get(segid).is_some_and(Segment::is_live);
        let can_be_got = |segid: &SegId| {
            let segment = self.segments.get(segid);
            segment.is_some_and(Segment::can_be_got)
        };
        let live = self.names.find(&name).filter(is_live);
        let numbered = || self.names.find_numbered(&name).filter(can_be_got);
        if let Some(segid) = live.or_else(numbered) {
            return Ok(Some(Reply::Segment { segid }));
        }
        if timeout_ms == 0 {
            let retained = self.names.find_former(&name).filter(|_| !live_only);
            let segid = retained.ok_or(Refusal::NoName)?;
            return Ok(Some(Reply::Segment { segid }));
        }
        let deadline_ms = env.now_ms.saturating_add(u64::from(timeout_ms));
        let waiting = self.names.wait(peer, seq, name, deadline_ms, live_only);
        waiting.map(|()| None)
    }

    /// Answers the lookups whose time is over: who waited for a live segment
    /// gets the retained one of that name, or none.
    fn end_lookups(&mut self, now_ms: u64) {
        for (peer, waiter) in self.names.expired(now_ms) {
            let retained = self.names.find_former(&waiter.name);
            match retained.filter(|_| !waiter.live_only) {
                Some(segid) => self.reply(peer, waiter.seq, Reply::Segment { segid }),
                None => self.refuse(peer, waiter.seq, &Refusal::NameTimeout),
            }
        }
    }

    /// Notes which process keeps this one, 0 for none.
    pub(crate) fn set_keeper(&mut self, pid: u32) {
        self.settings.keeper = pid;
    }

    fn status(&self, env: Env<'_>) -> Status {
        let attachments = self.grants.values().filter(|grant| grant.is_attached());
        let leases = self.peers.values().map(|peer| peer.leases).sum();
        let retained = self.retained();
        Status {
            pid: self.settings.pid,
            keeper: self.settings.keeper,
            protocol_version: u32::from(PROTOCOL_VERSION),
            abi_version: enclave_abi::ABI_VERSION,
            clients: count(self.peers.len()),
            enclaves: count(self.enclaves.len()),
            segments: count(self.segments.len()),
            attachments: count(attachments.count()),
            leases: count(leases),
            protocol_errors: self.protocol_errors,
            throttled: self.throttled,
            retained: count(retained.0),
            retained_bytes: retained.1,
            uptime_ms: env.now_ms.saturating_sub(self.started_ms),
        }
    }

    fn shutdown(&self, peer: PeerId, force: bool) -> Result<(), Refusal> {
        let uid = self.credentials(peer).map_or(u32::MAX, |peer| peer.uid);
        if !self.is_privileged(uid) {
            return Err(Refusal::ShutdownPermission);
        }
        let enclaves = self.enclaves.len();
        let attachments = self.grants.values().filter(|grant| grant.is_attached());
        let attachments = attachments.count();
        let segments = self.peers.values().map(|peer| peer.segments.len()).sum();
        let retained = self.retained().0;
        if !force && enclaves + segments + attachments + retained > 0 {
            return Err(Refusal::Busy {
                enclaves,
                segments,
                attachments,
                retained,
            });
        }
        Ok(())
    }

    fn shutdown_granted(&self, peer: PeerId, request: &Request) -> bool {
        matches!(*request, Request::Shutdown { force } if self.shutdown(peer, force).is_ok())
    }

    /// Root and the broker's own user could end it anyway.
    fn is_privileged(&self, uid: u32) -> bool {
        uid == 0 || uid == self.settings.owner_uid
    }

    fn credentials(&self, peer: PeerId) -> Option<&Credentials> {
        self.peers.get(&peer).map(|peer| &peer.credentials)
    }

    fn next_id(&mut self) -> u64 {
        // 2^64 ids outlast any broker; saturation would only refuse.
        self.last_id = self.last_id.saturating_add(1);
        self.last_id
    }

    fn reply(&mut self, peer: PeerId, seq: u32, reply: Reply) {
        self.reply_with(peer, seq, reply, Fds::None);
    }

    fn reply_with(&mut self, peer: PeerId, seq: u32, reply: Reply, fds: Fds) {
        self.effects.push(Effect::Send {
            peer,
            seq,
            reply,
            fds,
        });
    }

    fn refuse(&mut self, peer: PeerId, seq: u32, refusal: &Refusal) {
        let errno = errno_number(refusal.errno());
        let text = refusal.to_string();
        self.reply(peer, seq, Reply::Error { errno, text });
    }

    fn drop_peer(&mut self, peer: PeerId, seq: u32, errno: Errno, text: String, env: Env<'_>) {
        self.protocol_errors = self.protocol_errors.saturating_add(1);
        let errno = errno_number(errno);
        self.reply(peer, seq, Reply::Error { errno, text });
        self.disconnected(peer, env);
        self.effects.push(Effect::Disconnect(peer));
    }
}

/// Linux numbers are small and positive.
fn errno_number(errno: Errno) -> u32 {
    errno.raw_os_error().unsigned_abs()
}

/// Every table is bounded far below 2^32.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
