//! Every allocation made to fail in turn: nothing is lost but what had to go, nothing leaks, and
//! no flush is missing.

use slat_table::address::GpaRange;
use slat_table::cache::TableCache;
use slat_table::format::Format;
use slat_table::geometry::Level;
use slat_table::hold::Installed;
use slat_table::restriction::PartialBlock;
use slat_table::table::{PageTable, TableOptions};

use crate::observer::Observer;
use crate::operations::host_bits;
use crate::setup::{Bench, Machine, PAGE, RAM, Table, gpa, hpa};

/// Which allocation fails.
#[derive(Clone, Copy)]
struct Failure {
    /// The one after so many others.
    skip: u64,
    and_all_after: bool,
}

/// Maps one leaf as a fault does; false if there is no memory for the tables.
fn try_map<F: Format>(table: &Table<F>, range: GpaRange, to: u64, level: Level) -> bool {
    let mut cache = TableCache::new(table);
    if cache.fill().is_err() {
        return false;
    }
    let leaves = table.leaves(range, hpa(to), level, RAM).unwrap();
    let installed = table.hold(&range).install(&leaves, &mut cache).unwrap();
    table.settle(&installed, range);
    let new = Installed {
        new: 1,
        ..Installed::default()
    };
    assert_eq!(installed, new);
    true
}

/// Maps, splits and unmaps, with `failure`. Whether it came to that.
fn scenario<F: Format>(features: F::Features, bits: u8, failure: Failure) -> bool {
    let Failure {
        skip,
        and_all_after,
    } = failure;
    // The sizes of the tree, and the largest block of a few levels.
    let sizes = Bench::<F>::new(features, bits);
    let (page, host) = (sizes.page, 1u64 << (host_bits::<F>(&features) - 1));
    let blocks = sizes.blocks();
    let block = blocks.get(1).or(blocks.first());
    let (level, bytes) = block.copied().unwrap_or((PAGE, page));
    let at = bytes.max(sizes.upper);

    let machine = Machine::new();
    machine.record();
    let options = TableOptions {
        address_bits: bits,
        ..TableOptions::default()
    };
    let table = PageTable::<F, _>::new(machine.clone(), features, options).unwrap();
    let before = machine.allocations();
    if and_all_after {
        machine.fail_allocations_from(skip);
    } else {
        machine.fail_allocation(skip);
    }
    let look = |address| table.translate(gpa(address)).map(|found| found.hpa.raw());
    let range = |start, bytes| crate::setup::range(start, bytes);
    let small = try_map(&table, range(5 * page, page), host + 5 * page, PAGE);
    let block = try_map(&table, range(at, bytes), host, level);

    // A page in the middle.
    let middle = (bytes / 2) & !(page - 1);
    let part = range(at + middle, page);
    let mut cache = TableCache::new(&table);
    drop(table.restrict(&part).split(&part, PAGE, &mut cache));
    if block {
        for offset in [middle, bytes - page] {
            assert_eq!(look(at + offset), Some(host + offset));
        }
    }

    let hole = range(at + 3 * page, 4 * page);
    let mut restriction = table.restrict(&hole);
    drop(restriction.unmap(&hole, PartialBlock::Split(&mut cache)));
    drop(restriction.prune(&hole));
    drop(restriction);
    drop(cache);
    for number in 3..7 {
        let gone = look(at + number * page);
        assert_eq!(gone, None, "what must go goes without memory");
    }
    assert_eq!(look(5 * page), small.then_some(host + 5 * page));

    let reached = machine.allocations() - before > skip;
    machine.allow_allocations();
    let mut observer = Observer::<F>::new(features, *table.geometry());
    for event in &machine.take_events() {
        observer.see(event);
    }
    observer.expect_settled();
    drop(table);
    assert_eq!(
        (machine.live_tables(), machine.live_bytes()),
        (0, 0),
        "allocation {skip}"
    );
    reached
}

/// Runs the scenario with each allocation failing in turn, until there are no more.
fn each_fails<F: Format>(features: F::Features, bits: u8, and_all_after: bool) {
    let fails = |skip: &u64| {
        let failure = Failure {
            skip: *skip,
            and_all_after,
        };
        scenario::<F>(features, bits, failure)
    };
    let reached = (0..100).take_while(fails).count();
    // At least what the first page needs.
    let geometry = F::geometry(&features, bits).expect("a row of the catalogue");
    let least = geometry.root().index();
    assert!((least..100).contains(&reached), "{reached} allocations");
}

fn any_one_allocation_may_fail<F: Format>(features: F::Features, bits: u8) {
    each_fails::<F>(features, bits, false);
}

fn memory_may_run_out_at_any_point<F: Format>(features: F::Features, bits: u8) {
    each_fails::<F>(features, bits, true);
}

crate::setup::for_every_format! {
    any_one_allocation_may_fail,
    memory_may_run_out_at_any_point,
}
