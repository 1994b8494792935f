//! Creating, deleting and replacing slots: all of it or nothing, and nothing between.

use core::sync::atomic::{AtomicBool, Ordering};

use slat::Outcome;
use slat::region::SlotId;
use slat::table::attributes::Access;
use slat::table::format::Format;
use slat::table::simulated::Event;

use crate::rows::Row;
use crate::scripted_host::hva_range;
use crate::vm::{Vm, fault, is_mapped, region};

fn device<F: Format>(row: &Row<F>, bytes: u64) -> Vm<F> {
    row.vm(&[row.linear(row.hva, bytes, row.device)])
}

fn after_a_delete_every_access_is_mmio_and_a_new_slot_sees_fresh_memory<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, 2 * row.page)]);
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    let mut vcpu = vm.memory.vcpu();
    assert!(is_mapped(&fault(&mut vcpu, row.gpa, Access::Write)));
    let old = vm.sees(row.gpa);
    vm.memory.remove(SlotId(1)).unwrap();
    for access in [Access::Read, Access::Write, Access::Execute] {
        let outcome = fault(&mut vcpu, row.gpa, access);
        assert!(matches!(outcome, Outcome::Mmio { .. }));
    }
    assert_eq!(vm.sees(row.gpa), None);
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva + row.page))
        .unwrap();
    assert!(is_mapped(&fault(&mut vcpu, row.gpa, Access::Write)));
    assert_ne!(vm.sees(row.gpa), old);
    assert_eq!(vm.sees(row.gpa), vm.host.look(row.hva + row.page));
}

fn a_delete_is_flushed_before_it_returns_and_gives_the_tables_back<F: Format>(row: Row<F>) {
    let vm = device(&row, row.span + row.page);
    let empty = vm.state();
    let slot = region(1, row.gpa + row.page, row.span, row.hva);
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

fn a_delete_leaves_the_neighbours_alone<F: Format>(row: Row<F>) {
    let vm = device(&row, 4 * row.page);
    for id in 0..4u32 {
        let at = u64::from(id) * row.page;
        vm.memory
            .insert(region(id, row.gpa + at, row.page, row.hva + at))
            .unwrap();
    }
    vm.memory.remove(SlotId(2)).unwrap();
    for id in 0..4 {
        let expected = (id != 2).then_some((row.device + id * row.page, true));
        assert_eq!(vm.sees(row.gpa + id * row.page), expected);
    }
}

fn deleting_and_creating_one_id_in_one_transaction_moves_it<F: Format>(row: Row<F>) {
    let vm = device(&row, 2 * row.page);
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva + row.page))
        .unwrap();
    let transaction = vm.memory.transaction();
    let moved = transaction
        .create(region(1, row.gpa + row.page, row.page, row.hva + row.page))
        .delete(SlotId(1));
    moved.commit().unwrap();
    assert_eq!(vm.sees(row.gpa), None);
    assert_eq!(
        vm.sees(row.gpa + row.page),
        Some((row.device + row.page, true))
    );
}

fn a_replacement_of_the_same_id_stays_visible_to_invalidations<F: Format>(row: Row<F>) {
    // Whether it lies before the old one in host memory, behind it, or at the same place.
    for (old, new) in [
        (row.hva + row.page, row.hva),
        (row.hva, row.hva + row.page),
        (row.hva, row.hva),
    ] {
        let vm = device(&row, 2 * row.page);
        vm.memory.insert(region(1, row.gpa, row.page, old)).unwrap();
        let transaction = vm.memory.transaction().delete(SlotId(1));
        transaction
            .create(region(1, 2 * row.gpa, row.page, new))
            .commit()
            .unwrap();
        assert_eq!(
            vm.sees(2 * row.gpa),
            Some((row.device + (new - row.hva), true))
        );
        assert!(vm.is_found(hva_range(new, row.page)));
        assert_eq!(vm.sees(2 * row.gpa), None);
        if old != new {
            assert!(
                !vm.is_found(hva_range(old, row.page)),
                "the old one has left"
            );
        }
    }
}

fn old_and_new_slot_are_both_invalidated_while_one_replaces_the_other<F: Format>(row: Row<F>) {
    // Same id, same host address, other guest address: in the middle of the old one's removal
    // the host takes the page back, when the new one has just been faulted in.
    let vm = device(&row, row.page);
    let new = 2 * row.gpa + row.span;
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    let memory = std::sync::Arc::downgrade(&vm.memory);
    let first = AtomicBool::new(true);
    vm.machine.on_flush(move |_| {
        let Some(memory) = memory.upgrade() else {
            return;
        };
        if first.swap(false, Ordering::SeqCst) {
            let outcome = fault(&mut memory.vcpu(), new, Access::Read);
            assert!(is_mapped(&outcome), "the new set is out: {outcome:?}");
            let gone = memory.invalidate(hva_range(row.hva, row.page));
            assert_eq!(memory.translate(slat::table::address::Gpa::new(new)), None);
            drop(gone);
        }
    });
    let transaction = vm.memory.transaction().delete(SlotId(1));
    let replaced = transaction.create(region(1, new, row.page, row.hva));
    replaced.commit().unwrap();
    vm.machine.clear_flush_hook();
    assert_eq!(vm.sees(row.gpa), None);
}

fn a_read_only_replacement_leaves_nothing_writable<F: Format>(row: Row<F>) {
    let vm = device(&row, row.span);
    vm.memory
        .insert(region(1, row.gpa, row.span, row.hva))
        .unwrap();
    let transaction = vm.memory.transaction().delete(SlotId(1));
    let locked = region(2, row.gpa, row.span, row.hva).read_only();
    transaction.create(locked).commit().unwrap();
    assert_eq!(vm.sees(row.gpa), Some((row.device, false)));
    assert_eq!(vm.mapped_bytes(), row.span);
}

fn one_slot_can_be_split_in_two_with_no_moment_between<F: Format>(row: Row<F>) {
    let vm = device(&row, 2 * row.span);
    vm.memory
        .insert(region(1, row.gpa, 2 * row.span, row.hva))
        .unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (vm, stop) = (&vm, &stop);
        scope.spawn(move || {
            let mut vcpu = vm.memory.vcpu();
            while !stop.load(Ordering::Relaxed) {
                let outcome = fault(&mut vcpu, row.gpa + row.span, Access::Read);
                let mmio = matches!(outcome, Outcome::Mmio { .. });
                assert!(!mmio, "a hole between the old set and the new");
            }
        });
        for _ in 0..10 {
            let split = vm.memory.transaction().delete(SlotId(1));
            split
                .create(region(2, row.gpa, row.span, row.hva))
                .create(region(3, row.gpa + row.span, row.span, row.hva + row.span))
                .commit()
                .unwrap();
            let join = vm.memory.transaction().delete(SlotId(2));
            let whole = region(1, row.gpa, 2 * row.span, row.hva);
            join.delete(SlotId(3)).create(whole).commit().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(vm.read(row.gpa) != Outcome::Retry || is_mapped(&vm.read(row.gpa)));
}

fn reports_come_in_the_order_of_the_regions<F: Format>(row: Row<F>) {
    let vm = device(&row, 4 * row.page);
    let transaction = vm.memory.transaction();
    let reports = transaction
        .create(region(9, 3 * row.gpa, row.page, row.hva))
        .create(region(2, row.gpa, row.page, row.hva))
        .create(region(5, 2 * row.gpa, row.page, row.hva))
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

fn an_empty_transaction_changes_nothing<F: Format>(row: Row<F>) {
    let vm = device(&row, row.page);
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    let before = vm.state();
    assert!(vm.memory.transaction().commit().unwrap().is_empty());
    assert_eq!(vm.state(), before);
}

fn a_vcpu_s_last_slot_is_not_taken_for_another_after_a_change<F: Format>(row: Row<F>) {
    let vm = device(&row, 4 * row.page);
    for id in 0..3u32 {
        let at = u64::from(id) * row.page;
        let gpa = (1 + u64::from(id)) * row.gpa;
        vm.memory
            .insert(region(id, gpa, row.page, row.hva + at))
            .unwrap();
    }
    let mut vcpu = vm.memory.vcpu();
    let slot = SlotId(2);
    let outcome = fault(&mut vcpu, 3 * row.gpa, Access::Read);
    assert_eq!(outcome, Outcome::Spurious { slot });
    vm.memory.remove(SlotId(0)).unwrap();
    let outcome = fault(&mut vcpu, 3 * row.gpa, Access::Read);
    assert_eq!(outcome, Outcome::Spurious { slot });
    let slot = SlotId(1);
    let outcome = fault(&mut vcpu, 2 * row.gpa, Access::Read);
    assert_eq!(outcome, Outcome::Spurious { slot });
    assert!(matches!(
        fault(&mut vcpu, row.gpa, Access::Read),
        Outcome::Mmio { .. }
    ));
}

crate::rows::for_every_format! {
    after_a_delete_every_access_is_mmio_and_a_new_slot_sees_fresh_memory,
    a_delete_is_flushed_before_it_returns_and_gives_the_tables_back,
    a_delete_leaves_the_neighbours_alone,
    deleting_and_creating_one_id_in_one_transaction_moves_it,
    a_replacement_of_the_same_id_stays_visible_to_invalidations,
    old_and_new_slot_are_both_invalidated_while_one_replaces_the_other,
    a_read_only_replacement_leaves_nothing_writable,
    one_slot_can_be_split_in_two_with_no_moment_between,
    reports_come_in_the_order_of_the_regions,
    an_empty_transaction_changes_nothing,
    a_vcpu_s_last_slot_is_not_taken_for_another_after_a_change,
}
