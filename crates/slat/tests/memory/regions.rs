//! The rules that a region must keep, each with KVM's error number.

use slat::config::Config;
use slat::errno::Errno;
use slat::region::{Region, RegionError, SlotId};
use slat::table::address::{Gpa, Hva, PAGE_SIZE, RangeError};
use slat::table::format::Format;
use slat::transaction::TransactionError;

use crate::rows::Row;
use crate::scripted_host::hva_range;
use crate::vm::{gpa_range, region};

/// Inserts `wrong`, which must be refused for `error` and leave everything as it was.
fn refused<F: Format>(
    row: &Row<F>,
    config: Config,
    wrong: Region,
    error: RegionError,
    errno: Errno,
) {
    let vm = row.vm_with(config, &[]);
    vm.memory.insert(region(7, 0, row.page, row.hva)).unwrap();
    let before = vm.state();
    let found = vm.memory.insert(wrong).unwrap_err();
    let id = wrong.id();
    assert_eq!(found, TransactionError::Region { id, error });
    assert_eq!((found.errno(), error.errno()), (errno, errno));
    assert_eq!(vm.state(), before);
    vm.end();
}

fn an_id_at_the_limit_is_refused_with_einval<F: Format>(row: Row<F>) {
    let error = RegionError::Id {
        id: SlotId(32_767),
        limit: 32_767,
    };
    let wrong = region(32_767, row.gpa, row.page, row.hva);
    refused(&row, row.config(), wrong, error, Errno::EINVAL);
    let vm = row.vm(&[]);
    vm.memory
        .insert(region(32_766, row.gpa, row.page, row.hva))
        .unwrap();
}

fn a_size_of_zero_is_refused_with_einval<F: Format>(row: Row<F>) {
    let error = RegionError::Guest(RangeError::Empty { start: row.gpa });
    let wrong = region(1, row.gpa, 0, row.hva);
    refused(&row, row.config(), wrong, error, Errno::EINVAL);
}

fn an_unaligned_size_is_refused_with_einval<F: Format>(row: Row<F>) {
    let bytes = row.page + 1;
    let error = RegionError::Guest(RangeError::SizeUnaligned { bytes });
    let wrong = region(1, row.gpa, bytes, row.hva);
    refused(&row, row.config(), wrong, error, Errno::EINVAL);
}

fn an_unaligned_guest_address_is_refused_with_einval<F: Format>(row: Row<F>) {
    let start = row.gpa + 0x800;
    let error = RegionError::Guest(RangeError::StartUnaligned { start });
    let wrong = region(1, start, row.page, row.hva);
    refused(&row, row.config(), wrong, error, Errno::EINVAL);
}

fn an_unaligned_host_address_is_refused_with_einval<F: Format>(row: Row<F>) {
    let start = row.hva + 1;
    let error = RegionError::Host(RangeError::StartUnaligned { start });
    let wrong = region(1, row.gpa, row.page, start);
    refused(&row, row.config(), wrong, error, Errno::EINVAL);
}

fn a_guest_range_that_wraps_is_refused_with_einval<F: Format>(row: Row<F>) {
    // Its end would be 2^64: no wrap by a byte, but an end that cannot be said.
    let start = 0u64.wrapping_sub(row.page);
    let error = RegionError::Guest(RangeError::Wraps {
        start,
        bytes: row.page,
    });
    let wrong = region(1, start, row.page, row.hva);
    refused(&row, row.config(), wrong, error, Errno::EINVAL);
}

fn a_host_range_that_wraps_is_refused_with_einval<F: Format>(row: Row<F>) {
    let start = 0u64.wrapping_sub(row.page);
    let bytes = 2 * row.page;
    let error = RegionError::Host(RangeError::Wraps { start, bytes });
    let wrong = region(1, row.gpa, bytes, start);
    refused(&row, row.config(), wrong, error, Errno::EINVAL);
}

fn a_host_range_beyond_user_space_is_refused_with_einval<F: Format>(row: Row<F>) {
    let end = row.hva + row.page;
    let config = row.config().host_end(end);
    let range = hva_range(row.hva, 2 * row.page);
    let error = RegionError::HostEnd { range, end };
    refused(
        &row,
        config,
        region(1, row.gpa, 2 * row.page, row.hva),
        error,
        Errno::EINVAL,
    );
    let vm = row.vm_with(config, &[]);
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
}

fn a_slot_of_too_many_pages_is_refused_with_einval<F: Format>(row: Row<F>) {
    // Pages of 4 KiB count, whatever the format's are.
    let each = row.page / PAGE_SIZE;
    let (limit, pages) = (16 * each, 17 * each);
    let config = row.config().slot_pages(limit);
    let error = RegionError::TooManyPages { pages, limit };
    refused(
        &row,
        config,
        region(1, row.gpa, pages * PAGE_SIZE, row.hva),
        error,
        Errno::EINVAL,
    );
    let vm = row.vm_with(config, &[]);
    vm.memory
        .insert(region(1, row.gpa, limit * PAGE_SIZE, row.hva))
        .unwrap();
}

fn kvm_s_page_limit_is_the_default<F: Format>(row: Row<F>) {
    let pages: u64 = 1 << 31;
    let vm = row.vm_with(Config::new().address_bits(row.bits), &[]);
    let error = vm
        .memory
        .insert(region(1, 0, pages * PAGE_SIZE, 0))
        .unwrap_err();
    let limit = pages - 1;
    let expected = RegionError::TooManyPages { pages, limit };
    assert_eq!(
        error,
        TransactionError::Region {
            id: SlotId(1),
            error: expected
        }
    );
}

fn a_range_beyond_the_guest_address_width_is_refused_with_efault<F: Format>(row: Row<F>) {
    let range = gpa_range((1 << row.bits) - row.page, 2 * row.page);
    let error = RegionError::AddressWidth {
        range,
        bits: row.bits,
    };
    let wrong = region(1, range.start().raw(), range.bytes(), row.hva);
    refused(&row, row.config(), wrong, error, Errno::EFAULT);
}

fn a_region_may_end_exactly_where_guest_addresses_end<F: Format>(row: Row<F>) {
    let vm = row.vm(&[]);
    let last = (1 << row.bits) - row.page;
    vm.memory
        .insert(region(1, last, row.page, row.hva))
        .unwrap();
    assert_eq!(vm.memory.slots().slots().len(), 1);
}

fn rules_that_answer_einval_come_before_the_one_that_answers_efault<F: Format>(row: Row<F>) {
    let vm = row.vm(&[]);
    let error = vm
        .memory
        .insert(region(1, 1 << row.bits, row.page, 1))
        .unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
}

fn rules_about_other_slots_come_before_the_address_width<F: Format>(row: Row<F>) {
    let vm = row.vm(&[]);
    let end = 1 << row.bits;
    let last = region(1, end - 4 * row.page, 4 * row.page, row.hva);
    vm.memory.insert(last).unwrap();
    let over = vm
        .memory
        .insert(region(2, end - row.page, 2 * row.page, row.hva));
    let (id, with) = (SlotId(2), SlotId(1));
    assert_eq!(over.unwrap_err(), TransactionError::Overlap { id, with });
    let again = vm.memory.insert(region(1, end, row.page, row.hva));
    let exists = TransactionError::SlotExists(SlotId(1));
    assert_eq!(again.unwrap_err(), exists);
}

fn an_existing_id_is_refused_with_einval_whatever_else_is_wrong<F: Format>(row: Row<F>) {
    let vm = row.vm(&[]);
    vm.memory
        .insert(region(1, row.gpa, row.page, row.hva))
        .unwrap();
    vm.memory
        .insert(region(2, 2 * row.gpa, row.page, row.hva))
        .unwrap();
    let before = vm.state();
    // Identical, elsewhere, and over a slot of another id that comes first.
    for gpa in [2 * row.gpa, 3 * row.gpa, row.gpa] {
        let error = vm
            .memory
            .insert(region(2, gpa, row.page, row.hva))
            .unwrap_err();
        assert_eq!(error, TransactionError::SlotExists(SlotId(2)));
        assert_eq!(error.errno(), Errno::EINVAL);
    }
    assert_eq!(vm.state(), before);
}

fn an_overlap_with_another_slot_is_refused_with_eexist<F: Format>(row: Row<F>) {
    let vm = row.vm(&[]);
    vm.memory
        .insert(region(1, row.gpa, 2 * row.page, row.hva))
        .unwrap();
    let before = vm.state();
    for gpa in [row.gpa - row.page, row.gpa, row.gpa + row.page] {
        let error = vm
            .memory
            .insert(region(2, gpa, 2 * row.page, row.hva))
            .unwrap_err();
        let (id, with) = (SlotId(2), SlotId(1));
        assert_eq!(error, TransactionError::Overlap { id, with });
        assert_eq!(error.errno(), Errno::EEXIST);
        assert_eq!(vm.state(), before);
    }
    for (id, gpa) in [(2, row.gpa - 2 * row.page), (3, row.gpa + 2 * row.page)] {
        vm.memory
            .insert(region(id, gpa, 2 * row.page, row.hva))
            .unwrap();
    }
}

fn an_overlap_inside_one_transaction_is_refused_with_eexist<F: Format>(row: Row<F>) {
    let vm = row.vm(&[]);
    let transaction = vm.memory.transaction();
    let both = transaction
        .create(region(1, row.gpa, 2 * row.page, row.hva))
        .create(region(2, row.gpa + row.page, row.page, row.hva));
    let error = both.commit().unwrap_err();
    assert_eq!(error.errno(), Errno::EEXIST);
    assert!(vm.memory.slots().slots().is_empty());
}

fn deleting_a_slot_that_does_not_exist_is_refused_with_einval<F: Format>(row: Row<F>) {
    let vm = row.vm(&[]);
    let error = vm.memory.remove(SlotId(3)).unwrap_err();
    assert_eq!(error, TransactionError::NoSuchSlot(SlotId(3)));
    assert_eq!(error.errno(), Errno::EINVAL);
    vm.memory
        .insert(region(3, row.gpa, row.page, row.hva))
        .unwrap();
    let twice = vm.memory.transaction().delete(SlotId(3)).delete(SlotId(3));
    assert_eq!(twice.commit().unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(vm.memory.slots().slots().len(), 1);
}

fn every_id_below_the_limit_can_be_used_and_one_more_changes_nothing<F: Format>(row: Row<F>) {
    let ids = 100;
    let vm = row.vm_with(row.config().slot_ids(ids), &[]);
    for id in 0..ids {
        let gpa = u64::from(id) * row.page;
        vm.memory
            .insert(region(id, gpa, row.page, row.hva))
            .unwrap();
    }
    let before = vm.state();
    let gpa = u64::from(ids) * row.page;
    let error = vm
        .memory
        .insert(region(ids, gpa, row.page, row.hva))
        .unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    assert_eq!(vm.state(), before);
    assert_eq!(before.slots.len(), ids as usize);
    vm.end();
}

#[test]
fn error_numbers_are_linux_s() {
    use Errno::{EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, EPERM};
    let all = [EPERM, ENOENT, ENOMEM, EFAULT, EEXIST, EINVAL, EOPNOTSUPP];
    assert_eq!(all.map(Errno::number), [1, 2, 12, 14, 17, 22, 95]);
    assert_eq!(EINVAL.to_string(), "EINVAL");
    assert_eq!(TransactionError::NoMemory.errno(), ENOMEM);
}

fn a_slot_says_what_it_was_made_from<F: Format>(row: Row<F>) {
    let vm = row.vm(&[]);
    let asked = region(4, row.gpa, 4 * row.page, row.hva)
        .read_only()
        .log_dirty();
    vm.memory.insert(asked).unwrap();
    let slots = vm.memory.slots();
    let slot = slots.by_id(SlotId(4)).unwrap();
    assert!(slot.is_read_only());
    assert!(!slot.logs_dirty(), "what cannot be written is not logged");
    let part = gpa_range(row.gpa + row.page, row.page);
    let behind = hva_range(row.hva + row.page, row.page);
    assert_eq!(slot.hva_of(&part), Some(behind));
    assert_eq!(slot.gpa_of(&behind), Some(part));
    assert_eq!(
        slot.gpa_of(&hva_range(row.hva + 4 * row.page, row.page)),
        None
    );
    assert_eq!(slots.find(Gpa::new(row.gpa + 4 * row.page), &mut 0), None);
    assert_eq!(slot.hva(), Hva::new(row.hva));
}

crate::rows::for_every_format! {
    an_id_at_the_limit_is_refused_with_einval,
    a_size_of_zero_is_refused_with_einval,
    an_unaligned_size_is_refused_with_einval,
    an_unaligned_guest_address_is_refused_with_einval,
    an_unaligned_host_address_is_refused_with_einval,
    a_guest_range_that_wraps_is_refused_with_einval,
    a_host_range_that_wraps_is_refused_with_einval,
    a_host_range_beyond_user_space_is_refused_with_einval,
    a_slot_of_too_many_pages_is_refused_with_einval,
    kvm_s_page_limit_is_the_default,
    a_range_beyond_the_guest_address_width_is_refused_with_efault,
    a_region_may_end_exactly_where_guest_addresses_end,
    rules_that_answer_einval_come_before_the_one_that_answers_efault,
    rules_about_other_slots_come_before_the_address_width,
    an_existing_id_is_refused_with_einval_whatever_else_is_wrong,
    an_overlap_with_another_slot_is_refused_with_eexist,
    an_overlap_inside_one_transaction_is_refused_with_eexist,
    deleting_a_slot_that_does_not_exist_is_refused_with_einval,
    every_id_below_the_limit_can_be_used_and_one_more_changes_nothing,
    a_slot_says_what_it_was_made_from,
}
