//! Invalidations: what they take away, what they leave, and how long.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use slat::Outcome;
use slat::notifier::{Notifier, Ticket};
use slat::region::{Mapping as When, SlotId};
use slat::table::format::Format;
use slat::table::geometry::Level;
use slat::table::simulated::Event;

use crate::rows::Row;
use crate::scripted_host::{Mapping, hva_range};
use crate::vm::{HVA, Leaf, PAGE, Vm, gpa_range, is_mapped, region};

/// Asserts that exactly `gone` bytes from `at` on are not mapped, and the rest where it was.
fn assert_gone<F: Format>(row: &Row<F>, vm: &Vm<F>, bytes: u64, at: u64, gone: u64) {
    assert_eq!(vm.mapped_bytes(), bytes - gone);
    let page = row.page;
    let edges = [0, at.wrapping_sub(page), at, at + gone - page, at + gone];
    for offset in edges.into_iter().filter(|offset| *offset < bytes) {
        let inside = (at..at + gone).contains(&offset);
        let expected = (!inside).then_some((row.device + offset, true));
        assert_eq!(vm.sees(row.gpa + offset), expected, "at {offset:#x}");
    }
}

fn nothing_is_mapped_when_it_returns_and_everything_is_flushed<F: Format>(row: Row<F>) {
    let vm = row.vm_linear(4 * row.page);
    vm.machine.record();
    let invalidation = vm
        .memory
        .invalidate(hva_range(row.hva + row.page, 2 * row.page));
    assert_gone(&row, &vm, 4 * row.page, row.page, 2 * row.page);
    let events = vm.machine.take_events();
    let flushed = events.iter().any(|event| match event {
        Event::Flushed(work) => work
            .ranges()
            .iter()
            .any(|range| range.covers(&gpa_range(row.gpa + row.page, 2 * row.page))),
        _ => false,
    });
    assert!(flushed, "{events:?}");
    drop(invalidation);
}

fn a_block_is_cut_and_its_rest_stays<F: Format>(row: Row<F>) {
    let (page, span) = (row.page, row.span);
    for at in [0, 5 * page, span - page] {
        let vm = row.vm_linear(span);
        assert_eq!(vm.leaf_bytes(row.gpa), row.leaf_in(span));
        vm.memory
            .end(vm.memory.begin(hva_range(row.hva + at, page)));
        assert_gone(&row, &vm, span, at, page);
        if row.has_blocks() {
            // The block comes back whole: first what is left of it is broken, then it is mapped.
            assert_eq!(vm.read(row.gpa + at), Outcome::Retry);
        }
        assert!(is_mapped(&vm.read(row.gpa + at)));
        assert_eq!(vm.leaf_bytes(row.gpa), row.leaf_in(span));
        assert_eq!(vm.mapped_bytes(), span);
        vm.end();
    }
}

fn a_run_is_cut_and_its_rest_stays<F: Format>(row: Row<F>) {
    let (page, gpa) = (row.page, row.gpa);
    let Some(run) = row.geometry.run_bytes(Level::PAGE) else {
        // What would be a run elsewhere is pages, and loses one.
        let vm = row.vm_linear(4 * page);
        assert_eq!(vm.leaf_bytes(gpa), page);
        vm.memory
            .end(vm.memory.begin(hva_range(row.hva + page, page)));
        assert_gone(&row, &vm, 4 * page, page, page);
        return;
    };
    for at in [0, page, run - page] {
        let vm = row.vm_linear(2 * run);
        assert_eq!((vm.leaf_bytes(gpa), vm.leaf_bytes(gpa + run)), (run, run));
        vm.machine.fail_allocations_from(0);
        vm.memory
            .end(vm.memory.begin(hva_range(row.hva + at, page)));
        assert_gone(&row, &vm, 2 * run, at, page);
        let left = gpa + (run / 2 + at) % run / page * page;
        assert_eq!((vm.leaf_bytes(left), vm.leaf_bytes(gpa + run)), (page, run));
        vm.end();
    }
}

fn a_large_block_is_cut_in_steps_and_its_rest_stays<F: Format>(row: Row<F>) {
    for (level, large) in row.large_leaves() {
        // A run becomes the leaves that it is made of, a leaf alone those of the next level.
        let alone = row.geometry.entry_bytes(level);
        let piece = match level.down() {
            Some(below) if alone == large => row.geometry.entry_bytes(below),
            _ => alone,
        };
        let page = row.page;
        let cuts = [
            (0, page),
            (7 * piece + page, page),
            (piece, piece),
            (piece - page, piece + 2 * page),
            (large - page, page),
        ];
        for (at, gone) in cuts {
            let vm = row.vm_linear(large);
            assert_eq!(vm.leaf_bytes(row.gpa), large);
            vm.memory
                .end(vm.memory.begin(hva_range(row.hva + at, gone)));
            assert_gone(&row, &vm, large, at, gone);
            let far = if at > large / 2 { 0 } else { large - piece };
            let left = vm.leaf_bytes(row.gpa + far);
            assert_eq!(left, piece, "cut no finer than need be");
            vm.end();
        }
    }
}

fn a_cut_keeps_permissions_and_memory_type<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.linear(row.hva, row.span, row.device)]);
    let flash = region(1, row.gpa, row.span, row.hva).read_only();
    vm.memory.insert(flash).unwrap();
    let before = vm.memory_type(row.gpa);
    vm.memory.end(vm.memory.begin(hva_range(row.hva, row.page)));
    assert_eq!(vm.memory_type(row.gpa + row.page), before);
    assert_eq!(
        vm.sees(row.gpa + row.page),
        Some((row.device + row.page, false))
    );
    // RAM in its place, where devices cannot be mapped, is executable.
    let execute = row.device_memory().is_none();
    let alike = |leaf: &Leaf| leaf.execute == execute && !leaf.write;
    assert!(vm.leaves().iter().all(alike));
}

fn without_memory_for_a_cut_the_whole_block_goes<F: Format>(row: Row<F>) {
    let bytes = row.span;
    let vm = row.vm_linear(bytes);
    vm.machine.fail_allocations_from(0);
    let page = hva_range(row.hva + row.page, row.page);
    let ticket = vm.memory.begin(page);
    let left = if row.has_blocks() {
        0
    } else {
        bytes - row.page
    };
    assert_eq!(vm.mapped_bytes(), left);
    vm.memory.end(ticket);
    vm.end();
}

fn a_range_is_clipped_to_the_slot<F: Format>(row: Row<F>) {
    let vm = row.vm_linear(4 * row.page);
    let wide = hva_range(row.hva - 16 * row.page, 18 * row.page);
    vm.memory.end(vm.memory.begin(wide));
    assert_gone(&row, &vm, 4 * row.page, 0, 2 * row.page);
}

fn one_that_meets_no_slot_touches_nothing<F: Format>(row: Row<F>) {
    let vm = row.vm_linear(4 * row.page);
    vm.machine.record();
    vm.memory.end(
        vm.memory
            .begin(hva_range(row.hva + row.large(), row.large())),
    );
    vm.memory
        .end(vm.memory.begin(hva_range(row.hva - row.page, row.page)));
    assert!(vm.machine.take_events().is_empty());
    let stats = vm.memory.stats();
    assert_eq!((stats.invalidations, stats.invalidations_hit), (2, 0));
}

fn one_that_finds_nothing_mapped_flushes_nothing<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, row.large())]);
    vm.memory
        .insert(region(1, row.gpa, row.large(), row.hva))
        .unwrap();
    vm.memory
        .end(vm.memory.begin(hva_range(row.hva, row.large())));
    assert_eq!(vm.memory.stats().invalidations_hit, 1);
    assert_eq!(vm.machine.flushes(), 0);
}

fn every_slot_that_shows_the_page_loses_it<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, 4 * row.page)]);
    for page in 0..4 {
        vm.host.put_ram(
            row.hva + page * row.page,
            row.page,
            row.chosen + page * row.page,
        );
    }
    // Three views on the same pages, one of them shifted.
    vm.memory
        .insert(region(1, row.gpa, 4 * row.page, row.hva))
        .unwrap();
    vm.memory
        .insert(region(2, 2 * row.gpa, 4 * row.page, row.hva))
        .unwrap();
    let shifted = region(3, 3 * row.gpa, 2 * row.page, row.hva + 2 * row.page);
    vm.memory.insert(shifted).unwrap();
    assert_eq!(vm.mapped_bytes(), 10 * row.page);
    vm.memory
        .end(vm.memory.begin(hva_range(row.hva + 2 * row.page, row.page)));
    for gpa in [
        row.gpa + 2 * row.page,
        2 * row.gpa + 2 * row.page,
        3 * row.gpa,
    ] {
        assert_eq!(vm.sees(gpa), None);
    }
    assert_eq!(vm.mapped_bytes(), 7 * row.page);
}

fn nested_and_overlapping_ones_stall_until_the_last_ends<F: Format>(row: Row<F>) {
    let vm = row.vm_linear(4 * row.page);
    let first = vm.memory.begin(hva_range(row.hva, 3 * row.page));
    let second = vm.memory.begin(hva_range(row.hva + row.page, 3 * row.page));
    let third = vm.memory.begin(hva_range(row.hva + row.page, row.page));
    assert_eq!(vm.mapped_bytes(), 0);
    vm.memory.end(second);
    assert_eq!(vm.read(row.gpa + 3 * row.page), Outcome::Retry, "same span");
    vm.memory.end(first);
    assert_eq!(vm.read(row.gpa), Outcome::Retry);
    vm.memory.end(third);
    for page in 0..4 {
        assert!(is_mapped(&vm.read(row.gpa + page * row.page)));
    }
}

fn one_that_meets_another_flushes_even_what_it_does_not_find<F: Format>(row: Row<F>) {
    let vm = row.vm_linear(4 * row.page);
    let first = vm.memory.begin(hva_range(row.hva, 4 * row.page));
    let flushes = vm.machine.flushes();
    let second = vm.memory.begin(hva_range(row.hva, row.page));
    assert_eq!(vm.machine.flushes(), flushes + 1, "P6");
    vm.memory.end(first);
    vm.memory.end(second);
}

fn a_fault_in_the_flush_of_one_cannot_bring_the_page_back<F: Format>(row: Row<F>) {
    let vm = row.vm_linear(row.page);
    let outcome = Arc::new(std::sync::Mutex::new(None));
    let (memory, seen) = (Arc::downgrade(&vm.memory), Arc::clone(&outcome));
    vm.machine.on_flush(move |_| {
        if let Some(memory) = memory.upgrade() {
            let access = slat::table::attributes::Access::Read;
            let got = crate::vm::fault(&mut memory.vcpu(), row.gpa, access);
            *seen.lock().unwrap() = Some(got);
        }
    });
    let ticket = vm.memory.begin(hva_range(row.hva, row.page));
    vm.machine.clear_flush_hook();
    assert_eq!(*outcome.lock().unwrap(), Some(Outcome::Retry));
    assert_eq!(vm.mapped_bytes(), 0);
    vm.memory.end(ticket);
}

fn a_transaction_waits_for_one_over_its_new_slot_and_for_no_other<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, 4 * row.page)]);
    let elsewhere = vm.memory.begin(hva_range(row.hva + row.page, row.page));
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    vm.memory.end(elsewhere);

    let ended = AtomicBool::new(false);
    let here = vm.memory.begin(hva_range(row.hva + 2 * row.page, row.page));
    std::thread::scope(|scope| {
        let (vm, ended) = (&vm, &ended);
        scope.spawn(move || {
            let slot = region(2, 2 * row.gpa, 2 * row.page, row.hva + 2 * row.page);
            vm.memory.insert(slot).unwrap();
            assert!(ended.load(Ordering::SeqCst), "it did not wait");
        });
        std::thread::sleep(core::time::Duration::from_millis(30));
        assert_eq!(vm.memory.slots().slots().len(), 1);
        ended.store(true, Ordering::SeqCst);
        vm.memory.end(here);
    });
    assert_eq!(vm.memory.slots().slots().len(), 2);
    assert!(is_mapped(&vm.read(2 * row.gpa)));
}

fn deleting_waits_for_none<F: Format>(row: Row<F>) {
    let vm = row.vm_linear(row.page);
    let ticket = vm.memory.begin(hva_range(row.hva, row.page));
    vm.memory.remove(SlotId(1)).unwrap();
    vm.memory.end(ticket);
    vm.end();
}

fn age_and_young_look_at_every_slot_and_only_at_the_range<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, 2 * row.span)]);
    for (id, gpa) in [(1, row.gpa), (2, 2 * row.gpa)] {
        let slot = region(id, gpa, 2 * row.span, row.hva).mapping(When::OnFault);
        vm.memory.insert(slot).unwrap();
    }
    let page = hva_range(row.hva + row.page, row.page);
    assert!(!vm.memory.test_young(page));
    assert!(is_mapped(&vm.read(2 * row.gpa + row.page)));
    assert!(vm.memory.test_young(page));
    assert!(!vm.memory.test_young(hva_range(row.hva, row.page)));
    assert!(!vm.memory.age(hva_range(row.hva + row.span, row.span)));
    assert!(vm.memory.age(hva_range(row.hva, 2 * row.span)));
    assert_eq!(vm.memory.test_young(page), !row.ages());
    let before = vm.machine.flushes();
    assert_eq!(before, 0, "aging flushes nothing");
    assert_eq!(vm.mapped_bytes(), row.page, "and takes nothing away");
}

fn a_block_is_young_as_a_whole<F: Format>(row: Row<F>) {
    let vm = row.vm_linear(row.span);
    let inside = hva_range(row.hva + 3 * row.page, row.page);
    assert!(vm.memory.age(inside));
    // Where there are pages only, or no accessed bits, the others are as young as they were.
    let young = !(row.has_blocks() && row.ages());
    let all = hva_range(row.hva, row.span);
    assert_eq!(vm.memory.test_young(all), young);
    assert_eq!(vm.memory.test_young(inside), !row.ages());
    assert_eq!(vm.leaf_bytes(row.gpa), row.leaf_in(row.span));
}

fn release_takes_everything_away<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.linear(row.hva, row.span, row.device)]);
    vm.memory
        .insert(region(1, row.gpa, row.span, row.hva))
        .unwrap();
    vm.memory
        .insert(region(2, 2 * row.gpa, row.page, row.hva))
        .unwrap();
    // The host stops answering first.
    vm.host.unmap(hva_range(row.hva, row.span));
    vm.memory.release();
    assert_eq!(vm.mapped_bytes(), 0);
    assert!(matches!(vm.read(row.gpa), Outcome::Denied { .. }));
    vm.end();
}

fn one_that_is_forgotten_stalls_and_does_no_harm<F: Format>(row: Row<F>) {
    let vm = row.vm_linear(row.page);
    core::mem::forget(vm.memory.invalidate(hva_range(row.hva, row.page)));
    assert_eq!(vm.read(row.gpa), Outcome::Retry);
    assert_eq!(vm.mapped_bytes(), 0);
    vm.end();
}

fn statistics_count_what_happened<F: Format>(row: Row<F>) {
    let vm = row.vm_linear(row.span);
    vm.memory.end(vm.memory.begin(hva_range(row.hva, row.page)));
    vm.memory
        .end(vm.memory.begin(hva_range(row.hva + row.span, row.page)));
    vm.memory.age(hva_range(row.hva, row.page));
    vm.memory.test_young(hva_range(row.hva, row.page));
    let stats = vm.memory.stats();
    assert_eq!((stats.invalidations, stats.invalidations_hit), (2, 1));
    assert_eq!((stats.agings, stats.transactions), (2, 1));
    assert_eq!(stats.flushes, vm.machine.flushes());
    assert_eq!(stats.tables, vm.machine.live_tables());
    assert_eq!(stats.table_bytes, vm.machine.live_bytes());
}

fn a_ticket_of_another_vm_is_ignored<F: Format>(row: Row<F>) {
    let backing = [row.ram(row.hva, row.page)];
    let (ours, theirs) = (row.vm(&backing), row.vm(&backing));
    for vm in [&ours, &theirs] {
        vm.memory
            .insert(region(1, row.gpa, row.page, row.hva))
            .unwrap();
    }
    let own = theirs.memory.begin(hva_range(row.hva, row.page));
    let foreign = ours.memory.begin(hva_range(row.hva, row.page));
    theirs.memory.end(foreign);
    assert_eq!(theirs.read(row.gpa), Outcome::Retry, "its own is still up");
    assert_eq!(
        ours.read(row.gpa),
        Outcome::Retry,
        "and so is ours, for good"
    );
    theirs.memory.end(own);
    assert!(is_mapped(&theirs.read(row.gpa)));
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

crate::rows::for_every_format! {
    nothing_is_mapped_when_it_returns_and_everything_is_flushed,
    a_block_is_cut_and_its_rest_stays,
    a_run_is_cut_and_its_rest_stays,
    a_large_block_is_cut_in_steps_and_its_rest_stays,
    a_cut_keeps_permissions_and_memory_type,
    without_memory_for_a_cut_the_whole_block_goes,
    a_range_is_clipped_to_the_slot,
    one_that_meets_no_slot_touches_nothing,
    one_that_finds_nothing_mapped_flushes_nothing,
    every_slot_that_shows_the_page_loses_it,
    nested_and_overlapping_ones_stall_until_the_last_ends,
    one_that_meets_another_flushes_even_what_it_does_not_find,
    a_fault_in_the_flush_of_one_cannot_bring_the_page_back,
    a_transaction_waits_for_one_over_its_new_slot_and_for_no_other,
    deleting_waits_for_none,
    age_and_young_look_at_every_slot_and_only_at_the_range,
    a_block_is_young_as_a_whole,
    release_takes_everything_away,
    one_that_is_forgotten_stalls_and_does_no_harm,
    statistics_count_what_happened,
    a_ticket_of_another_vm_is_ignored,
}
