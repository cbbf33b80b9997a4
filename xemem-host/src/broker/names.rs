//! The name service: names of segments, and lookups that wait for one.
//!
//! A name belongs to one segment that has not ended. It is taken when the
//! arena is made but found only once the segment is live: the caller says
//! which. A segment that is retained after its end keeps its names as *former*
//! ones: anybody may take them, and they are found if nobody has, the one that
//! ended last first. `name@N` is the segment N under one of its names. Lookups
//! wait here, one per peer, until name, deadline or end.

use super::PeerId;
use super::recorded::Recorded;
use super::refusal::Refusal;
use crate::wire::SegId;
use enclave_abi::arena::{NAME_BYTES, name_field, text};
use serde::{Deserialize, Serialize};

/// Names one segment may have.
pub(super) const NAMES_PER_SEGMENT: usize = 8;

/// A checked name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Waiter {
    pub(super) seq: u32,
    pub(super) name: Name,
    deadline_ms: u64,
    /// It does not want a retained segment in the end.
    pub(super) live_only: bool,
}

/// All names and waiting lookups.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) segments: Recorded<Name, SegId>,
    /// Of retained segments, in the order of their ends.
    pub(super) former: Recorded<Name, Vec<SegId>>,
    pub(super) waiters: Recorded<PeerId, Waiter>,
}

impl Names {
    /// Whose name this is.
    pub(super) fn find(&self, name: &Name) -> Option<SegId> {
        self.segments.get(name).copied()
    }

    /// The retained segment that had this name last.
    pub(super) fn find_former(&self, name: &Name) -> Option<SegId> {
        self.former.get(name)?.last().copied()
    }

    /// The segment meant by `name@segid`, if it has or had that name.
    pub(super) fn find_numbered(&self, name: &Name) -> Option<SegId> {
        let (base, number) = name.0.rsplit_once('@')?;
        let segid = SegId(number.parse().ok()?);
        let base = Name(base.to_owned());
        let former = self.former.get(&base);
        let is_former = former.is_some_and(|all| all.contains(&segid));
        (is_former || self.find(&base) == Some(segid)).then_some(segid)
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
        self.segments.extract(|_, owner| *owner == segid);
        let of_segment = |(name, all): (&Name, &Vec<SegId>)| {
            let is_one = all.contains(&segid);
            is_one.then(|| name.clone())
        };
        let names: Vec<Name> = self.former.iter().filter_map(of_segment).collect();
        for name in names {
            if let Some(all) = self.former.get_mut(&name) {
                all.retain(|owner| *owner != segid);
            }
        }
        self.former.extract(|_, all| all.is_empty());
    }

    /// Lets others take the names of `segid`; until then it is found by them.
    pub(super) fn retire(&mut self, segid: SegId) {
        for (name, _) in self.segments.extract(|_, owner| *owner == segid) {
            match self.former.get_mut(&name) {
                Some(all) => all.push(segid),
                None => self.former.insert(name, vec![segid]),
            }
        }
    }

    /// Lets a lookup of `peer` wait.
    pub(super) fn wait(
        &mut self,
        peer: PeerId,
        seq: u32,
        name: Name,
        deadline_ms: u64,
        live_only: bool,
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
                live_only,
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
            .extract(|_, waiter| segments.get(&waiter.name) == Some(&segid))
    }

    /// Takes out the lookups whose time is over.
    pub(super) fn expired(&mut self, now_ms: u64) -> Vec<(PeerId, Waiter)> {
        self.waiters
            .extract(|_, waiter| waiter.deadline_ms <= now_ms)
    }

    /// When the next lookup expires.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.waiters.values().map(|waiter| waiter.deadline_ms).min()
    }

    /// Whether nothing is left.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.former.is_empty() && self.waiters.is_empty()
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
    fn a_retired_name_is_found_until_freed_and_anybody_may_take_it() {
        let mut names = Names::default();
        for segid in [SegId(1), SegId(2), SegId(3)] {
            assert_eq!(names.take(name("a"), segid), Ok(()));
            if segid != SegId(3) {
                names.retire(segid);
            }
        }
        assert_eq!(names.find(&name("a")), Some(SegId(3)));
        assert_eq!(names.find_former(&name("a")), Some(SegId(2)));
        for (text, wanted) in [
            ("a@1", Some(SegId(1))),
            ("a@3", Some(SegId(3))),
            ("a@4", None),
            ("b@1", None),
            ("a@", None),
            ("@1", None),
            ("a@-1", None),
        ] {
            assert_eq!(names.find_numbered(&name(text)), wanted, "{text}");
        }
        names.free(SegId(2));
        assert_eq!(names.find_former(&name("a")), Some(SegId(1)));
        names.free(SegId(1));
        names.free(SegId(3));
        assert!(names.is_empty());
    }

    #[test]
    fn a_lookup_leaves_with_its_name_or_its_deadline() {
        let mut names = Names::default();
        assert_eq!(names.wait(PeerId(1), 7, name("a"), 100, false), Ok(()));
        assert_eq!(
            names.wait(PeerId(1), 8, name("b"), 100, false),
            Err(Refusal::LookupPending)
        );
        assert_eq!(names.wait(PeerId(2), 9, name("b"), 50, true), Ok(()));
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
