//! The cores of a machine as other threads see them: how to get a vCPU out of the
//! guest, and out of its sleep.
//!
//! Used by the vCPU threads ([`super::vcpu_loop`]) and by whoever stops, kills or
//! fails the machine. A core of several sleeps in its thread, at an eventfd that
//! the guest's other cores ring without leaving (KVM's ioeventfd). The thread of a
//! core that is not there, because it comes later or has gone, waits for a *seat*:
//! a core of the host ([`super::core_changes`]).

use std::os::fd::BorrowedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use enclave_abi::layout::DOORBELL_PAGE;
use enclave_abi::queue::doorbell::WAKE_BASE;
use kvm_ioctls::{IoEventAddress, VmFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use super::kick::Kick;
use super::running::{MachineError, borrow};

/// One of them.
#[derive(Debug)]
struct Core {
    kick: Kick,
    wake: EventFd,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Where the thread of a core is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// It waits, and touches neither guest nor host core.
    Parked,
    /// It is to park, and has not yet.
    Leaving(Option<usize>),
    /// It runs the guest, on this core of the host if it is kept on one.
    On(Option<usize>),
}

/// All of them.
#[derive(Debug)]
pub(super) struct Cores {
    list: Vec<Core>,
    seats: Mutex<Vec<Seat>>,
    changed: Condvar,
}

impl Cores {
    /// The cores of a machine that does not run yet, the first of them on `hosts`.
    /// Several of them can wake each other.
    pub(super) fn new(vm: &VmFd, count: usize, hosts: &[usize]) -> Result<Self, MachineError> {
        let mut cores = Vec::new();
        for number in 0..count {
            let wake = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
                .map_err(|e| MachineError::System("make an eventfd", e))?;
            if count > 1 {
                let at = DOORBELL_PAGE + WAKE_BASE + 4 * number as u64;
                vm.register_ioevent(&wake, &IoEventAddress::Mmio(at), 1u32)
                    .map_err(|e| MachineError::Kvm("KVM_IOEVENTFD", e))?;
            }
            cores.push(Core {
                kick: Kick::default(),
                wake,
                thread: Mutex::new(None),
            });
        }
        let seat = |number: usize| match hosts.get(number) {
            Some(&host) => Seat::On(Some(host)),
            // A machine without cores of its own runs on any.
            None if number == 0 => Seat::On(None),
            None => Seat::Parked,
        };
        Ok(Self {
            list: cores,
            seats: Mutex::new((0..count).map(seat).collect()),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seat>> {
        // Plain data, whole after a panic elsewhere.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where each of them is.
    pub(super) fn seats(&self) -> Vec<Seat> {
        self.lock().clone()
    }

    /// Has core `number` run, on core `host` of the host.
    pub(super) fn seat(&self, number: usize, host: usize) {
        if let Some(seat) = self.lock().get_mut(number) {
            *seat = Seat::On(Some(host));
        }
        self.changed.notify_all();
    }

    /// Has core `number`, which the guest does not use any more, wait; whether it
    /// does by the end of `timeout`.
    pub(super) fn unseat(&self, number: usize, timeout: Duration) -> bool {
        if let Some(seat) = self.lock().get_mut(number)
            && let Seat::On(host) = *seat
        {
            *seat = Seat::Leaving(host);
        }
        self.rouse();
        let waits = |seats: &mut Vec<Seat>| !matches!(seats.get(number), Some(Seat::Parked));
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, waits);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Whether core `number` is to wait; it does from now on.
    pub(super) fn leaves(&self, number: usize) -> bool {
        let mut seats = self.lock();
        let Some(seat) = seats.get_mut(number) else {
            return false;
        };
        if matches!(seat, Seat::On(_)) {
            return false;
        }
        *seat = Seat::Parked;
        drop(seats);
        self.changed.notify_all();
        true
    }

    /// Waits until core `number` has a seat, or `is_over`; the core of the host.
    pub(super) fn take_seat(
        &self,
        number: usize,
        is_over: impl Fn() -> bool,
    ) -> Option<Option<usize>> {
        let mut seats = self.lock();
        loop {
            match seats.get(number) {
                _ if is_over() => return None,
                Some(Seat::On(host)) => return Some(*host),
                Some(Seat::Leaving(_)) => {
                    if let Some(seat) = seats.get_mut(number) {
                        *seat = Seat::Parked;
                    }
                    self.changed.notify_all();
                }
                Some(Seat::Parked) => {
                    let waited = self.changed.wait(seats);
                    seats = waited.unwrap_or_else(PoisonError::into_inner);
                }
                None => return None,
            }
        }
    }

    /// How another thread makes the vCPU leave the guest.
    pub(super) fn kick(&self, number: usize) -> Option<&Kick> {
        self.list.get(number).map(|core| &core.kick)
    }

    /// The thread of a core.
    pub(super) fn started(&self, number: usize, thread: JoinHandle<()>) {
        if let Some(core) = self.list.get(number) {
            *core.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        }
    }

    /// Makes every vCPU leave the guest or its sleep and look around.
    pub(super) fn rouse(&self) {
        // Whoever waits for a seat asks whether it is over.
        drop(self.lock());
        self.changed.notify_all();
        for core in &self.list {
            core.kick.request();
            // A full counter is readable, too.
            let _ = core.wake.write(1);
            let thread = core.thread.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(thread) = thread.as_ref() {
                // Fails only when the thread has ended.
                let _ = thread.kill(SIGRTMIN());
            }
        }
    }

    /// Waits for all threads, which were told to end.
    pub(super) fn join(&self) {
        for core in &self.list {
            let thread = core
                .thread
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(thread) = thread {
                // A panic there has been reported by the panic hook.
                let _ = thread.join();
            }
        }
    }

    /// Sleeps as core `number` until somebody wakes it, `also` is readable, or the
    /// time is over.
    pub(super) fn sleep(&self, number: usize, ns: u64, also: Option<BorrowedFd<'_>>) {
        let Some(core) = self.list.get(number) else {
            return;
        };
        let wake = borrow(&core.wake);
        let mut fds: Vec<PollFd<'_>> = [Some(wake), also]
            .into_iter()
            .flatten()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let time = (ns != u64::MAX)
            .then(|| Timespec::try_from(Duration::from_nanos(ns)).ok())
            .flatten();
        // A signal ends it as well: the caller looks around.
        let _ = poll(&mut fds, time.as_ref());
        let _ = core.wake.read();
    }
}
