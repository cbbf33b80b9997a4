//! What the thread of a vCPU does: it runs the guest and serves it between entries.
//!
//! Made and started by [`super::running`]. Never panics on what the guest does: it
//! ends in a [`MachineState`] that says why. Of several threads each has its own
//! vCPU; the queue and the commands of the host are served by one at a time.

use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use enclave_abi::layout::VECTOR_COMMAND;
use kvm_bindings::kvm_msi;

use super::MachineState;
use super::cores::Cores;
use super::debugger::Debugger;
use super::extended;
use super::gate::Gate;
use super::given_back::Shares;
use super::queue::interrupts_taken;
use super::running::borrow;
use super::service::{Served, Service};
use super::state::Shared;
use super::vm::Vm;
use crate::exit::{Action, Exit};
use crate::memory::Ram;
use crate::vmm_log::note;

/// What a vCPU thread owns.
pub(super) struct VcpuLoop {
    pub(super) gate: Arc<Gate>,
    pub(super) debugger: Arc<Debugger>,
    pub(super) vm: Arc<Vm>,
    /// One queue and one program: the vCPUs serve it in turn.
    pub(super) service: Arc<Mutex<Service>>,
    pub(super) ram: Ram,
    pub(super) shares: Arc<Shares>,
    pub(super) shared: Arc<Shared>,
    pub(super) cores: Arc<Cores>,
    /// Which vCPU this is.
    pub(super) number: usize,
    /// Command interrupts sent to the guest.
    pub(super) interrupts_sent: u32,
    /// Failed accesses since the guest ran last.
    pub(super) memory_faults: u32,
}

impl std::fmt::Debug for VcpuLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuLoop")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl VcpuLoop {
    /// The vCPU thread. Those from 1 on begin when the first has brought the
    /// kernel up.
    pub(super) fn run(mut self) {
        let state = self.sit_until_stopped();
        let mut service = self.service();
        service.drain_console();
        // Their descriptors are closed before anybody is told that they are over.
        service.forget_programs();
        drop(service);
        if let Some(kick) = self.cores.kick(self.number) {
            kick.set(std::ptr::null_mut());
        }
        let is_failure = matches!(state, MachineState::Failed { .. });
        self.shared.ended(state);
        if is_failure {
            // No core goes on without another, and no debugger sees anything more.
            self.debugger.end();
            self.shared.request_stop();
            self.cores.rouse();
        }
    }

    fn service(&self) -> MutexGuard<'_, Service> {
        // Its parts are whole between two calls.
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the guest whenever there is a core for it.
    fn sit_until_stopped(&mut self) -> MachineState {
        let (shared, cores) = (Arc::clone(&self.shared), Arc::clone(&self.cores));
        while let Some(host) = cores.take_seat(self.number, || shared.is_stopping()) {
            self.call(c"vcpu");
            self.pin(host);
            if self.number != 0 && !self.shared.wait_booted() {
                break;
            }
            if let Some(state) = self.enter_until_stopped() {
                return state;
            }
            self.call(c"spare");
        }
        MachineState::Stopped
    }

    /// Names this thread: `vcpuN` with a core, by which its place is found, and
    /// `spareN` without.
    fn call(&self, kind: &CStr) {
        let name = format!("{}{}", kind.to_string_lossy(), self.number);
        if let Ok(name) = CString::new(name) {
            // Told by `inspect` alone.
            let _ = rustix::thread::set_name(&name);
        }
    }

    /// Puts this thread on its core; without the right to, it stays where the
    /// scheduler puts it and the report says so.
    fn pin(&self, host: Option<usize>) {
        let Some(core) = host else {
            return;
        };
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        if let Err(errno) = rustix::thread::sched_setaffinity(None, &set) {
            let warning = format!("the vCPU thread is not pinned to core {core}: {errno}");
            self.shared
                .update_report(|report| report.warnings.push(warning));
        }
    }

    /// The state in which the machine ends, or nothing when this core goes.
    fn enter_until_stopped(&mut self) -> Option<MachineState> {
        loop {
            if self.shared.is_stopping() {
                if self.shared.state() == MachineState::Booting {
                    let where_it_is = self.describe("stopped before the kernel reported");
                    let text = format!("enclave-vmm: {where_it_is}\n");
                    self.service().log.write(text.as_bytes());
                }
                return Some(MachineState::Stopped);
            }
            if !self.shared.enter() {
                continue;
            }
            let exit = self.gate.enter();
            self.shared.left(exit.name());
            if !matches!(exit, Exit::MemoryFault | Exit::Interrupted) {
                self.memory_faults = 0;
            }
            let served = match exit.action() {
                Action::ServeQueue => self.serve_queue(),
                Action::Continue => Served::Continue,
                Action::DebugTrap => match self.debugger.trapped(self.number) {
                    Ok(()) => Served::Continue,
                    Err(error) => Served::Failed(self.describe(&error.to_string())),
                },
                // Nowhere else: it may have the kernel's lock.
                Action::Sleep(_) if self.leaves() => return None,
                Action::Sleep(ns) => match self.sleep(ns) {
                    Served::Continue if self.leaves() => return None,
                    served => served,
                },
                Action::GiveWay => {
                    std::thread::yield_now();
                    Served::Continue
                }
                Action::CheckPending => self.after_kick(),
                Action::InjectFault => self.inject_fault(),
                Action::AwaitMemory => self.await_memory(),
                Action::Stop(reason) => Served::Failed(self.describe(&reason)),
            };
            let served = match served {
                Served::Continue if self.number == 0 => self.interrupt(),
                other => other,
            };
            match served {
                Served::Continue => {}
                Served::Stop => return Some(MachineState::Stopped),
                Served::Failed(reason) => return Some(MachineState::Failed { reason }),
            }
        }
    }

    fn serve_queue(&mut self) -> Served {
        let mut service = self.service();
        let served = service.serve();
        let wanted = service.take_extended();
        drop(service);
        let Some(wanted) = wanted else {
            return served;
        };
        let (save, load) = (wanted.save, wanted.load);
        let memory = (&self.ram, &*self.vm);
        let done = extended::exchange(&self.gate.vcpu(), memory, save, load);
        // Nonsense from a guest is its kernel's to deal with, not the machine's.
        let done = done.map_err(|error| {
            note(format_args!("the registers of a thread: {error}"));
            error.errno()
        });
        match self.service().answer_extended(&wanted, done) {
            Ok(()) => served,
            Err(error) => Served::Failed(error.to_string()),
        }
    }

    /// After a kick: the first core posts what is pending.
    fn after_kick(&mut self) -> Served {
        if let Some(kick) = self.cores.kick(self.number) {
            kick.clear();
        }
        if self.number == 0 {
            self.service().deliver()
        } else {
            Served::Continue
        }
    }

    /// Whether this core, which sleeps, is to go.
    fn leaves(&self) -> bool {
        self.number != 0 && self.cores.leaves(self.number)
    }

    /// The core has nothing to do. A command for the kernel is the first one's.
    fn sleep(&mut self, ns: u64) -> Served {
        let cancel = (self.number == 0).then(|| borrow(self.shared.cancel()));
        self.cores.sleep(self.number, ns, cancel);
        self.after_kick()
    }

    /// Interrupts the guest while a kill has not taken effect, or once when it
    /// asked, but never before it has taken the interrupt before. The first core
    /// gets it and tells the others.
    fn interrupt(&mut self) -> Served {
        let mut service = self.service();
        if !service.wants_interrupt() {
            return Served::Continue;
        }
        match interrupts_taken(&self.ram) {
            Ok(taken) if taken == self.interrupts_sent => {}
            Ok(_) => return Served::Continue,
            Err(error) => return Served::Failed(error.to_string()),
        }
        let msi = kvm_msi {
            address_lo: 0xfee0_0000,
            data: u32::from(VECTOR_COMMAND),
            ..Default::default()
        };
        service.interrupt_sent();
        drop(service);
        self.interrupts_sent = self.interrupts_sent.wrapping_add(1);
        match self.vm.signal_msi(msi) {
            Ok(_) => Served::Continue,
            Err(error) => Served::Failed(format!("KVM refused an interrupt: {error}")),
        }
    }

    /// After an access to memory that is not there: whoever waits for the program
    /// finds out and kills it; until then the access is tried again.
    fn await_memory(&mut self) -> Served {
        self.memory_faults += 1;
        let may_come = self.shares.may_come(self.memory_faults);
        let Some(pause) = may_come else {
            return Served::Failed(self.describe("KVM cannot reach the guest's memory"));
        };
        self.shared.pause(pause);
        self.after_kick()
    }

    /// Gives the program a general-protection fault for an access that KVM
    /// could not emulate.
    fn inject_fault(&mut self) -> Served {
        let vcpu = self.gate.vcpu();
        let injected = vcpu.get_vcpu_events().and_then(|mut events| {
            events.exception.injected = 1;
            events.exception.nr = 13;
            events.exception.has_error_code = 1;
            events.exception.error_code = 0;
            vcpu.set_vcpu_events(&events)
        });
        match injected {
            Ok(()) => Served::Continue,
            Err(error) => Served::Failed(format!("KVM refused an exception: {error}")),
        }
    }

    /// `reason` with the registers that help to understand it.
    fn describe(&self, reason: &str) -> String {
        match self.gate.vcpu().get_regs() {
            Ok(regs) => format!("{reason} at rip {:#x}, rsp {:#x}", regs.rip, regs.rsp),
            Err(_) => reason.to_owned(),
        }
    }
}
