//! One behaviour, one test: conflicts, permissions, splitting, unmapping, flushes.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

use slat_table::address::{GpaRange, PAGE_SIZE};
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::cache::TableCache;
use slat_table::format::EncodeError;
use slat_table::geometry::Level;
use slat_table::platform::TlbWork;
use slat_table::restriction::{PartialBlock, Raised};
use slat_table::simulated::Event;
use slat_table::table::{
    Installed, LeavesError, NewTableError, NoTableReady, PageTable, TableOptions,
};

use crate::setup::{
    DEVICE, FEATURES, GIB, GIB1, MIB, MIB2, Machine, PAGE, RAM, ROM, Table, gpa, hpa, install,
    look, map, new_table, page, range,
};

const HOST: u64 = 0x40_0000_0000;

fn table() -> (Machine, Table) {
    let machine = Machine::new();
    let table = new_table(&machine, 40, 64);
    (machine, table)
}

fn unmap(table: &Table, range: &GpaRange) {
    drop(table.restrict(range).unmap(range, PartialBlock::Drop));
}

fn unmap_exactly(table: &Table, range: &GpaRange) {
    let mut cache = TableCache::new(table);
    drop(
        table
            .restrict(range)
            .unmap(range, PartialBlock::Split(&mut cache)),
    );
}

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

fn flushes(machine: &Machine) -> Vec<TlbWork> {
    let flush = |event| match event {
        Event::Flushed(work) => Some(work),
        _ => None,
    };
    machine
        .take_events()
        .into_iter()
        .filter_map(flush)
        .collect()
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
        PageTable::<slat_table::format::arm64::Arm64, _>::new(machine.clone(), FEATURES, options)
            .map(|_| ())
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
    let (machine, table) = table();
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

// Leaves.

#[test]
fn leaves_must_be_a_run_of_entries_of_one_table() {
    let (_machine, table) = table();
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
    let (_machine, table) = table();
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
    let (_machine, table) = table();
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
fn installing_outside_the_held_stripes_is_refused() {
    let (_machine, table) = table();
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
    let (_machine, table) = table();
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
    let (machine, table) = table();
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
    let (machine, table) = table();
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
    let (_machine, table) = table();
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
    let (_machine, table) = table();
    map(&table, page(0), HOST, PAGE, RAM);
    assert!(table.test_young(&page(0)) && table.age(&page(0)));
    assert!(!table.test_young(&page(0)) && !table.age(&page(0)));
    assert!(!table.translate(gpa(0)).unwrap().attributes.accessed);
    assert_eq!(install(&table, page(0), HOST, PAGE, RAM).extended, 1);
    assert!(table.test_young(&page(0)));
}

#[test]
fn another_address_or_memory_type_is_a_conflict() {
    let (_machine, table) = table();
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
    let (_machine, table) = table();
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
    let (_machine, table) = table();
    let block = range(2 * MIB, 2 * MIB);
    map(&table, page(3 * MIB), HOST + MIB, PAGE, RAM);
    assert_eq!(install(&table, block, HOST, MIB2, RAM), conflict(block));
    assert_eq!(look(&table, 3 * MIB), Some((HOST + MIB, PAGE)));
    unmap(&table, &block);
    map(&table, block, HOST, MIB2, RAM);
    assert_eq!(look(&table, 3 * MIB), Some((HOST + MIB, MIB2)));
}

// Taking away.

#[test]
fn a_partly_unmapped_block_is_dropped_whole() {
    for (level, bytes) in [(MIB2, 2 * MIB), (GIB1, GIB)] {
        let (machine, table) = table();
        let both = range(2 * bytes, 2 * bytes);
        map(&table, both, HOST, level, RAM);
        machine.record();
        unmap(&table, &page(3 * bytes - PAGE_SIZE));
        assert_eq!(look(&table, 2 * bytes), None);
        assert_eq!(
            look(&table, 3 * bytes),
            Some((HOST + bytes, level)),
            "the neighbour stays"
        );
        let gone = range(2 * bytes, bytes);
        assert_eq!(flushes(&machine), [TlbWork::leaves(gone, level)]);
    }
}

#[test]
fn a_partly_unmapped_block_is_split() {
    let (machine, table) = table();
    map(&table, range(GIB, GIB), HOST, GIB1, RAM);
    let hole = range(GIB + 2 * MIB - PAGE_SIZE, 2 * MIB + 2 * PAGE_SIZE);
    machine.record();
    unmap_exactly(&table, &hole);
    assert_eq!(look(&table, GIB + MIB), Some((HOST + MIB, PAGE)));
    assert_eq!(look(&table, GIB + 2 * MIB - 1), None);
    assert_eq!(look(&table, GIB + 3 * MIB), None);
    assert_eq!(look(&table, GIB + 4 * MIB), None);
    assert_eq!(
        look(&table, GIB + 4 * MIB + PAGE_SIZE),
        Some((HOST + 4 * MIB + PAGE_SIZE, PAGE))
    );
    assert_eq!(look(&table, GIB + 6 * MIB), Some((HOST + 6 * MIB, MIB2)));
    assert_eq!(
        table.count_leaves(&range(GIB, GIB))[..3],
        [511 + 511, 509, 0]
    );
    let works = flushes(&machine);
    assert_eq!(works[0], TlbWork::leaves(range(GIB, GIB), GIB1));
    assert_eq!(
        table.table_bytes(),
        8192 + 3 * 4096,
        "root, one for 2M blocks, two for pages"
    );
}

#[test]
fn splitting_keeps_every_attribute() {
    let odd = Attributes {
        permissions: Permissions {
            execute: Execute::Never,
            ..Permissions::READ
        },
        memory: MemoryType::NonCacheable,
        accessed: false,
        dirty: false,
        software: 0b0110,
    };
    for attributes in [RAM, ROM, DEVICE, odd] {
        let (_machine, table) = table();
        map(&table, range(0, GIB), HOST, GIB1, attributes);
        let mut cache = TableCache::new(&table);
        let part = page(4 * MIB);
        drop(table.restrict(&part).split(&part, PAGE, &mut cache));
        for (at, level) in [
            (0, MIB2),
            (4 * MIB, PAGE),
            (6 * MIB - 1, PAGE),
            (GIB - 1, MIB2),
        ] {
            let found = table.translate(gpa(at)).unwrap();
            assert_eq!((found.hpa, found.level), (hpa(HOST + at), level));
            assert_eq!(found.attributes, attributes);
        }
    }
}

#[test]
fn splitting_breaks_before_it_makes() {
    let (machine, table) = table();
    map(&table, range(0, 2 * MIB), HOST, MIB2, RAM);
    machine.record();
    let mut cache = TableCache::new(&table);
    drop(table.restrict(&page(0)).split(&page(0), PAGE, &mut cache));
    let events = machine.take_events();
    let linked =
        |event: &Event| matches!(event, Event::Written { old: 0, new, .. } if new & 3 == 3);
    let find = |what: &dyn Fn(&Event) -> bool| events.iter().position(what).unwrap();
    let broken = find(&|event| matches!(event, Event::Written { new: 0, .. }));
    let flushed = find(&|event| matches!(event, Event::Flushed(_)));
    let made = events.iter().rposition(linked).unwrap();
    assert!(broken < flushed && flushed < made);
    assert!(events[made..].contains(&Event::Published));
}

#[test]
fn a_split_does_not_bring_back_what_was_removed_meanwhile() {
    let machine = Machine::new();
    let table: &'static Table = Box::leak(Box::new(new_table(&machine, 40, 64)));
    let block = range(0, 2 * MIB);
    map(table, block, HOST, MIB2, RAM);
    // While the block is broken, a whole removal comes and goes. It finds nothing there.
    let once = AtomicBool::new(false);
    machine.on_flush(move |_| {
        if !once.swap(true, Ordering::SeqCst) {
            unmap(table, &page(0x3000));
        }
    });
    let mut cache = TableCache::new(table);
    drop(table.restrict(&block).split(&block, PAGE, &mut cache));
    machine.clear_flush_hook();
    assert_eq!(
        look(table, 0x3000),
        None,
        "the removal's owner relies on it"
    );
}

#[test]
fn a_split_does_not_bring_back_what_is_being_removed() {
    static RAISED: Mutex<Option<Raised>> = Mutex::new(None);
    let machine = Machine::new();
    let table: &'static Table = Box::leak(Box::new(new_table(&machine, 40, 64)));
    let block = range(0, 2 * MIB);
    map(table, block, HOST, MIB2, RAM);
    machine.on_flush(move |_| {
        let mut raised = RAISED.lock().unwrap();
        if raised.is_none() {
            *raised = Some(table.restrict(&page(0x3000)).leave_raised());
        }
    });
    let mut cache = TableCache::new(table);
    drop(table.restrict(&block).split(&block, PAGE, &mut cache));
    machine.clear_flush_hook();
    assert_eq!(look(table, 0x3000), None);
    table.lower(RAISED.lock().unwrap().take().unwrap());
}

#[test]
fn an_unmapping_that_splits_yields_to_another_removal() {
    let machine = Machine::new();
    let table: &'static Table = Box::leak(Box::new(new_table(&machine, 40, 64)));
    map(table, range(0, 2 * MIB), HOST, MIB2, RAM);
    let once = AtomicBool::new(false);
    machine.on_flush(move |_| {
        if !once.swap(true, Ordering::SeqCst) {
            unmap(table, &page(0x3000));
        }
    });
    unmap_exactly(table, &page(0x8000));
    machine.clear_flush_hook();
    assert_eq!(look(table, 0x3000), None);
    assert_eq!(look(table, 0x8000), None);
}

#[test]
fn a_covered_table_goes_whole_and_is_freed_after_the_flush() {
    let (machine, table) = table();
    for at in [GIB, GIB + 6 * MIB, GIB + 6 * MIB + 0x3000] {
        map(&table, page(at), HOST + at, PAGE, RAM);
    }
    machine.record();
    let mut restriction = table.restrict(&range(GIB, GIB));
    let flush = restriction.unmap(&range(GIB, GIB), PartialBlock::Drop);
    assert_eq!(table.tables(), 4, "the flush still owns them");
    assert!(!flush.is_empty() && !flush.work().only_leaves());
    drop(flush);
    let events = machine.take_events();
    let writes = events
        .iter()
        .filter(|event| matches!(event, Event::Written { .. }))
        .count();
    assert_eq!(writes, 1, "one entry, however much is below it");
    assert!(matches!(events[1], Event::Flushed(_)) && matches!(events[2], Event::Freed { .. }));
    assert_eq!(table.tables(), 1);
}

#[test]
fn unmapping_a_page_flushes_that_page() {
    let (machine, table) = table();
    map(&table, range(0, 4 * PAGE_SIZE), HOST, PAGE, RAM);
    machine.record();
    unmap(&table, &page(PAGE_SIZE));
    assert_eq!(flushes(&machine), [TlbWork::leaves(page(PAGE_SIZE), PAGE)]);
    assert_eq!(table.count_leaves(&range(0, 2 * MIB))[0], 3);
}

#[test]
fn unmapping_nothing_flushes_nothing() {
    let (machine, table) = table();
    map(&table, page(0), HOST, PAGE, RAM);
    machine.record();
    unmap(&table, &range(PAGE_SIZE, 0x4000));
    unmap(&table, &range(4 * GIB, GIB));
    assert_eq!(machine.take_events(), []);
}

#[test]
fn addresses_beyond_the_width_are_left_alone() {
    let (machine, table) = table();
    map(&table, page(0), HOST, PAGE, RAM);
    machine.record();
    for beyond in [page(1 << 40), range(1 << 40, 1 << 41), page(1 << 62)] {
        unmap(&table, &beyond);
        assert!(!table.age(&beyond));
        drop(table.restrict(&beyond).prune(&beyond));
        assert_eq!(table.count_leaves(&beyond), [0; 5]);
    }
    assert_eq!(table.translate(gpa(1 << 40)), None);
    assert_eq!(machine.take_events(), []);
    unmap(&table, &range(0, 1 << 62));
    assert_eq!(look(&table, 0), None);
}

// Walking from unaligned starts.

#[test]
fn blocks_after_an_unaligned_start_are_not_skipped() {
    // Nothing is mapped at the start, and the start is no multiple of the step there.
    for start in [0x5000, 2 * MIB - PAGE_SIZE, GIB - 2 * MIB, GIB - PAGE_SIZE] {
        let (_machine, table) = table();
        map(&table, range(GIB, 2 * MIB), HOST, MIB2, RAM);
        map(&table, page(GIB + 2 * MIB), HOST, PAGE, RAM);
        map(&table, range(2 * GIB, GIB), HOST, GIB1, RAM);
        let all = GpaRange::between(gpa(start), gpa(3 * GIB)).unwrap();
        let mut seen = Vec::new();
        table.for_each_leaf(&all, |block, level| seen.push((block.start().raw(), level)));
        assert_eq!(seen, [(GIB, MIB2), (GIB + 2 * MIB, PAGE), (2 * GIB, GIB1)]);
        assert!(table.age(&all) && !table.test_young(&range(0, 4 * GIB)));
        unmap(&table, &all);
        assert_eq!(table.count_leaves(&range(0, 4 * GIB)), [0; 5]);
    }
}

#[test]
fn a_block_is_not_skipped_because_the_range_ends_inside_it() {
    let (_machine, table) = table();
    map(&table, range(2 * GIB, GIB), HOST, GIB1, RAM);
    unmap(&table, &range(GIB + 0x7000, GIB));
    assert_eq!(look(&table, 3 * GIB - 1), None);
    map(&table, range(2 * GIB, GIB), HOST, GIB1, RAM);
    unmap_exactly(&table, &range(GIB + 0x7000, GIB));
    assert_eq!(look(&table, 2 * GIB + 0x6fff), None);
    assert_eq!(look(&table, 2 * GIB + 0x7000), Some((HOST + 0x7000, PAGE)));
}

// P6: flushes forced by others.

#[test]
fn another_removal_in_progress_forces_a_flush_of_the_span() {
    for start in [0x3000, 2 * MIB + 0x3000] {
        let (machine, table) = table();
        // Tables exist below 2 MiB and do not above: the entry found empty is of two sizes.
        map(&table, page(0), HOST, PAGE, RAM);
        let other = table.restrict(&page(start));
        machine.record();
        unmap(&table, &page(start));
        let span = GpaRange::block_around(gpa(start), 2 * MIB).unwrap();
        let works = flushes(&machine);
        assert_eq!(works.len(), 1);
        assert!(works[0].ranges().iter().any(|range| range.covers(&span)));
        assert!(
            !works[0].only_leaves(),
            "the other may have removed a table"
        );
        assert_eq!(works[0].smallest_leaf(), PAGE);
        drop(other);
        unmap(&table, &page(start));
        assert_eq!(
            flushes(&machine),
            [],
            "alone, nothing is found and nothing flushed"
        );
    }
}

#[test]
fn another_removal_anywhere_under_an_empty_entry_forces_a_flush() {
    let (machine, table) = table();
    let other = table.restrict(&page(GIB + 10 * MIB));
    machine.record();
    let all = range(GIB, GIB);
    unmap(&table, &all);
    let works = flushes(&machine);
    let place = page(GIB + 10 * MIB);
    assert!(works[0].ranges().iter().any(|range| range.covers(&place)));
    assert!(!works[0].only_leaves());
    drop(other);
}

#[test]
fn a_removal_does_not_count_itself() {
    let (machine, table) = table();
    machine.record();
    let mut restriction = table.restrict(&page(0));
    restriction.cover(&range(0, 4 * MIB));
    restriction.cover(&page(0));
    drop(restriction.unmap(&range(0, 2 * MIB), PartialBlock::Drop));
    drop(restriction);
    assert_eq!(flushes(&machine), []);
    let snapshot = table.snapshot(&range(0, GIB));
    assert!(
        table.hold(&range(0, GIB)).is_current(&snapshot),
        "every count is down again"
    );
}

#[test]
fn merged_flushes_are_carried_out_once() {
    let (machine, table) = table();
    map(&table, page(0), HOST, PAGE, RAM);
    map(&table, page(8 * MIB), HOST, PAGE, RAM);
    let (mut one, mut two) = (
        table.restrict(&page(0)),
        table.restrict(&range(8 * MIB, 2 * MIB)),
    );
    let mut flush = one.unmap(&page(0), PartialBlock::Drop);
    machine.record();
    flush.merge(two.unmap(&range(8 * MIB, 2 * MIB), PartialBlock::Drop));
    assert!(flushes(&machine).is_empty());
    assert_eq!(table.tables(), 4);
    drop(flush);
    assert_eq!(table.tables(), 3);
    let works = flushes(&machine);
    assert_eq!(works.len(), 1);
    assert_eq!(works[0].ranges(), [page(0), range(8 * MIB, 2 * MIB)]);
    assert!(!works[0].only_leaves());
}

// Pruning.

#[test]
fn pruning_frees_empty_tables_and_no_others() {
    let (machine, table) = table();
    map(&table, page(GIB), HOST, PAGE, RAM);
    map(&table, page(GIB + 2 * MIB), HOST, PAGE, RAM);
    unmap(&table, &page(GIB));
    assert_eq!(table.tables(), 4);
    drop(table.restrict(&page(GIB)).prune(&page(GIB)));
    assert_eq!(table.tables(), 3);
    assert_eq!(look(&table, GIB + 2 * MIB), Some((HOST, PAGE)));
    unmap(&table, &page(GIB + 2 * MIB));
    machine.record();
    drop(
        table
            .restrict(&page(GIB + 2 * MIB))
            .prune(&page(GIB + 2 * MIB)),
    );
    assert_eq!(table.tables(), 1);
    assert!(
        flushes(&machine).iter().all(|work| !work.only_leaves()),
        "walk caches hold tables"
    );
}

// TLB work.

#[test]
fn work_merges_ranges_that_touch() {
    let mut work = TlbWork::default();
    assert!(work.is_empty() && work.only_leaves());
    work.merge(&TlbWork::leaves(range(2 * MIB, 2 * MIB), MIB2));
    work.merge(&TlbWork::leaves(range(4 * MIB, 2 * MIB), MIB2));
    assert_eq!(work, TlbWork::leaves(range(2 * MIB, 4 * MIB), MIB2));
    work.merge(&TlbWork::leaves(page(0), PAGE));
    assert_eq!(work.ranges(), [range(2 * MIB, 4 * MIB), page(0)]);
    assert_eq!(work.smallest_leaf(), PAGE);
    assert!(work.only_leaves());
    work.merge(&TlbWork::everything_in(page(PAGE_SIZE)));
    assert!(!work.only_leaves());
    assert_eq!(
        work.ranges(),
        [range(2 * MIB, 4 * MIB), range(0, 2 * PAGE_SIZE)]
    );
}

#[test]
fn work_with_too_many_ranges_forgets_more_not_less() {
    let mut work = TlbWork::default();
    let pages: Vec<_> = (0..10).map(|number| page(number * 16 * MIB)).collect();
    for page in &pages {
        work.merge(&TlbWork::leaves(*page, PAGE));
    }
    for page in &pages {
        assert!(work.ranges().iter().any(|range| range.covers(page)));
    }
}
