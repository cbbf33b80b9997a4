//! What a broker leaves to the next one: its tables as a stream of changes.
//!
//! The server writes [`Broker::changes`] to its journal after each event,
//! before anybody hears of the outcome. A broker that takes over applies them
//! in order ([`Broker::apply`]) and looks at what is left of the world
//! ([`Broker::take_over`]): peers and objects that are gone, and lease words
//! that its predecessor moved for an event it did not live to record.
//!
//! ```text
//!  change = (table u8, key, Some(entry) | None), postcard after postcard
//! ```
//!
//! Not recorded: settings, budgets of doorbells (they begin anew), effects.

use super::doorbells::Meter;
use super::leases::Leases;
use super::recorded::Recorded;
use super::{ApId, Broker, Effect, EnclaveId, EndReason, Env, PeerId, SegId, Segment};
use crate::wire::{SegmentState, Target};
use serde::{Deserialize, Serialize};

/// Why a record cannot be taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Bytes that are no change.
    #[error("a change cannot be decoded: {0}")]
    Undecodable(#[from] postcard::Error),
    /// A table that this version does not have.
    #[error("a change of table {0}, which there is not")]
    Table(u8),
}

/// Everything of a broker that is in no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Numbers {
    started_ms: u64,
    idle_since_ms: Option<u64>,
    last_id: u64,
    protocol_errors: u64,
    throttled: u64,
}

mod table {
    pub(super) const NUMBERS: u8 = 0;
    pub(super) const PEERS: u8 = 1;
    pub(super) const ENCLAVES: u8 = 2;
    pub(super) const SEGMENTS: u8 = 3;
    pub(super) const GRANTS: u8 = 4;
    pub(super) const NAMES: u8 = 5;
    pub(super) const FORMER: u8 = 6;
    pub(super) const WAITERS: u8 = 7;
}

impl Broker {
    /// What changed since the last call; empty if nothing did.
    #[must_use]
    pub fn changes(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let numbers = self.numbers();
        if self.recorded != Some(numbers) {
            put(&mut out, table::NUMBERS, &0_u8, Some(&encode(&numbers)));
            self.recorded = Some(numbers);
        }
        changes_of(&mut self.peers, table::PEERS, &mut out);
        changes_of(&mut self.enclaves, table::ENCLAVES, &mut out);
        changes_of(&mut self.segments, table::SEGMENTS, &mut out);
        changes_of(&mut self.grants, table::GRANTS, &mut out);
        changes_of(&mut self.names.segments, table::NAMES, &mut out);
        changes_of(&mut self.names.former, table::FORMER, &mut out);
        changes_of(&mut self.names.waiters, table::WAITERS, &mut out);
        out
    }

    /// Everything, as changes of a broker that is new.
    #[must_use]
    pub fn whole(&mut self) -> Vec<u8> {
        self.recorded = None;
        self.peers.forget_written();
        self.enclaves.forget_written();
        self.segments.forget_written();
        self.grants.forget_written();
        self.names.segments.forget_written();
        self.names.former.forget_written();
        self.names.waiters.forget_written();
        self.changes()
    }

    /// Makes the changes of a predecessor, in the order it wrote them.
    ///
    /// # Errors
    /// Bytes that are no changes; this broker is of no use then.
    pub fn apply(&mut self, mut bytes: &[u8]) -> Result<(), RecordError> {
        while !bytes.is_empty() {
            let number: u8 = take(&mut bytes)?;
            match number {
                table::NUMBERS => {
                    let (_, value) = change::<u8>(&mut bytes)?;
                    let value = value.ok_or(RecordError::Table(number))?;
                    self.set_numbers(postcard::from_bytes(value)?);
                }
                table::PEERS => restore(&mut self.peers, &mut bytes)?,
                table::ENCLAVES => restore(&mut self.enclaves, &mut bytes)?,
                table::SEGMENTS => restore(&mut self.segments, &mut bytes)?,
                table::GRANTS => restore(&mut self.grants, &mut bytes)?,
                table::NAMES => restore(&mut self.names.segments, &mut bytes)?,
                table::FORMER => restore(&mut self.names.former, &mut bytes)?,
                table::WAITERS => restore(&mut self.names.waiters, &mut bytes)?,
                other => return Err(RecordError::Table(other)),
            }
        }
        Ok(())
    }

    /// Makes state and world agree, after the last [`Broker::apply`]. Everybody
    /// who waits is woken once: a doorbell may have been read and not heard.
    pub fn take_over(&mut self, is_connected: impl Fn(PeerId) -> bool, env: Env<'_>) {
        let rate = self.settings.rings_per_second;
        for (_, segment) in self.segments.iter_unrecorded() {
            segment.meter = Meter::new(rate, env.now_ms);
        }
        self.reclaim_leases(env);
        let gone = |peer: &PeerId| !is_connected(*peer);
        let peers: Vec<PeerId> = self.peers.keys().copied().filter(gone).collect();
        for peer in peers {
            self.disconnected(peer, env);
        }
        self.end_what_lost_its_memory(env);
        self.wake_everybody(env);
    }

    /// The highest id of a connection there was.
    #[must_use]
    pub fn last_peer(&self) -> u64 {
        self.peers.keys().next_back().map_or(0, |peer| peer.0)
    }

    /// Whether `peer` is known.
    #[must_use]
    pub fn knows(&self, peer: PeerId) -> bool {
        self.peers.contains_key(&peer)
    }

    /// Whether the object of `segid` is sealed, and the bytes of its pages;
    /// `None` if there is no such segment.
    #[must_use]
    pub fn object_of(&self, segid: SegId) -> Option<(bool, u64)> {
        let segment = self.segments.get(&segid)?;
        let is_sealed = segment.state != SegmentState::Making;
        Some((is_sealed, segment.page_bytes.into()))
    }

    /// Whether anything needs the eventfd of `target`.
    #[must_use]
    pub fn needs_notify(&self, target: Target) -> bool {
        match target {
            Target::Access(apid) => self.grants.get(&apid).is_some_and(super::Grant::waits),
            Target::Segment(segid) => {
                let plain = self.segments.get(&segid).and_then(Segment::plain);
                plain.is_some_and(|plain| plain.subscription.is_some())
            }
        }
    }

    /// Whether anything needs the lease page of `enclave`.
    #[must_use]
    pub fn needs_lease_page(&self, enclave: EnclaveId) -> bool {
        self.enclaves.contains_key(&enclave)
    }

    /// Arenas whose doorbells are to be watched.
    pub fn live_arenas(&self) -> impl Iterator<Item = SegId> {
        let live = self.segments.iter();
        let live = live.filter(|(_, segment)| segment.is_live() && segment.arena().is_some());
        live.map(|(segid, _)| *segid)
    }

    fn numbers(&self) -> Numbers {
        Numbers {
            started_ms: self.started_ms,
            idle_since_ms: self.idle_since_ms,
            last_id: self.last_id,
            protocol_errors: self.protocol_errors,
            throttled: self.throttled,
        }
    }

    fn set_numbers(&mut self, numbers: Numbers) {
        self.started_ms = numbers.started_ms;
        self.idle_since_ms = numbers.idle_since_ms;
        self.last_id = numbers.last_id;
        self.protocol_errors = numbers.protocol_errors;
        self.throttled = numbers.throttled;
    }

    fn reclaim_leases(&mut self, env: Env<'_>) {
        let arenas: Vec<SegId> = self.segments.keys().copied().collect();
        for segid in arenas {
            let latest = env.memory.counters(segid).latest_generation;
            let segment = self.segments.get_mut(&segid);
            if let Some(arena) = segment.and_then(Segment::arena_mut) {
                let words = arena.words(env);
                let oldest_kept = arena.oldest_kept(latest);
                Leases::reclaim(&mut arena.leases, words, oldest_kept);
            }
        }
    }

    fn end_what_lost_its_memory(&mut self, env: Env<'_>) {
        let lost = |(segid, segment): (&SegId, &Segment)| {
            let is_sealed = segment.state != SegmentState::Making;
            let no_memory = segment.plain().is_some_and(|plain| plain.size_bytes == 0);
            let is_lost = !no_memory && !env.memory.has_object(*segid, is_sealed);
            is_lost.then_some((*segid, segment.is_retained()))
        };
        let segments: Vec<_> = self.segments.iter().filter_map(lost).collect();
        for (segid, is_retained) in segments {
            if is_retained {
                self.evict(segid);
            } else {
                self.end_segment(segid, EndReason::Removed, env);
            }
        }
        let no_page = |enclave: &EnclaveId| !env.memory.has_lease_page(*enclave);
        let enclaves: Vec<EnclaveId> = self.enclaves.keys().copied().filter(no_page).collect();
        for enclave in enclaves {
            self.exporter_gone(enclave, env);
        }
        let mute = |(apid, grant): (&ApId, &super::Grant)| {
            let target = Target::Access(*apid);
            let waits = grant.waits() && !env.memory.has_notify(target);
            waits.then_some(*apid)
        };
        let apids: Vec<ApId> = self.grants.iter().filter_map(mute).collect();
        for apid in apids {
            self.release_grant(apid, env);
        }
    }

    fn wake_everybody(&mut self, env: Env<'_>) {
        let segids: Vec<SegId> = self.segments.keys().copied().collect();
        for segid in segids {
            self.advance(segid, env);
            let Some(segment) = self.segments.get(&segid) else {
                continue;
            };
            if segment.arena().is_none() {
                self.deliver(segid, 0);
                continue;
            }
            for apid in segment.apids.clone() {
                let target = Target::Access(apid);
                self.effects.push(Effect::Notify { target, count: 1 });
            }
        }
    }
}

fn changes_of<K, V>(table: &mut Recorded<K, V>, number: u8, out: &mut Vec<u8>)
where
    K: Ord + Clone + Serialize,
    V: Serialize,
{
    if table.is_changed() {
        table.changes(encode, |key, value| put(out, number, key, value));
    }
}

fn put<K: Serialize>(out: &mut Vec<u8>, number: u8, key: &K, value: Option<&[u8]>) {
    out.extend(encode(&(number, key, value)));
}

/// Fails for types only that know no length beforehand, of which there is none
/// here; nothing in its place is no change, which the successor refuses.
fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}

fn take<'a, T: Deserialize<'a>>(bytes: &mut &'a [u8]) -> Result<T, RecordError> {
    let (value, rest) = postcard::take_from_bytes(bytes)?;
    *bytes = rest;
    Ok(value)
}

/// Key and entry; `None` if that is gone.
type Change<'a, K> = (K, Option<&'a [u8]>);

fn change<'a, K: Deserialize<'a>>(bytes: &mut &'a [u8]) -> Result<Change<'a, K>, RecordError> {
    let key = take(bytes)?;
    Ok((key, take(bytes)?))
}

fn restore<'a, K, V>(table: &mut Recorded<K, V>, bytes: &mut &'a [u8]) -> Result<(), RecordError>
where
    K: Ord + Clone + Deserialize<'a>,
    V: Deserialize<'a>,
{
    match change(bytes)? {
        (key, Some(value)) => table.restore(key, postcard::from_bytes(value)?, value),
        (key, None) => table.restore_removed(&key),
    }
    Ok(())
}

/// A [`Geometry`](enclave_abi::arena::Geometry) as what it is computed from.
pub(super) mod geometry {
    use enclave_abi::arena::Geometry;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        geometry: &Geometry,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let Geometry {
            size_bytes,
            chunk_bytes,
            nr_banks,
            ..
        } = *geometry;
        (size_bytes, chunk_bytes, nr_banks).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Geometry, D::Error> {
        let (size_bytes, chunk_bytes, nr_banks) = Deserialize::deserialize(deserializer)?;
        let geometry = Geometry::new(size_bytes, chunk_bytes, nr_banks);
        geometry.map_err(|error| D::Error::custom(format_args!("{error:?}")))
    }
}
