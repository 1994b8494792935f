//! Every allocation made to fail in turn: nothing is lost but what had to go, nothing leaks, and
//! no flush is missing.

use slat_table::attributes::Attributes;
use slat_table::cache::TableCache;
use slat_table::format::arm64::Arm64;
use slat_table::restriction::PartialBlock;

use crate::observer::Observer;
use crate::setup::{
    DEVICE, FEATURES, GIB, GIB1, HOST, MIB, Machine, PAGE, RAM, Table, gpa, hpa, look, new_table,
    page, range,
};

/// Maps one page as a fault does; false if there is no memory for the tables.
fn try_map(table: &Table, at: u64, attributes: Attributes) -> bool {
    let mut cache = TableCache::new(table);
    if cache.fill().is_err() {
        return false;
    }
    let leaves = table
        .leaves(page(at), hpa(HOST + at), PAGE, attributes)
        .unwrap();
    let installed = table.hold(&page(at)).install(&leaves, &mut cache).unwrap();
    table.settle(&installed, page(at));
    assert_eq!(installed.conflict, None);
    true
}

fn try_map_block(table: &Table) -> bool {
    let mut cache = TableCache::new(table);
    if cache.fill().is_err() {
        return false;
    }
    let block = range(GIB, GIB);
    let leaves = table.leaves(block, hpa(HOST + GIB), GIB1, RAM).unwrap();
    let installed = table.hold(&block).install(&leaves, &mut cache).unwrap();
    table.settle(&installed, block);
    true
}

/// Maps, splits and unmaps; the allocation after `skip` others fails. Whether it came to that.
fn scenario(skip: u64, and_all_after: bool) -> bool {
    let machine = Machine::new();
    machine.record();
    let table = new_table(&machine, 39, 64);
    if and_all_after {
        machine.fail_allocations_from(skip);
    } else {
        machine.fail_allocation(skip);
    }
    let before = machine.allocations();
    let small = try_map(&table, 0x5000, DEVICE);
    let block = try_map_block(&table);

    let part = page(GIB + 4 * MIB);
    let mut cache = TableCache::new(&table);
    drop(table.restrict(&part).split(&part, PAGE, &mut cache));
    if block {
        assert_eq!(
            look(&table, GIB + 8 * MIB).map(|found| found.0),
            Some(HOST + GIB + 8 * MIB)
        );
        assert_eq!(
            look(&table, part.start().raw()).map(|found| found.0),
            Some(HOST + GIB + 4 * MIB)
        );
    }

    let hole = range(GIB + 0x3000, 0x4000);
    let mut restriction = table.restrict(&hole);
    drop(restriction.unmap(&hole, PartialBlock::Split(&mut cache)));
    drop(restriction.prune(&hole));
    drop(restriction);
    drop(cache);
    for at in (hole.start().raw()..hole.end().raw()).step_by(4096) {
        assert_eq!(
            table.translate(gpa(at)),
            None,
            "what must go goes without memory"
        );
    }
    assert_eq!(look(&table, 0x5000), small.then_some((HOST + 0x5000, PAGE)));

    let reached = machine.allocations() - before > skip;
    machine.allow_allocations();
    let mut observer = Observer::<Arm64>::new(FEATURES, *table.geometry());
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

#[test]
fn any_one_allocation_may_fail() {
    let reached = (0..100).take_while(|&skip| scenario(skip, false)).count();
    assert!(
        (6..100).contains(&reached),
        "{reached} allocations were made to fail"
    );
}

#[test]
fn memory_may_run_out_at_any_point() {
    let reached = (0..100).take_while(|&skip| scenario(skip, true)).count();
    assert!((6..100).contains(&reached), "{reached} points");
}
