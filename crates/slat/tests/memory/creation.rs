//! A region's creation changes nothing or leaves it live, whichever allocation fails.

use slat::config::Config;
use slat::region::SlotId;
use slat::table::format::Format;
use slat::table::format::arm64::Arm64;
use slat::table::geometry::Level;
use slat::table::table::NewTableError;

use crate::rows::Row;
use crate::scripted_host::{ScriptedHost, hva_range};
use crate::vm::{MODERN, Machine, Memory, Vm, is_mapped, region};

/// Spans of the region.
const SPANS: u64 = 6;

/// A region that needs tables in many places: pages, blocks, a device, and holes between.
fn machine<F: Format>(row: &Row<F>) -> Vm<F> {
    let (hva, page, span) = (row.hva, row.page, row.span);
    // Over the end of a table of pages.
    let linear = 3 * span - 20 * page;
    let vm = row.vm(&[
        row.ram(hva, 2 * span),
        row.linear(hva + linear, 40 * page, row.device + linear),
        row.ram(hva + 4 * span, 2 * span).blocks(span),
    ]);
    vm.host.put_ram(hva + page, page, row.chosen);
    vm.host.put_ram(hva + span, page, row.chosen + page);
    vm.host.put_ram(hva + 4 * span, span, row.chosen + span);
    vm
}

/// Where the region is: where its second span ends, another upper table begins, if there are any,
/// or where the next slot could be.
fn place<F: Format>(row: &Row<F>) -> u64 {
    let upper = row.geometry.table_maps(Level::new(1)).min(row.gpa);
    row.gpa + upper - 2 * row.span
}

/// Asserts that the slot at `place` is live: invalidations find it and faults fill it.
fn assert_live<F: Format>(row: &Row<F>, vm: &Vm<F>) {
    vm.machine.allow_allocations();
    let (page, span) = (row.page, row.span);
    for offset in [page, span, 3 * span - page, 4 * span, SPANS * span - page] {
        let outcome = vm.read(place(row) + offset);
        let host = vm.host.look(row.hva + offset);
        assert_eq!(vm.sees(place(row) + offset), host, "{outcome:?}");
    }
    assert!(vm.is_found(hva_range(row.hva, SPANS * span)));
    assert_eq!(vm.mapped_bytes(), 0);
}

fn whichever_table_allocation_fails_a_new_region_is_live<F: Format>(row: Row<F>) {
    let vm = machine(&row);
    let before = vm.machine.allocations();
    vm.memory
        .insert(region(1, place(&row), SPANS * row.span, row.hva))
        .unwrap();
    let needed = vm.machine.allocations() - before;
    assert!(needed >= 3, "the region needs {needed} tables");
    let whole = vm.state();

    for failing in 0..=needed {
        for all_from_there in [false, true] {
            let vm = machine(&row);
            let fresh = vm.state();
            if all_from_there {
                vm.machine.fail_allocations_from(failing);
            } else {
                vm.machine.fail_allocation(failing);
            }
            match vm
                .memory
                .insert(region(1, place(&row), SPANS * row.span, row.hva))
            {
                Ok(report) => {
                    let state = vm.state();
                    assert_eq!(report.mapped_bytes(), vm.mapped_bytes());
                    assert_eq!(state.slots, whole.slots);
                    assert_eq!(state.tables, state.live_tables);
                    let is_part = state.leaves.iter().all(|leaf| whole.leaves.contains(leaf));
                    assert!(is_part, "failing {failing}: {report}");
                    if failing == needed {
                        assert_eq!(state, whole, "the last one was not needed");
                    }
                    assert_live(&row, &vm);
                }
                Err(error) => {
                    assert_eq!(vm.state(), fresh, "{error}");
                    assert!(!vm.is_found(hva_range(row.hva, SPANS * row.span)));
                }
            }
            vm.end();
        }
    }
}

fn whichever_table_allocation_fails_a_replacement_is_whole<F: Format>(row: Row<F>) {
    let enough = 16;
    for failing in 0..enough {
        let vm = machine(&row);
        let old = region(1, row.gpa, row.span, row.hva + 4 * row.span);
        vm.memory.insert(old).unwrap();
        vm.machine.fail_allocations_from(failing);
        let replacement = region(1, place(&row), SPANS * row.span, row.hva);
        let transaction = vm.memory.transaction().delete(SlotId(1));
        transaction.create(replacement).commit().unwrap();
        assert_eq!(vm.sees(row.gpa), None, "the old place is gone");
        assert_eq!(vm.memory.slots().slots().len(), 1);
        assert_live(&row, &vm);
        vm.end();
    }
}

fn a_refused_transaction_changes_none_of_its_slots<F: Format>(row: Row<F>) {
    let vm = machine(&row);
    vm.memory
        .insert(region(1, row.gpa, row.span, row.hva + 4 * row.span))
        .unwrap();
    let before = vm.state();
    let transaction = vm.memory.transaction().delete(SlotId(1));
    let refused = transaction
        .create(region(2, place(&row), SPANS * row.span, row.hva))
        .create(region(3, 1 << row.bits, row.page, row.hva));
    assert!(refused.commit().is_err());
    assert_eq!(vm.state(), before);
    assert!(!vm.is_found(hva_range(row.hva, row.span)));
    assert!(vm.is_found(hva_range(row.hva + 4 * row.span, row.span)));
    vm.end();
}

fn a_fault_without_memory_for_tables_changes_nothing_and_can_be_repeated<F: Format>(row: Row<F>) {
    let vm = machine(&row);
    let on_fault =
        region(1, place(&row), SPANS * row.span, row.hva).mapping(slat::region::Mapping::OnFault);
    vm.memory.insert(on_fault).unwrap();
    let before = vm.state();
    // As many as there are levels below the root.
    for failing in 0..row.geometry.root().index() as u64 {
        vm.machine.fail_allocation(failing);
        let mut vcpu = vm.memory.vcpu();
        let gpa = slat::table::address::Gpa::new(place(&row) + row.page);
        let access = slat::table::attributes::Access::Read;
        let error = vcpu.fault(slat::Fault { gpa, access }).unwrap_err();
        assert!(matches!(error, slat::vcpu::FaultError::OutOfTables(_)));
        drop(vcpu);
        assert_eq!(vm.state(), before);
    }
    assert!(is_mapped(&vm.read(place(&row) + row.page)));
    vm.end();
}

#[test]
fn a_number_of_stripes_that_is_no_power_of_two_is_refused() {
    let (host, machine) = (ScriptedHost::new(&[]), Machine::new());
    let config = Config::new().stripes(3);
    let refused = Memory::<Arm64>::new(host, machine.clone(), MODERN, config);
    assert_eq!(refused.err(), Some(NewTableError::Stripes(3)));
    assert_eq!(machine.live_tables(), 0);
}

crate::rows::for_every_format! {
    whichever_table_allocation_fails_a_new_region_is_live,
    whichever_table_allocation_fails_a_replacement_is_whole,
    a_refused_transaction_changes_none_of_its_slots,
    a_fault_without_memory_for_tables_changes_nothing_and_can_be_repeated,
}
