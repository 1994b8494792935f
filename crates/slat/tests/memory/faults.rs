//! Faults and prefaults: every outcome, and what happens when the host changes in the middle.

use std::sync::Arc;

use slat::host::PageKind;
use slat::notifier::Notifier;
use slat::region::{Mapping as When, SlotId};
use slat::table::address::{Gpa, Hpa, Hva};
use slat::table::attributes::{Access, MemoryType};
use slat::table::format::EncodeError;
use slat::table::simulated::Event;
use slat::table::table::LeavesError;
use slat::vcpu::{Denial, FaultError, Prefaulted};
use slat::{Fault, Outcome};

use crate::scripted_host::{Block, FRAMES, Failure, Mapping, hva_range};
use crate::vm::{BLOCK, DEVICE, GIB, GPA, HVA, PAGE, Vm, fault, gpa_range, is_mapped, region};

const SLOT: SlotId = SlotId(1);

/// Slot 1 over `mapping`, which starts at `HVA`, with nothing mapped yet.
fn vm(mapping: Mapping) -> Vm {
    let vm = Vm::new(&[mapping]);
    let bytes = mapping.vma.range.bytes();
    let asked = region(1, GPA, bytes, HVA).mapping(When::OnFault);
    vm.memory.insert(asked).unwrap();
    vm
}

fn denied(gpa: u64, access: Access, reason: Denial) -> Outcome {
    Outcome::Denied {
        slot: SLOT,
        gpa: Gpa::new(gpa),
        access,
        reason,
    }
}

#[test]
fn ram_arrives_on_demand() {
    let vm = vm(Mapping::ram(HVA, 4 * PAGE));
    let outcome = vm.write(GPA + PAGE + 0x123);
    let expected = Outcome::Mapped {
        slot: SLOT,
        range: gpa_range(GPA + PAGE, PAGE),
        hpa: Hpa::new(FRAMES),
        kind: PageKind::Ram,
    };
    assert_eq!(outcome, expected);
    assert_eq!(vm.sees(GPA + PAGE + 0x123), Some((FRAMES + 0x123, true)));
    assert_eq!(vm.mapped_bytes(), PAGE, "and nothing around it");
    let asked = vm.host.questions();
    assert_eq!((asked.len(), asked[0].access), (1, Access::Write));
}

#[test]
fn an_address_in_no_slot_is_mmio() {
    let vm = vm(Mapping::ram(HVA, PAGE));
    for gpa in [0, GPA - 1, GPA + PAGE, 1 << 40, u64::MAX] {
        let gpa = Gpa::new(gpa);
        let access = Access::Write;
        let outcome = vm.write(gpa.raw());
        assert_eq!(outcome, Outcome::Mmio { gpa, access });
    }
    assert!(vm.host.questions().is_empty());
}

#[test]
fn a_write_to_a_read_only_slot_is_reported_and_asks_nothing() {
    let vm = Vm::new(&[Mapping::ram(HVA, PAGE)]);
    let flash = region(1, GPA, PAGE, HVA).read_only();
    vm.memory.insert(flash).unwrap();
    assert!(is_mapped(&vm.read(GPA)));
    vm.host.questions();
    let (slot, gpa) = (SLOT, Gpa::new(GPA + 8));
    let expected = Outcome::WriteToReadOnly { slot, gpa };
    assert_eq!(vm.write(GPA + 8), expected);
    assert!(vm.host.questions().is_empty());
    // Though the host would let it be written.
    assert_eq!(vm.sees(GPA).map(|(_, write)| write), Some(false));
    assert_eq!(vm.access(GPA, Access::Execute), Outcome::Spurious { slot });
}

#[test]
fn a_page_that_is_mapped_already_is_spurious() {
    let vm = vm(Mapping::ram(HVA, PAGE));
    assert!(is_mapped(&vm.read(GPA)));
    let flushes = vm.machine.local_flushes();
    for access in [Access::Read, Access::Write, Access::Execute] {
        assert_eq!(vm.access(GPA, access), Outcome::Spurious { slot: SLOT });
    }
    let local = vm.machine.local_flushes() - flushes;
    assert_eq!(local, 3, "this CPU may hold what made it fault");
    assert_eq!(vm.machine.flushes(), 0, "and nobody else does");
}

#[test]
fn a_page_that_gained_permission_is_extended_in_place() {
    let vm = vm(Mapping::ram(HVA, PAGE).copy_on_write());
    assert!(is_mapped(&vm.read(GPA)));
    assert_eq!(vm.sees(GPA), Some((FRAMES, false)));
    vm.machine.record();
    assert_eq!(vm.write(GPA), Outcome::Extended { slot: SLOT });
    assert_eq!(vm.sees(GPA), Some((FRAMES, true)));
    let events = vm.machine.take_events();
    let writes = events
        .iter()
        .filter(|event| matches!(event, Event::Written { .. }));
    assert_eq!(writes.count(), 1, "adding a permission needs no break");
    assert!(events.contains(&Event::FlushedLocally(gpa_range(GPA, PAGE))));
}

#[test]
fn a_page_that_was_aged_is_young_again() {
    let vm = vm(Mapping::ram(HVA, PAGE));
    assert!(is_mapped(&vm.read(GPA)));
    let range = hva_range(HVA, PAGE);
    assert!(vm.memory.test_young(range) && vm.memory.age(range));
    assert!(!vm.memory.test_young(range) && !vm.memory.age(range));
    assert_eq!(vm.read(GPA), Outcome::Extended { slot: SLOT });
    assert!(vm.memory.test_young(range));
    assert_eq!(vm.memory.stats().agings, 5);
}

#[test]
fn each_refusal_of_the_host_has_its_outcome() {
    use Failure::{Busy, DeviceGone, NotPermitted, Poisoned};
    let vm = vm(Mapping::ram(HVA, PAGE));
    let hva = Hva::new(HVA);
    let poisoned = Outcome::Poisoned { slot: SLOT, hva };
    let cases = [
        (Busy, Outcome::Retry),
        (Poisoned, poisoned),
        (DeviceGone, denied(GPA, Access::Read, Denial::DeviceGone)),
        (
            NotPermitted,
            denied(GPA, Access::Read, Denial::NotPermitted),
        ),
    ];
    for (failure, expected) in cases {
        vm.host.fail(HVA, failure);
        assert_eq!(vm.read(GPA), expected);
        assert_eq!(vm.sees(GPA), None);
    }
    vm.host.fail(HVA, Failure::NoMemory);
    let (gpa, access) = (Gpa::new(GPA), Access::Read);
    let mut vcpu = vm.memory.vcpu();
    let error = vcpu.fault(Fault { gpa, access }).unwrap_err();
    assert_eq!(error, FaultError::HostNoMemory(hva));
    vm.host.heal();
    assert!(is_mapped(&fault(&mut vcpu, GPA, access)));
}

#[test]
fn a_slot_over_a_hole_is_denied_until_the_host_maps_something() {
    let vm = Vm::new(&[]);
    vm.memory.insert(region(1, GPA, PAGE, HVA)).unwrap();
    let expected = denied(GPA + 4, Access::Read, Denial::NoMapping);
    assert_eq!(vm.read(GPA + 4), expected);
    vm.host.map(Mapping::ram(HVA, PAGE));
    assert!(is_mapped(&vm.read(GPA + 4)));
}

#[test]
fn device_memory_cannot_be_executed() {
    let vm = vm(Mapping::device(HVA, PAGE, DEVICE));
    let expected = denied(GPA, Access::Execute, Denial::NotExecutable);
    assert_eq!(vm.access(GPA, Access::Execute), expected);
    assert!(is_mapped(&vm.write(GPA)));
    assert_eq!(vm.access(GPA, Access::Execute), expected);
}

#[test]
fn a_host_that_shows_an_unwritable_page_for_a_write_is_taken_at_its_word() {
    let vm = vm(Mapping::ram(HVA, PAGE));
    let host = vm.host.clone();
    vm.host.put_ram(HVA, PAGE, FRAMES);
    // The page loses its permission after the fault decided to show it.
    vm.host.fail(HVA, Failure::NotPermitted);
    let expected = denied(GPA, Access::Write, Denial::NotPermitted);
    assert_eq!(vm.write(GPA), expected);
    host.heal();
    assert!(is_mapped(&vm.write(GPA)));
}

#[test]
fn what_the_format_cannot_express_is_an_error_not_a_wrong_leaf() {
    let vm = vm(Mapping::device(HVA, PAGE, 1 << 48));
    let (gpa, access) = (Gpa::new(GPA), Access::Read);
    let error = vm.memory.vcpu().fault(Fault { gpa, access }).unwrap_err();
    let hpa = Hpa::new(1 << 48);
    let cause = EncodeError::AddressWidth { hpa, bits: 48 };
    assert_eq!(error, FaultError::Unencodable(LeavesError::Encode(cause)));
    assert_eq!(vm.mapped_bytes(), 0);
}

// The host changes in the middle.

#[test]
fn an_invalidation_that_starts_and_ends_in_the_middle_makes_the_fault_retry() {
    let vm = vm(Mapping::ram(HVA, PAGE));
    let (memory, host) = (Arc::clone(&vm.memory), vm.host.clone());
    vm.host.during_next_question(move |_| {
        let range = hva_range(HVA, PAGE);
        let invalidation = memory.invalidate(range);
        host.migrate(range);
        drop(invalidation);
    });
    assert_eq!(vm.read(GPA), Outcome::Retry);
    assert_eq!(vm.sees(GPA), None, "the old frame is somebody else's");
    assert!(is_mapped(&vm.read(GPA)));
    assert_eq!(vm.sees(GPA), vm.host.look(HVA));
}

#[test]
fn an_invalidation_that_has_not_ended_makes_the_fault_retry() {
    let vm = vm(Mapping::ram(HVA, PAGE));
    let ticket = vm.memory.begin(hva_range(HVA, PAGE));
    for _ in 0..3 {
        assert_eq!(vm.read(GPA), Outcome::Retry);
    }
    assert_eq!(vm.mapped_bytes(), 0);
    vm.memory.end(ticket);
    assert!(is_mapped(&vm.read(GPA)));
}

#[test]
fn an_invalidation_of_another_span_is_not_noticed() {
    let vm = vm(Mapping::ram(HVA, 4 * BLOCK));
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        memory.end(memory.begin(hva_range(HVA + BLOCK, BLOCK)));
    });
    let ticket = vm.memory.begin(hva_range(HVA + 2 * BLOCK, BLOCK));
    assert!(is_mapped(&vm.read(GPA)));
    vm.memory.end(ticket);
}

#[test]
fn a_block_over_many_spans_notices_a_change_in_any_of_them() {
    let vm = vm(Mapping::ram(HVA, GIB).blocks(GIB));
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        memory.end(memory.begin(hva_range(HVA + GIB - PAGE, PAGE)));
    });
    // The change comes before the second question, which P2 makes the fault ask.
    assert!(is_mapped(&vm.read(GPA)));
    assert_eq!(vm.host.questions().len(), 2);
    vm.memory.end(vm.memory.begin(hva_range(HVA, GIB)));
    assert_eq!(vm.mapped_bytes(), 0);
    let memory = Arc::clone(&vm.memory);
    let host = vm.host.clone();
    vm.host.during_next_question(move |_| {
        host.during_next_question(move |_| {
            memory.end(memory.begin(hva_range(HVA + GIB - PAGE, PAGE)));
        });
    });
    assert_eq!(vm.read(GPA), Outcome::Retry);
    assert_eq!(vm.mapped_bytes(), 0);
}

#[test]
fn a_host_block_that_shrinks_between_the_two_questions_makes_the_fault_retry() {
    let vm = vm(Mapping::ram(HVA, GIB).blocks(GIB));
    let host = vm.host.clone();
    vm.host.during_next_question(move |_| {
        host.put_ram(HVA, PAGE, 0x1000);
    });
    assert_eq!(vm.read(GPA), Outcome::Retry);
    assert!(is_mapped(&vm.read(GPA)));
    assert_eq!(vm.leaf_bytes(GPA), PAGE);
}

#[test]
fn a_slot_that_goes_in_the_middle_makes_the_fault_retry() {
    let vm = vm(Mapping::ram(HVA, PAGE));
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        memory.remove(SLOT).unwrap();
    });
    let mut vcpu = vm.memory.vcpu();
    assert_eq!(fault(&mut vcpu, GPA, Access::Read), Outcome::Retry);
    assert_eq!(vm.mapped_bytes(), 0);
    let mmio = fault(&mut vcpu, GPA, Access::Read);
    assert!(matches!(mmio, Outcome::Mmio { .. }));
}

#[test]
fn another_slot_that_changes_in_the_middle_costs_one_retry() {
    let vm = vm(Mapping::ram(HVA, PAGE));
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        memory.insert(region(2, 2 * GPA, PAGE, HVA)).unwrap();
    });
    assert_eq!(vm.read(GPA), Outcome::Retry);
    assert!(is_mapped(&vm.read(GPA)));
}

// Something else is in the way.

#[test]
fn a_block_over_pages_breaks_them_first_and_then_arrives() {
    let vm = vm(Mapping::ram(HVA, BLOCK));
    assert!(is_mapped(&vm.read(GPA)) && is_mapped(&vm.read(GPA + PAGE)));
    // The host joins its pages into a block at the place of the first, and announces it.
    vm.host_changes(hva_range(HVA + 2 * PAGE, BLOCK - 2 * PAGE), |host| {
        host.put_ram(HVA, BLOCK, FRAMES & !(BLOCK - 1));
    });
    assert_eq!(vm.mapped_bytes(), 2 * PAGE);
    vm.machine.record();
    assert_eq!(vm.read(GPA + 2 * PAGE), Outcome::Retry);
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
    assert!(is_mapped(&vm.read(GPA + 2 * PAGE)));
    assert_eq!(vm.leaf_bytes(GPA), BLOCK);
}

#[test]
fn a_page_under_a_block_that_allows_as_much_is_spurious() {
    let vm = vm(Mapping::ram(HVA, BLOCK).blocks(BLOCK));
    assert!(is_mapped(&vm.write(GPA)));
    let (hpa, _) = vm.sees(GPA).unwrap();
    // The host splits its block in place: nothing changes for the guest.
    for at in (0..BLOCK).step_by(4096) {
        vm.host.put_ram(HVA + at, PAGE, hpa + at);
    }
    assert_eq!(vm.write(GPA + PAGE), Outcome::Spurious { slot: SLOT });
    assert_eq!(vm.leaf_bytes(GPA), BLOCK);
}

#[test]
fn a_page_that_needs_more_than_the_block_over_it_allows_breaks_the_block() {
    let vm = vm(Mapping::ram(HVA, BLOCK).blocks(BLOCK).copy_on_write());
    assert!(is_mapped(&vm.read(GPA)));
    let (hpa, write) = vm.sees(GPA).unwrap();
    assert!(!write);
    for at in (0..BLOCK).step_by(4096) {
        vm.host.put_ram(HVA + at, PAGE, hpa + at);
    }
    assert_eq!(vm.write(GPA), Outcome::Retry);
    assert!(is_mapped(&vm.write(GPA)));
    assert_eq!(vm.sees(GPA), Some((hpa, true)));
    assert_eq!(vm.leaf_bytes(GPA), PAGE);
}

#[test]
fn a_leaf_of_another_memory_type_is_broken_not_changed() {
    let vm = vm(Mapping::ram(HVA, PAGE));
    assert!(is_mapped(&vm.read(GPA)));
    let (hpa, _) = vm.sees(GPA).unwrap();
    let other = Block {
        bytes: PAGE,
        hpa,
        writable: true,
        memory: MemoryType::NonCacheable,
    };
    // Against the contract, unannounced: even so nothing is overwritten.
    vm.host.put(HVA, other);
    assert_eq!(vm.read(GPA), Outcome::Retry);
    assert_eq!(vm.sees(GPA), None);
    assert!(is_mapped(&vm.read(GPA)));
    assert_eq!(vm.memory_type(GPA), Some(MemoryType::NonCacheable));
}

// Two vCPUs.

#[test]
fn two_vcpus_on_one_page_get_one_frame() {
    let vm = vm(Mapping::ram(HVA, PAGE));
    let memory = Arc::clone(&vm.memory);
    vm.host.during_next_question(move |_| {
        let outcome = fault(&mut memory.vcpu(), GPA, Access::Write);
        assert!(is_mapped(&outcome));
    });
    assert_eq!(vm.write(GPA), Outcome::Spurious { slot: SLOT });
    assert_eq!(vm.sees(GPA), vm.host.look(HVA));
    assert_eq!(vm.mapped_bytes(), PAGE);
}

#[test]
fn threads_on_the_same_pages_agree() {
    let bytes = 2 * BLOCK;
    let vm = vm(Mapping::ram(HVA, bytes).blocks(BLOCK));
    std::thread::scope(|scope| {
        for access in [Access::Read, Access::Write, Access::Execute] {
            let vm = &vm;
            scope.spawn(move || {
                let mut vcpu = vm.memory.vcpu();
                for at in (0..bytes).step_by(4096 * 8) {
                    while fault(&mut vcpu, GPA + at, access) == Outcome::Retry {}
                }
            });
        }
    });
    for at in (0..bytes).step_by(4096) {
        assert_eq!(vm.sees(GPA + at), vm.host.look(HVA + at));
    }
    assert_eq!(vm.leaves().len(), 2);
    vm.end();
}

// Prefaulting.

#[test]
fn a_prefault_maps_a_whole_range_and_says_so() {
    let vm = vm(Mapping::ram(HVA, 2 * BLOCK));
    let mut vcpu = vm.memory.vcpu();
    let range = gpa_range(GPA + PAGE, BLOCK);
    let done = vcpu.prefault(&range).unwrap();
    let (bytes, stopped) = (BLOCK, None);
    assert_eq!(done, Prefaulted { bytes, stopped });
    assert_eq!(vm.mapped_bytes(), BLOCK);
    // Again, and nothing is left to do.
    assert_eq!(vcpu.prefault(&range).unwrap().bytes, BLOCK);
    assert_eq!(vm.mapped_bytes(), BLOCK);
    assert_eq!(vcpu.stats().total(), 0, "no fault happened");
    assert_eq!(vcpu.stats().leaves[0], BLOCK / PAGE);
}

#[test]
fn a_prefault_takes_blocks_and_may_start_inside_one() {
    let vm = vm(Mapping::device(HVA, 3 * BLOCK, DEVICE));
    let mut vcpu = vm.memory.vcpu();
    let range = gpa_range(GPA + BLOCK + PAGE, BLOCK);
    assert_eq!(vcpu.prefault(&range).unwrap().bytes, BLOCK);
    assert_eq!(vm.leaves().len(), 2);
    assert_eq!(vm.mapped_bytes(), 2 * BLOCK);
}

#[test]
fn a_prefault_stops_where_the_slot_ends_and_says_how_far_it_got() {
    let vm = vm(Mapping::ram(HVA, 3 * PAGE));
    let mut vcpu = vm.memory.vcpu();
    let done = vcpu.prefault(&gpa_range(GPA + PAGE, 4 * PAGE)).unwrap();
    let gpa = Gpa::new(GPA + 3 * PAGE);
    let access = Access::Read;
    let stopped = Some(Outcome::Mmio { gpa, access });
    let bytes = 2 * PAGE;
    assert_eq!(done, Prefaulted { bytes, stopped });
}

#[test]
fn a_prefault_stops_at_what_the_host_refuses() {
    let vm = vm(Mapping::ram(HVA, 4 * PAGE));
    vm.host.fail(HVA + 2 * PAGE, Failure::Poisoned);
    let mut vcpu = vm.memory.vcpu();
    let done = vcpu.prefault(&gpa_range(GPA, 4 * PAGE)).unwrap();
    let hva = Hva::new(HVA + 2 * PAGE);
    let stopped = Some(Outcome::Poisoned { slot: SLOT, hva });
    let bytes = 2 * PAGE;
    assert_eq!(done, Prefaulted { bytes, stopped });
}

#[test]
fn a_prefault_gives_its_progress_or_an_error_never_both() {
    let vm = vm(Mapping::ram(HVA, 4 * PAGE));
    vm.host.fail(HVA + 2 * PAGE, Failure::NoMemory);
    let mut vcpu = vm.memory.vcpu();
    let range = gpa_range(GPA, 4 * PAGE);
    let done = vcpu.prefault(&range).unwrap();
    let (bytes, stopped) = (2 * PAGE, Some(Outcome::Retry));
    assert_eq!(done, Prefaulted { bytes, stopped });
    let rest = range.from(Gpa::new(GPA + bytes)).unwrap();
    let error = vcpu.prefault(&rest).unwrap_err();
    assert_eq!(error, FaultError::HostNoMemory(Hva::new(HVA + bytes)));
}

#[test]
fn a_prefault_that_meets_a_change_can_go_on_from_where_it_stopped() {
    let vm = vm(Mapping::ram(HVA, 2 * BLOCK));
    let ticket = vm.memory.begin(hva_range(HVA + BLOCK, PAGE));
    let mut vcpu = vm.memory.vcpu();
    let range = gpa_range(GPA, 2 * BLOCK);
    let done = vcpu.prefault(&range).unwrap();
    assert_eq!((done.bytes, done.stopped), (BLOCK, Some(Outcome::Retry)));
    vm.memory.end(ticket);
    let rest = range.from(Gpa::new(GPA + done.bytes)).unwrap();
    assert_eq!(vcpu.prefault(&rest).unwrap().bytes, BLOCK);
    assert_eq!(vm.mapped_bytes(), 2 * BLOCK);
}

// Counters.

#[test]
fn a_vcpu_counts_its_faults_by_cause() {
    let ram = Mapping::ram(HVA, BLOCK).copy_on_write();
    let device = Mapping::device(HVA + BLOCK, BLOCK, DEVICE);
    let vm = Vm::new(&[ram, device]);
    let on_fault = |region: slat::Region| region.mapping(When::OnFault);
    let both = region(1, GPA, 2 * BLOCK, HVA);
    vm.memory.insert(on_fault(both)).unwrap();
    let flash = region(2, 2 * GPA, PAGE, HVA).read_only();
    vm.memory.insert(on_fault(flash)).unwrap();

    let mut vcpu = vm.memory.vcpu();
    fault(&mut vcpu, GPA, Access::Read);
    fault(&mut vcpu, GPA, Access::Write);
    fault(&mut vcpu, GPA, Access::Write);
    fault(&mut vcpu, GPA + BLOCK, Access::Write);
    fault(&mut vcpu, GPA + BLOCK, Access::Execute);
    fault(&mut vcpu, 0, Access::Read);
    fault(&mut vcpu, 2 * GPA, Access::Write);
    vm.host.fail(HVA + PAGE, Failure::Busy);
    fault(&mut vcpu, GPA + PAGE, Access::Read);
    vm.host.fail(HVA + PAGE, Failure::Poisoned);
    fault(&mut vcpu, GPA + PAGE, Access::Read);

    let stats = vcpu.stats();
    assert_eq!((stats.ram, stats.pfnmap, stats.extended), (1, 1, 1));
    assert_eq!((stats.spurious, stats.retried, stats.mmio), (1, 1, 1));
    assert_eq!((stats.read_only, stats.denied, stats.total()), (1, 2, 9));
    assert_eq!(stats.leaves[..3], [1, 1, 0]);
    let text = "9 faults: 1 RAM, 1 device, 1 extended, 1 spurious, 1 retried, 1 in no slot, \
                1 to read-only, 2 denied";
    assert_eq!(stats.to_string(), text);
}
