//! A map that knows which of its entries changed, for the journal.
//!
//! Used for everything a broker has to remember beyond its own death
//! ([`super::record`]). Reading is [`BTreeMap`]'s; whatever may change an entry
//! is here and notes its key. An entry that was lent for change and is what it
//! was before costs a comparison of what would be written, no writing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

/// Entries by key.
#[derive(Debug)]
pub(super) struct Recorded<K, V> {
    entries: BTreeMap<K, V>,
    changed: BTreeSet<K>,
    /// What the journal has of an entry.
    written: BTreeMap<K, Vec<u8>>,
}

impl<K, V> Default for Recorded<K, V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            changed: BTreeSet::new(),
            written: BTreeMap::new(),
        }
    }
}

impl<K, V> Deref for Recorded<K, V> {
    type Target = BTreeMap<K, V>;
    fn deref(&self) -> &BTreeMap<K, V> {
        &self.entries
    }
}

impl<'a, K, V> IntoIterator for &'a Recorded<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = std::collections::btree_map::Iter<'a, K, V>;
    fn into_iter(self) -> Self::IntoIter {
        self.entries.iter()
    }
}

impl<K: Ord + Clone, V> Recorded<K, V> {
    /// The entry of `key`, to change it.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        if !self.changed.contains(key) {
            self.changed.insert(key.clone());
        }
        Some(entry)
    }

    /// The entries, to change what the journal does not have.
    pub(super) fn iter_unrecorded(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries.iter_mut()
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.changed.insert(key.clone());
        self.entries.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let removed = self.entries.remove(key)?;
        self.changed.insert(key.clone());
        Some(removed)
    }

    /// Takes out the entries that `wanted` says; it may change the others.
    pub(super) fn extract(&mut self, mut wanted: impl FnMut(&K, &mut V) -> bool) -> Vec<(K, V)> {
        let taken: Vec<(K, V)> = self
            .entries
            .extract_if(.., |key, value| wanted(key, value))
            .collect();
        let keys = taken.iter().map(|(key, _)| key.clone());
        self.changed.extend(keys);
        taken
    }

    /// Whether any entry may have changed since [`Recorded::changes`].
    pub(super) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Hands each entry that changed since the last call to `write`, as bytes;
    /// `None` if it is gone.
    pub(super) fn changes(
        &mut self,
        encode: impl Fn(&V) -> Vec<u8>,
        mut write: impl FnMut(&K, Option<&[u8]>),
    ) {
        for key in core::mem::take(&mut self.changed) {
            let now = self.entries.get(&key).map(&encode);
            if now.as_ref() == self.written.get(&key) {
                continue;
            }
            write(&key, now.as_deref());
            match now {
                Some(now) => self.written.insert(key, now),
                None => self.written.remove(&key),
            };
        }
    }

    /// As if the journal had nothing yet: every entry is a change.
    pub(super) fn forget_written(&mut self) {
        self.written.clear();
        self.changed.extend(self.entries.keys().cloned());
    }

    /// Sets an entry as the journal has it, which is `written`.
    pub(super) fn restore(&mut self, key: K, value: V, written: &[u8]) {
        self.written.insert(key.clone(), written.to_vec());
        self.entries.insert(key, value);
    }

    /// Removes an entry as the journal says.
    pub(super) fn restore_removed(&mut self, key: &K) {
        self.written.remove(key);
        self.entries.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(table: &mut Recorded<u32, u8>) -> Vec<(u32, Option<u8>)> {
        let mut all = Vec::new();
        let encode = |value: &u8| vec![*value];
        table.changes(encode, |key, value| {
            all.push((*key, value.map(|bytes| bytes[0])));
        });
        all
    }

    #[test]
    fn only_what_is_different_is_a_change() {
        let mut table = Recorded::default();
        for key in 0..4 {
            table.insert(key, 10 + u8::try_from(key).expect("small"));
        }
        assert_eq!(changes(&mut table).len(), 4);
        assert!(!table.is_changed());
        *table.get_mut(&1).expect("there") = 7;
        let _ = table.get_mut(&2);
        table.remove(&3);
        table.insert(9, 9);
        table.remove(&9);
        assert_eq!(changes(&mut table), [(1, Some(7)), (3, None)]);
        assert!(changes(&mut table).is_empty());
    }

    #[test]
    fn what_is_taken_out_is_gone_and_said_so() {
        let mut table = Recorded::default();
        for key in 0..4 {
            table.insert(key, u8::try_from(key).expect("small"));
        }
        let _ = changes(&mut table);
        let taken = table.extract(|key, _| key % 2 == 0);
        assert_eq!(taken, [(0, 0), (2, 2)]);
        assert_eq!(table.len(), 2);
        assert_eq!(changes(&mut table), [(0, None), (2, None)]);
    }
}
