//! The lease page on the host, and what becomes of leases when the broker dies.
//!
//! Owned by the arena table; one page and one watcher thread per connection to
//! a broker. Leases belong to readers, and only the broker knows the readers:
//! when it dies, nobody would ever give a LEASED generation back, and the
//! simulation would run out of banks. So the watcher turns them back to
//! PUBLISHED, which the kernel may take; a reader that still looks at one finds
//! out by its own check (`Snapshot::valid`).

// UNSAFETY: atomic access to words of a page shared with broker and guest.
#![expect(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use enclave_abi::lease::{MAX_ARENAS, SLOTS, Slot, retain_word, slot_word};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use xemem_host::Broker;

use super::arenas::Mapping;
use crate::confine::{self, Role};
use crate::vmm_log::note;

/// Bytes of the lease page.
pub(super) const LEASE_BYTES: u64 = 4096;

/// The lease page of this enclave.
#[derive(Debug)]
pub(super) struct LeasePage {
    mapping: Mapping,
}

impl LeasePage {
    /// Maps the page the broker made.
    pub(super) fn new(fd: &OwnedFd) -> Result<Self, Errno> {
        let mapping = Mapping::new(fd, LEASE_BYTES)?;
        Ok(Self { mapping })
    }

    /// Where it is mapped, for KVM.
    pub(super) fn host_address(&self) -> u64 {
        self.mapping.start() as u64
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        let fits = (index + 1) * size_of::<u64>() <= self.mapping.len();
        // SAFETY: the word lies inside the mapping, which lives as long as
        // `self`, and page-aligned memory holds it aligned; broker, kernel and
        // VMM access the page by atomic operations only.
        fits.then(|| unsafe { AtomicU64::from_ptr(self.mapping.start().cast::<u64>().add(index)) })
    }

    /// Gives every leased generation back to the kernel; how many there were.
    pub(super) fn give_back(&self) -> usize {
        let slots = (0..MAX_ARENAS).flat_map(|arena| (0..SLOTS).map(move |slot| (arena, slot)));
        let words = slots.filter_map(|(arena, slot)| self.word(slot_word(arena, slot)?));
        let given = words.filter(|word| {
            let old = word.load(Ordering::Acquire);
            let Slot::Leased(generation) = Slot::decode(old) else {
                return false;
            };
            let new = Slot::Published(generation).encode();
            // Only the broker moves LEASED words, and it is gone. A guest that
            // moves them nevertheless spoils its own snapshots only.
            word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        let count = given.count();
        for arena in 0..MAX_ARENAS {
            if let Some(word) = retain_word(arena).and_then(|index| self.word(index)) {
                word.store(0, Ordering::Release);
            }
        }
        count
    }
}

/// The connection to a broker, watched for the broker's end.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) broker: Broker,
    stop: Arc<OwnedFd>,
    watcher: Option<JoinHandle<()>>,
}

impl Link {
    /// Watches `broker` as long as this value lives; if it ends, the leases of
    /// `page` are given back.
    pub(super) fn new(broker: Broker, page: Arc<LeasePage>) -> Result<Self, std::io::Error> {
        let socket = broker.socket().try_clone_to_owned()?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let body = move || {
            if ends_first(&socket, &stopped) {
                let count = page.give_back();
                note(format_args!(
                    "the broker is gone: {count} leased generations given back"
                ));
            }
        };
        let watcher = confine::spawn(Role::Helper, "broker-watch", body)?;
        Ok(Self {
            broker,
            stop,
            watcher: Some(watcher),
        })
    }
}

/// Blocks until the broker has closed `socket` or `stop` is readable; whether
/// the broker has.
pub(super) fn ends_first(socket: &OwnedFd, stop: &OwnedFd) -> bool {
    loop {
        let mut fds = [
            // Answers are not ours to read: only the end counts, which is
            // always reported.
            PollFd::new(socket, PollFlags::empty()),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return !fds[0].revents().is_empty(),
            Err(_) => return false,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // An eventfd at 0 always takes a 1.
        let _ = rustix::io::write(self.stop.as_fd(), &1u64.to_ne_bytes());
        if let Some(watcher) = self.watcher.take() {
            // A panic there has been reported by the panic hook.
            let _ = watcher.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn page() -> LeasePage {
        let fd = memfd_create("lease-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, LEASE_BYTES).unwrap();
        LeasePage::new(&fd).unwrap()
    }

    fn set(page: &LeasePage, index: Option<usize>, value: u64) {
        page.word(index.unwrap())
            .unwrap()
            .store(value, Ordering::Relaxed);
    }

    fn get(page: &LeasePage, index: Option<usize>) -> u64 {
        page.word(index.unwrap()).unwrap().load(Ordering::Relaxed)
    }

    #[test]
    fn leases_go_back_and_everything_else_stays() {
        let page = page();
        let last = (MAX_ARENAS - 1, SLOTS - 1);
        set(&page, slot_word(0, 0), Slot::Leased(7).encode());
        set(&page, slot_word(0, 1), Slot::Published(8).encode());
        set(&page, slot_word(last.0, last.1), Slot::Leased(9).encode());
        set(&page, retain_word(3), 12);
        assert_eq!(page.give_back(), 2);
        assert_eq!(get(&page, slot_word(0, 0)), Slot::Published(7).encode());
        assert_eq!(get(&page, slot_word(0, 1)), Slot::Published(8).encode());
        assert_eq!(
            get(&page, slot_word(last.0, last.1)),
            Slot::Published(9).encode()
        );
        assert_eq!(get(&page, slot_word(1, 0)), 0);
        assert_eq!(get(&page, retain_word(3)), 0);
        assert_eq!(page.give_back(), 0);
    }

    #[test]
    fn words_of_noise_and_beyond_the_page_are_left_alone() {
        let page = page();
        for word in 0..512 {
            set(&page, Some(word), u64::MAX);
        }
        assert_eq!(page.give_back(), 0);
        assert_eq!(get(&page, slot_word(0, 0)), u64::MAX);
        assert!(page.word(512).is_none());
    }

    fn connection() -> (OwnedFd, OwnedFd) {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn a_closed_connection_is_the_brokers_end_and_an_answer_is_not() {
        let (ours, theirs) = connection();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&theirs, b"answer").unwrap();
        let waiting = std::thread::spawn(move || ends_first(&ours, &stop));
        drop(theirs);
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn a_stop_is_not_the_brokers_end() {
        let (ours, _theirs) = connection();
        let stop = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        assert!(!ends_first(&ours, &stop));
    }
}
