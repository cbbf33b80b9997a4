//! The part file that `init` writes: every key with what it means, filled in
//! from what this host has.

use std::fmt::Write as _;

use enclave_vmm::config::{MAX_MEM_BYTES, MEMORY_BLOCK_BYTES as BLOCK_BYTES, MIN_MEM_BYTES};
use enclave_vmm::topology::{Topology, cpu_list};

use crate::output::size;

/// Most that is suggested, in parts of what is available.
const SHARE: u64 = 4;

/// A part file for an enclave `name` on `host`.
pub(crate) fn text(name: &str, host: &Topology) -> String {
    let mut text = format!(
        "\
# What enclave \"{name}\" gets. Keys are the flags of `enclavectl create --help`.
#   enclavectl check FILE                  is it right?
#   enclavectl create -f FILE --dry-run    what would it get?
#   enclavectl create -f FILE              flags go before what is said here
#
# This host:
"
    );
    for (number, node) in &host.nodes {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "#   node {number}: cores {}, {} MiB of memory, {} MiB available, {} of {} huge pages free",
            cpu_list(&node.cores),
            node.mem_total_bytes >> 20,
            node.mem_available_bytes >> 20,
            node.huge_free,
            node.huge_total,
        );
    }
    let huge = huge_bytes(host) >= MIN_MEM_BYTES;
    let node = if host.nodes.len() > 1 {
        let first = host.nodes.keys().next_back().copied().unwrap_or_default();
        format!("node = {first}")
    } else {
        "# node = 0".to_owned()
    };
    let _ = write!(
        text,
        "
# Letters, digits, '.', '_' and '-'.
name = \"{name}\"

# How many, or which: 1, \"2,4-5\" or [2, 4, 5]. The host keeps one at least.
# Physical cores go whole: their other hardware threads stay idle.
cores = 1

# Room for so many, which `enclavectl update --add-cores` adds later [as many as cores].
# max-cores = 2

# NUMA node that cores and memory come from [any].
{node}

# Share cores with other enclaves that do, and with the host [false].
# share-cores = true

# Keep other work of the host off the cores: \"auto\", as far as the host allows,
# \"require\", or \"off\".
# isolation = \"require\"

# Private memory, in steps of 2 MiB: a number and K, M, G or T (binary).
mem = \"{}\"

# Pages behind it: \"huge\" (2 MiB), \"huge1g\" (1 GiB), \"small\" (4 KiB), or
# \"auto\", 2 MiB while there are some.
backing = \"{}\"

# Touch all memory at create, so that none can lack later [true].
# prefault = false

# Directories that programs may reach: \"HOST[=GUEST]\", read-only unless \":rw\".
# export = [\"/data\", \"/scratch/{name}=/out:rw\"]

# Privilege ring of the kernel: \"0\", \"3\", or \"auto\", what suits the host.
# ring = \"auto\"

# Processor features to leave off, to find out what one of them does.
# without = [\"smap\"]

# Kernel image [beside enclavectl].
# kernel = \"/usr/lib/xasm/enclave-kernel\"
",
        size(suggested(host)),
        if huge { "huge" } else { "auto" },
    );
    text
}

fn huge_bytes(host: &Topology) -> u64 {
    host.huge_free.saturating_mul(2 << 20)
}

/// Memory for an enclave here: huge pages if there are some, else a part of
/// what is available, in whole blocks.
fn suggested(host: &Topology) -> u64 {
    let available = match huge_bytes(host) {
        few if few < MIN_MEM_BYTES => host.mem_available_bytes / SHARE,
        enough => enough,
    };
    let blocks = available.min(MAX_MEM_BYTES) / BLOCK_BYTES;
    match blocks {
        0 => (available - available % (2 << 20)).max(MIN_MEM_BYTES),
        more => more * BLOCK_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::part_file::PartFile;
    use enclave_vmm::config::{CoreRequest, check_memory};
    use enclave_vmm::topology::Node;

    fn host(available: u64, huge_free: u64, nr_nodes: usize) -> Topology {
        let node = Node {
            cores: [0, 1].into(),
            mem_total_bytes: 8 << 30,
            mem_available_bytes: available,
            huge_total: 512,
            huge_free,
            is_allowed: true,
            ..Node::default()
        };
        Topology {
            mem_available_bytes: available,
            huge_free,
            nodes: (0..nr_nodes).map(|number| (number, node.clone())).collect(),
            ..Topology::default()
        }
    }

    #[test]
    fn what_init_writes_is_right() {
        for host in [
            host(4 << 30, 0, 1),
            host(4 << 30, 100, 2),
            host(0, 0, 0),
            host(u64::MAX, u64::MAX, 1),
            host(200 << 20, 15, 1),
        ] {
            let file = PartFile::parse(&text("sim", &host)).expect("it is right");
            assert_eq!(file.name.as_deref(), Some("sim"));
            assert_eq!(file.cores, Some(CoreRequest::Count(1)));
            assert_eq!(check_memory(file.mem_bytes.expect("memory")), Ok(()));
            assert_eq!(file.node.is_some(), host.nodes.len() > 1);
        }
    }

    #[test]
    fn what_is_commented_out_is_right_too() {
        let text = text("sim", &host(4 << 30, 0, 1));
        let (_, keys) = text.split_once("\n\n").expect("a heading");
        let is_key = |line: &str| line.contains(" = ") && !line.contains(": a number");
        let lines = keys.lines().filter(|line| is_key(line));
        let all: Vec<&str> = lines.map(|line| line.trim_start_matches("# ")).collect();
        assert_eq!(all.len(), 13, "{all:#?}");
        let file = PartFile::parse(&all.join("\n")).expect("it is right");
        assert_eq!(file.exports.len(), 2);
        assert_eq!((file.prefault, file.share_cores), (Some(false), Some(true)));
        assert_eq!(file.node, Some(0));
    }

    #[test]
    fn memory_is_suggested_in_blocks_of_what_there_is() {
        assert_eq!(suggested(&host(4 << 30, 0, 1)), 1 << 30);
        assert_eq!(suggested(&host(4 << 30, 100, 1)), 128 << 20);
        assert_eq!(suggested(&host(300 << 20, 0, 1)), 74 << 20);
        assert_eq!(suggested(&host(0, 0, 1)), MIN_MEM_BYTES);
    }
}
