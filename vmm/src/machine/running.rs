//! A machine from creation to its end, and the handle to it.
//!
//! Called by the lifecycle code through [`Machine`]. What the threads do is in
//! [`super::vcpu_loop`].

// UNSAFETY: KVM memslots for RAM, a borrowed eventfd.
#![expect(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use enclave_abi::boot::{BOOT_RING0_INTERPRETED, BOOT_SYSCALL_STAYS_IN_RING3, MAX_CORES, Mode};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::arenas::ArenaTable;
use super::attached;
use super::cores::Cores;
use super::debugger::{self, Debugger};
use super::dump::{self, Dump};
use super::gate::Gate;
use super::given_back::{self, SIGBUS, Shares};
use super::imports::ImportTable;
use super::memory_blocks::Blocks;
use super::queue::bell_counts;
use super::reset::Kept;
use super::service::Service;
use super::starts::now_ns;
use super::state::Shared;
use super::vcpu_loop::VcpuLoop;
use super::vm::Vm;
use super::{
    BellCounts, MachineConfig, MachineReport, MachineState, ProcessInfo, Ring, RunError,
    RunOutcome, RunSpec,
};
use crate::capability;
use crate::confine::{self, Role};
use crate::console_log::ConsoleLog;
use crate::failure::Failure;
use crate::features::{self, Features};
use crate::forward::Exports;
use crate::loader::{self, BootFacts};
use crate::memory::{PrivateRam, Ram};
use crate::probe;
use crate::stats::KvmStats;
use crate::vcpu::{self, CpuFacts};

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// /dev/kvm or a KVM call failed.
    #[error("{0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// KVM lacks something.
    #[error(transparent)]
    Lack(#[from] capability::Lack),
    /// More cores than the kernel has entries for.
    #[error("{got} cores are asked for, and the kernel runs on {MAX_CORES} at most")]
    TooManyCores {
        /// Cores asked for.
        got: usize,
    },
    /// Guest memory without a host address (cannot happen).
    #[error("RAM has no host address")]
    NoHostAddress,
    /// Memory.
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
    /// Kernel image or boot structures.
    #[error(transparent)]
    Load(#[from] crate::loader::LoadError),
    /// vCPU state.
    #[error(transparent)]
    Vcpu(#[from] crate::vcpu::VcpuError),
    /// Ring-0 probe.
    #[error(transparent)]
    Probe(#[from] crate::probe::ProbeError),
    /// Exported directories.
    #[error(transparent)]
    Exports(#[from] crate::forward::ForwardError),
    /// Broker.
    #[error("{0}")]
    Broker(String),
    /// A system call.
    #[error("{0}")]
    System(&'static str, #[source] std::io::Error),
}

/// A running or stopped machine.
#[derive(Debug)]
pub struct Machine {
    pub(super) shared: Arc<Shared>,
    stats: Arc<[KvmStats]>,
    ram: Ram,
    pub(super) cores: Arc<Cores>,
    gates: Vec<Arc<Gate>>,
    pub(super) vm: Arc<Vm>,
    ready: Mutex<Vec<VcpuLoop>>,
    pub(super) debugger: Arc<Debugger>,
    shares: Arc<Shares>,
    pub(super) blocks: Blocks,
    /// For the machine that may come after it.
    memory: PrivateRam,
    service: Arc<Mutex<Service>>,
}

/// An eventfd as a borrowed descriptor.
pub(super) fn borrow(fd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `fd` lives, which the returned
    // lifetime is tied to.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// Phase times since `start`, for `inspect`.
struct Phases {
    start: Instant,
    list: Vec<(String, u64)>,
}

impl Phases {
    fn done(&mut self, name: &str) {
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.list.push((name.into(), micros));
    }
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |error| MachineError::Kvm(what, error)
}

impl Machine {
    /// Makes VM, memory and vCPU and loads the kernel; nothing runs yet.
    ///
    /// # Errors
    /// [`MachineError`]; nothing stays allocated.
    pub fn create(config: &MachineConfig, log: Arc<ConsoleLog>) -> Result<Self, MachineError> {
        Self::with(config, log, Kept::default())
    }

    /// The same around what another machine left.
    pub(super) fn with(
        config: &MachineConfig,
        log: Arc<ConsoleLog>,
        kept: Kept,
    ) -> Result<Self, MachineError> {
        let mut phases = Phases {
            start: Instant::now(),
            list: Vec::new(),
        };
        let kvm_fd = Kvm::new().map_err(kvm("cannot open /dev/kvm"))?;
        capability::check(&kvm_fd)?;
        let exports = Exports::open(&config.exports)?;
        let cpu = CpuFacts::read(&kvm_fd)?;
        let vm = kvm_fd.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
        let vm = Arc::new(Vm::new(vm));
        phases.done("vm");
        let memory = match kept.memory {
            Some(memory) => memory,
            None => PrivateRam::on(
                config.mem_bytes,
                config.backing,
                config.prefault,
                config.memory_node,
            )?,
        };
        phases.done(if config.prefault {
            "memory-prefault"
        } else {
            "memory"
        });
        add_ram(&vm, &memory)?;
        phases.done("memslots");
        let arenas = ArenaTable::new(
            Arc::clone(&vm),
            &config.name,
            config.broker_socket.clone(),
            (config.backing, config.memory_node),
            kept.broker,
        )
        .map_err(MachineError::Broker)?;
        phases.done("broker");
        // Behind all memory: what an interrupt controller puts on KVM's buses has
        // the next change of memory wait for milliseconds (docs/platforms.md).
        vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
        super::bells::route(&vm).map_err(kvm("KVM_SET_GSI_ROUTING"))?;
        phases.done("interrupts");
        let nr_cores = config.max_cores.max(config.cores.len()).max(1);
        if nr_cores > MAX_CORES {
            return Err(MachineError::TooManyCores { got: nr_cores });
        }
        let mut vcpus = (0..nr_cores as u64)
            .map(|number| vm.create_vcpu(number).map_err(kvm("KVM_CREATE_VCPU")))
            .collect::<Result<Vec<VcpuFd>, _>>()?;
        let stats: Arc<[KvmStats]> = vcpus
            .iter()
            .map(KvmStats::open)
            .collect::<Result<_, _>>()
            .map_err(|e| MachineError::System("KVM_GET_STATS_FD", e))?;
        let mut cr4 = u64::MAX;
        for (number, vcpu) in vcpus.iter().enumerate() {
            cr4 &= vcpu::give_features(vcpu, number, &cpu)?;
        }
        let Some((vcpu, first_stats)) = vcpus.first_mut().zip(stats.first()) else {
            return Err(MachineError::NoHostAddress);
        };
        let header = loader::load_image(&memory.ram, &config.kernel)?;
        let interpreted = probe::ring0_is_interpreted(vcpu, first_stats, cr4, &memory.ram)?;
        phases.done("probe");
        let mode = match config.ring {
            Ring::Auto if interpreted => Mode::Ring3,
            Ring::Auto | Ring::Ring0 => Mode::Ring0,
            Ring::Ring3 => Mode::Ring3,
        };
        let flags = if interpreted {
            BOOT_SYSCALL_STAYS_IN_RING3 | BOOT_RING0_INTERPRETED
        } else {
            0
        };
        let features = features::choose(&features::Facts {
            named: cpu.named,
            accepted: vcpu::features_of_cr4(cr4),
            mode,
            interpreted,
            without: config.without,
        });
        let facts = boot_facts(config, &memory, &cpu, vcpu, mode, flags, features)?;
        let kernel = loader::prepare(&memory.ram, header, &facts)?;
        for (core, vcpu) in vcpus.iter().enumerate() {
            let place = vcpu::Place { core, nr_cores };
            vcpu::set_up(vcpu, place, &kernel, mode, flags, features)?;
        }
        phases.done("kernel");
        let imports = ImportTable::new(
            Arc::clone(&vm),
            &config.name,
            config.broker_socket.clone(),
            (config.backing, config.memory_node),
            mode,
        );
        let report = MachineReport {
            platform: if interpreted { "nested" } else { "hardware" }.into(),
            cpu_features: features_of_all(&vcpus, features)?.names(),
            backing_page_bytes: memory.page_bytes,
            warnings: memory.warnings.clone(),
            phases: phases.list,
            ..MachineReport::default()
        };
        let shared = Shared::new(report, kept.next_run.max(1));
        let shared = Arc::new(shared.map_err(|e| MachineError::System("eventfd", e))?);
        let cores = Arc::new(Cores::new(&vm, nr_cores, &config.cores)?);
        let ram = memory.ram.clone();
        let gates = gates_of(vcpus, &cores);
        let host = debugger::Host {
            stays_at_int1: interpreted,
            is_kernel_interpreted: interpreted && mode == Mode::Ring0,
        };
        let memory_of_it = (ram.clone(), Arc::clone(&vm));
        let debugger = Debugger::new(gates.clone(), memory_of_it, host)
            .map_err(|e| MachineError::System("eventfd", e))?;
        let debugger = Arc::new(debugger);
        let service = Service::new(
            memory.ram.clone(),
            Arc::clone(&shared),
            log,
            exports,
            (arenas, imports),
            Arc::clone(&stats),
            Arc::clone(&vm),
        );
        let shares = Arc::clone(service.imports.shares());
        let service = Arc::new(Mutex::new(service));
        let loops = gates.iter().enumerate().map(|(number, gate)| VcpuLoop {
            gate: Arc::clone(gate),
            debugger: Arc::clone(&debugger),
            vm: Arc::clone(&vm),
            service: Arc::clone(&service),
            ram: ram.clone(),
            shares: Arc::clone(&shares),
            shared: Arc::clone(&shared),
            cores: Arc::clone(&cores),
            number,
            interrupts_sent: 0,
            memory_faults: 0,
        });
        let loops = loops.collect();
        Ok(Self {
            shares,
            shared,
            stats,
            ram,
            cores,
            gates,
            vm,
            ready: Mutex::new(loops),
            debugger,
            blocks: Blocks::new(config),
            memory,
            service,
        })
    }

    /// Starts the vCPU threads; a second call does nothing.
    ///
    /// # Errors
    /// The system's, when there is no thread to be had.
    pub fn start(&self) -> Result<(), MachineError> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let loops = std::mem::take(&mut *ready);
        // Only there to interrupt KVM_RUN; blocked signals would not. Once for all
        // machines of this process: later threads may not change handlers.
        static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
        let installed = HANDLER.get_or_init(|| {
            register_signal_handler(SIGRTMIN(), ignore).map_err(|error| error.errno())
        });
        installed.map_err(|errno| {
            let error = std::io::Error::from_raw_os_error(errno);
            MachineError::System("install the kick signal", error)
        })?;
        if !loops.is_empty() {
            self.tell_alarms()
                .map_err(|e| MachineError::System("start a thread", e))?;
        }
        for looped in loops {
            let number = looped.number;
            let name = format!("spare{number}");
            let thread = confine::spawn(Role::Vcpu, &name, move || looped.run())
                .map_err(|e| MachineError::System("start a vCPU thread", e))?;
            self.cores.started(number, thread);
        }
        Ok(())
    }

    /// Its state now.
    #[must_use]
    pub fn state(&self) -> MachineState {
        self.shared.state()
    }

    /// Facts and counters, KVM's read at this moment.
    #[must_use]
    pub fn report(&self) -> MachineReport {
        let mut report = self.shared.report();
        report.first_program = self.shared.starts.first();
        let of_each: Vec<_> = self.stats.iter().map(KvmStats::all).collect();
        for (name, count) in of_each.iter().flatten() {
            let sum = report.kvm.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        if of_each.len() > 1 {
            report.vcpus = of_each;
        }
        // The counters are in guest RAM, which cannot vanish.
        if let Ok(counts) = bell_counts(&self.ram) {
            let rung = report.bells.rung;
            report.bells = BellCounts { rung, ..counts };
        }
        report
    }

    /// What it is doing at this moment; the guest is left for it, and goes on.
    #[must_use]
    pub fn dump(&self) -> Dump {
        let kick = || self.cores.rouse();
        let state = self.state();
        let each = self.gates.iter().enumerate();
        Dump {
            vcpus: each
                .map(|(number, gate)| dump::vcpu(number, gate, kick, &state))
                .collect(),
            queue: dump::queue(&self.ram),
            slots: self.vm.slots(),
        }
    }

    /// Starts a program.
    ///
    /// # Errors
    /// [`RunError`] when it is not accepted.
    pub fn run(&self, spec: RunSpec) -> Result<u64, RunError> {
        let max = usize::try_from(enclave_abi::layout::BOUNCE_BYTES).unwrap_or(usize::MAX);
        let strings = spec
            .argv
            .iter()
            .chain(&spec.envp)
            .map(|text| text.len() + 1);
        let got = strings.sum::<usize>() + spec.path.len() + 64;
        if got > max {
            return Err(RunError::ArgumentsTooLong { got, max });
        }
        let requested = now_ns();
        let (run, has_others) = self.shared.submit(spec, requested)?;
        if has_others {
            self.call_kernel(|pause| self.shared.wait_started(run, pause));
        }
        Ok(run)
    }

    /// What runs, as the kernel tells it if it can at once.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessInfo> {
        if let Some(times) = self.shared.ask_for_processes() {
            self.call_kernel(|pause| self.shared.wait_processes(times, pause));
        }
        self.shared.processes()
    }

    /// Blocks until run `run` has ended.
    #[must_use]
    pub fn wait(&self, run: u64) -> RunOutcome {
        let mut lost = None;
        loop {
            let time = self.shares.look_after().filter(|_| lost.is_none());
            if let Some(outcome) = self.shared.wait_outcome(run, time) {
                if lost.is_some() && matches!(outcome, RunOutcome::MachineStopped { .. }) {
                    // The kernel itself is stuck there, and holds the program's files.
                    self.stop();
                }
                return given_back::explain(outcome, lost);
            }
            if lost.is_none() {
                lost = self.shares.lost();
                lost.inspect(|_| self.kill(run, SIGBUS));
            }
        }
    }

    /// Blocks until the kernel has reported or `timeout` is over.
    #[must_use]
    pub fn wait_ready(&self, timeout: Duration) -> MachineState {
        self.shared.wait_ready(timeout)
    }

    /// Stops the machine and waits for its thread; may be called again.
    pub fn stop(&self) {
        self.shared.request_stop();
        self.debugger.end();
        for gate in &self.gates {
            gate.close();
        }
        self.cores.rouse();
        self.cores.join();
        self.shared.ended(MachineState::Stopped);
    }

    /// Closes its connections to the broker; it runs no more.
    pub(super) fn disconnect(&self) {
        let mut service = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        service.forget_programs();
        service.imports.end_all();
        drop(service.arenas.leave());
    }

    /// Ends it for another one, which gets what it leaves.
    pub(super) fn retire(&self) -> Kept {
        self.shared.ends_by("the enclave was reset");
        self.stop();
        let mut service = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        service.end_everything();
        Kept {
            broker: service.arenas.leave(),
            memory: Some(self.memory.clone()),
            blocks: self.blocks.take(),
            next_run: self.shared.next_run(),
        }
    }

    pub(super) fn rouse(&self) {
        self.cores.rouse();
    }

    /// Has gdb at the other end of `input` and `output` debug the machine.
    ///
    /// # Errors
    /// When somebody does already, or there is no thread to be had.
    pub fn debug(&self, input: OwnedFd, output: OwnedFd) -> Result<(), Failure> {
        let cores = Arc::clone(&self.cores);
        let kick = move || cores.rouse();
        attached::start(&self.debugger, kick, input, output)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Gives the machine its private RAM. The caller keeps `memory` as long as the
/// machine runs.
pub(crate) fn add_ram(vm: &Vm, memory: &PrivateRam) -> Result<(), MachineError> {
    for (slot, region) in (0u32..).zip(memory.ram.iter()) {
        let host = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|_| MachineError::NoHostAddress)?;
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the region stays mapped as long as `memory.ram`, which the
        // vCPU loop owns together with the VM, and which the probe's throw-away
        // machine does not outlive; nobody holds references into it.
        unsafe { vm.set_slot(slot) }.map_err(kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// The vCPUs with their gates, each told how it is made to leave the guest.
fn gates_of(vcpus: Vec<VcpuFd>, cores: &Cores) -> Vec<Arc<Gate>> {
    let gate = |(number, mut vcpu): (usize, VcpuFd)| {
        let byte: *mut u8 = &raw mut vcpu.get_kvm_run().immediate_exit;
        if let Some(kick) = cores.kick(number) {
            kick.set(byte.cast());
        }
        Arc::new(Gate::new(vcpu))
    };
    vcpus.into_iter().enumerate().map(gate).collect()
}

fn boot_facts(
    config: &MachineConfig,
    memory: &PrivateRam,
    cpu: &CpuFacts,
    vcpu: &VcpuFd,
    mode: Mode,
    flags: u64,
    features: Features,
) -> Result<BootFacts, MachineError> {
    let mut random = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random))
        .map_err(|e| MachineError::System("read /dev/urandom", e))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(kvm("KVM_GET_TSC_KHZ"))?;
    let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let monotonic_ns =
        u64::try_from(monotonic.tv_sec * 1_000_000_000 + monotonic.tv_nsec).unwrap_or(0);
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let unix_ns = u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX);
    Ok(BootFacts {
        mode,
        flags,
        features,
        name: config.name.clone(),
        extents: memory.extents.clone(),
        xcr0: cpu.xcr0,
        hwcap: cpu.hwcap,
        tsc_khz: u64::from(tsc_khz),
        clock: (vcpu::guest_tsc(vcpu)?, unix_ns, monotonic_ns),
        selftest: config.selftest,
        random,
        nr_cores: config.max_cores.max(config.cores.len()).max(1),
        nr_online: config.cores.len().max(1),
    })
}

/// The features that all vCPUs have in force.
fn features_of_all(vcpus: &[VcpuFd], chosen: Features) -> Result<Features, MachineError> {
    let mut common = Features(u64::MAX);
    for vcpu in vcpus {
        common.0 &= vcpu::features_in_force(vcpu, chosen)?.0;
    }
    Ok(common)
}
