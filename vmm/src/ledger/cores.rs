//! Which cores an enclave gets: a pure decision, tested without a host.
//!
//! A *core* is one hardware thread by the number Linux gives it; a *unit* is a
//! physical core with all its threads online. Rules: only online cores this
//! process may use; units go whole: whoever has one thread has the others too,
//! and those it does not run on stay idle; a core has one owner unless all its
//! enclaves said `--share-cores`; one unit always stays with the host, which
//! shared cores may bend on a small machine, with a warning. A count is served
//! with one thread of as many units, of one NUMA node where one has enough, and
//! on a hybrid host of its fast cores.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::CoreRequest;
use crate::failure::{Class, Failure};
use crate::topology::{Topology, cpu_list};

/// An enclave that has a core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its name.
    pub enclave: String,
    /// Its VMM.
    pub pid: i32,
    /// Does it share?
    pub shares: bool,
}

/// Everything the decision depends on.
#[derive(Clone, Debug)]
pub struct CoreQuery<'a> {
    /// Enclave to be, for messages.
    pub enclave: &'a str,
    /// What is asked for.
    pub request: &'a CoreRequest,
    /// May the cores be shared?
    pub shares: bool,
    /// The node they have to be of, if one is asked for.
    pub node: Option<usize>,
    /// Cores that the enclave has already: more of a count come from their nodes
    /// while that is no worse.
    pub beside: &'a BTreeSet<usize>,
    /// What the host has.
    pub topology: &'a Topology,
    /// Cores this process may run on.
    pub allowed: &'a BTreeSet<usize>,
    /// Who has which core.
    pub held: &'a BTreeMap<usize, Vec<Holder>>,
}

/// Cores chosen, ascending, and what the user should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The cores that run the enclave.
    pub cores: Vec<usize>,
    /// The other threads of these physical cores: nobody else gets them.
    pub idle: Vec<usize>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// Chooses.
///
/// # Errors
/// [`Class::Busy`] names the holder; [`Class::Resources`] says what is missing.
pub fn choose(query: &CoreQuery<'_>) -> Result<Choice, Failure> {
    query.check_node()?;
    let mut cores = match query.request {
        CoreRequest::List(list) => {
            for &core in list {
                query.check_named(core)?;
            }
            list.clone()
        }
        CoreRequest::Count(count) => query.pick(*count)?,
    };
    cores.sort_unstable();
    cores.dedup();
    let mut idle: BTreeSet<usize> = cores.iter().flat_map(|&core| query.unit(core)).collect();
    idle.retain(|core| !cores.contains(core));
    let taken: Vec<usize> = cores.iter().chain(&idle).copied().collect();
    if !query.leaves_one(&taken) && !query.shares {
        return Err(query.last_core());
    }
    Ok(Choice {
        warnings: query.warnings(&cores, &taken),
        cores,
        idle: idle.into_iter().collect(),
    })
}

impl CoreQuery<'_> {
    fn fail(&self, class: Class, why: String) -> Failure {
        Failure::new(class, format!("create enclave {}", self.enclave), why)
    }

    fn holders(&self, core: usize) -> &[Holder] {
        self.held.get(&core).map_or(&[], Vec::as_slice)
    }

    /// Whether this enclave could have the core, housekeeping aside.
    fn is_open(&self, core: usize) -> bool {
        self.holders(core)
            .iter()
            .all(|holder| holder.shares && self.shares)
    }

    /// Cores that could be used at all, highest first: those of other enclaves
    /// count, although an isolated one takes its cores out of everybody's cpuset.
    fn usable(&self) -> impl Iterator<Item = usize> {
        let descending = self.topology.online.iter().rev().copied();
        descending.filter(|&core| self.allowed.contains(&core) || !self.holders(core).is_empty())
    }

    /// Whether the core is of the node asked for.
    fn is_on_node(&self, core: usize) -> bool {
        self.node.is_none() || self.topology.node_of(core) == self.node
    }

    /// Whether the node asked for can have an enclave at all.
    fn check_node(&self) -> Result<(), Failure> {
        let Some(number) = self.node else {
            return Ok(());
        };
        let nodes = self.topology.describe_nodes();
        let why = match self.topology.nodes.get(&number) {
            None => format!("node {number} does not exist; this host has {nodes}"),
            Some(node) if node.cores.is_empty() => {
                format!("node {number} has no cores; this host has {nodes}")
            }
            Some(node) if node.mem_total_bytes == 0 => {
                format!("node {number} has no memory")
            }
            Some(node) if !node.is_allowed => {
                format!("the memory of node {number} is outside this process's cpuset")
            }
            Some(_) => return Ok(()),
        };
        let failure = self.fail(Class::Resources, why);
        Err(failure.with_hint("ls -d /sys/devices/system/node/node*"))
    }

    /// The threads of the physical core of `core` that are online. Whoever
    /// shares gets along with those that this process may use.
    fn unit(&self, core: usize) -> Vec<usize> {
        let siblings = self.topology.siblings.get(&core);
        let mut unit: BTreeSet<usize> = siblings.cloned().unwrap_or_default();
        unit.insert(core);
        unit.retain(|thread| self.topology.online.contains(thread));
        if self.shares {
            unit.retain(|thread| self.allowed.contains(thread));
        }
        unit.into_iter().collect()
    }

    /// Whether the host keeps a physical core no enclave has a thread of.
    fn leaves_one(&self, taken: &[usize]) -> bool {
        let is_left = |core: usize| self.holders(core).is_empty() && !taken.contains(&core);
        self.usable()
            .any(|core| self.unit(core).into_iter().all(is_left))
    }

    fn check_named(&self, core: usize) -> Result<(), Failure> {
        if !self.topology.present.contains(&core) {
            let why = format!(
                "core {core} does not exist; this host has {}",
                cpu_list(&self.topology.present)
            );
            return Err(self.fail(Class::Resources, why));
        }
        if !self.topology.online.contains(&core) {
            let hint = format!("echo 1 > /sys/devices/system/cpu/cpu{core}/online");
            let failure = self.fail(Class::Resources, format!("core {core} is offline"));
            return Err(failure.with_hint(hint));
        }
        if !self.is_on_node(core) {
            return Err(self.of_another_node(core));
        }
        if !self.is_open(core) {
            return Err(self.taken(core, ""));
        }
        if !self.allowed.contains(&core) {
            let why = format!(
                "core {core} is outside this process's cpuset {}",
                cpu_list(self.allowed)
            );
            return Err(self.fail(Class::Resources, why));
        }
        for sibling in self.unit(core) {
            let relation = format!(", the other thread of core {core},");
            if !self.is_open(sibling) {
                return Err(self.taken(sibling, &relation));
            }
            if !self.allowed.contains(&sibling) {
                let why = format!(
                    "core {sibling}{relation} is outside this process's cpuset {}",
                    cpu_list(self.allowed)
                );
                let failure = self.fail(Class::Resources, why);
                return Err(failure.with_hint("enclavectl create --share-cores …"));
            }
        }
        Ok(())
    }

    fn of_another_node(&self, core: usize) -> Failure {
        let wanted = self.node.unwrap_or_default();
        let theirs = match self.topology.node_of(core) {
            Some(node) => format!("of node {node}"),
            None => "of no node".to_owned(),
        };
        let cores = self.topology.nodes.get(&wanted).map(|node| &node.cores);
        let why = format!(
            "core {core} is {theirs}, and node {wanted} is asked for, which has the cores {}",
            cores.map(cpu_list).unwrap_or_default()
        );
        self.fail(Class::Usage, why).with_hint(format!(
            "enclavectl create {} --node {wanted} --cores 1",
            self.enclave
        ))
    }

    fn taken(&self, core: usize, relation: &str) -> Failure {
        let unfriendly = |holder: &&Holder| !(holder.shares && self.shares);
        let Some(holder) = self.holders(core).iter().find(unfriendly) else {
            return self.fail(Class::Busy, format!("core {core}{relation} is taken"));
        };
        let why = format!(
            "core {core}{relation} is taken by enclave {} (pid {})",
            holder.enclave, holder.pid
        );
        let failure = self.fail(Class::Busy, why);
        if self.shares {
            return failure.with_hint(format!(
                "enclavectl destroy {0}, or create {0} with --share-cores too",
                holder.enclave
            ));
        }
        failure.with_hint("enclavectl list")
    }

    fn last_core(&self) -> Failure {
        let why = "it would take the last core from the host, which needs one to keep running";
        self.fail(Class::Resources, why.to_owned())
            .with_hint("enclavectl create --share-cores …")
    }

    /// One thread each of the best physical cores: free ones first, then the
    /// least shared; of a hybrid host the fast ones; near those that the enclave
    /// has; the highest numbers.
    fn pick(&self, count: usize) -> Result<Vec<usize>, Failure> {
        let usable: Vec<usize> = self
            .usable()
            .filter(|&core| self.is_on_node(core) && self.is_first(core))
            .collect();
        let mut order = usable.clone();
        order.retain(|&core| {
            let is_fit = |thread: usize| self.allowed.contains(&thread) && self.is_open(thread);
            self.unit(core).into_iter().all(is_fit)
        });
        // Stable: among equals the higher number stays first.
        let nodes = self.nodes_beside();
        let is_far = |core| !nodes.contains(&self.topology.node_of(core));
        let is_slow = |core| self.topology.slow.contains(&core);
        order.sort_by_key(|&core| (self.load(core), is_slow(core), is_far(core)));
        if order.len() < count {
            return Err(self.too_few(count, order.len(), usable.len()));
        }
        if self.shares && order.len() > count {
            // The host's last free core goes to the end of the queue.
            let firsts = self.usable().filter(|&core| self.is_first(core));
            let free = firsts.filter(|&core| self.load(core) == 0).count();
            if order.iter().filter(|&&core| self.load(core) == 0).count() == count && free == count
            {
                order.rotate_left(count);
            }
        }
        let cores = self.together(&order, count);
        let taken: Vec<usize> = cores.iter().flat_map(|&core| self.unit(core)).collect();
        if !self.shares && !self.leaves_one(&taken) {
            return Err(self.last_core());
        }
        Ok(cores)
    }

    /// Whether the core stands for its physical core.
    fn is_first(&self, core: usize) -> bool {
        self.unit(core).first() == Some(&core)
    }

    /// How many enclaves have some of the core's physical core.
    fn load(&self, core: usize) -> usize {
        let threads = self.unit(core).into_iter();
        threads
            .map(|thread| self.holders(thread).len())
            .max()
            .unwrap_or(0)
    }

    fn too_few(&self, count: usize, open: usize, usable: usize) -> Failure {
        let of_node = self.node.map(|node| format!(" of node {node}"));
        let physical = match self.topology.has_smt() {
            true => "physical ",
            false => "",
        };
        let why = format!(
            "{count} wanted, {open} of {usable} usable {physical}cores{} open to it",
            of_node.unwrap_or_default()
        );
        self.fail(Class::Resources, why)
            .with_hint("enclavectl part ls")
    }

    /// `count` cores of `order`, all of one node and one kind if that is no
    /// worse shared.
    fn together(&self, order: &[usize], count: usize) -> Vec<usize> {
        let shared = |cores: &[usize]| -> usize { cores.iter().map(|&core| self.load(core)).sum() };
        let anywhere: Vec<usize> = order.iter().take(count).copied().collect();
        let place = |core: usize| {
            (
                self.topology.node_of(core),
                self.topology.slow.contains(&core),
            )
        };
        let mut places = Vec::new();
        for &core in order {
            if !places.contains(&place(core)) {
                places.push(place(core));
            }
        }
        // Fast cores of any node before slow ones of one.
        places.sort_by_key(|&(_, is_slow)| is_slow);
        places
            .into_iter()
            .map(|wanted| -> Vec<usize> {
                let there = order.iter().filter(|&&core| place(core) == wanted);
                there.take(count).copied().collect()
            })
            .find(|cores| cores.len() == count && shared(cores) == shared(&anywhere))
            .unwrap_or(anywhere)
    }

    /// The nodes of the cores that the enclave has.
    fn nodes_beside(&self) -> BTreeSet<Option<usize>> {
        let cores = self.beside.iter();
        cores.map(|&core| self.topology.node_of(core)).collect()
    }

    fn warnings(&self, cores: &[usize], taken: &[usize]) -> Vec<String> {
        let mut warnings = Vec::new();
        let slow = cores
            .iter()
            .filter(|core| self.topology.slow.contains(core));
        if (1..cores.len()).contains(&slow.count()) {
            warnings.push("its cores are of two kinds: threads wait for the slow ones".into());
        }
        for &core in cores {
            let names: Vec<&str> = self
                .holders(core)
                .iter()
                .map(|holder| holder.enclave.as_str())
                .collect();
            if !names.is_empty() {
                warnings.push(format!(
                    "core {core} is shared with {}: they slow each other down",
                    names.join(", ")
                ));
            }
        }
        if !self.leaves_one(taken) {
            warnings.push("no core is left to the host alone: it slows the enclaves down".into());
        }
        warnings
    }
}

#[cfg(test)]
#[path = "cores_tests.rs"]
mod tests;
