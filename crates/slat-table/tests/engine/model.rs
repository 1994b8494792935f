//! What a tree should hold, kept as a plain ordered map of leaves.

use std::collections::BTreeMap;

use slat_table::address::{GpaRange, Hpa};
use slat_table::attributes::Attributes;
use slat_table::geometry::{Geometry, Level};
use slat_table::hold::Installed;

use crate::setup::{gpa, range};

/// A leaf, or a whole run of leaves: what it maps is its key in the map and its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) level: Level,
    pub(crate) hpa: u64,
    pub(crate) attributes: Attributes,
}

/// Neighbouring leaves to be installed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) range: GpaRange,
    pub(crate) to: u64,
    pub(crate) level: Level,
    pub(crate) attributes: Attributes,
    /// The format can express them as leaves of a run.
    pub(crate) in_runs: bool,
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

    /// What a leaf at `start`, or its run, maps.
    pub(crate) fn block(&self, start: u64, leaf: &Leaf) -> GpaRange {
        let alone = self.geometry.entry_bytes(leaf.level);
        let run = self.geometry.run_bytes(leaf.level);
        let bytes = run.filter(|_| leaf.attributes.contiguous);
        range(start, bytes.unwrap_or(alone))
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

    /// Installs what is wanted as far as nothing is in the way.
    pub(crate) fn install(&mut self, wanted: &Wanted) -> Installed {
        let alone = self.geometry.entry_bytes(wanted.level);
        let mut installed = Installed::default();
        let mut rest = Some(wanted.range);
        while let Some(todo) = rest {
            let at = todo.start();
            // A run, where it is wanted whole and nothing is there.
            let run = self
                .geometry
                .run_bytes(wanted.level)
                .filter(|_| wanted.in_runs)
                .and_then(|bytes| GpaRange::block_around(at, bytes))
                .filter(|run| run.start() == at && todo.covers(run))
                .filter(|run| self.touching(run).is_empty())
                .filter(|run| wanted.hpa(at.raw()) & (run.bytes() - 1) == 0);
            // One that is there is met whole.
            let met = self
                .at(at.raw())
                .filter(|(_, leaf)| leaf.level == wanted.level && leaf.attributes.contiguous)
                .and_then(|(start, leaf)| self.block(start, &leaf).intersection(&todo));
            let piece = run.or(met).unwrap_or_else(|| range(at.raw(), alone));
            self.install_one(wanted, &piece, run.is_some(), &mut installed);
            if installed.conflict.is_some() {
                break;
            }
            rest = todo.from(piece.end());
        }
        installed
    }

    fn install_one(
        &mut self,
        wanted: &Wanted,
        piece: &GpaRange,
        contiguous: bool,
        installed: &mut Installed,
    ) {
        let at = piece.start().raw();
        let leaves = piece.bytes() / self.geometry.entry_bytes(wanted.level);
        let attributes = Attributes {
            contiguous,
            ..wanted.attributes
        };
        let Some(&first) = self.touching(piece).first() else {
            let leaf = Leaf {
                level: wanted.level,
                hpa: wanted.hpa(at),
                attributes,
            };
            self.leaves.insert(at, leaf);
            installed.new += leaves;
            return;
        };
        let old = self.leaves[&first];
        let now = extended(old.attributes, attributes);
        let same = old.level >= wanted.level
            && self.translate(at) == Some((Hpa::new(wanted.hpa(at)), old.attributes))
            && old.attributes.memory == attributes.memory;
        // A run is never made to allow more: its leaves could not be told at once.
        let one_entry = now.permissions == old.attributes.permissions || !old.attributes.contiguous;
        if same && now == old.attributes {
            installed.present += leaves;
        } else if same && old.level == wanted.level && one_entry {
            self.leaves.insert(
                first,
                Leaf {
                    attributes: now,
                    ..old
                },
            );
            // All of a run becomes young with its first leaf.
            installed.extended += leaves;
        } else {
            let run = old.level == wanted.level && old.attributes.contiguous;
            let whole = old.level > wanted.level || run;
            installed.conflict = Some(if whole {
                self.block(first, &old)
            } else {
                *piece
            });
        }
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

    /// Splits every leaf that touches `range` and is larger than an entry of `to`.
    pub(crate) fn split(&mut self, range: &GpaRange, to: Level) {
        let larger =
            |leaf: &Leaf| leaf.level > to || leaf.level == to && leaf.attributes.contiguous;
        loop {
            let touching = self.touching(range);
            match touching.into_iter().find(|at| larger(&self.leaves[at])) {
                Some(start) => self.split_leaf(start),
                None => return,
            }
        }
    }

    /// A run becomes its leaves, a leaf those of the next level.
    fn split_leaf(&mut self, start: u64) {
        let leaf = self.leaves.remove(&start).expect("a leaf");
        let whole = self.block(start, &leaf);
        let level = if leaf.attributes.contiguous {
            leaf.level
        } else {
            leaf.level.down().expect("pages are not split")
        };
        let bytes = self.geometry.entry_bytes(level);
        let attributes = Attributes {
            contiguous: false,
            ..leaf.attributes
        };
        for offset in (0..whole.bytes()).step_by(bytes.try_into().expect("a size")) {
            let hpa = leaf.hpa + offset;
            let piece = Leaf {
                level,
                hpa,
                attributes,
            };
            self.leaves.insert(start + offset, piece);
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

impl Wanted {
    /// The host address wanted behind `address`.
    fn hpa(&self, address: u64) -> u64 {
        self.to + (address - self.range.start().raw())
    }
}

/// P4: what a leaf allows after another for the same memory has been installed over it.
fn extended(old: Attributes, added: Attributes) -> Attributes {
    Attributes {
        permissions: old.permissions.union(added.permissions),
        accessed: old.accessed || added.accessed,
        dirty: old.dirty || added.dirty,
        ..old
    }
}
