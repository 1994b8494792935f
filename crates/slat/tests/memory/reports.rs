//! What a report says: every reason, and, in 4 KiB pages on Arm, how it looks.

use slat::config::WriteCheck;
use slat::region::{Mapping as When, SlotId};
use slat::report::Reason;
use slat::table::address::Hpa;
use slat::table::attributes::{Attributes, MemoryType, Permissions};
use slat::table::format::Format;
use slat::table::geometry::Level;

use crate::rows::{MEMORY_TYPES, Row};
use crate::scripted_host::{Block, Failure, Mapping, hva_range};
use crate::vm::{BLOCK, DEVICE, GPA, HVA, PAGE, Vm, gpa_range, region, steps};

/// The reasons given for a region of `bytes` bytes at `gpa`.
fn reasons<F: Format>(row: &Row<F>, vm: &Vm<F>, gpa: u64, bytes: u64) -> Vec<(Reason, u64)> {
    let asked = region(1, gpa, bytes, row.hva);
    let report = vm.memory.insert(asked).unwrap();
    let parts = report.parts().iter();
    let reasons: Vec<_> = parts.flat_map(|part| part.reasons().to_vec()).collect();
    let unmapped = reasons.iter().filter(|(reason, _)| reason.is_unmapped());
    let unmapped: u64 = unmapped.map(|(_, bytes)| bytes).sum();
    assert_eq!(report.mapped_bytes(), vm.mapped_bytes(), "{report}");
    assert_eq!(report.mapped_bytes() + unmapped, bytes, "{report}");
    reasons
}

/// The reasons given for two pages over `mapping`.
fn of_two_pages<F: Format>(row: &Row<F>, mapping: Mapping) -> Vec<(Reason, u64)> {
    reasons(row, &row.vm(&[mapping]), row.gpa, 2 * row.page)
}

/// Two pages of linear memory, the first of which fails in this way.
fn of_a_failure<F: Format>(row: &Row<F>, failure: Failure) -> Vec<(Reason, u64)> {
    let vm = row.vm(&[row.linear(row.hva, 2 * row.page, row.device)]);
    vm.host.fail(row.hva, failure);
    reasons(row, &vm, row.gpa, 2 * row.page)
}

/// A limit on the size of leaves, where there is a size above a page's.
fn limit<F: Format>(row: &Row<F>, reason: Reason, bytes: u64) -> Vec<(Reason, u64)> {
    let larger = row.geometry.leaf_sizes().count() > 1;
    larger.then_some((reason, bytes)).into_iter().collect()
}

fn hole<F: Format>(row: Row<F>) {
    let (vm, bytes) = (row.vm(&[]), 2 * row.page);
    let given = reasons(&row, &vm, row.gpa, bytes);
    assert_eq!(given, [(Reason::Hole, bytes)]);
}

fn on_fault<F: Format>(row: Row<F>) {
    let bytes = 2 * row.page;
    let vm = row.vm(&[row.linear(row.hva, bytes, row.device)]);
    let asked = region(1, row.gpa, bytes, row.hva).mapping(When::OnFault);
    let report = vm.memory.insert(asked).unwrap();
    assert_eq!(report.parts()[0].reasons(), [(Reason::OnFault, bytes)]);
    assert_eq!(vm.mapped_bytes(), 0);
}

fn needs_host_fault<F: Format>(row: Row<F>) {
    let given = of_two_pages(&row, row.ram(row.hva, 2 * row.page));
    assert_eq!(given, [(Reason::NeedsHostFault, 2 * row.page)]);
}

fn changing<F: Format>(row: Row<F>) {
    let mut expected = vec![(Reason::Changing, row.page)];
    expected.extend(limit(&row, Reason::SlotBoundary, row.page));
    assert_eq!(of_a_failure(&row, Failure::Busy), expected);
}

fn not_permitted<F: Format>(row: Row<F>) {
    let (bytes, second) = (2 * row.page, row.hva + row.page);
    let expected = (Reason::NotPermitted, row.page);
    let linear = row.linear(row.hva, bytes, row.device);
    let vm = row.vm(&[linear]);
    vm.host.fail(second, Failure::NotPermitted);
    // The first answer showed both pages, so the second was never asked for.
    let given = reasons(&row, &vm, row.gpa, bytes);
    assert!(!given.contains(&expected));
    let vm = row.vm(&[linear.blocks(row.page)]);
    vm.host.fail(second, Failure::NotPermitted);
    assert!(reasons(&row, &vm, row.gpa, bytes).contains(&expected));
}

fn memory_type<F: Format>(row: Row<F>) {
    let mut types = MEMORY_TYPES.into_iter();
    let bypassed = types.find(|memory| !F::forces(&row.features, *memory));
    let (Some(memory), Some(page_memory)) = (row.device_memory(), bypassed) else {
        return;
    };
    let bytes = 2 * row.page;
    let mut device = Mapping::device(row.hva, bytes, row.device).memory(memory);
    device.page_memory = Some(page_memory);
    let given = of_two_pages(&row, device);
    assert_eq!(given, [(Reason::MemoryType, bytes)]);
}

fn poisoned<F: Format>(row: Row<F>) {
    let given = of_a_failure(&row, Failure::Poisoned);
    assert!(given.contains(&(Reason::Poisoned, row.page)));
}

fn a_driver_that_refuses_for_now_needs_a_host_fault<F: Format>(row: Row<F>) {
    let given = of_a_failure(&row, Failure::DeviceGone);
    assert!(given.contains(&(Reason::NeedsHostFault, row.page)));
}

fn out_of_tables<F: Format>(row: Row<F>) {
    // The first allocation of all: nothing of the part can be mapped, however large its blocks.
    let bytes = 2 * row.span;
    let vm = row.vm(&[row.linear(row.hva, bytes, row.device)]);
    vm.machine.fail_allocation(0);
    let given = reasons(&row, &vm, row.gpa, bytes);
    assert_eq!(given, [(Reason::OutOfTables, bytes)]);
}

fn unencodable<F: Format>(row: Row<F>) {
    let ram = Attributes::new(Permissions::ALL, MemoryType::WriteBack);
    let (bytes, end) = (2 * row.page, row.host_end);
    if F::leaf(&row.features, Level::PAGE, Hpa::new(end), ram).is_ok() {
        // Entries hold all 64 bits.
        return;
    }
    // More bits than an entry holds.
    let beyond = row.linear(row.hva, bytes, end);
    assert_eq!(of_two_pages(&row, beyond), [(Reason::Unencodable, bytes)]);
}

fn not_writable<F: Format>(row: Row<F>) {
    let bytes = 2 * row.page;
    let linear = row.linear(row.hva, bytes, row.device);
    let lenient = row.config().write_check(WriteCheck::Lenient);
    let vm = row.vm_with(lenient, &[linear.read_only()]);
    let given = reasons(&row, &vm, row.gpa, bytes);
    assert!(given.contains(&(Reason::NotWritable, bytes)));
    // A page that is still shared, in a mapping that can be written.
    let vm = row.vm(&[row.ram(row.hva, bytes)]);
    let shared = Block {
        bytes: row.page,
        hpa: row.chosen,
        writable: false,
        memory: MemoryType::WriteBack,
    };
    vm.host.put(row.hva, shared);
    let given = reasons(&row, &vm, row.gpa, bytes);
    assert!(given.contains(&(Reason::NotWritable, row.page)));
}

fn slot_boundary<F: Format>(row: Row<F>) {
    let expected = limit(&row, Reason::SlotBoundary, 2 * row.page);
    let linear = row.linear(row.hva, row.span, row.device);
    assert_eq!(of_two_pages(&row, linear), expected);
}

fn not_congruent<F: Format>(row: Row<F>) {
    if !row.has_blocks() {
        return;
    }
    let (page, span) = (row.page, row.span);
    let vm = row.vm(&[row.ram(row.hva, 2 * span).blocks(span)]);
    for at in [0, span] {
        vm.host.put_ram(row.hva + at, span, row.chosen + at);
    }
    let given = reasons(&row, &vm, row.gpa + page, 2 * span);
    // The guest's middle block lies inside the slot, the ends of the slot do not fill one.
    assert!(given.contains(&(Reason::SlotBoundary, span)), "{given:?}");
    assert!(given.contains(&(Reason::NotCongruent, span)), "{given:?}");
    assert_eq!(vm.leaf_bytes(row.gpa + span - page), page);
}

fn vma_boundary<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.linear(row.hva, row.page, row.device)]);
    let mut expected = limit(&row, Reason::VmaBoundary, row.page);
    expected.push((Reason::Hole, row.span - row.page));
    assert_eq!(reasons(&row, &vm, row.gpa, row.span), expected);
}

fn host_address<F: Format>(row: Row<F>) {
    let vm = row.vm(&[row.linear(row.hva, row.span, row.device + row.page)]);
    let given = reasons(&row, &vm, row.gpa, row.span);
    assert_eq!(given, limit(&row, Reason::HostAddress, row.span));
}

fn host_block<F: Format>(row: Row<F>) {
    let linear = row.linear(row.hva, row.span, row.device);
    let vm = row.vm(&[linear.blocks(row.page)]);
    let given = reasons(&row, &vm, row.gpa, row.span);
    assert_eq!(given, limit(&row, Reason::HostBlock, row.span));
    // The smallest leaf above a page's, in pages that do not lie together.
    let sizes = row.geometry.leaf_sizes().map(|(_, bytes)| bytes);
    let Some(bytes) = sizes.filter(|bytes| *bytes > row.page).min() else {
        return;
    };
    let vm = row.vm(&[row.ram(row.hva, bytes)]);
    for at in steps(bytes, row.page) {
        vm.host.put_ram(row.hva + at, row.page, row.chosen + 3 * at);
    }
    let given = reasons(&row, &vm, row.gpa, bytes);
    assert_eq!(given, [(Reason::HostBlock, bytes)]);
}

fn nothing_larger_exists_so_no_reason_is_given<F: Format>(row: Row<F>) {
    let (_, largest) = row.geometry.leaf_sizes().next().expect("a page");
    if largest > row.gpa.min(row.device) {
        return;
    }
    let vm = row.vm(&[row.linear(row.hva, largest, row.device)]);
    assert_eq!(reasons(&row, &vm, row.gpa, largest), []);
}

fn a_report_counts_leaves_by_level<F: Format>(row: Row<F>) {
    // One leaf of each level that fits, the largest first.
    let sizes = row.geometry.leaf_levels_up();
    let sizes = sizes.map(|level| (level, row.geometry.entry_bytes(level)));
    let sizes: Vec<_> = sizes.filter(|(_, bytes)| 2 * bytes <= row.gpa).collect();
    let bytes = sizes.iter().map(|(_, bytes)| bytes).sum();
    let vm = row.vm(&[row.linear(row.hva, bytes, row.device)]);
    let asked = region(1, row.gpa, bytes, row.hva);
    let report = vm.memory.insert(asked).unwrap();
    assert_eq!(report.id(), SlotId(1));
    assert_eq!(report.range(), gpa_range(row.gpa, bytes));
    let mut expected = [0; 5];
    for (level, bytes) in sizes {
        expected[level.index()] = 1;
        assert_eq!(report.granule(level), bytes);
    }
    assert_eq!(report.leaves(), expected);
    assert_eq!(report.granule(row.geometry.root().up()), 0);
    assert_eq!(report.parts()[0].leaves(), &expected);
    assert_eq!(report.parts()[0].hva(), hva_range(row.hva, bytes));
    let table = vm.memory.table();
    assert_eq!(table.count_leaves(&report.range()), expected);
}

fn a_vm_s_tables_are_no_more_than_what_it_maps_needs<F: Format>(row: Row<F>) {
    let bytes = row.large() + row.span;
    let vm = row.vm(&[row.linear(row.hva, bytes, row.device)]);
    let asked = region(1, row.gpa, bytes, row.hva);
    vm.memory.insert(asked).unwrap();
    let stats = vm.memory.stats();
    assert_eq!(stats.table_bytes, vm.memory.minimum_table_bytes());
    assert_eq!(vm.mapped_bytes(), bytes);
}

crate::rows::for_every_format! {
    hole,
    on_fault,
    needs_host_fault,
    changing,
    not_permitted,
    memory_type,
    poisoned,
    a_driver_that_refuses_for_now_needs_a_host_fault,
    out_of_tables,
    unencodable,
    not_writable,
    slot_boundary,
    not_congruent,
    vma_boundary,
    host_address,
    host_block,
    nothing_larger_exists_so_no_reason_is_given,
    a_report_counts_leaves_by_level,
    a_vm_s_tables_are_no_more_than_what_it_maps_needs,
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
