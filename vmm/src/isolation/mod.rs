//! Keeping the rest of the host off the cores of enclaves, as far as the host
//! allows it, and telling how far that is.
//!
//! ```text
//! RUNDIR/ledger/isolation.lock   held while it is being settled
//! RUNDIR/ledger/isolation.json   interrupts that were moved, and from where
//! ```
//!
//! [`settle`] compares who lives, by the locks of [`crate::ledger`], with what
//! the kernel was told, and makes the difference up in either direction. So it
//! is the same for create, for destroy, and for enclaves whose VMM was killed:
//! `enclavectl` calls it with every command that looks at enclaves. `enclave-vmm`
//! does not, because it gives its rights up. [`Report`] is read back from the
//! kernel each time, never remembered.

mod groups;
mod irqs;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

pub use groups::{Held, Offer, offer};
use irqs::Moved;

use crate::failure::Failure;
use crate::ledger::{Record, RunDir, live};
use crate::placement::Placement;
use crate::topology::{Topology, cpu_list};

/// Name of the ledger's file.
const FILE: &str = "isolation.json";
/// Longest one that is read: thousands of interrupts.
const MAX_BYTES: u64 = 16 << 20;
/// How long groups of processes that have just ended may take to be empty.
const SWEEP_TIMEOUT: Duration = Duration::from_millis(300);
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// How much isolation is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// What the host allows.
    #[default]
    Auto,
    /// A partition that holds and no interrupt on its cores, or no enclave.
    Require,
    /// None: other work may run on the cores.
    Off,
}

/// What was done to the host, for the next one to undo.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ledger {
    /// Cores that interrupts were kept off.
    isolated: BTreeSet<usize>,
    /// Interrupts that go elsewhere than before.
    moved: BTreeMap<String, Moved>,
}

/// How far an enclave has its cores alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its cores, idle threads included.
    pub cores: BTreeSet<usize>,
    /// How other work is kept off.
    pub held: Held,
    /// Interrupts of devices that stay there: "24 (virtio0)".
    pub interrupts: Vec<String>,
    /// Interrupts that leave when they arrive there the next time.
    pub leaving: Vec<String>,
    /// What would be better, for the user; empty if nothing.
    pub advice: String,
}

impl Report {
    /// Whether neither other work nor an interrupt of a device comes there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self.held, Held::Isolated | Held::Partition) && self.interrupts.is_empty()
    }
}

/// An enclave whose cores are to be isolated.
struct Owner<'a> {
    name: &'a str,
    pid: i32,
    cores: BTreeSet<usize>,
}

impl<'a> Owner<'a> {
    fn of((name, record): &'a (String, Record)) -> Option<Self> {
        let cores: BTreeSet<usize> = record.taken().collect();
        (record.isolated && record.pid > 0 && !cores.is_empty()).then_some(Self {
            name,
            pid: record.pid,
            cores,
        })
    }

    /// Its vCPU threads.
    fn threads(&self, root: &Path) -> Vec<i32> {
        let process = root.join(format!("proc/{}", self.pid));
        let placement = Placement::read(&process, &Topology::default());
        placement.vcpus.iter().map(|vcpu| vcpu.tid).collect()
    }
}

/// Brings the host in line with the enclaves that live. What it could not do is
/// told, in words.
///
/// # Errors
/// When the ledger cannot be read or written; then nothing was done.
pub fn settle(root: &Path, run: &RunDir) -> Result<Vec<String>, Failure> {
    let owners = live(run)?;
    let owners: Vec<Owner<'_>> = owners.iter().filter_map(Owner::of).collect();
    if owners.is_empty() && !run.has_ledger_file(FILE) {
        return Ok(Vec::new());
    }
    let lock = run.ledger_file("isolation.lock")?;
    let what = "settle the isolation of cores";
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| Failure::io(what, e))?;
    let mut troubles = Vec::new();
    let offer = groups::offer(root);
    sweep(&offer, root);
    for owner in &owners {
        let threads = owner.threads(root);
        let Some(group) = offer.group(owner.name, owner.pid) else {
            continue;
        };
        if !threads.is_empty() {
            offer.keep(&group, &threads);
        }
        let is_there = !matches!(groups::read_back(&group, &threads), Held::Affinity { .. });
        let is_right = is_there && groups::has_cores(&group, &owner.cores);
        if threads.is_empty() || is_right {
            continue;
        }
        if let Err(error) = offer.enter(root, &group, &owner.cores, owner.pid, &threads) {
            troubles.push(format!("no cpuset for enclave {}: {error}", owner.name));
        }
    }
    troubles.extend(settle_interrupts(root, run, &owners)?);
    Ok(troubles)
}

/// Waits a moment for groups to get empty.
fn sweep(offer: &Offer, root: &Path) {
    let deadline = Instant::now() + SWEEP_TIMEOUT;
    while !offer.sweep(root) && Instant::now() < deadline {
        std::thread::sleep(SWEEP_PAUSE);
    }
}

fn settle_interrupts(
    root: &Path,
    run: &RunDir,
    owners: &[Owner<'_>],
) -> Result<Option<String>, Failure> {
    let before = read_ledger(run);
    let isolated: BTreeSet<usize> = owners.iter().flat_map(|o| o.cores.clone()).collect();
    if before.isolated == isolated {
        return Ok(None);
    }
    let Ok(host) = Topology::read(root) else {
        return Ok(Some("the host's cores cannot be read".to_owned()));
    };
    let now = irqs::read(root);
    let (writes, moved) = irqs::plan(&now, &before.moved, &isolated, &host.online);
    let during = Ledger {
        isolated: BTreeSet::new(),
        moved: irqs::merged(&before.moved, &moved),
    };
    write_ledger(run, &during)?;
    let mut stay = BTreeSet::new();
    for (irq, cores) in &writes {
        if irqs::write(root, irq, cores).is_err() {
            stay.insert(irq.as_str());
        }
    }
    if isolated.is_empty() && stay.is_empty() {
        run.remove_ledger_file(FILE)?;
    } else {
        write_ledger(run, &Ledger { isolated, moved })?;
    }
    let is_trouble = !stay.is_empty() && !owners.is_empty();
    Ok(is_trouble.then(|| {
        let list: Vec<&str> = stay.into_iter().collect();
        format!("interrupts {} stay where they are", list.join(", "))
    }))
}

fn read_ledger(run: &RunDir) -> Ledger {
    if !run.has_ledger_file(FILE) {
        return Ledger::default();
    }
    let mut text = String::new();
    let read = run.ledger_file(FILE).ok().and_then(|file| {
        let mut file = file.take(MAX_BYTES);
        file.read_to_string(&mut text).ok()
    });
    // Replaced as a whole by its writers: what is no ledger is nobody's.
    read.and_then(|_| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

fn write_ledger(run: &RunDir, ledger: &Ledger) -> Result<(), Failure> {
    let what = "write down the interrupts that are moved";
    let text = serde_json::to_string(ledger)
        .map_err(|e| Failure::new(crate::failure::Class::Failure, what, e))?;
    run.replace_ledger_file(FILE, &text)
}

/// How far the enclave of `record` has its cores alone, as the kernel tells it.
#[must_use]
pub fn report(root: &Path, name: &str, record: &Record) -> Report {
    let cores: BTreeSet<usize> = record.taken().collect();
    let affinity = |reason: &str| Held::Affinity {
        reason: reason.to_owned(),
    };
    let offer = groups::offer(root);
    let held = match (Owner::of(&(name.to_owned(), record.clone())), &offer) {
        (None, _) if record.share_cores => affinity("its cores are shared"),
        (None, _) => affinity("no isolation was asked for"),
        (Some(_), Offer::Affinity(why)) => affinity(why),
        (Some(owner), _) => match offer.group(name, record.pid) {
            Some(group) => groups::read_back(&group, &owner.threads(root)),
            None => affinity("it has no group"),
        },
    };
    let [interrupts, leaving] = irqs::delivered_to(root, &cores);
    let advice = advice(record, &held, &interrupts);
    Report {
        cores,
        held,
        interrupts,
        leaving,
        advice,
    }
}

fn advice(record: &Record, held: &Held, interrupts: &[String]) -> String {
    let cores: BTreeSet<usize> = record.taken().collect();
    match held {
        _ if !record.isolated => "create it without --share-cores and --isolation off".to_owned(),
        Held::Affinity { .. } if !rustix::process::geteuid().is_root() => {
            "create it as root: others may run on its cores".to_owned()
        }
        Held::Affinity { .. } | Held::Exclusive => format!(
            "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or with isolcpus={}: \
             others may run on its cores",
            cpu_list(&cores)
        ),
        _ if !interrupts.is_empty() => format!(
            "keep these interrupts off at boot (isolcpus=managed_irq,domain,{}), and \
             irqbalance off",
            cpu_list(&cores)
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
