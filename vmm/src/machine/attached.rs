//! A debugger's session with a machine: its side of the vCPUs.
//!
//! [`crate::gdb`] drives [`Attached`] on a thread of its own. All cores stand
//! still, or none does by itself. What a vCPU thread does when its guest has
//! stopped is in [`super::debugger`].

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::debugger::{BREAKPOINT, Debugger, Inner, TRAP_FLAG, refused, take_all_back};
use super::running::borrow;
use super::virtual_memory::VirtualMemory;
use crate::confine::{self, Role};
use crate::failure::{Class, Failure};
use crate::gdb::{self, Go, Registers, Stop, Target, TargetError};

/// How long the other cores stay while one steps. It may need what one of them has,
/// the kernel's lock say; then they go on, and it comes to its end.
const STEP_ALONE: Duration = Duration::from_millis(100);

/// How long the others go on when one stops. A core that stops again and again
/// at once would leave them no time to get anywhere.
const GRACE: Duration = Duration::from_micros(200);

/// Serves gdb at the other end of `input` and `output` on a thread of its own;
/// `kick` makes the vCPUs leave the guest.
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
        holds: vec![false; debugger.gates.len()],
        next: None,
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
    /// Makes the vCPUs leave the guest.
    kick: K,
    /// Which vCPUs are kept outside by us.
    holds: Vec<bool>,
    /// The core that is told of next, at a breakpoint; nothing has run since.
    next: Option<usize>,
}

impl<K: Fn()> Attached<K> {
    /// Has `body` use the vCPU of a core that stands still.
    fn with_vcpu<T>(
        &self,
        core: usize,
        body: impl FnOnce(&VcpuFd) -> Result<T, TargetError>,
    ) -> Result<T, TargetError> {
        let is_held = self.holds.get(core).copied().unwrap_or_default();
        let gate = self.debugger.gates.get(core).filter(|_| is_held);
        body(&gate.ok_or(TargetError::Stuck)?.vcpu())
    }

    /// Has `body` use memory as `core` sees it; where it finds nothing at `address`
    /// itself, as another core does: one that sleeps has not the program's tables.
    fn with_memory(
        &self,
        core: usize,
        address: u64,
        mut body: impl FnMut(&mut Inner, &VirtualMemory<'_>) -> Result<(), u64>,
    ) -> Result<(), TargetError> {
        let mut inner = self.debugger.lock();
        let others = (0..self.holds.len()).filter(|other| *other != core);
        let mut result = Err(TargetError::NoMemory(address));
        for core in [core].into_iter().chain(others) {
            result = self.with_vcpu(core, |vcpu| {
                let memory = self.debugger.memory(vcpu)?;
                body(&mut inner, &memory).map_err(TargetError::NoMemory)
            });
            if result != Err(TargetError::NoMemory(address)) {
                break;
            }
        }
        result
    }

    /// Sets the trap flag for a step; where the core is.
    fn set_trap_flag(&self, core: usize, go: Go) -> Result<u64, TargetError> {
        self.with_vcpu(core, |vcpu| {
            let mut regs = vcpu.get_regs().map_err(refused)?;
            let flag = if go == Go::Step { TRAP_FLAG } else { 0 };
            regs.rflags = regs.rflags & !TRAP_FLAG | flag;
            vcpu.set_regs(&regs).map_err(refused)?;
            Ok(regs.rip)
        })
    }

    /// Holds the cores that are not held; false, and no more held than before, when
    /// one does not leave the guest.
    fn hold_all(&mut self) -> bool {
        let mut fresh = Vec::new();
        for (core, gate) in self.debugger.gates.iter().enumerate() {
            if self.holds.get(core) != Some(&false) {
                continue;
            }
            if !gate.hold(&self.kick) {
                for core in fresh {
                    self.release(core);
                }
                return false;
            }
            fresh.push(core);
            if let Some(holds) = self.holds.get_mut(core) {
                *holds = true;
            }
        }
        let mut inner = self.debugger.lock();
        self.debugger.take_gates(&mut inner);
        for core in fresh {
            let state = inner.cores.get_mut(core).zip(self.debugger.gates.get(core));
            if let Some((state, gate)) = state
                && let Some(stop) = state.stop.take()
            {
                // It stopped by itself meanwhile, and holds once more for that.
                state.is_at_breakpoint = stop == Stop::Breakpoint;
                gate.release();
            }
        }
        true
    }

    /// A core that is to go on and has not been told of: it stopped at a breakpoint,
    /// which is still there.
    fn untold(&self, all: &[usize]) -> Option<usize> {
        let mut inner = self.debugger.lock();
        all.iter().copied().find(|&core| {
            let state = inner.cores.get_mut(core);
            let is_untold = state.is_some_and(|state| std::mem::take(&mut state.is_at_breakpoint));
            let at = self.with_vcpu(core, |vcpu| Ok(vcpu.get_regs().map_err(refused)?.rip));
            is_untold && at.is_ok_and(|at| inner.breakpoints.contains_key(&at))
        })
    }

    fn release(&mut self, core: usize) {
        if let Some(holds) = self.holds.get_mut(core)
            && std::mem::take(holds)
            && let Some(gate) = self.debugger.gates.get(core)
        {
            gate.release();
        }
    }

    /// A core in the program, or any.
    fn in_program(&self) -> usize {
        let is_there = |core: &usize| {
            let rip = self.with_vcpu(*core, |vcpu| Ok(vcpu.get_regs().map_err(refused)?.rip));
            rip.is_ok_and(|rip| rip >> 63 == 0)
        };
        (0..self.holds.len()).find(is_there).unwrap_or(0)
    }

    /// Waits a moment for a step that others stand still for.
    fn await_step(&self) {
        let fd = borrow(&self.debugger.event);
        let time = Timespec::try_from(STEP_ALONE).ok();
        // However it ends, the session finds out by the event.
        let _ = poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            time.as_ref(),
        );
    }
}

impl<K: Fn()> Target for Attached<K> {
    fn cores(&self) -> usize {
        self.holds.len()
    }

    fn stop(&mut self) -> Result<usize, TargetError> {
        if !self.hold_all() {
            return Err(TargetError::Stuck);
        }
        Ok(self.in_program())
    }

    fn resume(&mut self, each: &[Go]) -> Result<(), TargetError> {
        let of = |core: usize| each.get(core).copied().unwrap_or_default();
        let goes = |core: &usize| of(*core) != Go::Stay;
        let all: Vec<usize> = (0..self.holds.len()).filter(goes).collect();
        self.next = self.untold(&all);
        if self.next.is_some() {
            // Readable if the count is full.
            let _ = self.debugger.event.write(1);
            return Ok(());
        }
        let mut from = Vec::new();
        for &core in &all {
            from.push(self.set_trap_flag(core, of(core))?);
        }
        let mut inner = self.debugger.lock();
        for (&core, from) in all.iter().zip(from) {
            if let Some(state) = inner.cores.get_mut(core) {
                state.steps_from = (of(core) == Go::Step).then_some(from);
            }
        }
        drop(inner);
        let is_one_step = all.iter().all(|&core| of(core) == Go::Step);
        for &core in &all {
            self.release(core);
        }
        if is_one_step && all.len() < self.holds.len() {
            self.await_step();
            let inner = self.debugger.lock();
            let is_done = inner.ends || inner.cores.iter().any(|core| core.stop.is_some());
            drop(inner);
            for core in (0..self.holds.len()).filter(|_| !is_done) {
                self.release(core);
            }
        }
        Ok(())
    }

    fn event(&self) -> BorrowedFd<'_> {
        borrow(&self.debugger.event)
    }

    fn take_stop(&mut self) -> Option<(usize, Stop)> {
        // Several events at once are told by the state, not by the count.
        let _ = self.debugger.event.read();
        let mut inner = self.debugger.lock();
        if inner.ends {
            return Some((0, Stop::End));
        }
        if let Some(core) = self.next.take() {
            return Some((core, Stop::Breakpoint));
        }
        let mut cores = inner.cores.iter_mut().enumerate();
        let (core, stop) = cores.find_map(|(core, state)| Some((core, state.stop.take()?)))?;
        drop(inner);
        if let Some(holds) = self.holds.get_mut(core) {
            *holds = true;
        }
        if self.holds.contains(&false) {
            std::thread::sleep(GRACE);
        }
        // One that does not leave the guest is asked again by whoever needs it.
        self.hold_all();
        Some((core, stop))
    }

    fn registers(&mut self, core: usize) -> Result<Registers, TargetError> {
        self.with_vcpu(core, registers)
    }

    fn set_registers(&mut self, core: usize, registers: &Registers) -> Result<(), TargetError> {
        self.with_vcpu(core, |vcpu| set_registers(vcpu, registers))
    }

    fn read(&mut self, core: usize, address: u64, bytes: &mut [u8]) -> Result<(), TargetError> {
        self.with_memory(core, address, |inner, memory| {
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

    fn write(&mut self, core: usize, address: u64, bytes: &[u8]) -> Result<(), TargetError> {
        self.with_memory(core, address, |_, memory| memory.write(address, bytes))
    }

    fn insert(&mut self, core: usize, address: u64) -> Result<(), TargetError> {
        if self.debugger.host.is_kernel_interpreted && address >> 63 != 0 {
            return Err(TargetError::Interpreted);
        }
        self.with_memory(core, address, |inner, memory| {
            if inner.breakpoints.contains_key(&address) {
                return Ok(());
            }
            let mut own = [0];
            memory.read(address, &mut own)?;
            memory.write(address, &[BREAKPOINT])?;
            inner.breakpoints.extend([(address, own[0])]);
            inner.past.remove(&address);
            Ok(())
        })
    }

    fn remove(&mut self, core: usize, address: u64) -> Result<(), TargetError> {
        let mut own = None;
        self.with_memory(core, address, |inner, memory| {
            own = inner.breakpoints.remove(&address).or(own);
            inner.past.insert(address);
            own.map_or(Ok(()), |own| memory.write(address, &[own]))
        })
    }

    fn let_go(&mut self) {
        let is_stopped = self.stop().is_ok();
        if is_stopped {
            let all = 0..self.holds.len();
            for core in all.clone() {
                // What KVM refuses here it has refused before.
                let _ = self.set_trap_flag(core, Go::On);
            }
            let mut inner = self.debugger.lock();
            // With the tables of each: those that the program's core has are the ones.
            let left = std::mem::take(&mut inner.breakpoints);
            for core in all {
                inner.breakpoints.clone_from(&left);
                let _ = self.with_vcpu(core, |vcpu| {
                    take_all_back(&mut inner, &self.debugger.memory(vcpu)?);
                    Ok(())
                });
            }
            inner.breakpoints.clear();
        }
        let debugger = Arc::clone(&self.debugger);
        let mut inner = debugger.lock();
        if is_stopped {
            debugger.give_gates_back(&mut inner);
        }
        inner.is_attached = false;
        // What stopped by itself holds itself.
        for (core, gate) in inner.cores.iter_mut().zip(&debugger.gates) {
            if core.stop.take().is_some() {
                gate.release();
            }
        }
        drop(inner);
        for core in 0..self.holds.len() {
            self.release(core);
        }
    }
}

fn registers(vcpu: &VcpuFd) -> Result<Registers, TargetError> {
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

fn set_registers(vcpu: &VcpuFd, registers: &Registers) -> Result<(), TargetError> {
    let mut r = vcpu.get_regs().map_err(refused)?;
    [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
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
