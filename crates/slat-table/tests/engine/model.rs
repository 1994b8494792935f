//! What a tree should hold, kept as a plain ordered map of leaves.

use std::collections::BTreeMap;

use slat_table::address::{GpaRange, Hpa};
use slat_table::attributes::Attributes;
use slat_table::geometry::{Geometry, Level};

use crate::setup::{gpa, range};

/// A leaf: what it maps is its key in the map and its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) level: Level,
    pub(crate) hpa: u64,
    pub(crate) attributes: Attributes,
}

/// Leaves by their first guest address.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) geometry: Geometry,
    pub(crate) leaves: BTreeMap<u64, Leaf>,
}

impl Model {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            leaves: BTreeMap::new(),
        }
    }

    pub(crate) fn block(&self, start: u64, leaf: &Leaf) -> GpaRange {
        range(start, self.geometry.entry_bytes(leaf.level))
    }

    /// The leaf that maps `address`, and where it starts.
    pub(crate) fn at(&self, address: u64) -> Option<(u64, Leaf)> {
        let (&start, leaf) = self.leaves.range(..=address).next_back()?;
        self.block(start, leaf)
            .contains(gpa(address))
            .then_some((start, *leaf))
    }

    /// Host address and attributes of one address.
    pub(crate) fn translate(&self, address: u64) -> Option<(Hpa, Attributes)> {
        let (start, leaf) = self.at(address)?;
        Some((Hpa::new(leaf.hpa + (address - start)), leaf.attributes))
    }

    /// Starts of the leaves that map part of `range`.
    pub(crate) fn touching(&self, range: &GpaRange) -> Vec<u64> {
        let first = self
            .at(range.start().raw())
            .map_or(range.start().raw(), |(start, _)| start);
        self.leaves
            .range(first..range.end().raw())
            .map(|(&start, _)| start)
            .collect()
    }

    pub(crate) fn insert(&mut self, start: u64, leaf: Leaf) {
        self.leaves.insert(start, leaf);
    }

    /// Removes every leaf that maps part of `range`.
    pub(crate) fn drop_touching(&mut self, range: &GpaRange) {
        for start in self.touching(range) {
            self.leaves.remove(&start);
        }
    }

    /// Splits what `range` covers in part, until it covers whole leaves, and removes those.
    pub(crate) fn unmap_exactly(&mut self, range: &GpaRange) {
        loop {
            let touching = self.touching(range);
            let in_part = |start: &u64| !range.covers(&self.block(*start, &self.leaves[start]));
            match touching.iter().copied().find(in_part) {
                Some(start) => self.split_leaf(start),
                None => break,
            }
        }
        self.drop_touching(range);
    }

    /// Splits every leaf that touches `range` and is larger than `to`.
    pub(crate) fn split(&mut self, range: &GpaRange, to: Level) {
        loop {
            let larger = self
                .touching(range)
                .into_iter()
                .find(|at| self.leaves[at].level > to);
            match larger {
                Some(start) => self.split_leaf(start),
                None => return,
            }
        }
    }

    fn split_leaf(&mut self, start: u64) {
        let leaf = self.leaves.remove(&start).expect("a leaf");
        let level = leaf.level.down().expect("pages are not split");
        let bytes = self.geometry.entry_bytes(level);
        for offset in (0..self.geometry.entry_bytes(leaf.level)).step_by(bytes.try_into().unwrap())
        {
            self.insert(
                start + offset,
                Leaf {
                    level,
                    hpa: leaf.hpa + offset,
                    ..leaf
                },
            );
        }
    }

    /// The bytes of tables that these leaves need.
    pub(crate) fn minimum_table_bytes(&self) -> u64 {
        let ranges: Vec<(GpaRange, Level)> = self
            .leaves
            .iter()
            .map(|(&start, leaf)| (self.block(start, leaf), leaf.level))
            .collect();
        self.geometry.minimum_table_bytes(&ranges)
    }
}
