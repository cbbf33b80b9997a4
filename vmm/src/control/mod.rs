//! The control socket of an enclave: `enclavectl` asks, `enclave-vmm` answers.
//!
//! [`protocol`] has the messages, [`channel`] the framing and descriptor
//! passing, [`server`] the VMM's event loop, [`client`] the asking side.
//! The machine itself is seen only through [`Control`], so that everything
//! here is tested without KVM.

pub mod channel;
pub mod client;
pub mod protocol;
mod run;
mod runs;
pub mod server;
mod update;

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::config::CoreRequest;
use crate::failure::Failure;
use crate::machine::dump::Dump;
use crate::machine::{
    BlockError, CoreError, FreezeError, MachineReport, MachineState, ProcessInfo, ResetError,
    RunError, RunOutcome, RunSpec, StartPhases,
};

/// What the control side needs from a machine. Every method may be called
/// from any thread; the waits and [`Control::stop`] may block.
pub trait Control: Send + Sync {
    /// Lets it run.
    ///
    /// # Errors
    /// When the host refuses.
    fn start(&self) -> Result<(), Failure>;
    /// Blocks until it has left [`MachineState::Booting`] or `timeout` is over.
    fn wait_ready(&self, timeout: Duration) -> MachineState;
    /// Its state now.
    fn state(&self) -> MachineState;
    /// Facts and counters.
    fn report(&self) -> MachineReport;
    /// What it is doing below that.
    fn dump(&self) -> Dump;
    /// Has gdb at the other end of these descriptors debug it.
    ///
    /// # Errors
    /// When somebody does already.
    fn debug(&self, input: OwnedFd, output: OwnedFd) -> Result<(), Failure>;
    /// Starts a program.
    ///
    /// # Errors
    /// When it is not accepted.
    fn run(&self, spec: RunSpec) -> Result<u64, RunError>;
    /// What runs.
    fn processes(&self) -> Vec<ProcessInfo>;
    /// Blocks until that run has ended.
    fn wait(&self, run: u64) -> RunOutcome;
    /// From the request for that run to its first instruction, once, when it has
    /// ended; empty if it had none.
    fn start_phases(&self, run: u64) -> StartPhases;
    /// Kills the program of that run, if it still runs.
    fn kill(&self, run: u64, signal: u8);
    /// Holds the vCPUs, whatever they do.
    ///
    /// # Errors
    /// When they are held already, or cannot be; then nothing has changed.
    fn freeze(&self) -> Result<(), FreezeError>;
    /// Lets the vCPUs go on.
    ///
    /// # Errors
    /// When they are not held.
    fn thaw(&self) -> Result<(), FreezeError>;
    /// Gives it more memory while it runs; warnings.
    ///
    /// # Errors
    /// When it cannot be; what has changed then the error says.
    fn add_memory(&self, bytes: u64) -> Result<Vec<String>, BlockError>;
    /// Takes away memory that was added.
    ///
    /// # Errors
    /// When it is in use, or cannot be taken.
    fn remove_memory(&self, bytes: u64) -> Result<(), BlockError>;
    /// Bytes that were added and not removed.
    fn added_bytes(&self) -> u64;
    /// Gives it these cores of the host while it runs.
    ///
    /// # Errors
    /// When it has no room for them, or its kernel does not take them.
    fn add_cores(&self, hosts: &[usize]) -> Result<(), CoreError>;
    /// Takes cores away, the last ones or those named; which.
    ///
    /// # Errors
    /// When they are not its own, or cannot be taken.
    fn remove_cores(&self, request: &CoreRequest) -> Result<Vec<usize>, CoreError>;
    /// The cores of the host that it has.
    fn cores(&self) -> Vec<usize>;
    /// Ends all programs and boots a fresh kernel in the same memory, on the same
    /// cores, whatever the one there does.
    ///
    /// # Errors
    /// [`ResetError`] says what there is then.
    fn reset(&self) -> Result<(), ResetError>;
    /// Sends that program a signal, which it may handle or ignore; SIGKILL kills.
    fn signal(&self, run: u64, signal: u8);
    /// Stops the machine and ends every wait; may be called again.
    fn stop(&self);
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
