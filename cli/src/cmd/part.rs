//! `part ls`: who owns which cores and memory of this host.
//!
//! Told from the locks' records, as admission sees them, and from the kernel's
//! own figures. Enclaves of other run directories are not seen.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Subcommand;
use enclave_vmm::failure::{Class, Failure};
use enclave_vmm::ledger::{Record, live};
use enclave_vmm::topology::{Topology, cpu_list};
use serde::Serialize;
use serde_json::json;

use crate::locate;
use crate::output::{self, Format};

/// Show how this host is split.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// List who owns which cores and memory.
    Ls,
}

/// What a node has, and what of it no enclave has.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct NodeRow {
    node: usize,
    cores: BTreeSet<usize>,
    host_cores: BTreeSet<usize>,
    mem_total_bytes: u64,
    mem_available_bytes: u64,
    huge_total: u64,
    huge_free: u64,
}

/// What an enclave has.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct OwnerRow {
    enclave: String,
    pid: i32,
    cores: BTreeSet<usize>,
    /// Other threads of the same physical cores.
    idle: BTreeSet<usize>,
    /// Nodes of its cores.
    nodes: BTreeSet<usize>,
    share_cores: bool,
    mem_bytes: u64,
    /// Node that its memory is bound to, if one was asked for.
    memory_node: Option<usize>,
}

impl Part {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        match self {
            Self::Ls => list(format),
        }
    }
}

fn list(format: Format) -> Result<(), Failure> {
    let host = Topology::read(Path::new("/"))
        .map_err(|error| Failure::new(Class::Failure, "list partitions", error))?;
    let owners = live(&locate::run_dir()?)?;
    let (nodes, owners) = (node_rows(&host, &owners), owner_rows(&host, owners));
    if format == Format::Json {
        return output::json("partition", &json!({ "nodes": nodes, "enclaves": owners }));
    }
    let heading = [
        "NODE",
        "CORES",
        "HOST",
        "MEMORY",
        "AVAILABLE",
        "HUGE",
        "HUGE FREE",
    ];
    let rows: Vec<Vec<String>> = nodes.iter().map(NodeRow::cells).collect();
    output::table(&heading, &rows)?;
    if owners.is_empty() {
        return Ok(());
    }
    let heading = [
        "ENCLAVE",
        "PID",
        "CORES",
        "IDLE",
        "NODE",
        "SHARED",
        "MEMORY",
        "FROM NODE",
    ];
    let rows: Vec<Vec<String>> = owners.iter().map(OwnerRow::cells).collect();
    output::line("")?;
    output::table(&heading, &rows)
}

fn node_rows(host: &Topology, owners: &[(String, Record)]) -> Vec<NodeRow> {
    let is_held = |core: &usize| {
        owners
            .iter()
            .any(|(_, record)| record.taken().any(|held| held == *core))
    };
    let nodes = host.nodes.iter();
    nodes
        .map(|(&node, has)| NodeRow {
            node,
            cores: has.cores.clone(),
            host_cores: has
                .cores
                .iter()
                .copied()
                .filter(|core| !is_held(core))
                .collect(),
            mem_total_bytes: has.mem_total_bytes,
            mem_available_bytes: has.mem_available_bytes,
            huge_total: has.huge_total,
            huge_free: has.huge_free,
        })
        .collect()
}

fn owner_rows(host: &Topology, owners: Vec<(String, Record)>) -> Vec<OwnerRow> {
    let row = |(enclave, record): (String, Record)| OwnerRow {
        enclave,
        pid: record.pid,
        nodes: record
            .cores
            .iter()
            .filter_map(|&core| host.node_of(core))
            .collect(),
        cores: record.cores.into_iter().collect(),
        idle: record.idle.into_iter().collect(),
        share_cores: record.share_cores,
        mem_bytes: record.mem_bytes,
        memory_node: record.node,
    };
    owners.into_iter().map(row).collect()
}

impl NodeRow {
    fn cells(&self) -> Vec<String> {
        let mib = |bytes: u64| format!("{}M", bytes >> 20);
        vec![
            self.node.to_string(),
            cpu_list(&self.cores),
            cpu_list(&self.host_cores),
            mib(self.mem_total_bytes),
            mib(self.mem_available_bytes),
            self.huge_total.to_string(),
            self.huge_free.to_string(),
        ]
    }
}

impl OwnerRow {
    fn cells(&self) -> Vec<String> {
        let shared = if self.share_cores { "yes" } else { "no" };
        let from = self.memory_node.map(|node| node.to_string());
        vec![
            self.enclave.clone(),
            self.pid.to_string(),
            cpu_list(&self.cores),
            cpu_list(&self.idle),
            cpu_list(&self.nodes),
            shared.to_owned(),
            output::size(self.mem_bytes),
            from.unwrap_or_else(|| "any".to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enclave_vmm::topology::Node;

    #[test]
    fn what_enclaves_have_is_not_the_hosts() {
        let node = |cores: &[usize]| Node {
            cores: cores.iter().copied().collect(),
            mem_total_bytes: 1 << 30,
            ..Node::default()
        };
        let host = Topology {
            nodes: [(0, node(&[0, 1])), (1, node(&[2, 3]))].into(),
            ..Topology::default()
        };
        let record = Record {
            pid: 7,
            cores: vec![1],
            idle: vec![3],
            mem_bytes: 512 << 20,
            node: Some(1),
            ..Record::default()
        };
        let owners = vec![("sim".to_owned(), record)];
        let rows = node_rows(&host, &owners);
        let left: Vec<String> = rows.iter().map(|row| cpu_list(&row.host_cores)).collect();
        assert_eq!(left, ["0", "2"]);
        let rows = owner_rows(&host, owners);
        let wanted = ["sim", "7", "1", "3", "0", "no", "512M", "1"];
        assert_eq!(rows[0].cells(), wanted);
    }
}
