//! The part of a reply that lists segments. Used by [`super::reply`].

use super::reply::of_reason;
use super::{EndReason, LIST_PAGE, Reply, SegId, WireError};
use enclave_abi::arena::NAME_BYTES;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Where a segment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum SegmentState {
    /// Its exporter has not mapped it yet.
    Making = 0,
    /// Generations may come.
    Live = 1,
    /// None will come; memory stays while somebody is attached.
    Ended = 2,
    /// None will come; the last ones can be attached for some time.
    Retained = 3,
}

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SegmentKind {
    /// An arena: generations, leases, read-only.
    Arena = 0,
    /// Memory as it is, and signals.
    Plain = 1,
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The segment.
    pub segid: SegId,
    /// What it is.
    pub kind: SegmentKind,
    /// Its first name; empty = none.
    pub name: String,
    /// Name of the enclave it belongs to; empty = of a Linux process.
    pub enclave: String,
    /// State.
    pub state: SegmentState,
    /// Why it ended, if it did.
    pub end_reason: Option<EndReason>,
    /// Payload bytes.
    pub size_bytes: u64,
    /// Bytes of a chunk; 0 = plain.
    pub chunk_bytes: u64,
    /// Number of banks; 0 = plain.
    pub nr_banks: u32,
    /// Bytes of a host page behind it.
    pub page_bytes: u32,
    /// Newest generation as the exporter's kernel says.
    pub latest_generation: u64,
    /// Publishes refused, as the exporter's kernel says.
    pub dropped: u64,
    /// Generations taken away from their readers.
    pub discarded: u64,
    /// Publishes that waited for a reader.
    pub waited: u64,
    /// What the arena does when its pool is exhausted, `POLICY_*` of
    /// [`enclave_abi::syscall`], as the exporter's kernel says.
    pub policy: u32,
    /// Where its copies go, `PLACE_*`.
    pub placement: u32,
    /// Frames of its pool that were ever used; `None` = plain, or too many to
    /// count them for a list.
    pub high_water: Option<u64>,
    /// Explicit signals accepted.
    pub signals: u64,
    /// Times its doorbell or its signals ran over budget.
    pub throttled: u64,
    /// Attachments.
    pub readers: u32,
    /// Generations leased to readers.
    pub leases: u32,
    /// User who owns it.
    pub owner_uid: u32,
    /// Group of the permit; [`super::NO_GROUP`] = none.
    pub gid: u32,
    /// Permit: unix mode bits for owner, group and others.
    pub mode: u32,
    /// Milliseconds since it was made.
    pub age_ms: u64,
    /// Newest generations kept although nobody leased them; 0 = plain.
    pub retain: u32,
    /// Milliseconds that it can yet be attached after its end; 0 = not at all,
    /// or it has not ended.
    pub retained_ms: u64,
}

/// [`InfoBody::end_reason`] of a segment that has not ended.
const NOT_ENDED: u32 = u32::MAX;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InfoBody {
    segid: u64,
    name: [u8; NAME_BYTES],
    enclave: [u8; NAME_BYTES],
    size_bytes: u64,
    chunk_bytes: u64,
    latest_generation: u64,
    dropped: u64,
    discarded: u64,
    waited: u64,
    signals: u64,
    throttled: u64,
    age_ms: u64,
    retained_ms: u64,
    state: u32,
    end_reason: u32,
    nr_banks: u32,
    page_bytes: u32,
    readers: u32,
    leases: u32,
    owner_uid: u32,
    gid: u32,
    mode: u32,
    kind: u32,
    retain: u32,
    policy: u16,
    placement: u16,
    /// [`NOT_COUNTED`] = unknown.
    high_water: u64,
}

/// [`InfoBody::high_water`] of an arena whose frames were not counted.
const NOT_COUNTED: u64 = u64::MAX;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SegmentsBody {
    count: u32,
    pad: u32,
    infos: [InfoBody; LIST_PAGE],
}

pub(super) fn segments_body(infos: &[SegmentInfo]) -> SegmentsBody {
    let count = infos.len().min(LIST_PAGE);
    let mut body = SegmentsBody::new_zeroed();
    body.count = u32::try_from(count).unwrap_or(0);
    for (to, info) in body.infos.iter_mut().zip(infos) {
        *to = info_body(info);
    }
    body
}

fn info_body(info: &SegmentInfo) -> InfoBody {
    let field = |name: &str| enclave_abi::arena::name_field(name).unwrap_or([0; NAME_BYTES]);
    InfoBody {
        segid: info.segid.0,
        name: field(&info.name),
        enclave: field(&info.enclave),
        size_bytes: info.size_bytes,
        chunk_bytes: info.chunk_bytes,
        latest_generation: info.latest_generation,
        dropped: info.dropped,
        discarded: info.discarded,
        waited: info.waited,
        signals: info.signals,
        throttled: info.throttled,
        age_ms: info.age_ms,
        retained_ms: info.retained_ms,
        state: info.state as u32,
        end_reason: info.end_reason.map_or(NOT_ENDED, |reason| reason as u32),
        nr_banks: info.nr_banks,
        page_bytes: info.page_bytes,
        readers: info.readers,
        leases: info.leases,
        owner_uid: info.owner_uid,
        gid: info.gid,
        mode: info.mode,
        kind: info.kind as u32,
        retain: info.retain,
        policy: u16::try_from(info.policy).unwrap_or(u16::MAX),
        placement: u16::try_from(info.placement).unwrap_or(u16::MAX),
        high_water: info.high_water.unwrap_or(NOT_COUNTED),
    }
}

pub(super) fn of_segments(body: &SegmentsBody) -> Result<Reply, WireError> {
    let (field, value) = ("count", body.count);
    let infos = usize::try_from(value)
        .ok()
        .and_then(|count| body.infos.get(..count))
        .ok_or(WireError::Value { field, value })?;
    let infos: Result<Vec<_>, _> = infos.iter().map(of_info).collect();
    Ok(Reply::Segments(infos?))
}

fn of_info(body: &InfoBody) -> Result<SegmentInfo, WireError> {
    let text = |bytes| enclave_abi::arena::text(bytes).unwrap_or("").to_owned();
    let state = match body.state {
        0 => SegmentState::Making,
        1 => SegmentState::Live,
        2 => SegmentState::Ended,
        3 => SegmentState::Retained,
        value => {
            let field = "state";
            return Err(WireError::Value { field, value });
        }
    };
    let kind = match body.kind {
        0 => SegmentKind::Arena,
        1 => SegmentKind::Plain,
        value => {
            let field = "kind";
            return Err(WireError::Value { field, value });
        }
    };
    let end_reason = match body.end_reason {
        NOT_ENDED => None,
        value => Some(of_reason(value)?),
    };
    Ok(SegmentInfo {
        segid: SegId(body.segid),
        kind,
        name: text(&body.name),
        enclave: text(&body.enclave),
        state,
        end_reason,
        size_bytes: body.size_bytes,
        chunk_bytes: body.chunk_bytes,
        nr_banks: body.nr_banks,
        page_bytes: body.page_bytes,
        latest_generation: body.latest_generation,
        dropped: body.dropped,
        discarded: body.discarded,
        waited: body.waited,
        policy: body.policy.into(),
        placement: body.placement.into(),
        high_water: Some(body.high_water).filter(|&frames| frames != NOT_COUNTED),
        signals: body.signals,
        throttled: body.throttled,
        readers: body.readers,
        leases: body.leases,
        owner_uid: body.owner_uid,
        gid: body.gid,
        mode: body.mode,
        age_ms: body.age_ms,
        retain: body.retain,
        retained_ms: body.retained_ms,
    })
}
