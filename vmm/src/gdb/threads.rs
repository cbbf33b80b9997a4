//! Cores as gdb's threads: their ids, and who goes on how.
//!
//! Pure. Core `n` is thread `n + 1`: 0 and -1 are "any" and "all" (GDB manual,
//! appendix E.1). Used by the session.

use super::Go;

/// Whom a thread id means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Whichever, or all: what the place of the id makes of it.
    Any,
    /// This core.
    Core(usize),
}

/// The id of a core.
#[must_use]
pub fn id(core: usize) -> String {
    format!("{:x}", core.saturating_add(1))
}

/// Whom an id of one of `cores` cores means; `None` if there is no such core.
#[must_use]
pub fn whom(id: &str, cores: usize) -> Option<Whom> {
    if id == "-1" {
        return Some(Whom::Any);
    }
    match usize::from_str_radix(id, 16).ok()?.checked_sub(1) {
        None => Some(Whom::Any),
        Some(core) => (core < cores).then_some(Whom::Core(core)),
    }
}

/// What the actions of a `vCont` make of each core: for each the first action
/// that means it. `None` when gdb would have it mean nothing.
#[must_use]
pub fn each(actions: &str, cores: usize) -> Option<Vec<Go>> {
    let mut each: Vec<Option<Go>> = vec![None; cores];
    for action in actions.split(';') {
        let (what, of) = match action.split_once(':') {
            Some((what, id)) => (what, whom(id, cores)?),
            None => (action, Whom::Any),
        };
        // A signal that comes along is the host's affair: programs get theirs by
        // `enclavectl kill`.
        let go = match what.chars().next()? {
            'c' | 'C' => Go::On,
            's' | 'S' => Go::Step,
            _ => return None,
        };
        for (core, place) in each.iter_mut().enumerate() {
            if place.is_none() && [Whom::Any, Whom::Core(core)].contains(&of) {
                *place = Some(go);
            }
        }
    }
    Some(each.into_iter().map(Option::unwrap_or_default).collect())
}

/// The ids of all cores, as `qfThreadInfo` has them.
#[must_use]
pub fn list(cores: usize) -> String {
    let ids: Vec<String> = (0..cores).map(id).collect();
    format!("m{}", ids.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_more_than_cores() {
        assert_eq!(list(3), "m1,2,3");
        assert_eq!(id(31), "20");
        assert_eq!(whom("20", 32), Some(Whom::Core(31)));
        for any in ["0", "-1"] {
            assert_eq!(whom(any, 1), Some(Whom::Any));
        }
        for none in ["", "2", "p1.1", "-2", "x", "ffffffffffffffffff"] {
            assert_eq!(whom(none, 1), None, "{none}");
        }
    }

    #[test]
    fn the_first_action_that_means_a_core_counts() {
        use Go::{On, Stay, Step};
        assert_eq!(each("c", 2), Some(vec![On, On]));
        assert_eq!(each("s:2;c", 3), Some(vec![On, Step, On]));
        assert_eq!(each("s:1", 2), Some(vec![Step, Stay]));
        assert_eq!(each("S05:1;C0a:-1", 2), Some(vec![Step, On]));
        assert_eq!(each("c:1;s", 2), Some(vec![On, Step]));
    }

    #[test]
    fn nonsense_is_nobodys() {
        for text in ["", "x", "c:9", "c;", "c:;s", "t:1", ";;"] {
            assert_eq!(each(text, 2), None, "{text}");
        }
    }
}
