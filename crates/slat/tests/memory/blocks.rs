//! How large a leaf may be: one test for each condition.

use slat::report::Reason;

use crate::scripted_host::Mapping;
use crate::vm::{BLOCK, DEVICE, GIB, GPA, HVA, PAGE, Vm, is_mapped, region};

/// Pages that hardware may keep as one translation: a leaf of a size of its own.
const RUN: u64 = 16 * PAGE;

/// Creates a region over `mapping`, touches the page at `offset`, and returns the leaf's size.
fn leaf(mapping: Mapping, gpa: u64, bytes: u64, hva: u64, offset: u64) -> u64 {
    let vm = Vm::new(&[mapping]);
    let region = region(1, gpa, bytes, hva).mapping(slat::region::Mapping::OnFault);
    vm.memory.insert(region).unwrap();
    assert!(is_mapped(&vm.read(gpa + offset)));
    let (hpa, _) = vm.sees(gpa + offset).unwrap();
    assert_eq!(
        Some(hpa),
        vm.host.look(hva + offset).map(|(hpa, _)| hpa),
        "whatever the size, the address is the host's"
    );
    let bytes = vm.leaf_bytes(gpa + offset);
    vm.end();
    bytes
}

#[test]
fn a_leaf_is_as_large_as_everything_allows() {
    let ram = |bytes| Mapping::ram(HVA, 2 * GIB).blocks(bytes);
    for bytes in [PAGE, BLOCK, GIB] {
        assert_eq!(leaf(ram(bytes), GPA, 2 * GIB, HVA, 5 * PAGE), bytes);
        let device = Mapping::device(HVA, 2 * GIB, DEVICE).blocks(bytes);
        assert_eq!(leaf(device, GPA, 2 * GIB, HVA, 5 * PAGE), bytes);
    }
}

#[test]
fn a_leaf_is_never_larger_than_the_format_has() {
    let device = Mapping::device(HVA, 4 * GIB, DEVICE);
    assert_eq!(leaf(device, 4 * GIB, 4 * GIB, HVA, 0), GIB);
}

#[test]
fn a_leaf_does_not_leave_the_slot() {
    let ram = Mapping::ram(HVA, 2 * BLOCK).blocks(BLOCK);
    let device = Mapping::device(HVA, 2 * BLOCK, DEVICE);
    for mapping in [ram, device] {
        // A slot of one page less than the block, at its start and at its end.
        assert_eq!(leaf(mapping, GPA, BLOCK - PAGE, HVA, 0), RUN);
        let (gpa, hva) = (GPA + PAGE, HVA + PAGE);
        assert_eq!(leaf(mapping, gpa, BLOCK - PAGE, hva, 0), PAGE);
        // Beyond the part of the block that the slot has, the next block fits.
        assert_eq!(
            leaf(mapping, gpa, 2 * BLOCK - PAGE, hva, BLOCK - PAGE),
            BLOCK
        );
    }
}

#[test]
fn ram_needs_guest_and_host_addresses_that_agree_in_the_block() {
    let ram = Mapping::ram(HVA, 4 * GIB).blocks(GIB);
    assert_eq!(leaf(ram, GPA + PAGE, GIB, HVA, GIB / 2), PAGE);
    assert_eq!(leaf(ram, GPA + BLOCK, 2 * GIB, HVA, GIB), BLOCK);
    assert_eq!(
        leaf(ram, GPA + PAGE, 2 * GIB, HVA + GIB + PAGE, GIB + BLOCK),
        GIB
    );
}

#[test]
fn a_leaf_is_not_larger_than_the_host_s_block() {
    let ram = Mapping::ram(HVA, GIB).blocks(8 * PAGE);
    assert_eq!(leaf(ram, GPA, GIB, HVA, 0), PAGE);
    let ram = Mapping::ram(HVA, GIB).blocks(RUN);
    assert_eq!(leaf(ram, GPA, GIB, HVA, 3 * PAGE), RUN);
    let ram = Mapping::ram(HVA, GIB).blocks(2 * BLOCK);
    assert_eq!(leaf(ram, GPA, GIB, HVA, 3 * PAGE), BLOCK);
}

#[test]
fn a_device_leaf_needs_a_physical_address_aligned_to_it() {
    let device = |hpa| Mapping::device(HVA, 2 * GIB, hpa);
    assert_eq!(leaf(device(DEVICE + PAGE), GPA, 2 * GIB, HVA, 0), PAGE);
    assert_eq!(leaf(device(DEVICE + BLOCK), GPA, 2 * GIB, HVA, 0), BLOCK);
    // Where guest and physical address agree, the virtual one does not matter.
    let aside = Mapping::device(HVA + PAGE, GIB, DEVICE);
    assert_eq!(leaf(aside, GPA, GIB, HVA + PAGE, 7 * PAGE), GIB);
}

#[test]
fn a_device_leaf_does_not_leave_its_mapping() {
    // The mapping ends in the middle of a block, and physical memory goes on.
    let device = Mapping::device(HVA, BLOCK + 4 * PAGE, DEVICE);
    let next = Mapping::device(HVA + BLOCK + 4 * PAGE, BLOCK, DEVICE + BLOCK + 4 * PAGE);
    let vm = Vm::new(&[device, next]);
    let report = vm.memory.insert(region(1, GPA, 2 * BLOCK, HVA)).unwrap();
    assert_eq!(vm.leaf_bytes(GPA), BLOCK);
    // Also when the address asked for is the first of the block.
    assert_eq!(vm.leaf_bytes(GPA + BLOCK), PAGE);
    assert_eq!(vm.mapped_bytes(), 2 * BLOCK);
    let reasons = report.parts()[0].reasons();
    assert!(reasons.contains(&(Reason::VmaBoundary, 4 * PAGE)));
}

#[test]
fn a_mapping_that_starts_in_the_middle_of_a_block_gets_pages_up_to_its_end() {
    let device = Mapping::device(HVA + 4 * PAGE, 2 * BLOCK, DEVICE + 4 * PAGE);
    let vm = Vm::new(&[device]);
    vm.memory.insert(region(1, GPA, 4 * BLOCK, HVA)).unwrap();
    assert_eq!(vm.leaf_bytes(GPA), 0);
    assert_eq!(vm.leaf_bytes(GPA + 4 * PAGE), PAGE);
    assert_eq!(vm.leaf_bytes(GPA + BLOCK), BLOCK);
    assert_eq!(vm.leaf_bytes(GPA + 2 * BLOCK), PAGE);
    assert_eq!(vm.mapped_bytes(), 2 * BLOCK);
}

#[test]
fn the_address_width_bounds_a_leaf_too() {
    let last = (1 << 40) - BLOCK;
    let ram = Mapping::ram(HVA, BLOCK).blocks(BLOCK);
    assert_eq!(leaf(ram, last, BLOCK, HVA, BLOCK - PAGE), BLOCK);
}
