//! What must be forgotten: flushes forced by others (P6), merging, pruning, TLB work.

use slat_table::address::{GpaRange, PAGE_SIZE};
use slat_table::format::Format;
use slat_table::geometry::Level;
use slat_table::platform::TlbWork;
use slat_table::restriction::PartialBlock;

use crate::setup::{Bench, PAGE, RAM, range};

fn a_flush_knows_whether_there_is_anything_to_do<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let nothing = |range: &GpaRange| {
        bench
            .table
            .restrict(range)
            .unmap(range, PartialBlock::Drop)
            .is_empty()
    };
    assert!(nothing(&bench.page(0)));
    assert_eq!(bench.table.flushes(), 0);
    bench.map(bench.page(0), bench.host, PAGE, RAM);
    assert!(!nothing(&bench.page(0)), "a leaf is to be forgotten");
    assert!(!nothing(&range(0, bench.span)), "a table is to be freed");
    assert_eq!(bench.table.flushes(), 2, "each was carried out");
}

// P6: flushes forced by others.

fn another_removal_in_progress_forces_a_flush_of_the_span<F: Format>(
    features: F::Features,
    bits: u8,
) {
    for span in [0, 1] {
        let bench = Bench::<F>::new(features, bits);
        let here = bench.page(span * bench.span + 3 * bench.page);
        // There is a table of pages for the first span and none for the second: the entry found
        // empty is of two sizes.
        bench.map(bench.page(0), bench.host, PAGE, RAM);
        let other = bench.table.restrict(&here);
        bench.record();
        bench.unmap(&here);
        let span = GpaRange::block_around(here.start(), bench.span).unwrap();
        let works = bench.flushes();
        assert_eq!(works.len(), 1);
        assert!(works[0].ranges().iter().any(|range| range.covers(&span)));
        assert!(
            !works[0].only_leaves(),
            "the other may have removed a table"
        );
        assert_eq!(works[0].smallest_leaf(), PAGE);
        drop(other);
        bench.unmap(&here);
        assert_eq!(
            bench.flushes(),
            [],
            "alone, nothing is found and nothing flushed"
        );
    }
}

fn another_removal_anywhere_under_an_empty_entry_forces_a_flush<F: Format>(
    features: F::Features,
    bits: u8,
) {
    let bench = Bench::<F>::new(features, bits);
    let place = bench.page(bench.upper + 5 * bench.span);
    let other = bench.table.restrict(&place);
    bench.record();
    bench.unmap(&range(bench.upper, bench.upper));
    let works = bench.flushes();
    assert!(works[0].ranges().iter().any(|range| range.covers(&place)));
    assert!(!works[0].only_leaves());
    drop(other);
}

fn a_removal_does_not_count_itself<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let table = &bench.table;
    bench.record();
    let mut restriction = table.restrict(&bench.page(0));
    restriction.cover(&range(0, 2 * bench.span));
    restriction.cover(&bench.page(0));
    drop(restriction.unmap(&range(0, bench.span), PartialBlock::Drop));
    drop(restriction);
    assert_eq!(bench.flushes(), []);
    let all = range(0, bench.upper);
    let snapshot = table.snapshot(&all);
    assert!(
        table.hold(&all).is_current(&snapshot),
        "every count is down again"
    );
}

fn a_postponed_flush_is_carried_out_with_the_next<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let table = &bench.table;
    let page = bench.page(0);
    let span = range(4 * bench.span, bench.span);
    bench.map(page, bench.host, PAGE, RAM);
    bench.map(bench.page(span.start().raw()), bench.host, PAGE, RAM);
    let tables = table.tables();
    let mut restriction = table.restrict(&page);
    bench.record();
    restriction.unmap(&page, PartialBlock::Drop).postpone();
    let flush = restriction.unmap(&span, PartialBlock::Drop);
    assert!(bench.flushes().is_empty());
    assert_eq!(table.tables(), tables);
    drop(flush);
    assert_eq!(table.tables(), tables - 1);
    let works = bench.flushes();
    assert_eq!(works.len(), 1);
    assert_eq!(works[0].ranges(), [page, span]);
    assert!(!works[0].only_leaves());
}

fn a_forgotten_flush_is_carried_out_before_the_marks_are_lowered<F: Format>(
    features: F::Features,
    bits: u8,
) {
    for leaves_marks in [false, true] {
        let bench = Bench::<F>::new(features, bits);
        let page = bench.page(0);
        bench.map(page, bench.host, PAGE, RAM);
        let mut restriction = bench.table.restrict(&page);
        bench.record();
        core::mem::forget(restriction.unmap(&page, PartialBlock::Drop));
        assert!(bench.flushes().is_empty());
        if leaves_marks {
            let raised = restriction.leave_raised();
            assert_eq!(bench.flushes().len(), 1);
            bench.table.lower(raised);
        } else {
            drop(restriction);
            assert_eq!(bench.flushes().len(), 1);
        }
    }
}

// Pruning.

fn pruning_frees_empty_tables_and_no_others<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let table = &bench.table;
    let [first, second] = [0, bench.span].map(|span| bench.page(bench.upper + span));
    bench.map(first, bench.host, PAGE, RAM);
    bench.map(second, bench.host, PAGE, RAM);
    bench.unmap(&first);
    let tables = table.tables();
    drop(table.restrict(&first).prune(&first));
    assert_eq!(table.tables(), tables - 1);
    let kept = Some((bench.host, PAGE));
    assert_eq!(bench.look(second.start().raw()), kept);
    bench.unmap(&second);
    bench.record();
    drop(table.restrict(&second).prune(&second));
    assert_eq!(table.tables(), 1);
    let works = bench.flushes();
    assert!(!works.is_empty());
    assert!(
        works.iter().all(|work| !work.only_leaves()),
        "walk caches hold tables"
    );
}

fn pruning_looks_at_both_ends_of_its_range<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let (table, page, span) = (&bench.table, bench.page, bench.span);
    let pages = [0, 1, 2].map(|index| bench.page(bench.upper + index * span));
    for kept in pages {
        bench.map(kept, bench.host, PAGE, RAM);
    }
    let [first, last, beyond] = pages;
    bench.unmap(&first);
    bench.unmap(&last);
    let tables = table.tables();
    // From inside the first table's span to exactly where the last one's ends.
    let ends = range(bench.upper + page, 2 * span - page);
    drop(table.restrict(&ends).prune(&ends));
    assert_eq!(table.tables(), tables - 2);
    let kept = Some((bench.host, PAGE));
    assert_eq!(bench.look(beyond.start().raw()), kept);
}

crate::setup::for_every_format! {
    a_flush_knows_whether_there_is_anything_to_do,
    another_removal_in_progress_forces_a_flush_of_the_span,
    another_removal_anywhere_under_an_empty_entry_forces_a_flush,
    a_removal_does_not_count_itself,
    a_postponed_flush_is_carried_out_with_the_next,
    a_forgotten_flush_is_carried_out_before_the_marks_are_lowered,
    pruning_frees_empty_tables_and_no_others,
    pruning_looks_at_both_ends_of_its_range,
}

// TLB work, which knows of no format.

#[test]
fn work_merges_ranges_that_touch() {
    const BLOCK: u64 = 2 << 20;
    let block = Level::new(1);
    let page = |start| range(start, PAGE_SIZE);
    let mut work = TlbWork::default();
    assert!(work.is_empty() && work.only_leaves());
    work.merge(&TlbWork::leaves(range(BLOCK, BLOCK), block));
    work.merge(&TlbWork::leaves(range(2 * BLOCK, BLOCK), block));
    assert_eq!(work, TlbWork::leaves(range(BLOCK, 2 * BLOCK), block));
    work.merge(&TlbWork::leaves(page(0), PAGE));
    assert_eq!(work.ranges(), [range(BLOCK, 2 * BLOCK), page(0)]);
    assert_eq!(work.smallest_leaf(), PAGE);
    assert!(work.only_leaves());
    work.merge(&TlbWork::everything_in(page(PAGE_SIZE)));
    assert!(!work.only_leaves());
    assert_eq!(
        work.ranges(),
        [range(BLOCK, 2 * BLOCK), range(0, 2 * PAGE_SIZE)]
    );
}

#[test]
fn work_with_too_many_ranges_forgets_more_not_less() {
    let mut work = TlbWork::default();
    let pages: Vec<_> = (0..10)
        .map(|number| range(number << 24, PAGE_SIZE))
        .collect();
    for page in &pages {
        work.merge(&TlbWork::leaves(*page, PAGE));
    }
    for page in &pages {
        assert!(work.ranges().iter().any(|range| range.covers(page)));
    }
}
