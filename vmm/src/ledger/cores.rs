//! Which cores an enclave gets: a pure decision, tested without a host.
//!
//! Rules: only online cores this process may use; a core has one owner unless
//! all its enclaves said `--share-cores`; one online core always stays with
//! the host, which shared cores may bend on a small machine, with a warning.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::CoreRequest;
use crate::failure::{Class, Failure};

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
    /// Cores that exist.
    pub present: &'a BTreeSet<usize>,
    /// Cores that are online.
    pub online: &'a BTreeSet<usize>,
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
        let descending = self.online.iter().rev().copied();
        descending.filter(|core| self.allowed.contains(core))
    }

    /// Whether the host keeps an online core no enclave has.
    fn leaves_one(&self, taken: &[usize]) -> bool {
        self.usable()
            .any(|core| self.holders(core).is_empty() && !taken.contains(&core))
    }

    fn check_named(&self, core: usize) -> Result<(), Failure> {
        if !self.present.contains(&core) {
            let why = format!(
                "core {core} does not exist; this host has {:?}",
                self.present
            );
            return Err(self.fail(Class::Resources, why));
        }
        if !self.online.contains(&core) {
            let hint = format!("echo 1 > /sys/devices/system/cpu/cpu{core}/online");
            let failure = self.fail(Class::Resources, format!("core {core} is offline"));
            return Err(failure.with_hint(hint));
        }
        if !self.allowed.contains(&core) {
            let why = format!(
                "core {core} is outside this process's cpuset {:?}",
                self.allowed
            );
            return Err(self.fail(Class::Resources, why));
        }
        if self.is_open(core) {
            return Ok(());
        }
        Err(self.taken(core))
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
        let mut order: Vec<usize> = self.usable().filter(|&c| self.is_open(c)).collect();
        // Stable: among equals the higher number stays first.
        order.sort_by_key(|&core| self.holders(core).len());
        if self.shares && order.len() > count {
            // The host's last free core goes to the end of the queue.
            let free = |core: &usize| self.holders(*core).is_empty();
            if order.iter().filter(|core| free(core)).count() == count {
                order.rotate_left(count);
            }
        }
        if order.len() < count {
            let why = format!(
                "{count} wanted, {} of {} usable cores open to it",
                order.len(),
                self.usable().count()
            );
            return Err(self
                .fail(Class::Resources, why)
                .with_hint("enclavectl list"));
        }
        order.truncate(count);
        if !self.shares && !self.leaves_one(&order) {
            return Err(self.last_core());
        }
        Ok(order)
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
        let online = cores.iter().copied().collect();
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
            present: &(0..8).collect(),
            online: &online,
            allowed: &(0..6).collect(),
            held: &map,
        })
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
