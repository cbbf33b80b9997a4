//! Where an enclave really is, as Linux tells it: the cores of its vCPU
//! threads and the NUMA nodes of its memory.
//!
//! Read from this process's own files in procfs, never from what was asked
//! for: `task/*/status` and `stat` for the threads, `numa_maps` for the memory,
//! which counts the pages that are really mapped, huge ones too. Called when
//! an enclave is up and by `inspect`. A kernel without NUMA has no `numa_maps`;
//! then the memory is not told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::parse_cpu_list;
use crate::machine::MemoryNode;
use crate::topology::Topology;

/// Names of the memory objects, as memfds show them.
const OBJECTS: [(&str, &str); 2] = [("ram", "/memfd:xasm-ram"), ("arenas", "/memfd:xemem-arena")];

/// A vCPU thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuPlace {
    /// Name of the thread.
    pub thread: String,
    /// Its id.
    pub tid: i32,
    /// Cores it may run on.
    pub allowed: BTreeSet<usize>,
    /// Core it ran on last.
    pub last_core: Option<usize>,
    /// Nodes of the cores it may run on.
    pub nodes: BTreeSet<usize>,
}

/// The pages of one kind of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlace {
    /// "ram" or "arenas".
    pub object: String,
    /// Policies of its mappings, as the kernel words them ("bind:1").
    pub policies: BTreeSet<String>,
    /// Bytes in memory on each node that has some, by node.
    pub nodes: Vec<NodeBytes>,
}

/// Bytes on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBytes {
    /// The node.
    pub node: usize,
    /// Bytes there.
    pub bytes: u64,
}

/// Everything read back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The vCPU threads.
    pub vcpus: Vec<VcpuPlace>,
    /// The memory; empty where the kernel does not tell.
    pub memory: Vec<MemoryPlace>,
}

impl Placement {
    /// Reads the process directory `process` (`/proc/self`). What cannot be
    /// read is left out.
    #[must_use]
    pub fn read(process: &Path, topology: &Topology) -> Self {
        let maps = fs::read_to_string(process.join("numa_maps")).unwrap_or_default();
        Self {
            vcpus: vcpus(process, topology),
            memory: memory(&maps),
        }
    }

    /// Bytes that lie on another node than the one asked for, by node.
    #[must_use]
    pub fn astray(&self, node: MemoryNode) -> BTreeMap<usize, u64> {
        let mut astray = BTreeMap::new();
        let (MemoryNode::Prefer(wanted) | MemoryNode::Bind(wanted)) = node else {
            return astray;
        };
        for part in self.memory.iter().flat_map(|place| &place.nodes) {
            if part.node != wanted && part.bytes > 0 {
                let sum: &mut u64 = astray.entry(part.node).or_default();
                *sum = sum.saturating_add(part.bytes);
            }
        }
        astray
    }
}

fn vcpus(process: &Path, topology: &Topology) -> Vec<VcpuPlace> {
    let mut vcpus = Vec::new();
    let tasks = fs::read_dir(process.join("task")).into_iter().flatten();
    for task in tasks.flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let thread = read("comm").trim().to_owned();
        let Some(tid) = task.file_name().to_str().and_then(|tid| tid.parse().ok()) else {
            continue;
        };
        if !thread.starts_with("vcpu") {
            continue;
        }
        let status = read("status");
        let allowed = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .and_then(parse_cpu_list)
            .unwrap_or_default();
        vcpus.push(VcpuPlace {
            nodes: allowed
                .iter()
                .filter_map(|&core| topology.node_of(core))
                .collect(),
            last_core: last_core(&read("stat")),
            thread,
            tid,
            allowed,
        });
    }
    vcpus.sort_by_key(|vcpu| vcpu.tid);
    vcpus
}

/// Field 39 of `stat` (proc(5)). The name in field 2 may hold anything, so
/// fields are counted from behind its closing bracket.
fn last_core(stat: &str) -> Option<usize> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(39 - 3)?.parse().ok()
}

/// Sums up `numa_maps` (numa(7)).
fn memory(maps: &str) -> Vec<MemoryPlace> {
    let mut places = Vec::new();
    for (object, name) in OBJECTS {
        let mut place = MemoryPlace {
            object: object.to_owned(),
            ..MemoryPlace::default()
        };
        let wanted = format!("file={name}");
        let is_of = |word: &str| {
            word.strip_prefix(&wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("\\040(deleted)"))
        };
        let mut sums = BTreeMap::new();
        for line in maps.lines().filter(|l| l.split(' ').any(is_of)) {
            place.policies.extend(add_mapping(&mut sums, line));
        }
        place.nodes = sums
            .into_iter()
            .map(|(node, bytes)| NodeBytes { node, bytes })
            .collect();
        if !place.policies.is_empty() {
            places.push(place);
        }
    }
    places
}

/// Adds a mapping's bytes by node; its policy.
fn add_mapping(sums: &mut BTreeMap<usize, u64>, line: &str) -> Option<String> {
    let mut words = line.split_whitespace().skip(1);
    let policy = words.next().map(str::to_owned);
    let words: Vec<&str> = words.collect();
    let page_kib: u64 = words
        .iter()
        .find_map(|word| word.strip_prefix("kernelpagesize_kB=")?.parse().ok())
        .unwrap_or(4);
    for word in words {
        let Some((node, pages)) = word.strip_prefix('N').and_then(|rest| rest.split_once('='))
        else {
            continue;
        };
        if let (Ok(node), Ok(pages)) = (node.parse(), pages.parse::<u64>()) {
            let bytes = pages.saturating_mul(page_kib).saturating_mul(1024);
            let sum = sums.entry(node).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const MAPS: &str = "\
7f0000000000 bind:1 file=/memfd:xasm-ram\\040(deleted) huge dirty=32 N1=32 kernelpagesize_kB=2048
7f1000000000 bind:1 file=/memfd:xasm-ram\\040(deleted) dirty=3 N0=1 N1=2 kernelpagesize_kB=4
7f2000000000 prefer:1 file=/memfd:xemem-arena\\040(deleted) dirty=4 active=0 N1=4 kernelpagesize_kB=4
7f3000000000 default file=/memfd:xemem-arena-of-others\\040(deleted) N0=9 kernelpagesize_kB=4
7f4000000000 default file=/usr/bin/N7=7 mapped=2 N0=2 kernelpagesize_kB=4
7f5000000000 default
";

    #[test]
    fn pages_are_counted_in_their_size_and_by_node() {
        let places = memory(MAPS);
        assert_eq!(places.len(), 2, "{places:?}");
        let (ram, arenas) = (&places[0], &places[1]);
        assert_eq!(ram.object, "ram");
        let bytes = |node, bytes| NodeBytes { node, bytes };
        assert_eq!(ram.nodes, [bytes(0, 4096), bytes(1, (64 << 20) + 2 * 4096)]);
        assert_eq!(ram.policies, BTreeSet::from(["bind:1".to_owned()]));
        assert_eq!(arenas.nodes, [bytes(1, 4 * 4096)]);
    }

    #[test]
    fn what_lies_elsewhere_is_told_apart() {
        let placement = Placement {
            memory: memory(MAPS),
            ..Placement::default()
        };
        assert_eq!(placement.astray(MemoryNode::Any), BTreeMap::new());
        let from_1 = BTreeMap::from([(0, 4096)]);
        assert_eq!(placement.astray(MemoryNode::Bind(1)), from_1);
        assert_eq!(placement.astray(MemoryNode::Prefer(1)), from_1);
        let total = placement.astray(MemoryNode::Bind(5));
        assert_eq!(total.len(), 2);
    }

    #[test]
    fn nonsense_in_the_kernels_file_counts_nothing() {
        for text in [
            "",
            "x",
            "7f bind:1 file=/memfd:xasm-ram N=1 N1 Nx=2 N1=-1 N1=99999999999999999999",
        ] {
            assert!(memory(text).iter().all(|place| place.nodes.is_empty()));
        }
        let huge = "7f bind:1 file=/memfd:xasm-ram N1=18446744073709551615 kernelpagesize_kB=2048";
        assert_eq!(memory(huge)[0].nodes[0].bytes, u64::MAX);
    }

    #[test]
    fn threads_are_told_with_the_cores_they_may_use_and_used() {
        let scratch = Scratch::new("placement");
        let file = |tid: &str, name: &str, text: &str| {
            let dir = scratch.path().join("task").join(tid);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(name), text).unwrap();
        };
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        file("12", "comm", "vcpu1\n");
        file("12", "status", "Name:\tvcpu1\nCpus_allowed_list:\t2-3\n");
        file(
            "12",
            "stat",
            &format!("12 (odd) name) {}", fields.join(" ")),
        );
        file("11", "comm", "vcpu0\n");
        file("10", "comm", "enclave-vmm\n");
        let topology = Topology::of_nodes(&[(0, &[0, 1]), (1, &[2, 3])]);
        let placement = Placement::read(scratch.path(), &topology);
        let [first, second] = &placement.vcpus[..] else {
            panic!("{placement:?}")
        };
        assert_eq!((first.tid, first.last_core), (11, None));
        assert_eq!(second.allowed, BTreeSet::from([2, 3]));
        assert_eq!(
            (second.last_core, &second.nodes),
            (Some(39), &BTreeSet::from([1]))
        );
        assert_eq!(placement.memory, []);
    }
}
