//! What KVM's preparation of a region did in v5.4 and is kept, step by step.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use slat::Outcome;
use slat::config::Config;
use slat::errno::Errno;
use slat::prepare::PrepareError;
use slat::region::SlotId;
use slat::report::{Backing, Reason};
use slat::table::address::Gpa;
use slat::table::attributes::{Access, MemoryType};
use slat::table::simulated::Event;
use slat::transaction::TransactionError;
use slat::vcpu::Denial;

use crate::scripted_host::{Mapping, hva_range};
use crate::vm::{DEVICE, GPA, HVA, MIB, MODERN, OLD, PAGE, Vm, is_mapped, region};

fn prepare_error(error: TransactionError) -> PrepareError {
    match error {
        TransactionError::Prepare(error) => error,
        other => panic!("{other} is not about the host's mappings"),
    }
}

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
