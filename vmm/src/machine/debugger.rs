//! A debugger's hold on the vCPU: stop, look, step, breakpoints.
//!
//! [`crate::gdb`] drives [`Attached`] on a thread of its own; the vCPU thread
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
//! The guest's registers and stack are as if nothing had happened. One vCPU.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use enclave_abi::layout::{IDT, SEL_USER_CS, VECTOR_DEBUG};
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::gate::Gate;
use super::running::borrow;
use super::virtual_memory::VirtualMemory;
use super::vm::Vm;
use crate::confine::{self, Role};
use crate::failure::{Class, Failure};
use crate::gdb::{self, Registers, Stop, Target, TargetError};
use crate::memory::Ram;
use crate::vcpu::user_segments;

/// INT1: one byte, #DB at any privilege.
const BREAKPOINT: u8 = 0xf1;
/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;
/// Where the gates of #DB and of the entry for debuggers are.
const GATE_DB: GuestAddress = GuestAddress(IDT + 16);
const GATE_DEBUG: GuestAddress = GuestAddress(IDT + VECTOR_DEBUG as u64 * 16);

/// What KVM makes of INT1 (docs/platforms.md).
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    /// The frame of its #DB points to it, not behind it.
    pub(super) stays_at_int1: bool,
    /// KVM interprets the kernel's ring and does not know it.
    pub(super) is_kernel_interpreted: bool,
}

/// What vCPU thread and session share.
#[derive(Debug)]
pub(super) struct Debugger {
    gate: Arc<Gate>,
    ram: Ram,
    vm: Arc<Vm>,
    event: EventFd,
    host: Host,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    is_attached: bool,
    /// The session has to end.
    ends: bool,
    /// Why it stopped; told once.
    stop: Option<Stop>,
    /// Address of the instruction that is stepped over.
    steps_from: Option<u64>,
    /// Addresses with what stood there.
    breakpoints: BTreeMap<u64, u8>,
    /// The kernel's own gate of #DB while ours is in its place.
    own_gate: Option<[u64; 2]>,
}

fn refused(error: kvm_ioctls::Error) -> TargetError {
    TargetError::Kvm(error.errno())
}

impl Debugger {
    pub(super) fn new(
        gate: Arc<Gate>,
        (ram, vm): (Ram, Arc<Vm>),
        host: Host,
    ) -> std::io::Result<Self> {
        Ok(Self {
            gate,
            ram,
            vm,
            event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            host,
            inner: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Plain data, whole after a panic elsewhere.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self, vcpu: &VcpuFd) -> Result<VirtualMemory<'_>, TargetError> {
        Ok(VirtualMemory {
            ram: &self.ram,
            vm: &self.vm,
            root: vcpu.get_sregs().map_err(refused)?.cr3,
        })
    }

    /// Takes the place of the only debugger; false if there is one.
    fn attach(&self) -> bool {
        let mut inner = self.lock();
        let is_free = !inner.is_attached;
        if is_free {
            (inner.is_attached, inner.ends, inner.stop) = (true, false, None);
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

    /// On the vCPU thread, after the entry for debuggers has left the guest.
    pub(super) fn trapped(&self) -> Result<(), TargetError> {
        let mut inner = self.lock();
        if inner.own_gate.is_none() {
            // The guest itself has rung: a store to nothing.
            return Ok(());
        }
        let vcpu = self.gate.vcpu();
        let mut regs = vcpu.get_regs().map_err(refused)?;
        self.take_frame(&vcpu, &mut regs)?;
        let behind = u64::from(!self.host.stays_at_int1);
        let address = regs.rip.wrapping_sub(behind);
        let at_breakpoint = inner.breakpoints.contains_key(&address)
            && inner.steps_from.is_none_or(|from| from == address);
        if at_breakpoint {
            regs.rip = address;
        }
        vcpu.set_regs(&regs).map_err(refused)?;
        inner.steps_from = None;
        if inner.is_attached {
            inner.stop = Some(if at_breakpoint {
                Stop::Breakpoint
            } else {
                Stop::Trap
            });
            self.gate.hold_here();
            // As in `end`.
            let _ = self.event.write(1);
        } else {
            // A step that ended after its debugger had gone.
            let memory = self.memory(&vcpu)?;
            take_all_back(&mut inner, &memory);
            self.give_gate_back(&mut inner);
        }
        Ok(())
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

    /// Leads #DB to the entry for debuggers.
    fn take_gate(&self, inner: &mut Inner) {
        if inner.own_gate.is_some() {
            return;
        }
        let gates = self
            .ram
            .read_obj::<[u64; 2]>(GATE_DB)
            .and_then(|own| Ok((own, self.ram.read_obj::<[u64; 2]>(GATE_DEBUG)?)));
        // In RAM, which cannot vanish; without our gate there are no stops.
        if let Ok((own, ours)) = gates
            && self.ram.write_obj(ours, GATE_DB).is_ok()
        {
            inner.own_gate = Some(own);
        }
    }

    fn give_gate_back(&self, inner: &mut Inner) {
        if let Some(own) = inner.own_gate.take() {
            // As in `take_gate`.
            let _ = self.ram.write_obj(own, GATE_DB);
        }
    }
}

/// Removes every breakpoint that still stands in memory.
fn take_all_back(inner: &mut Inner, memory: &VirtualMemory<'_>) {
    for (address, byte) in std::mem::take(&mut inner.breakpoints) {
        let mut there = [0];
        // Gone with its program otherwise, or another one's.
        if memory.read(address, &mut there).is_ok() && there == [BREAKPOINT] {
            let _ = memory.write(address, &[byte]);
        }
    }
}

/// Serves gdb at the other end of `input` and `output` on a thread of its own;
/// `kick` makes the vCPU leave the guest.
pub(super) fn start(
    debugger: &Arc<Debugger>,
    kick: impl Fn() + Send + 'static,
    input: OwnedFd,
    output: OwnedFd,
) -> Result<(), Failure> {
    let what = "start a gdb session";
    if !debugger.attach() {
        let why = "another debugger is attached";
        return Err(Failure::new(Class::Busy, what, why));
    }
    let mut target = Attached {
        debugger: Arc::clone(debugger),
        kick,
        is_holding: false,
    };
    let body = move || gdb::serve(input, output, &mut target);
    confine::spawn(Role::Vcpu, "gdb", body)
        .map(drop)
        .map_err(|error| {
            debugger.lock().is_attached = false;
            Failure::io(what, error)
        })
}

/// The debugger's side of an attached machine.
struct Attached<K: Fn()> {
    debugger: Arc<Debugger>,
    /// Makes the vCPU leave the guest.
    kick: K,
    /// The vCPU is kept outside by us.
    is_holding: bool,
}

impl<K: Fn()> Attached<K> {
    fn with_memory<T>(
        &self,
        body: impl FnOnce(&mut Inner, &VirtualMemory<'_>) -> Result<T, u64>,
    ) -> Result<T, TargetError> {
        let mut inner = self.debugger.lock();
        let vcpu = self.debugger.gate.vcpu();
        let memory = self.debugger.memory(&vcpu)?;
        body(&mut inner, &memory).map_err(TargetError::NoMemory)
    }

    fn set_trap_flag(&self, step: bool) -> Result<u64, TargetError> {
        let vcpu = self.debugger.gate.vcpu();
        let mut regs = vcpu.get_regs().map_err(refused)?;
        let flag = if step { TRAP_FLAG } else { 0 };
        regs.rflags = regs.rflags & !TRAP_FLAG | flag;
        vcpu.set_regs(&regs).map_err(refused)?;
        Ok(regs.rip)
    }
}

impl<K: Fn()> Target for Attached<K> {
    fn stop(&mut self) -> Result<(), TargetError> {
        if self.is_holding {
            return Ok(());
        }
        if !self.debugger.gate.hold(&self.kick) {
            return Err(TargetError::Stuck);
        }
        self.is_holding = true;
        let mut inner = self.debugger.lock();
        self.debugger.take_gate(&mut inner);
        if inner.stop.take().is_some() {
            // It stopped by itself meanwhile, and holds once more for that.
            self.debugger.gate.release();
        }
        Ok(())
    }

    fn resume(&mut self, step: bool) -> Result<(), TargetError> {
        let from = self.set_trap_flag(step)?;
        self.debugger.lock().steps_from = step.then_some(from);
        self.is_holding = false;
        self.debugger.gate.release();
        Ok(())
    }

    fn event(&self) -> BorrowedFd<'_> {
        borrow(&self.debugger.event)
    }

    fn take_stop(&mut self) -> Option<Stop> {
        // Several events at once are told by the state, not by the count.
        let _ = self.debugger.event.read();
        let mut inner = self.debugger.lock();
        if inner.ends {
            return Some(Stop::End);
        }
        let stop = inner.stop.take();
        self.is_holding |= stop.is_some();
        stop
    }

    fn registers(&mut self) -> Result<Registers, TargetError> {
        let vcpu = self.debugger.gate.vcpu();
        let r = vcpu.get_regs().map_err(refused)?;
        let s = vcpu.get_sregs().map_err(refused)?;
        let fpu = vcpu.get_fpu().map_err(refused)?;
        let mut x87 = [[0; 10]; 8];
        for (to, from) in x87.iter_mut().zip(fpu.fpr) {
            to.copy_from_slice(from.first_chunk::<10>().unwrap_or(&[0; 10]));
        }
        let segments = [s.cs, s.ss, s.ds, s.es, s.fs, s.gs];
        let low = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
        Ok(Registers {
            general: [
                r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
                r.r12, r.r13, r.r14, r.r15,
            ],
            rip: r.rip,
            flags: low(r.rflags & !TRAP_FLAG),
            segments: segments.map(|segment| u32::from(segment.selector)),
            x87,
            x87_control: [
                fpu.fcw.into(),
                fpu.fsw.into(),
                fpu.ftwx.into(),
                0,
                low(fpu.last_ip),
                0,
                low(fpu.last_dp),
                fpu.last_opcode.into(),
            ],
            xmm: fpu.xmm,
            mxcsr: fpu.mxcsr,
            bases: [s.fs.base, s.gs.base],
        })
    }

    fn set_registers(&mut self, registers: &Registers) -> Result<(), TargetError> {
        let vcpu = self.debugger.gate.vcpu();
        let mut r = vcpu.get_regs().map_err(refused)?;
        [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ] = registers.general;
        r.rip = registers.rip;
        // Arithmetic flags and direction: not what interrupts and privilege hang on.
        const FREE: u64 = 0xcd5;
        r.rflags = r.rflags & !FREE | u64::from(registers.flags) & FREE;
        vcpu.set_regs(&r).map_err(refused)?;
        let mut fpu = vcpu.get_fpu().map_err(refused)?;
        if fpu.xmm != registers.xmm || fpu.mxcsr != registers.mxcsr {
            (fpu.xmm, fpu.mxcsr) = (registers.xmm, registers.mxcsr);
            vcpu.set_fpu(&fpu).map_err(refused)?;
        }
        Ok(())
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), TargetError> {
        self.with_memory(|inner, memory| {
            let read = memory.read(address, bytes);
            // gdb sees the program's own instructions.
            for (at, byte) in (address..).zip(bytes.iter_mut()) {
                if let Some(own) = inner.breakpoints.get(&at) {
                    *byte = *own;
                }
            }
            read
        })
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), TargetError> {
        self.with_memory(|_, memory| memory.write(address, bytes))
    }

    fn insert(&mut self, address: u64) -> Result<(), TargetError> {
        if self.debugger.host.is_kernel_interpreted && address >> 63 != 0 {
            return Err(TargetError::Interpreted);
        }
        self.with_memory(|inner, memory| {
            if inner.breakpoints.contains_key(&address) {
                return Ok(());
            }
            let mut own = [0];
            memory.read(address, &mut own)?;
            memory.write(address, &[BREAKPOINT])?;
            inner.breakpoints.extend([(address, own[0])]);
            Ok(())
        })
    }

    fn remove(&mut self, address: u64) -> Result<(), TargetError> {
        self.with_memory(|inner, memory| match inner.breakpoints.remove(&address) {
            Some(own) => memory.write(address, &[own]),
            None => Ok(()),
        })
    }

    fn let_go(&mut self) {
        let is_stopped = self.stop().is_ok();
        let debugger = &self.debugger;
        if is_stopped {
            // What KVM refuses here it has refused before.
            let _ = self.set_trap_flag(false);
            let _ = self.with_memory(|inner, memory| {
                take_all_back(inner, memory);
                Ok(())
            });
        }
        let mut inner = debugger.lock();
        if is_stopped && inner.steps_from.is_none() {
            debugger.give_gate_back(&mut inner);
        }
        inner.is_attached = false;
        drop(inner);
        if std::mem::take(&mut self.is_holding) {
            debugger.gate.release();
        }
    }
}
