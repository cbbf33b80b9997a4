//! The cores of a machine as other threads see them: how to get a vCPU out of the
//! guest, and out of its sleep.
//!
//! Used by the vCPU threads ([`super::running`]) and by whoever stops, kills or
//! fails the machine. A core of several sleeps in its thread, at an eventfd that
//! the guest's other cores ring without leaving (KVM's ioeventfd).

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
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

/// All of them.
#[derive(Debug)]
pub(super) struct Cores(Vec<Core>);

impl Cores {
    /// The cores of a machine that does not run yet. Several of them can wake each
    /// other.
    pub(super) fn new(vm: &VmFd, count: usize) -> Result<Self, MachineError> {
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
        Ok(Self(cores))
    }

    /// How another thread makes the vCPU leave the guest.
    pub(super) fn kick(&self, number: usize) -> Option<&Kick> {
        self.0.get(number).map(|core| &core.kick)
    }

    /// The thread of a core.
    pub(super) fn started(&self, number: usize, thread: JoinHandle<()>) {
        if let Some(core) = self.0.get(number) {
            *core.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        }
    }

    /// Makes every vCPU leave the guest or its sleep and look around.
    pub(super) fn rouse(&self) {
        for core in &self.0 {
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
        for core in &self.0 {
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
        let Some(core) = self.0.get(number) else {
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
