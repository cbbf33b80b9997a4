//! Who owns which core and how much memory: lock files in the run directory.
//!
//! ```text
//! RUNDIR/                       $ENCLAVE_RUNDIR, else /run/enclave for root, …
//!   ledger/admission.lock       held while one enclave is being admitted
//!   ledger/core-N.lock          held by the enclave-vmm that owns core N
//!   events.jsonl, events.jsonl.1
//!   ledger/isolation.*          interrupts moved off cores, see `isolation`
//!   enclaves/NAME/lock          held by the enclave-vmm of NAME; its record
//!   enclaves/NAME/config.json   the effective configuration
//!   enclaves/NAME/control.sock, console.log, console.log.1, vmm.log, crash
//! ```
//!
//! The locks (`flock`) are the truth, never the files: the host kernel drops
//! them when the holder dies, so whatever a dead VMM leaves behind blocks
//! nobody. Nothing here follows a symbolic link below the run directory.
//! Cores and memory of enclaves in *another* run directory are not seen.

pub mod cores;
mod enclave_dir;
mod holdings;
mod reserve;
mod run_dir;

pub use enclave_dir::{EnclaveDir, Occupancy, Record};
pub use holdings::Holdings;
pub use reserve::{Grant, Reservation, allowed_cores, live, plan};
pub use run_dir::RunDir;
pub(crate) use run_dir::beneath;
