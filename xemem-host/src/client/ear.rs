//! What a reader waits at: the broker's notify and, where the exporter can ring
//! for itself, its bell for all readers.
//!
//! Used by [`super::Stream`]. The bell is one eventfd for every reader of an arena,
//! so nobody reads it: each has it in an epoll of its own, edge by edge. Whoever
//! reads it all the same may keep the others from waking: they are of one user.
//! Both together are one descriptor for event loops. Without a bell the notify
//! alone is waited at.

use super::ClientError;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

/// Notify eventfd and bell of one attachment.
#[derive(Debug)]
pub(super) struct Ear {
    notify: OwnedFd,
    /// Asked for once, by the first who waits.
    joined: OnceLock<Option<Joined>>,
}

#[derive(Debug)]
struct Joined {
    both: OwnedFd,
    /// In `both` as long as this is kept.
    _bell: OwnedFd,
}

impl Joined {
    fn new(notify: &OwnedFd, bell: OwnedFd) -> Result<Self, Errno> {
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let nothing = epoll::EventData::new_u64(0);
        epoll::add(&both, notify, nothing, epoll::EventFlags::IN)?;
        // Who joins after a ring finds an edge here: it costs a look.
        let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&both, &bell, nothing, edges)?;
        Ok(Self { both, _bell: bell })
    }
}

impl Ear {
    pub(super) fn new(notify: OwnedFd) -> Self {
        let joined = OnceLock::new();
        Self { notify, joined }
    }

    /// Readable when it may be worth asking for a generation; `bell` asks for
    /// the bell, which is done once.
    pub(super) fn at(&self, bell: impl FnOnce() -> Option<OwnedFd>) -> BorrowedFd<'_> {
        // Out of descriptors: the broker goes on to tell.
        let join = || bell().and_then(|bell| Joined::new(&self.notify, bell).ok());
        match self.joined.get_or_init(join) {
            Some(joined) => joined.both.as_fd(),
            None => self.notify.as_fd(),
        }
    }

    /// Takes what came until now: to be done before asking.
    pub(super) fn clear(&self) -> Result<(), ClientError> {
        let failed = |what| move |source| ClientError::System { what, source };
        if let Some(Some(joined)) = self.joined.get() {
            let mut events = [const { core::mem::MaybeUninit::uninit() }; 2];
            match epoll::wait(&joined.both, &mut events[..], Some(&Timespec::default())) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(source) => return Err(failed("look at the bell")(source)),
            }
        }
        match rustix::io::read(&self.notify, &mut [0_u8; 8]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(source) => Err(failed("read the notify eventfd")(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

    fn event() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
    }

    fn ring(fd: &OwnedFd) {
        rustix::io::write(fd, &1_u64.to_ne_bytes()).expect("rung");
    }

    fn is_ready(ear: &Ear) -> bool {
        let fd = ear.at(|| None);
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).expect("polled") == 1
    }

    fn joined(bell: &OwnedFd) -> (Ear, OwnedFd) {
        let notify = event();
        let ear = Ear::new(notify.try_clone().expect("a second"));
        ear.at(|| bell.try_clone().ok());
        (ear, notify)
    }

    #[test]
    fn each_ring_reaches_each_reader_once() {
        let bell = event();
        let ears = [joined(&bell).0, joined(&bell).0];
        for _ in 0..3 {
            assert!(!ears.iter().any(is_ready));
            ring(&bell);
            ring(&bell);
            for ear in &ears {
                assert!(is_ready(ear));
                ear.clear().expect("cleared");
                assert!(!is_ready(ear));
            }
        }
    }

    #[test]
    fn the_brokers_word_comes_the_same_way() {
        let bell = event();
        let (ear, notify) = joined(&bell);
        ring(&notify);
        assert!(is_ready(&ear));
        ear.clear().expect("cleared");
        assert!(!is_ready(&ear));
        let alone = Ear::new(notify.try_clone().expect("a second"));
        assert!(!is_ready(&alone));
        ring(&notify);
        assert!(is_ready(&alone));
        alone.clear().expect("cleared");
        assert!(!is_ready(&alone));
    }

    #[test]
    fn who_joins_after_a_ring_looks_at_once() {
        let bell = event();
        ring(&bell);
        let (ear, _notify) = joined(&bell);
        assert!(is_ready(&ear));
        ear.clear().expect("cleared");
        assert!(!is_ready(&ear));
    }
}
