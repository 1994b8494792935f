//! What KVM's preparation of a region did in v5.4 and is kept, and its hazards that are avoided.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use slat::config::Config;
use slat::errno::Errno;
use slat::host::PageKind;
use slat::notifier::Notifier;
use slat::prepare::PrepareError;
use slat::region::SlotId;
use slat::report::{Backing, Reason};
use slat::table::address::Gpa;
use slat::table::attributes::{Access, MemoryType};
use slat::table::simulated::Event;
use slat::transaction::TransactionError;
use slat::vcpu::Denial;
use slat::{Fault, Outcome};

use crate::scripted_host::{Mapping, hva_range};
use crate::vm::{BLOCK, DEVICE, GIB, GPA, HVA, MIB, MODERN, OLD, PAGE, Vm, is_mapped, region};

fn prepare_error(error: TransactionError) -> PrepareError {
    match error {
        TransactionError::Prepare(error) => error,
        other => panic!("{other} is not about the host's mappings"),
    }
}

// What is kept.

#[test]
fn deleting_asks_nothing_of_the_mappings() {
    let vm = Vm::new(&[Mapping::ram(HVA, PAGE)]);
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    vm.host_changes(hva_range(HVA, PAGE), |host| {
        host.unmap(hva_range(HVA, PAGE));
    });
    vm.host.questions();
    vm.memory.remove(SlotId(1)).unwrap();
    assert!(vm.host.questions().is_empty());
    vm.end();
}

#[test]
fn the_guest_range_is_judged_before_the_mappings() {
    let vm = Vm::new(&[Mapping::ram(HVA, PAGE).read_only()]);
    let outside = region(1, 1 << 40, PAGE, HVA);
    let error = vm.memory.insert(outside).unwrap_err();
    assert_eq!(error.errno(), Errno::EFAULT);
}

#[test]
fn the_mappings_are_locked_while_the_host_is_peeked() {
    let vm = Vm::new(&[Mapping::device(HVA, PAGE, DEVICE)]);
    let locked = Arc::new(AtomicBool::new(false));
    let (host, seen) = (vm.host.clone(), Arc::clone(&locked));
    vm.host.during_next_question(move |_| {
        seen.store(host.is_locked(), Ordering::SeqCst);
    });
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    assert!(locked.load(Ordering::SeqCst));
    assert!(!vm.host.is_locked());
}

#[test]
fn holes_are_no_error_wherever_they_are() {
    let page = |at: u64| Mapping::ram(HVA + at * PAGE, PAGE);
    let cases: [(&str, Vec<Mapping>); 4] = [
        ("everything", vec![]),
        ("first", vec![page(2)]),
        ("last", vec![page(0)]),
        ("between", vec![page(0), page(2)]),
    ];
    for (hole, mappings) in cases {
        let vm = Vm::new(&mappings);
        let report = vm.memory.insert(region(1, GPA, 3 * PAGE, HVA)).unwrap();
        let holes = report.parts().iter().filter(|part| {
            let noted = part.reasons() == [(Reason::Hole, part.range().bytes())];
            part.backing() == Backing::Hole && noted
        });
        assert_eq!(holes.count(), 1, "{hole}");
        assert_eq!(report.parts().len(), mappings.len() + 1, "{hole}");
        // What is mapped there later is found by a fault.
        let gap = report
            .parts()
            .iter()
            .find(|part| part.backing() == Backing::Hole)
            .unwrap();
        vm.host
            .map(Mapping::ram(gap.hva().start().raw(), gap.hva().bytes()));
        assert!(is_mapped(&vm.read(gap.range().start().raw())), "{hole}");
    }
}

#[test]
fn a_writable_region_over_a_mapping_that_cannot_be_written_is_refused_with_eperm() {
    let readable = Mapping::ram(HVA + PAGE, PAGE).read_only();
    let vm = Vm::new(&[Mapping::ram(HVA, PAGE), readable]);
    let before = vm.state();
    let error = vm.memory.insert(region(1, GPA, 2 * PAGE, HVA)).unwrap_err();
    assert_eq!(error.errno(), Errno::EPERM);
    let (id, vma) = (SlotId(1), readable.vma.range);
    assert_eq!(prepare_error(error), PrepareError::NotWritable { id, vma });
    assert_eq!(vm.state(), before);
    assert!(!vm.is_found(hva_range(HVA, 2 * PAGE)));
}

#[test]
fn a_read_only_region_may_have_a_mapping_that_cannot_be_written() {
    let vm = Vm::new(&[Mapping::ram(HVA, PAGE).read_only()]);
    let flash = region(1, GPA, PAGE, HVA).read_only();
    vm.memory.insert(flash).unwrap();
    assert!(is_mapped(&vm.read(GPA)));
    assert_eq!(vm.sees(GPA).map(|(_, write)| write), Some(false));
}

#[test]
fn a_lenient_check_creates_the_region_and_says_so() {
    let vm = Vm::lenient(&[Mapping::ram(HVA, 2 * PAGE).read_only()]);
    let report = vm.memory.insert(region(1, GPA, 2 * PAGE, HVA)).unwrap();
    let reasons = report.parts()[0].reasons();
    assert!(
        reasons.contains(&(Reason::NotWritable, 2 * PAGE)),
        "{report}"
    );
    assert!(is_mapped(&vm.read(GPA)));
    let denied = Outcome::Denied {
        slot: SlotId(1),
        gpa: Gpa::new(GPA),
        access: Access::Write,
        reason: Denial::NotPermitted,
    };
    assert_eq!(vm.write(GPA), denied);
}

#[test]
fn only_what_mapping_and_region_share_is_mapped() {
    let device = Mapping::device(HVA - 3 * PAGE, 10 * PAGE, DEVICE);
    let vm = Vm::new(&[device]);
    let report = vm.memory.insert(region(1, GPA, 2 * PAGE, HVA)).unwrap();
    assert_eq!(report.mapped_bytes(), 2 * PAGE);
    assert_eq!(vm.mapped_bytes(), 2 * PAGE);
    assert_eq!(vm.sees(GPA), Some((DEVICE + 3 * PAGE, true)));
    assert_eq!(vm.sees(GPA + PAGE), Some((DEVICE + 4 * PAGE, true)));
}

#[test]
fn device_memory_is_mapped_at_creation_and_takes_no_fault() {
    let vm = Vm::new(&[Mapping::device(HVA, 3 * MIB, DEVICE)]);
    let report = vm.memory.insert(region(1, GPA, 3 * MIB, HVA)).unwrap();
    assert_eq!(report.mapped_bytes(), 3 * MIB);
    for at in (0..3 * MIB).step_by(4096) {
        assert_eq!(vm.sees(GPA + at), Some((DEVICE + at, true)));
    }
    let only_device = vm.leaves().iter().all(|leaf| !leaf.execute);
    assert!(only_device, "device memory is not executable");
}

#[test]
fn what_has_been_mapped_is_made_ready_for_the_guest_first() {
    let vm = Vm::new(&[Mapping::device(HVA, PAGE, DEVICE)]);
    vm.machine.record();
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    let events = vm.machine.take_events();
    let at = |wanted: fn(&Event) -> bool| events.iter().position(wanted);
    let prepared = at(|event| {
        matches!(event, Event::Prepared { hpa, bytes: PAGE, memory: MemoryType::Device,
            executable: false } if hpa.raw() == DEVICE)
    });
    let written = at(
        |event| matches!(event, Event::Written { new, .. } if new & 3 == 3 && new >> 12 & 0xf_ffff_ffff == DEVICE >> 12),
    );
    let published = events.iter().rposition(|event| *event == Event::Published);
    assert!(prepared.is_some() && prepared < written && written < published);
}

#[test]
fn device_memory_with_dirty_logging_is_refused_with_einval() {
    let device = Mapping::device(HVA, PAGE, DEVICE);
    let vm = Vm::new(&[device]);
    let before = vm.state();
    let logged = region(1, GPA, PAGE, HVA).log_dirty();
    let error = vm.memory.insert(logged).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    let (id, vma) = (SlotId(1), device.vma.range);
    assert_eq!(prepare_error(error), PrepareError::DeviceLogged { id, vma });
    assert_eq!(vm.state(), before);
}

#[test]
fn the_first_mapping_that_does_not_suit_decides() {
    let readable = Mapping::ram(HVA, PAGE).read_only();
    let device = Mapping::device(HVA + PAGE, PAGE, DEVICE);
    let vm = Vm::new(&[readable, device]);
    let logged = |hva| region(1, GPA, 2 * PAGE, hva).log_dirty();
    let error = vm.memory.insert(logged(HVA)).unwrap_err();
    assert_eq!(error.errno(), Errno::EPERM);
    let readable = Mapping::ram(HVA + 2 * PAGE, PAGE).read_only();
    vm.host.map(readable);
    let error = vm.memory.insert(logged(HVA + PAGE)).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
}

#[test]
fn dirty_logging_is_refused_with_eopnotsupp_while_there_is_no_log() {
    let vm = Vm::new(&[Mapping::ram(HVA, PAGE)]);
    let logged = region(1, GPA, PAGE, HVA).log_dirty();
    let error = vm.memory.insert(logged).unwrap_err();
    assert_eq!(error.errno(), Errno::EOPNOTSUPP);
    let id = SlotId(1);
    let expected = PrepareError::LoggingUnsupported { id };
    assert_eq!(prepare_error(error), expected);
    assert!(vm.memory.slots().slots().is_empty());
}

#[test]
fn cacheable_device_memory_is_refused_with_einval_where_it_cannot_be_honoured() {
    let memory = MemoryType::WriteBack;
    let device = Mapping::device(HVA, PAGE, DEVICE).memory(memory);
    let vm = Vm::with(Config::new(), OLD, &[device]);
    let error = vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    let (id, vma) = (SlotId(1), device.vma.range);
    let expected = PrepareError::MemoryType { id, vma, memory };
    assert_eq!(prepare_error(error), expected);
    let vm = Vm::with(Config::new(), MODERN, &[device]);
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    assert_eq!(vm.memory_type(GPA), Some(memory));
}

#[test]
fn each_memory_type_reaches_the_tables() {
    use MemoryType::{Device, DeviceStrict, NonCacheable};
    for memory in [Device, DeviceStrict, NonCacheable] {
        let device = Mapping::device(HVA, PAGE, DEVICE).memory(memory);
        for features in [OLD, MODERN] {
            let vm = Vm::with(Config::new(), features, &[device]);
            vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
            assert_eq!(vm.memory_type(GPA), Some(memory));
        }
    }
}

// Hazards that are avoided.

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
