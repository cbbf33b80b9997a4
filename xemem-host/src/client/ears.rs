//! Signals without the broker: straight to the eventfds of those who wait.
//!
//! Used by VMMs, for the programs of enclaves. Budget, count and set of subscribers
//! are in a page shared with the broker ([`crate::signal_page`]); whatever does not
//! fit goes through the broker, as it always may.

use super::{Broker, ClientError};
use crate::signal_page::{self, SignalPage};
use crate::wire::{Reply, Request, Target};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// The subscribers of a segment but one, as of some moment.
#[derive(Debug)]
pub struct Ears {
    page: SignalPage,
    version: u64,
    /// Signals in a second; 0 = the broker is to deliver.
    rate: u64,
    ears: Vec<OwnedFd>,
}

/// What came of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Every subscriber has it.
    Done,
    /// Nobody has it: there are other subscribers now, or the segment has ended.
    Changed,
    /// Nobody has it: the broker is to deliver it.
    ByBroker,
}

impl Ears {
    /// Signals each subscriber.
    #[must_use]
    pub fn signal(&self) -> Heard {
        if self.page.version() != self.version {
            return Heard::Changed;
        }
        if self.rate == 0 || !self.page.take(self.rate) {
            return Heard::ByBroker;
        }
        self.page.count();
        for ear in &self.ears {
            // Full (EAGAIN) means that its holder, who alone could have filled
            // it, has something to take.
            let _ = rustix::io::write(ear, &1_u64.to_ne_bytes());
        }
        Heard::Done
    }
}

impl Broker {
    /// Asks for the eventfds of everybody whom [`Broker::signal`] would tell.
    ///
    /// # Errors
    /// As [`Broker::signal`].
    pub fn ears(&mut self, target: Target) -> Result<Ears, ClientError> {
        let (reply, fds) = self.call(&Request::Ears { target })?;
        let mut fds = fds.into_iter();
        match (reply, fds.next()) {
            (Reply::Ears { version, rate, .. }, Some(page)) => Ok(Ears {
                page: mapped(&page).map_err(|source| {
                    let what = "map the page of signals";
                    ClientError::System { what, source }
                })?,
                version,
                rate,
                ears: fds.collect(),
            }),
            _ => Err(ClientError::Answer),
        }
    }
}

/// The broker is believed no further than what cannot harm us.
fn mapped(page: &OwnedFd) -> Result<SignalPage, Errno> {
    let is_whole = usize::try_from(fstat(page)?.st_size).is_ok_and(|len| len >= signal_page::BYTES);
    if !is_whole || !fcntl_get_seals(page)?.contains(SealFlags::SHRINK) {
        return Err(Errno::INVAL);
    }
    SignalPage::new(page)
}
