//! Faults that meet something else where their leaf belongs: it is extended, or broken first, and
//! never overwritten.

use slat::Outcome;
use slat::host::PageKind;
use slat::region::SlotId;
use slat::table::address::Hpa;
use slat::table::attributes::{Attributes, MemoryType, Permissions};
use slat::table::format::Format;
use slat::table::geometry::Level;
use slat::table::simulated::Event;

use crate::rows::Row;
use crate::scripted_host::{Block, hva_range};
use crate::vm::{gpa_range, is_mapped, unencodable};

const SLOT: SlotId = SlotId(1);

fn a_block_over_pages_breaks_them_first_and_then_arrives<F: Format>(row: Row<F>) {
    let (page, span) = (row.page, row.span);
    let vm = row.vm_on_fault(row.ram(row.hva, span));
    assert!(is_mapped(&vm.read(row.gpa)) && is_mapped(&vm.read(row.gpa + page)));
    // The host joins its pages into a block at the place of the first, and announces it.
    vm.host_changes(hva_range(row.hva + 2 * page, span - 2 * page), |host| {
        host.put_ram(row.hva, span, row.frames);
    });
    assert_eq!(vm.mapped_bytes(), 2 * page);
    vm.machine.record();
    let outcome = vm.read(row.gpa + 2 * page);
    if !row.has_blocks() {
        assert!(is_mapped(&outcome), "nothing is in the way of a page");
        assert_eq!(vm.mapped_bytes(), 3 * page);
        return;
    }
    assert_eq!(outcome, Outcome::Retry);
    assert_eq!(vm.mapped_bytes(), 0);
    let events = vm.machine.take_events();
    let flushed = events.iter().position(|event| match event {
        Event::Flushed(work) => !work.only_leaves(),
        _ => false,
    });
    let freed = events
        .iter()
        .position(|event| matches!(event, Event::Freed { .. }));
    assert!(flushed.is_some() && flushed < freed);
    assert!(is_mapped(&vm.read(row.gpa + 2 * page)));
    assert_eq!(vm.leaf_bytes(row.gpa), span);
}

fn a_page_under_a_block_that_allows_as_much_is_spurious<F: Format>(row: Row<F>) {
    let (page, span) = (row.page, row.span);
    let vm = row.vm_on_fault(row.ram(row.hva, span).blocks(span));
    assert!(is_mapped(&vm.write(row.gpa)));
    // The host splits its block in place: nothing changes for the guest.
    vm.host.cut(row.hva, page);
    let outcome = vm.write(row.gpa + page);
    if row.has_blocks() {
        assert_eq!(outcome, Outcome::Spurious { slot: SLOT });
    } else {
        assert!(is_mapped(&outcome), "there was no block over it");
    }
    assert_eq!(vm.leaf_bytes(row.gpa), row.leaf_in(span));
}

fn a_page_that_needs_more_than_the_block_over_it_allows_breaks_the_block<F: Format>(row: Row<F>) {
    let (page, span) = (row.page, row.span);
    let vm = row.vm_on_fault(row.ram(row.hva, span).blocks(span).copy_on_write());
    assert!(is_mapped(&vm.read(row.gpa)));
    let (hpa, write) = vm.sees(row.gpa).unwrap();
    assert!(!write);
    vm.host.cut(row.hva, page);
    if row.has_blocks() {
        assert_eq!(vm.write(row.gpa), Outcome::Retry);
        assert!(is_mapped(&vm.write(row.gpa)));
    } else {
        assert_eq!(vm.write(row.gpa), Outcome::Extended { slot: SLOT });
    }
    assert_eq!(vm.sees(row.gpa), Some((hpa, true)));
    assert_eq!(vm.leaf_bytes(row.gpa), page);
}

fn a_sibling_in_the_way_of_a_run_of_blocks_stays<F: Format>(row: Row<F>) {
    for (level, run) in row.runs_of_blocks() {
        let block = row.geometry.entry_bytes(level);
        // Before the one asked for, and behind it.
        for sibling in [1, 3] {
            let vm = row.vm_on_fault(row.ram(row.hva, run));
            let (gpa, there) = (row.gpa + sibling * block, sibling * block);
            vm.host
                .put_ram(row.hva + there, row.page, row.chosen + there);
            assert!(is_mapped(&vm.read(gpa)));
            // The host joins everything into one block, in which that page stays where it is.
            vm.host.put_ram(row.hva, run, row.chosen);
            let asked = 2 * block;
            let outcome = vm.read(row.gpa + asked + row.page);
            let expected = Outcome::Mapped {
                slot: SLOT,
                range: gpa_range(row.gpa + asked, block),
                hpa: Hpa::new(row.chosen + asked),
                kind: PageKind::Ram,
            };
            assert_eq!(outcome, expected);
            assert_eq!(vm.leaf_bytes(row.gpa + asked), block);
            assert_eq!(vm.leaf_bytes(gpa), row.page, "what is there stays");
            assert_eq!(vm.machine.flushes(), 0);
            assert_eq!(vm.read(row.gpa + asked), Outcome::Spurious { slot: SLOT });
        }
    }
}

fn a_leaf_of_another_memory_type_is_broken_not_changed<F: Format>(row: Row<F>) {
    let vm = row.vm_on_fault(row.ram(row.hva, row.page));
    assert!(is_mapped(&vm.read(row.gpa)));
    let (hpa, _) = vm.sees(row.gpa).unwrap();
    let other = Block {
        bytes: row.page,
        hpa,
        writable: true,
        memory: MemoryType::NonCacheable,
    };
    // Against the contract, unannounced: even so nothing is overwritten.
    vm.host.put(row.hva, other);
    let executable = Attributes::new(Permissions::ALL, other.memory);
    if let Err(cause) = F::leaf(&row.features, Level::PAGE, Hpa::new(hpa), executable) {
        assert_eq!(unencodable(&vm, row.gpa), cause);
        assert_eq!(vm.memory_type(row.gpa), Some(MemoryType::WriteBack));
        return;
    }
    assert_eq!(vm.read(row.gpa), Outcome::Retry);
    assert_eq!(vm.sees(row.gpa), None);
    assert!(is_mapped(&vm.read(row.gpa)));
    assert_eq!(vm.memory_type(row.gpa), Some(MemoryType::NonCacheable));
}

crate::rows::for_every_format! {
    a_block_over_pages_breaks_them_first_and_then_arrives,
    a_page_under_a_block_that_allows_as_much_is_spurious,
    a_page_that_needs_more_than_the_block_over_it_allows_breaks_the_block,
    a_sibling_in_the_way_of_a_run_of_blocks_stays,
    a_leaf_of_another_memory_type_is_broken_not_changed,
}
