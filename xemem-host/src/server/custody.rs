//! The broker's side of its keeper: what is worth keeping goes there, too.
//!
//! Used by [`super::objects`] and the event loop. A descriptor is deposited
//! before anything is recorded that needs it, and withdrawn after. When the
//! keeper is gone the broker goes on alone until it has another; a server that
//! never had one deposits nothing.

use crate::keeper::channel::{Channel, Key, Message};
use rustix::io::Errno;
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};

/// The keeper, or none.
#[derive(Debug, Default)]
pub(super) struct Custody {
    channel: Option<Channel>,
    /// The keeper did not take or answer something.
    lost: Cell<bool>,
    /// Memory was withdrawn that the keeper may still hold.
    unsettled: Cell<bool>,
}

impl Custody {
    pub(super) fn new(channel: Channel) -> Self {
        channel.be_impatient();
        Self {
            channel: Some(channel),
            ..Self::default()
        }
    }

    /// Another keeper from now on.
    pub(super) fn replace(&mut self, channel: Option<Channel>) {
        if let Some(channel) = &channel {
            channel.be_impatient();
        }
        self.channel = channel;
        self.lost.set(false);
        self.unsettled.set(false);
    }

    /// Whether there is to be a keeper.
    pub(super) fn is_wanted(&self) -> bool {
        self.channel.is_some()
    }

    /// Whether there is to be one and it is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// The keeper hung up.
    pub(super) fn lose(&self) {
        self.lost.set(true);
    }

    pub(super) fn put(&self, key: Key, fd: impl AsFd) {
        self.attempt(|channel| channel.put(key, fd));
    }

    pub(super) fn withdraw(&self, key: Key) {
        self.attempt(|channel| channel.drop(key));
        let is_memory = !matches!(
            key,
            Key::Connection(_)
                | Key::Process(_)
                | Key::Notify(_)
                | Key::Bell(..)
                | Key::SignalPage(_)
                | Key::Journal
        );
        self.unsettled.set(self.unsettled.get() || is_memory);
    }

    pub(super) fn tell(&self, message: &Message) {
        self.attempt(|channel| channel.tell(message));
    }

    /// Waits until memory that was withdrawn is free.
    pub(super) fn settle(&self) {
        if self.unsettled.take() {
            self.attempt(|channel| {
                channel.tell(&Message::Sync)?;
                match channel.hear_soon()? {
                    Some(Message::Synced) => Ok(()),
                    _ => Err(Errno::PIPE),
                }
            });
        }
    }

    /// For the event loop: readable when the keeper is gone.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(Channel::as_fd)
    }

    fn attempt(&self, attempt: impl FnOnce(&Channel) -> Result<(), Errno>) {
        if let Some(channel) = self.channel.as_ref().filter(|_| !self.lost.get())
            && attempt(channel).is_err()
        {
            self.lost.set(true);
        }
    }
}
