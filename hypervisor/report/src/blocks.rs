//! Leaves, counted by the size of memory that each maps.

use alloc::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::size::Size;

/// How many leaves there are of each size. Written as a map from size to number, such as
/// `{"4K": 5, "2M": 3}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Blocks(BTreeMap<Size, u64>);

impl Blocks {
    /// Adds `count` leaves that map `bytes` bytes each.
    pub fn add(&mut self, bytes: u64, count: u64) {
        if count != 0 {
            *self.0.entry(Size(bytes)).or_default() += count;
        }
    }

    /// Adds all of `other`.
    pub fn add_all(&mut self, other: &Self) {
        for (bytes, count) in other.largest_first() {
            self.add(bytes, count);
        }
    }

    /// Leaves that map `bytes` bytes each.
    pub fn of(&self, bytes: u64) -> u64 {
        self.0.get(&Size(bytes)).copied().unwrap_or(0)
    }

    /// All leaves.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// What all of them map, in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(size, count)| size.0 * count).sum()
    }

    /// Each size in bytes, and the number of leaves of it, which is not 0.
    pub fn largest_first(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().rev().map(|(size, count)| (size.0, *count))
    }
}

impl FromIterator<(u64, u64)> for Blocks {
    /// From sizes in bytes and numbers of leaves.
    fn from_iter<T: IntoIterator<Item = (u64, u64)>>(sizes: T) -> Self {
        let mut blocks = Self::default();
        for (bytes, count) in sizes {
            blocks.add(bytes, count);
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn leaves_are_counted_by_size() {
        let mut blocks: Blocks = [(4096, 5), (1 << 25, 0), (2 << 20, 3)]
            .into_iter()
            .collect();
        blocks.add(4096, 1);
        let sizes: Vec<_> = blocks.largest_first().collect();
        assert_eq!(sizes, [(2 << 20, 3), (4096, 6)]);
        assert_eq!(
            (blocks.count(), blocks.of(4096), blocks.of(1 << 30)),
            (9, 6, 0)
        );
        assert_eq!(blocks.bytes(), (6 << 20) + (6 << 12));
        let twice = {
            let mut twice = blocks.clone();
            twice.add_all(&blocks);
            twice
        };
        assert_eq!(twice.bytes(), 2 * blocks.bytes());
    }

    #[test]
    fn they_are_written_by_the_name_of_their_size() {
        let blocks: Blocks = [(4096, 5), (1 << 25, 1)].into_iter().collect();
        let text = serde_json::to_string(&blocks).unwrap();
        assert_eq!(text, r#"{"4K":5,"32M":1}"#);
        assert_eq!(serde_json::from_str::<Blocks>(&text).unwrap(), blocks);
    }
}
