//! The host's cores, memory and NUMA nodes, read from sysfs and procfs.
//!
//! Read at admission and by `enclavectl doctor`. The root is injectable, so
//! that tests use a tree of their own. Decides nothing. A kernel without NUMA
//! is a host with one node, number 0, that has everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::parse_cpu_list;

/// Folder of the 2 MiB pages, of the host and of each node.
const HUGE: &str = "hugepages-2048kB";
/// Folder of the 1 GiB pages.
const GIANT: &str = "hugepages-1048576kB";

/// One NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its cores that are online.
    pub cores: BTreeSet<usize>,
    /// Bytes of memory in all; 0 for a node of cores only.
    pub mem_total_bytes: u64,
    /// Bytes that can be had without swapping: what is free and half of the
    /// file cache. The kernel gives no such figure by node, this is careful.
    pub mem_available_bytes: u64,
    /// 2 MiB huge pages set aside here.
    pub huge_total: u64,
    /// 2 MiB huge pages not in use here. Reservations have no node: some of
    /// these may be promised.
    pub huge_free: u64,
    /// 1 GiB huge pages set aside here.
    pub giant_total: u64,
    /// 1 GiB huge pages not in use here, of which some may be promised.
    pub giant_free: u64,
    /// May this process take memory here (its cpuset)?
    pub is_allowed: bool,
}

/// What the host has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Cores that exist.
    pub present: BTreeSet<usize>,
    /// Cores that are online.
    pub online: BTreeSet<usize>,
    /// Threads of the same physical core, the core itself included.
    pub siblings: BTreeMap<usize, BTreeSet<usize>>,
    /// The efficient cores of a hybrid processor; empty where all are alike.
    pub slow: BTreeSet<usize>,
    /// Bytes of memory in all.
    pub mem_total_bytes: u64,
    /// Bytes that can be had without swapping (`MemAvailable`).
    pub mem_available_bytes: u64,
    /// 2 MiB huge pages set aside.
    pub huge_total: u64,
    /// 2 MiB huge pages nobody has reserved.
    pub huge_free: u64,
    /// 1 GiB huge pages set aside.
    pub giant_total: u64,
    /// 1 GiB huge pages nobody has reserved.
    pub giant_free: u64,
    /// NUMA nodes by number.
    pub nodes: BTreeMap<usize, Node>,
    /// Does the kernel know of nodes (and of memory policies)?
    pub has_numa: bool,
}

/// A file of the kernel that is missing or not understood.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// It cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds something else than expected.
    #[error("{path} holds \"{text}\"")]
    Content {
        /// The file.
        path: PathBuf,
        /// Its beginning.
        text: String,
    },
}

impl Topology {
    /// Reads the tree below `root` (`/` in production).
    ///
    /// Huge pages and SMT siblings are optional: absent files count as none.
    ///
    /// # Errors
    /// The file that is missing or not understood.
    pub fn read(root: &Path) -> Result<Self, TopologyError> {
        let cpu = root.join("sys/devices/system/cpu");
        let online = read_cpus(&cpu.join("online"))?;
        let present = read_cpus(&cpu.join("present"))?;
        let mut siblings = BTreeMap::new();
        for &core in &online {
            let path = cpu.join(format!("cpu{core}/topology/thread_siblings_list"));
            let threads = read_cpus(&path).unwrap_or_else(|_| BTreeSet::from([core]));
            siblings.insert(core, threads);
        }
        let meminfo_path = root.join("proc/meminfo");
        let meminfo = read(&meminfo_path)?;
        let field = |name: &str| {
            meminfo_bytes(&meminfo, name).ok_or_else(|| content(&meminfo_path, &meminfo))
        };
        let pools = root.join("sys/kernel/mm/hugepages");
        let (huge_total, huge_free) = read_pool(&pools.join(HUGE));
        let (giant_total, giant_free) = read_pool(&pools.join(GIANT));
        let mut this = Self {
            present,
            online,
            siblings,
            // There on hybrid processors only.
            slow: read_cpus(&root.join("sys/devices/cpu_atom/cpus")).unwrap_or_default(),
            mem_total_bytes: field("MemTotal")?,
            mem_available_bytes: field("MemAvailable")?,
            huge_total,
            huge_free,
            giant_total,
            giant_free,
            nodes: BTreeMap::new(),
            has_numa: false,
        };
        this.read_nodes(root)?;
        Ok(this)
    }

    fn read_nodes(&mut self, root: &Path) -> Result<(), TopologyError> {
        let folder = root.join("sys/devices/system/node");
        self.has_numa = folder.is_dir();
        let allowed = allowed_nodes(root);
        if self.has_numa {
            for number in read_cpus(&folder.join("online"))? {
                let mut node = read_node(&folder.join(format!("node{number}")), &self.online)?;
                node.is_allowed = allowed.as_ref().is_none_or(|a| a.contains(&number));
                self.nodes.insert(number, node);
            }
        }
        match self.nodes.len() {
            0 => drop(self.nodes.insert(
                0,
                Node {
                    cores: self.online.clone(),
                    mem_total_bytes: self.mem_total_bytes,
                    mem_available_bytes: self.mem_available_bytes,
                    huge_total: self.huge_total,
                    huge_free: self.huge_free,
                    giant_total: self.giant_total,
                    giant_free: self.giant_free,
                    is_allowed: true,
                },
            )),
            // The figures for the whole host are better than our estimate.
            1 => {
                for node in self.nodes.values_mut() {
                    node.mem_available_bytes = self.mem_available_bytes;
                    node.huge_free = self.huge_free;
                    node.giant_free = self.giant_free;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The node that has `core`.
    #[must_use]
    pub fn node_of(&self, core: usize) -> Option<usize> {
        let mut nodes = self.nodes.iter();
        nodes
            .find(|(_, node)| node.cores.contains(&core))
            .map(|(&number, _)| number)
    }

    /// The node that has all of `cores`, if one has.
    #[must_use]
    pub fn common_node(&self, cores: &[usize]) -> Option<usize> {
        let node = self.node_of(*cores.first()?)?;
        let all = cores.iter().all(|&core| self.node_of(core) == Some(node));
        all.then_some(node)
    }

    /// "node 0 (cores 0-1), node 1 (cores 2-3)", for messages.
    #[must_use]
    pub fn describe_nodes(&self) -> String {
        let texts: Vec<String> = self
            .nodes
            .iter()
            .map(|(number, node)| format!("node {number} (cores {})", cpu_list(&node.cores)))
            .collect();
        texts.join(", ")
    }

    /// Whether some physical core runs more than one thread.
    #[must_use]
    pub fn has_smt(&self) -> bool {
        self.siblings.values().any(|threads| threads.len() > 1)
    }
}

/// A set of cores in the form of the Linux CPU files; "none" for none.
#[must_use]
pub fn cpu_list(cores: &BTreeSet<usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => ranges.push((core, core)),
        }
    }
    let texts: Vec<String> = ranges
        .iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    if texts.is_empty() {
        return "none".to_owned();
    }
    texts.join(",")
}

/// The nodes this process may take memory from; `None` when not told.
fn allowed_nodes(root: &Path) -> Option<BTreeSet<usize>> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Mems_allowed_list:"))?;
    parse_cpu_list(line)
}

fn read_node(folder: &Path, online: &BTreeSet<usize>) -> Result<Node, TopologyError> {
    let meminfo_path = folder.join("meminfo");
    let meminfo = read(&meminfo_path)?;
    // Lines are "Node 1 MemFree:   123 kB".
    let lines: Vec<&str> = meminfo
        .lines()
        .filter_map(|line| line.trim().splitn(3, ' ').nth(2))
        .collect();
    let meminfo_of_node = lines.join("\n");
    let field = |name: &str| {
        meminfo_bytes(&meminfo_of_node, name).ok_or_else(|| content(&meminfo_path, &meminfo))
    };
    let cache = field("Active(file)")?.saturating_add(field("Inactive(file)")?);
    let cores = read_cpus(&folder.join("cpulist"))?;
    // Nodes have no file of what is reserved.
    let pools = folder.join("hugepages");
    let (huge_total, huge_free) = read_pool(&pools.join(HUGE));
    let (giant_total, giant_free) = read_pool(&pools.join(GIANT));
    Ok(Node {
        cores: cores.intersection(online).copied().collect(),
        mem_total_bytes: field("MemTotal")?,
        mem_available_bytes: field("MemFree")?.saturating_add(cache / 2),
        huge_total,
        huge_free,
        giant_total,
        giant_free,
        is_allowed: true,
    })
}

fn read(path: &Path) -> Result<String, TopologyError> {
    fs::read_to_string(path).map_err(|source| TopologyError::Read {
        path: path.to_owned(),
        source,
    })
}

fn content(path: &Path, text: &str) -> TopologyError {
    TopologyError::Content {
        path: path.to_owned(),
        text: text.chars().take(40).collect(),
    }
}

fn read_cpus(path: &Path) -> Result<BTreeSet<usize>, TopologyError> {
    let text = read(path)?;
    parse_cpu_list(&text).ok_or_else(|| content(path, &text))
}

/// Pages of a pool of huge pages: set aside, and promised to nobody.
fn read_pool(folder: &Path) -> (u64, u64) {
    let number = |name: &str| read_number(&folder.join(name));
    let free = number("free_hugepages").saturating_sub(number("resv_hugepages"));
    (number("nr_hugepages"), free)
}

fn read_number(path: &Path) -> u64 {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// The value of a `/proc/meminfo` line in bytes.
fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
impl Topology {
    /// A host of nodes with these cores, 1 GiB and 16 huge pages each.
    pub(crate) fn of_nodes(nodes: &[(usize, &[usize])]) -> Self {
        let mut this = Self {
            has_numa: true,
            ..Self::default()
        };
        for &(number, cores) in nodes {
            this.online.extend(cores);
            let node = Node {
                cores: cores.iter().copied().collect(),
                mem_total_bytes: 1 << 30,
                mem_available_bytes: 1 << 30,
                huge_total: 16,
                huge_free: 16,
                is_allowed: true,
                ..Node::default()
            };
            this.mem_total_bytes += node.mem_total_bytes;
            this.mem_available_bytes += node.mem_available_bytes;
            this.huge_total += node.huge_total;
            this.huge_free += node.huge_free;
            this.nodes.insert(number, node);
        }
        this.present = this.online.clone();
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn tree(files: &[(&str, &str)]) -> Scratch {
        let scratch = Scratch::new("topology");
        for (path, text) in files {
            let path = scratch.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        scratch
    }

    const CPU: &str = "sys/devices/system/cpu";
    const MEMINFO: &str = "MemTotal:       100 kB\nMemFree: 5 kB\nMemAvailable:    60 kB\n";

    #[test]
    fn a_tree_with_smt_and_huge_pages_is_read() {
        let scratch = tree(&[
            (&format!("{CPU}/online"), "0-1,3\n"),
            (&format!("{CPU}/present"), "0-3\n"),
            (
                &format!("{CPU}/cpu0/topology/thread_siblings_list"),
                "0-1\n",
            ),
            (
                "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
                "9\n",
            ),
            (
                "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
                "8\n",
            ),
            (
                "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages",
                "3\n",
            ),
            (
                "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
                "3\n",
            ),
            (
                "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
                "2\n",
            ),
            ("proc/meminfo", MEMINFO),
        ]);
        let topology = Topology::read(scratch.path()).unwrap();
        assert_eq!(topology.online, BTreeSet::from([0, 1, 3]));
        assert_eq!(topology.present.len(), 4);
        assert!(topology.has_smt());
        assert_eq!(topology.mem_total_bytes, 100 * 1024);
        assert_eq!(topology.mem_available_bytes, 60 * 1024);
        assert_eq!((topology.huge_total, topology.huge_free), (9, 5));
        assert_eq!((topology.giant_total, topology.giant_free), (3, 2));
    }

    /// Two fast cores of two threads and two slow ones, as hybrid processors are
    /// numbered; a thread that is offline is in no list of siblings.
    #[test]
    fn a_hybrid_tree_tells_which_cores_are_slow() {
        let siblings = |core: usize, text| {
            let path = format!("{CPU}/cpu{core}/topology/thread_siblings_list");
            (path, format!("{text}\n"))
        };
        let mut files = vec![
            (format!("{CPU}/online"), "0-2,4-5\n".to_owned()),
            (format!("{CPU}/present"), "0-5\n".to_owned()),
            ("sys/devices/cpu_atom/cpus".to_owned(), "4-5\n".to_owned()),
            ("proc/meminfo".to_owned(), MEMINFO.to_owned()),
        ];
        for (core, text) in [(0, "0-1"), (1, "0-1"), (2, "2"), (4, "4"), (5, "5")] {
            files.push(siblings(core, text));
        }
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (&**p, &**t)).collect();
        let host = Topology::read(tree(&files).path()).unwrap();
        assert_eq!(host.slow, BTreeSet::from([4, 5]));
        assert_eq!(host.siblings[&1], BTreeSet::from([0, 1]));
        assert_eq!(host.siblings[&2], BTreeSet::from([2]));
    }

    #[test]
    fn absent_huge_pages_count_as_none() {
        let scratch = tree(&[
            (&format!("{CPU}/online"), "0"),
            (&format!("{CPU}/present"), "0"),
            ("proc/meminfo", MEMINFO),
        ]);
        let topology = Topology::read(scratch.path()).unwrap();
        assert_eq!((topology.huge_free, topology.has_smt()), (0, false));
    }

    #[test]
    fn nonsense_names_the_file() {
        let scratch = tree(&[(&format!("{CPU}/online"), "all of them")]);
        let error = Topology::read(scratch.path()).unwrap_err();
        assert!(error.to_string().contains("online holds \"all of them\""));
    }

    const NODES: &str = "sys/devices/system/node";

    /// Files of a node with `free` kB free.
    fn node_files(number: usize, cores: &str, free: u64) -> Vec<(String, String)> {
        let at = format!("{NODES}/node{number}");
        let line = |name: &str, kib: u64| format!("Node {number} {name}: {kib:>8} kB\n");
        let meminfo = [
            line("MemTotal", free * 2),
            line("MemFree", free),
            line("Active(file)", 30),
            line("Inactive(file)", 10),
        ];
        vec![
            (format!("{at}/cpulist"), cores.to_owned()),
            (format!("{at}/meminfo"), meminfo.concat()),
            (format!("{at}/hugepages/{HUGE}/nr_hugepages"), "9\n".into()),
            (
                format!("{at}/hugepages/{HUGE}/free_hugepages"),
                "7\n".into(),
            ),
        ]
    }

    fn numa_tree(online: &str, nodes: Vec<(String, String)>) -> Scratch {
        let mut files = vec![
            (format!("{CPU}/online"), "0-3".to_owned()),
            (format!("{CPU}/present"), "0-4".to_owned()),
            ("proc/meminfo".to_owned(), MEMINFO.to_owned()),
            (format!("{NODES}/online"), online.to_owned()),
            (
                "proc/self/status".into(),
                "Mems_allowed:\t3\nMems_allowed_list:\t0\n".into(),
            ),
        ];
        files.extend(nodes);
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (&**p, &**t)).collect();
        tree(&files)
    }

    #[test]
    fn nodes_have_their_cores_memory_and_huge_pages() {
        let files = [
            node_files(0, "0-1\n", 1000),
            // Core 4 is there and offline.
            node_files(2, "2-4\n", 500),
            node_files(5, "\n", 0),
        ];
        let scratch = numa_tree("0,2,5\n", files.concat());
        let host = Topology::read(scratch.path()).unwrap();
        assert!(host.has_numa);
        let node = &host.nodes[&2];
        assert_eq!(node.cores, BTreeSet::from([2, 3]));
        assert_eq!(node.mem_total_bytes, 1000 << 10);
        assert_eq!(node.mem_available_bytes, 520 << 10);
        assert_eq!((node.huge_total, node.huge_free), (9, 7));
        assert_eq!((host.nodes[&0].is_allowed, node.is_allowed), (true, false));
        assert_eq!(host.nodes[&5].mem_total_bytes, 0);
        assert_eq!((host.node_of(3), host.node_of(4)), (Some(2), None));
        assert_eq!(host.common_node(&[2, 3]), Some(2));
        assert_eq!(
            (host.common_node(&[1, 2]), host.common_node(&[])),
            (None, None)
        );
        assert_eq!(
            host.describe_nodes(),
            "node 0 (cores 0-1), node 2 (cores 2-3), node 5 (cores none)"
        );
    }

    #[test]
    fn a_kernel_without_numa_is_one_node_that_has_everything() {
        let scratch = tree(&[
            (&format!("{CPU}/online"), "0-1"),
            (&format!("{CPU}/present"), "0-1"),
            ("proc/meminfo", MEMINFO),
        ]);
        let host = Topology::read(scratch.path()).unwrap();
        assert!(!host.has_numa);
        assert_eq!(host.nodes.len(), 1);
        assert_eq!(host.nodes[&0].cores, BTreeSet::from([0, 1]));
        assert_eq!(host.nodes[&0].mem_available_bytes, 60 << 10);
        assert!(host.nodes[&0].is_allowed);
    }

    #[test]
    fn the_only_node_has_what_the_host_has() {
        let scratch = numa_tree("0", node_files(0, "0-3", 1));
        let host = Topology::read(scratch.path()).unwrap();
        assert_eq!(host.nodes[&0].mem_available_bytes, 60 << 10);
        assert_eq!(host.nodes[&0].huge_free, host.huge_free);
    }

    #[test]
    fn a_node_that_makes_no_sense_is_named() {
        let scratch = numa_tree("0", vec![]);
        let error = Topology::read(scratch.path()).unwrap_err();
        assert!(error.to_string().contains("node0/meminfo"), "{error}");
        let mut files = node_files(0, "0-3", 1);
        files[1].1 = "Node 0 MemTotal: lots\n".to_owned();
        let error = Topology::read(numa_tree("0", files).path()).unwrap_err();
        assert!(error.to_string().contains("lots"), "{error}");
    }

    #[test]
    fn core_sets_are_told_as_linux_tells_them() {
        for text in ["0", "0-3", "0,2-3,7", "1-2,4"] {
            assert_eq!(cpu_list(&parse_cpu_list(text).unwrap()), text);
        }
        assert_eq!(cpu_list(&BTreeSet::new()), "none");
    }
}
