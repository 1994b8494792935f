//! Faults: every outcome, and what happens when the host changes in the middle.

use std::sync::Arc;

use slat::host::PageKind;
use slat::notifier::Notifier;
use slat::region::{Mapping as When, SlotId};
use slat::table::address::{Gpa, Hpa, Hva};
use slat::table::attributes::{Access, MemoryType};
use slat::table::format::{EncodeError, Format};
use slat::table::simulated::Event;
use slat::vcpu::{Denial, FaultError};
use slat::{Fault, Outcome};

use crate::rows::{MEMORY_TYPES, Row};
use crate::scripted_host::{Failure, Mapping, hva_range};
use crate::vm::{
    BLOCK, DEVICE, GPA, HVA, PAGE, Vm, fault, gpa_range, is_mapped, region, steps, unencodable,
};

const SLOT: SlotId = SlotId(1);

fn denied(gpa: u64, access: Access, reason: Denial) -> Outcome {
    Outcome::Denied {
        slot: SLOT,
        gpa: Gpa::new(gpa),
        access,
        reason,
    }
}

fn ram_arrives_on_demand<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, 4 * row.page));
    let outcome = vm.write(row.gpa + row.page + 0x123);
    let expected = Outcome::Mapped {
        slot: SLOT,
        range: gpa_range(row.gpa + row.page, row.page),
        hpa: Hpa::new(row.frames),
        kind: PageKind::Ram,
    };
    assert_eq!(outcome, expected);
    assert_eq!(
        vm.sees(row.gpa + row.page + 0x123),
        Some((row.frames + 0x123, true))
    );
    assert_eq!(vm.mapped_bytes(), row.page, "and nothing around it");
    let asked = vm.host.questions();
    assert_eq!((asked.len(), asked[0].access), (1, Access::Write));
}

fn an_address_in_no_slot_is_mmio<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    for gpa in [0, row.gpa - 1, row.gpa + row.page, 1 << row.bits, u64::MAX] {
        let gpa = Gpa::new(gpa);
        let access = Access::Write;
        let outcome = vm.write(gpa.raw());
        assert_eq!(outcome, Outcome::Mmio { gpa, access });
    }
    assert!(vm.host.questions().is_empty());
}

fn a_write_to_a_read_only_slot_is_reported_and_asks_nothing<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, row.page)]);
    let flash = region(1, row.gpa, row.page, row.hva).read_only();
    vm.memory.insert(flash).unwrap();
    assert!(is_mapped(&vm.read(row.gpa)));
    vm.host.questions();
    let (slot, gpa) = (SLOT, Gpa::new(row.gpa + 8));
    let expected = Outcome::WriteToReadOnly { slot, gpa };
    assert_eq!(vm.write(row.gpa + 8), expected);
    assert!(vm.host.questions().is_empty());
    // Though the host would let it be written.
    assert_eq!(vm.sees(row.gpa).map(|(_, write)| write), Some(false));
    assert_eq!(
        vm.access(row.gpa, Access::Execute),
        Outcome::Spurious { slot }
    );
}

fn a_page_that_is_mapped_already_is_spurious<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    assert!(is_mapped(&vm.read(row.gpa)));
    let flushes = vm.machine.local_flushes();
    for access in [Access::Read, Access::Write, Access::Execute] {
        assert_eq!(vm.access(row.gpa, access), Outcome::Spurious { slot: SLOT });
    }
    let local = vm.machine.local_flushes() - flushes;
    assert_eq!(local, 3, "this CPU may hold what made it fault");
    assert_eq!(vm.machine.flushes(), 0, "and nobody else does");
}

fn a_page_that_gained_permission_is_extended_in_place<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page).copy_on_write());
    assert!(is_mapped(&vm.read(row.gpa)));
    assert_eq!(vm.sees(row.gpa), Some((row.frames, false)));
    vm.machine.record();
    assert_eq!(vm.write(row.gpa), Outcome::Extended { slot: SLOT });
    assert_eq!(vm.sees(row.gpa), Some((row.frames, true)));
    let events = vm.machine.take_events();
    // A new table may be made ready on the way: there is nothing in it yet.
    let changes = events
        .iter()
        .filter(|event| matches!(event, Event::Written { old, .. } if *old != 0));
    assert_eq!(changes.count(), 1, "adding a permission needs no break");
    assert!(events.contains(&Event::FlushedLocally(gpa_range(row.gpa, row.page))));
}

fn a_page_that_was_aged_is_young_again<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    assert!(is_mapped(&vm.read(row.gpa)));
    let range = hva_range(row.hva, row.page);
    assert!(vm.memory.test_young(range) && vm.memory.age(range));
    if row.ages() {
        assert!(!vm.memory.test_young(range) && !vm.memory.age(range));
        assert_eq!(vm.read(row.gpa), Outcome::Extended { slot: SLOT });
    } else {
        // A leaf that cannot say that it was not used counts as used.
        assert!(vm.memory.test_young(range) && vm.memory.age(range));
        assert_eq!(vm.read(row.gpa), Outcome::Spurious { slot: SLOT });
    }
    assert!(vm.memory.test_young(range));
    assert_eq!(vm.memory.stats().agings, 5);
}

fn each_refusal_of_the_host_has_its_outcome<F: Format>(row: Row<F>) {
    use Failure::{Busy, DeviceGone, NotPermitted, Poisoned};
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    let hva = Hva::new(row.hva);
    let poisoned = Outcome::Poisoned { slot: SLOT, hva };
    let cases = [
        (Busy, Outcome::Retry),
        (Poisoned, poisoned),
        (
            DeviceGone,
            denied(row.gpa, Access::Read, Denial::DeviceGone),
        ),
        (
            NotPermitted,
            denied(row.gpa, Access::Read, Denial::NotPermitted),
        ),
    ];
    for (failure, expected) in cases {
        vm.host.fail(row.hva, failure);
        assert_eq!(vm.read(row.gpa), expected);
        assert_eq!(vm.sees(row.gpa), None);
    }
    vm.host.fail(row.hva, Failure::NoMemory);
    let (gpa, access) = (Gpa::new(row.gpa), Access::Read);
    let mut vcpu = vm.memory.vcpu();
    let error = vcpu.fault(Fault { gpa, access }).unwrap_err();
    assert_eq!(error, FaultError::HostNoMemory(hva));
    vm.host.heal();
    assert!(is_mapped(&fault(&mut vcpu, row.gpa, access)));
}

fn a_slot_over_a_hole_is_denied_until_the_host_maps_something<F: Format>(row: Row<F>) {
    let vm = row.vm(&[]);
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    let expected = denied(row.gpa + 4, Access::Read, Denial::NoMapping);
    assert_eq!(vm.read(row.gpa + 4), expected);
    vm.host.map(row.ram(row.hva, row.page));
    assert!(is_mapped(&vm.read(row.gpa + 4)));
}

fn device_memory_cannot_be_executed<F: Format>(row: Row<F>) {
    let memory = row.device_memory().unwrap_or(MemoryType::WriteBack);
    let device = Mapping::device(row.hva, row.page, row.device).memory(memory);
    let vm = row.vm(&[]);
    let asked = region(1, row.gpa, row.page, row.hva);
    vm.memory.insert(asked).unwrap();
    vm.host.map(device);
    let expected = denied(row.gpa, Access::Execute, Denial::NotExecutable);
    assert_eq!(vm.access(row.gpa, Access::Execute), expected);
    if let Some(cause) = row.refuses_device(memory) {
        // Neither is it mapped where it would be executable.
        assert!(row.device_memory().is_none());
        assert_eq!(unencodable(&vm, row.gpa), cause);
        return;
    }
    assert!(is_mapped(&vm.write(row.gpa)));
    assert_eq!(vm.access(row.gpa, Access::Execute), expected);
}

fn device_memory_of_each_type_is_mapped_as_it_is_or_refused<F: Format>(row: Row<F>) {
    for memory in MEMORY_TYPES {
        let vm = row.vm(&[]);
        let asked = region(1, row.gpa, row.page, row.hva);
        vm.memory.insert(asked).unwrap();
        let device = Mapping::device(row.hva, row.page, row.device);
        vm.host.map(device.memory(memory));
        if !F::forces(&row.features, memory) {
            let expected = denied(row.gpa, Access::Read, Denial::MemoryType);
            assert_eq!(
                vm.read(row.gpa),
                expected,
                "the guest could bypass {memory:?}"
            );
        } else if let Some(cause) = row.refuses_device(memory) {
            assert_eq!(unencodable(&vm, row.gpa), cause);
        } else {
            assert!(is_mapped(&vm.read(row.gpa)));
            assert_eq!(vm.memory_type(row.gpa), Some(memory));
            continue;
        }
        assert_eq!(vm.mapped_bytes(), 0);
    }
}

fn a_host_that_shows_an_unwritable_page_for_a_write_is_taken_at_its_word<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    let host = vm.host.clone();
    vm.host.put_ram(row.hva, row.page, row.frames);
    // The page loses its permission after the fault decided to show it.
    vm.host.fail(row.hva, Failure::NotPermitted);
    let expected = denied(row.gpa, Access::Write, Denial::NotPermitted);
    assert_eq!(vm.write(row.gpa), expected);
    host.heal();
    assert!(is_mapped(&vm.write(row.gpa)));
}

fn what_the_format_cannot_express_is_an_error_not_a_wrong_leaf<F: Format>(row: Row<F>) {
    let beyond = row.host_end;
    let vm = row.vm_on_fault(row.linear(row.hva, row.page, beyond));
    if beyond == 1 << 63 {
        // An entry holds every number that can be an address.
        assert!(is_mapped(&vm.read(row.gpa)));
        assert_eq!(vm.sees(row.gpa), Some((beyond, true)));
        return;
    }
    let cause = unencodable(&vm, row.gpa);
    assert!(
        matches!(cause, EncodeError::AddressWidth { hpa, .. } if hpa.raw() == beyond),
        "{cause}"
    );
    assert_eq!(vm.mapped_bytes(), 0);
}

// The host changes in the middle.

fn an_invalidation_that_starts_and_ends_in_the_middle_makes_the_fault_retry<F: Format>(
    row: Row<F>,
) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    let (memory, host) = (Arc::clone(&vm.memory), vm.host.clone());
    vm.host.during_next_question(move |_| {
        let range = hva_range(row.hva, row.page);
        let invalidation = memory.invalidate(range);
        host.migrate(range);
        drop(invalidation);
    });
    assert_eq!(vm.read(row.gpa), Outcome::Retry);
    assert_eq!(vm.sees(row.gpa), None, "the old frame is somebody else's");
    assert!(is_mapped(&vm.read(row.gpa)));
    assert_eq!(vm.sees(row.gpa), vm.host.look(row.hva));
}

fn an_invalidation_that_has_not_ended_makes_the_fault_retry<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    let ticket = vm.memory.begin(hva_range(row.hva, row.page));
    for _ in 0..3 {
        assert_eq!(vm.read(row.gpa), Outcome::Retry);
    }
    assert_eq!(vm.mapped_bytes(), 0);
    vm.memory.end(ticket);
    assert!(is_mapped(&vm.read(row.gpa)));
}

fn an_invalidation_of_another_span_is_not_noticed<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, 4 * row.span));
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        memory.end(memory.begin(hva_range(row.hva + row.span, row.span)));
    });
    let ticket = vm.memory.begin(hva_range(row.hva + 2 * row.span, row.span));
    assert!(is_mapped(&vm.read(row.gpa)));
    vm.memory.end(ticket);
}

fn a_block_over_many_spans_notices_a_change_in_any_of_them<F: Format>(row: Row<F>) {
    let large = row.large();
    let last_page = hva_range(row.hva + large - row.page, row.page);
    let vm = row.vm_on_fault(row.ram(row.hva, large).blocks(large));
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        memory.end(memory.begin(last_page));
    });
    // The change comes before the second question, which P2 makes the fault ask.
    assert!(is_mapped(&vm.read(row.gpa)));
    let one_leaf = row.leaf_in(large) == large;
    assert_eq!(vm.host.questions().len(), if one_leaf { 2 } else { 1 });
    assert_eq!(vm.leaf_bytes(row.gpa), row.leaf_in(large));
    vm.memory.end(vm.memory.begin(hva_range(row.hva, large)));
    assert_eq!(vm.mapped_bytes(), 0);
    if !one_leaf {
        // A leaf in one span, and one question.
        return;
    }
    let memory = Arc::clone(&vm.memory);
    let host = vm.host.clone();
    vm.host.during_next_question(move |_| {
        host.during_next_question(move |_| {
            memory.end(memory.begin(last_page));
        });
    });
    assert_eq!(vm.read(row.gpa), Outcome::Retry);
    assert_eq!(vm.mapped_bytes(), 0);
}

fn a_host_block_that_shrinks_between_the_two_questions_makes_the_fault_retry<F: Format>(
    row: Row<F>,
) {
    let large = row.large();
    let vm = row.vm_on_fault(row.ram(row.hva, large).blocks(large));
    let host = vm.host.clone();
    vm.host.during_next_question(move |_| {
        host.put_ram(row.hva, row.page, row.chosen);
    });
    let outcome = vm.read(row.gpa);
    if row.leaf_in(large) != large {
        // No leaf over several spans, so no second question.
        assert!(is_mapped(&outcome));
        assert_eq!(vm.host.questions().len(), 1);
        return;
    }
    assert_eq!(outcome, Outcome::Retry);
    assert!(is_mapped(&vm.read(row.gpa)));
    assert_eq!(vm.leaf_bytes(row.gpa), row.page);
}

fn a_slot_that_goes_in_the_middle_makes_the_fault_retry<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        memory.remove(SLOT).unwrap();
    });
    let mut vcpu = vm.memory.vcpu();
    assert_eq!(fault(&mut vcpu, row.gpa, Access::Read), Outcome::Retry);
    assert_eq!(vm.mapped_bytes(), 0);
    let mmio = fault(&mut vcpu, row.gpa, Access::Read);
    assert!(matches!(mmio, Outcome::Mmio { .. }));
}

fn another_slot_that_changes_in_the_middle_costs_one_retry<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        memory
            .insert(region(2, 2 * row.gpa, row.page, row.hva))
            .unwrap();
    });
    assert_eq!(vm.read(row.gpa), Outcome::Retry);
    assert!(is_mapped(&vm.read(row.gpa)));
}

// Two vCPUs.

fn two_vcpus_on_one_page_get_one_frame<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        let outcome = fault(&mut memory.vcpu(), row.gpa, Access::Write);
        assert!(is_mapped(&outcome));
    });
    assert_eq!(vm.write(row.gpa), Outcome::Spurious { slot: SLOT });
    assert_eq!(vm.sees(row.gpa), vm.host.look(row.hva));
    assert_eq!(vm.mapped_bytes(), row.page);
}

fn threads_on_the_same_pages_agree<F: Format>(row: Row<F>) {
    let bytes = 2 * row.span;
    let leaf = row.leaf_in(row.span);
    let vm = row.vm_on_fault(row.ram(row.hva, bytes).blocks(row.span));
    std::thread::scope(|scope| {
        for access in [Access::Read, Access::Write, Access::Execute] {
            let vm = &vm;
            scope.spawn(move || {
                let mut vcpu = vm.memory.vcpu();
                for at in steps(bytes, leaf.min(8 * row.page)) {
                    while fault(&mut vcpu, row.gpa + at, access) == Outcome::Retry {}
                }
            });
        }
    });
    for at in steps(bytes, row.page) {
        assert_eq!(vm.sees(row.gpa + at), vm.host.look(row.hva + at));
    }
    assert_eq!(vm.mapped_bytes() / leaf, vm.leaves().len() as u64);
    vm.end();
}

// Counters.

#[test]
fn a_vcpu_counts_its_faults_by_cause() {
    let ram = Mapping::ram(HVA, BLOCK).copy_on_write();
    let device = Mapping::device(HVA + BLOCK, BLOCK, DEVICE);
    let vm = Vm::new(&[ram, device]);
    let on_fault = |region: slat::Region| region.mapping(When::OnFault);
    let both = region(1, GPA, 2 * BLOCK, HVA);
    vm.memory.insert(on_fault(both)).unwrap();
    let flash = region(2, 2 * GPA, PAGE, HVA).read_only();
    vm.memory.insert(on_fault(flash)).unwrap();

    let mut vcpu = vm.memory.vcpu();
    fault(&mut vcpu, GPA, Access::Read);
    fault(&mut vcpu, GPA, Access::Write);
    fault(&mut vcpu, GPA, Access::Write);
    fault(&mut vcpu, GPA + BLOCK, Access::Write);
    fault(&mut vcpu, GPA + BLOCK, Access::Execute);
    fault(&mut vcpu, 0, Access::Read);
    fault(&mut vcpu, 2 * GPA, Access::Write);
    vm.host.fail(HVA + PAGE, Failure::Busy);
    fault(&mut vcpu, GPA + PAGE, Access::Read);
    vm.host.fail(HVA + PAGE, Failure::Poisoned);
    fault(&mut vcpu, GPA + PAGE, Access::Read);

    let stats = vcpu.stats();
    assert_eq!((stats.ram, stats.pfnmap, stats.extended), (1, 1, 1));
    assert_eq!((stats.spurious, stats.retried, stats.mmio), (1, 1, 1));
    assert_eq!((stats.read_only, stats.denied, stats.total()), (1, 2, 9));
    assert_eq!(stats.leaves[..3], [1, 1, 0]);
    let text = "9 faults: 1 RAM, 1 device, 1 extended, 1 spurious, 1 retried, 1 in no slot, \
                1 to read-only, 2 denied";
    assert_eq!(stats.to_string(), text);
}

crate::rows::for_every_format! {
    ram_arrives_on_demand,
    an_address_in_no_slot_is_mmio,
    a_write_to_a_read_only_slot_is_reported_and_asks_nothing,
    a_page_that_is_mapped_already_is_spurious,
    a_page_that_gained_permission_is_extended_in_place,
    a_page_that_was_aged_is_young_again,
    each_refusal_of_the_host_has_its_outcome,
    a_slot_over_a_hole_is_denied_until_the_host_maps_something,
    device_memory_cannot_be_executed,
    device_memory_of_each_type_is_mapped_as_it_is_or_refused,
    a_host_that_shows_an_unwritable_page_for_a_write_is_taken_at_its_word,
    what_the_format_cannot_express_is_an_error_not_a_wrong_leaf,
    an_invalidation_that_starts_and_ends_in_the_middle_makes_the_fault_retry,
    an_invalidation_that_has_not_ended_makes_the_fault_retry,
    an_invalidation_of_another_span_is_not_noticed,
    a_block_over_many_spans_notices_a_change_in_any_of_them,
    a_host_block_that_shrinks_between_the_two_questions_makes_the_fault_retry,
    a_slot_that_goes_in_the_middle_makes_the_fault_retry,
    another_slot_that_changes_in_the_middle_costs_one_retry,
    two_vcpus_on_one_page_get_one_frame,
    threads_on_the_same_pages_agree,
}
