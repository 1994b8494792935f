//! Taking translations away: blocks in part and whole, splitting, unaligned starts.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, Mutex};
use std::thread;

use slat_table::address::{GpaRange, PAGE_SIZE};
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::cache::TableCache;
use slat_table::platform::TlbWork;
use slat_table::restriction::{PartialBlock, Raised};
use slat_table::simulated::Event;

use crate::setup::{
    DEVICE, GIB, GIB1, HOST, MIB, MIB2, Machine, PAGE, RAM, ROM, flushes, gpa, hpa, look, map,
    new_table, page, range, small_table, unmap, unmap_exactly,
};

// Taking away.

#[test]
fn a_partly_unmapped_block_is_dropped_whole() {
    for (level, bytes) in [(MIB2, 2 * MIB), (GIB1, GIB)] {
        let (machine, table) = small_table();
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
    let (machine, table) = small_table();
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
        contiguous: false,
    };
    for attributes in [RAM, ROM, DEVICE, odd] {
        let (_machine, table) = small_table();
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
    let (machine, table) = small_table();
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
    let table = Arc::new(new_table(&machine, 40, 64));
    let inside = Arc::clone(&table);
    let block = range(0, 2 * MIB);
    map(&table, block, HOST, MIB2, RAM);
    // While the block is broken, a whole removal comes and goes. It finds nothing there.
    let once = AtomicBool::new(false);
    machine.on_flush(move |_| {
        if !once.swap(true, Ordering::SeqCst) {
            unmap(&inside, &page(0x3000));
        }
    });
    let mut cache = TableCache::new(&table);
    drop(table.restrict(&block).split(&block, PAGE, &mut cache));
    machine.clear_flush_hook();
    assert_eq!(
        look(&table, 0x3000),
        None,
        "the removal's owner relies on it"
    );
}

#[test]
fn a_split_does_not_bring_back_what_is_being_removed() {
    static RAISED: Mutex<Option<Raised>> = Mutex::new(None);
    let machine = Machine::new();
    let table = Arc::new(new_table(&machine, 40, 64));
    let inside = Arc::clone(&table);
    let block = range(0, 2 * MIB);
    map(&table, block, HOST, MIB2, RAM);
    machine.on_flush(move |_| {
        let mut raised = RAISED.lock().unwrap();
        if raised.is_none() {
            *raised = Some(inside.restrict(&page(0x3000)).leave_raised());
        }
    });
    let mut cache = TableCache::new(&table);
    drop(table.restrict(&block).split(&block, PAGE, &mut cache));
    machine.clear_flush_hook();
    assert_eq!(look(&table, 0x3000), None);
    table.lower(RAISED.lock().unwrap().take().unwrap());
}

#[test]
fn an_unmapping_that_splits_yields_to_another_removal() {
    let machine = Machine::new();
    let table = Arc::new(new_table(&machine, 40, 64));
    let inside = Arc::clone(&table);
    map(&table, range(0, 2 * MIB), HOST, MIB2, RAM);
    let once = AtomicBool::new(false);
    machine.on_flush(move |_| {
        if !once.swap(true, Ordering::SeqCst) {
            unmap(&inside, &page(0x3000));
        }
    });
    unmap_exactly(&table, &page(0x8000));
    machine.clear_flush_hook();
    assert_eq!(look(&table, 0x3000), None);
    assert_eq!(look(&table, 0x8000), None);
}

#[test]
fn a_covered_table_goes_whole_and_is_freed_after_the_flush() {
    let (machine, table) = small_table();
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
    let (machine, table) = small_table();
    map(&table, range(0, 4 * PAGE_SIZE), HOST, PAGE, RAM);
    machine.record();
    unmap(&table, &page(PAGE_SIZE));
    assert_eq!(flushes(&machine), [TlbWork::leaves(page(PAGE_SIZE), PAGE)]);
    assert_eq!(table.count_leaves(&range(0, 2 * MIB))[0], 3);
}

#[test]
fn unmapping_nothing_flushes_nothing() {
    let (machine, table) = small_table();
    map(&table, page(0), HOST, PAGE, RAM);
    machine.record();
    unmap(&table, &range(PAGE_SIZE, 0x4000));
    unmap(&table, &range(4 * GIB, GIB));
    assert_eq!(machine.take_events(), []);
}

#[test]
fn addresses_beyond_the_width_are_left_alone() {
    let (machine, table) = small_table();
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
        let (_machine, table) = small_table();
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
    let (_machine, table) = small_table();
    map(&table, range(2 * GIB, GIB), HOST, GIB1, RAM);
    unmap(&table, &range(GIB + 0x7000, GIB));
    assert_eq!(look(&table, 3 * GIB - 1), None);
    map(&table, range(2 * GIB, GIB), HOST, GIB1, RAM);
    unmap_exactly(&table, &range(GIB + 0x7000, GIB));
    assert_eq!(look(&table, 2 * GIB + 0x6fff), None);
    assert_eq!(look(&table, 2 * GIB + 0x7000), Some((HOST + 0x7000, PAGE)));
}

// P5: a removal that turns out larger than its range.

#[test]
fn a_block_that_goes_whole_is_marked_whole() {
    let (_machine, table) = small_table();
    map(&table, range(GIB, GIB), HOST, GIB1, RAM);
    let elsewhere = page(2 * GIB - PAGE_SIZE);
    let old = table.snapshot(&elsewhere);
    let mut restriction = table.restrict(&page(GIB));
    assert!(
        table.hold(&elsewhere).is_current(&old),
        "not known to be larger yet"
    );
    let flush = restriction.unmap(&page(GIB), PartialBlock::Drop);
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

#[test]
fn an_unmapping_marks_what_it_was_not_begun_for() {
    let (_machine, table) = small_table();
    let snapshot = table.snapshot(&page(0));
    let mut restriction = table.restrict_nothing();
    assert!(table.hold(&page(0)).is_current(&snapshot));
    drop(restriction.unmap(&page(0), PartialBlock::Drop));
    assert!(!table.hold(&page(0)).is_current(&snapshot));
    drop(restriction);
    assert!(!table.hold(&page(0)).is_current(&snapshot));
}

#[test]
fn nothing_above_vanishes_while_one_stripe_below_is_held() {
    for level in [PAGE, GIB1] {
        let (_machine, table) = small_table();
        let (at, bytes) = if level == PAGE {
            (GIB + 8 * MIB, PAGE_SIZE)
        } else {
            (GIB, GIB)
        };
        map(&table, range(at, bytes), HOST, level, RAM);
        let done = AtomicBool::new(false);
        // The stripes are marked already, so what the removal waits for is to hold them.
        let mut restriction = table.restrict(&range(GIB, GIB));
        thread::scope(|scope| {
            let hold = table.hold(&page(GIB + 512 * MIB + 4 * MIB));
            scope.spawn(|| {
                let gone = if level == PAGE {
                    range(GIB, GIB)
                } else {
                    page(GIB)
                };
                drop(restriction.unmap(&gone, PartialBlock::Drop));
                done.store(true, Ordering::SeqCst);
            });
            thread::sleep(Duration::from_millis(30));
            assert!(
                !done.load(Ordering::SeqCst),
                "{level:?} went under a held stripe"
            );
            drop(hold);
        });
        assert!(done.load(Ordering::SeqCst));
        assert_eq!(look(&table, at), None);
    }
}
