//! Carries out operations on a table and on the model, and compares the two after each.

use slat_table::address::{GpaRange, Hpa};
use slat_table::attributes::Attributes;
use slat_table::cache::TableCache;
use slat_table::format::Format;
use slat_table::geometry::Level;
use slat_table::hold::Installed;
use slat_table::restriction::PartialBlock;
use slat_table::table::{PageTable, TableOptions};

use crate::model::{Leaf, Model};
use crate::observer::{Observer, Walked};
use crate::operations::{ANCHORS, Length, Operation, Place, anchors, blocks, kinds};
use crate::setup::{Machine, PAGE, gpa, hpa, range};

/// A table, the model of it, and the observer; see the module.
pub(crate) struct Driver<F: Format> {
    machine: Machine,
    table: PageTable<F, Machine>,
    observer: Observer<F>,
    model: Model,
    anchors: [u64; ANCHORS],
    units: [u64; 4],
    probes: Vec<u64>,
    /// Every removal is followed by a pruning, so that tables are as few as they can be.
    tidy: bool,
}

impl<F: Format> Driver<F> {
    pub(crate) fn new(features: F::Features, bits: u8, stripes: usize, tidy: bool) -> Self {
        let machine = Machine::new();
        machine.record();
        let options = TableOptions {
            address_bits: bits,
            stripes,
        };
        let table = PageTable::new(machine.clone(), features, options).expect("room for a root");
        let geometry = *table.geometry();
        let (block, large) = blocks(&geometry);
        let anchors = anchors(bits, block, large);
        let probes = anchors
            .iter()
            .flat_map(|anchor| {
                let near = (-3i64..4).map(|pages| anchor.checked_add_signed(pages << 12));
                near.chain([Some(anchor + block / 2), Some(anchor + block - 4096)])
            })
            .flatten()
            .collect();
        Self {
            observer: Observer::new(features, geometry),
            model: Model::new(geometry),
            machine,
            table,
            anchors,
            units: [0, block, large, 1 << 50],
            probes,
            tidy,
        }
    }

    fn start(&self, place: &Place) -> u64 {
        self.anchors[place.anchor]
            .checked_add_signed(place.pages << 12)
            .unwrap_or(0)
    }

    /// A range that may reach beyond the guest's address width.
    fn range(&self, place: &Place, length: &Length) -> GpaRange {
        let pages = if length.unit == 0 {
            length.pages
        } else {
            length.pages - 6.min(length.pages)
        };
        range(
            self.start(place),
            (self.units[length.unit] + (pages << 12)).max(4096),
        )
    }

    /// `range` with the format's pages taken in whole.
    fn whole(&self, range: &GpaRange) -> GpaRange {
        let geometry = &self.model.geometry;
        let page = |address: u64| geometry.block(PAGE, gpa(address)).expect("within 63 bits");
        page(range.start().raw()).hull(&page(range.end().raw() - 1))
    }

    pub(crate) fn run(&mut self, operation: &Operation, failure: Option<u64>) {
        let before: Vec<_> = self
            .probes
            .iter()
            .map(|&probe| self.observer.walk(probe))
            .collect();
        if let Some(skip) = failure {
            self.machine.fail_allocation(skip);
        }
        match operation {
            Operation::Install {
                place,
                level,
                count,
                target,
                attributes,
            } => {
                let start = self.start(place);
                self.install(
                    start,
                    Level::new(*level),
                    *count,
                    *target,
                    kinds()[*attributes],
                );
            }
            Operation::Unmap {
                place,
                length,
                split,
            } => {
                let range = self.range(place, length);
                self.unmap(&range, *split, failure.is_some());
            }
            Operation::Split { place, length, to } => {
                let range = self.range(place, length);
                // Splitting a gigabyte into pages is right but slow to check.
                let to = if range.bytes() > 2 * self.units[1] {
                    (*to).max(1)
                } else {
                    *to
                };
                self.split(&range, Level::new(to), failure.is_some());
            }
            Operation::Age { place, length } => self.age(&self.range(place, length)),
            Operation::Prune { place, length } => {
                let range = self.range(place, length);
                drop(self.table.restrict(&range).prune(&range));
            }
        }
        self.machine.allow_allocations();
        self.watch(&before);
        self.compare();
    }

    fn install(
        &mut self,
        near: u64,
        level: Level,
        count: u64,
        target: u64,
        attributes: Attributes,
    ) {
        let geometry = *self.table.geometry();
        if level > geometry.root() {
            return;
        }
        let bytes = geometry.entry_bytes(level);
        let start = near & !(bytes - 1);
        let end_of_table = (start | (geometry.table_maps(level) - 1)) + 1;
        let wanted = range(start, (bytes * count).min(end_of_table - start));
        let to = start % (1 << 40) + (target + 1) * (1 << 41);
        loop {
            let Some(installed) = self.try_install(&wanted, to, level, attributes) else {
                return;
            };
            let expected = self.expect(&wanted, to, level, attributes);
            let Some(conflict) = installed.conflict else {
                assert_eq!(installed, expected);
                self.accept(&wanted, to, level, attributes);
                return;
            };
            let empty_table =
                !self.tidy && level > PAGE && self.model.touching(&conflict).is_empty();
            assert!(
                empty_table || installed == expected,
                "{installed:?}, not {expected:?}"
            );
            let mut restriction = self.table.restrict(&conflict);
            drop(restriction.unmap(&conflict, PartialBlock::Drop));
            drop(restriction);
            // What stood before the conflict has been installed already.
            if let Some(done) = GpaRange::between(wanted.start(), conflict.start()) {
                self.accept(&done, to, level, attributes);
            }
            self.model.drop_touching(&conflict);
        }
    }

    fn try_install(
        &self,
        wanted: &GpaRange,
        to: u64,
        level: Level,
        attributes: Attributes,
    ) -> Option<Installed> {
        let mut cache = TableCache::new(&self.table);
        cache.fill().ok()?;
        let leaves = self
            .table
            .leaves(*wanted, hpa(to), level, attributes)
            .expect("a run");
        let snapshot = self.table.snapshot(wanted);
        let mut hold = self.table.hold(wanted);
        assert!(hold.is_current(&snapshot));
        let installed = hold.install(&leaves, &mut cache).expect("a full cache");
        drop(hold);
        self.table.settle(&installed, *wanted);
        Some(installed)
    }

    /// What an installation over the model's leaves must report.
    fn expect(
        &self,
        wanted: &GpaRange,
        to: u64,
        level: Level,
        attributes: Attributes,
    ) -> Installed {
        let bytes = self.model.geometry.entry_bytes(level);
        let mut expected = Installed::default();
        for start in (wanted.start().raw()..wanted.end().raw()).step_by(bytes.try_into().unwrap()) {
            let block = range(start, bytes);
            let to = to + (start - wanted.start().raw());
            let Some(&first) = self.model.touching(&block).first() else {
                expected.new += 1;
                continue;
            };
            let old = self.model.leaves[&first];
            let union = extended(old, attributes);
            let same = old.level >= level
                && self.model.translate(start) == Some((Hpa::new(to), old.attributes))
                && old.attributes.memory == attributes.memory;
            if same && union == old.attributes {
                expected.present += 1;
            } else if same && old.level == level {
                expected.extended += 1;
            } else {
                let in_the_way = if old.level > level {
                    self.model.block(first, &old)
                } else {
                    block
                };
                expected.conflict = Some(in_the_way);
                return expected;
            }
        }
        expected
    }

    /// Takes into the model what an installation without conflict does.
    fn accept(&mut self, wanted: &GpaRange, to: u64, level: Level, attributes: Attributes) {
        let bytes = self.model.geometry.entry_bytes(level);
        for start in (wanted.start().raw()..wanted.end().raw()).step_by(bytes.try_into().unwrap()) {
            let to = to + (start - wanted.start().raw());
            match self.model.at(start) {
                Some((at, old)) => {
                    let attributes = extended(old, attributes);
                    self.model.insert(at, Leaf { attributes, ..old });
                }
                None => self.model.insert(
                    start,
                    Leaf {
                        level,
                        hpa: to,
                        attributes,
                    },
                ),
            }
        }
    }

    fn unmap(&mut self, range: &GpaRange, split: bool, failing: bool) {
        let whole = self.whole(range);
        let old = self.model.clone();
        let mut cache = TableCache::new(&self.table);
        let policy = if split {
            PartialBlock::Split(&mut cache)
        } else {
            PartialBlock::Drop
        };
        let mut restriction = self.table.restrict(range);
        drop(restriction.unmap(range, policy));
        if self.tidy {
            drop(restriction.prune(range));
        }
        drop(restriction);
        drop(cache);
        if split {
            self.model.unmap_exactly(&whole);
        } else {
            self.model.drop_touching(&whole);
        }
        if split && failing {
            self.take_over_losses(&old, &whole);
        }
    }

    /// Without memory to split a block, the block goes whole: no more than that may be missing.
    fn take_over_losses(&mut self, old: &Model, range: &GpaRange) {
        let actual = collect(&self.table);
        self.model.leaves.retain(|start, _| {
            let (at, leaf) = old.at(*start).expect("splitting adds nothing");
            let lost = self.table.translate(gpa(*start)).is_none();
            assert!(
                !lost || old.block(at, &leaf).overlaps(range),
                "lost {start:#x} for nothing"
            );
            !lost
        });
        for (start, level) in actual {
            assert!(!range.overlaps(&self.model.block(start, &self.leaf(start, level))));
        }
    }

    fn split(&mut self, range: &GpaRange, to: Level, failing: bool) {
        let mut cache = TableCache::new(&self.table);
        let mut restriction = self.table.restrict(range);
        drop(restriction.split(range, to, &mut cache));
        drop(restriction);
        drop(cache);
        let old = self.model.clone();
        self.model.split(range, to);
        if failing {
            // A block may stay as it was, but no translation may be lost or changed.
            let leaves = collect(&self.table)
                .into_iter()
                .map(|(start, level)| (start, self.leaf(start, level)))
                .collect();
            for &start in self.model.leaves.keys() {
                let now = self
                    .table
                    .translate(gpa(start))
                    .map(|now| (now.hpa, now.attributes));
                assert_eq!(now, old.translate(start));
            }
            self.model.leaves = leaves;
        }
    }

    fn age(&mut self, range: &GpaRange) {
        let mut expected = false;
        for start in self.model.touching(range) {
            let leaf = self.model.leaves.get_mut(&start).expect("a leaf");
            expected |= leaf.attributes.accessed;
            leaf.attributes.accessed = false;
        }
        assert_eq!(self.table.test_young(range), expected);
        assert_eq!(self.table.age(range), expected);
        assert!(!self.table.test_young(range));
    }

    /// Shows the observer what happened: at every moment a walk finds the old translation, the
    /// new one, or a fault.
    fn watch(&mut self, before: &[Option<Walked>]) {
        let after: Vec<_> = self
            .probes
            .iter()
            .map(|&probe| self.table.translate(gpa(probe)))
            .collect();
        for event in self.machine.take_events() {
            let Some(changed) = self.observer.see(&event) else {
                continue;
            };
            for ((&probe, old), new) in self.probes.iter().zip(before).zip(&after) {
                if !changed.contains(gpa(probe)) {
                    continue;
                }
                let Some(now) = self.observer.walk(probe) else {
                    continue;
                };
                let is_old =
                    old.is_some_and(|old| (old.hpa, old.attributes) == (now.hpa, now.attributes));
                let is_new =
                    new.is_some_and(|new| (new.hpa, new.attributes) == (now.hpa, now.attributes));
                assert!(
                    is_old || is_new,
                    "{probe:#x}: {old:?} to {new:?} by way of {now:?}"
                );
            }
        }
        self.observer.expect_settled();
    }

    /// The leaf that the table has at `start`.
    fn leaf(&self, start: u64, level: Level) -> Leaf {
        let found = self
            .table
            .translate(gpa(start))
            .expect("a leaf that was visited");
        assert_eq!(found.level, level);
        Leaf {
            level,
            hpa: found.hpa.raw(),
            attributes: found.attributes,
        }
    }

    /// The table holds exactly the model's leaves, and in tidy runs no table too many.
    fn compare(&self) {
        let actual = collect(&self.table);
        let expected: Vec<_> = self
            .model
            .leaves
            .iter()
            .map(|(&start, leaf)| (start, leaf.level))
            .collect();
        assert_eq!(actual, expected);
        for (&start, leaf) in &self.model.leaves {
            assert_eq!(self.leaf(start, leaf.level), *leaf);
            let last = start + self.model.geometry.entry_bytes(leaf.level) - 1;
            let found = self
                .table
                .translate(gpa(last))
                .expect("the leaf's last byte");
            assert_eq!(found.hpa.raw(), leaf.hpa + (last - start));
        }
        for &probe in &self.probes {
            let found = self
                .table
                .translate(gpa(probe))
                .map(|found| (found.hpa, found.attributes));
            assert_eq!(found, self.model.translate(probe), "{probe:#x}");
            let walked = self
                .observer
                .walk(probe)
                .map(|found| (found.hpa, found.attributes));
            assert_eq!(walked, found, "{probe:#x}");
        }
        if self.tidy {
            assert_eq!(self.table.table_bytes(), self.model.minimum_table_bytes());
        }
        assert_eq!(self.table.table_bytes(), self.machine.live_bytes());
        assert_eq!(self.table.tables(), self.machine.live_tables());
    }

    /// Takes everything down: first the leaves, then the table.
    pub(crate) fn finish(mut self) {
        let all = range(0, 1 << self.table.geometry().address_bits());
        let before: Vec<_> = self
            .probes
            .iter()
            .map(|&probe| self.observer.walk(probe))
            .collect();
        drop(self.table.restrict(&all).unmap(&all, PartialBlock::Drop));
        self.model.leaves.clear();
        self.watch(&before);
        self.compare();
        assert_eq!(
            self.machine.live_tables(),
            1,
            "a range that is covered keeps no tables"
        );
        drop(self.table);
        assert_eq!(
            (self.machine.live_tables(), self.machine.live_bytes()),
            (0, 0)
        );
    }
}

/// P4: what a leaf allows after another for the same memory has been installed over it.
fn extended(old: Leaf, added: Attributes) -> Attributes {
    Attributes {
        permissions: old.attributes.permissions.union(added.permissions),
        accessed: old.attributes.accessed || added.accessed,
        ..old.attributes
    }
}

/// All leaves of a table: start and level.
fn collect<F: Format>(table: &PageTable<F, Machine>) -> Vec<(u64, Level)> {
    let all = range(0, 1 << table.geometry().address_bits());
    let mut leaves = Vec::new();
    table.for_each_leaf(&all, |block, level| {
        leaves.push((block.start().raw(), level));
    });
    leaves
}
