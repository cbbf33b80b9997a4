//! Changing what a running enclave has: one change at a time, on its own thread.
//!
//! Called by [`super::server`], which owns the connections. A change is whole or
//! not at all; whoever asked may go away meanwhile, it is carried out all the same.

use std::path::Path;

use super::Control;
use super::protocol::{Change, Updated};
use crate::config::{CoreRequest, EnclaveConfig, check_cores};
use crate::event_log::{self, Happened};
use crate::failure::{Class, Failure};
use crate::ledger::Holdings;
use crate::machine::{BlockError, CoreError, ResetError};
use crate::topology::Topology;

/// Carries a change out.
pub(super) fn carry_out(
    control: &dyn Control,
    holdings: &Holdings,
    config: &EnclaveConfig,
    change: &Change,
) -> Result<Updated, Failure> {
    let warnings = match change {
        Change::AddMemory { bytes } => add_memory(control, holdings, config, *bytes),
        Change::RemoveMemory { bytes } => remove_memory(control, holdings, config, *bytes),
        Change::AddCores { cores } => add_cores(control, holdings, config, cores),
        Change::RemoveCores { cores } => remove_cores(control, config, cores),
        Change::Reset {} => reset(control, holdings, config),
    };
    // Whatever came of it, of this change or of one whose answer was late.
    holdings.keep_cores(&control.cores());
    let warnings = warnings?;
    let cores = control.cores();
    match change {
        Change::AddCores { .. } => event_log::tell(Happened::CoresAdded {
            cores: cores.clone(),
        }),
        Change::RemoveCores { .. } => event_log::tell(Happened::CoresRemoved {
            cores: cores.clone(),
        }),
        _ => {}
    }
    Ok(Updated {
        mem_bytes: mem_bytes(control, config),
        cores,
        warnings,
    })
}

/// What it has now.
fn mem_bytes(control: &dyn Control, config: &EnclaveConfig) -> u64 {
    config.mem_bytes.saturating_add(control.added_bytes())
}

fn add_memory(
    control: &dyn Control,
    holdings: &Holdings,
    config: &EnclaveConfig,
    bytes: u64,
) -> Result<Vec<String>, Failure> {
    holdings.grow(config, bytes, &topology()?)?;
    let added = control.add_memory(bytes);
    let now = mem_bytes(control, config);
    holdings.hold(now, config.prefault);
    let warnings = added.map_err(|error| failure("add memory to", config, &error))?;
    event_log::tell(Happened::MemoryAdded {
        bytes,
        mem_bytes: now,
    });
    Ok(warnings)
}

fn remove_memory(
    control: &dyn Control,
    holdings: &Holdings,
    config: &EnclaveConfig,
    bytes: u64,
) -> Result<Vec<String>, Failure> {
    let removed = control.remove_memory(bytes);
    let now = mem_bytes(control, config);
    holdings.hold(now, config.prefault);
    removed.map_err(|error| failure("remove memory from", config, &error))?;
    event_log::tell(Happened::MemoryRemoved {
        bytes,
        mem_bytes: now,
    });
    Ok(Vec::new())
}

fn add_cores(
    control: &dyn Control,
    holdings: &Holdings,
    config: &EnclaveConfig,
    cores: &CoreRequest,
) -> Result<Vec<String>, Failure> {
    let topology = topology()?;
    let choice = holdings.take_cores(config, cores, &topology)?;
    control
        .add_cores(&choice.cores)
        .map_err(|error| core_failure("add cores to", config, &error))?;
    Ok(choice.warnings)
}

fn remove_cores(
    control: &dyn Control,
    config: &EnclaveConfig,
    cores: &CoreRequest,
) -> Result<Vec<String>, Failure> {
    check_cores(cores).map_err(|error| {
        error.into_failure(format!("remove cores from enclave {}", config.name))
    })?;
    control
        .remove_cores(cores)
        .map_err(|error| core_failure("remove cores from", config, &error))?;
    Ok(Vec::new())
}

fn reset(
    control: &dyn Control,
    holdings: &Holdings,
    config: &EnclaveConfig,
) -> Result<Vec<String>, Failure> {
    let done = control.reset();
    // Memory that the new kernel did not take has gone back.
    holdings.hold(mem_bytes(control, config), config.prefault);
    done.map_err(|error| {
        let name = &config.name;
        let hint = match error {
            ResetError::Frozen => format!("enclavectl thaw {name}"),
            _ => format!("enclavectl logs {name}"),
        };
        let what = format!("reset enclave {name}");
        Failure::new(error.class(), what, &error).with_hint(hint)
    })?;
    event_log::tell(Happened::Reset {});
    Ok(Vec::new())
}

fn topology() -> Result<Topology, Failure> {
    Topology::read(Path::new("/"))
        .map_err(|e| Failure::new(Class::Failure, "read the host's topology", e))
}

fn core_failure(verb: &str, config: &EnclaveConfig, error: &CoreError) -> Failure {
    let name = &config.name;
    let hint = match error {
        CoreError::Order(error) => return failure(verb, config, error),
        CoreError::NoRoom { has, wanted, .. } => {
            let most = has.saturating_add(*wanted);
            format!("enclavectl create {name} --max-cores {most} …")
        }
        CoreError::Pinned { .. } => format!("enclavectl ps {name}"),
        _ => format!("enclavectl inspect {name}"),
    };
    let what = format!("{verb} enclave {name}");
    Failure::new(error.class(), what, error).with_hint(hint)
}

fn failure(verb: &str, config: &EnclaveConfig, error: &BlockError) -> Failure {
    let name = &config.name;
    let hint = match error {
        BlockError::Size { .. } => format!("enclavectl update {name} --add-mem 128M"),
        BlockError::Frozen => format!("enclavectl thaw {name}"),
        BlockError::Memory { .. } => "enclavectl doctor".to_owned(),
        BlockError::InUse { .. } => format!("enclavectl stats {name}"),
        _ => format!("enclavectl inspect {name}"),
    };
    let what = format!("{verb} enclave {name}");
    Failure::new(error.class(), what, error).with_hint(hint)
}
