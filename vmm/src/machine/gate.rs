//! A vCPU with a gate in front: others can look at it while it runs, without the
//! guest noticing more than a pause.
//!
//! The vCPU thread enters the guest through [`Gate::enter`]; any other thread
//! gets the vCPU by [`Gate::look`], which has the guest left if it is inside.
//! While the thread serves a call on the host nobody has to wait for it. After
//! the thread's end the vCPU stays as it stopped.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::dump::LastExit;
use crate::exit::Exit;

/// Exits that are remembered.
const REMEMBERED: usize = 32;
/// Bits of a remembered exit that say what it was about.
const DETAIL_BITS: u32 = 56;
/// How long a guest may take to be left.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the vCPU is kicked meanwhile.
const KICK_EVERY: Duration = Duration::from_millis(1);

/// A vCPU and who may use it.
#[derive(Debug)]
pub(super) struct Gate {
    vcpu: Mutex<VcpuFd>,
    /// Threads that want to look.
    lookers: Mutex<u32>,
    /// The machine stops: nobody waits any more.
    is_closed: AtomicBool,
    changed: Condvar,
    /// Fast form of "somebody wants to look".
    is_wanted: AtomicU32,
    exits: LastExits,
}

/// What [`Gate::look`] found.
#[derive(Debug)]
pub(super) struct Looked<T> {
    /// The answer.
    pub(super) answer: T,
    /// The guest was left for it.
    pub(super) was_inside: bool,
}

impl Gate {
    pub(super) fn new(vcpu: VcpuFd) -> Self {
        Self {
            vcpu: Mutex::new(vcpu),
            lookers: Mutex::new(0),
            is_closed: AtomicBool::new(false),
            changed: Condvar::new(),
            is_wanted: AtomicU32::new(0),
            exits: LastExits::default(),
        }
    }

    /// The vCPU outside the guest, for the vCPU thread.
    pub(super) fn vcpu(&self) -> MutexGuard<'_, VcpuFd> {
        // The registers are KVM's, whole after a panic here.
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the guest until it leaves, and remembers why it did. Waits while
    /// somebody looks.
    pub(super) fn enter(&self) -> Exit {
        if self.is_wanted.load(Ordering::Acquire) != 0 {
            let lookers = self.lookers.lock().unwrap_or_else(PoisonError::into_inner);
            // An error is a poisoned count, which is a number all the same.
            let waits =
                |lookers: &mut u32| *lookers != 0 && !self.is_closed.load(Ordering::Acquire);
            drop(self.changed.wait_while(lookers, waits));
        }
        let exit = classify(&mut self.vcpu());
        self.exits.note(&exit);
        exit
    }

    /// Has `body` look at the vCPU outside the guest; `None` when the guest
    /// could not be left. `kick` makes the vCPU leave it.
    pub(super) fn look<T>(
        &self,
        kick: impl Fn(),
        body: impl FnOnce(&mut VcpuFd) -> T,
    ) -> Option<Looked<T>> {
        self.hold_here();
        let mut was_inside = false;
        let deadline = Instant::now() + PATIENCE;
        let vcpu = loop {
            match self.vcpu.try_lock() {
                Ok(vcpu) => break Some(vcpu),
                Err(std::sync::TryLockError::Poisoned(poisoned)) => {
                    break Some(poisoned.into_inner());
                }
                Err(std::sync::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    break None;
                }
                Err(std::sync::TryLockError::WouldBlock) => {
                    was_inside = true;
                    kick();
                    std::thread::sleep(KICK_EVERY);
                }
            }
        };
        let answer = vcpu.map(|mut vcpu| body(&mut vcpu));
        self.release();
        answer.map(|answer| Looked { answer, was_inside })
    }

    /// Keeps the vCPU outside the guest until [`Gate::release`]; false when it
    /// could not be left.
    pub(super) fn hold(&self, kick: impl Fn()) -> bool {
        self.hold_here();
        let is_out = self.look(kick, |_| ()).is_some();
        if !is_out {
            self.release();
        }
        is_out
    }

    /// The same for the vCPU thread itself, which is outside.
    pub(super) fn hold_here(&self) {
        self.count_lookers(|lookers| *lookers += 1);
    }

    /// Takes one [`Gate::hold`] back.
    pub(super) fn release(&self) {
        self.count_lookers(|lookers| *lookers = lookers.saturating_sub(1));
    }

    /// From now on nobody keeps the vCPU thread from seeing that it has to end.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.count_lookers(|_| ());
    }

    fn count_lookers(&self, change: impl FnOnce(&mut u32)) {
        let mut lookers = self.lookers.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut lookers);
        self.is_wanted.store(*lookers, Ordering::Release);
        self.changed.notify_all();
    }

    /// The last exits, oldest first.
    pub(super) fn last_exits(&self) -> Vec<LastExit> {
        self.exits.list()
    }
}

/// Runs the guest until it leaves, and says why it did.
fn classify(vcpu: &mut VcpuFd) -> Exit {
    let exit = match vcpu.run() {
        Ok(VcpuExit::MmioWrite(address, bytes)) => Exit::store(address, bytes),
        Ok(VcpuExit::MmioRead(address, data)) => {
            data.fill(0);
            Exit::MmioRead(address)
        }
        Ok(VcpuExit::IoOut(port, _)) => Exit::PortWrite(port),
        Ok(VcpuExit::IoIn(port, data)) => {
            data.fill(0);
            Exit::PortRead(port)
        }
        Ok(VcpuExit::Hlt) => Exit::Halted,
        Ok(VcpuExit::Shutdown) => Exit::Shutdown,
        Ok(VcpuExit::Intr) => Exit::Interrupted,
        Ok(VcpuExit::FailEntry(reason, _)) => Exit::EntryFailed(format!("reason {reason:#x}")),
        Ok(VcpuExit::InternalError) => Exit::InternalError { cpl: 0 },
        Ok(VcpuExit::MemoryFault { .. }) => Exit::MemoryFault,
        Ok(other) => Exit::Other(format!("{other:?}")),
        Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => Exit::Interrupted,
        Err(error) if error.errno() == libc::EFAULT => Exit::MemoryFault,
        Err(error) => Exit::EntryFailed(error.to_string()),
    };
    match exit {
        Exit::InternalError { .. } => {
            let cpl = vcpu.get_sregs().map_or(0, |sregs| sregs.cs.dpl);
            Exit::InternalError { cpl }
        }
        other => other,
    }
}

/// The last exits of one vCPU: written by its thread with two plain stores,
/// read by anybody.
#[derive(Debug)]
struct LastExits {
    /// Kind in the upper eight bits, what it was about below.
    ring: [AtomicU64; REMEMBERED],
    /// Exits there have been.
    count: AtomicU64,
}

impl Default for LastExits {
    fn default() -> Self {
        Self {
            ring: [const { AtomicU64::new(0) }; REMEMBERED],
            count: AtomicU64::new(0),
        }
    }
}

impl LastExits {
    fn place(&self, nr: u64) -> Option<&AtomicU64> {
        let place = nr % REMEMBERED as u64;
        self.ring.get(usize::try_from(place).ok()?)
    }

    fn note(&self, exit: &Exit) {
        let nr = self.count.load(Ordering::Relaxed);
        let detail = exit.detail() & ((1 << DETAIL_BITS) - 1);
        if let Some(place) = self.place(nr) {
            let word = u64::from(exit.code()) << DETAIL_BITS | detail;
            place.store(word, Ordering::Relaxed);
        }
        self.count.store(nr + 1, Ordering::Release);
    }

    fn list(&self) -> Vec<LastExit> {
        let count = self.count.load(Ordering::Acquire);
        let first = count.saturating_sub(REMEMBERED as u64);
        let remembered = (first..count).filter_map(|nr| {
            let word = self.place(nr)?.load(Ordering::Relaxed);
            let code = u8::try_from(word >> DETAIL_BITS).ok()?;
            Some(LastExit {
                nr: nr + 1,
                reason: Exit::name_of(code).to_owned(),
                detail: word & ((1 << DETAIL_BITS) - 1),
            })
        });
        remembered.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_exits_are_kept_in_order() {
        let exits = LastExits::default();
        assert_eq!(exits.list(), []);
        for address in 0..40 {
            exits.note(&Exit::MmioRead(address));
        }
        exits.note(&Exit::PortWrite(0x3f8));
        let list = exits.list();
        assert_eq!(list.len(), REMEMBERED);
        let first = list.first().map(|exit| (exit.nr, exit.detail));
        assert_eq!(first, Some((10, 9)));
        let last = list.last().map(|exit| (exit.nr, exit.detail));
        assert_eq!(last, Some((41, 0x3f8)));
        assert_eq!(list[0].reason, "mmio-read");
        assert_eq!(list[31].reason, "port-write");
    }

    #[test]
    fn an_address_too_long_loses_its_upper_bits_only() {
        let exits = LastExits::default();
        exits.note(&Exit::MmioWrite(u64::MAX));
        assert_eq!(exits.list()[0].detail, (1 << DETAIL_BITS) - 1);
        assert_eq!(exits.list()[0].reason, "mmio-write");
    }
}
