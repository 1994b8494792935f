//! What holds for every format that has it: runs come and go as wholes, a break comes before the
//! flush and that before what is made, entries of four bytes have neighbours.

use slat_table::address::{GpaRange, Hpa, PAGE_SIZE};
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::cache::TableCache;
use slat_table::format::{Entry, Format};
use slat_table::geometry::Level;
use slat_table::hold::Installed;
use slat_table::restriction::PartialBlock;
use slat_table::simulated::Event;
use slat_table::table::{PageTable, TableOptions};

use crate::observer::Observer;
use crate::operations::host_bits;
use crate::setup::{Machine, PAGE, RAM, ROM, gpa, hpa, range};

/// A table of a format, with the observer of its journal.
struct Bench<F: Format> {
    machine: Machine,
    table: PageTable<F, Machine>,
    observer: Observer<F>,
    /// Host memory that everything is aligned with.
    host: u64,
}

impl<F: Format> Bench<F> {
    fn new(features: F::Features, address_bits: u8) -> Self {
        let machine = Machine::new();
        machine.record();
        let options = TableOptions {
            address_bits,
            ..TableOptions::default()
        };
        let table = PageTable::new(machine.clone(), features, options).expect("room for a root");
        Self {
            observer: Observer::new(features, *table.geometry()),
            machine,
            table,
            host: 1 << (host_bits::<F>(&features) - 1),
        }
    }

    /// The levels that have runs of leaves which the format can express.
    fn levels_with_runs(&self) -> Vec<(Level, u64)> {
        let geometry = self.table.geometry();
        let attributes = Attributes {
            contiguous: true,
            ..RAM
        };
        let run = |level| {
            let bytes = geometry.run_bytes(level)?;
            let fits = self.host >= bytes && geometry.table_maps(level) >= bytes;
            let exists = F::leaf(self.table.features(), level, hpa(self.host), attributes).is_ok();
            (fits && exists).then_some((level, bytes))
        };
        geometry.leaf_levels().filter_map(run).collect()
    }

    /// Maps `range`, at its own place in host memory.
    fn map(&self, range: &GpaRange, level: Level, attributes: Attributes) -> Installed {
        let to = hpa(self.host + range.start().raw());
        let leaves = self.table.leaves(*range, to, level, attributes);
        let mut cache = TableCache::new(&self.table);
        cache.fill().expect("memory for tables");
        let mut hold = self.table.hold(range);
        let installed = hold.install(&leaves.expect("leaves"), &mut cache);
        drop(hold);
        let installed = installed.expect("a full cache");
        self.table.settle(&installed, *range);
        installed
    }

    fn look(&self, address: u64) -> Option<(Hpa, Attributes)> {
        let found = self.table.translate(gpa(address))?;
        Some((found.hpa, found.attributes))
    }

    fn unmap(&self, range: &GpaRange, splits: bool) {
        let mut cache = TableCache::new(&self.table);
        let policy = if splits {
            PartialBlock::Split(&mut cache)
        } else {
            PartialBlock::Drop
        };
        drop(self.table.restrict(range).unmap(range, policy));
    }

    /// Shows the observer what happened: it objects to a run in part, to two sizes of leaf for one
    /// address, and to what is still cached.
    fn watch(&mut self) -> Vec<Event> {
        let events = self.machine.take_events();
        for event in &events {
            self.observer.see(event);
        }
        self.observer.expect_settled();
        events
    }
}

fn in_run(attributes: Attributes) -> Attributes {
    Attributes {
        contiguous: true,
        ..attributes
    }
}

fn whole_aligned_runs_are_mapped_as_runs<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    for (level, run) in bench.levels_with_runs() {
        let mut bench = Bench::<F>::new(features, bits);
        let leaf = bench.table.geometry().entry_bytes(level);
        let table = bench.table.geometry().table_maps(level);
        // The last leaf before a run, the run, and the first after it, as far as the table goes.
        let end = (2 * run + leaf).min(table);
        let wanted = range(run - leaf, end - (run - leaf));
        let new = wanted.bytes() / leaf;
        assert_eq!(
            bench.map(&wanted, level, RAM),
            Installed {
                new,
                ..Installed::default()
            }
        );
        let at = |address| bench.look(address).expect("mapped");
        let to = |address: u64| hpa(bench.host + address);
        let mid = run + run / 2;
        if end >= 2 * run {
            assert_eq!(at(run), (to(run), in_run(RAM)));
            assert_eq!(at(mid + 5), (to(mid + 5), in_run(RAM)));
        }
        assert_eq!(at(run - 1), (to(run - 1), RAM));
        let present = new;
        assert_eq!(
            bench.map(&wanted, level, RAM),
            Installed {
                present,
                ..Installed::default()
            }
        );
        assert_eq!(bench.table.count_leaves(&wanted)[level.index()], new);
        bench.watch();
    }
}

fn a_run_is_mapped_only_where_nothing_is_and_addresses_are_aligned_alike<F: Format>(
    features: F::Features,
    bits: u8,
) {
    for (level, run) in Bench::<F>::new(features, bits).levels_with_runs() {
        let mut bench = Bench::<F>::new(features, bits);
        let leaf = bench.table.geometry().entry_bytes(level);
        let whole = range(0, run);
        bench.map(&range(run - leaf, leaf), level, RAM);
        let installed = bench.map(&whole, level, RAM);
        assert_eq!((installed.new, installed.present), (run / leaf - 1, 1));
        assert_eq!(bench.look(0), Some((hpa(bench.host), RAM)));
        bench.unmap(&whole, false);
        bench.host += leaf;
        bench.map(&whole, level, RAM);
        assert_eq!(
            bench.look(0),
            Some((hpa(bench.host), RAM)),
            "not aligned alike"
        );
        bench.watch();
    }
}

fn a_run_is_unmapped_whole_or_broken<F: Format>(features: F::Features, bits: u8) {
    for (level, run) in Bench::<F>::new(features, bits).levels_with_runs() {
        for splits in [false, true] {
            let mut bench = Bench::<F>::new(features, bits);
            let leaf = bench.table.geometry().entry_bytes(level);
            bench.map(&range(0, run), level, RAM);
            bench.watch();
            bench.unmap(&range(leaf, leaf), splits);
            assert_eq!(bench.look(leaf), None);
            let kept = splits.then_some((hpa(bench.host), RAM));
            assert_eq!(bench.look(0), kept);
            let last = run - 1;
            assert_eq!(bench.look(last).is_some(), splits);
            let events = bench.watch();
            let flushed = events.iter().any(|event| {
                let Event::Flushed(work) = event else {
                    return false;
                };
                work.ranges()
                    .iter()
                    .any(|flushed| flushed.covers(&range(0, run)))
            });
            assert!(flushed, "one entry may be cached for all of the run");
            // The rest goes, from the middle of an entry of 4 KiB pages to beyond the run.
            bench.unmap(&range(PAGE_SIZE, run), splits);
            assert_eq!(bench.look(last), None);
            bench.watch();
        }
    }
}

fn a_removal_meets_a_run_with_its_start_or_with_its_end<F: Format>(
    features: F::Features,
    bits: u8,
) {
    for (level, run) in Bench::<F>::new(features, bits).levels_with_runs() {
        for (splits, starts_in_run) in [(false, false), (false, true), (true, false), (true, true)]
        {
            let mut bench = Bench::<F>::new(features, bits);
            let leaf = bench.table.geometry().entry_bytes(level);
            if bench.table.geometry().table_maps(level) < 2 * run {
                continue;
            }
            bench.map(&range(0, 2 * run), level, RAM);
            bench.watch();
            // One run in part and one whole.
            let (gone, outside) = if starts_in_run {
                (range(leaf, 2 * run - leaf), 0)
            } else {
                (range(0, run + leaf), run + leaf)
            };
            bench.unmap(&gone, splits);
            for inside in [gone.start().raw(), run, gone.end().raw() - 1] {
                assert_eq!(bench.look(inside), None, "{inside:#x} of {gone:?}");
            }
            let kept = splits.then_some((hpa(bench.host + outside), RAM));
            assert_eq!(bench.look(outside), kept, "{gone:?}");
            bench.watch();
        }
    }
}

fn what_lies_behind_the_first_piece_stays_when_that_goes<F: Format>(
    features: F::Features,
    bits: u8,
) {
    let bench = Bench::<F>::new(features, bits);
    let geometry = *bench.table.geometry();
    let mut wholes: Vec<(Level, u64, u64)> = bench
        .levels_with_runs()
        .into_iter()
        .map(|(level, run)| (level, run, geometry.entry_bytes(level)))
        .collect();
    let block = Level::new(1);
    if geometry.shape(block).leaf {
        let piece = geometry.entry_bytes(PAGE);
        wholes.push((block, geometry.entry_bytes(block), piece));
    }
    for (level, whole, piece) in wholes {
        let mut bench = Bench::<F>::new(features, bits);
        bench.map(&range(0, whole), level, RAM);
        bench.watch();
        bench.unmap(&range(0, piece), true);
        assert_eq!(bench.look(0), None);
        for kept in [piece, whole - 1] {
            assert!(bench.look(kept).is_some(), "{kept:#x} of {level:?}");
        }
        bench.watch();
    }
}

fn breaking_a_run_breaks_flushes_and_makes<F: Format>(features: F::Features, bits: u8) {
    for (level, run) in Bench::<F>::new(features, bits).levels_with_runs() {
        let mut bench = Bench::<F>::new(features, bits);
        let whole = range(0, run);
        bench.map(&whole, level, ROM);
        bench.watch();
        let mut cache = TableCache::new(&bench.table);
        drop(
            bench
                .table
                .restrict(&whole)
                .split(&range(0, PAGE_SIZE), level, &mut cache),
        );
        drop(cache);
        assert_eq!(bench.look(run - 1), Some((hpa(bench.host + run - 1), ROM)));
        let events = bench.watch();
        let is_write = |event: &&Event| matches!(event, Event::Written { .. });
        let flush = events
            .iter()
            .position(|event| matches!(event, Event::Flushed(_)));
        let (before, after) = events.split_at(flush.expect("a flush"));
        let writes = before.iter().filter(is_write).count();
        assert!(writes != 0 && writes == after.iter().filter(is_write).count());
        assert!(after.contains(&Event::Published));
    }
}

fn a_run_is_young_and_dirty_as_a_whole<F: Format>(features: F::Features, bits: u8) {
    let rules = F::rules(&features);
    for (level, run) in Bench::<F>::new(features, bits).levels_with_runs() {
        let mut bench = Bench::<F>::new(features, bits);
        let whole = range(0, run);
        bench.map(&whole, level, RAM);
        assert!(bench.table.age(&range(run - PAGE_SIZE, PAGE_SIZE)));
        assert!(!bench.table.test_young(&whole));
        let installed = bench.map(&range(0, run / 2), level, RAM);
        assert_ne!(installed.extended, 0, "young again");
        assert!(bench.table.age(&whole) && !bench.table.test_young(&whole));
        bench.watch();
        if !rules.hardware_dirty {
            continue;
        }
        // The hardware notes a write in the last entry only.
        let (entry, _, old) = bench.observer.find(run - 1).expect("an entry");
        let Entry::Leaf {
            hpa: base,
            attributes,
        } = F::decode(&features, level, old)
        else {
            panic!("no leaf");
        };
        let dirty = Attributes {
            dirty: true,
            accessed: true,
            ..attributes
        };
        let leaf = bench.table.geometry().entry_bytes(level);
        let to = hpa(base.raw() + run - leaf);
        let new = F::leaf(&features, level, to, dirty).expect("a leaf");
        Observer::<F>::write(&bench.machine, entry, old, new);
        let first = range(0, PAGE_SIZE);
        assert!(bench.table.test_young(&first), "used in whichever entry");
        assert!(
            bench
                .table
                .translate(gpa(0))
                .is_some_and(|first| first.attributes.dirty)
        );
        let wanted = Attributes { dirty: true, ..RAM };
        let installed = bench.map(&range(0, leaf), level, wanted);
        assert_eq!(installed.present, 1, "what one leaf notes, all have noted");
        bench.unmap(&range(run - leaf, leaf), true);
        let first = bench
            .table
            .translate(gpa(0))
            .expect("what was outside stays");
        assert!(
            first.attributes.dirty && first.attributes.accessed,
            "the note counts for all that was one translation"
        );
        bench.watch();
    }
}

fn a_run_does_not_come_to_allow_more<F: Format>(features: F::Features, bits: u8) {
    for (level, run) in Bench::<F>::new(features, bits).levels_with_runs() {
        let mut bench = Bench::<F>::new(features, bits);
        let leaf = bench.table.geometry().entry_bytes(level);
        let whole = range(0, run);
        bench.map(&whole, level, ROM);
        let installed = bench.map(&range(leaf, leaf), level, RAM);
        let conflict = Some(whole);
        assert_eq!(
            installed,
            Installed {
                conflict,
                ..Installed::default()
            }
        );
        assert_eq!(
            bench.look(leaf),
            Some((hpa(bench.host + leaf), in_run(ROM)))
        );
        bench.watch();
    }
}

fn another_address_or_memory_type_than_a_run_has_is_a_conflict<F: Format>(
    features: F::Features,
    bits: u8,
) {
    for (level, run) in Bench::<F>::new(features, bits).levels_with_runs() {
        let mut bench = Bench::<F>::new(features, bits);
        let leaf = bench.table.geometry().entry_bytes(level);
        let whole = range(0, run);
        bench.map(&whole, level, RAM);
        let conflict = Installed {
            conflict: Some(whole),
            ..Installed::default()
        };
        let uncached = Attributes {
            memory: MemoryType::NonCacheable,
            ..RAM
        };
        if F::leaf(&features, level, hpa(bench.host), uncached).is_ok() {
            assert_eq!(bench.map(&range(leaf, leaf), level, uncached), conflict);
        }
        let said = bench.look(leaf);
        assert_eq!(said, Some((hpa(bench.host + leaf), in_run(RAM))));
        bench.host -= run;
        assert_eq!(bench.map(&range(leaf, leaf), level, RAM), conflict);
        assert_eq!(bench.look(leaf), said);
        bench.watch();
    }
}

fn a_write_to_one_leaf_makes_its_run_dirty<F: Format>(features: F::Features, bits: u8) {
    for (level, run) in Bench::<F>::new(features, bits).levels_with_runs() {
        let mut bench = Bench::<F>::new(features, bits);
        let leaf = bench.table.geometry().entry_bytes(level);
        let dirty = Attributes { dirty: true, ..RAM };
        if F::leaf(&features, level, hpa(bench.host), dirty).is_err() {
            continue;
        }
        bench.map(&range(0, run), level, RAM);
        let extended = Installed {
            extended: 1,
            ..Installed::default()
        };
        assert_eq!(bench.map(&range(leaf, leaf), level, dirty), extended);
        let last = bench.look(run - leaf);
        assert_eq!(last, Some((hpa(bench.host + run - leaf), in_run(dirty))));
        bench.watch();
    }
}

fn a_block_is_broken_before_its_pieces_are_made<F: Format>(features: F::Features, bits: u8) {
    let mut bench = Bench::<F>::new(features, bits);
    let level = Level::new(1);
    let geometry = *bench.table.geometry();
    if !geometry.shape(level).leaf {
        return;
    }
    let block = range(0, geometry.entry_bytes(level));
    bench.map(&block, level, RAM);
    bench.watch();
    let mut cache = TableCache::new(&bench.table);
    drop(bench.table.restrict(&block).split(&block, PAGE, &mut cache));
    drop(cache);
    assert_eq!(
        bench.look(block.bytes() - 1),
        Some((hpa(bench.host + block.bytes() - 1), RAM))
    );
    // In order, or the observer objects.
    let events = bench.watch();
    let flush = events
        .iter()
        .position(|event| matches!(event, Event::Flushed(_)));
    let linked = events
        .iter()
        .rposition(|event| matches!(event, Event::Written { .. }));
    let linked = linked.expect("a link");
    let in_place = !F::rules(&features).break_before_make;
    assert!(in_place || flush.expect("a flush") < linked);
    assert!(events[linked..].contains(&Event::Published));
}

fn entries_beside_one_that_changes_stay<F: Format>(features: F::Features, bits: u8) {
    let mut bench = Bench::<F>::new(features, bits);
    let page = bench.table.geometry().entry_bytes(PAGE);
    let pages = [3, 4, 5, 6].map(|number| range(number * page, page));
    // Not every format can forbid execution.
    let executable = Attributes {
        permissions: Permissions {
            execute: Execute::Always,
            ..Permissions::READ
        },
        ..ROM
    };
    for page in &pages {
        bench.map(page, PAGE, executable);
    }
    let entry = |bench: &Bench<F>, of: &GpaRange| bench.observer.find(of.start().raw());
    bench.watch();
    for (index, changed) in pages.iter().enumerate() {
        let before = pages.map(|page| entry(&bench, &page));
        bench.map(changed, PAGE, RAM);
        bench.table.age(changed);
        bench.unmap(changed, true);
        bench.map(changed, PAGE, RAM);
        bench.watch();
        for (other, page) in pages.iter().enumerate() {
            let same = entry(&bench, page) == before[other];
            assert_eq!(
                same,
                other != index,
                "page {other} when page {index} changed"
            );
        }
    }
    let first = entry(&bench, &pages[0]).expect("an entry").0;
    let second = entry(&bench, &pages[1]).expect("an entry").0;
    assert_eq!(second - first, F::ENTRY_BYTES);
}

crate::setup::for_every_format! {
    whole_aligned_runs_are_mapped_as_runs,
    a_run_is_mapped_only_where_nothing_is_and_addresses_are_aligned_alike,
    a_run_is_unmapped_whole_or_broken,
    a_removal_meets_a_run_with_its_start_or_with_its_end,
    what_lies_behind_the_first_piece_stays_when_that_goes,
    breaking_a_run_breaks_flushes_and_makes,
    a_run_is_young_and_dirty_as_a_whole,
    a_run_does_not_come_to_allow_more,
    another_address_or_memory_type_than_a_run_has_is_a_conflict,
    a_write_to_one_leaf_makes_its_run_dirty,
    a_block_is_broken_before_its_pieces_are_made,
    entries_beside_one_that_changes_stay,
}

#[test]
fn some_formats_have_runs() {
    let runs = |bench: Vec<(Level, u64)>| bench.len();
    let arm = slat_table::format::arm64::Arm64Features::ALL;
    assert_eq!(
        runs(Bench::<slat_table::format::arm64::Arm64>::new(arm, 48).levels_with_runs()),
        3
    );
    assert_eq!(
        runs(Bench::<crate::odd::Odd>::new((), 40).levels_with_runs()),
        2
    );
}

#[test]
fn the_caller_does_not_say_which_leaves_are_a_run() {
    use slat_table::format::arm64::{Arm64, Arm64Features};
    let bench = Bench::<Arm64>::new(Arm64Features::ALL, 48);
    let asked = Attributes {
        contiguous: true,
        ..RAM
    };
    let leaves = |attributes| {
        let page = range(0, PAGE_SIZE);
        bench.table.leaves(page, hpa(bench.host), PAGE, attributes)
    };
    assert!(leaves(RAM).is_ok());
    assert_eq!(leaves(asked), leaves(RAM), "one page is no run");
}
