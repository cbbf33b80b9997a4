//! Bells between enclaves: eventfds that KVM itself rings and hears.
//!
//! ```text
//!  exporter's kernel: store ─► ioeventfd ─► eventfd ─► irqfd ─► interrupt
//!                     (its VM's, here)     (broker's)  (the importer's VM's)
//! ```
//!
//! No thread of any process runs in between. In ring-3 mode, where the kernel
//! takes no such interrupt, the importer's vCPU thread itself sleeps at the
//! eventfd ([`hear`]). The exporting side ([`Rung`]) is used by the arena table,
//! the importing side ([`Heard`], [`Watch`], [`Listening`]) by the import table,
//! both on the vCPU thread. The broker makes the eventfds and says when they are
//! to go.

// UNSAFETY: eventfds from the broker.
#![expect(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use enclave_abi::layout::{DOORBELL_PAGE, VECTOR_BELL, VECTOR_NOTICE};
use enclave_abi::queue::doorbell::{BELL_BASE, BELLS};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, VmFd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;
use xemem_host::Bells;

use super::leases::ends_first;
use super::vm::Vm;
use crate::confine::{self, Role};
use crate::vmm_log::note;

/// Interrupt line of all bells; those below are the usual chips'.
const GSI_BELL: u32 = 24;
/// Interrupt line of all notices.
const GSI_NOTICE: u32 = 25;

/// Routes the two lines to their vectors. Once per machine; no other line of the
/// interrupt chips is used.
pub(super) fn route(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let entry = |gsi, vector: u8| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        // Edge, fixed delivery, to the first vCPU.
        entry.u.msi = kvm_irq_routing_msi {
            address_lo: 0xfee0_0000,
            data: u32::from(vector),
            ..Default::default()
        };
        entry
    };
    let entries = [
        entry(GSI_BELL, VECTOR_BELL),
        entry(GSI_NOTICE, VECTOR_NOTICE),
    ];
    let routing =
        KvmIrqRouting::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    vm.set_gsi_routing(&routing)
}

fn event(fd: OwnedFd) -> EventFd {
    let raw = fd.into_raw_fd();
    // SAFETY: `raw` was just taken out of its owner.
    unsafe { EventFd::from_raw_fd(raw) }
}

fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

/// The bells that the kernel rings for one arena.
#[derive(Debug, Default)]
pub(super) struct Rung {
    bells: [Option<EventFd>; BELLS],
}

impl Rung {
    fn address(slot: u32, bell: usize) -> IoEventAddress {
        let number = u64::from(slot) * BELLS as u64 + bell as u64;
        IoEventAddress::Mmio(DOORBELL_PAGE + BELL_BASE + 4 * number)
    }

    /// Puts in force what the broker says; which ones the kernel is to ring. One
    /// that KVM refuses is not rung: its importer hears of generations from the
    /// broker only.
    pub(super) fn replace(&mut self, vm: &Vm, slot: u32, bells: Bells) -> u64 {
        let is_fresh = |bell| bells.fresh.iter().any(|&(number, _)| number == bell);
        for bell in 0..BELLS {
            if bells.all >> bell & 1 == 0 || is_fresh(bell) {
                self.take_out(vm, slot, bell);
            }
        }
        for (bell, fd) in bells.fresh {
            let fd = event(fd);
            let put = vm.register_ioevent(&fd, &Self::address(slot, bell), 1u32);
            match (put, self.bells.get_mut(bell)) {
                (Ok(()), Some(place)) => *place = Some(fd),
                (Err(error), _) => note(format_args!("KVM refused a bell: {error}")),
                (Ok(()), None) => {}
            }
        }
        let there = (0_u64..)
            .zip(&self.bells)
            .filter(|(_, bell)| bell.is_some());
        there.fold(0, |mask, (bell, _)| mask | 1 << bell)
    }

    /// Takes all of them out.
    pub(super) fn clear(&mut self, vm: &Vm, slot: u32) {
        for bell in 0..BELLS {
            self.take_out(vm, slot, bell);
        }
    }

    fn take_out(&mut self, vm: &Vm, slot: u32, bell: usize) {
        if let Some(fd) = self.bells.get_mut(bell).and_then(Option::take) {
            // It was put there; the eventfd goes in any case.
            let _ = vm.unregister_ioevent(&fd, &Self::address(slot, bell), 1u32);
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.bells.iter().flatten().count()
    }
}

/// What interrupts the kernel for one import: the exporter's bell, and the
/// broker's notify. While this exists KVM alone takes from the eventfds. What is
/// pending in the guest when it ends stays there, and costs the next wait a look.
#[derive(Debug)]
pub(super) struct Heard {
    vm: Arc<Vm>,
    bell: EventFd,
    notice: EventFd,
}

impl Heard {
    /// Has KVM listen to both.
    pub(super) fn new(vm: Arc<Vm>, bell: OwnedFd, notice: OwnedFd) -> Result<Self, Errno> {
        let (bell, notice) = (event(bell), event(notice));
        let heard = Self { vm, bell, notice };
        heard
            .vm
            .register_irqfd(&heard.bell, GSI_BELL)
            .map_err(errno)?;
        heard
            .vm
            .register_irqfd(&heard.notice, GSI_NOTICE)
            .map_err(errno)?;
        Ok(heard)
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        // What KVM does not listen to, it need not stop to.
        let _ = self.vm.unregister_irqfd(&self.bell, GSI_BELL);
        let _ = self.vm.unregister_irqfd(&self.notice, GSI_NOTICE);
    }
}

/// The same without interrupts: what the vCPU thread waits at.
#[derive(Debug)]
pub(super) struct Listening {
    /// The exporter's bell.
    pub(super) bell: OwnedFd,
    /// The broker's notify.
    pub(super) notify: OwnedFd,
}

/// Sleeps until something rings at `ears`, the broker's `socket` hangs up,
/// `cancel` is readable, or for `ns` nanoseconds (`u64::MAX` = for ever). Whether
/// a bell rang, and whether the broker has something to say or is gone.
pub(super) fn hear<'a>(
    ears: impl Iterator<Item = &'a Listening>,
    socket: Option<BorrowedFd<'_>>,
    ns: u64,
    cancel: BorrowedFd<'_>,
) -> (bool, bool) {
    let ears: Vec<&Listening> = ears.collect();
    let mut fds = vec![PollFd::from_borrowed_fd(cancel, PollFlags::IN)];
    for ear in &ears {
        fds.push(PollFd::new(&ear.bell, PollFlags::IN));
        fds.push(PollFd::new(&ear.notify, PollFlags::IN));
    }
    // Nothing asked for: this ends the sleep when the broker hangs up.
    let empty = PollFlags::empty();
    fds.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket, empty)));
    let limit = (ns != u64::MAX).then(|| Duration::from_nanos(ns));
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    // What goes wrong here costs a look, as every end of a sleep.
    let _ = poll(&mut fds, limit.as_ref());
    let has = |place: usize| fds.get(place).is_some_and(|fd| !fd.revents().is_empty());
    let (mut bell, mut notice) = (false, socket.is_some() && has(1 + 2 * ears.len()));
    for (number, ear) in ears.iter().enumerate() {
        // They never block; cleared before the kernel looks.
        bell |= has(1 + 2 * number) && rustix::io::read(&ear.bell, &mut [0; 8]).is_ok();
        notice |= has(2 + 2 * number) && rustix::io::read(&ear.notify, &mut [0; 8]).is_ok();
    }
    (bell, notice)
}

/// Interrupts the kernel when the broker at the other end of a connection is
/// gone: it may be asleep, and nobody else would tell it.
#[derive(Debug)]
pub(super) struct Watch {
    vm: Arc<Vm>,
    gone: Arc<EventFd>,
    stop: Arc<OwnedFd>,
    watcher: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches `socket`.
    pub(super) fn new(vm: Arc<Vm>, socket: OwnedFd) -> Result<Self, Errno> {
        let gone = Arc::new(event(eventfd(0, EventfdFlags::CLOEXEC)?));
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        vm.register_irqfd(&gone, GSI_NOTICE).map_err(errno)?;
        let mut watch = Self {
            vm,
            gone,
            stop,
            watcher: None,
        };
        let (gone, stop) = (Arc::clone(&watch.gone), Arc::clone(&watch.stop));
        let body = move || {
            if ends_first(&socket, &stop) {
                // An eventfd at 0 always takes a 1.
                let _ = gone.write(1);
            }
        };
        let watcher = confine::spawn(Role::Helper, "import-watch", body);
        watch.watcher = Some(watcher.map_err(|_| Errno::AGAIN)?);
        Ok(watch)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // As above.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(watcher) = self.watcher.take() {
            // A panic there has been reported by the panic hook.
            let _ = watcher.join();
        }
        let _ = self.vm.unregister_irqfd(&self.gone, GSI_NOTICE);
    }
}
