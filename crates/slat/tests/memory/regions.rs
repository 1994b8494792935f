//! The rules that a region must keep, each with KVM's error number.

use slat::config::Config;
use slat::errno::Errno;
use slat::region::{Region, RegionError, SlotId};
use slat::table::address::{Gpa, Hva, RangeError};
use slat::transaction::TransactionError;

use crate::scripted_host::hva_range;
use crate::vm::{GPA, HVA, MODERN, PAGE, Vm, gpa_range, region};

/// Inserts `wrong`, which must be refused for `error` and leave everything as it was.
fn refused(config: Config, wrong: Region, error: RegionError, errno: Errno) {
    let vm = Vm::with(config, MODERN, &[]);
    vm.memory.insert(region(7, 0, PAGE, HVA)).unwrap();
    let before = vm.state();
    let found = vm.memory.insert(wrong).unwrap_err();
    let id = wrong.id();
    assert_eq!(found, TransactionError::Region { id, error });
    assert_eq!((found.errno(), error.errno()), (errno, errno));
    assert_eq!(vm.state(), before);
    vm.end();
}

#[test]
fn an_id_at_the_limit_is_refused_with_einval() {
    let error = RegionError::Id {
        id: SlotId(32_767),
        limit: 32_767,
    };
    let wrong = region(32_767, GPA, PAGE, HVA);
    refused(Config::new(), wrong, error, Errno::EINVAL);
    let vm = Vm::new(&[]);
    vm.memory.insert(region(32_766, GPA, PAGE, HVA)).unwrap();
}

#[test]
fn a_size_of_zero_is_refused_with_einval() {
    let error = RegionError::Guest(RangeError::Empty { start: GPA });
    let wrong = region(1, GPA, 0, HVA);
    refused(Config::new(), wrong, error, Errno::EINVAL);
}

#[test]
fn an_unaligned_size_is_refused_with_einval() {
    let bytes = PAGE + 1;
    let error = RegionError::Guest(RangeError::SizeUnaligned { bytes });
    let wrong = region(1, GPA, bytes, HVA);
    refused(Config::new(), wrong, error, Errno::EINVAL);
}

#[test]
fn an_unaligned_guest_address_is_refused_with_einval() {
    let start = GPA + 0x800;
    let error = RegionError::Guest(RangeError::StartUnaligned { start });
    let wrong = region(1, start, PAGE, HVA);
    refused(Config::new(), wrong, error, Errno::EINVAL);
}

#[test]
fn an_unaligned_host_address_is_refused_with_einval() {
    let start = HVA + 1;
    let error = RegionError::Host(RangeError::StartUnaligned { start });
    let wrong = region(1, GPA, PAGE, start);
    refused(Config::new(), wrong, error, Errno::EINVAL);
}

#[test]
fn a_guest_range_that_wraps_is_refused_with_einval() {
    // Its end would be 2^64: no wrap by a byte, but an end that cannot be said.
    let start = 0u64.wrapping_sub(PAGE);
    let error = RegionError::Guest(RangeError::Wraps { start, bytes: PAGE });
    let wrong = region(1, start, PAGE, HVA);
    refused(Config::new(), wrong, error, Errno::EINVAL);
}

#[test]
fn a_host_range_that_wraps_is_refused_with_einval() {
    let start = 0u64.wrapping_sub(PAGE);
    let bytes = 2 * PAGE;
    let error = RegionError::Host(RangeError::Wraps { start, bytes });
    let wrong = region(1, GPA, bytes, start);
    refused(Config::new(), wrong, error, Errno::EINVAL);
}

#[test]
fn a_host_range_beyond_user_space_is_refused_with_einval() {
    let end = HVA + PAGE;
    let config = Config::new().host_end(end);
    let range = hva_range(HVA, 2 * PAGE);
    let error = RegionError::HostEnd { range, end };
    refused(config, region(1, GPA, 2 * PAGE, HVA), error, Errno::EINVAL);
    let vm = Vm::with(config, MODERN, &[]);
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
}

#[test]
fn a_slot_of_too_many_pages_is_refused_with_einval() {
    let (limit, pages) = (16, 17);
    let config = Config::new().slot_pages(limit);
    let error = RegionError::TooManyPages { pages, limit };
    refused(
        config,
        region(1, GPA, pages * PAGE, HVA),
        error,
        Errno::EINVAL,
    );
    let vm = Vm::with(config, MODERN, &[]);
    vm.memory.insert(region(1, GPA, limit * PAGE, HVA)).unwrap();
}

#[test]
fn kvm_s_page_limit_is_the_default() {
    let pages: u64 = 1 << 31;
    let vm = Vm::with(Config::new().address_bits(48), MODERN, &[]);
    let error = vm.memory.insert(region(1, 0, pages * PAGE, 0)).unwrap_err();
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

#[test]
fn a_range_beyond_the_guest_address_width_is_refused_with_efault() {
    let range = gpa_range((1 << 40) - PAGE, 2 * PAGE);
    let error = RegionError::AddressWidth { range, bits: 40 };
    let wrong = region(1, range.start().raw(), range.bytes(), HVA);
    refused(Config::new(), wrong, error, Errno::EFAULT);
}

#[test]
fn a_region_may_end_exactly_where_guest_addresses_end() {
    let vm = Vm::new(&[]);
    let last = (1 << 40) - PAGE;
    vm.memory.insert(region(1, last, PAGE, HVA)).unwrap();
    assert_eq!(vm.memory.slots().slots().len(), 1);
}

#[test]
fn rules_that_answer_einval_come_before_the_one_that_answers_efault() {
    let vm = Vm::new(&[]);
    let error = vm.memory.insert(region(1, 1 << 50, PAGE, 1)).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
}

#[test]
fn rules_about_other_slots_come_before_the_address_width() {
    let vm = Vm::new(&[]);
    let end = 1 << 40;
    let last = region(1, end - 4 * PAGE, 4 * PAGE, HVA);
    vm.memory.insert(last).unwrap();
    let over = vm.memory.insert(region(2, end - PAGE, 2 * PAGE, HVA));
    let (id, with) = (SlotId(2), SlotId(1));
    assert_eq!(over.unwrap_err(), TransactionError::Overlap { id, with });
    let again = vm.memory.insert(region(1, end, PAGE, HVA));
    let exists = TransactionError::SlotExists(SlotId(1));
    assert_eq!(again.unwrap_err(), exists);
}

#[test]
fn an_existing_id_is_refused_with_einval_whatever_else_is_wrong() {
    let vm = Vm::new(&[]);
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    vm.memory.insert(region(2, 2 * GPA, PAGE, HVA)).unwrap();
    let before = vm.state();
    // Identical, elsewhere, and over a slot of another id that comes first.
    for gpa in [2 * GPA, 3 * GPA, GPA] {
        let error = vm.memory.insert(region(2, gpa, PAGE, HVA)).unwrap_err();
        assert_eq!(error, TransactionError::SlotExists(SlotId(2)));
        assert_eq!(error.errno(), Errno::EINVAL);
    }
    assert_eq!(vm.state(), before);
}

#[test]
fn an_overlap_with_another_slot_is_refused_with_eexist() {
    let vm = Vm::new(&[]);
    vm.memory.insert(region(1, GPA, 2 * PAGE, HVA)).unwrap();
    let before = vm.state();
    for gpa in [GPA - PAGE, GPA, GPA + PAGE] {
        let error = vm.memory.insert(region(2, gpa, 2 * PAGE, HVA)).unwrap_err();
        let (id, with) = (SlotId(2), SlotId(1));
        assert_eq!(error, TransactionError::Overlap { id, with });
        assert_eq!(error.errno(), Errno::EEXIST);
        assert_eq!(vm.state(), before);
    }
    for (id, gpa) in [(2, GPA - 2 * PAGE), (3, GPA + 2 * PAGE)] {
        vm.memory.insert(region(id, gpa, 2 * PAGE, HVA)).unwrap();
    }
}

#[test]
fn an_overlap_inside_one_transaction_is_refused_with_eexist() {
    let vm = Vm::new(&[]);
    let transaction = vm.memory.transaction();
    let both = transaction
        .create(region(1, GPA, 2 * PAGE, HVA))
        .create(region(2, GPA + PAGE, PAGE, HVA));
    let error = both.commit().unwrap_err();
    assert_eq!(error.errno(), Errno::EEXIST);
    assert!(vm.memory.slots().slots().is_empty());
}

#[test]
fn deleting_a_slot_that_does_not_exist_is_refused_with_einval() {
    let vm = Vm::new(&[]);
    let error = vm.memory.remove(SlotId(3)).unwrap_err();
    assert_eq!(error, TransactionError::NoSuchSlot(SlotId(3)));
    assert_eq!(error.errno(), Errno::EINVAL);
    vm.memory.insert(region(3, GPA, PAGE, HVA)).unwrap();
    let twice = vm.memory.transaction().delete(SlotId(3)).delete(SlotId(3));
    assert_eq!(twice.commit().unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(vm.memory.slots().slots().len(), 1);
}

#[test]
fn every_id_below_the_limit_can_be_used_and_one_more_changes_nothing() {
    let ids = 300;
    let vm = Vm::with(Config::new().slot_ids(ids), MODERN, &[]);
    for id in 0..ids {
        let gpa = u64::from(id) * PAGE;
        vm.memory.insert(region(id, gpa, PAGE, HVA)).unwrap();
    }
    let before = vm.state();
    let gpa = u64::from(ids) * PAGE;
    let error = vm.memory.insert(region(ids, gpa, PAGE, HVA)).unwrap_err();
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

#[test]
fn a_slot_says_what_it_was_made_from() {
    let vm = Vm::new(&[]);
    let asked = region(4, GPA, 4 * PAGE, HVA).read_only().log_dirty();
    vm.memory.insert(asked).unwrap();
    let slots = vm.memory.slots();
    let slot = slots.by_id(SlotId(4)).unwrap();
    assert!(slot.is_read_only());
    assert!(!slot.logs_dirty(), "what cannot be written is not logged");
    let part = gpa_range(GPA + PAGE, PAGE);
    let behind = hva_range(HVA + PAGE, PAGE);
    assert_eq!(slot.hva_of(&part), Some(behind));
    assert_eq!(slot.gpa_of(&behind), Some(part));
    assert_eq!(slot.gpa_of(&hva_range(HVA + 4 * PAGE, PAGE)), None);
    assert_eq!(slots.find(Gpa::new(GPA + 4 * PAGE), &mut 0), None);
    assert_eq!(slot.hva(), Hva::new(HVA));
}
