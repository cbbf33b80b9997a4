//! The extended state of a vCPU (x87 and vector registers), put away and taken
//! up for a kernel that changes threads in an interpreted ring 0, which has no
//! XSAVE.
//!
//! Called by the vCPU thread between two entries. The state is the guest's own:
//! what is refused of it leaves the registers as they were, is noted, and the
//! kernel is told.

// UNSAFETY: hands KVM a state to load, by its size a contract.
#![expect(unsafe_code)]

use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress};

use super::vm::Vm;
use crate::memory::Ram;

/// Why the state could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExtendedError {
    /// The guest named an address that is not its RAM.
    #[error("guest-physical {0:#x} is not RAM")]
    NotRam(u64),
    /// KVM refused.
    #[error("KVM refused {0}: {1}")]
    Kvm(&'static str, kvm_ioctls::Error),
}

impl ExtendedError {
    /// What the kernel is told.
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::NotRam(_) => Errno::FAULT,
            Self::Kvm(_, error) => Errno::from_raw_os_error(error.errno()),
        }
    }
}

/// Saves the state to guest-physical `save`, then loads what is at `load`; 0 =
/// not. The form is that of XSAVE without compaction, 4,096 bytes.
pub(super) fn exchange(
    vcpu: &VcpuFd,
    (ram, vm): (&Ram, &Vm),
    save: u64,
    load: u64,
) -> Result<(), ExtendedError> {
    if save != 0 {
        let state = vcpu
            .get_xsave()
            .map_err(|error| ExtendedError::Kvm("KVM_GET_XSAVE", error))?;
        let bytes: Vec<u8> = state.region.iter().flat_map(|w| w.to_le_bytes()).collect();
        let written = ram.write_slice(&bytes, GuestAddress(save));
        if written.is_err() && !vm.write(save, &bytes) {
            return Err(ExtendedError::NotRam(save));
        }
    }
    if load != 0 {
        let mut state = kvm_xsave::default();
        let mut bytes = [0; size_of::<kvm_xsave>()];
        let bytes = bytes
            .get_mut(..size_of_val(&state.region))
            .unwrap_or(&mut []);
        let read = ram.read_slice(bytes, GuestAddress(load));
        if read.is_err() && !vm.read(load, bytes) {
            return Err(ExtendedError::NotRam(load));
        }
        for (word, from) in state.region.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = from.try_into().map_or(0, u32::from_le_bytes);
        }
        // SAFETY: without dynamically enabled features, which nobody here asks
        // for, KVM reads exactly one kvm_xsave, which lives until it is back.
        unsafe { vcpu.set_xsave(&state) }
            .map_err(|error| ExtendedError::Kvm("KVM_SET_XSAVE", error))?;
    }
    Ok(())
}
