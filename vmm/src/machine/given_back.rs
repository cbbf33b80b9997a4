//! Shared memory of which somebody else may give pages back to the host.
//!
//! Who may write a plain segment may punch holes into it. On 4 KiB pages a hole
//! is zeros. On 2 MiB pages it is zeros only while the host has a huge page for
//! it; a vCPU that touches it when there is none never gets on: KVM looks for the
//! page again and again, or ends KVM_RUN with EFAULT. So while a program shares
//! such memory, whoever waits for its end looks now and then, and ends it with a
//! reason. Looking reserves what is missing, so a hole that is seen in time costs
//! nothing but its contents.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use enclave_abi::addr::LARGE_PAGE_SIZE;
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use xemem_host::{Access, SegId};

use super::arenas::Mapping;
use crate::machine::RunOutcome;

/// How often somebody looks.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often a vCPU tries that KVM lets go, and for how many times: longer than a
/// kill takes that the kernel does not answer.
const TRY_EVERY: Duration = Duration::from_millis(10);
const TRIES: u32 = 2_000;
/// Signal that ends a program whose memory is gone, as Linux ends a process.
pub(super) const SIGBUS: u8 = 7;

/// A piece of a segment that can lose pages.
#[derive(Debug)]
struct Share {
    segid: SegId,
    memfd: OwnedFd,
    offset: u64,
    bytes: u64,
}

/// What the running program shares so, by memslot.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<BTreeMap<u32, Share>>);

impl Shares {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Share>> {
        // Plain data, whole after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is mapped in `slot`, if pages of it can go: large ones of an
    /// object without a seal against writing.
    pub(super) fn note(
        &self,
        slot: u32,
        (segid, memfd): (SegId, &OwnedFd),
        (offset, bytes): (u64, u64),
        page_bytes: u64,
    ) -> Result<(), Errno> {
        let seals = fcntl_get_seals(memfd)?;
        let is_sealed = seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE);
        if page_bytes != LARGE_PAGE_SIZE || is_sealed {
            return Ok(());
        }
        let memfd = memfd.as_fd().try_clone_to_owned();
        let share = Share {
            segid,
            memfd: memfd.map_err(|_| Errno::MFILE)?,
            offset,
            bytes,
        };
        self.lock().insert(slot, share);
        Ok(())
    }

    /// Nothing is mapped in `slot` any more.
    pub(super) fn forget(&self, slot: u32) {
        self.lock().remove(&slot);
    }

    /// How long to wait before the next look; `None` = nothing to look at.
    pub(super) fn look_after(&self) -> Option<Duration> {
        (!self.lock().is_empty()).then_some(LOOK_EVERY)
    }

    /// How long to wait before memory is tried again that was not there `tries`
    /// times; `None` = that is not why, or it takes too long.
    pub(super) fn may_come(&self, tries: u32) -> Option<Duration> {
        self.look_after()
            .filter(|_| tries <= TRIES)
            .map(|_| TRY_EVERY)
    }

    /// A segment of which a page is gone and cannot be had again.
    pub(super) fn lost(&self) -> Option<SegId> {
        let all = self.lock();
        let lost = all.values().find(|share| {
            // A mapping of huge pages reserves those that are not there.
            let again = Mapping::piece(&share.memfd, share.offset, share.bytes, Access::ReadOnly);
            matches!(again, Err(Errno::NOMEM))
        });
        lost.map(|share| share.segid)
    }
}

/// `outcome` with the reason why the program was ended, if it is this one.
pub(super) fn explain(outcome: RunOutcome, lost: Option<SegId>) -> RunOutcome {
    let Some(segid) = lost else {
        return outcome;
    };
    let why = format!(
        "a page of segment {} is gone: somebody who may write it gave it back, \
         and the host has no huge page to put in its place",
        segid.0
    );
    match outcome {
        RunOutcome::Signaled { signal, .. } if signal == SIGBUS => RunOutcome::Signaled {
            signal,
            report: why,
        },
        // The kernel itself had touched it.
        RunOutcome::MachineStopped { reason } => RunOutcome::MachineStopped {
            reason: format!("{reason}; {why}"),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    fn object(seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = memfd_create("given-back", flags).unwrap();
        ftruncate(&memfd, 8192).unwrap();
        fcntl_add_seals(&memfd, seals).unwrap();
        memfd
    }

    #[test]
    fn only_large_pages_without_a_seal_are_looked_at() {
        let shares = Shares::default();
        let (open, sealed) = (object(SealFlags::GROW), object(SealFlags::FUTURE_WRITE));
        let note = |slot, memfd, page_bytes| {
            let segment = (SegId(7), memfd);
            shares.note(slot, segment, (0, 8192), page_bytes).unwrap();
            shares.look_after()
        };
        assert_eq!(note(0, &open, 4096), None);
        assert_eq!(note(0, &sealed, LARGE_PAGE_SIZE), None);
        assert_eq!(note(1, &open, LARGE_PAGE_SIZE), Some(LOOK_EVERY));
        assert_eq!(shares.lost(), None);
        shares.forget(1);
        assert_eq!(shares.look_after(), None);
    }

    #[test]
    fn the_end_of_a_program_is_explained_if_that_is_why() {
        let by = |signal| RunOutcome::Signaled {
            signal,
            report: "before".to_owned(),
        };
        let report = |outcome| match outcome {
            RunOutcome::Signaled { report, .. } => report,
            other => panic!("{other:?}"),
        };
        assert!(report(explain(by(SIGBUS), Some(SegId(7)))).contains("segment 7 is gone"));
        assert_eq!(explain(by(9), Some(SegId(7))), by(9));
        assert_eq!(explain(by(SIGBUS), None), by(SIGBUS));
    }
}
