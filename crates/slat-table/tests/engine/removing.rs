//! Taking translations away: blocks in part and whole, splitting, unaligned starts.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, Mutex};
use std::thread;

use slat_table::address::{GpaRange, PAGE_SIZE};
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::Format;
use slat_table::geometry::Level;
use slat_table::platform::TlbWork;
use slat_table::restriction::PartialBlock;
use slat_table::simulated::Event;

use crate::operations::kinds;
use crate::setup::{Bench, PAGE, RAM, gpa, hpa, range, unmap};

// Taking away.

fn a_partly_unmapped_block_is_dropped_whole<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    for (level, bytes) in bench.blocks() {
        let both = range(2 * bytes, 2 * bytes);
        bench.map(both, bench.host, level, RAM);
        bench.record();
        bench.unmap(&bench.page(3 * bytes - bench.page));
        assert_eq!(bench.look(2 * bytes), None);
        assert_eq!(
            bench.look(3 * bytes),
            Some((bench.host + bytes, level)),
            "the neighbour stays"
        );
        let gone = range(2 * bytes, bytes);
        assert_eq!(bench.flushes(), [TlbWork::leaves(gone, level)]);
        bench.unmap(&both);
    }
}

fn a_partly_unmapped_block_is_split<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let (host, page) = (bench.host, bench.page);
    for (level, bytes) in bench.blocks() {
        let block = range(bytes, bytes);
        bench.map(block, host, level, RAM);
        let before = bench.table.tables();
        // The block's second piece, and a page before and behind.
        let below = level.down().unwrap();
        let piece = bench.table.geometry().entry_bytes(below);
        let (start, hole) = (piece.saturating_sub(page), piece + 2 * page);
        bench.record();
        bench.unmap_exactly(&range(bytes + start, hole));
        let end = start + hole;
        for gone in [start, start + page, end - page, end - 1] {
            assert_eq!(bench.look(bytes + gone), None);
        }
        assert_eq!(bench.look(bytes + end), Some((host + end, PAGE)));
        if start != 0 {
            assert_eq!(
                bench.look(bytes + start - 1),
                Some((host + start - 1, PAGE))
            );
        }
        let last = (host + bytes - 1, below);
        assert_eq!(bench.look(2 * bytes - 1), Some(last));
        let left: u64 = {
            let leaves = bench.table.count_leaves(&block);
            let sizes = bench.table.geometry().by_size(leaves);
            sizes.map(|(size, leaves)| size * leaves).sum()
        };
        assert_eq!(left, bytes - hole);
        let flushed = bench.flushes();
        let covers = |work: &TlbWork| work.ranges().iter().any(|range| range.covers(&block));
        assert!(flushed.iter().any(covers));
        // One in place of the block, and at either edge of the hole one for each level below.
        let tables = 1 + 2 * (level.index() as u64 - 1);
        assert_eq!(bench.table.tables() - before, tables);
        bench.unmap(&block);
    }
}

fn unmapping_part_of_a_page_costs_what_the_page_costs<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let geometry = bench.table.geometry();
    let runs = geometry.leaf_sizes().filter(|(level, _)| *level == PAGE);
    let blocks = bench.blocks();
    let sizes = runs.chain(blocks).filter(|(_, bytes)| *bytes > bench.page);
    for (level, bytes) in sizes.collect::<Vec<_>>() {
        let whole = range(bytes, bytes);
        let cost = |gone: &GpaRange| {
            bench.map(whole, bench.host, level, RAM);
            bench.record();
            bench.unmap_exactly(gone);
            assert_eq!(bench.look(bytes), None);
            assert_ne!(bench.look(bytes + bench.page), None);
            let flushes = bench.flushes();
            bench.unmap(&whole);
            flushes
        };
        let page = cost(&bench.page(bytes));
        assert_eq!(cost(&range(bytes, PAGE_SIZE)), page);
        assert_eq!(
            cost(&range(bytes + bench.page - PAGE_SIZE, PAGE_SIZE)),
            page
        );
    }
}

fn splitting_keeps_every_attribute<F: Format>(features: F::Features, bits: u8) {
    let permissions = Permissions {
        execute: Execute::Never,
        ..Permissions::READ
    };
    let odd = Attributes {
        accessed: false,
        software: 1,
        ..Attributes::new(permissions, MemoryType::NonCacheable)
    };
    let mut kinds = kinds::<F>(&features);
    let blocks = {
        let bench = Bench::<F>::new(features, bits);
        kinds.extend(bench.first_of(&[odd]));
        bench.blocks()
    };
    for (level, bytes) in blocks {
        let bench = Bench::<F>::new(features, bits);
        for attributes in &kinds {
            let block = range(0, bytes);
            bench.map(block, bench.host, level, *attributes);
            let at = bytes / 2;
            bench.split(&bench.page(at));
            let smaller = level.down().unwrap();
            let last = if level == Level::new(1) {
                PAGE
            } else {
                smaller
            };
            for (at, level) in [(at, PAGE), (at + bench.page, PAGE), (bytes - 1, last)] {
                let found = bench.table.translate(gpa(at)).unwrap();
                assert_eq!((found.hpa, found.level), (hpa(bench.host + at), level));
                assert_eq!(found.attributes, *attributes);
            }
            bench.unmap(&block);
        }
    }
}

/// A table with what can be taken apart mapped at its start: the smallest block there is, or a run
/// of pages.
struct Whole<F: Format> {
    bench: Bench<F>,
    range: GpaRange,
    /// It is taken out, and everyone forgets it, before its pieces stand in its place.
    breaks: bool,
}

fn wholes<F: Format>(features: F::Features, bits: u8) -> Vec<Whole<F>> {
    let sizes = Bench::<F>::new(features, bits);
    let block = sizes.blocks().first().copied();
    let run = sizes
        .table
        .geometry()
        .run_bytes(PAGE)
        .map(|run| (PAGE, run));
    let map = |(level, bytes)| {
        let bench = Bench::<F>::new(features, bits);
        let range = range(0, bytes);
        bench.map(range, bench.host, level, RAM);
        let breaks = level == PAGE || F::rules(&features).break_before_make;
        Whole {
            bench,
            range,
            breaks,
        }
    };
    block.into_iter().chain(run).map(map).collect()
}

/// Has the fourth page removed in the middle of the next flush.
fn remove_during_flush<F: Format>(bench: &Bench<F>) {
    let (inside, gone) = (Arc::clone(&bench.table), bench.page(3 * bench.page));
    let once = AtomicBool::new(false);
    bench.machine.on_flush(move |_| {
        if !once.swap(true, Ordering::SeqCst) {
            unmap(&inside, &gone);
        }
    });
}

fn a_split_does_not_bring_back_what_was_removed_meanwhile<F: Format>(
    features: F::Features,
    bits: u8,
) {
    for Whole { bench, range, .. } in wholes::<F>(features, bits) {
        // While it is broken, a whole removal comes and goes. It finds nothing there.
        remove_during_flush(&bench);
        bench.split(&range);
        bench.machine.clear_flush_hook();
        assert_eq!(
            bench.look(3 * bench.page),
            None,
            "the removal's owner relies on it"
        );
    }
}

fn a_split_does_not_bring_back_what_is_being_removed<F: Format>(features: F::Features, bits: u8) {
    for whole in wholes::<F>(features, bits) {
        let Whole {
            bench,
            range,
            breaks,
        } = whole;
        let marks = Arc::new(Mutex::new(None));
        let (raised, inside) = (Arc::clone(&marks), Arc::clone(&bench.table));
        let going = bench.page(3 * bench.page);
        bench.machine.on_flush(move |_| {
            let mut raised = raised.lock().unwrap();
            if raised.is_none() {
                *raised = Some(inside.restrict(&going).leave_raised());
            }
        });
        bench.split(&range);
        bench.machine.clear_flush_hook();
        // Where a block is replaced at once, that was over before the flush.
        assert_eq!(bench.look(3 * bench.page).is_none(), breaks);
        let raised = marks.lock().unwrap().take();
        assert!(bench.table.lower(raised.unwrap()));
    }
}

fn an_unmapping_that_splits_yields_to_another_removal<F: Format>(features: F::Features, bits: u8) {
    for Whole { bench, .. } in wholes::<F>(features, bits) {
        remove_during_flush(&bench);
        bench.unmap_exactly(&bench.page(5 * bench.page));
        bench.machine.clear_flush_hook();
        assert_eq!(bench.look(3 * bench.page), None);
        assert_eq!(bench.look(5 * bench.page), None);
    }
}

fn a_covered_table_goes_whole_and_is_freed_after_the_flush<F: Format>(
    features: F::Features,
    bits: u8,
) {
    let bench = Bench::<F>::new(features, bits);
    let (table, upper, span) = (&bench.table, bench.upper, bench.span);
    for at in [upper, upper + 3 * span, upper + 3 * span + 3 * bench.page] {
        bench.map(bench.page(at), bench.host + at, PAGE, RAM);
    }
    bench.record();
    // The table over the two tables of pages goes in one write, however much is below it; where
    // the root is right above them, each goes by itself.
    let (writes, freed) = if bench.has_upper_tables() {
        (1, 3)
    } else {
        (2, 2)
    };
    let tables = table.tables();
    let all = range(upper, upper);
    let mut restriction = table.restrict(&all);
    let flush = restriction.unmap(&all, PartialBlock::Drop);
    assert_eq!(table.tables(), tables, "the flush still owns them");
    assert!(!flush.is_empty() && !flush.work().only_leaves());
    drop(flush);
    let kinds = bench
        .machine
        .take_events()
        .into_iter()
        .map(|event| match event {
            Event::Written { .. } => 'w',
            Event::Flushed(_) => 'f',
            Event::Freed { .. } => 'd',
            other => panic!("{other:?}"),
        });
    let expected = "w".repeat(writes) + "f" + &"d".repeat(freed);
    assert_eq!(kinds.collect::<String>(), expected);
    assert_eq!(table.tables(), tables - freed as u64);
}

fn unmapping_a_page_flushes_that_page<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    bench.map(bench.pages(4), bench.host, PAGE, RAM);
    bench.record();
    let second = bench.page(bench.page);
    bench.unmap(&second);
    assert_eq!(bench.flushes(), [TlbWork::leaves(second, PAGE)]);
    assert_eq!(bench.table.count_leaves(&range(0, bench.span))[0], 3);
}

fn unmapping_nothing_flushes_nothing<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    bench.map(bench.page(0), bench.host, PAGE, RAM);
    bench.record();
    bench.unmap(&range(bench.page, 4 * bench.page));
    bench.unmap(&range(bench.upper, bench.upper));
    assert_eq!(bench.machine.take_events(), []);
}

fn addresses_beyond_the_width_are_left_alone<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    bench.map(bench.page(0), bench.host, PAGE, RAM);
    bench.record();
    for beyond in [bench.page(bench.end), bench.page(1 << 63)] {
        bench.unmap(&beyond);
        assert!(!bench.table.age(&beyond));
        drop(bench.table.restrict(&beyond).prune(&beyond));
        assert_eq!(bench.table.count_leaves(&beyond), [0; 5]);
    }
    assert_eq!(bench.table.translate(gpa(bench.end)), None);
    assert_eq!(bench.machine.take_events(), []);
    bench.unmap(&range(0, (1 << 63) + bench.page));
    assert_eq!(bench.look(0), None);
}

// Walking from unaligned starts.

fn blocks_after_an_unaligned_start_are_not_skipped<F: Format>(features: F::Features, bits: u8) {
    let Bench {
        page, span, upper, ..
    } = Bench::<F>::new(features, bits);
    // Nothing is mapped at the start, and the start is no multiple of the step there.
    for start in [5 * page, span - page, upper - span, upper - page] {
        let bench = Bench::<F>::new(features, bits);
        let leaf_of = |bytes| {
            let blocks = bench.blocks();
            let found = blocks.into_iter().find(|(_, size)| *size == bytes);
            found.unwrap_or((PAGE, page))
        };
        let leaves = [
            (upper, leaf_of(span)),
            (upper + span, (PAGE, page)),
            (2 * upper, leaf_of(upper)),
        ];
        for (at, (level, bytes)) in leaves {
            bench.map(range(at, bytes), bench.host, level, RAM);
        }
        let all = GpaRange::between(gpa(start), gpa(3 * upper)).unwrap();
        let everything = range(0, 4 * upper);
        let mut seen = Vec::new();
        let see = |block: GpaRange, level| seen.push((block.start().raw(), level));
        bench.table.for_each_leaf(&all, see);
        assert_eq!(seen, leaves.map(|(at, (level, _))| (at, level)));
        assert!(bench.table.age(&all));
        assert_eq!(bench.table.test_young(&everything), !bench.ages());
        bench.unmap(&all);
        assert_eq!(bench.table.count_leaves(&everything), [0; 5]);
    }
}

fn a_block_is_not_skipped_because_the_range_ends_inside_it<F: Format>(
    features: F::Features,
    bits: u8,
) {
    let bench = Bench::<F>::new(features, bits);
    let (host, seven) = (bench.host, 7 * bench.page);
    for (level, bytes) in bench.blocks() {
        let block = range(2 * bytes, bytes);
        let part = range(bytes + seven, bytes);
        bench.map(block, host, level, RAM);
        bench.unmap(&part);
        assert_eq!(bench.look(3 * bytes - 1), None);
        bench.map(block, host, level, RAM);
        bench.unmap_exactly(&part);
        assert_eq!(bench.look(2 * bytes + seven - 1), None);
        let behind = Some((host + seven, PAGE));
        assert_eq!(bench.look(2 * bytes + seven), behind);
        bench.unmap(&block);
    }
}

// P5: a removal that turns out larger than its range.

fn a_block_that_goes_whole_is_marked_whole<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let table = &bench.table;
    for (level, bytes) in bench.wide_blocks() {
        bench.map(range(bytes, bytes), bench.host, level, RAM);
        let here = bench.page(bytes);
        let elsewhere = bench.page(2 * bytes - bench.page);
        let old = table.snapshot(&elsewhere);
        let mut restriction = table.restrict(&here);
        assert!(
            table.hold(&elsewhere).is_current(&old),
            "not known to be larger yet"
        );
        let flush = restriction.unmap(&here, PartialBlock::Drop);
        let during = table.snapshot(&elsewhere);
        assert!(
            !table.hold(&elsewhere).is_current(&during),
            "the flush is still to come"
        );
        drop(flush);
        assert!(
            !table.hold(&elsewhere).is_current(&during),
            "the removal has not ended"
        );
        drop(restriction);
        assert!(
            !table.hold(&elsewhere).is_current(&old),
            "who asked the host before asks again"
        );
    }
}

fn an_unmapping_marks_what_it_was_not_begun_for<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let (table, page) = (&bench.table, bench.page(0));
    let snapshot = table.snapshot(&page);
    let mut restriction = table.restrict_nothing();
    assert!(table.hold(&page).is_current(&snapshot));
    drop(restriction.unmap(&page, PartialBlock::Drop));
    assert!(!table.hold(&page).is_current(&snapshot));
    drop(restriction);
    assert!(!table.hold(&page).is_current(&snapshot));
}

/// Maps `mapped`, and asserts that its removal, of `gone`, waits for whoever holds the stripe of
/// `held`.
fn waits_for<F: Format>(
    bench: &Bench<F>,
    level: Level,
    mapped: GpaRange,
    gone: &GpaRange,
    held: u64,
) {
    bench.map(mapped, bench.host, level, RAM);
    let done = AtomicBool::new(false);
    // The stripes are marked already, so what the removal waits for is to hold them.
    let mut restriction = bench.table.restrict(&range(bench.upper, bench.upper));
    restriction.cover(&mapped);
    thread::scope(|scope| {
        let holder = bench.table.hold(&bench.page(held));
        scope.spawn(|| {
            drop(restriction.unmap(gone, PartialBlock::Drop));
            done.store(true, Ordering::SeqCst);
        });
        thread::sleep(Duration::from_millis(10));
        let early = done.load(Ordering::SeqCst);
        assert!(!early, "{level:?} went under a held stripe");
        drop(holder);
    });
    assert!(done.load(Ordering::SeqCst));
    assert_eq!(bench.look(mapped.start().raw()), None);
}

fn nothing_above_vanishes_while_one_stripe_below_is_held<F: Format>(
    features: F::Features,
    bits: u8,
) {
    let bench = Bench::<F>::new(features, bits);
    let (span, upper) = (bench.span, bench.upper);
    if bench.has_upper_tables() {
        let mapped = bench.page(upper + 4 * span);
        let all = range(upper, upper);
        let held = upper + upper / 2 + 2 * span;
        waits_for(&bench, PAGE, mapped, &all, held);
    }
    if let Some(&(level, bytes)) = bench.wide_blocks().first() {
        let first = bench.page(bytes);
        let held = bytes + bytes / 2 + 2 * span;
        waits_for(&bench, level, range(bytes, bytes), &first, held);
    }
}

crate::setup::for_every_format! {
    a_partly_unmapped_block_is_dropped_whole,
    a_partly_unmapped_block_is_split,
    unmapping_part_of_a_page_costs_what_the_page_costs,
    splitting_keeps_every_attribute,
    a_split_does_not_bring_back_what_was_removed_meanwhile,
    a_split_does_not_bring_back_what_is_being_removed,
    an_unmapping_that_splits_yields_to_another_removal,
    a_covered_table_goes_whole_and_is_freed_after_the_flush,
    unmapping_a_page_flushes_that_page,
    unmapping_nothing_flushes_nothing,
    addresses_beyond_the_width_are_left_alone,
    blocks_after_an_unaligned_start_are_not_skipped,
    a_block_is_not_skipped_because_the_range_ends_inside_it,
    a_block_that_goes_whole_is_marked_whole,
    an_unmapping_marks_what_it_was_not_begun_for,
    nothing_above_vanishes_while_one_stripe_below_is_held,
}
