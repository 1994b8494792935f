//! What could go wrong in KVM's preparation of a region in v5.4, and cannot here.

use std::sync::Arc;

use slat::config::Config;
use slat::host::PageKind;
use slat::notifier::Notifier;
use slat::region::SlotId;
use slat::report::Reason;
use slat::table::address::Gpa;
use slat::table::attributes::{Access, MemoryType};
use slat::vcpu::Denial;
use slat::{Fault, Outcome};

use crate::scripted_host::{Mapping, hva_range};
use crate::vm::{BLOCK, DEVICE, GIB, GPA, HVA, MIB, OLD, PAGE, Vm, gpa_range, is_mapped, region};

#[test]
fn an_error_in_a_later_mapping_leaves_nothing_of_the_earlier_ones() {
    let device = Mapping::device(HVA, PAGE, DEVICE);
    let readable = Mapping::ram(HVA + PAGE, PAGE).read_only();
    let vm = Vm::new(&[device, readable]);
    let before = vm.state();
    vm.machine.record();
    let wrong = region(1, GPA, 2 * PAGE, HVA);
    assert!(vm.memory.insert(wrong).is_err());
    assert_eq!(vm.state(), before);
    assert!(
        vm.machine.take_events().is_empty(),
        "there was nothing to undo"
    );
}

#[test]
fn meeting_a_page_that_is_mapped_already_is_no_error() {
    let vm = Vm::new(&[Mapping::device(HVA, 2 * PAGE, DEVICE)]);
    let memory = Arc::clone(&vm.memory);
    // The slot is live while its pages are being mapped: a vCPU may be there first.
    vm.host.during_next_question(move |_| {
        let gpa = Gpa::new(GPA + PAGE);
        let access = Access::Read;
        let outcome = memory.vcpu().fault(Fault { gpa, access }).unwrap();
        assert!(is_mapped(&outcome));
    });
    let report = vm.memory.insert(region(1, GPA, 2 * PAGE, HVA)).unwrap();
    assert_eq!(report.mapped_bytes(), 2 * PAGE);
    assert_eq!(vm.sees(GPA + PAGE), Some((DEVICE + PAGE, true)));
}

#[test]
fn two_vcpus_on_one_device_page_both_go_on() {
    let vm = Vm::new(&[Mapping::device(HVA, PAGE, DEVICE)]);
    let on_fault = region(1, GPA, PAGE, HVA).mapping(slat::region::Mapping::OnFault);
    vm.memory.insert(on_fault).unwrap();
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        let (gpa, access) = (Gpa::new(GPA), Access::Write);
        let outcome = memory.vcpu().fault(Fault { gpa, access }).unwrap();
        assert!(is_mapped(&outcome));
    });
    let slot = SlotId(1);
    assert_eq!(vm.write(GPA), Outcome::Spurious { slot });
    assert_eq!(vm.sees(GPA), Some((DEVICE, true)));
}

#[test]
fn the_physical_address_is_the_host_s_word_not_the_mapping_s_offset() {
    let mut device = Mapping::device(HVA, 4 * PAGE, DEVICE).blocks(PAGE);
    device.backwards = true;
    let vm = Vm::new(&[device]);
    vm.memory.insert(region(1, GPA, 4 * PAGE, HVA)).unwrap();
    for page in 0..4 {
        let expected = (DEVICE + (3 - page) * PAGE, true);
        assert_eq!(vm.sees(GPA + page * PAGE), Some(expected));
    }
}

#[test]
fn a_revocation_without_the_mmap_lock_in_the_middle_of_creation_is_not_missed() {
    let vm = Vm::new(&[Mapping::device(HVA, PAGE, DEVICE)]);
    let (memory, host) = (Arc::clone(&vm.memory), vm.host.clone());
    // After the host made up its answer, and before anything is mapped.
    vm.host.during_next_question(move |_| {
        assert!(host.is_locked(), "a driver's revocation does not take it");
        memory.end(memory.begin(hva_range(HVA, PAGE)));
    });
    let report = vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    assert_eq!(vm.sees(GPA), None);
    assert_eq!(report.parts()[0].reasons(), [(Reason::Changing, PAGE)]);
    assert!(is_mapped(&vm.read(GPA)));
}

#[test]
fn a_revocation_that_goes_on_is_skipped_not_awaited() {
    let bytes = 3 * BLOCK;
    let vm = Vm::new(&[Mapping::device(HVA, bytes, DEVICE)]);
    let revoked = Arc::new(std::sync::Mutex::new(None));
    let (memory, ticket) = (Arc::clone(&vm.memory), Arc::clone(&revoked));
    vm.host.during_next_question(move |_| {
        *ticket.lock().unwrap() = Some(memory.begin(hva_range(HVA + BLOCK, PAGE)));
    });
    let report = vm.memory.insert(region(1, GPA, bytes, HVA)).unwrap();
    assert_eq!(vm.sees(GPA), Some((DEVICE, true)));
    assert_eq!(vm.sees(GPA + BLOCK + PAGE), None);
    assert_eq!(vm.sees(GPA + 2 * BLOCK), Some((DEVICE + 2 * BLOCK, true)));
    let reasons = report.parts()[0].reasons();
    assert!(reasons.contains(&(Reason::Changing, BLOCK)), "{report}");
    assert_eq!(report.mapped_bytes(), 2 * BLOCK);
    let asked = vm.host.questions().len();
    assert_eq!(asked, 3, "one question for each span");
    let ticket = revoked.lock().unwrap().take().unwrap();
    assert_eq!(vm.read(GPA + BLOCK), Outcome::Retry);
    vm.memory.end(ticket);
    assert!(is_mapped(&vm.read(GPA + BLOCK)));
}

#[test]
fn a_large_device_region_takes_blocks_not_pages() {
    let vm = Vm::new(&[Mapping::device(HVA, GIB, DEVICE)]);
    let tables = vm.memory.stats().tables;
    vm.memory.insert(region(1, GPA, GIB, HVA)).unwrap();
    assert_eq!(vm.leaf_bytes(GPA), GIB);
    assert_eq!(vm.memory.stats().tables, tables);
    assert_eq!(vm.host.questions().len(), 2, "P2 asks twice for many spans");
}

#[test]
fn creation_makes_the_host_do_nothing() {
    let vm = Vm::new(&[Mapping::ram(HVA, 4 * MIB)]);
    vm.host.put_ram(HVA + PAGE, PAGE, 0x8888_0000);
    let report = vm.memory.insert(region(1, GPA, 4 * MIB, HVA)).unwrap();
    assert!(vm.host.questions().iter().all(|question| question.peek));
    assert_eq!(vm.host.look(HVA), None, "nothing was brought");
    assert_eq!(report.mapped_bytes(), PAGE);
    assert_eq!(vm.sees(GPA + PAGE), Some((0x8888_0000, true)));
}

#[test]
fn pfnmap_memory_is_not_taken_for_a_device_by_its_mapping_alone() {
    // RAM hidden from the kernel and mapped through /dev/mem: PFNMAP, and cacheable.
    let hidden = Mapping::device(HVA, PAGE, DEVICE).memory(MemoryType::WriteBack);
    let vm = Vm::new(&[hidden]);
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    assert_eq!(vm.memory_type(GPA), Some(MemoryType::WriteBack));
}

#[test]
fn a_mapping_replaced_after_creation_is_judged_again_at_the_fault() {
    let vm = Vm::with(Config::new(), OLD, &[Mapping::ram(HVA, PAGE)]);
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    let range = hva_range(HVA, PAGE);
    let replace = |mapping: Mapping| {
        vm.host_changes(range, |host| {
            host.unmap(range);
            host.map(mapping);
        });
    };
    let denied = |access, reason| Outcome::Denied {
        slot: SlotId(1),
        gpa: Gpa::new(GPA),
        access,
        reason,
    };
    replace(Mapping::ram(HVA, PAGE).read_only());
    let outcome = denied(Access::Write, Denial::NotPermitted);
    assert_eq!(vm.write(GPA), outcome);
    // Cacheable device memory, which this CPU cannot honour.
    replace(Mapping::device(HVA, PAGE, DEVICE).memory(MemoryType::WriteBack));
    let outcome = denied(Access::Read, Denial::MemoryType);
    assert_eq!(vm.read(GPA), outcome);
    assert_eq!(vm.sees(GPA), None);
    replace(Mapping::device(HVA, PAGE, DEVICE));
    assert!(is_mapped(&vm.read(GPA)));
    let outcome = denied(Access::Execute, Denial::NotExecutable);
    assert_eq!(vm.access(GPA, Access::Execute), outcome);
}

#[test]
fn a_device_mapping_that_appears_after_creation_is_mapped_by_faults_in_blocks() {
    let vm = Vm::new(&[]);
    vm.memory.insert(region(1, GPA, BLOCK, HVA)).unwrap();
    vm.host.map(Mapping::device(HVA, BLOCK, DEVICE));
    let outcome = vm.read(GPA + 5 * PAGE);
    assert!(matches!(
        outcome,
        Outcome::Mapped {
            kind: PageKind::Pfnmap,
            ..
        }
    ));
    assert_eq!(vm.leaf_bytes(GPA), BLOCK);
}

#[test]
fn ram_that_is_not_there_is_passed_over_with_one_question() {
    let vm = Vm::new(&[Mapping::ram(HVA, GIB)]);
    vm.memory.insert(region(1, GPA, GIB, HVA)).unwrap();
    assert_eq!(vm.host.questions().len(), 1);
    let table = vm.memory.table();
    assert_eq!(table.count_leaves(&gpa_range(GPA, GIB)), [0; 5]);
    vm.read(GPA);
    vm.read(GPA + 5 * PAGE);
    let counted = table.count_leaves(&gpa_range(GPA, GIB));
    assert_eq!(counted, [2, 0, 0, 0, 0]);
}
