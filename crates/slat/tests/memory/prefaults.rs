//! Prefaults: how far they get, and what they say about it.

use slat::Outcome;
use slat::notifier::Notifier;
use slat::region::{Mapping as When, SlotId};
use slat::table::address::{Gpa, Hva};
use slat::table::attributes::Access;
use slat::table::format::Format;
use slat::vcpu::{FaultError, Prefaulted};

use crate::rows::Row;
use crate::scripted_host::{Failure, hva_range};
use crate::vm::{gpa_range, region, steps};

const SLOT: SlotId = SlotId(1);

fn a_prefault_maps_a_whole_range_and_says_so<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, 2 * row.span));
    let mut vcpu = vm.memory.vcpu();
    let range = gpa_range(row.gpa + row.page, row.span);
    let done = vcpu.prefault(&range).unwrap();
    let (bytes, stopped) = (row.span, None);
    assert_eq!(done, Prefaulted { bytes, stopped });
    assert_eq!(vm.mapped_bytes(), row.span);
    // Again, and nothing is left to do.
    assert_eq!(vcpu.prefault(&range).unwrap().bytes, row.span);
    assert_eq!(vm.mapped_bytes(), row.span);
    assert_eq!(vcpu.stats().total(), 0, "no fault happened");
    assert_eq!(vcpu.stats().leaves[0], row.span / row.page);
}

fn a_prefault_takes_blocks_and_may_start_inside_one<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.linear(row.hva, 3 * row.span, row.device));
    let mut vcpu = vm.memory.vcpu();
    let range = gpa_range(row.gpa + row.span + row.page, row.span);
    assert_eq!(vcpu.prefault(&range).unwrap().bytes, row.span);
    let leaf = row.leaf_in(row.span);
    // Blocks are taken whole, pages from the first asked for to the end of a table.
    let before = if row.has_blocks() { 0 } else { row.page };
    let mapped = 2 * row.span - before;
    assert_eq!(vm.leaves().len() as u64, mapped / leaf);
    assert_eq!(vm.mapped_bytes(), mapped);
}

fn a_prefault_stops_where_the_slot_ends_and_says_how_far_it_got<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, 3 * row.page));
    let mut vcpu = vm.memory.vcpu();
    let done = vcpu
        .prefault(&gpa_range(row.gpa + row.page, 4 * row.page))
        .unwrap();
    let gpa = Gpa::new(row.gpa + 3 * row.page);
    let access = Access::Read;
    let stopped = Some(Outcome::Mmio { gpa, access });
    let bytes = 2 * row.page;
    assert_eq!(done, Prefaulted { bytes, stopped });
}

fn a_prefault_stops_at_what_the_host_refuses<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, 4 * row.page));
    vm.host.fail(row.hva + 2 * row.page, Failure::Poisoned);
    let mut vcpu = vm.memory.vcpu();
    let done = vcpu.prefault(&gpa_range(row.gpa, 4 * row.page)).unwrap();
    let hva = Hva::new(row.hva + 2 * row.page);
    let stopped = Some(Outcome::Poisoned { slot: SLOT, hva });
    let bytes = 2 * row.page;
    assert_eq!(done, Prefaulted { bytes, stopped });
}

fn a_prefault_gives_its_progress_or_an_error_never_both<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, 4 * row.page));
    vm.host.fail(row.hva + 2 * row.page, Failure::NoMemory);
    let mut vcpu = vm.memory.vcpu();
    let range = gpa_range(row.gpa, 4 * row.page);
    let done = vcpu.prefault(&range).unwrap();
    let (bytes, stopped) = (2 * row.page, Some(Outcome::Retry));
    assert_eq!(done, Prefaulted { bytes, stopped });
    let rest = range.from(Gpa::new(row.gpa + bytes)).unwrap();
    let error = vcpu.prefault(&rest).unwrap_err();
    assert_eq!(error, FaultError::HostNoMemory(Hva::new(row.hva + bytes)));
}

fn a_prefault_that_meets_a_change_can_go_on_from_where_it_stopped<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, 2 * row.span));
    let ticket = vm.memory.begin(hva_range(row.hva + row.span, row.page));
    let mut vcpu = vm.memory.vcpu();
    let range = gpa_range(row.gpa, 2 * row.span);
    let done = vcpu.prefault(&range).unwrap();
    assert_eq!((done.bytes, done.stopped), (row.span, Some(Outcome::Retry)));
    vm.memory.end(ticket);
    let rest = range.from(Gpa::new(row.gpa + done.bytes)).unwrap();
    assert_eq!(vcpu.prefault(&rest).unwrap().bytes, row.span);
    assert_eq!(vm.mapped_bytes(), 2 * row.span);
}

/// Host memory over the border between two bits of its addresses, for each bit that there is: a
/// format may keep the upper ones in another place of its entries.
fn host_memory_is_mapped_over_every_border_in_its_addresses<F: Format>(row: Row<F>) {
    let page = row.page;
    // Two pages before the border and two behind it, then a page that belongs to nothing.
    let (bytes, apart) = (4 * page, 5 * page);
    let bits = row.span.trailing_zeros()..row.host_end.trailing_zeros();
    let borders: Vec<_> = (0..)
        .zip(bits)
        .map(|(at, bit)| (at * apart, 1 << bit))
        .collect();
    let linear = |(at, border): &(u64, u64)| row.linear(row.hva + at, bytes, border - 2 * page);
    let mappings: Vec<_> = borders.iter().map(linear).collect();
    for when in [When::AtCreation, When::OnFault] {
        let vm = row.vm(&mappings);
        let whole = region(1, row.gpa, borders.len() as u64 * apart, row.hva);
        let report = vm.memory.insert(whole.mapping(when)).unwrap();
        for (at, border) in &borders {
            if when == When::OnFault {
                let range = gpa_range(row.gpa + at, bytes);
                let done = vm.memory.vcpu().prefault(&range);
                assert_eq!(
                    done,
                    Ok(Prefaulted {
                        bytes,
                        stopped: None
                    }),
                    "{border:#x}"
                );
            }
            for offset in steps(bytes, page) {
                let found = vm.sees(row.gpa + at + offset);
                let expected = border - 2 * page + offset;
                assert_eq!(found.map(|(hpa, _)| hpa), Some(expected), "{report}");
            }
        }
    }
}

crate::rows::for_every_format! {
    host_memory_is_mapped_over_every_border_in_its_addresses,
    a_prefault_maps_a_whole_range_and_says_so,
    a_prefault_takes_blocks_and_may_start_inside_one,
    a_prefault_stops_where_the_slot_ends_and_says_how_far_it_got,
    a_prefault_stops_at_what_the_host_refuses,
    a_prefault_gives_its_progress_or_an_error_never_both,
    a_prefault_that_meets_a_change_can_go_on_from_where_it_stopped,
}
