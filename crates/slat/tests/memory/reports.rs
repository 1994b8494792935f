//! What a report says: every reason, and how it looks.

use slat::config::Config;
use slat::region::SlotId;
use slat::report::Reason;
use slat::table::attributes::MemoryType;
use slat::table::geometry::Level;

use crate::scripted_host::{Block, Failure, Mapping, hva_range};
use crate::vm::{BLOCK, DEVICE, GIB, GPA, HVA, MODERN, OLD, PAGE, Vm, gpa_range, region};

/// The reasons given for a region of `bytes` bytes at `gpa`.
fn reasons(vm: &Vm, gpa: u64, bytes: u64) -> Vec<(Reason, u64)> {
    let report = vm.memory.insert(region(1, gpa, bytes, HVA)).unwrap();
    let parts = report.parts().iter();
    let reasons: Vec<_> = parts.flat_map(|part| part.reasons().to_vec()).collect();
    let unmapped = reasons.iter().filter(|(reason, _)| reason.is_unmapped());
    let unmapped: u64 = unmapped.map(|(_, bytes)| bytes).sum();
    assert_eq!(report.mapped_bytes(), vm.mapped_bytes(), "{report}");
    assert_eq!(report.mapped_bytes() + unmapped, bytes, "{report}");
    reasons
}

fn small(mapping: Mapping) -> Vec<(Reason, u64)> {
    reasons(&Vm::new(&[mapping]), GPA, 2 * PAGE)
}

#[test]
fn hole() {
    let vm = Vm::new(&[]);
    assert_eq!(reasons(&vm, GPA, 2 * PAGE), [(Reason::Hole, 2 * PAGE)]);
}

#[test]
fn on_fault() {
    let vm = Vm::new(&[Mapping::device(HVA, 2 * PAGE, DEVICE)]);
    let asked = region(1, GPA, 2 * PAGE, HVA).mapping(slat::region::Mapping::OnFault);
    let report = vm.memory.insert(asked).unwrap();
    assert_eq!(report.parts()[0].reasons(), [(Reason::OnFault, 2 * PAGE)]);
    assert_eq!(vm.mapped_bytes(), 0);
}

#[test]
fn needs_host_fault() {
    let expected = [(Reason::NeedsHostFault, 2 * PAGE)];
    assert_eq!(small(Mapping::ram(HVA, 2 * PAGE)), expected);
}

#[test]
fn changing() {
    let vm = Vm::new(&[Mapping::device(HVA, 2 * PAGE, DEVICE)]);
    vm.host.fail(HVA, Failure::Busy);
    let expected = [(Reason::Changing, PAGE), (Reason::SlotBoundary, PAGE)];
    assert_eq!(reasons(&vm, GPA, 2 * PAGE), expected);
}

#[test]
fn not_permitted() {
    let vm = Vm::new(&[Mapping::device(HVA, 2 * PAGE, DEVICE)]);
    vm.host.fail(HVA + PAGE, Failure::NotPermitted);
    let expected = (Reason::NotPermitted, PAGE);
    // The first answer showed both pages, so the second was never asked for.
    let given = reasons(&vm, GPA, 2 * PAGE);
    assert!(!given.contains(&expected));
    let vm = Vm::new(&[Mapping::device(HVA, 2 * PAGE, DEVICE).blocks(PAGE)]);
    vm.host.fail(HVA + PAGE, Failure::NotPermitted);
    assert!(reasons(&vm, GPA, 2 * PAGE).contains(&expected));
}

#[test]
fn memory_type() {
    let mut device = Mapping::device(HVA, 2 * PAGE, DEVICE);
    device.page_memory = Some(MemoryType::WriteBack);
    let vm = Vm::with(Config::new(), OLD, &[device]);
    let given = reasons(&vm, GPA, 2 * PAGE);
    assert_eq!(given, [(Reason::MemoryType, 2 * PAGE)]);
}

#[test]
fn poisoned() {
    let vm = Vm::new(&[Mapping::device(HVA, 2 * PAGE, DEVICE)]);
    vm.host.fail(HVA, Failure::Poisoned);
    let given = reasons(&vm, GPA, 2 * PAGE);
    assert!(given.contains(&(Reason::Poisoned, PAGE)));
}

#[test]
fn a_driver_that_refuses_for_now_needs_a_host_fault() {
    let vm = Vm::new(&[Mapping::device(HVA, 2 * PAGE, DEVICE)]);
    vm.host.fail(HVA, Failure::DeviceGone);
    let given = reasons(&vm, GPA, 2 * PAGE);
    assert!(given.contains(&(Reason::NeedsHostFault, PAGE)));
}

#[test]
fn out_of_tables() {
    // The first allocation of all: nothing of the part can be mapped, however large its blocks.
    let vm = Vm::new(&[Mapping::device(HVA, 2 * BLOCK, DEVICE)]);
    vm.machine.fail_allocation(0);
    let given = reasons(&vm, GPA, 2 * BLOCK);
    assert_eq!(given, [(Reason::OutOfTables, 2 * BLOCK)]);
}

#[test]
fn unencodable() {
    // More bits than an entry holds.
    let beyond = Mapping::device(HVA, 2 * PAGE, 1 << 48);
    assert_eq!(small(beyond), [(Reason::Unencodable, 2 * PAGE)]);
}

#[test]
fn not_writable() {
    let vm = Vm::lenient(&[Mapping::device(HVA, 2 * PAGE, DEVICE).read_only()]);
    let given = reasons(&vm, GPA, 2 * PAGE);
    assert!(given.contains(&(Reason::NotWritable, 2 * PAGE)));
    // A page that is still shared, in a mapping that can be written.
    let vm = Vm::new(&[Mapping::ram(HVA, 2 * PAGE)]);
    let shared = Block {
        bytes: PAGE,
        hpa: DEVICE,
        writable: false,
        memory: MemoryType::WriteBack,
    };
    vm.host.put(HVA, shared);
    let given = reasons(&vm, GPA, 2 * PAGE);
    assert!(given.contains(&(Reason::NotWritable, PAGE)));
}

#[test]
fn slot_boundary() {
    let expected = [(Reason::SlotBoundary, 2 * PAGE)];
    let device = Mapping::device(HVA, BLOCK, DEVICE);
    assert_eq!(small(device), expected);
}

#[test]
fn not_congruent() {
    let vm = Vm::new(&[Mapping::ram(HVA, 2 * BLOCK).blocks(BLOCK)]);
    for at in [0, BLOCK] {
        vm.host.put_ram(HVA + at, BLOCK, DEVICE + at);
    }
    let given = reasons(&vm, GPA + PAGE, 2 * BLOCK);
    let edge = BLOCK - PAGE;
    // The guest's middle block lies inside the slot, the ends of the slot do not fill one.
    assert!(given.contains(&(Reason::SlotBoundary, BLOCK)), "{given:?}");
    assert!(given.contains(&(Reason::NotCongruent, BLOCK)), "{given:?}");
    assert_eq!(vm.leaf_bytes(GPA + edge), PAGE);
}

#[test]
fn vma_boundary() {
    let vm = Vm::new(&[Mapping::device(HVA, PAGE, DEVICE)]);
    let given = reasons(&vm, GPA, BLOCK);
    assert!(given.contains(&(Reason::VmaBoundary, PAGE)));
}

#[test]
fn host_address() {
    let vm = Vm::new(&[Mapping::device(HVA, BLOCK, DEVICE + PAGE)]);
    let given = reasons(&vm, GPA, BLOCK);
    assert_eq!(given, [(Reason::HostAddress, BLOCK)]);
}

#[test]
fn host_block() {
    let vm = Vm::new(&[Mapping::device(HVA, BLOCK, DEVICE).blocks(PAGE)]);
    assert_eq!(reasons(&vm, GPA, BLOCK), [(Reason::HostBlock, BLOCK)]);
    let vm = Vm::new(&[Mapping::ram(HVA, BLOCK)]);
    for at in (0..BLOCK).step_by(4096) {
        vm.host.put_ram(HVA + at, PAGE, DEVICE + 3 * at);
    }
    assert_eq!(reasons(&vm, GPA, BLOCK), [(Reason::HostBlock, BLOCK)]);
}

#[test]
fn nothing_larger_exists_so_no_reason_is_given() {
    // Sixteen blocks of 1 GiB that lie together are the most that one translation can map.
    let largest = 16 * GIB;
    let vm = Vm::new(&[Mapping::device(HVA, largest, largest)]);
    assert_eq!(reasons(&vm, largest, largest), []);
}

#[test]
fn a_report_says_what_was_mapped_and_why_not_more() {
    let device = Mapping::device(HVA, 2 * BLOCK + 16 * PAGE, DEVICE);
    let ram = Mapping::ram(HVA + 4 * BLOCK, BLOCK).read_only();
    let vm = Vm::lenient(&[device, ram]);
    let asked = region(3, GPA, 8 * BLOCK, HVA);
    let report = vm.memory.insert(asked).unwrap();
    let expected = "\
slot 3 at 0x40000000..0x41000000: 4160 KiB of 16 MiB mapped
  0x40000000..0x40410000 PFNMAP Device, 2 x 2 MiB, 16 x 4 KiB
    4 MiB limited: a larger block would leave the slot
    64 KiB limited: a larger block would leave the host's mapping
  0x40410000..0x40800000 hole
    4032 KiB not mapped: the host maps nothing there
  0x40800000..0x40a00000 RAM WriteBack
    2 MiB limited: the host does not let it be written
    2 MiB not mapped: the host would have to act first
  0x40a00000..0x41000000 hole
    6 MiB not mapped: the host maps nothing there";
    assert_eq!(report.to_string(), expected);
}

#[test]
fn a_report_counts_leaves_by_level() {
    let vm = Vm::new(&[Mapping::device(HVA, GIB + BLOCK + PAGE, DEVICE)]);
    let bytes = GIB + BLOCK + PAGE;
    let report = vm.memory.insert(region(1, GPA, bytes, HVA)).unwrap();
    assert_eq!(report.id(), SlotId(1));
    assert_eq!(report.range(), gpa_range(GPA, bytes));
    assert_eq!(report.leaves()[..3], [1, 1, 1]);
    assert_eq!(report.parts()[0].leaves(), &report.leaves());
    assert_eq!(report.parts()[0].hva(), hva_range(HVA, bytes));
    let sizes = [0, 1, 2, 3].map(|level| report.granule(Level::new(level)));
    assert_eq!(sizes, [PAGE, BLOCK, GIB, 0]);
    let table = vm.memory.table();
    assert_eq!(
        table.count_leaves(&report.range())[..3],
        report.leaves()[..3]
    );
}

#[test]
fn a_vm_s_tables_are_no_more_than_what_it_maps_needs() {
    let vm = Vm::with(
        Config::new(),
        MODERN,
        &[Mapping::device(HVA, GIB + BLOCK, DEVICE)],
    );
    vm.memory.insert(region(1, GPA, GIB + BLOCK, HVA)).unwrap();
    let stats = vm.memory.stats();
    assert_eq!(stats.table_bytes, vm.memory.minimum_table_bytes());
    assert_eq!(stats.tables, 2, "the root, and one for the 2 MiB block");
}
