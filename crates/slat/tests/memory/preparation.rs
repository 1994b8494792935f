//! What KVM's preparation of a region did in v5.4 and is kept, step by step.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use slat::Outcome;
use slat::config::WriteCheck;
use slat::errno::Errno;
use slat::host::PageKind;
use slat::prepare::PrepareError;
use slat::region::SlotId;
use slat::report::{Backing, Reason};
use slat::table::address::{Gpa, Hpa};
use slat::table::attributes::Access;
use slat::table::format::Format;
use slat::table::simulated::Event;
use slat::transaction::TransactionError;
use slat::vcpu::Denial;

use crate::rows::{MEMORY_TYPES, Row};
use crate::scripted_host::{Mapping, hva_range};
use crate::vm::{is_mapped, region, steps};

fn prepare_error(error: TransactionError) -> PrepareError {
    match error {
        TransactionError::Prepare(error) => error,
        other => panic!("{other} is not about the host's mappings"),
    }
}

fn deleting_asks_nothing_of_the_mappings<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, row.page)]);
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    vm.host_changes(hva_range(row.hva, row.page), |host| {
        host.unmap(hva_range(row.hva, row.page));
    });
    vm.host.questions();
    vm.memory.remove(SlotId(1)).unwrap();
    assert!(vm.host.questions().is_empty());
    vm.end();
}

fn the_guest_range_is_judged_before_the_mappings<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, row.page).read_only()]);
    let outside = region(1, 1 << row.bits, row.page, row.hva);
    let error = vm.memory.insert(outside).unwrap_err();
    assert_eq!(error.errno(), Errno::EFAULT);
}

fn the_mappings_are_locked_while_the_host_is_peeked<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.linear(row.hva, row.page, row.device)]);
    let locked = Arc::new(AtomicBool::new(false));
    let (host, seen) = (vm.host.clone(), Arc::clone(&locked));
    vm.host.during_next_question(move |_| {
        seen.store(host.is_locked(), Ordering::SeqCst);
    });
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    assert!(locked.load(Ordering::SeqCst));
    assert!(!vm.host.is_locked());
}

fn holes_are_no_error_wherever_they_are<F: Format>(row: Row<F>) {
    let page = |at: u64| row.ram(row.hva + at * row.page, row.page);
    let cases: [(&str, Vec<Mapping>); 4] = [
        ("everything", vec![]),
        ("first", vec![page(2)]),
        ("last", vec![page(0)]),
        ("between", vec![page(0), page(2)]),
    ];
    for (hole, mappings) in cases {
        let vm = row.vm(&mappings);
        let report = vm
            .memory
            .insert(region(1, row.gpa, 3 * row.page, row.hva))
            .unwrap();
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
            .map(row.ram(gap.hva().start().raw(), gap.hva().bytes()));
        assert!(is_mapped(&vm.read(gap.range().start().raw())), "{hole}");
    }
}

fn a_writable_region_over_a_mapping_that_cannot_be_written_is_refused_with_eperm<F: Format>(
    row: Row<F>,
) {
    let readable = row.ram(row.hva + row.page, row.page).read_only();
    let vm = row.vm(&[row.ram(row.hva, row.page), readable]);
    let before = vm.state();
    let error = vm
        .memory
        .insert(region(1, row.gpa, 2 * row.page, row.hva))
        .unwrap_err();
    assert_eq!(error.errno(), Errno::EPERM);
    let (id, vma) = (SlotId(1), readable.vma.range);
    assert_eq!(prepare_error(error), PrepareError::NotWritable { id, vma });
    assert_eq!(vm.state(), before);
    assert!(!vm.is_found(hva_range(row.hva, 2 * row.page)));
}

fn a_read_only_region_may_have_a_mapping_that_cannot_be_written<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, row.page).read_only()]);
    let flash = region(1, row.gpa, row.page, row.hva).read_only();
    vm.memory.insert(flash).unwrap();
    assert!(is_mapped(&vm.read(row.gpa)));
    assert_eq!(vm.sees(row.gpa).map(|(_, write)| write), Some(false));
}

fn a_lenient_check_creates_the_region_and_says_so<F: Format>(row: Row<F>) {
    let vm = row.vm_with(
        row.config().write_check(WriteCheck::Lenient),
        &[row.ram(row.hva, 2 * row.page).read_only()],
    );
    let report = vm
        .memory
        .insert(region(1, row.gpa, 2 * row.page, row.hva))
        .unwrap();
    let reasons = report.parts()[0].reasons();
    assert!(
        reasons.contains(&(Reason::NotWritable, 2 * row.page)),
        "{report}"
    );
    assert!(is_mapped(&vm.read(row.gpa)));
    let denied = Outcome::Denied {
        slot: SlotId(1),
        gpa: Gpa::new(row.gpa),
        access: Access::Write,
        reason: Denial::NotPermitted,
    };
    assert_eq!(vm.write(row.gpa), denied);
}

fn only_what_mapping_and_region_share_is_mapped<F: Format>(row: Row<F>) {
    let device = row.linear(row.hva - 3 * row.page, 10 * row.page, row.device);
    let vm = row.vm(&[device]);
    let report = vm
        .memory
        .insert(region(1, row.gpa, 2 * row.page, row.hva))
        .unwrap();
    assert_eq!(report.mapped_bytes(), 2 * row.page);
    assert_eq!(vm.mapped_bytes(), 2 * row.page);
    assert_eq!(vm.sees(row.gpa), Some((row.device + 3 * row.page, true)));
    assert_eq!(
        vm.sees(row.gpa + row.page),
        Some((row.device + 4 * row.page, true))
    );
}

fn device_memory_is_mapped_at_creation_and_takes_no_fault<F: Format>(row: Row<F>) {
    let bytes = row.span + row.span / 2;
    let vm = row.vm(&[row.linear(row.hva, bytes, row.device)]);
    let report = vm
        .memory
        .insert(region(1, row.gpa, bytes, row.hva))
        .unwrap();
    assert_eq!(report.mapped_bytes(), bytes);
    for at in steps(bytes, row.page) {
        assert_eq!(vm.sees(row.gpa + at), Some((row.device + at, true)));
    }
    let executable = vm.leaves().iter().any(|leaf| leaf.execute);
    let is_device = row.device_memory().is_some();
    assert_eq!(executable, !is_device, "device memory is not executable");
}

fn what_has_been_mapped_is_made_ready_for_the_guest_first<F: Format>(row: Row<F>) {
    let linear = row.linear(row.hva, row.page, row.device);
    let vm = row.vm(&[linear]);
    vm.machine.record();
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    let events = vm.machine.take_events();
    let prepared = Event::Prepared {
        hpa: Hpa::new(row.device),
        bytes: row.page,
        memory: linear.vma.memory,
        executable: linear.vma.kind == PageKind::Ram,
    };
    let prepared = events.iter().position(|event| *event == prepared);
    // The leaf is what was written last.
    let is_write = |event: &Event| matches!(event, Event::Written { .. });
    let written = events.iter().rposition(is_write);
    let published = events.iter().rposition(|event| *event == Event::Published);
    assert!(prepared.is_some() && prepared < written && written < published);
}

fn device_memory_with_dirty_logging_is_refused_with_einval<F: Format>(row: Row<F>) {
    let device = Mapping::device(row.hva, row.page, row.device);
    let vm = row.vm(&[device]);
    let before = vm.state();
    let logged = region(1, row.gpa, row.page, row.hva).log_dirty();
    let error = vm.memory.insert(logged).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    let (id, vma) = (SlotId(1), device.vma.range);
    assert_eq!(prepare_error(error), PrepareError::DeviceLogged { id, vma });
    assert_eq!(vm.state(), before);
}

fn the_first_mapping_that_does_not_suit_decides<F: Format>(row: Row<F>) {
    let readable = row.ram(row.hva, row.page).read_only();
    let device = Mapping::device(row.hva + row.page, row.page, row.device);
    let vm = row.vm(&[readable, device]);
    let logged = |hva| region(1, row.gpa, 2 * row.page, hva).log_dirty();
    let error = vm.memory.insert(logged(row.hva)).unwrap_err();
    assert_eq!(error.errno(), Errno::EPERM);
    let readable = row.ram(row.hva + 2 * row.page, row.page).read_only();
    vm.host.map(readable);
    let error = vm.memory.insert(logged(row.hva + row.page)).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
}

fn dirty_logging_is_refused_with_eopnotsupp_while_there_is_no_log<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.ram(row.hva, row.page)]);
    let logged = region(1, row.gpa, row.page, row.hva).log_dirty();
    let error = vm.memory.insert(logged).unwrap_err();
    assert_eq!(error.errno(), Errno::EOPNOTSUPP);
    let id = SlotId(1);
    let expected = PrepareError::LoggingUnsupported { id };
    assert_eq!(prepare_error(error), expected);
    assert!(vm.memory.slots().slots().is_empty());
}

fn each_memory_type_reaches_the_tables_or_is_refused_with_einval<F: Format>(row: Row<F>) {
    for memory in MEMORY_TYPES {
        let device = Mapping::device(row.hva, row.page, row.device).memory(memory);
        let vm = row.vm(&[device]);
        let created = vm.memory.insert(region(1, row.gpa, row.page, row.hva));
        if row.honours(memory) {
            created.unwrap();
            assert_eq!(vm.memory_type(row.gpa), Some(memory));
            continue;
        }
        let error = created.unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL);
        let (id, vma) = (SlotId(1), device.vma.range);
        let expected = match row.refuses_device(memory) {
            // The guest could bypass it.
            _ if !F::forces(&row.features, memory) => PrepareError::MemoryType { id, vma, memory },
            Some(cause) => PrepareError::Unencodable { id, vma, cause },
            None => panic!("{memory:?} is honoured"),
        };
        assert_eq!(prepare_error(error), expected);
        assert!(vm.memory.slots().slots().is_empty());
    }
}

crate::rows::for_every_format! {
    deleting_asks_nothing_of_the_mappings,
    the_guest_range_is_judged_before_the_mappings,
    the_mappings_are_locked_while_the_host_is_peeked,
    holes_are_no_error_wherever_they_are,
    a_writable_region_over_a_mapping_that_cannot_be_written_is_refused_with_eperm,
    a_read_only_region_may_have_a_mapping_that_cannot_be_written,
    a_lenient_check_creates_the_region_and_says_so,
    only_what_mapping_and_region_share_is_mapped,
    device_memory_is_mapped_at_creation_and_takes_no_fault,
    what_has_been_mapped_is_made_ready_for_the_guest_first,
    device_memory_with_dirty_logging_is_refused_with_einval,
    the_first_mapping_that_does_not_suit_decides,
    dirty_logging_is_refused_with_eopnotsupp_while_there_is_no_log,
    each_memory_type_reaches_the_tables_or_is_refused_with_einval,
}
