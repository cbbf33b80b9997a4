//! The least that KVM asks for a virtual machine: what `create` is compared to.
//!
//! Used by the measurement of `create`. A machine, a memory slot, a processor,
//! and one exit of it; everything is given back when the call returns.

// UNSAFETY: KVM is told an address of ours.
#![expect(unsafe_code)]

use crate::raw::Mapping;
use anyhow::{Context as _, bail};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use std::time::{Duration, Instant};

/// Where the one instruction is.
const CODE_AT: u16 = 0x1000;
/// `out 0x10, al`: KVM leaves to user space.
const CODE: [u8; 2] = [0xe6, PORT];
const PORT: u8 = 0x10;

/// Sets a machine with `bytes` of untouched memory up and runs it to its first
/// exit; how long that took.
///
/// # Errors
/// KVM refuses something, or the exit is another one.
pub(crate) fn set_up(bytes: usize) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let memory = Mapping::untouched(bytes, CODE_AT.into(), &CODE)?;
    let vm = Kvm::new()
        .and_then(|kvm| kvm.create_vm())
        .context("make a bare virtual machine")?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: u64::try_from(bytes)?,
        userspace_addr: memory.address(),
    };
    // SAFETY: the slot is the whole mapping, which was made before the machine
    // and so ends after it.
    unsafe { vm.set_user_memory_region(slot) }.context("give a bare machine memory")?;
    let mut vcpu = vm.create_vcpu(0).context("make a bare processor")?;
    let mut system = vcpu.get_sregs().context("read a bare processor")?;
    system.cs.base = 0;
    system.cs.selector = 0;
    vcpu.set_sregs(&system).context("set a bare processor")?;
    let mut registers = vcpu.get_regs().context("read a bare processor")?;
    registers.rip = CODE_AT.into();
    vcpu.set_regs(&registers).context("set a bare processor")?;
    match vcpu.run().context("run a bare processor")? {
        VcpuExit::IoOut(port, _) if port == u16::from(PORT) => {}
        other => bail!("a bare processor left with {other:?}"),
    }
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_machine_comes_to_its_exit() {
        // Without KVM there is nothing to compare with.
        if Kvm::new().is_ok() {
            assert!(set_up(2 << 20).unwrap() > Duration::ZERO);
        }
    }
}
