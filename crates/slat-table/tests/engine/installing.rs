//! Adding translations: tables, leaves, what makes an answer old (P3), what is in the way (P4).

use slat_table::address::{GpaRange, PAGE_SIZE};
use slat_table::attributes::{Attributes, Execute, Permissions};
use slat_table::cache::TableCache;
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::format::{EncodeError, Format};
use slat_table::geometry::Level;
use slat_table::hold::{Installed, NoTableReady};
use slat_table::restriction::PartialBlock;
use slat_table::simulated::Event;
use slat_table::table::{LeavesError, NewTableError, PageTable, TableOptions};

use crate::odd::Odd;
use crate::setup::{
    DEVICE, FEATURES, GIB, GIB1, HOST, MIB, MIB2, Machine, PAGE, RAM, ROM, gpa, hpa, install, look,
    map, new_table, page, range, small_table, unmap,
};

fn present(leaves: u64) -> Installed {
    Installed {
        present: leaves,
        ..Installed::default()
    }
}

fn conflict(range: GpaRange) -> Installed {
    Installed {
        conflict: Some(range),
        ..Installed::default()
    }
}

// Making tables.

#[test]
fn a_table_that_cannot_be_made_leaves_nothing_behind() {
    let machine = Machine::new();
    let make = |address_bits, stripes| {
        let options = TableOptions {
            address_bits,
            stripes,
        };
        PageTable::<Arm64, _>::new(machine.clone(), FEATURES, options).map(|_| ())
    };
    assert!(matches!(make(31, 1), Err(NewTableError::Geometry(_))));
    for stripes in [0, 3, 128] {
        assert_eq!(make(40, stripes), Err(NewTableError::Stripes(stripes)));
    }
    machine.fail_allocation(0);
    assert!(matches!(make(40, 64), Err(NewTableError::OutOfTables(_))));
    assert_eq!(machine.live_tables(), 0);
    assert_eq!(make(40, 64), Ok(()));
    assert_eq!(machine.live_tables(), 0);
}

#[test]
fn dropping_a_table_flushes_before_it_frees() {
    let (machine, table) = small_table();
    map(&table, page(0), HOST, PAGE, RAM);
    machine.record();
    drop(table);
    let events = machine.take_events();
    let flush = events
        .iter()
        .position(|event| matches!(event, Event::Flushed(_)))
        .unwrap();
    let freed = events
        .iter()
        .position(|event| matches!(event, Event::Freed { .. }))
        .unwrap();
    assert!(flush < freed);
    assert_eq!(machine.live_tables(), 0);
}

/// Local flushes for a new leaf, and for the same leaf again.
fn local_flushes<F: Format>(features: F::Features, page: GpaRange) -> [u64; 2] {
    let machine = Machine::new();
    let table = PageTable::<F, _>::new(machine.clone(), features, TableOptions::default()).unwrap();
    let mut cache = TableCache::new(&table);
    cache.fill().unwrap();
    let leaves = table.leaves(page, hpa(HOST), PAGE, RAM).unwrap();
    [(); 2].map(|()| {
        let before = machine.local_flushes();
        let installed = table.hold(&page).install(&leaves, &mut cache).unwrap();
        table.settle(&installed, page);
        machine.local_flushes() - before
    })
}

#[test]
fn a_new_leaf_needs_a_local_flush_only_where_invalid_entries_are_cached() {
    assert_eq!(local_flushes::<Arm64>(FEATURES, page(0)), [0, 1]);
    assert_eq!(local_flushes::<Odd>((), range(0, 4 * PAGE_SIZE)), [1, 1]);
}

// Leaves.

#[test]
fn leaves_must_be_a_run_of_entries_of_one_table() {
    let (_machine, table) = small_table();
    let not_a_run = |range, level| {
        let error = LeavesError::NotARun { range, level };
        assert_eq!(table.leaves(range, hpa(HOST), level, RAM), Err(error));
    };
    not_a_run(range(0x1000, 2 * MIB), MIB2);
    not_a_run(range(0, 2 * MIB + 0x1000), MIB2);
    not_a_run(range(2 * MIB - 0x1000, 0x2000), PAGE);
    not_a_run(range((1 << 40) - 0x1000, 0x2000), PAGE);
    not_a_run(range(1 << 40, 0x1000), PAGE);
    not_a_run(range(0, GIB), Level::new(3));
    not_a_run(range(0, GIB), Level::new(200));
    assert!(
        table
            .leaves(range((1 << 40) - 0x1000, 0x1000), hpa(HOST), PAGE, RAM)
            .is_ok()
    );
    assert!(table.leaves(range(0, 1 << 40), hpa(0), GIB1, RAM).is_ok());
}

#[test]
fn every_leaf_of_a_run_must_have_a_host_address() {
    let (_machine, table) = small_table();
    let last = (1 << 48) - PAGE_SIZE;
    assert!(table.leaves(page(0), hpa(last), PAGE, RAM).is_ok());
    assert_eq!(
        table.leaves(range(0, 2 * PAGE_SIZE), hpa(last), PAGE, RAM),
        Err(EncodeError::AddressWidth {
            hpa: hpa(1 << 48),
            bits: 48
        }
        .into())
    );
}

#[test]
fn installing_needs_tables_made_ready() {
    let (_machine, table) = small_table();
    let leaves = table.leaves(page(0), hpa(HOST), PAGE, RAM).unwrap();
    let mut cache = TableCache::new(&table);
    let installed = table.hold(&page(0)).install(&leaves, &mut cache);
    assert_eq!(installed, Err(NoTableReady(MIB2)));
    assert_eq!(table.translate(gpa(0)), None);
    cache.fill().unwrap();
    assert!(table.hold(&page(0)).install(&leaves, &mut cache).is_ok());
    assert_eq!(look(&table, 0xfff), Some((HOST + 0xfff, PAGE)));
}

#[test]
fn tables_made_ready_for_another_tree_are_refused() {
    let (machine, table) = small_table();
    let other = new_table(&machine, 40, 64);
    let mut cache = TableCache::new(&other);
    cache.fill().unwrap();
    let leaves = table.leaves(page(0), hpa(HOST), PAGE, RAM).unwrap();
    let refused = table.hold(&page(0)).install(&leaves, &mut cache);
    assert_eq!(refused, Err(NoTableReady(PAGE)));
    assert_eq!(look(&table, 0), None);
}

#[test]
fn installing_outside_the_held_stripes_is_refused() {
    let (_machine, table) = small_table();
    let mut cache = TableCache::new(&table);
    cache.fill().unwrap();
    let leaves = table.leaves(page(2 * MIB), hpa(HOST), PAGE, RAM).unwrap();
    let mut hold = table.hold(&page(0));
    assert!(!hold.covers(&leaves));
    assert!(hold.install(&leaves, &mut cache).is_err());
    drop(hold);
    assert_eq!(table.translate(gpa(2 * MIB)), None);
}

// P3: the sequences.

#[test]
fn a_removal_in_progress_or_done_makes_a_snapshot_old() {
    let (_machine, table) = small_table();
    let here = page(0);
    let elsewhere = page(2 * MIB);
    let (old, other) = (table.snapshot(&here), table.snapshot(&elsewhere));
    let restriction = table.restrict(&here);
    assert!(
        !table.hold(&here).is_current(&table.snapshot(&here)),
        "in progress"
    );
    assert!(
        table.hold(&elsewhere).is_current(&other),
        "another stripe does not notice"
    );
    drop(restriction);
    assert!(!table.hold(&here).is_current(&old), "ended since");
    assert!(table.hold(&here).is_current(&table.snapshot(&here)));
    let raised = {
        let mut restriction = table.restrict(&here);
        drop(restriction.unmap(&here, PartialBlock::Drop));
        restriction.leave_raised()
    };
    assert!(
        !table.hold(&here).is_current(&table.snapshot(&here)),
        "left raised"
    );
    table.lower(raised);
    assert!(table.hold(&here).is_current(&table.snapshot(&here)));
}

// P4: what is in the way.

#[test]
fn the_same_leaf_again_is_present() {
    let (machine, table) = small_table();
    map(&table, range(0, 4 * PAGE_SIZE), HOST, PAGE, RAM);
    let before = machine.local_flushes();
    assert_eq!(
        install(&table, range(0, 4 * PAGE_SIZE), HOST, PAGE, RAM),
        present(4)
    );
    assert_eq!(
        machine.local_flushes(),
        before + 1,
        "a spurious fault flushes locally"
    );
    assert_eq!(
        install(&table, page(0), HOST, PAGE, ROM),
        present(1),
        "less changes nothing"
    );
    assert_eq!(table.translate(gpa(0)).unwrap().attributes, RAM);
}

#[test]
fn permissions_are_added_in_place() {
    let (machine, table) = small_table();
    let marked = Attributes {
        software: 0b1010,
        ..ROM
    };
    map(&table, page(0), HOST, PAGE, marked);
    machine.record();
    let installed = install(&table, page(0), HOST, PAGE, RAM);
    assert_eq!(
        installed,
        Installed {
            extended: 1,
            ..Installed::default()
        }
    );
    let found = table.translate(gpa(0)).unwrap().attributes;
    assert_eq!(
        found,
        Attributes {
            permissions: Permissions::ALL,
            ..marked
        }
    );
    let events = machine.take_events();
    assert!(events.contains(&Event::FlushedLocally(page(0))));
    assert!(
        !events
            .iter()
            .any(|event| matches!(event, Event::Flushed(_))),
        "others just fault"
    );
    let writes = events
        .iter()
        .filter(|event| matches!(event, Event::Written { .. }))
        .count();
    assert_eq!(writes, 1, "no break");
}

#[test]
fn execute_permissions_add_up() {
    let (_machine, table) = small_table();
    let may = |execute| Attributes {
        permissions: Permissions {
            execute,
            ..Permissions::READ
        },
        ..ROM
    };
    map(&table, page(0), HOST, PAGE, may(Execute::Privileged));
    let installed = install(&table, page(0), HOST, PAGE, may(Execute::Unprivileged));
    assert_eq!(installed.extended, 1);
    assert_eq!(
        table.translate(gpa(0)).unwrap().attributes,
        may(Execute::Always)
    );
}

#[test]
fn an_old_leaf_becomes_young_again() {
    let (_machine, table) = small_table();
    map(&table, page(0), HOST, PAGE, RAM);
    assert!(table.test_young(&page(0)) && table.age(&page(0)));
    assert!(!table.test_young(&page(0)) && !table.age(&page(0)));
    assert!(!table.translate(gpa(0)).unwrap().attributes.accessed);
    assert_eq!(install(&table, page(0), HOST, PAGE, RAM).extended, 1);
    assert!(table.test_young(&page(0)));
}

#[test]
fn what_was_written_stays_noted_when_a_leaf_allows_more() {
    let machine = Machine::new();
    let features = Arm64Features {
        hardware_accessed: true,
        hardware_dirty: true,
        ..FEATURES
    };
    let table = PageTable::<Arm64, _>::new(machine, features, TableOptions::default()).unwrap();
    let clean = Attributes {
        permissions: Permissions::READ_WRITE,
        ..RAM
    };
    let dirty = Attributes {
        dirty: true,
        ..clean
    };
    let now = |at| table.translate(gpa(at)).unwrap().attributes;
    map(&table, page(0), HOST, PAGE, dirty);
    install(&table, page(0), HOST, PAGE, RAM);
    assert_eq!(now(0), Attributes { dirty: true, ..RAM });
    map(&table, page(PAGE_SIZE), HOST, PAGE, clean);
    install(&table, page(PAGE_SIZE), HOST, PAGE, dirty);
    assert_eq!(now(PAGE_SIZE), dirty);
}

#[test]
fn another_address_or_memory_type_is_a_conflict() {
    let (_machine, table) = small_table();
    map(&table, range(0, 3 * PAGE_SIZE), HOST, PAGE, RAM);
    assert_eq!(
        install(&table, page(0), HOST + PAGE_SIZE, PAGE, RAM),
        conflict(page(0))
    );
    assert_eq!(
        install(&table, page(0), HOST, PAGE, DEVICE),
        conflict(page(0))
    );
    assert_eq!(
        look(&table, 0),
        Some((HOST, PAGE)),
        "nothing is overwritten"
    );
    // A run stops at the conflict and says what it did before.
    unmap(&table, &page(PAGE_SIZE));
    map(&table, page(PAGE_SIZE), HOST, PAGE, RAM);
    let stopped = Installed {
        present: 1,
        ..conflict(page(PAGE_SIZE))
    };
    assert_eq!(
        install(&table, range(0, 3 * PAGE_SIZE), HOST, PAGE, RAM),
        stopped
    );
}

#[test]
fn a_larger_leaf_in_the_way() {
    let (_machine, table) = small_table();
    let block = range(2 * MIB, 2 * MIB);
    map(&table, block, HOST, MIB2, ROM);
    let inside = range(2 * MIB + 0x5000, 2 * PAGE_SIZE);
    assert_eq!(
        install(&table, inside, HOST + 0x5000, PAGE, ROM),
        present(2),
        "mapped already"
    );
    assert_eq!(
        install(&table, inside, HOST + 0x6000, PAGE, ROM),
        conflict(block)
    );
    assert_eq!(
        install(&table, inside, HOST + 0x5000, PAGE, RAM),
        conflict(block)
    );
    assert_eq!(
        install(&table, inside, HOST + 0x5000, PAGE, DEVICE),
        conflict(block)
    );
    assert!(table.age(&inside));
    assert_eq!(
        install(&table, inside, HOST + 0x5000, PAGE, ROM),
        conflict(block),
        "it is old"
    );
}

#[test]
fn smaller_leaves_in_the_way() {
    let (_machine, table) = small_table();
    let block = range(2 * MIB, 2 * MIB);
    map(&table, page(3 * MIB), HOST + MIB, PAGE, RAM);
    assert_eq!(install(&table, block, HOST, MIB2, RAM), conflict(block));
    assert_eq!(look(&table, 3 * MIB), Some((HOST + MIB, PAGE)));
    unmap(&table, &block);
    map(&table, block, HOST, MIB2, RAM);
    assert_eq!(look(&table, 3 * MIB), Some((HOST + MIB, MIB2)));
}
