//! The choice of cores on made-up hosts.

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
        beside: &BTreeSet::new(),
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
    let on =
        |node, count, held| decide_on(&host, Some(node), &CoreRequest::Count(count), false, held);
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

/// The cores 6 and 7 are in nobody's cpuset but that of the enclaves.
#[test]
fn cores_isolated_for_other_enclaves_are_taken_and_count() {
    let held: Held = &[(6, "a1", false), (7, "a2", false)];
    let named = CoreRequest::List(vec![7]);
    let failure = decide(&[0, 6, 7], &named, false, held).unwrap_err();
    assert_eq!(failure.class, Class::Busy);
    assert!(failure.why.contains("enclave a2"), "{failure}");
    let failure = decide(&[6, 7], &CoreRequest::Count(1), false, held).unwrap_err();
    let words = "1 wanted, 0 of 2 usable cores";
    assert!(failure.why.contains(words), "{failure}");
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

/// `cores` hardware threads, `threads` to a physical core, numbered as Linux
/// does: all first threads, then all second ones.
fn smt(cores: usize, threads: usize) -> Topology {
    let all: Vec<usize> = (0..cores).collect();
    let mut host = Topology::of_nodes(&[(0, &all)]);
    let units = cores / threads;
    for core in 0..cores {
        let unit = (0..threads).map(|thread| core % units + thread * units);
        host.siblings.insert(core, unit.collect());
    }
    host
}

/// Numbers below 16 without 6 and 7, as [`decide_on`] allows them, are few: this
/// allows all.
fn choose_on(
    host: &Topology,
    request: &CoreRequest,
    shares: bool,
    held: &BTreeMap<usize, Vec<Holder>>,
) -> Result<Choice, Failure> {
    choose(&CoreQuery {
        enclave: "new",
        request,
        shares,
        node: None,
        beside: &BTreeSet::new(),
        topology: host,
        allowed: &host.online,
        held,
    })
}

fn held_by(cores: &[usize]) -> BTreeMap<usize, Vec<Holder>> {
    let holder = Holder {
        enclave: "a1".into(),
        pid: 7,
        shares: false,
    };
    let held = cores.iter().map(|&core| (core, vec![holder.clone()]));
    held.collect()
}

#[test]
fn a_count_is_one_thread_of_as_many_physical_cores_and_their_others_idle() {
    let choose = |host: &Topology, count, held: &[usize]| {
        let count = CoreRequest::Count(count);
        let choice = choose_on(host, &count, false, &held_by(held)).unwrap();
        (choice.cores, choice.idle)
    };
    assert_eq!(choose(&smt(6, 2), 1, &[]), (vec![2], vec![5]));
    assert_eq!(choose(&smt(6, 2), 2, &[]), (vec![1, 2], vec![4, 5]));
    assert_eq!(choose(&smt(8, 4), 1, &[]), (vec![1], vec![3, 5, 7]));
    assert_eq!(choose(&smt(6, 2), 1, &[2, 5]).0, [1]);
    // A thread that another owner has, by whatever rules, spoils the whole.
    assert_eq!(choose(&smt(6, 2), 1, &[5]).0, [1]);
    // A second thread that is offline is no part of it.
    let mut host = smt(6, 2);
    host.online.remove(&5);
    assert_eq!(choose(&host, 1, &[]), (vec![2], vec![]));
}

#[test]
fn the_last_physical_core_stays_with_the_host() {
    let host = smt(4, 2);
    let held = held_by(&[1, 3]);
    for request in [CoreRequest::Count(1), CoreRequest::List(vec![0])] {
        let failure = choose_on(&host, &request, false, &held).unwrap_err();
        assert!(failure.why.contains("last core"), "{failure}");
    }
    let failure = choose_on(&host, &CoreRequest::Count(2), false, &held).unwrap_err();
    let wanted = "2 wanted, 1 of 2 usable physical cores open to it";
    assert!(failure.why.contains(wanted), "{failure}");
    let both = CoreRequest::List(vec![0, 2]);
    assert!(choose_on(&host, &both, false, &held).is_err());
}

#[test]
fn a_list_takes_the_other_threads_along() {
    let host = smt(8, 2);
    let list = |list: &[usize], held: &[usize]| {
        let request = CoreRequest::List(list.to_vec());
        choose_on(&host, &request, false, &held_by(held))
    };
    let choice = list(&[1, 2, 6], &[]).unwrap();
    assert_eq!((choice.cores, choice.idle), (vec![1, 2, 6], vec![5]));
    let failure = list(&[1], &[5]).unwrap_err();
    assert_eq!(failure.class, Class::Busy);
    let wanted = "core 5, the other thread of core 1, is taken by enclave a1";
    assert!(failure.why.contains(wanted), "{failure}");
}

#[test]
fn more_cores_come_from_where_the_enclave_has_some() {
    let host = three_nodes();
    let more = |own: &[usize], count, held: &[usize]| {
        let held = held.iter().chain(own).map(|&core| {
            let holder = Holder {
                enclave: "a1".into(),
                pid: 7,
                shares: false,
            };
            (core, vec![holder])
        });
        let query = CoreQuery {
            enclave: "new",
            request: &CoreRequest::Count(count),
            shares: false,
            node: None,
            beside: &own.iter().copied().collect(),
            topology: &host,
            allowed: &host.online,
            held: &held.collect(),
        };
        choose(&query).map(|choice| choice.cores)
    };
    assert_eq!(more(&[0], 1, &[]).unwrap(), [1]);
    assert_eq!(more(&[3], 1, &[]).unwrap(), [2]);
    assert_eq!(more(&[], 1, &[]).unwrap(), [9]);
    // Not all at the price of two nodes, and not at any price.
    assert_eq!(more(&[0], 2, &[]).unwrap(), [8, 9]);
    assert_eq!(more(&[0], 1, &[1]).unwrap(), [9]);
}

#[test]
fn half_a_physical_core_in_the_cpuset_can_only_be_shared() {
    let host = smt(8, 2);
    let allowed = BTreeSet::from([0, 1, 2, 4]);
    let ask = |request: CoreRequest, shares| {
        choose(&CoreQuery {
            enclave: "new",
            request: &request,
            shares,
            node: None,
            beside: &BTreeSet::new(),
            topology: &host,
            allowed: &allowed,
            held: &BTreeMap::new(),
        })
    };
    let failure = ask(CoreRequest::List(vec![1]), false).unwrap_err();
    let wanted = "core 5, the other thread of core 1, is outside this process's cpuset 0-2,4";
    assert!(failure.why.contains(wanted), "{failure}");
    let shared = ask(CoreRequest::List(vec![1]), true).unwrap();
    assert_eq!((shared.cores, shared.idle), (vec![1], vec![]));
    assert_eq!(ask(CoreRequest::Count(1), false).unwrap().cores, [0]);
    assert!(ask(CoreRequest::Count(2), false).is_err());
}

#[test]
fn hybrid_hosts_give_their_fast_cores_first() {
    // 0-3 are two fast cores of two threads, 4-7 slow ones of one.
    let mut host = Topology::of_nodes(&[(0, &[0, 1, 2, 3, 4, 5, 6, 7])]);
    for core in 0..4 {
        host.siblings.insert(core, [core & !1, core | 1].into());
    }
    host.slow = (4..8).collect();
    let count = |count| choose_on(&host, &CoreRequest::Count(count), false, &BTreeMap::new());
    assert_eq!(count(1).unwrap().cores, [2]);
    assert_eq!(count(2).unwrap().cores, [0, 2]);
    assert_eq!(count(2).unwrap().warnings, [""; 0]);
    assert_eq!(count(4).unwrap().cores, [4, 5, 6, 7], "all of one kind");
    let mixed = count(5).unwrap();
    assert!(mixed.warnings[0].contains("two kinds"), "{mixed:?}");
}

proptest::proptest! {
    /// Enclaves come and go on a host of any shape: no core has two owners, no
    /// physical core is split, one stays with the host.
    #[test]
    fn no_plan_gives_a_core_twice_splits_one_or_takes_the_last(
        units in 1_usize..9,
        threads in proptest::prelude::prop_oneof![
            proptest::prelude::Just(1_usize),
            proptest::prelude::Just(2),
            proptest::prelude::Just(4),
        ],
        offline in proptest::collection::btree_set(0_usize..32, 0..6),
        steps in proptest::collection::vec((0_usize..10, 0_usize..32, 0_usize..5), 1..40),
    ) {
        let mut host = smt(units * threads, threads);
        host.online.retain(|core| !offline.contains(core));
        let mut owners: Vec<Choice> = Vec::new();
        for (what, core, count) in steps {
            let request = match what {
                0 | 1 if !owners.is_empty() => {
                    owners.swap_remove(core % owners.len());
                    continue;
                }
                2..=4 => CoreRequest::List((core..core + count.max(1)).step_by(3).collect()),
                _ => CoreRequest::Count(count.max(1)),
            };
            let taken = |owner: &Choice| [&owner.cores[..], &owner.idle].concat();
            let before: Vec<usize> = owners.iter().flat_map(taken).collect();
            let Ok(choice) = choose_on(&host, &request, false, &held_by(&before)) else {
                continue;
            };
            let new = taken(&choice);
            for core in &new {
                proptest::prop_assert!(!before.contains(core), "{core} twice");
                proptest::prop_assert!(host.online.contains(core));
                let unit = host.siblings[core].intersection(&host.online);
                proptest::prop_assert!(unit.clone().all(|thread| new.contains(thread)), "split");
            }
            proptest::prop_assert_eq!(new.len(), new.iter().collect::<BTreeSet<_>>().len());
            proptest::prop_assert_eq!(choice.cores.len(), request.count());
            let is_left = |core: &usize| {
                let mut unit = host.siblings[core].intersection(&host.online);
                unit.all(|thread| !new.contains(thread) && !before.contains(thread))
            };
            proptest::prop_assert!(host.online.iter().any(is_left), "the last core");
            owners.push(choice);
        }
    }
}
