//! Which cores an enclave gets: a pure decision, tested without a host.
//!
//! Rules: only online cores this process may use; a core has one owner unless
//! all its enclaves said `--share-cores`; one online core always stays with
//! the host, which shared cores may bend on a small machine, with a warning.
//! A count is served from one NUMA node where one has enough, and with whole
//! physical cores where the host runs several threads on one.

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
    /// The cores.
    pub cores: Vec<usize>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// Chooses.
///
/// # Errors
/// [`Class::Busy`] names the holder; [`Class::Resources`] says what is missing.
pub fn choose(query: &CoreQuery<'_>) -> Result<Choice, Failure> {
    query.check_node()?;
    let cores = match query.request {
        CoreRequest::List(list) => {
            for &core in list {
                query.check_named(core)?;
            }
            list.clone()
        }
        CoreRequest::Count(count) => query.pick(*count)?,
    };
    let mut choice = Choice {
        warnings: query.warnings(&cores),
        cores,
    };
    choice.cores.sort_unstable();
    if !query.leaves_one(&choice.cores) && !query.shares {
        return Err(query.last_core());
    }
    Ok(choice)
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

    /// Cores that could be used at all, highest first.
    fn usable(&self) -> impl Iterator<Item = usize> {
        let descending = self.topology.online.iter().rev().copied();
        descending.filter(|core| self.allowed.contains(core))
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

    /// Whether the host keeps an online core no enclave has.
    fn leaves_one(&self, taken: &[usize]) -> bool {
        self.usable()
            .any(|core| self.holders(core).is_empty() && !taken.contains(&core))
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
        if !self.allowed.contains(&core) {
            let why = format!(
                "core {core} is outside this process's cpuset {}",
                cpu_list(self.allowed)
            );
            return Err(self.fail(Class::Resources, why));
        }
        if !self.is_on_node(core) {
            return Err(self.of_another_node(core));
        }
        if self.is_open(core) {
            return Ok(());
        }
        Err(self.taken(core))
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

    fn taken(&self, core: usize) -> Failure {
        let unfriendly = |holder: &&Holder| !(holder.shares && self.shares);
        let Some(holder) = self.holders(core).iter().find(unfriendly) else {
            return self.fail(Class::Busy, format!("core {core} is taken"));
        };
        let why = format!(
            "core {core} is taken by enclave {} (pid {})",
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

    /// The highest-numbered cores: free ones first, then the least shared.
    fn pick(&self, count: usize) -> Result<Vec<usize>, Failure> {
        let mut order: Vec<usize> = self
            .usable()
            .filter(|&core| self.is_on_node(core) && self.is_open(core))
            .collect();
        // Stable: among equals the higher number stays first.
        order.sort_by_key(|&core| self.holders(core).len());
        if order.len() < count {
            return Err(self.too_few(count, order.len()));
        }
        if self.shares && order.len() > count {
            // The host's last free core goes to the end of the queue.
            let is_free = |core: usize| self.holders(core).is_empty();
            let free = self.usable().filter(|&core| is_free(core)).count();
            if order.iter().filter(|&&core| is_free(core)).count() == count && free == count {
                order.rotate_left(count);
            }
        }
        let cores = self.together(&order, count);
        if !self.shares && !self.leaves_one(&cores) {
            return Err(self.last_core());
        }
        Ok(cores)
    }

    fn too_few(&self, count: usize, open: usize) -> Failure {
        let on_node = self.usable().filter(|&core| self.is_on_node(core));
        let of_node = self.node.map(|node| format!(" of node {node}"));
        let why = format!(
            "{count} wanted, {open} of {} usable cores{} open to it",
            on_node.count(),
            of_node.unwrap_or_default()
        );
        self.fail(Class::Resources, why)
            .with_hint("enclavectl list")
    }

    /// `count` cores of `order`, all of one node if that is no worse shared,
    /// in whole physical cores as far as that goes.
    fn together(&self, order: &[usize], count: usize) -> Vec<usize> {
        let shared =
            |cores: &[usize]| -> usize { cores.iter().map(|&core| self.holders(core).len()).sum() };
        let anywhere = self.whole_cores(order, count);
        let mut nodes: Vec<Option<usize>> = Vec::new();
        for &core in order {
            let node = self.topology.node_of(core);
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        nodes
            .into_iter()
            .map(|node| {
                let of_node = |core: &&usize| self.topology.node_of(**core) == node;
                let order: Vec<usize> = order.iter().filter(of_node).copied().collect();
                self.whole_cores(&order, count)
            })
            .find(|cores| cores.len() == count && shared(cores) == shared(&anywhere))
            .unwrap_or(anywhere)
    }

    /// The first `count` of `order`: physical cores that are there with all
    /// their threads, as long as all of one is wanted; what is then missing
    /// from those that are split already.
    fn whole_cores(&self, order: &[usize], count: usize) -> Vec<usize> {
        let (mut whole, mut split): (Vec<Vec<usize>>, Vec<usize>) = Default::default();
        for &core in order {
            let siblings = self.topology.siblings.get(&core);
            let is_whole = siblings.is_none_or(|all| all.iter().all(|core| order.contains(core)));
            if !is_whole {
                split.push(core);
                continue;
            }
            let is_of = |group: &&mut Vec<usize>| {
                siblings.is_some_and(|all| group.iter().any(|core| all.contains(core)))
            };
            match whole.iter_mut().find(is_of) {
                Some(group) => group.push(core),
                None => whole.push(vec![core]),
            }
        }
        let mut cores = Vec::new();
        whole.retain(|group| {
            let fits = cores.len() + group.len() <= count;
            if fits {
                cores.extend(group);
            }
            !fits
        });
        let rest = split.into_iter().chain(whole.into_iter().flatten());
        let missing = count - cores.len();
        cores.extend(rest.take(missing));
        cores
    }

    fn warnings(&self, cores: &[usize]) -> Vec<String> {
        let mut warnings = Vec::new();
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
        if !self.leaves_one(cores) {
            warnings.push("no core is left to the host alone: it slows the enclaves down".into());
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Held<'a> = &'a [(usize, &'a str, bool)];

    fn decide(
        cores: &[usize],
        request: &CoreRequest,
        shares: bool,
        held: Held,
    ) -> Result<Choice, Failure> {
        let topology = Topology {
            present: (0..8).collect(),
            ..Topology::of_nodes(&[(0, cores)])
        };
        decide_on(&topology, None, request, shares, held)
    }

    fn decide_on(
        topology: &Topology,
        node: Option<usize>,
        request: &CoreRequest,
        shares: bool,
        held: Held,
    ) -> Result<Choice, Failure> {
        let mut map: BTreeMap<usize, Vec<Holder>> = BTreeMap::new();
        for &(core, name, shares) in held {
            map.entry(core).or_default().push(Holder {
                enclave: name.into(),
                pid: 7,
                shares,
            });
        }
        choose(&CoreQuery {
            enclave: "new",
            request,
            shares,
            node,
            topology,
            allowed: &(0..6).chain(8..16).collect(),
            held: &map,
        })
    }

    /// Cores 0, 1 on node 0; 2, 3 on node 1; 8, 9 on node 2.
    fn three_nodes() -> Topology {
        Topology::of_nodes(&[(0, &[0, 1]), (1, &[2, 3]), (2, &[8, 9])])
    }

    #[test]
    fn a_count_comes_from_the_node_asked_for() {
        let host = three_nodes();
        let on = |node, count, held| {
            decide_on(&host, Some(node), &CoreRequest::Count(count), false, held)
        };
        assert_eq!(on(0, 1, &[]).unwrap().cores, [1]);
        assert_eq!(on(1, 2, &[]).unwrap().cores, [2, 3]);
        let failure = on(1, 2, &[(3, "a1", false)]).unwrap_err();
        assert_eq!(failure.class, Class::Resources);
        assert!(
            failure
                .why
                .contains("2 wanted, 1 of 2 usable cores of node 1"),
            "{failure}"
        );
    }

    #[test]
    fn a_node_that_cannot_have_an_enclave_is_named() {
        let mut host = three_nodes();
        let one = CoreRequest::Count(1);
        let why = |host: &Topology, node| {
            let failure = decide_on(host, Some(node), &one, true, &[]).unwrap_err();
            assert_eq!(failure.class, Class::Resources);
            assert!(!failure.hint.is_empty());
            failure.why
        };
        assert!(why(&host, 7).contains("node 7 does not exist; this host has node 0 (cores 0-1)"));
        host.nodes.get_mut(&0).unwrap().mem_total_bytes = 0;
        assert!(why(&host, 0).contains("node 0 has no memory"));
        host.nodes.get_mut(&1).unwrap().cores.clear();
        assert!(why(&host, 1).contains("node 1 has no cores"));
        host.nodes.get_mut(&2).unwrap().is_allowed = false;
        assert!(why(&host, 2).contains("outside this process's cpuset"));
    }

    #[test]
    fn named_cores_of_another_node_are_nonsense() {
        let host = three_nodes();
        let list = CoreRequest::List(vec![3]);
        assert!(decide_on(&host, Some(1), &list, false, &[]).is_ok());
        let failure = decide_on(&host, Some(0), &list, false, &[]).unwrap_err();
        assert_eq!(failure.class, Class::Usage);
        assert!(
            failure
                .why
                .contains("core 3 is of node 1, and node 0 is asked for"),
            "{failure}"
        );
    }

    #[test]
    fn cores_without_a_node_stay_together_if_they_can() {
        let host = three_nodes();
        let two = CoreRequest::Count(2);
        let choice = |held| decide_on(&host, None, &two, false, held).unwrap().cores;
        assert_eq!(choice(&[]), [8, 9]);
        assert_eq!(choice(&[(9, "a1", false)]), [2, 3]);
        let split: Held = &[(9, "a1", false), (3, "a2", false)];
        assert_eq!(choice(split), [0, 1]);
        let all: Held = &[(9, "a1", false), (3, "a2", false), (1, "a3", false)];
        assert_eq!(choice(all), [2, 8]);
    }

    #[test]
    fn a_free_core_elsewhere_is_better_than_a_shared_one_together() {
        let host = three_nodes();
        let held: Held = &[(9, "a1", true), (2, "a2", true)];
        let two = CoreRequest::Count(2);
        let choice = decide_on(&host, None, &two, true, held).unwrap();
        assert_eq!(choice.cores, [0, 1]);
        let held: Held = &[(9, "a1", true), (2, "a2", true), (1, "a3", true)];
        let choice = decide_on(&host, None, &two, true, held).unwrap();
        assert_eq!(choice.cores, [3, 8]);
    }

    #[test]
    fn hardware_threads_of_one_core_go_together() {
        let mut host = Topology::of_nodes(&[(0, &[0, 1, 2, 3, 4, 5])]);
        for core in 0..6 {
            let pair = BTreeSet::from([core % 3, core % 3 + 3]);
            host.siblings.insert(core, pair);
        }
        let choose = |count, held| {
            let count = CoreRequest::Count(count);
            decide_on(&host, None, &count, false, held).unwrap().cores
        };
        assert_eq!(choose(2, &[]), [2, 5]);
        assert_eq!(choose(4, &[]), [1, 2, 4, 5]);
        // A third thread splits one core, and a fourth elsewhere takes the
        // other half before it splits another.
        assert_eq!(choose(3, &[]), [2, 4, 5]);
        assert_eq!(
            choose(1, &[(2, "a1", false), (4, "a1", false), (5, "a1", false)]),
            [1]
        );
    }

    #[test]
    fn a_count_takes_the_highest_free_cores_and_leaves_one() {
        let one = CoreRequest::Count(1);
        assert_eq!(decide(&[0, 1, 2], &one, false, &[]).unwrap().cores, [2]);
        let held: Held = &[(2, "a1", false)];
        assert_eq!(decide(&[0, 1, 2], &one, false, held).unwrap().cores, [1]);
        let held: Held = &[(2, "a1", false), (1, "a2", false)];
        let failure = decide(&[0, 1, 2], &one, false, held).unwrap_err();
        assert_eq!(failure.class, Class::Resources);
        assert!(failure.why.contains("last core"), "{failure}");
    }

    #[test]
    fn a_named_core_that_is_taken_names_its_holder() {
        let named = CoreRequest::List(vec![1]);
        let failure = decide(&[0, 1, 2], &named, false, &[(1, "a1", false)]).unwrap_err();
        assert_eq!(failure.class, Class::Busy);
        assert!(failure.why.contains("enclave a1 (pid 7)"), "{failure}");
    }

    #[test]
    fn cores_that_are_not_there_are_a_matter_of_resources() {
        for (core, word) in [(9, "does not exist"), (3, "offline"), (7, "cpuset")] {
            let named = CoreRequest::List(vec![core]);
            let failure = decide(&[0, 1, 2, 7], &named, false, &[]).unwrap_err();
            assert_eq!(failure.class, Class::Resources);
            assert!(failure.why.contains(word), "{failure}");
        }
    }

    #[test]
    fn the_last_core_is_refused_by_name_too() {
        let named = CoreRequest::List(vec![0]);
        assert!(decide(&[0, 1], &named, false, &[]).is_ok());
        let failure = decide(&[0, 1], &named, false, &[(1, "a1", false)]).unwrap_err();
        assert!(failure.why.contains("last core"), "{failure}");
        assert!(decide(&[0], &named, false, &[]).is_err());
    }

    #[test]
    fn shared_cores_go_together_only_with_shared_cores() {
        let one = CoreRequest::Count(1);
        let choice = decide(&[0, 1], &one, true, &[(1, "a1", true)]).unwrap();
        assert_eq!(choice.cores, [1], "the host keeps core 0");
        assert!(choice.warnings[0].contains("shared with a1"));
        let named = CoreRequest::List(vec![1]);
        let failure = decide(&[0, 1], &named, true, &[(1, "a1", false)]).unwrap_err();
        assert_eq!(failure.class, Class::Busy);
        let failure = decide(&[0, 1], &named, false, &[(1, "a1", true)]).unwrap_err();
        assert_eq!(failure.class, Class::Busy);
    }

    #[test]
    fn sharing_may_take_the_last_core_with_a_warning() {
        let choice = decide(&[0], &CoreRequest::Count(1), true, &[]).unwrap();
        assert_eq!(choice.cores, [0]);
        assert!(choice.warnings[0].contains("no core is left"));
        let held: Held = &[(1, "a1", false)];
        let choice = decide(&[0, 1], &CoreRequest::Count(1), true, held).unwrap();
        assert_eq!((choice.cores, choice.warnings.len()), (vec![0], 1));
    }
}
