//! How large a leaf may be: one test for each condition.

use slat::region::Mapping as When;
use slat::report::Reason;
use slat::table::format::Format;

use crate::rows::Row;
use crate::scripted_host::Mapping;
use crate::vm::{is_mapped, region};

/// A slot over `mapping`, and the page in it that is touched.
struct Touch {
    gpa: u64,
    bytes: u64,
    hva: u64,
    offset: u64,
}

/// Creates the slot, touches the page, and returns the leaf's size.
fn leaf<F: Format>(row: &Row<F>, mapping: Mapping, touch: &Touch) -> u64 {
    let Touch {
        gpa,
        bytes,
        hva,
        offset,
    } = *touch;
    let vm = row.vm(&[mapping]);
    let region = region(1, gpa, bytes, hva).mapping(When::OnFault);
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

/// What a slot may have that lies aligned in guest, host virtual and host physical memory.
fn room<F: Format>(row: &Row<F>) -> u64 {
    row.gpa.min(row.host_end >> 3)
}

fn a_leaf_is_as_large_as_everything_allows<F: Format>(row: Row<F>) {
    let sizes = row.geometry.leaf_sizes().map(|(_, bytes)| bytes);
    for size in sizes.filter(|bytes| 2 * bytes <= room(&row)) {
        let bytes = (2 * size).max(8 * row.page);
        let touch = Touch {
            gpa: row.gpa,
            bytes,
            hva: row.hva,
            offset: 5 * row.page,
        };
        let ram = row.ram(row.hva, bytes).blocks(size);
        assert_eq!(leaf(&row, ram, &touch), size);
        let linear = row.linear(row.hva, bytes, row.device).blocks(size);
        assert_eq!(leaf(&row, linear, &touch), size);
    }
}

fn a_leaf_is_never_larger_than_the_format_has<F: Format>(row: Row<F>) {
    let bytes = room(&row);
    let linear = row.linear(row.hva, bytes, row.device);
    let touch = Touch {
        gpa: row.gpa,
        bytes,
        hva: row.hva,
        offset: 0,
    };
    assert_eq!(leaf(&row, linear, &touch), row.leaf_in(bytes));
}

fn a_leaf_does_not_leave_the_slot<F: Format>(row: Row<F>) {
    let Row {
        gpa,
        hva,
        page,
        span,
        ..
    } = row;
    let ram = row.ram(hva, 2 * span).blocks(span);
    let linear = row.linear(hva, 2 * span, row.device);
    for mapping in [ram, linear] {
        // A slot of one page less than the block, at its start and at its end.
        let bytes = span - page;
        let first = Touch {
            gpa,
            bytes,
            hva,
            offset: 0,
        };
        assert_eq!(leaf(&row, mapping, &first), row.leaf_in(bytes));
        let last = Touch {
            gpa: gpa + page,
            hva: hva + page,
            ..first
        };
        assert_eq!(leaf(&row, mapping, &last), page);
        // Beyond the part of the block that the slot has, the next block fits.
        let next = Touch {
            bytes: 2 * span - page,
            offset: bytes,
            ..last
        };
        assert_eq!(leaf(&row, mapping, &next), row.leaf_in(span));
    }
}

fn ram_needs_guest_and_host_addresses_that_agree_in_the_block<F: Format>(row: Row<F>) {
    let Row {
        gpa,
        hva,
        page,
        span,
        ..
    } = row;
    let large = row.large();
    let ram = row.ram(hva, 4 * large).blocks(large);
    let by_a_page = Touch {
        gpa: gpa + page,
        bytes: large,
        hva,
        offset: large / 2,
    };
    assert_eq!(leaf(&row, ram, &by_a_page), page);
    let by_a_span = Touch {
        gpa: gpa + span,
        bytes: 2 * large,
        hva,
        offset: large,
    };
    assert_eq!(leaf(&row, ram, &by_a_span), row.leaf_in(span));
    let by_a_block = Touch {
        gpa: gpa + page,
        bytes: 2 * large,
        hva: hva + large + page,
        offset: large + span,
    };
    assert_eq!(leaf(&row, ram, &by_a_block), row.leaf_in(large));
}

fn a_leaf_is_not_larger_than_the_host_s_block<F: Format>(row: Row<F>) {
    let touch = Touch {
        gpa: row.gpa,
        bytes: 2 * row.span,
        hva: row.hva,
        offset: 3 * row.page,
    };
    let sizes = row.page.trailing_zeros()..=touch.bytes.trailing_zeros();
    for size in sizes.map(|bits| 1 << bits) {
        let ram = row.ram(row.hva, touch.bytes).blocks(size);
        assert_eq!(leaf(&row, ram, &touch), row.leaf_in(size));
    }
}

fn a_device_leaf_needs_a_physical_address_aligned_to_it<F: Format>(row: Row<F>) {
    let Row {
        gpa, hva, device, ..
    } = row;
    let large = row.large();
    let touch = Touch {
        gpa,
        bytes: large,
        hva,
        offset: 0,
    };
    let linear = |hpa| row.linear(hva, large, hpa);
    assert_eq!(leaf(&row, linear(device + row.page), &touch), row.page);
    let by_a_span = leaf(&row, linear(device + row.span), &touch);
    assert_eq!(by_a_span, row.leaf_in(row.span));
    if row.device_memory().is_none() {
        return;
    }
    // Where guest and physical address agree, the virtual one does not matter.
    let aside = row.linear(hva + row.page, large, device);
    let touch = Touch {
        hva: hva + row.page,
        offset: 7 * row.page,
        ..touch
    };
    assert_eq!(leaf(&row, aside, &touch), row.leaf_in(large));
}

fn a_device_leaf_does_not_leave_its_mapping<F: Format>(row: Row<F>) {
    let Row {
        gpa,
        hva,
        page,
        span,
        device,
        ..
    } = row;
    // The mapping ends in the middle of a block, and physical memory goes on.
    let first = span + 4 * page;
    let vm = row.vm(&[
        row.linear(hva, first, device),
        row.linear(hva + first, span, device + first),
    ]);
    let report = vm.memory.insert(region(1, gpa, 2 * span, hva)).unwrap();
    assert_eq!(vm.leaf_bytes(gpa), row.leaf_in(span));
    // Also when the address asked for is the first of the block.
    assert_eq!(vm.leaf_bytes(gpa + span), page);
    assert_eq!(vm.mapped_bytes(), 2 * span);
    if row.has_blocks() {
        let reasons = report.parts()[0].reasons();
        assert!(reasons.contains(&(Reason::VmaBoundary, 4 * page)));
    }
}

fn a_mapping_that_starts_in_the_middle_of_a_block_gets_pages_up_to_its_end<F: Format>(row: Row<F>) {
    let (gpa, span, aside) = (row.gpa, row.span, 4 * row.page);
    let linear = row.linear(row.hva + aside, 2 * span, row.device + aside);
    let vm = row.vm(&[linear]);
    vm.memory.insert(region(1, gpa, 4 * span, row.hva)).unwrap();
    assert_eq!(vm.leaf_bytes(gpa), 0);
    assert_eq!(vm.leaf_bytes(gpa + aside), row.page);
    assert_eq!(vm.leaf_bytes(gpa + span), row.leaf_in(span));
    assert_eq!(vm.leaf_bytes(gpa + 2 * span), row.page);
    assert_eq!(vm.mapped_bytes(), 2 * span);
}

fn the_address_width_bounds_a_leaf_too<F: Format>(row: Row<F>) {
    let touch = Touch {
        gpa: (1 << row.bits) - row.span,
        bytes: row.span,
        hva: row.hva,
        offset: row.span - row.page,
    };
    let ram = row.ram(row.hva, row.span).blocks(row.span);
    assert_eq!(leaf(&row, ram, &touch), row.leaf_in(row.span));
}

crate::rows::for_every_format! {
    a_leaf_is_as_large_as_everything_allows,
    a_leaf_is_never_larger_than_the_format_has,
    a_leaf_does_not_leave_the_slot,
    ram_needs_guest_and_host_addresses_that_agree_in_the_block,
    a_leaf_is_not_larger_than_the_host_s_block,
    a_device_leaf_needs_a_physical_address_aligned_to_it,
    a_device_leaf_does_not_leave_its_mapping,
    a_mapping_that_starts_in_the_middle_of_a_block_gets_pages_up_to_its_end,
    the_address_width_bounds_a_leaf_too,
}
