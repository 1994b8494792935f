//! Removals against each other and against whoever walks the tables: rules P5 to P8 of the
//! protocol, and the two halves of a split. What must never be is judged by
//! `loom_model::caches`.

#![cfg(slat_loom)]

mod loom_model;

use loom::thread;
use slat_table::attributes::Access;
use slat_table::geometry::Level;

use loom_model::host::{ModelHost, frame, hva_pages};
use loom_model::tiny::TinyFeatures;
use loom_model::{BREAKS, Vm, check, gpa_pages, is_handled, on_fault, spare};

/// Preemptions within which two removals are explored, which take minutes otherwise. For the
/// plainest of each kind `loom_pairs` spends that minute: two invalidations of a page, a split
/// and an invalidation.
const MOST: Option<usize> = Some(5);

/// P5: who meets a block that covers more spans than the removal marks and holds all of their
/// stripes: nobody maps another span of it before the flush.
#[test]
fn p5_a_block_over_two_spans_is_removed_under_both_stripes() {
    check(None, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(2));
        vm.map(0);
        vm.host.shape_block(0, 2, 0);
        let host = thread::spawn({
            let vm = vm.clone();
            move || vm.migrate(0, frame(0), spare())
        });
        // Page 3 is in the other span.
        vm.fault(&mut vm.memory.vcpu(), 3, Access::Read);
        host.join().expect("the host ends");
        vm.finish(&[(0, spare()), (3, frame(3))]);
    });
}

/// P5, P7: a table is cut off under the stripes of all spans below it, so that whoever holds one
/// of them never sees it vanish.
#[test]
fn p5_p7_a_walker_under_one_stripe_sees_no_table_vanish() {
    check(None, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        vm.map(0);
        vm.map(2);
        let host = thread::spawn({
            let vm = vm.clone();
            move || drop(vm.memory.invalidate(hva_pages(0, 4)))
        });
        let found = vm.frame_at(2);
        host.join().expect("the host ends");
        assert!(found.is_none() || found == Some(frame(2)));
        vm.finish(&[(0, frame(0)), (2, frame(2))]);
    });
}

/// P5, P7: an empty table is freed under the stripes of all spans below it, so that nobody is
/// just mapping something there; and nobody puts another in its place before the flush.
#[test]
fn p5_p7_a_table_in_use_is_not_taken_for_empty() {
    check(None, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        vm.memory.insert(on_fault(1, 0, 2, 0)).expect("a slot");
        vm.memory.insert(on_fault(2, 2, 2, 2)).expect("a slot");
        vm.map(0);
        let remover = thread::spawn({
            let vm = vm.clone();
            move || vm.memory.remove(slat::SlotId(1)).expect("it exists")
        });
        // Page 2 is in the other slot, span and stripe, below the same upper table.
        let outcome = vm.fault(&mut vm.memory.vcpu(), 2, Access::Read);
        let found = vm.frame_at(2);
        remover.join().expect("the remover ends");
        let mapped = is_handled(&outcome).then_some(frame(2));
        assert_eq!(found, mapped, "{outcome:?}");
        vm.finish(&[(2, frame(2))]);
    });
}

/// P6, P7: two removals of one page: the second finds nothing, but the first has not flushed yet.
#[test]
fn p6_p7_who_finds_nothing_flushes_for_the_other() {
    check(MOST, || two_removals((0, 1), (0, 1)));
}

/// P6, P7: the first removes the whole table; a flush of leaves alone would leave the pointer to
/// it in the walk caches.
#[test]
fn p6_p7_a_forced_flush_reaches_removed_tables() {
    check(MOST, || two_removals((0, 2), (0, 1)));
}

/// Two removals, of so many pages from a first one on, both over page 0.
fn two_removals(one: (u64, u64), other: (u64, u64)) {
    let vm = Vm::small_with_slot(BREAKS, ModelHost::with_blocks(0));
    vm.map(0);
    let remove = |vm: &Vm, (first, pages)| {
        let change = vm.memory.invalidate(hva_pages(first, pages));
        vm.machine.take_frame(frame(0));
        drop(change);
    };
    let host = thread::spawn({
        let vm = vm.clone();
        move || remove(&vm, one)
    });
    remove(&vm, other);
    host.join().expect("the host ends");
    // Neither asks the host, so it makes no difference when the page moved.
    vm.host.move_page(0, spare());
    vm.finish(&[(0, spare())]);
}

/// P8: a removal that meets one stripe twice, through two slots that show the same page, marks
/// it once and lowers it once: afterwards faults get through.
#[test]
fn p8_a_stripe_met_twice_is_marked_once() {
    check(None, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        vm.memory.insert(on_fault(1, 0, 2, 0)).expect("a slot");
        vm.memory.insert(on_fault(2, 4, 2, 0)).expect("a slot");
        vm.map(0);
        vm.map(4);
        let host = thread::spawn({
            let vm = vm.clone();
            move || vm.migrate(0, frame(0), spare())
        });
        vm.fault(&mut vm.memory.vcpu(), 4, Access::Read);
        host.join().expect("the host ends");
        vm.finish(&[(0, spare()), (4, spare())]);
    });
}

/// Two invalidations of two pages of one block: each splits it and keeps the other's page, but
/// must not write back what the other took away meanwhile.
#[test]
fn a_split_writes_nothing_back_that_was_removed_meanwhile() {
    check(MOST, || two_splits(true));
}

/// The same where a block may become a table without passing through an invalid entry.
#[test]
fn a_split_in_place_writes_nothing_back_that_was_removed_meanwhile() {
    check(MOST, || two_splits(false));
}

fn two_splits(break_before_make: bool) {
    let features = TinyFeatures {
        break_before_make,
        ..BREAKS
    };
    let vm = Vm::small_with_slot(features, ModelHost::with_blocks(1));
    vm.map(0);
    // The host may split its own block without a word, as long as the pages stay where they are.
    vm.host.shape_block(0, 1, 0);
    let host = thread::spawn({
        let vm = vm.clone();
        move || vm.migrate(0, frame(0), spare())
    });
    vm.migrate(1, frame(1), frame(10));
    host.join().expect("the host ends");
    vm.finish(&[(0, spare()), (1, frame(10))]);
}

/// A split ahead of need against an invalidation of a page of the block.
#[test]
fn an_eager_split_writes_nothing_back_that_was_removed_meanwhile() {
    check(MOST, || eager_split(true));
}

/// The same where a block may become a table without passing through an invalid entry.
#[test]
fn an_eager_split_in_place_writes_nothing_back_that_was_removed_meanwhile() {
    check(MOST, || eager_split(false));
}

fn eager_split(break_before_make: bool) {
    let features = TinyFeatures {
        break_before_make,
        ..BREAKS
    };
    let vm = Vm::with_slot(features, ModelHost::with_blocks(2));
    vm.map(0);
    vm.host.shape_block(0, 2, 0);
    let host = thread::spawn({
        let vm = vm.clone();
        move || vm.migrate(0, frame(0), spare())
    });
    vm.memory.split(&gpa_pages(0, 4), Level::PAGE);
    host.join().expect("the host ends");
    vm.finish(&[(0, spare()), (1, frame(1)), (3, frame(3))]);
}

/// Two removals and a fault over one block, each of other pages of it.
#[test]
fn two_removals_and_a_fault_meet_in_one_block() {
    check(Some(2), || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(2));
        vm.map(0);
        vm.host.shape_block(0, 2, 0);
        let one = thread::spawn({
            let vm = vm.clone();
            move || vm.migrate(0, frame(0), spare())
        });
        let other = thread::spawn({
            let vm = vm.clone();
            move || drop(vm.memory.invalidate(hva_pages(1, 3)))
        });
        vm.fault(&mut vm.memory.vcpu(), 3, Access::Read);
        one.join().expect("the one ends");
        other.join().expect("the other ends");
        vm.finish(&[(0, spare()), (1, frame(1)), (3, frame(3))]);
    });
}
