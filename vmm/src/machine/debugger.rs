//! A debugger's hold on the vCPUs: breakpoints, steps, and where they stopped.
//!
//! What vCPU threads and a session ([`super::attached`]) share; each vCPU thread
//! calls [`Debugger::trapped`]. KVM's own means (KVM_SET_GUEST_DEBUG) work in
//! ring 0 alone on a nested page-table KVM (docs/platforms.md), so #DB itself is
//! used, in the same way everywhere:
//!
//! ```text
//!   trap flag, or INT1 in place of an instruction
//!     → #DB → gate 1, led to the kernel's entry for debuggers while one is there
//!     → that entry stores to the doorbell page, which leaves the guest
//!     → `trapped` puts the vCPU back to where the frame says: it stands there
//! ```
//!
//! The guest's registers and stack are as if nothing had happened.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use enclave_abi::layout::{SEL_USER_CS, VECTOR_DEBUG, idt};
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::gate::Gate;
use super::virtual_memory::VirtualMemory;
use super::vm::Vm;
use crate::gdb::{Stop, TargetError};
use crate::memory::Ram;
use crate::vcpu::user_segments;

/// INT1: one byte, #DB at any privilege.
pub(super) const BREAKPOINT: u8 = 0xf1;
/// RFLAGS.TF.
pub(super) const TRAP_FLAG: u64 = 1 << 8;
/// Vector of #DB.
const VECTOR_DB: u8 = 1;

/// What KVM makes of INT1 (docs/platforms.md).
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    /// The frame of its #DB points to it, not behind it.
    pub(super) stays_at_int1: bool,
    /// KVM interprets the kernel's ring and does not know it.
    pub(super) is_kernel_interpreted: bool,
}

/// What vCPU threads and session share.
#[derive(Debug)]
pub(super) struct Debugger {
    /// Of each core.
    pub(super) gates: Vec<Arc<Gate>>,
    ram: Ram,
    vm: Arc<Vm>,
    pub(super) event: EventFd,
    pub(super) host: Host,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) is_attached: bool,
    /// The session has to end.
    pub(super) ends: bool,
    pub(super) cores: Vec<Core>,
    /// Addresses with what stood there.
    pub(super) breakpoints: BTreeMap<u64, u8>,
    /// Addresses where one was: a core may have met it and not have told.
    pub(super) past: BTreeSet<u64>,
    /// The kernel's own gates of #DB, by core, while ours are in their places.
    own_gates: Option<Vec<[u64; 2]>>,
}

#[derive(Debug, Default)]
pub(super) struct Core {
    /// Why it stopped, and holds itself; told once.
    pub(super) stop: Option<Stop>,
    /// It is at a breakpoint that is still to be told: another core's was first.
    pub(super) is_at_breakpoint: bool,
    /// Address of the instruction that is stepped over.
    pub(super) steps_from: Option<u64>,
}

/// Where a core has the gate of a vector.
fn gate_of(core: usize, vector: u8) -> GuestAddress {
    GuestAddress(idt(core) + u64::from(vector) * 16)
}

pub(super) fn refused(error: kvm_ioctls::Error) -> TargetError {
    TargetError::Kvm(error.errno())
}

impl Debugger {
    pub(super) fn new(
        gates: Vec<Arc<Gate>>,
        (ram, vm): (Ram, Arc<Vm>),
        host: Host,
    ) -> std::io::Result<Self> {
        let cores = gates.iter().map(|_| Core::default()).collect();
        Ok(Self {
            gates,
            ram,
            vm,
            event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            host,
            inner: Mutex::new(Inner {
                cores,
                ..Inner::default()
            }),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Plain data, whole after a panic elsewhere.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn memory(&self, vcpu: &VcpuFd) -> Result<VirtualMemory<'_>, TargetError> {
        Ok(VirtualMemory {
            ram: &self.ram,
            vm: &self.vm,
            root: vcpu.get_sregs().map_err(refused)?.cr3,
        })
    }

    /// Takes the place of the only debugger; false if there is one.
    pub(super) fn attach(&self) -> bool {
        let mut inner = self.lock();
        let is_free = !inner.is_attached;
        if is_free {
            (inner.is_attached, inner.ends) = (true, false);
            inner.past.clear();
            for core in &mut inner.cores {
                (core.stop, core.is_at_breakpoint) = (None, false);
            }
        }
        is_free
    }

    /// Ends a session if there is one, and lets the guest go on.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        if inner.is_attached {
            inner.ends = true;
            // Fails only when the count is full, and then it is readable.
            let _ = self.event.write(1);
        }
    }

    /// On the thread of vCPU `number`, after the entry for debuggers has left the
    /// guest.
    pub(super) fn trapped(&self, number: usize) -> Result<(), TargetError> {
        let mut inner = self.lock();
        let Some(gate) = self.gates.get(number) else {
            return Ok(());
        };
        let vcpu = gate.vcpu();
        let mut regs = vcpu.get_regs().map_err(refused)?;
        if !self.is_at_entry(number, regs.rip) {
            // The guest itself has rung: a store to nothing.
            return Ok(());
        }
        self.take_frame(&vcpu, &mut regs)?;
        let behind = u64::from(!self.host.stays_at_int1);
        let address = regs.rip.wrapping_sub(behind);
        let is_breakpoint = inner.breakpoints.contains_key(&address);
        let was_breakpoint = !is_breakpoint && inner.past.contains(&address);
        let is_attached = inner.is_attached;
        let Some(core) = inner.cores.get_mut(number) else {
            return Ok(());
        };
        let at_breakpoint = is_breakpoint && core.steps_from.is_none_or(|from| from == address);
        // Met before it was taken back: the instruction itself is there now.
        let is_late = was_breakpoint && core.steps_from.is_none();
        if at_breakpoint || is_late {
            regs.rip = address;
        }
        vcpu.set_regs(&regs).map_err(refused)?;
        if is_late {
            return Ok(());
        }
        core.steps_from = None;
        if is_attached {
            core.stop = Some(if at_breakpoint {
                Stop::Breakpoint
            } else {
                Stop::Trap
            });
            gate.hold_here();
            // As in `end`.
            let _ = self.event.write(1);
        } else {
            // A step that ended after its debugger had gone.
            let memory = self.memory(&vcpu)?;
            take_all_back(&mut inner, &memory);
            self.give_gates_back(&mut inner);
        }
        Ok(())
    }

    /// Whether core `number` is in its entry for debuggers.
    fn is_at_entry(&self, number: usize, rip: u64) -> bool {
        /// The store and what is behind it, which is never executed.
        const ENTRY_BYTES: u64 = 16;
        let gate = self.ram.read_obj::<[u64; 2]>(gate_of(number, VECTOR_DEBUG));
        gate.is_ok_and(|[low, high]| {
            let entry = low & 0xffff | low >> 48 << 16 | high << 32;
            rip.wrapping_sub(entry) < ENTRY_BYTES
        })
    }

    /// Does what `iretq` would do with the frame on top of the stack.
    fn take_frame(&self, vcpu: &VcpuFd, regs: &mut kvm_regs) -> Result<(), TargetError> {
        let mut sregs = vcpu.get_sregs().map_err(refused)?;
        let memory = self.memory(vcpu)?;
        let mut bytes = [0; 40];
        memory
            .read(regs.rsp, &mut bytes)
            .map_err(TargetError::NoMemory)?;
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        let mut next = || words.next().unwrap_or(0);
        regs.rip = next();
        let cs = next();
        regs.rflags = next() & !TRAP_FLAG;
        regs.rsp = next();
        if cs == u64::from(SEL_USER_CS) && sregs.cs.selector != SEL_USER_CS {
            (sregs.cs, sregs.ss) = user_segments();
            vcpu.set_sregs(&sregs).map_err(refused)?;
        }
        Ok(())
    }

    /// Leads #DB of every core to the entry for debuggers.
    pub(super) fn take_gates(&self, inner: &mut Inner) {
        if inner.own_gates.is_some() {
            return;
        }
        let read = |core, vector| self.ram.read_obj::<[u64; 2]>(gate_of(core, vector));
        let all = 0..self.gates.len();
        let own: Result<Vec<_>, _> = all.clone().map(|core| read(core, VECTOR_DB)).collect();
        let ours: Result<Vec<_>, _> = all.map(|core| read(core, VECTOR_DEBUG)).collect();
        // In RAM, which cannot vanish; without our gates there are no stops.
        if let (Ok(own), Ok(ours)) = (own, ours) {
            self.write_gates(&ours);
            inner.own_gates = Some(own);
        }
    }

    /// Gives the kernel's gates back, unless a step is still under way: it will
    /// need ours.
    pub(super) fn give_gates_back(&self, inner: &mut Inner) {
        if inner.cores.iter().any(|core| core.steps_from.is_some()) {
            return;
        }
        if let Some(own) = inner.own_gates.take() {
            self.write_gates(&own);
        }
    }

    fn write_gates(&self, gates: &[[u64; 2]]) {
        for (core, gate) in gates.iter().enumerate() {
            // As in `take_gates`.
            let _ = self.ram.write_obj(*gate, gate_of(core, VECTOR_DB));
        }
    }
}

/// Removes every breakpoint that still stands in memory.
pub(super) fn take_all_back(inner: &mut Inner, memory: &VirtualMemory<'_>) {
    for (address, byte) in std::mem::take(&mut inner.breakpoints) {
        inner.past.insert(address);
        let mut there = [0];
        // Gone with its program otherwise, or another one's.
        if memory.read(address, &mut there).is_ok() && there == [BREAKPOINT] {
            let _ = memory.write(address, &[byte]);
        }
    }
}
