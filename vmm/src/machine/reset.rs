//! A machine that can be made anew with what it has: cores, memory, exports.
//!
//! Called by the control side in place of [`Machine`], which it passes everything on
//! to. A reset works whatever the kernel does: it is not asked.
//!
//! ```text
//!  vCPUs end ──► arenas and imports end ──► memory is zero ──► a fresh VM around it
//!      ──► boots ──► added memory is handed to the new kernel ──► done
//! ```
//!
//! Nothing is given back to the host meanwhile, so nobody can take it. From the end
//! of the vCPUs on there is no way back: what fails then leaves a machine that has
//! failed, and can be reset again or destroyed. Readers keep what they attached.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::arenas::Registered;
use super::dump::Dump;
use super::memory_blocks::Block;
use super::running::{Machine, MachineError};
use super::{
    BlockError, CoreError, FreezeError, MachineConfig, MachineReport, MachineState, ProcessInfo,
    RunError, RunOutcome, RunSpec, StartPhases,
};
use crate::config::CoreRequest;
use crate::console_log::ConsoleLog;
use crate::control::Control;
use crate::failure::{Class, Failure};
use crate::lifecycle::BOOT_TIMEOUT;
use crate::memory::{MemoryError, PrivateRam};

/// Why a machine was not made anew.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// It is held; nothing has changed.
    #[error("it is frozen")]
    Frozen,
    /// Its kernel image cannot be read; nothing has changed.
    #[error("its kernel {path}: {error}")]
    Kernel {
        /// Where it was at create.
        path: String,
        /// Why not.
        error: std::io::Error,
    },
    /// Its memory could not be cleared; it is stopped.
    #[error("its memory was not cleared: {0}")]
    Memory(#[from] MemoryError),
    /// There is no machine; it is stopped.
    #[error("{0}")]
    Machine(#[from] MachineError),
    /// The new kernel did not come up.
    #[error("its new kernel did not come up: {0:?}")]
    Boot(MachineState),
    /// It is up, without memory that was added.
    #[error("it is up, without the memory that was added: {0}")]
    Blocks(#[from] BlockError),
}

impl ResetError {
    /// Its exit class.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Frozen => Class::Busy,
            Self::Boot(MachineState::Booting) => Class::Timeout,
            Self::Blocks(error) => error.class(),
            _ => Class::Failure,
        }
    }
}

/// What one machine leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Private RAM; `None`: to be allocated.
    pub(super) memory: Option<PrivateRam>,
    /// Memory that was added.
    pub(super) blocks: Vec<Block>,
    /// Its place at the broker.
    pub(super) broker: Option<Registered>,
    /// Number of the next run; 0 = the first.
    pub(super) next_run: u64,
}

impl Kept {
    /// Has all of it read as zeros, in place if it is to stay allocated.
    fn clear(&self, stays_allocated: bool) -> Result<(), MemoryError> {
        let blocks = self.blocks.iter().map(|block| &block.memory);
        for memory in self.memory.iter().chain(blocks) {
            if stays_allocated {
                memory.zero()?;
            } else {
                memory.empty()?;
            }
        }
        Ok(())
    }
}

/// A machine and how it was made.
#[derive(Debug)]
pub struct Renewable {
    config: MachineConfig,
    log: Arc<ConsoleLog>,
    /// With the number of its first run.
    now: RwLock<(Arc<Machine>, u64)>,
    /// Held while it is being made anew.
    renewing: Mutex<()>,
}

impl Renewable {
    /// Makes the first machine.
    ///
    /// # Errors
    /// As [`Machine::create`].
    pub fn create(config: &MachineConfig, log: Arc<ConsoleLog>) -> Result<Self, MachineError> {
        let machine = Machine::create(config, Arc::clone(&log))?;
        Ok(Self {
            config: config.clone(),
            log,
            now: RwLock::new((Arc::new(machine), 1)),
            renewing: Mutex::new(()),
        })
    }

    fn now(&self) -> Arc<Machine> {
        // A pair that is replaced as a whole.
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&now.0)
    }

    /// The machine that run `run` is of, if that is still the one there is.
    fn of_run(&self, run: u64) -> Option<Arc<Machine>> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        (run >= now.1).then(|| Arc::clone(&now.0))
    }

    /// Makes it anew.
    ///
    /// # Errors
    /// [`ResetError`].
    pub fn renew(&self) -> Result<(), ResetError> {
        // What a panic left is a machine that has stopped.
        let _renewing = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.now();
        if matches!(before.state(), MachineState::Frozen { .. }) {
            return Err(ResetError::Frozen);
        }
        let path = &self.config.kernel;
        std::fs::File::open(path).map_err(|error| ResetError::Kernel {
            path: path.display().to_string(),
            error,
        })?;
        let config = MachineConfig {
            cores: before.cores_by_vcpu(),
            ..self.config.clone()
        };
        let mut kept = before.retire();
        kept.clear(config.prefault)?;
        let blocks = std::mem::take(&mut kept.blocks);
        let first_run = kept.next_run;
        let machine = Arc::new(Machine::with(&config, Arc::clone(&self.log), kept)?);
        let fresh = (Arc::clone(&machine), first_run);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        machine.start()?;
        match machine.wait_ready(BOOT_TIMEOUT) {
            MachineState::Idle => {}
            state => return Err(ResetError::Boot(state)),
        }
        machine.adopt_blocks(blocks)?;
        Ok(())
    }
}

impl Control for Renewable {
    fn start(&self) -> Result<(), Failure> {
        let started = self.now().start();
        started.map_err(|error| Failure::new(Class::Failure, "start the machine", error))
    }
    fn wait_ready(&self, timeout: Duration) -> MachineState {
        self.now().wait_ready(timeout)
    }
    fn state(&self) -> MachineState {
        self.now().state()
    }
    fn report(&self) -> MachineReport {
        self.now().report()
    }
    fn dump(&self) -> Dump {
        self.now().dump()
    }
    fn debug(&self, input: OwnedFd, output: OwnedFd) -> Result<(), Failure> {
        self.now().debug(input, output)
    }
    fn run(&self, spec: RunSpec) -> Result<u64, RunError> {
        self.now().run(spec)
    }
    fn processes(&self) -> Vec<ProcessInfo> {
        self.now().processes()
    }
    fn wait(&self, run: u64) -> RunOutcome {
        match self.of_run(run) {
            Some(machine) => machine.wait(run),
            None => RunOutcome::MachineStopped {
                reason: "the enclave was reset".to_owned(),
            },
        }
    }
    fn start_phases(&self, run: u64) -> StartPhases {
        let machine = self.of_run(run);
        machine.map_or_else(Vec::new, |machine| machine.shared.starts.take(run))
    }
    fn kill(&self, run: u64, signal: u8) {
        if let Some(machine) = self.of_run(run) {
            machine.kill(run, signal);
        }
    }
    fn freeze(&self) -> Result<(), FreezeError> {
        self.now().freeze()
    }
    fn thaw(&self) -> Result<(), FreezeError> {
        self.now().thaw()
    }
    fn add_memory(&self, bytes: u64) -> Result<Vec<String>, BlockError> {
        self.now().add_memory(bytes)
    }
    fn remove_memory(&self, bytes: u64) -> Result<(), BlockError> {
        self.now().remove_memory(bytes)
    }
    fn added_bytes(&self) -> u64 {
        self.now().added_bytes()
    }
    fn add_cores(&self, hosts: &[usize]) -> Result<(), CoreError> {
        self.now().add_cores(hosts)
    }
    fn remove_cores(&self, request: &CoreRequest) -> Result<Vec<usize>, CoreError> {
        self.now().remove_cores(request)
    }
    fn cores(&self) -> Vec<usize> {
        self.now().host_cores()
    }
    fn reset(&self) -> Result<(), ResetError> {
        self.renew()
    }
    fn signal(&self, run: u64, signal: u8) {
        if let Some(machine) = self.of_run(run) {
            machine.signal(run, signal);
        }
    }
    fn stop(&self) {
        let machine = self.now();
        machine.stop();
        // Here and not by whoever drops it last, who may not.
        machine.disconnect();
    }
}
