//! A machine for tests: one program at a time, ended by kill, stop or the
//! test itself.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::Control;
use crate::config::CoreRequest;
use crate::failure::Failure;
use crate::machine::dump::Dump;
use crate::machine::{
    BlockError, CoreError, FreezeError, MachineReport, MachineState, ProcessInfo, ResetError,
    RunError, RunOutcome, RunSpec, StartPhases,
};

/// The fake. A program whose image begins with `exit N` ends at once.
#[derive(Debug, Default)]
pub(crate) struct FakeMachine {
    state: Mutex<State>,
    changed: Condvar,
    boot_failure: Option<String>,
    stop_hangs: bool,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    current: Option<(u64, String)>,
    outcomes: BTreeMap<u64, RunOutcome>,
    stopped: bool,
    frozen: bool,
    added_bytes: u64,
    cores: Vec<usize>,
    cwds: Vec<String>,
}

impl FakeMachine {
    /// One whose kernel does not come up.
    pub(crate) fn failing(reason: &str) -> Self {
        Self {
            boot_failure: Some(reason.to_owned()),
            ..Self::default()
        }
    }

    /// One whose stop hangs, as a lost vCPU thread would.
    pub(crate) fn never_stopping() -> Self {
        Self {
            stop_hangs: true,
            ..Self::default()
        }
    }

    /// Working directories of the runs so far.
    pub(crate) fn cwds(&self) -> Vec<String> {
        self.state.lock().unwrap().cwds.clone()
    }

    /// The outcome of `run`, once it has ended.
    pub(crate) fn outcome(&self, run: u64) -> RunOutcome {
        self.wait(run)
    }

    fn end(&self, state: &mut State, run: u64, outcome: RunOutcome) {
        if state.current.as_ref().is_some_and(|(now, _)| *now == run) {
            state.current = None;
            state.outcomes.insert(run, outcome);
            self.changed.notify_all();
        }
    }
}

impl Control for FakeMachine {
    fn start(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn wait_ready(&self, _timeout: Duration) -> MachineState {
        self.state()
    }

    fn state(&self) -> MachineState {
        let state = self.state.lock().unwrap();
        if let Some(reason) = &self.boot_failure {
            return MachineState::Failed {
                reason: reason.clone(),
            };
        }
        match &state.current {
            _ if state.stopped => MachineState::Stopped,
            current if state.frozen => MachineState::Frozen {
                program: current.clone().map_or_else(String::new, |(_, path)| path),
            },
            Some((_, program)) => MachineState::Running {
                program: program.clone(),
            },
            None => MachineState::Idle,
        }
    }

    fn report(&self) -> MachineReport {
        MachineReport {
            kernel_mode: "fake".into(),
            ..MachineReport::default()
        }
    }

    fn debug(&self, _input: OwnedFd, _output: OwnedFd) -> Result<(), Failure> {
        Ok(())
    }

    fn dump(&self) -> Dump {
        Dump::default()
    }

    fn run(&self, spec: RunSpec) -> Result<u64, RunError> {
        let mut text = String::new();
        std::fs::File::from(spec.image)
            .read_to_string(&mut text)
            .unwrap();
        let mut state = self.state.lock().unwrap();
        if state.current.is_some() {
            return Err(RunError::Busy { most: 1 });
        }
        state.next += 1;
        let run = state.next;
        state.cwds.push(spec.cwd);
        state.current = Some((run, spec.path));
        self.changed.notify_all();
        if let Some(code) = text.strip_prefix("exit ") {
            let code = code.trim().parse().unwrap();
            self.end(&mut state, run, RunOutcome::Exited { code });
        }
        Ok(run)
    }

    fn processes(&self) -> Vec<ProcessInfo> {
        let current = self.state.lock().unwrap().current.clone();
        let one = |(run, program)| ProcessInfo {
            run,
            program,
            ..ProcessInfo::default()
        };
        current.map(one).into_iter().collect()
    }

    fn wait(&self, run: u64) -> RunOutcome {
        let state = self.state.lock().unwrap();
        let state = self
            .changed
            .wait_while(state, |state| !state.outcomes.contains_key(&run))
            .unwrap();
        state.outcomes[&run].clone()
    }

    fn start_phases(&self, _: u64) -> StartPhases {
        vec![("first-instruction".into(), 7)]
    }

    fn signal(&self, run: u64, signal: u8) {
        self.kill(run, signal);
    }

    fn kill(&self, run: u64, signal: u8) {
        let mut state = self.state.lock().unwrap();
        let report = String::new();
        self.end(&mut state, run, RunOutcome::Signaled { signal, report });
    }

    fn freeze(&self) -> Result<(), FreezeError> {
        let mut state = self.state.lock().unwrap();
        match std::mem::replace(&mut state.frozen, true) {
            true => Err(FreezeError::Frozen),
            false => Ok(()),
        }
    }

    fn thaw(&self) -> Result<(), FreezeError> {
        let mut state = self.state.lock().unwrap();
        match std::mem::replace(&mut state.frozen, false) {
            true => Ok(()),
            false => Err(FreezeError::NotFrozen),
        }
    }

    fn add_memory(&self, bytes: u64) -> Result<Vec<String>, BlockError> {
        let mut state = self.state.lock().unwrap();
        if state.frozen {
            return Err(BlockError::Frozen);
        }
        state.added_bytes += bytes;
        Ok(vec!["small pages".into()])
    }

    fn remove_memory(&self, bytes: u64) -> Result<(), BlockError> {
        let mut state = self.state.lock().unwrap();
        let left = state.added_bytes.checked_sub(bytes);
        state.added_bytes = left.ok_or(BlockError::NotAdded {
            wanted: bytes,
            added: state.added_bytes,
        })?;
        Ok(())
    }

    fn added_bytes(&self) -> u64 {
        self.state.lock().unwrap().added_bytes
    }

    fn add_cores(&self, hosts: &[usize]) -> Result<(), CoreError> {
        self.state.lock().unwrap().cores.extend(hosts);
        Ok(())
    }

    fn remove_cores(&self, request: &CoreRequest) -> Result<Vec<usize>, CoreError> {
        let mut state = self.state.lock().unwrap();
        let has = state.cores.len();
        let wanted = request.count();
        let left = has.checked_sub(wanted);
        let left = left.ok_or(CoreError::TooFew { has, wanted })?;
        Ok(state.cores.split_off(left))
    }

    fn cores(&self) -> Vec<usize> {
        self.state.lock().unwrap().cores.clone()
    }

    fn reset(&self) -> Result<(), ResetError> {
        match self.state.lock().unwrap().frozen {
            true => Err(ResetError::Frozen),
            false => Ok(()),
        }
    }

    fn stop(&self) {
        if self.stop_hangs {
            loop {
                std::thread::park();
            }
        }
        let mut state = self.state.lock().unwrap();
        state.stopped = true;
        if let Some((run, _)) = state.current.clone() {
            let reason = "stopped".into();
            self.end(&mut state, run, RunOutcome::MachineStopped { reason });
        }
    }
}
