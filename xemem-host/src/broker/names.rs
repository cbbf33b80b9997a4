//! The name service: names of segments, and lookups that wait for one.
//!
//! A name belongs to one segment that has not ended. It is taken when the
//! arena is made but found only once the segment is live: the caller says
//! which. Lookups wait here, one per peer, until name, deadline or end.

use super::PeerId;
use super::refusal::Refusal;
use crate::wire::SegId;
use enclave_abi::arena::{NAME_BYTES, name_field, text};
use std::collections::BTreeMap;

/// Names one segment may have.
pub(super) const NAMES_PER_SEGMENT: usize = 8;

/// A checked name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(String);

impl Name {
    /// The name in a zero-padded field; `None` if the field is all zero.
    pub(super) fn optional(field: &[u8; NAME_BYTES]) -> Result<Option<Self>, Refusal> {
        if *field == [0; NAME_BYTES] {
            return Ok(None);
        }
        Self::required(field).map(Some)
    }

    /// The name in a zero-padded field.
    pub(super) fn required(field: &[u8; NAME_BYTES]) -> Result<Self, Refusal> {
        let name = text(field).ok_or(Refusal::Name)?;
        if name_field(name) == Some(*field) {
            Ok(Self(name.to_owned()))
        } else {
            Err(Refusal::Name)
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A lookup that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) seq: u32,
    name: Name,
    deadline_ms: u64,
}

/// All names and waiting lookups.
#[derive(Debug, Default)]
pub(super) struct Names {
    segments: BTreeMap<Name, SegId>,
    waiters: BTreeMap<PeerId, Waiter>,
}

impl Names {
    /// Whose name this is.
    pub(super) fn find(&self, name: &Name) -> Option<SegId> {
        self.segments.get(name).copied()
    }

    /// Takes `name` for `segid`.
    pub(super) fn take(&mut self, name: Name, segid: SegId) -> Result<(), Refusal> {
        if self.segments.contains_key(&name) {
            return Err(Refusal::NameTaken);
        }
        self.segments.insert(name, segid);
        Ok(())
    }

    /// Gives all names of `segid` back.
    pub(super) fn free(&mut self, segid: SegId) {
        self.segments.retain(|_, owner| *owner != segid);
    }

    /// Lets a lookup of `peer` wait.
    pub(super) fn wait(
        &mut self,
        peer: PeerId,
        seq: u32,
        name: Name,
        deadline_ms: u64,
    ) -> Result<(), Refusal> {
        if self.waiters.contains_key(&peer) {
            return Err(Refusal::LookupPending);
        }
        self.waiters.insert(
            peer,
            Waiter {
                seq,
                name,
                deadline_ms,
            },
        );
        Ok(())
    }

    /// Forgets the lookup of `peer`.
    pub(super) fn stop_waiting(&mut self, peer: PeerId) {
        self.waiters.remove(&peer);
    }

    /// Takes out the lookups that wait for a name of `segid`.
    pub(super) fn found(&mut self, segid: SegId) -> Vec<(PeerId, Waiter)> {
        let segments = &self.segments;
        self.waiters
            .extract_if(.., |_, waiter| segments.get(&waiter.name) == Some(&segid))
            .collect()
    }

    /// Takes out the lookups whose time is over.
    pub(super) fn expired(&mut self, now_ms: u64) -> Vec<(PeerId, Waiter)> {
        self.waiters
            .extract_if(.., |_, waiter| waiter.deadline_ms <= now_ms)
            .collect()
    }

    /// When the next lookup expires.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.waiters.values().map(|waiter| waiter.deadline_ms).min()
    }

    /// Whether nothing is left.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.waiters.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::required(&name_field(text).expect("a valid name")).expect("a valid name")
    }

    #[test]
    fn names_with_anything_behind_their_end_are_refused() {
        let mut field = name_field("flux").expect("a valid name");
        assert!(Name::required(&field).is_ok());
        field[10] = b'x';
        assert_eq!(Name::required(&field), Err(Refusal::Name));
        assert_eq!(Name::required(&[0; NAME_BYTES]), Err(Refusal::Name));
        assert_eq!(Name::optional(&[0; NAME_BYTES]), Ok(None));
        assert_eq!(Name::optional(&[0xff; NAME_BYTES]), Err(Refusal::Name));
    }

    #[test]
    fn a_name_has_one_owner_until_it_is_freed() {
        let mut names = Names::default();
        assert_eq!(names.take(name("a"), SegId(1)), Ok(()));
        assert_eq!(names.take(name("a"), SegId(2)), Err(Refusal::NameTaken));
        names.free(SegId(1));
        assert_eq!(names.take(name("a"), SegId(2)), Ok(()));
        assert_eq!(names.find(&name("a")), Some(SegId(2)));
    }

    #[test]
    fn a_lookup_leaves_with_its_name_or_its_deadline() {
        let mut names = Names::default();
        assert_eq!(names.wait(PeerId(1), 7, name("a"), 100), Ok(()));
        assert_eq!(
            names.wait(PeerId(1), 8, name("b"), 100),
            Err(Refusal::LookupPending)
        );
        assert_eq!(names.wait(PeerId(2), 9, name("b"), 50), Ok(()));
        assert_eq!(names.next_deadline(), Some(50));
        assert!(names.expired(49).is_empty());
        assert_eq!(names.expired(50).len(), 1);
        assert_eq!(names.take(name("a"), SegId(1)), Ok(()));
        let found = names.found(SegId(1));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1.seq, 7);
        assert_eq!(names.next_deadline(), None);
    }
}
