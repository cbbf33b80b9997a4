//! Post-mortem reading: arenas that ended and can still be attached.
//!
//! ```text
//!  Live ──end──► Retained ──time over, room needed, removed──► Ended ──► gone
//!                   └ attach, lease: the last generations, then the end
//! ```
//!
//! An arena whose newest generation can be read when it ends is *retained*,
//! whatever ended it but a removal. The whole object stays: Linux takes no part
//! of a sealed one back. So each user has a limit of bytes and of number, and
//! the oldest goes first: at its limit, when its time is over, and when memory
//! for something new is short. A need evicts arenas of the same user only, that
//! of root and of the broker's own user any.

use super::leases::Leases;
use super::segments::Segment;
use super::{Broker, Env, PeerId};
use crate::wire::{EndReason, Reply, SegId, SegmentState};
use enclave_abi::addr::LARGE_PAGE_SIZE;

/// Most retained arenas of one user.
pub const RETAINED_PER_USER: usize = 64;

/// For how long and how much arenas are retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Milliseconds after the end; 0 = not at all.
    pub for_ms: u64,
    /// Most bytes of one user's objects.
    pub bytes_per_user: u64,
}

impl Retention {
    /// Ten minutes.
    pub const DEFAULT_MS: u64 = 600_000;
    /// None.
    pub const NONE: Self = Self {
        for_ms: 0,
        bytes_per_user: 0,
    };

    /// A quarter of this host's memory.
    #[must_use]
    pub fn default_bytes() -> u64 {
        let info = rustix::system::sysinfo();
        info.totalram.saturating_mul(info.mem_unit.into()) / 4
    }
}

impl Segment {
    /// Whether it has ended and can be attached all the same.
    pub(super) fn is_retained(&self) -> bool {
        self.state == SegmentState::Retained
    }

    /// Whether somebody may get access to it.
    pub(super) fn can_be_got(&self) -> bool {
        self.is_live() || self.is_retained()
    }

    /// Milliseconds that it will yet be retained.
    pub(super) fn retained_for_ms(&self, now_ms: u64) -> u64 {
        let until = self.retained_until_ms.filter(|_| self.is_retained());
        until.map_or(0, |until| until.saturating_sub(now_ms))
    }

    fn object_bytes(&self) -> u64 {
        self.arena().map_or(0, |arena| arena.geometry.object_bytes)
    }
}

impl Broker {
    /// Whether an arena that just ended for `reason` is to be retained: it had
    /// readers' descriptors, and its newest generation is there.
    pub(super) fn is_worth_retaining(
        &self,
        segment: &Segment,
        reason: EndReason,
        env: Env<'_>,
    ) -> bool {
        let Some(arena) = segment.arena() else {
            return false;
        };
        let allowed = self.settings.retention;
        let newest = Leases::newest(&arena.leases, arena.words(env), 0);
        segment.is_live()
            && reason != EndReason::Removed
            && allowed.for_ms > 0
            && segment.object_bytes() <= allowed.bytes_per_user
            && newest.is_some()
    }

    /// Ends the retention of others of the same user until it is within its
    /// limits again; `newest` has just come.
    pub(super) fn trim_retained(&mut self, newest: SegId) {
        let Some(uid) = self.segments.get(&newest).map(|s| s.permit.owner_uid) else {
            return;
        };
        loop {
            let of_user =
                |segment: &&Segment| segment.is_retained() && segment.permit.owner_uid == uid;
            let all = self.segments.values().filter(of_user);
            let (number, bytes) = all.fold((0, 0_u64), |(number, bytes), segment| {
                (number + 1, bytes.saturating_add(segment.object_bytes()))
            });
            let within =
                number <= RETAINED_PER_USER && bytes <= self.settings.retention.bytes_per_user;
            let oldest = self.oldest_retained(|segment| segment.permit.owner_uid == uid);
            match oldest {
                Some(oldest) if !within => self.evict(oldest),
                _ => return,
            }
        }
    }

    /// The retained arena that ended first, of those that `wanted` says.
    fn oldest_retained(&self, wanted: impl Fn(&Segment) -> bool) -> Option<SegId> {
        let all = self.segments.iter();
        let all = all.filter(|(_, segment)| segment.is_retained() && wanted(segment));
        all.min_by_key(|(segid, segment)| (segment.retained_until_ms, **segid))
            .map(|(segid, _)| *segid)
    }

    /// Ends a retention: no new readers; memory goes with the last one.
    pub(super) fn evict(&mut self, segid: SegId) {
        if let Some(segment) = self.segments.get_mut(&segid) {
            segment.state = SegmentState::Ended;
            segment.retained_until_ms = None;
        }
        self.names.free(segid);
        self.forget_if_unused(segid);
    }

    /// Ends retentions whose time is over.
    pub(super) fn expire_retained(&mut self, now_ms: u64) {
        let over = |segment: &Segment| {
            let until = segment.retained_until_ms;
            until.is_some_and(|until| until <= now_ms)
        };
        while let Some(segid) = self.oldest_retained(over) {
            self.evict(segid);
        }
    }

    /// When the next retention is over.
    pub(super) fn retained_deadline(&self) -> Option<u64> {
        let retained = self.segments.values().filter(|s| s.is_retained());
        retained.filter_map(|s| s.retained_until_ms).min()
    }

    /// How many arenas are retained, and their bytes.
    pub(super) fn retained(&self) -> (usize, u64) {
        let retained = self.segments.values().filter(|s| s.is_retained());
        retained.fold((0, 0), |(number, bytes), segment| {
            (number + 1, bytes.saturating_add(segment.object_bytes()))
        })
    }

    /// Gives up the oldest retained arena that nobody reads and that `uid` may
    /// give up; only one on 2 MiB pages if these are `huge`. Returns its bytes.
    pub(super) fn give_up_one(&mut self, uid: u32, huge: bool) -> Option<u64> {
        let all = self.is_privileged(uid);
        let oldest = self.oldest_retained(|segment| {
            let allowed = all || segment.permit.owner_uid == uid;
            let pages = !huge || u64::from(segment.page_bytes) == LARGE_PAGE_SIZE;
            allowed && pages && segment.apids.is_empty()
        })?;
        let bytes = self.segments.get(&oldest).map(Segment::object_bytes);
        self.evict(oldest);
        bytes
    }

    /// Gives up retained arenas until `wanted` bytes are free; may end earlier.
    pub(super) fn make_room(&mut self, peer: PeerId, wanted: u64, huge: bool) -> Reply {
        let uid = self.credentials(peer).map_or(u32::MAX, |peer| peer.uid);
        let mut bytes = 0_u64;
        while bytes < wanted {
            match self.give_up_one(uid, huge) {
                Some(more) => bytes = bytes.saturating_add(more),
                None => break,
            }
        }
        Reply::Room { bytes }
    }
}
