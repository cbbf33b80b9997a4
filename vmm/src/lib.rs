//! One enclave under KVM: what `enclave-vmm` is made of, and the part of it
//! that `enclavectl` shares (configuration, ledger, control protocol).

pub mod capability;
pub mod config;
pub mod confine;
pub mod console_log;
pub mod control;
pub mod event_log;
pub mod exit;
pub mod failure;
pub mod features;
pub mod forward;
pub mod gdb;
pub mod isolation;
pub mod ledger;
pub mod lifecycle;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod placement;
pub mod platform;
pub mod policy;
pub mod probe;
pub mod signals;
pub mod stats;
pub mod tables;
pub mod topology;
pub mod vcpu;
pub mod vmm_log;

#[cfg(test)]
mod scratch;
