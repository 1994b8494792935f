//! What must be forgotten: flushes forced by others (P6), merging, pruning, TLB work.

use slat_table::address::{GpaRange, PAGE_SIZE};
use slat_table::platform::TlbWork;
use slat_table::restriction::PartialBlock;

use crate::setup::{
    GIB, HOST, MIB, MIB2, PAGE, RAM, flushes, gpa, look, map, page, range, small_table, unmap,
};

#[test]
fn a_flush_knows_whether_there_is_anything_to_do() {
    let (_machine, table) = small_table();
    let nothing = |range: &GpaRange| {
        table
            .restrict(range)
            .unmap(range, PartialBlock::Drop)
            .is_empty()
    };
    assert!(nothing(&page(0)));
    assert_eq!(table.flushes(), 0);
    map(&table, page(0), HOST, PAGE, RAM);
    assert!(!nothing(&page(0)), "a leaf is to be forgotten");
    assert!(!nothing(&range(0, 2 * MIB)), "a table is to be freed");
    assert_eq!(table.flushes(), 2, "each was carried out");
}

// P6: flushes forced by others.

#[test]
fn another_removal_in_progress_forces_a_flush_of_the_span() {
    for start in [0x3000, 2 * MIB + 0x3000] {
        let (machine, table) = small_table();
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
    let (machine, table) = small_table();
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
    let (machine, table) = small_table();
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
fn a_postponed_flush_is_carried_out_with_the_next() {
    let (machine, table) = small_table();
    map(&table, page(0), HOST, PAGE, RAM);
    map(&table, page(8 * MIB), HOST, PAGE, RAM);
    let mut restriction = table.restrict(&page(0));
    machine.record();
    restriction.unmap(&page(0), PartialBlock::Drop).postpone();
    let flush = restriction.unmap(&range(8 * MIB, 2 * MIB), PartialBlock::Drop);
    assert!(flushes(&machine).is_empty());
    assert_eq!(table.tables(), 4);
    drop(flush);
    assert_eq!(table.tables(), 3);
    let works = flushes(&machine);
    assert_eq!(works.len(), 1);
    assert_eq!(works[0].ranges(), [page(0), range(8 * MIB, 2 * MIB)]);
    assert!(!works[0].only_leaves());
}

#[test]
fn a_forgotten_flush_is_carried_out_before_the_marks_are_lowered() {
    for leaves_marks in [false, true] {
        let (machine, table) = small_table();
        map(&table, page(0), HOST, PAGE, RAM);
        let mut restriction = table.restrict(&page(0));
        machine.record();
        core::mem::forget(restriction.unmap(&page(0), PartialBlock::Drop));
        assert!(flushes(&machine).is_empty());
        if leaves_marks {
            let raised = restriction.leave_raised();
            assert_eq!(flushes(&machine).len(), 1);
            table.lower(raised);
        } else {
            drop(restriction);
            assert_eq!(flushes(&machine).len(), 1);
        }
    }
}

// Pruning.

#[test]
fn pruning_frees_empty_tables_and_no_others() {
    let (machine, table) = small_table();
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

#[test]
fn pruning_looks_at_both_ends_of_its_range() {
    let (_machine, table) = small_table();
    let (first, last) = (page(GIB), page(GIB + 2 * MIB));
    for kept in [first, last, page(GIB + 4 * MIB)] {
        map(&table, kept, HOST, PAGE, RAM);
    }
    unmap(&table, &first);
    unmap(&table, &last);
    let tables = table.tables();
    // From inside the first table's span to exactly where the last one's ends.
    let ends = range(GIB + PAGE_SIZE, 4 * MIB - PAGE_SIZE);
    drop(table.restrict(&ends).prune(&ends));
    assert_eq!(table.tables(), tables - 2);
    assert_eq!(look(&table, GIB + 4 * MIB), Some((HOST, PAGE)));
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
