//! Creating, deleting and replacing slots: all of it or nothing, and nothing between.

use core::sync::atomic::{AtomicBool, Ordering};

use slat::Outcome;
use slat::region::SlotId;
use slat::table::attributes::Access;
use slat::table::simulated::Event;

use crate::scripted_host::{Mapping, hva_range};
use crate::vm::{BLOCK, DEVICE, GIB, GPA, HVA, PAGE, Vm, fault, is_mapped, region};

fn device(bytes: u64) -> Vm {
    Vm::new(&[Mapping::device(HVA, bytes, DEVICE)])
}

#[test]
fn after_a_delete_every_access_is_mmio_and_a_new_slot_sees_fresh_memory() {
    let vm = Vm::new(&[Mapping::ram(HVA, 2 * PAGE)]);
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    let mut vcpu = vm.memory.vcpu();
    assert!(is_mapped(&fault(&mut vcpu, GPA, Access::Write)));
    let old = vm.sees(GPA);
    vm.memory.remove(SlotId(1)).unwrap();
    for access in [Access::Read, Access::Write, Access::Execute] {
        let outcome = fault(&mut vcpu, GPA, access);
        assert!(matches!(outcome, Outcome::Mmio { .. }));
    }
    assert_eq!(vm.sees(GPA), None);
    vm.memory.insert(region(1, GPA, PAGE, HVA + PAGE)).unwrap();
    assert!(is_mapped(&fault(&mut vcpu, GPA, Access::Write)));
    assert_ne!(vm.sees(GPA), old);
    assert_eq!(vm.sees(GPA), vm.host.look(HVA + PAGE));
}

#[test]
fn a_delete_is_flushed_before_it_returns_and_gives_the_tables_back() {
    let vm = device(BLOCK + PAGE);
    let empty = vm.state();
    let slot = region(1, GPA + PAGE, BLOCK, HVA);
    vm.memory.insert(slot).unwrap();
    vm.machine.record();
    vm.memory.remove(SlotId(1)).unwrap();
    let events = vm.machine.take_events();
    let last_write = events
        .iter()
        .rposition(|event| matches!(event, Event::Written { .. }));
    let last_flush = events
        .iter()
        .rposition(|event| matches!(event, Event::Flushed(_)));
    assert!(last_write.is_some() && last_write < last_flush);
    assert_eq!(vm.state(), empty);
    vm.end();
}

#[test]
fn a_delete_leaves_the_neighbours_alone() {
    let vm = device(4 * PAGE);
    for id in 0..4u32 {
        let at = u64::from(id) * PAGE;
        vm.memory
            .insert(region(id, GPA + at, PAGE, HVA + at))
            .unwrap();
    }
    vm.memory.remove(SlotId(2)).unwrap();
    for id in 0..4 {
        let expected = (id != 2).then_some((DEVICE + id * PAGE, true));
        assert_eq!(vm.sees(GPA + id * PAGE), expected);
    }
}

#[test]
fn deleting_and_creating_one_id_in_one_transaction_moves_it() {
    let vm = device(2 * PAGE);
    vm.memory.insert(region(1, GPA, PAGE, HVA + PAGE)).unwrap();
    let transaction = vm.memory.transaction();
    let moved = transaction
        .create(region(1, GPA + PAGE, PAGE, HVA + PAGE))
        .delete(SlotId(1));
    moved.commit().unwrap();
    assert_eq!(vm.sees(GPA), None);
    assert_eq!(vm.sees(GPA + PAGE), Some((DEVICE + PAGE, true)));
}

#[test]
fn a_replacement_of_the_same_id_stays_visible_to_invalidations() {
    // Whether it lies before the old one in host memory, behind it, or at the same place.
    for (old, new) in [(HVA + PAGE, HVA), (HVA, HVA + PAGE), (HVA, HVA)] {
        let vm = device(2 * PAGE);
        vm.memory.insert(region(1, GPA, PAGE, old)).unwrap();
        let transaction = vm.memory.transaction().delete(SlotId(1));
        transaction
            .create(region(1, 2 * GPA, PAGE, new))
            .commit()
            .unwrap();
        assert_eq!(vm.sees(2 * GPA), Some((DEVICE + (new - HVA), true)));
        assert!(vm.is_found(hva_range(new, PAGE)));
        assert_eq!(vm.sees(2 * GPA), None);
        if old != new {
            assert!(!vm.is_found(hva_range(old, PAGE)), "the old one has left");
        }
    }
}

#[test]
fn old_and_new_slot_are_both_invalidated_while_one_replaces_the_other() {
    // Same id, same host address, other guest address: in the middle of the old one's removal
    // the host takes the page back, when the new one has just been faulted in.
    let vm = device(PAGE);
    let new = 2 * GPA + BLOCK;
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    let memory = std::sync::Arc::downgrade(&vm.memory);
    let first = AtomicBool::new(true);
    vm.machine.on_flush(move |_| {
        let Some(memory) = memory.upgrade() else {
            return;
        };
        if first.swap(false, Ordering::SeqCst) {
            let outcome = fault(&mut memory.vcpu(), new, Access::Read);
            assert!(is_mapped(&outcome), "the new set is out: {outcome:?}");
            let gone = memory.invalidate(hva_range(HVA, PAGE));
            assert_eq!(memory.translate(slat::table::address::Gpa::new(new)), None);
            drop(gone);
        }
    });
    let transaction = vm.memory.transaction().delete(SlotId(1));
    let replaced = transaction.create(region(1, new, PAGE, HVA));
    replaced.commit().unwrap();
    vm.machine.clear_flush_hook();
    assert_eq!(vm.sees(GPA), None);
}

#[test]
fn a_read_only_replacement_leaves_nothing_writable() {
    let vm = device(BLOCK);
    vm.memory.insert(region(1, GPA, BLOCK, HVA)).unwrap();
    let transaction = vm.memory.transaction().delete(SlotId(1));
    let locked = region(2, GPA, BLOCK, HVA).read_only();
    transaction.create(locked).commit().unwrap();
    assert_eq!(vm.sees(GPA), Some((DEVICE, false)));
    assert_eq!(vm.mapped_bytes(), BLOCK);
}

#[test]
fn one_slot_can_be_split_in_two_with_no_moment_between() {
    let vm = device(2 * BLOCK);
    vm.memory.insert(region(1, GPA, 2 * BLOCK, HVA)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (vm, stop) = (&vm, &stop);
        scope.spawn(move || {
            let mut vcpu = vm.memory.vcpu();
            while !stop.load(Ordering::Relaxed) {
                let outcome = fault(&mut vcpu, GPA + BLOCK, Access::Read);
                let mmio = matches!(outcome, Outcome::Mmio { .. });
                assert!(!mmio, "a hole between the old set and the new");
            }
        });
        for _ in 0..50 {
            let split = vm.memory.transaction().delete(SlotId(1));
            split
                .create(region(2, GPA, BLOCK, HVA))
                .create(region(3, GPA + BLOCK, BLOCK, HVA + BLOCK))
                .commit()
                .unwrap();
            let join = vm.memory.transaction().delete(SlotId(2));
            let whole = region(1, GPA, 2 * BLOCK, HVA);
            join.delete(SlotId(3)).create(whole).commit().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(vm.read(GPA) != Outcome::Retry || is_mapped(&vm.read(GPA)));
}

#[test]
fn reports_come_in_the_order_of_the_regions() {
    let vm = device(4 * PAGE);
    let transaction = vm.memory.transaction();
    let reports = transaction
        .create(region(9, 3 * GPA, PAGE, HVA))
        .create(region(2, GPA, PAGE, HVA))
        .create(region(5, 2 * GPA, PAGE, HVA))
        .commit()
        .unwrap();
    let ids: Vec<u32> = reports.iter().map(|report| report.id().0).collect();
    assert_eq!(ids, [9, 2, 5]);
    let slots = vm.memory.slots();
    let places: Vec<u32> = slots.slots().iter().map(|slot| slot.id().0).collect();
    assert_eq!(
        places,
        [2, 5, 9],
        "a set is in the order of guest addresses"
    );
}

#[test]
fn an_empty_transaction_changes_nothing() {
    let vm = device(PAGE);
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    let before = vm.state();
    assert!(vm.memory.transaction().commit().unwrap().is_empty());
    assert_eq!(vm.state(), before);
}

#[test]
fn a_vcpu_s_last_slot_is_not_taken_for_another_after_a_change() {
    let vm = device(4 * PAGE);
    for id in 0..3u32 {
        let at = u64::from(id) * PAGE;
        let gpa = GPA + u64::from(id) * GIB;
        vm.memory.insert(region(id, gpa, PAGE, HVA + at)).unwrap();
    }
    let mut vcpu = vm.memory.vcpu();
    let slot = SlotId(2);
    let outcome = fault(&mut vcpu, GPA + 2 * GIB, Access::Read);
    assert_eq!(outcome, Outcome::Spurious { slot });
    vm.memory.remove(SlotId(0)).unwrap();
    let outcome = fault(&mut vcpu, GPA + 2 * GIB, Access::Read);
    assert_eq!(outcome, Outcome::Spurious { slot });
    let slot = SlotId(1);
    let outcome = fault(&mut vcpu, GPA + GIB, Access::Read);
    assert_eq!(outcome, Outcome::Spurious { slot });
    assert!(matches!(
        fault(&mut vcpu, GPA, Access::Read),
        Outcome::Mmio { .. }
    ));
}
