//! Changes of slots against invalidations and faults: rules P10 and P11 of the protocol. What
//! must never be is judged by `loom_model::caches`.

#![cfg(slat_loom)]

mod loom_model;

use loom::thread;
use slat::SlotId;
use slat_table::attributes::Access;

use loom_model::host::{ModelHost, frame};
use loom_model::{BREAKS, Vm, check, gpa_pages, on_fault, region, spare};

/// Preemptions within which a removal or replacement of a slot and an invalidation are explored.
/// `loom_pairs` explores all their schedules, which takes half a minute each.
const MOST: Option<usize> = Some(5);

/// P10: a slot enters the index in one step with the check that no invalidation of it is under
/// way: either that one finds the slot, or the slot waits for its end.
#[test]
fn p10_creation_maps_nothing_that_is_being_taken_away() {
    check(None, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        let creator = thread::spawn({
            let vm = vm.clone();
            move || vm.memory.insert(region(1, 0, 1, 0)).expect("a slot")
        });
        vm.migrate(0, frame(0), spare());
        creator.join().expect("the creator ends");
        vm.finish(&[(0, spare())]);
    });
}

/// P10: invalidations find a slot before faults do.
#[test]
fn p10_whatever_a_fault_maps_an_invalidation_finds() {
    check(None, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        let creator = thread::spawn({
            let vm = vm.clone();
            move || vm.memory.insert(on_fault(1, 0, 1, 0)).expect("a slot")
        });
        vm.fault(&mut vm.memory.vcpu(), 0, Access::Read);
        vm.migrate(0, frame(0), spare());
        creator.join().expect("the creator ends");
        vm.finish(&[(0, spare())]);
    });
}

/// P10: creation-time mapping follows publication, by the fault path's own rules: with nothing
/// in its way it maps everything.
#[test]
fn p10_creation_maps_what_the_host_has() {
    check(None, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        vm.memory.insert(region(1, 0, 3, 1)).expect("a slot");
        for number in 0..3 {
            assert_eq!(vm.frame_at(number), Some(frame(number + 1)));
        }
        vm.finish(&[]);
    });
}

/// P11: an invalidation finds a slot that is being removed until nothing of it is left in any
/// TLB, and the removal is over only then.
#[test]
fn p11_a_slot_can_be_found_until_it_is_flushed() {
    check(MOST, || {
        let vm = Vm::small(BREAKS, ModelHost::with_blocks(0));
        vm.memory.insert(on_fault(1, 0, 1, 0)).expect("a slot");
        // Keeps the tables in use, so that no flush of theirs helps.
        vm.memory.insert(on_fault(2, 1, 1, 1)).expect("a slot");
        vm.map(0);
        vm.map(1);
        let remover = thread::spawn({
            let vm = vm.clone();
            move || {
                vm.memory.remove(SlotId(1)).expect("it exists");
                vm.machine.close(gpa_pages(0, 1));
            }
        });
        vm.migrate(0, frame(0), spare());
        remover.join().expect("the remover ends");
        vm.finish(&[(1, frame(1))]);
    });
}

/// P11: what leaves the index is the slot that was removed, not the one that took its id.
#[test]
fn p11_a_slot_that_took_anothers_id_can_be_found() {
    check(MOST, || {
        let vm = Vm::small(BREAKS, ModelHost::with_blocks(0));
        vm.memory.insert(on_fault(1, 0, 1, 4)).expect("a slot");
        let replacer = thread::spawn({
            let vm = vm.clone();
            move || {
                let change = vm.memory.transaction().delete(SlotId(1));
                let change = change.create(on_fault(1, 0, 1, 0));
                change.commit().expect("a slot");
            }
        });
        vm.fault(&mut vm.memory.vcpu(), 0, Access::Read);
        vm.migrate(0, frame(0), spare());
        replacer.join().expect("the replacer ends");
        vm.finish(&[(0, spare())]);
    });
}

/// P11: a slot that is removed, an invalidation that finds it, and a fault in another slot that
/// shows the same page through the same table.
#[test]
fn p11_a_removal_an_invalidation_and_a_fault_share_a_table() {
    check(Some(2), || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        vm.memory.insert(on_fault(1, 0, 2, 0)).expect("a slot");
        vm.memory.insert(on_fault(2, 2, 2, 0)).expect("a slot");
        vm.map(0);
        vm.map(2);
        let remover = thread::spawn({
            let vm = vm.clone();
            move || {
                vm.memory.remove(SlotId(1)).expect("it exists");
                vm.machine.close(gpa_pages(0, 2));
            }
        });
        let host = thread::spawn({
            let vm = vm.clone();
            move || vm.migrate(0, frame(0), spare())
        });
        vm.fault(&mut vm.memory.vcpu(), 2, Access::Read);
        remover.join().expect("the remover ends");
        host.join().expect("the host ends");
        vm.finish(&[(2, spare())]);
    });
}
