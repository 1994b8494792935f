//! Invalidations: what they take away, what they leave, and how long.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use slat::Outcome;
use slat::notifier::{Notifier, Ticket};
use slat::region::{Mapping as When, SlotId};
use slat::table::simulated::Event;

use crate::scripted_host::{Mapping, hva_range};
use crate::vm::{BLOCK, DEVICE, GIB, GPA, HVA, PAGE, Vm, gpa_range, is_mapped, region};

/// Slot 1 over a device of `bytes` bytes, mapped.
fn device(bytes: u64) -> Vm {
    let vm = Vm::new(&[Mapping::device(HVA, bytes, DEVICE)]);
    vm.memory.insert(region(1, GPA, bytes, HVA)).unwrap();
    assert_eq!(vm.mapped_bytes(), bytes);
    vm
}

/// Asserts that exactly `gone` bytes from `at` on are not mapped, and the rest where it was.
fn assert_gone(vm: &Vm, bytes: u64, at: u64, gone: u64) {
    assert_eq!(vm.mapped_bytes(), bytes - gone);
    let edges = [0, at.wrapping_sub(PAGE), at, at + gone - PAGE, at + gone];
    for offset in edges.into_iter().filter(|offset| *offset < bytes) {
        let inside = (at..at + gone).contains(&offset);
        let expected = (!inside).then_some((DEVICE + offset, true));
        assert_eq!(vm.sees(GPA + offset), expected, "at {offset:#x}");
    }
}

#[test]
fn nothing_is_mapped_when_it_returns_and_everything_is_flushed() {
    let vm = device(4 * PAGE);
    vm.machine.record();
    let invalidation = vm.memory.invalidate(hva_range(HVA + PAGE, 2 * PAGE));
    assert_gone(&vm, 4 * PAGE, PAGE, 2 * PAGE);
    let events = vm.machine.take_events();
    let flushed = events.iter().any(|event| match event {
        Event::Flushed(work) => work
            .ranges()
            .iter()
            .any(|range| range.covers(&gpa_range(GPA + PAGE, 2 * PAGE))),
        _ => false,
    });
    assert!(flushed, "{events:?}");
    drop(invalidation);
}

#[test]
fn a_block_is_cut_and_its_rest_stays() {
    for at in [0, 5 * PAGE, BLOCK - PAGE] {
        let vm = device(BLOCK);
        assert_eq!(vm.leaf_bytes(GPA), BLOCK);
        vm.memory.end(vm.memory.begin(hva_range(HVA + at, PAGE)));
        assert_gone(&vm, BLOCK, at, PAGE);
        // The block comes back whole: first what is left of it is broken, then it is mapped.
        assert_eq!(vm.read(GPA + at), Outcome::Retry);
        assert!(is_mapped(&vm.read(GPA + at)));
        assert_eq!(vm.leaf_bytes(GPA), BLOCK);
        vm.end();
    }
}

#[test]
fn a_large_block_is_cut_in_two_steps_and_its_rest_stays() {
    let cuts = [
        (0, PAGE),
        (7 * BLOCK + PAGE, PAGE),
        (BLOCK, BLOCK),
        (BLOCK - PAGE, BLOCK + 2 * PAGE),
        (GIB - PAGE, PAGE),
    ];
    for (at, gone) in cuts {
        let vm = device(GIB);
        assert_eq!(vm.leaf_bytes(GPA), GIB);
        vm.memory.end(vm.memory.begin(hva_range(HVA + at, gone)));
        assert_gone(&vm, GIB, at, gone);
        let far = if at > GIB / 2 { 0 } else { GIB - BLOCK };
        assert_eq!(vm.leaf_bytes(GPA + far), BLOCK, "cut no finer than need be");
        vm.end();
    }
}

#[test]
fn a_cut_keeps_permissions_and_memory_type() {
    let vm = Vm::new(&[Mapping::device(HVA, BLOCK, DEVICE)]);
    let flash = region(1, GPA, BLOCK, HVA).read_only();
    vm.memory.insert(flash).unwrap();
    let before = vm.memory_type(GPA);
    vm.memory.end(vm.memory.begin(hva_range(HVA, PAGE)));
    assert_eq!(vm.memory_type(GPA + PAGE), before);
    assert_eq!(vm.sees(GPA + PAGE), Some((DEVICE + PAGE, false)));
    assert!(vm.leaves().iter().all(|leaf| !leaf.execute && !leaf.write));
}

#[test]
fn without_memory_for_a_cut_the_whole_block_goes() {
    let vm = device(GIB);
    vm.machine.fail_allocations_from(0);
    let ticket = vm.memory.begin(hva_range(HVA + PAGE, PAGE));
    assert_eq!(vm.mapped_bytes(), 0);
    vm.memory.end(ticket);
    vm.end();
}

#[test]
fn a_range_is_clipped_to_the_slot() {
    let vm = device(4 * PAGE);
    let wide = hva_range(HVA - 16 * PAGE, 18 * PAGE);
    vm.memory.end(vm.memory.begin(wide));
    assert_gone(&vm, 4 * PAGE, 0, 2 * PAGE);
}

#[test]
fn one_that_meets_no_slot_touches_nothing() {
    let vm = device(4 * PAGE);
    vm.machine.record();
    vm.memory.end(vm.memory.begin(hva_range(HVA + GIB, GIB)));
    vm.memory.end(vm.memory.begin(hva_range(HVA - PAGE, PAGE)));
    assert!(vm.machine.take_events().is_empty());
    let stats = vm.memory.stats();
    assert_eq!((stats.invalidations, stats.invalidations_hit), (2, 0));
}

#[test]
fn one_that_finds_nothing_mapped_flushes_nothing() {
    let vm = Vm::new(&[Mapping::ram(HVA, GIB)]);
    vm.memory.insert(region(1, GPA, GIB, HVA)).unwrap();
    vm.memory.end(vm.memory.begin(hva_range(HVA, GIB)));
    assert_eq!(vm.memory.stats().invalidations_hit, 1);
    assert_eq!(vm.machine.flushes(), 0);
}

#[test]
fn every_slot_that_shows_the_page_loses_it() {
    let vm = Vm::new(&[Mapping::ram(HVA, 4 * PAGE)]);
    for page in 0..4 {
        vm.host
            .put_ram(HVA + page * PAGE, PAGE, 0x8000 + page * PAGE);
    }
    // Three views on the same pages, one of them shifted.
    vm.memory.insert(region(1, GPA, 4 * PAGE, HVA)).unwrap();
    vm.memory.insert(region(2, 2 * GPA, 4 * PAGE, HVA)).unwrap();
    let shifted = region(3, 3 * GPA, 2 * PAGE, HVA + 2 * PAGE);
    vm.memory.insert(shifted).unwrap();
    assert_eq!(vm.mapped_bytes(), 10 * PAGE);
    vm.memory
        .end(vm.memory.begin(hva_range(HVA + 2 * PAGE, PAGE)));
    for gpa in [GPA + 2 * PAGE, 2 * GPA + 2 * PAGE, 3 * GPA] {
        assert_eq!(vm.sees(gpa), None);
    }
    assert_eq!(vm.mapped_bytes(), 7 * PAGE);
}

#[test]
fn nested_and_overlapping_ones_stall_until_the_last_ends() {
    let vm = device(4 * PAGE);
    let first = vm.memory.begin(hva_range(HVA, 3 * PAGE));
    let second = vm.memory.begin(hva_range(HVA + PAGE, 3 * PAGE));
    let third = vm.memory.begin(hva_range(HVA + PAGE, PAGE));
    assert_eq!(vm.mapped_bytes(), 0);
    vm.memory.end(second);
    assert_eq!(vm.read(GPA + 3 * PAGE), Outcome::Retry, "same span");
    vm.memory.end(first);
    assert_eq!(vm.read(GPA), Outcome::Retry);
    vm.memory.end(third);
    for page in 0..4 {
        assert!(is_mapped(&vm.read(GPA + page * PAGE)));
    }
}

#[test]
fn one_that_meets_another_flushes_even_what_it_does_not_find() {
    let vm = device(4 * PAGE);
    let first = vm.memory.begin(hva_range(HVA, 4 * PAGE));
    let flushes = vm.machine.flushes();
    let second = vm.memory.begin(hva_range(HVA, PAGE));
    assert_eq!(vm.machine.flushes(), flushes + 1, "P6");
    vm.memory.end(first);
    vm.memory.end(second);
}

#[test]
fn a_fault_in_the_flush_of_one_cannot_bring_the_page_back() {
    let vm = device(PAGE);
    let outcome = Arc::new(std::sync::Mutex::new(None));
    let (memory, seen) = (Arc::downgrade(&vm.memory), Arc::clone(&outcome));
    vm.machine.on_flush(move |_| {
        if let Some(memory) = memory.upgrade() {
            let access = slat::table::attributes::Access::Read;
            let got = crate::vm::fault(&mut memory.vcpu(), GPA, access);
            *seen.lock().unwrap() = Some(got);
        }
    });
    let ticket = vm.memory.begin(hva_range(HVA, PAGE));
    vm.machine.clear_flush_hook();
    assert_eq!(*outcome.lock().unwrap(), Some(Outcome::Retry));
    assert_eq!(vm.mapped_bytes(), 0);
    vm.memory.end(ticket);
}

#[test]
fn a_transaction_waits_for_one_over_its_new_slot_and_for_no_other() {
    let vm = Vm::new(&[Mapping::ram(HVA, 4 * PAGE)]);
    let elsewhere = vm.memory.begin(hva_range(HVA + PAGE, PAGE));
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    vm.memory.end(elsewhere);

    let ended = AtomicBool::new(false);
    let here = vm.memory.begin(hva_range(HVA + 2 * PAGE, PAGE));
    std::thread::scope(|scope| {
        let (vm, ended) = (&vm, &ended);
        scope.spawn(move || {
            let slot = region(2, 2 * GPA, 2 * PAGE, HVA + 2 * PAGE);
            vm.memory.insert(slot).unwrap();
            assert!(ended.load(Ordering::SeqCst), "it did not wait");
        });
        std::thread::sleep(core::time::Duration::from_millis(30));
        assert_eq!(vm.memory.slots().slots().len(), 1);
        ended.store(true, Ordering::SeqCst);
        vm.memory.end(here);
    });
    assert_eq!(vm.memory.slots().slots().len(), 2);
    assert!(is_mapped(&vm.read(2 * GPA)));
}

#[test]
fn deleting_waits_for_none() {
    let vm = device(PAGE);
    let ticket = vm.memory.begin(hva_range(HVA, PAGE));
    vm.memory.remove(SlotId(1)).unwrap();
    vm.memory.end(ticket);
    vm.end();
}

#[test]
fn age_and_young_look_at_every_slot_and_only_at_the_range() {
    let vm = Vm::new(&[Mapping::ram(HVA, 2 * BLOCK)]);
    for (id, gpa) in [(1, GPA), (2, 2 * GPA)] {
        let slot = region(id, gpa, 2 * BLOCK, HVA).mapping(When::OnFault);
        vm.memory.insert(slot).unwrap();
    }
    let page = hva_range(HVA + PAGE, PAGE);
    assert!(!vm.memory.test_young(page));
    assert!(is_mapped(&vm.read(2 * GPA + PAGE)));
    assert!(vm.memory.test_young(page));
    assert!(!vm.memory.test_young(hva_range(HVA, PAGE)));
    assert!(!vm.memory.age(hva_range(HVA + BLOCK, BLOCK)));
    assert!(vm.memory.age(hva_range(HVA, 2 * BLOCK)));
    assert!(!vm.memory.test_young(page));
    let before = vm.machine.flushes();
    assert_eq!(before, 0, "aging flushes nothing");
    assert_eq!(vm.mapped_bytes(), PAGE, "and takes nothing away");
}

#[test]
fn a_block_is_young_as_a_whole() {
    let vm = device(GIB);
    let inside = hva_range(HVA + 3 * BLOCK, PAGE);
    assert!(vm.memory.age(inside));
    assert!(!vm.memory.test_young(hva_range(HVA, GIB)));
    assert_eq!(vm.leaf_bytes(GPA), GIB);
}

#[test]
fn release_takes_everything_away() {
    let vm = Vm::new(&[Mapping::device(HVA, BLOCK, DEVICE)]);
    vm.memory.insert(region(1, GPA, BLOCK, HVA)).unwrap();
    vm.memory.insert(region(2, 2 * GPA, PAGE, HVA)).unwrap();
    // The host stops answering first.
    vm.host.unmap(hva_range(HVA, BLOCK));
    vm.memory.release();
    assert_eq!(vm.mapped_bytes(), 0);
    assert!(matches!(vm.read(GPA), Outcome::Denied { .. }));
    vm.end();
}

#[test]
fn one_that_is_forgotten_stalls_and_does_no_harm() {
    let vm = device(PAGE);
    core::mem::forget(vm.memory.invalidate(hva_range(HVA, PAGE)));
    assert_eq!(vm.read(GPA), Outcome::Retry);
    assert_eq!(vm.mapped_bytes(), 0);
    vm.end();
}

#[test]
fn statistics_count_what_happened() {
    let vm = device(BLOCK);
    vm.memory.end(vm.memory.begin(hva_range(HVA, PAGE)));
    vm.memory.end(vm.memory.begin(hva_range(HVA + BLOCK, PAGE)));
    vm.memory.age(hva_range(HVA, PAGE));
    vm.memory.test_young(hva_range(HVA, PAGE));
    let stats = vm.memory.stats();
    assert_eq!((stats.invalidations, stats.invalidations_hit), (2, 1));
    assert_eq!((stats.agings, stats.transactions), (2, 1));
    assert_eq!(stats.flushes, vm.machine.flushes());
    assert_eq!(stats.tables, vm.machine.live_tables());
    assert_eq!(stats.table_bytes, vm.machine.live_bytes());
}

#[test]
fn a_ticket_of_another_vm_is_ignored() {
    let backing = [Mapping::ram(HVA, PAGE)];
    let (ours, theirs) = (Vm::new(&backing), Vm::new(&backing));
    for vm in [&ours, &theirs] {
        vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    }
    let own = theirs.memory.begin(hva_range(HVA, PAGE));
    let foreign = ours.memory.begin(hva_range(HVA, PAGE));
    theirs.memory.end(foreign);
    assert_eq!(theirs.read(GPA), Outcome::Retry, "its own is still up");
    assert_eq!(ours.read(GPA), Outcome::Retry, "and so is ours, for good");
    theirs.memory.end(own);
    assert!(is_mapped(&theirs.read(GPA)));
}

#[test]
fn tickets_of_invalidations_under_way_are_told_apart() {
    let vm = Vm::new(&[Mapping::ram(HVA, PAGE)]);
    let tickets = [(); 3].map(|()| vm.memory.begin(hva_range(HVA, PAGE)));
    let ids = tickets.each_ref().map(Ticket::id);
    assert!(ids.iter().all(Option::is_some));
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    assert_eq!(Ticket::nothing().id(), None);
    for ticket in tickets {
        vm.memory.end(ticket);
    }
}
