//! Interrupts away from the cores of enclaves, and back.
//!
//! [`plan`] decides, from what the kernel says and what was written before, and
//! may be asked again at any time: after a crash between two of its writes it
//! comes to the same end. Somebody else's change (`irqbalance`, an
//! administrator) becomes what is given back. [`super::settle`] calls it and
//! keeps [`Moved`] in the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{MAX_CORE, parse_cpu_list};
use crate::topology::cpu_list;

/// Where interrupts that do not exist yet will go.
pub(super) const DEFAULT: &str = "default";
/// Folder of the interrupts below the root.
const FOLDER: &str = "proc/irq";

/// Cores that an interrupt may go to, by its number or [`DEFAULT`].
pub(super) type Affinities = BTreeMap<String, BTreeSet<usize>>;

/// An interrupt that was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moved {
    /// The cores it is given back.
    pub(super) original: BTreeSet<usize>,
    /// The cores it was given instead; two while that is being changed.
    pub(super) written: Vec<BTreeSet<usize>>,
}

/// What to write so that no interrupt goes to `isolated`, and what was moved
/// then. `now` is what the kernel says, `moved` what was moved before.
pub(super) fn plan(
    now: &Affinities,
    moved: &BTreeMap<String, Moved>,
    isolated: &BTreeSet<usize>,
    online: &BTreeSet<usize>,
) -> (Affinities, BTreeMap<String, Moved>) {
    let (mut writes, mut after) = (Affinities::new(), BTreeMap::new());
    for (irq, current) in now {
        let original = match moved.get(irq) {
            Some(before) if before.written.contains(current) => &before.original,
            _ => current,
        };
        let mut wanted: BTreeSet<usize> = original.difference(isolated).copied().collect();
        if wanted.is_disjoint(online) {
            wanted = online.difference(isolated).copied().collect();
        }
        if wanted.is_empty() {
            wanted.clone_from(original);
        }
        if wanted != *current {
            writes.insert(irq.clone(), wanted.clone());
        }
        if wanted != *original {
            let original = original.clone();
            let written = vec![wanted];
            after.insert(irq.clone(), Moved { original, written });
        }
    }
    (writes, after)
}

/// What to write down before the writes of a plan: an interrupt may be found as
/// it was before or as it is to be.
pub(super) fn merged(
    before: &BTreeMap<String, Moved>,
    after: &BTreeMap<String, Moved>,
) -> BTreeMap<String, Moved> {
    let mut all = before.clone();
    for (irq, new) in after {
        let entry = all.entry(irq.clone()).or_insert_with(|| new.clone());
        entry.original.clone_from(&new.original);
        entry.written.extend(new.written.iter().cloned());
        entry.written.dedup();
    }
    all
}

/// What the kernel says of every interrupt and of those to come.
pub(super) fn read(root: &Path) -> Affinities {
    let mut all = Affinities::new();
    let folder = root.join(FOLDER);
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let cores = text(&entry.path().join("smp_affinity_list"));
        if let Some(cores) = cores.and_then(|text| parse_cpu_list(&text)) {
            all.insert(name, cores);
        }
    }
    if let Some(cores) = text(&folder.join("default_smp_affinity")).and_then(|t| from_mask(&t)) {
        all.insert(DEFAULT.to_owned(), cores);
    }
    all
}

/// Sends an interrupt to `cores` from now on.
///
/// # Errors
/// That of the kernel: some interrupts stay where their device put them (EIO).
pub(super) fn write(root: &Path, irq: &str, cores: &BTreeSet<usize>) -> io::Result<()> {
    let folder = root.join(FOLDER);
    if irq == DEFAULT {
        return fs::write(folder.join("default_smp_affinity"), to_mask(cores));
    }
    fs::write(folder.join(irq).join("smp_affinity_list"), cpu_list(cores))
}

/// Interrupts that the kernel delivers to one of `cores`, with their handlers:
/// those that stay, and those that leave with their next arrival, as the kernel
/// moves many. An interrupt without a handler does not arrive.
pub(super) fn delivered_to(root: &Path, cores: &BTreeSet<usize>) -> [Vec<String>; 2] {
    let [mut stay, mut leave] = [Vec::new(), Vec::new()];
    for (irq, asked) in read(root) {
        let folder = root.join(FOLDER).join(&irq);
        let effective = text(&folder.join("effective_affinity_list"));
        let effective = effective.and_then(|text| parse_cpu_list(&text));
        let effective = effective
            .filter(|cores| !cores.is_empty())
            .unwrap_or_else(|| asked.clone());
        let handlers = handlers(&folder);
        if !handlers.is_empty() && !effective.is_disjoint(cores) {
            let text = format!("{irq} ({})", handlers.join(", "));
            match asked.is_disjoint(cores) {
                true => leave.push(text),
                false => stay.push(text),
            }
        }
    }
    [stay, leave]
}

/// Each handler of an interrupt is a folder of its own.
fn handlers(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
    let mut names: Vec<String> = folders
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Reads the kernel's hexadecimal masks: words of 32 bits, the highest first.
fn from_mask(text: &str) -> Option<BTreeSet<usize>> {
    let mut cores = BTreeSet::new();
    for (word, digits) in text.trim().rsplit(',').enumerate() {
        let bits = u32::from_str_radix(digits, 16).ok()?;
        let set = (0..32).filter(|bit| bits & (1 << bit) != 0);
        cores.extend(set.map(|bit| word * 32 + bit));
    }
    cores.iter().all(|&core| core <= MAX_CORE).then_some(cores)
}

fn to_mask(cores: &BTreeSet<usize>) -> String {
    let words = cores.last().map_or(0, |last| last / 32) + 1;
    let mut mask = vec![0_u32; words];
    for &core in cores {
        if let Some(word) = mask.get_mut(core / 32) {
            *word |= 1 << (core % 32);
        }
    }
    let words: Vec<String> = mask
        .iter()
        .rev()
        .map(|word| format!("{word:08x}"))
        .collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_set, vec};

    fn set(cores: &[usize]) -> BTreeSet<usize> {
        cores.iter().copied().collect()
    }

    fn after(mut now: Affinities, writes: Affinities) -> Affinities {
        now.extend(writes);
        now
    }

    #[test]
    fn interrupts_leave_and_come_back() {
        let online = set(&[0, 1, 2, 3]);
        let before: Affinities = [("9", &[0, 1, 2, 3][..]), ("10", &[3]), ("11", &[0])]
            .map(|(irq, cores)| (irq.to_owned(), set(cores)))
            .into();
        let (writes, moved) = plan(&before, &BTreeMap::new(), &set(&[3]), &online);
        assert_eq!(writes.get("9"), Some(&set(&[0, 1, 2])));
        assert_eq!(
            writes.get("10"),
            Some(&set(&[0, 1, 2])),
            "it has to go somewhere"
        );
        assert_eq!(writes.get("11"), None);
        let now = after(before.clone(), writes);
        let (again, same) = plan(&now, &moved, &set(&[3]), &online);
        assert_eq!((again, &same), (Affinities::new(), &moved));
        let (writes, moved) = plan(&now, &moved, &set(&[2, 3]), &online);
        let now = after(now, writes);
        assert_eq!(now["9"], set(&[0, 1]));
        let (writes, moved) = plan(&now, &moved, &set(&[2]), &online);
        let now = after(now, writes);
        assert_eq!((&now["9"], &now["10"]), (&set(&[0, 1, 3]), &set(&[3])));
        let (writes, moved) = plan(&now, &moved, &set(&[]), &online);
        assert_eq!((after(now, writes), moved), (before, BTreeMap::new()));
    }

    #[test]
    fn what_somebody_else_has_changed_is_given_back_as_they_left_it() {
        let online = set(&[0, 1, 2]);
        let now: Affinities = [("9".to_owned(), set(&[0, 1, 2]))].into();
        let (_, moved) = plan(&now, &BTreeMap::new(), &set(&[2]), &online);
        let theirs: Affinities = [("9".to_owned(), set(&[1, 2]))].into();
        let (writes, moved) = plan(&theirs, &moved, &set(&[2]), &online);
        assert_eq!(writes["9"], set(&[1]));
        let (writes, moved) = plan(&writes, &moved, &set(&[]), &online);
        assert_eq!((&writes["9"], moved.len()), (&set(&[1, 2]), 0));
    }

    #[test]
    fn masks_are_read_and_written() {
        for (mask, cores) in [("3", &[0, 1][..]), ("80000000,00000001", &[0, 63])] {
            assert_eq!(from_mask(mask), Some(set(cores)));
            assert_eq!(from_mask(&to_mask(&set(cores))), Some(set(cores)));
        }
        assert_eq!(from_mask("x"), None);
        assert_eq!(to_mask(&set(&[0, 32])), "00000001,00000001");
    }

    proptest::proptest! {
        /// Whatever enclaves come and go, and wherever a run is cut off between
        /// its ledger and its writes: no interrupt stays on an isolated core, none
        /// is without a core, and at the end all is as it was.
        #[test]
        fn all_comes_back_whatever_happens_between(
            before in vec(btree_set(0_usize..6, 1..6), 1..5),
            steps in vec((btree_set(0_usize..6, 0..6), 0_usize..6), 0..12),
        ) {
            let online: BTreeSet<usize> = (0..6).collect();
            let names = (0..).map(|irq: usize| irq.to_string());
            let before: Affinities = names.zip(before).collect();
            let (mut now, mut moved) = (before.clone(), BTreeMap::new());
            for (isolated, cut) in steps {
                let (writes, next) = plan(&now, &moved, &isolated, &online);
                moved = merged(&moved, &next);
                now.extend(writes.into_iter().take(cut));
                let (writes, next) = plan(&now, &moved, &isolated, &online);
                now.extend(writes);
                moved = next;
                for cores in now.values() {
                    proptest::prop_assert!(!cores.is_empty());
                    let all = isolated.len() == online.len();
                    proptest::prop_assert!(all || cores.is_disjoint(&isolated));
                }
            }
            let (writes, moved) = plan(&now, &moved, &BTreeSet::new(), &online);
            now.extend(writes);
            proptest::prop_assert_eq!((now, moved.len()), (before, 0));
        }
    }
}
