//! Real threads: vCPUs that fault while the host and the VMM change everything.

use core::sync::atomic::{AtomicBool, Ordering};

use slat::Outcome;
use slat::region::SlotId;
use slat::table::address::Gpa;
use slat::table::attributes::Access;
use slat::table::format::Format;

use crate::rows::Row;
use crate::scripted_host::hva_range;
use crate::vm::{Vm, fault, region, steps};

/// Changes by the host in one run. There are many rows.
const ROUNDS: u64 = 30;

/// A VM whose slot is at one of two places, and what it runs on.
struct Scene<F: Format> {
    row: Row<F>,
    vm: Vm<F>,
    bytes: u64,
    places: [u64; 2],
}

/// Faults all over both places until `stop`.
fn run_vcpu<F: Format>(scene: &Scene<F>, stop: &AtomicBool, mut at: u64) {
    let vm = &scene.vm;
    let mut vcpu = vm.memory.vcpu();
    let accesses = [Access::Read, Access::Write, Access::Execute];
    while !stop.load(Ordering::Relaxed) {
        // Any odd multiplier visits every page.
        at = at
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(scene.row.page);
        let offset = (at >> 20) % scene.bytes;
        let access = accesses[(at >> 50) as usize % 3];
        let place = scene.places[(at >> 60) as usize & 1];
        let outcome = fault(&mut vcpu, place + offset, access);
        let denied = matches!(outcome, Outcome::Denied { .. } | Outcome::Poisoned { .. });
        assert!(!denied, "{outcome:?}");
    }
}

/// Moves blocks and pages, and looks while it has them to itself.
fn run_host<F: Format>(scene: &Scene<F>) {
    let Scene { row, vm, .. } = scene;
    let (page, span) = (row.page, row.span);
    for round in 0..ROUNDS {
        let block = row.hva + round % 4 * span;
        let one = block + round * 7 % (span / page) * page;
        let whole = round % 3 != 0;
        let range = if whole {
            hva_range(block, span)
        } else {
            hva_range(one, page)
        };
        let invalidation = vm.memory.invalidate(range);
        if whole {
            vm.host.migrate(range);
        } else {
            vm.host.discard(range);
        }
        for place in scene.places {
            let gpa = place + (range.start().raw() - row.hva);
            for _ in 0..10 {
                assert_eq!(vm.memory.translate(Gpa::new(gpa)), None);
                std::thread::yield_now();
            }
        }
        drop(invalidation);
    }
}

/// Moves the slot to and fro.
fn run_vmm<F: Format>(scene: &Scene<F>) {
    let Scene { row, vm, bytes, .. } = scene;
    for round in 0..ROUNDS / 10 {
        let [gone, gpa] = if round % 2 == 0 {
            scene.places
        } else {
            [scene.places[1], scene.places[0]]
        };
        let transaction = vm.memory.transaction().delete(SlotId(1));
        let moved = transaction.create(region(1, gpa, *bytes, row.hva));
        moved.commit().unwrap();
        for offset in steps(*bytes, row.span / 4) {
            assert_eq!(vm.memory.translate(Gpa::new(gone + offset)), None);
        }
        std::thread::yield_now();
    }
}

fn nothing_is_reachable_that_was_taken_away<F: Format>(row: Row<F>) {
    let bytes = 4 * row.span;
    let vm = row.vm(&[row.ram(row.hva, bytes).blocks(row.span)]);
    vm.memory
        .insert(region(1, row.gpa, bytes, row.hva))
        .unwrap();
    let scene = Scene {
        row,
        vm,
        bytes,
        places: [row.gpa, 3 * row.gpa],
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (scene, stop) = (&scene, &stop);
        let vcpus = [1, 2].map(|seed| scope.spawn(move || run_vcpu(scene, stop, seed)));
        let changes = [
            scope.spawn(move || run_host(scene)),
            scope.spawn(move || run_vmm(scene)),
        ];
        let ended = changes.map(std::thread::ScopedJoinHandle::join);
        stop.store(true, Ordering::Relaxed);
        let ran = vcpus.map(std::thread::ScopedJoinHandle::join);
        assert!(ended.iter().chain(&ran).all(Result::is_ok));
    });
    let vm = scene.vm;
    // What is left is what the host has.
    for leaf in vm.leaves() {
        let slots = vm.memory.slots();
        let slot = slots.by_id(SlotId(1)).unwrap();
        let hva = row.hva + (leaf.gpa - slot.range().start().raw());
        let range = hva_range(hva, leaf.bytes);
        assert!(vm.host.shows(range, leaf.hpa, leaf.write), "{leaf:x?}");
    }
    vm.memory.remove(SlotId(1)).unwrap();
    assert_eq!(vm.mapped_bytes(), 0);
    vm.end();
}

crate::rows::for_every_format! {
    nothing_is_reachable_that_was_taken_away,
}
