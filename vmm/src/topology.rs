//! The host's cores and memory, read from sysfs and procfs.
//!
//! Read at admission and by `enclavectl doctor`. The root is injectable, so
//! that tests use a tree of their own. Decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::parse_cpu_list;

/// What the host has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Cores that exist.
    pub present: BTreeSet<usize>,
    /// Cores that are online.
    pub online: BTreeSet<usize>,
    /// Threads of the same physical core, the core itself included.
    pub siblings: BTreeMap<usize, BTreeSet<usize>>,
    /// Bytes of memory in all.
    pub mem_total_bytes: u64,
    /// Bytes that can be had without swapping (`MemAvailable`).
    pub mem_available_bytes: u64,
    /// 2 MiB huge pages set aside.
    pub huge_total: u64,
    /// 2 MiB huge pages nobody has reserved.
    pub huge_free: u64,
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
        let huge = root.join("sys/kernel/mm/hugepages/hugepages-2048kB");
        let free = read_number(&huge.join("free_hugepages"));
        let reserved = read_number(&huge.join("resv_hugepages"));
        Ok(Self {
            present,
            online,
            siblings,
            mem_total_bytes: field("MemTotal")?,
            mem_available_bytes: field("MemAvailable")?,
            huge_total: read_number(&huge.join("nr_hugepages")),
            huge_free: free.saturating_sub(reserved),
        })
    }

    /// Whether some physical core runs more than one thread.
    #[must_use]
    pub fn has_smt(&self) -> bool {
        self.siblings.values().any(|threads| threads.len() > 1)
    }
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
            ("proc/meminfo", MEMINFO),
        ]);
        let topology = Topology::read(scratch.path()).unwrap();
        assert_eq!(topology.online, BTreeSet::from([0, 1, 3]));
        assert_eq!(topology.present.len(), 4);
        assert!(topology.has_smt());
        assert_eq!(topology.mem_total_bytes, 100 * 1024);
        assert_eq!(topology.mem_available_bytes, 60 * 1024);
        assert_eq!((topology.huge_total, topology.huge_free), (9, 5));
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
}
