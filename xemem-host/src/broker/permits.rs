//! Who may do what with a segment: unix mode bits, as XPMEM's permits.
//!
//! As for files, one class counts: the owner's bits for the exporter's user,
//! else the group's for members of the permit's group, else the others'. Root
//! may do everything. Default deny: a mode of 0 lets nobody in but root.

use super::Credentials;
use super::refusal::Refusal;
use crate::wire::{Access, NO_GROUP};
use serde::{Deserialize, Serialize};

/// All bits a mode can have.
const MODE_BITS: u32 = 0o777;
/// Read, in one class of three bits.
const READ: u32 = 0o4;
/// Write, in one class.
const WRITE: u32 = 0o2;

/// The permit of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Permit {
    pub(super) owner_uid: u32,
    /// [`NO_GROUP`] = none.
    pub(super) gid: u32,
    pub(super) mode: u32,
}

impl Permit {
    /// The permit of an arena: its owner and perhaps a group may read.
    pub(super) fn of_arena(owner_uid: u32, gid: u32) -> Self {
        let mode = if gid == NO_GROUP { 0o400 } else { 0o440 };
        Self {
            owner_uid,
            gid,
            mode,
        }
    }

    /// The permit that `owner` gives with `mode`; its primary group counts
    /// unless another `gid` is named.
    pub(super) fn of_mode(owner: &Credentials, gid: u32, mode: u32) -> Result<Self, Refusal> {
        if mode & !MODE_BITS != 0 {
            return Err(Refusal::Mode(mode));
        }
        Ok(Self {
            owner_uid: owner.uid,
            gid: if gid == NO_GROUP { owner.gid } else { gid },
            mode,
        })
    }

    /// Whether `peer` may end the segment.
    pub(super) fn is_owner(&self, peer: &Credentials) -> bool {
        peer.uid == 0 || peer.uid == self.owner_uid
    }

    /// Whether anybody but root could be allowed to write.
    pub(super) fn has_writers(&self) -> bool {
        self.mode & (WRITE << 6 | WRITE << 3 | WRITE) != 0
    }

    /// Whether `peer` may have `access`; writers must be allowed to read, too.
    pub(super) fn allows(&self, peer: &Credentials, access: Access) -> bool {
        let in_group = peer.gid == self.gid || peer.groups.contains(&self.gid);
        let shift = if peer.uid == self.owner_uid {
            6
        } else if self.gid != NO_GROUP && in_group {
            3
        } else {
            0
        };
        let wanted = match access {
            Access::ReadOnly => READ,
            Access::ReadWrite => READ | WRITE,
        };
        peer.uid == 0 || (self.mode >> shift) & wanted == wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        let groups = groups.to_vec();
        Credentials { uid, gid, groups }
    }

    /// What owner, member by primary and by further group, other and root get.
    fn row(mode: u32) -> [&'static str; 5] {
        let owner = peer(1, 10, &[]);
        let permit = Permit::of_mode(&owner, 20, mode).expect("a mode");
        let peers = [
            owner,
            peer(2, 20, &[]),
            peer(3, 30, &[31, 20]),
            peer(4, 40, &[10]),
            peer(0, 0, &[]),
        ];
        peers.map(|peer| {
            let may = |access| permit.allows(&peer, access);
            match (may(Access::ReadOnly), may(Access::ReadWrite)) {
                (false, false) => "-",
                (true, false) => "r",
                (true, true) => "rw",
                (false, true) => panic!("writing without reading"),
            }
        })
    }

    #[test]
    fn each_class_gets_its_bits_and_no_others() {
        for (mode, row_wanted) in [
            (0o000, ["-", "-", "-", "-", "rw"]),
            (0o600, ["rw", "-", "-", "-", "rw"]),
            (0o640, ["rw", "r", "r", "-", "rw"]),
            (0o660, ["rw", "rw", "rw", "-", "rw"]),
            (0o644, ["rw", "r", "r", "r", "rw"]),
            (0o666, ["rw", "rw", "rw", "rw", "rw"]),
            (0o444, ["r", "r", "r", "r", "rw"]),
            // A class that is shut stays shut, even if a later one is open.
            (0o066, ["-", "rw", "rw", "rw", "rw"]),
            (0o606, ["rw", "-", "-", "rw", "rw"]),
            // Neither execute nor write alone opens anything.
            (0o311, ["-", "-", "-", "-", "rw"]),
        ] {
            assert_eq!(row(mode), row_wanted, "{mode:o}");
        }
    }

    #[test]
    fn modes_beyond_the_permission_bits_are_refused() {
        for mode in [0o1000, 0o4777, u32::MAX] {
            let refused = Permit::of_mode(&peer(1, 1, &[]), NO_GROUP, mode);
            assert_eq!(refused, Err(Refusal::Mode(mode)));
        }
    }

    #[test]
    fn without_a_group_the_primary_one_of_the_owner_counts() {
        let permit = Permit::of_mode(&peer(1, 10, &[11]), NO_GROUP, 0o640).expect("a mode");
        assert!(permit.allows(&peer(2, 10, &[]), Access::ReadOnly));
        assert!(!permit.allows(&peer(2, 11, &[]), Access::ReadOnly));
        let arena = Permit::of_arena(1, NO_GROUP);
        assert!(!arena.allows(&peer(2, NO_GROUP, &[NO_GROUP]), Access::ReadOnly));
    }
}
