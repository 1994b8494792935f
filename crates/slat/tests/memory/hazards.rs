//! What could go wrong in KVM's preparation of a region in v5.4, and cannot here.

use std::sync::Arc;

use slat::notifier::Notifier;
use slat::region::SlotId;
use slat::report::Reason;
use slat::table::address::Gpa;
use slat::table::attributes::{Access, MemoryType};
use slat::table::format::Format;
use slat::vcpu::Denial;
use slat::{Fault, Outcome};

use crate::rows::{MEMORY_TYPES, Row};
use crate::scripted_host::{Mapping, hva_range};
use crate::vm::{gpa_range, is_mapped, region};

fn an_error_in_a_later_mapping_leaves_nothing_of_the_earlier_ones<F: Format>(row: Row<F>) {
    let device = row.linear(row.hva, row.page, row.device);
    let readable = row.ram(row.hva + row.page, row.page).read_only();
    let vm = row.vm(&[device, readable]);
    let before = vm.state();
    vm.machine.record();
    let wrong = region(1, row.gpa, 2 * row.page, row.hva);
    assert!(vm.memory.insert(wrong).is_err());
    assert_eq!(vm.state(), before);
    assert!(
        vm.machine.take_events().is_empty(),
        "there was nothing to undo"
    );
}

fn meeting_a_page_that_is_mapped_already_is_no_error<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.linear(row.hva, 2 * row.page, row.device)]);
    let memory = Arc::clone(&vm.memory);
    // The slot is live while its pages are being mapped: a vCPU may be there first.
    vm.host.during_next_question(move |_| {
        let gpa = Gpa::new(row.gpa + row.page);
        let access = Access::Read;
        let outcome = memory.vcpu().fault(Fault { gpa, access }).unwrap();
        assert!(is_mapped(&outcome));
    });
    let report = vm
        .memory
        .insert(region(1, row.gpa, 2 * row.page, row.hva))
        .unwrap();
    assert_eq!(report.mapped_bytes(), 2 * row.page);
    assert_eq!(
        vm.sees(row.gpa + row.page),
        Some((row.device + row.page, true))
    );
}

fn two_vcpus_on_one_device_page_both_go_on<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.linear(row.hva, row.page, row.device)]);
    let on_fault = region(1, row.gpa, row.page, row.hva).mapping(slat::region::Mapping::OnFault);
    vm.memory.insert(on_fault).unwrap();
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        let (gpa, access) = (Gpa::new(row.gpa), Access::Write);
        let outcome = memory.vcpu().fault(Fault { gpa, access }).unwrap();
        assert!(is_mapped(&outcome));
    });
    let slot = SlotId(1);
    assert_eq!(vm.write(row.gpa), Outcome::Spurious { slot });
    assert_eq!(vm.sees(row.gpa), Some((row.device, true)));
}

fn the_physical_address_is_the_host_s_word_not_the_mapping_s_offset<F: Format>(row: Row<F>) {
    let mut device = row
        .linear(row.hva, 4 * row.page, row.device)
        .blocks(row.page);
    device.backwards = true;
    let vm = row.vm(&[device]);
    vm.memory
        .insert(region(1, row.gpa, 4 * row.page, row.hva))
        .unwrap();
    for page in 0..4 {
        let expected = (row.device + (3 - page) * row.page, true);
        assert_eq!(vm.sees(row.gpa + page * row.page), Some(expected));
    }
}

fn a_revocation_without_the_mmap_lock_in_the_middle_of_creation_is_not_missed<F: Format>(
    row: Row<F>,
) {
    let vm = row.vm(&[row.linear(row.hva, row.page, row.device)]);
    let (memory, host) = (Arc::clone(&vm.memory), vm.host.clone());
    // After the host made up its answer, and before anything is mapped.
    vm.host.during_next_question(move |_| {
        assert!(host.is_locked(), "a driver's revocation does not take it");
        memory.end(memory.begin(hva_range(row.hva, row.page)));
    });
    let report = vm
        .memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    assert_eq!(vm.sees(row.gpa), None);
    assert_eq!(report.parts()[0].reasons(), [(Reason::Changing, row.page)]);
    assert!(is_mapped(&vm.read(row.gpa)));
}

fn a_revocation_that_goes_on_is_skipped_not_awaited<F: Format>(row: Row<F>) {
    let bytes = 3 * row.span;
    let vm = row.vm(&[row.linear(row.hva, bytes, row.device)]);
    let revoked = Arc::new(std::sync::Mutex::new(None));
    let (memory, ticket) = (Arc::clone(&vm.memory), Arc::clone(&revoked));
    vm.host.during_next_question(move |_| {
        *ticket.lock().unwrap() = Some(memory.begin(hva_range(row.hva + row.span, row.page)));
    });
    let report = vm
        .memory
        .insert(region(1, row.gpa, bytes, row.hva))
        .unwrap();
    assert_eq!(vm.sees(row.gpa), Some((row.device, true)));
    assert_eq!(vm.sees(row.gpa + row.span + row.page), None);
    assert_eq!(
        vm.sees(row.gpa + 2 * row.span),
        Some((row.device + 2 * row.span, true))
    );
    let reasons = report.parts()[0].reasons();
    assert!(reasons.contains(&(Reason::Changing, row.span)), "{report}");
    assert_eq!(report.mapped_bytes(), 2 * row.span);
    let asked = vm.host.questions().len();
    assert_eq!(asked, 3, "one question for each span");
    let ticket = revoked.lock().unwrap().take().unwrap();
    assert_eq!(vm.read(row.gpa + row.span), Outcome::Retry);
    vm.memory.end(ticket);
    assert!(is_mapped(&vm.read(row.gpa + row.span)));
}

fn a_large_device_region_takes_blocks_not_pages<F: Format>(row: Row<F>) {
    let bytes = row.large();
    let vm = row.vm(&[row.linear(row.hva, bytes, row.device)]);
    vm.memory
        .insert(region(1, row.gpa, bytes, row.hva))
        .unwrap();
    assert_eq!(vm.leaf_bytes(row.gpa), row.leaf_in(bytes));
    let tables = vm.memory.stats().table_bytes;
    assert_eq!(tables, vm.memory.minimum_table_bytes());
    // P2 asks twice for a leaf over many spans; where there is none, each span is a step.
    let wide = row.leaf_in(bytes) > row.span;
    let asked = if wide { 2 } else { bytes / row.span };
    assert_eq!(vm.host.questions().len() as u64, asked);
}

fn creation_makes_the_host_do_nothing<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, 2 * row.span)]);
    vm.host.put_ram(row.hva + row.page, row.page, row.chosen);
    let report = vm
        .memory
        .insert(region(1, row.gpa, 2 * row.span, row.hva))
        .unwrap();
    assert!(vm.host.questions().iter().all(|question| question.peek));
    assert_eq!(vm.host.look(row.hva), None, "nothing was brought");
    assert_eq!(report.mapped_bytes(), row.page);
    assert_eq!(vm.sees(row.gpa + row.page), Some((row.chosen, true)));
}

fn pfnmap_memory_is_not_taken_for_a_device_by_its_mapping_alone<F: Format>(row: Row<F>) {
    let memory = MemoryType::WriteBack;
    if !row.honours(memory) {
        return;
    }
    // RAM hidden from the kernel and mapped through /dev/mem: PFNMAP, and cacheable.
    let hidden = Mapping::device(row.hva, row.page, row.device).memory(memory);
    let vm = row.vm(&[hidden]);
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    assert_eq!(vm.memory_type(row.gpa), Some(memory));
}

fn a_mapping_replaced_after_creation_is_judged_again_at_the_fault<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, row.page)]);
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    let range = hva_range(row.hva, row.page);
    let replace = |mapping: Mapping| {
        vm.host_changes(range, |host| {
            host.unmap(range);
            host.map(mapping);
        });
    };
    let denied = |access, reason| Outcome::Denied {
        slot: SlotId(1),
        gpa: Gpa::new(row.gpa),
        access,
        reason,
    };
    replace(row.ram(row.hva, row.page).read_only());
    let outcome = denied(Access::Write, Denial::NotPermitted);
    assert_eq!(vm.write(row.gpa), outcome);
    // Device memory of a type that this hardware cannot honour, if there is one.
    let device = Mapping::device(row.hva, row.page, row.device);
    let mut types = MEMORY_TYPES.into_iter();
    if let Some(memory) = types.find(|memory| !F::forces(&row.features, *memory)) {
        replace(device.memory(memory));
        let outcome = denied(Access::Read, Denial::MemoryType);
        assert_eq!(vm.read(row.gpa), outcome);
        assert_eq!(vm.sees(row.gpa), None);
    }
    let Some(memory) = row.device_memory() else {
        return;
    };
    replace(device.memory(memory));
    assert!(is_mapped(&vm.read(row.gpa)));
    let outcome = denied(Access::Execute, Denial::NotExecutable);
    assert_eq!(vm.access(row.gpa, Access::Execute), outcome);
}

fn a_device_mapping_that_appears_after_creation_is_mapped_by_faults_in_blocks<F: Format>(
    row: Row<F>,
) {
    let vm = row.vm(&[]);
    vm.memory
        .insert(region(1, row.gpa, row.span, row.hva))
        .unwrap();
    let linear = row.linear(row.hva, row.span, row.device);
    vm.host.map(linear);
    let touched = row.gpa + 5 * row.page;
    let outcome = vm.read(touched);
    let expected = linear.vma.kind;
    assert!(matches!(outcome, Outcome::Mapped { kind, .. } if kind == expected));
    assert_eq!(vm.leaf_bytes(touched), row.leaf_in(row.span));
}

fn ram_that_is_not_there_is_passed_over_with_one_question<F: Format>(row: Row<F>) {
    let bytes = row.large();
    let vm = row.vm(&[row.ram(row.hva, bytes)]);
    vm.memory
        .insert(region(1, row.gpa, bytes, row.hva))
        .unwrap();
    assert_eq!(vm.host.questions().len(), 1);
    let table = vm.memory.table();
    let slot = gpa_range(row.gpa, bytes);
    assert_eq!(table.count_leaves(&slot), [0; 5]);
    vm.read(row.gpa);
    vm.read(row.gpa + 5 * row.page);
    assert_eq!(table.count_leaves(&slot), [2, 0, 0, 0, 0]);
}

crate::rows::for_every_format! {
    an_error_in_a_later_mapping_leaves_nothing_of_the_earlier_ones,
    meeting_a_page_that_is_mapped_already_is_no_error,
    two_vcpus_on_one_device_page_both_go_on,
    the_physical_address_is_the_host_s_word_not_the_mapping_s_offset,
    a_revocation_without_the_mmap_lock_in_the_middle_of_creation_is_not_missed,
    a_revocation_that_goes_on_is_skipped_not_awaited,
    a_large_device_region_takes_blocks_not_pages,
    creation_makes_the_host_do_nothing,
    pfnmap_memory_is_not_taken_for_a_device_by_its_mapping_alone,
    a_mapping_replaced_after_creation_is_judged_again_at_the_fault,
    a_device_mapping_that_appears_after_creation_is_mapped_by_faults_in_blocks,
    ram_that_is_not_there_is_passed_over_with_one_question,
}
