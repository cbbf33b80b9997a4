//! Changing what a running enclave has: one change at a time, on its own thread.
//!
//! Called by [`super::server`], which owns the connections. A change is whole or
//! not at all; whoever asked may go away meanwhile, it is carried out all the same.

use std::path::Path;

use super::Control;
use super::protocol::{Change, Updated};
use crate::config::EnclaveConfig;
use crate::event_log::{self, Happened};
use crate::failure::{Class, Failure};
use crate::ledger::Holdings;
use crate::machine::BlockError;
use crate::topology::Topology;

/// Carries a change out.
pub(super) fn carry_out(
    control: &dyn Control,
    holdings: &Holdings,
    config: &EnclaveConfig,
    change: &Change,
) -> Result<Updated, Failure> {
    let warnings = match *change {
        Change::AddMemory { bytes } => add_memory(control, holdings, config, bytes)?,
        Change::RemoveMemory { bytes } => remove_memory(control, holdings, config, bytes)?,
    };
    Ok(Updated {
        mem_bytes: mem_bytes(control, config),
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
    let topology = Topology::read(Path::new("/"))
        .map_err(|e| Failure::new(Class::Failure, "read the host's topology", e))?;
    holdings.grow(config, bytes, &topology)?;
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
