//! Carries out operations on a table and on the model, and compares the two after each.

use slat_table::address::{GpaRange, PAGE_SIZE};
use slat_table::attributes::Attributes;
use slat_table::cache::TableCache;
use slat_table::format::{Entry, Format};
use slat_table::geometry::Level;
use slat_table::hold::Installed;
use slat_table::restriction::PartialBlock;
use slat_table::table::{LeavesError, PageTable, TableOptions};

use crate::model::{Leaf, Model, Wanted};
use crate::observer::{Observer, Walked, unmarked};
use crate::operations::{
    ANCHORS, Count, Length, Operation, Place, Target, anchors, blocks, host_bits, kinds,
};
use crate::setup::{Machine, PAGE, gpa, hpa, range};

/// A table, the model of it, and the observer; see the module.
pub(crate) struct Driver<F: Format> {
    machine: Machine,
    features: F::Features,
    table: PageTable<F, Machine>,
    observer: Observer<F>,
    model: Model,
    kinds: Vec<Attributes>,
    anchors: [u64; ANCHORS],
    units: [u64; 4],
    probes: Vec<u64>,
    /// Half of the host's addresses.
    host_half: u64,
    /// Every removal is followed by a pruning, so that tables are as few as they can be.
    tidy: bool,
}

/// Leaves that are looked at one by one after every operation; of more, so many.
const LOOKED_AT: usize = 500;

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
        let page = geometry.entry_bytes(PAGE);
        let anchors = anchors(&geometry);
        let near = |anchor: u64| {
            let pages = (-3i64..4).map(move |pages| pages * page.cast_signed());
            let inside = [block / 2, block - page, page / 2].map(u64::cast_signed);
            pages
                .chain(inside)
                .filter_map(move |offset| anchor.checked_add_signed(offset))
        };
        Self {
            observer: Observer::new(features, geometry),
            model: Model::new(geometry),
            kinds: kinds::<F>(&features),
            probes: anchors.into_iter().flat_map(near).collect(),
            host_half: 1 << (host_bits::<F>(&features) - 1),
            machine,
            features,
            table,
            anchors,
            units: [0, block, large, 1 << bits],
            tidy,
        }
    }

    fn start(&self, place: &Place) -> u64 {
        let page = self.model.geometry.entry_bytes(PAGE);
        let inside = if place.inside { PAGE_SIZE % page } else { 0 };
        self.anchors[place.anchor]
            .checked_add_signed(place.pages * page.cast_signed())
            .unwrap_or(0)
            + inside
    }

    /// A range that may reach beyond the guest's address width.
    fn range(&self, place: &Place, length: &Length) -> GpaRange {
        let pages = if length.unit == 0 {
            length.pages
        } else {
            length.pages - 6.min(length.pages)
        };
        let page = self.model.geometry.entry_bytes(PAGE);
        let bytes = (self.units[length.unit] + pages * page).max(PAGE_SIZE);
        range(self.start(place), bytes)
    }

    /// `range` with the format's pages taken in whole.
    fn whole(&self, range: &GpaRange) -> GpaRange {
        let page = self.model.geometry.entry_bytes(PAGE);
        let page = |address: u64| GpaRange::block_around(gpa(address), page).expect("an end");
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
                let attributes = self.kinds[attributes % self.kinds.len()];
                let level = Level::new(*level);
                self.install(self.start(place), level, count, *target, attributes);
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
                // Splitting what is much larger than a block into pages is right but slow to check.
                let to = match range.bytes() {
                    bytes if bytes > 2 * self.units[2] => (*to).max(2),
                    bytes if bytes > 2 * self.units[1] => (*to).max(1),
                    _ => *to,
                };
                self.split(&range, Level::new(to), failure.is_some());
            }
            Operation::Age { place, length } => self.age(&self.range(place, length)),
            Operation::Prune { place, length } => {
                let range = self.range(place, length);
                drop(self.table.restrict(&range).prune(&range));
            }
            Operation::Use { place, write } => self.use_page(self.start(place), *write),
        }
        self.machine.allow_allocations();
        self.watch(&before);
        self.compare();
    }

    fn install(
        &mut self,
        near: u64,
        level: Level,
        count: &Count,
        target: Target,
        attributes: Attributes,
    ) {
        let Some(wanted) = self.wanted(near, level, count, target, attributes) else {
            return;
        };
        while let Some(installed) = self.try_install(&wanted) {
            let mut model = self.model.clone();
            let expected = model.install(&wanted);
            let empty_table = installed.conflict.is_some_and(|conflict| {
                !self.tidy && level > PAGE && self.model.touching(&conflict).is_empty()
            });
            if empty_table {
                self.install_up_to_conflict(&wanted, installed);
            } else {
                assert_eq!(installed, expected);
                self.model = model;
            }
            let Some(conflict) = installed.conflict else {
                return;
            };
            let mut restriction = self.table.restrict(&conflict);
            drop(restriction.unmap(&conflict, PartialBlock::Drop));
            drop(restriction);
            self.model.drop_touching(&conflict);
        }
    }

    /// An empty table, of which the model knows nothing, is in the way.
    fn install_up_to_conflict(&mut self, wanted: &Wanted, installed: Installed) {
        let conflict = installed.conflict.expect("a conflict");
        let done = GpaRange::between(wanted.range.start(), conflict.start());
        let before = done.map_or(Installed::default(), |range| {
            self.model.install(&Wanted { range, ..*wanted })
        });
        let conflict = Some(conflict);
        assert_eq!(installed, Installed { conflict, ..before });
    }

    /// What to install, if the format and its tree have such leaves.
    fn wanted(
        &self,
        near: u64,
        level: Level,
        count: &Count,
        target: Target,
        attributes: Attributes,
    ) -> Option<Wanted> {
        let geometry = self.table.geometry();
        if level > geometry.root() || !geometry.shape(level).leaf {
            return None;
        }
        let bytes = geometry.entry_bytes(level);
        let half = self.host_half;
        let start = near & !(bytes - 1);
        // Neither table nor host memory ends in the middle.
        let limit = half.min(geometry.table_maps(level));
        let width = 1u64 << geometry.address_bits();
        let end = ((start | (limit - 1)) + 1).min(width & !(bytes - 1));
        let runs = geometry.run_bytes(level).map_or(0, |run| run * count.runs);
        let to = match target {
            Target::First => start % half,
            Target::Second => half + start % half,
            Target::Askew => start % half + bytes,
        };
        let attributes_of_run = Attributes {
            contiguous: true,
            ..attributes
        };
        let aligned = hpa(to & !(geometry.run_bytes(level).unwrap_or(bytes) - 1));
        let range = GpaRange::between(gpa(start), gpa(end.min(start + runs + bytes * count.more)))?;
        // Where a format keeps its addresses in pieces, those that are askew may cross from one
        // into the other: then it is the first of them.
        let range = match self.table.leaves(range, hpa(to), level, attributes) {
            Err(LeavesError::Carry { front }) => front,
            _ => range,
        };
        Some(Wanted {
            range,
            to,
            level,
            attributes,
            in_runs: F::leaf(&self.features, level, aligned, attributes_of_run).is_ok(),
        })
    }

    fn try_install(&self, wanted: &Wanted) -> Option<Installed> {
        let mut cache = TableCache::new(&self.table);
        cache.fill().ok()?;
        let Wanted {
            range,
            to,
            level,
            attributes,
            ..
        } = *wanted;
        let leaves = self
            .table
            .leaves(range, hpa(to), level, attributes)
            .expect("leaves of the format");
        let snapshot = self.table.snapshot(&range);
        let mut hold = self.table.hold(&range);
        assert!(hold.is_current(&snapshot));
        let installed = hold.install(&leaves, &mut cache).expect("a full cache");
        drop(hold);
        self.table.settle(&installed, range);
        Some(installed)
    }

    /// Notes in the entry for `address` what the hardware would, where it does so.
    fn use_page(&mut self, address: u64, write: bool) {
        let rules = *self.table.rules();
        let noted = |mut attributes: Attributes| {
            attributes.accessed |= rules.hardware_accessed;
            attributes.dirty |= rules.hardware_dirty && write && attributes.permissions.write;
            attributes
        };
        let Some((entry, level, old)) = self.observer.find(address) else {
            return;
        };
        let Entry::Leaf {
            hpa: first,
            attributes,
        } = F::decode(&self.features, level, old)
        else {
            return;
        };
        // The address behind this very entry, which may be one of a run.
        let bytes = self.model.geometry.entry_bytes(level);
        let (start, leaf) = self.model.at(address).expect("a leaf");
        let offset = (address - start) & !(bytes - 1);
        let to = hpa(first.raw() + offset);
        let new = F::leaf(&self.features, level, to, noted(attributes)).expect("a leaf");
        Observer::<F>::write(&self.machine, entry, old, new);
        let attributes = noted(leaf.attributes);
        self.model.leaves.insert(start, Leaf { attributes, ..leaf });
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
                let now = self.table.translate(gpa(start));
                let now = now.map(|now| (now.hpa, alone(now.attributes)));
                let before = old.translate(start);
                assert_eq!(now, before.map(|(hpa, said)| (hpa, alone(said))));
            }
            self.model.leaves = leaves;
        }
    }

    fn age(&mut self, range: &GpaRange) {
        let mut expected = false;
        // Where the format cannot say that a page was not used, every page was.
        let stays = self.kinds.iter().all(|kind| kind.accessed);
        for start in self.model.touching(range) {
            let leaf = self.model.leaves.get_mut(&start).expect("a leaf");
            expected |= leaf.attributes.accessed;
            leaf.attributes.accessed = stays;
        }
        assert_eq!(self.table.test_young(range), expected);
        assert_eq!(self.table.age(range), expected);
        assert_eq!(self.table.test_young(range), expected && stays);
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
                let now = (now.hpa, plainly(now.attributes));
                let is_old = old.is_some_and(|old| (old.hpa, plainly(old.attributes)) == now);
                let is_new = new.is_some_and(|new| (new.hpa, plainly(new.attributes)) == now);
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
        let step = self.model.leaves.len() / LOOKED_AT + 1;
        for (&start, leaf) in self.model.leaves.iter().step_by(step) {
            assert_eq!(self.leaf(start, leaf.level), *leaf);
            let last = self.model.block(start, leaf).end().raw() - 1;
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
            let hpa = self.table.gpa_to_hpa(gpa(probe));
            assert_eq!(hpa, found.map(|(hpa, _)| hpa), "{probe:#x}");
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

/// Attributes without what does not change a translation on its way from one state to the next:
/// what the hardware notes, and whether a leaf is one of a run that is being taken apart.
fn plainly(attributes: Attributes) -> Attributes {
    alone(unmarked(attributes))
}

/// Attributes as those of a leaf that is not one of a run.
fn alone(attributes: Attributes) -> Attributes {
    Attributes {
        contiguous: false,
        ..attributes
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
