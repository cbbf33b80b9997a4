//! `create --dry-run`: what an enclave would get, and nothing taken.

use std::collections::BTreeSet;
use std::path::Path;

use enclave_vmm::config::EnclaveConfig;
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::ledger::{Grant, allowed_cores, plan};
use enclave_vmm::machine::{Backing, MemoryNode, Ring};
use enclave_vmm::topology::{Topology, cpu_list};
use serde_json::json;

use crate::locate;
use crate::output::{self, Format};

/// Prints the plan for `config`, which is checked.
pub(super) fn show(config: &EnclaveConfig, format: Format) -> Result<(), Failure> {
    let what = format!("create enclave {}", config.name);
    let host = Topology::read(Path::new("/"))
        .map_err(|error| Failure::new(Class::Failure, what, error))?;
    let grant = plan(&locate::run_dir()?, config, &host, &allowed_cores()?)?;
    for warning in &grant.warnings {
        output::warning(warning);
    }
    match format {
        Format::Json => output::json(
            "plan",
            &json!({
                "config": config,
                "cores": grant.cores,
                "idle": grant.idle,
                "memory_node": grant.memory_node,
                "warnings": grant.warnings,
            }),
        ),
        Format::Text => output::bytes(text(config, &host, &grant).as_bytes()),
    }
}

fn text(config: &EnclaveConfig, host: &Topology, grant: &Grant) -> String {
    let mut lines = vec![
        ("cores", cores(config, host, grant)),
        ("memory", memory(config, host, grant.memory_node)),
        ("ring", ring(config.ring).to_owned()),
        ("kernel", config.kernel.display().to_string()),
    ];
    for export in &config.exports {
        let right = if export.writable { "rw" } else { "read-only" };
        let host = export.host.display();
        lines.push(("export", format!("{host} as {} ({right})", export.guest)));
    }
    let heading = format!("enclave {} would get (nothing is taken):\n", config.name);
    lines.iter().fold(heading, |text, (key, value)| {
        format!("{text}  {key:<8}{}\n", output::printable(value))
    })
}

fn cores(config: &EnclaveConfig, host: &Topology, grant: &Grant) -> String {
    let cores: BTreeSet<usize> = grant.cores.iter().copied().collect();
    let nodes: BTreeSet<usize> = cores
        .iter()
        .filter_map(|&core| host.node_of(core))
        .collect();
    let shared = if config.share_cores { ", shared" } else { "" };
    let idle: BTreeSet<usize> = grant.idle.iter().copied().collect();
    let idle = match idle.is_empty() {
        true => String::new(),
        false => format!(", their other threads {} idle", cpu_list(&idle)),
    };
    format!(
        "{} of node {}{idle}{shared}",
        cpu_list(&cores),
        cpu_list(&nodes)
    )
}

fn memory(config: &EnclaveConfig, host: &Topology, from: MemoryNode) -> String {
    let from = match from {
        MemoryNode::Any => "any node".to_owned(),
        MemoryNode::Prefer(node) => format!("node {node} while it has some"),
        MemoryNode::Bind(node) => format!("node {node}"),
    };
    let pages = match config.backing {
        Backing::Huge2m => "2 MiB pages",
        Backing::Huge1g => "1 GiB pages",
        Backing::Small => "4 KiB pages",
        Backing::Auto if config.mem_bytes >> 21 <= huge_free(host, config.node) => "2 MiB pages",
        Backing::Auto => "4 KiB pages, for want of huge ones",
    };
    let touched = match config.prefault {
        true => "touched at create",
        false => "touched when used",
    };
    let size = output::size(config.mem_bytes);
    format!("{size} in {pages} from {from}, {touched}")
}

/// Huge pages that an enclave on `node` could have.
fn huge_free(host: &Topology, node: Option<usize>) -> u64 {
    let node = node.and_then(|number| host.nodes.get(&number));
    node.map_or(host.huge_free, |node| node.huge_free.min(host.huge_free))
}

fn ring(ring: Ring) -> &'static str {
    match ring {
        Ring::Auto => "as the host's virtualisation is found to be",
        Ring::Ring0 => "0",
        Ring::Ring3 => "3",
    }
}
