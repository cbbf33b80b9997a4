//! C programs linked with `libxasm.a` on the Linux backend, with a real broker
//! and real readers: what is new there, compared with an enclave.

mod examples;
mod faults;
#[path = "../programs/mod.rs"]
mod programs;
mod stage;
mod stress;
