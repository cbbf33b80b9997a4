//! Finds out whether this host interprets guest ring 0.
//!
//! Called once per machine, on its own vCPU, before the kernel's registers are
//! set, and by `enclavectl doctor` on a machine made for nothing else. Runs 64 `nop`s in ring 0 and compares KVM's exact count of emulated
//! instructions: a fact, not a timing.

use enclave_abi::boot::Mode;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::capability;
use crate::config::MIN_MEM_BYTES;
use crate::features::{self, Features};
use crate::machine::{Backing, MachineError, Vm, add_ram};
use crate::memory::{PrivateRam, Ram};
use crate::stats::KvmStats;
use crate::tables::{TableBuilder, TableError};
use crate::vcpu::{CpuFacts, VcpuError, features_of_cr4, give_features, set_up_probe};

const CODE: u64 = 0x8000;
const TABLES: u64 = 0x9000;
const TABLES_END: u64 = 0xe000;
const NOPS: usize = 64;

/// Why the probe did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Tables could not be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Registers could not be set.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The probe code did not come back.
    #[error("the ring-0 probe ended with {0}")]
    Run(String),
}

/// Whether ring-0 code of this vCPU is interpreted.
///
/// # Errors
/// [`ProbeError`]; guest RAM below 64 KiB is zero again in every case.
pub fn ring0_is_interpreted(
    vcpu: &mut VcpuFd,
    stats: &KvmStats,
    cr4: u64,
    ram: &Ram,
) -> Result<bool, ProbeError> {
    let outcome = run(vcpu, stats, cr4, ram);
    let zeros = [0; 0x8000];
    ram.write_slice(&zeros, GuestAddress(CODE))
        .map_err(TableError::from)?;
    outcome
}

/// What enclaves of this host will be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Ring 0 is interpreted.
    pub interpreted: bool,
    /// Processor features that the mode chosen by default gets.
    pub features: Features,
}

/// Finds out on a machine that is thrown away. It takes some milliseconds and
/// little memory, and leaves nothing.
///
/// # Errors
/// [`MachineError`]: no enclave can be made on this host either.
pub fn host() -> Result<Host, MachineError> {
    let kvm_fd = Kvm::new().map_err(|error| MachineError::Kvm("cannot open /dev/kvm", error))?;
    capability::check(&kvm_fd)?;
    let memory = PrivateRam::new(MIN_MEM_BYTES, Backing::Small, false)?;
    let vm = kvm_fd
        .create_vm()
        .map(Vm::new)
        .map_err(|error| MachineError::Kvm("KVM_CREATE_VM", error))?;
    vm.create_irq_chip()
        .map_err(|error| MachineError::Kvm("KVM_CREATE_IRQCHIP", error))?;
    add_ram(&vm, &memory)?;
    let mut vcpu = vm
        .create_vcpu(0)
        .map_err(|error| MachineError::Kvm("KVM_CREATE_VCPU", error))?;
    let stats =
        KvmStats::open(&vcpu).map_err(|error| MachineError::System("KVM_GET_STATS_FD", error))?;
    let cpu = CpuFacts::read(&kvm_fd)?;
    let cr4 = give_features(&vcpu, 0, &cpu)?;
    let interpreted = ring0_is_interpreted(&mut vcpu, &stats, cr4, &memory.ram)?;
    let mode = if interpreted {
        Mode::Ring3
    } else {
        Mode::Ring0
    };
    let features = features::choose(&features::Facts {
        named: cpu.named,
        accepted: features_of_cr4(cr4),
        mode,
        interpreted,
        without: Features::default(),
    });
    Ok(Host {
        interpreted,
        features,
    })
}

fn run(vcpu: &mut VcpuFd, stats: &KvmStats, cr4: u64, ram: &Ram) -> Result<bool, ProbeError> {
    let mut code = vec![0x90; NOPS];
    code.extend([0xe6, 0x80]); // out 0x80, al
    ram.write_slice(&code, GuestAddress(CODE))
        .map_err(TableError::from)?;
    let mut tables = TableBuilder::new(ram, TABLES, TABLES_END)?;
    tables.map(CODE, CODE, 4096, 0, 4096)?;
    set_up_probe(vcpu, cr4, tables.root(), CODE)?;
    let before = stats.get("insn_emulation");
    match vcpu.run() {
        Ok(VcpuExit::IoOut(0x80, _)) => {}
        Ok(other) => return Err(ProbeError::Run(format!("{other:?}"))),
        Err(error) => return Err(ProbeError::Run(error.to_string())),
    }
    // The port access completes on the next entry; make it one that runs nothing.
    vcpu.set_kvm_immediate_exit(1);
    let completed = vcpu.run().map(|_| ());
    vcpu.set_kvm_immediate_exit(0);
    if let Err(error) = completed
        && error.errno() != libc::EINTR
    {
        return Err(ProbeError::Run(error.to_string()));
    }
    let emulated = stats.get("insn_emulation").saturating_sub(before);
    Ok(emulated >= NOPS as u64 / 2)
}
