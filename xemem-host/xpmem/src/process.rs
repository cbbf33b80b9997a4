//! What this process has made, got and attached, and the verbs on it.
//!
//! Called by [`crate::surface`], one call at a time. A child of fork(2) begins
//! with nothing: neither the connection nor the apids of its parent are worth
//! anything to it. After the broker's end everything mapped stays, the ids are
//! gone, and the next call looks for a broker again.

// UNSAFETY: passes on the promise that memory may be moved.
#![expect(unsafe_code)]

use crate::attachments::Attachments;
use crate::errors::Failure;
use crate::exports::Exports;
use core::ffi::c_void;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;
use xemem_host::library::{PerProcess, reach};
use xemem_host::{Access, ApId, Broker, ClientError, Role, SegId};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Largest number in an apid: XPMEM leaves its two highest bits free.
const LAST_NUMBER: u32 = u32::MAX >> 2;

/// An apid as the program has it: a number, and the process that got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Handle(i64);

impl Handle {
    fn new(number: u32, pid: u32) -> Self {
        Self(i64::from(number) << 32 | i64::from(pid))
    }

    /// Takes a number from the program, which may be anything.
    pub(crate) fn from_program(raw: i64) -> Result<Self, Failure> {
        if raw <= 0 {
            return Err(Failure::argument(format!("{raw} is no apid")));
        }
        Ok(Self(raw))
    }

    pub(crate) fn raw(self) -> i64 {
        self.0
    }

    fn is_of(self, pid: u32) -> bool {
        self.0 & i64::from(u32::MAX) == i64::from(pid)
    }
}

/// Access that was got.
#[derive(Clone, Copy, Debug)]
struct Grant {
    apid: ApId,
    /// The connection it was got over.
    epoch: u64,
}

/// Everything of one process.
#[derive(Debug, Default)]
pub(crate) struct Process {
    broker: Option<Broker>,
    /// Counts connections.
    epoch: u64,
    last_number: u32,
    grants: BTreeMap<Handle, Grant>,
    exports: Exports,
    attachments: Attachments,
}

/// The calling process, for one call.
pub(crate) fn lock() -> MutexGuard<'static, Process> {
    static PROCESS: PerProcess<Process> = PerProcess::new();
    let process = PROCESS.get();
    // The surface ends the program where something panics under the lock.
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Makes sure that there is a broker to ask.
    pub(crate) fn connected(&mut self) -> Result<(), Failure> {
        self.ask(|broker, _| broker.status().map(drop))
    }

    /// # Safety
    /// That of [`Broker::make_over`].
    pub(crate) unsafe fn make(
        &mut self,
        address: *mut c_void,
        len: usize,
        mode: u32,
    ) -> Result<SegId, Failure> {
        self.ask(|broker, exports| {
            // SAFETY: the caller's promise, passed on.
            unsafe { exports.make(broker, address, len, mode) }
        })
    }

    pub(crate) fn remove(&mut self, segid: SegId) -> Result<(), Failure> {
        if self.exports.contains(segid) {
            self.exports.forget(segid);
            // Another broker may give the same number to somebody else.
            let ended = self.broker.as_mut().map(|broker| broker.remove(segid));
            return Ok(ended.transpose().map(|_| ())?);
        }
        let info = self.ask(|broker, _| broker.info(segid))?;
        Err(match info.end_reason {
            Some(reason) => Failure::new(Errno::NOENT, format!("{segid} has ended: {reason}")),
            None => Failure::new(Errno::ACCESS, format!("{segid} is another process's")),
        })
    }

    pub(crate) fn get(&mut self, segid: SegId, access: Access) -> Result<Handle, Failure> {
        let apid = self.ask(|broker, _| broker.get_for(segid, access))?;
        let handle = self.next_handle();
        let epoch = self.epoch;
        self.grants.insert(handle, Grant { apid, epoch });
        Ok(handle)
    }

    pub(crate) fn release(&mut self, handle: Handle) -> Result<(), Failure> {
        self.grant(handle)?;
        self.attachments.detach_all(handle)?;
        if let Some((broker, apid)) = self.grant(handle)? {
            // Fails only together with the broker, which then knows nothing.
            let _ = broker.release(apid);
        }
        self.grants.remove(&handle);
        Ok(())
    }

    pub(crate) fn attach(
        &mut self,
        handle: Handle,
        offset: u64,
        len: usize,
        address: *mut c_void,
    ) -> Result<*mut c_void, Failure> {
        self.grant(handle)?;
        if !address.addr().is_multiple_of(PAGE) {
            return Err(Failure::argument("the address is not at a page"));
        }
        let len = len.checked_next_multiple_of(PAGE).filter(|len| *len > 0);
        let len = len.ok_or_else(|| Failure::argument("no such length"))?;
        if !address.is_null() {
            self.exports.check_apart(address.addr(), len)?;
        }
        let len = u64::try_from(len).map_err(|_| Failure::argument("no such length"))?;
        let gone = || Failure::new(Errno::NOENT, "the broker it was got from is gone");
        let (broker, apid) = self.grant(handle)?.ok_or_else(gone)?;
        let piece = broker.attach_piece(apid, offset, len)?;
        let mapped = self.attachments.map(handle, &piece, address);
        if mapped.is_err() {
            self.detached(handle);
        }
        mapped
    }

    pub(crate) fn detach(&mut self, address: usize) -> Result<(), Failure> {
        if let Some(handle) = self.attachments.detach(address)? {
            self.detached(handle);
        }
        Ok(())
    }

    /// Tells the broker, which only counts.
    fn detached(&mut self, handle: Handle) {
        if let Ok(Some((broker, apid))) = self.grant(handle) {
            let _ = broker.detach(apid);
        }
    }

    /// What `handle` stands for: `None` if the broker it came from is gone.
    fn grant(&mut self, handle: Handle) -> Result<Option<(&mut Broker, ApId)>, Failure> {
        let raw = handle.raw();
        if !handle.is_of(std::process::id()) {
            let why = format!("apid {raw} is another process's");
            return Err(Failure::new(Errno::ACCESS, why));
        }
        let Some(grant) = self.grants.get(&handle) else {
            return Err(Failure::new(
                Errno::NOENT,
                format!("there is no apid {raw}"),
            ));
        };
        let current = grant.epoch == self.epoch;
        let broker = self.broker.as_mut().filter(|_| current);
        Ok(broker.map(|broker| (broker, grant.apid)))
    }

    fn next_handle(&mut self) -> Handle {
        let pid = std::process::id();
        loop {
            self.last_number = match self.last_number {
                LAST_NUMBER => 1,
                number => number.saturating_add(1),
            };
            let handle = Handle::new(self.last_number, pid);
            if !self.grants.contains_key(&handle) {
                return handle;
            }
        }
    }

    /// Asks the broker; once more, over a new connection, if it turns out that
    /// the former broker has ended since.
    fn ask<T>(
        &mut self,
        mut question: impl FnMut(&mut Broker, &mut Exports) -> Result<T, ClientError>,
    ) -> Result<T, Failure> {
        let mut again = self.broker.is_some();
        loop {
            let broker = match &mut self.broker {
                Some(broker) => broker,
                none => {
                    self.epoch = self.epoch.wrapping_add(1);
                    none.insert(reach(Role::Exporter, Duration::ZERO)?)
                }
            };
            match question(broker, &mut self.exports) {
                Ok(answer) => return Ok(answer),
                Err(ClientError::BrokerGone) => {
                    self.broker = None;
                    self.exports = Exports::default();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apids_are_positive_and_know_their_process() {
        for number in [1, 2, LAST_NUMBER] {
            for pid in [1, 4_194_304, u32::MAX] {
                let handle = Handle::new(number, pid);
                assert!(handle.raw() > 0);
                assert!(handle.is_of(pid));
                assert!(!handle.is_of(pid - 1));
            }
        }
        for raw in [0, -1, i64::MIN] {
            assert!(Handle::from_program(raw).is_err());
        }
    }

    #[test]
    fn numbers_start_again_behind_the_last_one_and_stay_unique() {
        let mut process = Process {
            last_number: LAST_NUMBER - 1,
            ..Process::default()
        };
        let grant = Grant {
            apid: ApId(1),
            epoch: 0,
        };
        let first = Handle::new(1, std::process::id());
        process.grants.insert(first, grant);
        assert_eq!(process.next_handle().raw() >> 32, i64::from(LAST_NUMBER));
        assert_eq!(process.next_handle().raw() >> 32, 2);
    }
}
