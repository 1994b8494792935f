//! A region's creation changes nothing or leaves it live, whichever allocation fails.

use slat::config::Config;
use slat::region::SlotId;
use slat::table::format::arm64::Arm64;
use slat::table::table::NewTableError;

use crate::scripted_host::{Mapping, ScriptedHost, hva_range};
use crate::vm::{
    BLOCK, DEVICE, GIB, GPA, HVA, MODERN, Machine, Memory, PAGE, Vm, is_mapped, region,
};

const BYTES: u64 = 6 * BLOCK;

/// A region that needs tables in many places: pages, blocks, a device, and holes between, across
/// the border of two upper tables.
fn machine() -> Vm {
    let vm = Vm::new(&[
        Mapping::ram(HVA, 2 * BLOCK),
        Mapping::device(HVA + 2 * BLOCK + PAGE, BLOCK, DEVICE + PAGE),
        Mapping::ram(HVA + 4 * BLOCK, 2 * BLOCK).blocks(BLOCK),
    ]);
    vm.host.put_ram(HVA + PAGE, PAGE, 0x8000_0000_0000);
    vm.host.put_ram(HVA + BLOCK, PAGE, 0x8000_0001_0000);
    vm.host.put_ram(HVA + 4 * BLOCK, BLOCK, 0x8000_4000_0000);
    vm
}

/// Where the second of the region's six blocks ends, another upper table begins.
const PLACE: u64 = 2 * GIB - 2 * BLOCK;

/// Asserts that the slot at `PLACE` is live: invalidations find it and faults fill it.
fn assert_live(vm: &Vm) {
    vm.machine.allow_allocations();
    assert!(is_live(vm));
}

fn is_live(vm: &Vm) -> bool {
    let pages = [PAGE, BLOCK, 2 * BLOCK + PAGE, 4 * BLOCK, BYTES - PAGE];
    for offset in pages {
        let outcome = vm.read(PLACE + offset);
        let host = vm.host.look(HVA + offset);
        assert_eq!(vm.sees(PLACE + offset), host, "{outcome:?}");
    }
    vm.is_found(hva_range(HVA, BYTES)) && vm.mapped_bytes() == 0
}

#[test]
fn whichever_table_allocation_fails_a_new_region_is_live() {
    let vm = machine();
    let before = vm.machine.allocations();
    vm.memory.insert(region(1, PLACE, BYTES, HVA)).unwrap();
    let needed = vm.machine.allocations() - before;
    assert!(needed > 4, "the region needs {needed} tables");
    let whole = vm.state();

    for failing in 0..=needed {
        for all_from_there in [false, true] {
            let vm = machine();
            let fresh = vm.state();
            if all_from_there {
                vm.machine.fail_allocations_from(failing);
            } else {
                vm.machine.fail_allocation(failing);
            }
            match vm.memory.insert(region(1, PLACE, BYTES, HVA)) {
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
                    assert_live(&vm);
                }
                Err(error) => {
                    assert_eq!(vm.state(), fresh, "{error}");
                    assert!(!vm.is_found(hva_range(HVA, BYTES)));
                }
            }
            vm.end();
        }
    }
}

#[test]
fn whichever_table_allocation_fails_a_replacement_is_whole() {
    let needed = 12;
    for failing in 0..needed {
        let vm = machine();
        let old = region(1, GPA, BLOCK, HVA + 4 * BLOCK);
        vm.memory.insert(old).unwrap();
        vm.machine.fail_allocations_from(failing);
        let replacement = region(1, PLACE, BYTES, HVA);
        let transaction = vm.memory.transaction().delete(SlotId(1));
        transaction.create(replacement).commit().unwrap();
        assert_eq!(vm.sees(GPA), None, "the old place is gone");
        assert_eq!(vm.memory.slots().slots().len(), 1);
        assert_live(&vm);
        vm.end();
    }
}

#[test]
fn a_refused_transaction_changes_none_of_its_slots() {
    let vm = machine();
    vm.memory
        .insert(region(1, GPA, BLOCK, HVA + 4 * BLOCK))
        .unwrap();
    let before = vm.state();
    let transaction = vm.memory.transaction().delete(SlotId(1));
    let refused = transaction
        .create(region(2, PLACE, BYTES, HVA))
        .create(region(3, 1 << 40, PAGE, HVA));
    assert!(refused.commit().is_err());
    assert_eq!(vm.state(), before);
    assert!(!vm.is_found(hva_range(HVA, BLOCK)));
    assert!(vm.is_found(hva_range(HVA + 4 * BLOCK, BLOCK)));
    vm.end();
}

#[test]
fn a_fault_without_memory_for_tables_changes_nothing_and_can_be_repeated() {
    let vm = machine();
    let on_fault = region(1, PLACE, BYTES, HVA).mapping(slat::region::Mapping::OnFault);
    vm.memory.insert(on_fault).unwrap();
    let before = vm.state();
    for failing in 0..2 {
        vm.machine.fail_allocation(failing);
        let mut vcpu = vm.memory.vcpu();
        let gpa = slat::table::address::Gpa::new(PLACE + PAGE);
        let access = slat::table::attributes::Access::Read;
        let error = vcpu.fault(slat::Fault { gpa, access }).unwrap_err();
        assert!(matches!(error, slat::vcpu::FaultError::OutOfTables(_)));
        drop(vcpu);
        assert_eq!(vm.state(), before);
    }
    assert!(is_mapped(&vm.read(PLACE + PAGE)));
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
