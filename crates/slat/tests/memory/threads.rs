//! Real threads: vCPUs that fault while the host and the VMM change everything.

use core::sync::atomic::{AtomicBool, Ordering};

use slat::Outcome;
use slat::region::SlotId;
use slat::table::address::Gpa;
use slat::table::attributes::Access;

use crate::scripted_host::{Mapping, hva_range};
use crate::vm::{BLOCK, GPA, HVA, PAGE, Vm, fault, region};

const BYTES: u64 = 4 * BLOCK;
/// Where the slot is now and then instead.
const ELSEWHERE: u64 = 3 * GPA;
const ROUNDS: u64 = 300;

/// Faults all over both places until `stop`.
fn run_vcpu(vm: &Vm, stop: &AtomicBool, mut at: u64) {
    let mut vcpu = vm.memory.vcpu();
    let accesses = [Access::Read, Access::Write, Access::Execute];
    while !stop.load(Ordering::Relaxed) {
        // Any odd multiplier visits every page.
        at = at
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(PAGE);
        let offset = (at >> 20) % BYTES;
        let access = accesses[(at >> 50) as usize % 3];
        let place = if at >> 60 & 1 == 0 { GPA } else { ELSEWHERE };
        let outcome = fault(&mut vcpu, place + offset, access);
        let denied = matches!(outcome, Outcome::Denied { .. } | Outcome::Poisoned { .. });
        assert!(!denied, "{outcome:?}");
    }
}

/// Moves blocks and pages, and looks while it has them to itself.
fn run_host(vm: &Vm) {
    for round in 0..ROUNDS {
        let block = HVA + round % 4 * BLOCK;
        let page = block + round * 7 % 512 * PAGE;
        let whole = round % 3 != 0;
        let range = if whole {
            hva_range(block, BLOCK)
        } else {
            hva_range(page, PAGE)
        };
        let invalidation = vm.memory.invalidate(range);
        if whole {
            vm.host.migrate(range);
        } else {
            vm.host.discard(range);
        }
        for place in [GPA, ELSEWHERE] {
            let gpa = place + (range.start().raw() - HVA);
            for _ in 0..10 {
                assert_eq!(vm.memory.translate(Gpa::new(gpa)), None);
                std::thread::yield_now();
            }
        }
        drop(invalidation);
    }
}

/// Moves the slot to and fro.
fn run_vmm(vm: &Vm) {
    for round in 0..ROUNDS / 10 {
        let gpa = if round % 2 == 0 { ELSEWHERE } else { GPA };
        let gone = if round % 2 == 0 { GPA } else { ELSEWHERE };
        let transaction = vm.memory.transaction().delete(SlotId(1));
        let moved = transaction.create(region(1, gpa, BYTES, HVA));
        moved.commit().unwrap();
        for offset in (0..BYTES).step_by(1 << 19) {
            assert_eq!(vm.memory.translate(Gpa::new(gone + offset)), None);
        }
        std::thread::yield_now();
    }
}

#[test]
fn nothing_is_reachable_that_was_taken_away() {
    let vm = Vm::new(&[Mapping::ram(HVA, BYTES).blocks(BLOCK)]);
    vm.memory.insert(region(1, GPA, BYTES, HVA)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (vm, stop) = (&vm, &stop);
        let vcpus = [1, 2].map(|seed| scope.spawn(move || run_vcpu(vm, stop, seed)));
        let changes = [
            scope.spawn(move || run_host(vm)),
            scope.spawn(move || run_vmm(vm)),
        ];
        let ended = changes.map(std::thread::ScopedJoinHandle::join);
        stop.store(true, Ordering::Relaxed);
        let ran = vcpus.map(std::thread::ScopedJoinHandle::join);
        assert!(ended.iter().chain(&ran).all(Result::is_ok));
    });
    // What is left is what the host has.
    for leaf in vm.leaves() {
        let slots = vm.memory.slots();
        let slot = slots.by_id(SlotId(1)).unwrap();
        let hva = HVA + (leaf.gpa - slot.range().start().raw());
        let range = hva_range(hva, leaf.bytes);
        assert!(vm.host.shows(range, leaf.hpa, leaf.write), "{leaf:x?}");
    }
    vm.memory.remove(SlotId(1)).unwrap();
    assert_eq!(vm.mapped_bytes(), 0);
    vm.end();
}
