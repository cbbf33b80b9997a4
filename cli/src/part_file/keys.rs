//! The keys that a part file has, and what a wrong one was meant to be.

use super::values::Wrong;

/// All keys, in the order of the template.
pub(super) const KEYS: [&str; 13] = [
    "name",
    "cores",
    "max-cores",
    "node",
    "share-cores",
    "isolation",
    "mem",
    "backing",
    "prefault",
    "export",
    "ring",
    "without",
    "kernel",
];

/// Words that other tools use for the same.
const ALIASES: [(&str, &str); 11] = [
    ("cpus", "cores"),
    ("cpu", "cores"),
    ("vcpus", "cores"),
    ("cpuset", "cores"),
    ("memory", "mem"),
    ("ram", "mem"),
    ("maxcpus", "max-cores"),
    ("numa", "node"),
    ("mount", "export"),
    ("volume", "export"),
    ("hugepages", "backing"),
];

/// Most letters that a slip gets wrong.
const SLIP: usize = 2;

/// What to say of a key that there is not.
pub(super) fn unknown(key: &str) -> Wrong {
    let what = format!("there is no key \"{key}\"");
    match meant(key) {
        Some(meant) => Wrong::new(what, format!("write {meant}")),
        None => Wrong::new(what, format!("keys are {}", KEYS.join(", "))),
    }
}

fn meant(key: &str) -> Option<&'static str> {
    let key = key.to_lowercase().replace('_', "-");
    let alias = ALIASES.iter().find(|(alias, _)| *alias == key);
    if let Some((_, meant)) = alias {
        return Some(meant);
    }
    let near = KEYS.iter().map(|known| (distance(&key, known), *known));
    let (slips, known) = near.min_by_key(|(slips, _)| *slips)?;
    (slips <= SLIP && slips < known.len().div_ceil(2)).then_some(known)
}

/// Letters to insert, leave out or exchange (Levenshtein). Keys are short, and
/// what is much longer than all of them is not compared.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    if left.len() > 2 * right.len() + SLIP {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, letter) in left.chars().enumerate() {
        let mut next = vec![above + 1];
        for ((from, down), other) in row.iter().zip(row.iter().skip(1)).zip(&right) {
            let left_of = next.last().copied().unwrap_or(above);
            let exchanged = from + usize::from(letter != *other);
            next.push(exchanged.min(down + 1).min(left_of + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_what_was_meant() {
        for (key, wanted) in [
            ("coers", "cores"),
            ("share_cores", "share-cores"),
            ("exports", "export"),
            ("Name", "name"),
            ("memory", "mem"),
            ("nod", "node"),
        ] {
            assert_eq!(unknown(key).fix, format!("write {wanted}"), "{key}");
        }
    }

    #[test]
    fn a_word_from_elsewhere_is_told_all_keys() {
        for key in ["colour", "", "x", &"m".repeat(100_000)] {
            assert!(
                unknown(key).fix.starts_with("keys are name, cores"),
                "{key}"
            );
        }
    }
}
