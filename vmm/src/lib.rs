//! One enclave under KVM: what `enclave-vmm` is made of, and the part of it
//! that `enclavectl` shares (configuration, ledger, control protocol).

pub mod forward;
pub mod machine;
