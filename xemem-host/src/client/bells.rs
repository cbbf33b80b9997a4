//! Bells, from both ends: what the importer waits for, what the exporter rings.

use super::{Broker, ClientError};
use crate::wire::{ApId, Reply, Request, SegId};
use std::os::fd::OwnedFd;

/// The bells of an arena that its kernel has to ring.
#[derive(Debug)]
pub struct Bells {
    /// A bit for each one.
    pub all: u16,
    /// Those that are new: number and eventfd.
    pub fresh: Vec<(usize, OwnedFd)>,
}

impl Broker {
    /// Asks for a bell: an eventfd to which the exporter's kernel adds at each
    /// publish. Until the exporter has fetched it, and when the stream ends, it
    /// is the attachment's notify that tells.
    ///
    /// # Errors
    /// EACCES unless this user owns the arena, ENOSPC if it has no bell to
    /// spare, EIDRM if it has ended.
    pub fn bell(&mut self, apid: ApId) -> Result<OwnedFd, ClientError> {
        let shared = false;
        self.any_bell(&Request::Bell { apid, shared })
    }

    /// As [`Broker::bell`], but the one that all readers share who ask for it so:
    /// not to be read, only to be woken by, each time.
    ///
    /// # Errors
    /// As [`Broker::bell`].
    pub fn shared_bell(&mut self, apid: ApId) -> Result<OwnedFd, ClientError> {
        let shared = true;
        self.any_bell(&Request::Bell { apid, shared })
    }

    fn any_bell(&mut self, request: &Request) -> Result<OwnedFd, ClientError> {
        match self.call(request)? {
            (Reply::Bell, fds) => fds.into_iter().next().ok_or(ClientError::Answer),
            _ => Err(ClientError::Answer),
        }
    }

    /// Fetches the bells of an arena that this connection exports.
    ///
    /// # Errors
    /// As other requests of an exporter.
    pub fn bells(&mut self, segid: SegId) -> Result<Bells, ClientError> {
        match self.call(&Request::Bells { segid })? {
            (Reply::Bells { all, fresh }, fds) => {
                let numbers = (0..16_usize).filter(|bell| fresh >> bell & 1 == 1);
                let fresh = numbers.zip(fds).collect();
                Ok(Bells { all, fresh })
            }
            _ => Err(ClientError::Answer),
        }
    }
}
