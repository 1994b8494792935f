//! What only some formats, or trees of some shape, can show.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use slat_table::address::PAGE_SIZE;
use slat_table::cache::TableCache;
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::format::ept::{Ept, EptFeatures};
use slat_table::format::s390::{S390, S390Features};
use slat_table::geometry::Level;
use slat_table::simulated::Event;

use crate::setup::{Bench, GIB, PAGE, RAM, gpa, hpa, range, unmap};

const MIB: u64 = 1 << 20;

fn arm64() -> Bench<Arm64> {
    Bench::new(Arm64Features::ALL, 48)
}

#[test]
fn tables_whose_empty_entries_are_not_zero_are_visible_before_any_is_linked() {
    let bench = Bench::<Ept>::new(EptFeatures::ALL, 48);
    let mut cache = TableCache::new(&bench.table);
    bench.machine.record();
    cache.fill().expect("memory for tables");
    let events = bench.machine.take_events();
    assert_eq!(events.last(), Some(&Event::Published));
    cache.fill().expect("nothing to do");
    assert_eq!(bench.machine.take_events(), [], "nothing was added");
}

#[test]
fn the_stripe_of_one_span_is_enough_for_what_lies_in_it() {
    let bench = arm64();
    let table = &bench.table;
    let mut cache = TableCache::new(table);
    for at in [0, 2 * MIB, GIB + 6 * MIB] {
        cache.fill().unwrap();
        let page = range(at, PAGE_SIZE);
        let leaves = table.leaves(page, hpa(bench.host), PAGE, RAM).unwrap();
        let installed = table.hold_span(gpa(at)).install(&leaves, &mut cache);
        assert_eq!(installed.unwrap().new, 1);
        assert!(table.is_in_one_span(&page));
        assert!(table.is_in_one_span(&range(at, 2 * MIB)));
        assert!(!table.is_in_one_span(&range(at + MIB, 2 * MIB)));
    }
}

#[test]
fn breaking_a_run_does_not_bring_back_what_was_removed_meanwhile() {
    let bench = arm64();
    let inside = Arc::clone(&bench.table);
    let run = range(0, 16 * PAGE_SIZE);
    bench.map(run, bench.host, PAGE, RAM);
    // While the run is broken, a whole removal comes and goes. It finds nothing there.
    let once = AtomicBool::new(false);
    bench.machine.on_flush(move |_| {
        if !once.swap(true, Ordering::SeqCst) {
            unmap(&inside, &range(0x3000, PAGE_SIZE));
        }
    });
    bench.unmap_exactly(&range(0x8000, PAGE_SIZE));
    bench.machine.clear_flush_hook();
    assert_eq!(bench.look(0x3000), None);
    assert_eq!(bench.look(0x8000), None);
}

#[test]
fn a_block_whose_pieces_the_format_cannot_make_stays_as_it_is() {
    let features = S390Features {
        enhanced_dat_1: false,
        ..S390Features::ALL
    };
    let bench = Bench::<S390>::new(features, 42);
    let block = range(0, 2 * GIB);
    bench.map(block, 0, Level::new(2), RAM);
    bench.split(&block);
    assert_eq!(bench.look(0x3000), Some((0x3000, Level::new(2))));
}

#[test]
fn a_removal_over_two_spans_leaves_the_others_alone() {
    let bench = arm64();
    let elsewhere = range(GIB + 10 * MIB, PAGE_SIZE);
    let snapshot = bench.table.snapshot(&elsewhere);
    let restriction = bench.table.restrict(&range(GIB, 4 * MIB));
    assert!(bench.table.hold(&elsewhere).is_current(&snapshot));
    drop(restriction);
    assert!(bench.table.hold(&elsewhere).is_current(&snapshot));
}

#[test]
fn pruning_what_is_in_use_disturbs_nobody_else() {
    let bench = arm64();
    bench.map(range(0, PAGE_SIZE), bench.host, PAGE, RAM);
    let elsewhere = range(10 * MIB, PAGE_SIZE);
    let snapshot = bench.table.snapshot(&elsewhere);
    let beside = range(PAGE_SIZE, PAGE_SIZE);
    drop(bench.table.restrict(&beside).prune(&beside));
    assert!(bench.table.hold(&elsewhere).is_current(&snapshot));
    assert_eq!(bench.look(0), Some((bench.host, PAGE)));
}
