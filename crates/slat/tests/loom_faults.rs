//! Faults against everything that may happen meanwhile: rules P1 to P4 of the protocol, and two
//! faults that make the same table. What must never be is judged by `loom_model::caches`.

#![cfg(slat_loom)]

mod loom_model;

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use slat::SlotId;
use slat::vcpu::Outcome;
use slat_table::attributes::Access;

use loom_model::host::{ModelHost, Page, frame, hva_pages};
use loom_model::tiny::TinyFeatures;
use loom_model::{BREAKS, Vm, check, gpa_pages, is_handled, on_fault, page, spare};

/// P1: after a slot was created, no fault in it is taken for MMIO.
#[test]
fn p1_a_new_slot_is_no_mmio() {
    check(None, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        let mut vcpu = vm.memory.vcpu();
        let created = Arc::new(AtomicBool::new(false));
        let creator = thread::spawn({
            let (vm, created) = (vm.clone(), Arc::clone(&created));
            move || {
                vm.memory.insert(on_fault(1, 0, 2, 0)).expect("a slot");
                created.store(true, Ordering::Release);
            }
        });
        let after = created.load(Ordering::Acquire);
        let outcome = vm.fault(&mut vcpu, 0, Access::Read);
        drop(vcpu);
        creator.join().expect("the creator ends");
        let mmio = matches!(outcome, Outcome::Mmio { .. });
        assert!(!(after && mmio), "the slot was there: {outcome:?}");
        vm.finish(&[(0, frame(0))]);
    });
}

/// P1: after a read-only slot was made writable, no write is reported as one to a read-only slot.
#[test]
fn p1_a_slot_made_writable_takes_writes() {
    check(None, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        let old = on_fault(1, 0, 2, 0).read_only();
        vm.memory.insert(old).expect("a slot");
        let mut vcpu = vm.memory.vcpu();
        let done = Arc::new(AtomicBool::new(false));
        let changer = thread::spawn({
            let (vm, done) = (vm.clone(), Arc::clone(&done));
            move || {
                let change = vm.memory.transaction().delete(SlotId(1));
                let change = change.create(on_fault(1, 0, 2, 0));
                change.commit().expect("a slot");
                done.store(true, Ordering::Release);
            }
        });
        let after = done.load(Ordering::Acquire);
        let outcome = vm.fault(&mut vcpu, 0, Access::Write);
        drop(vcpu);
        changer.join().expect("the change ends");
        let refused = matches!(outcome, Outcome::WriteToReadOnly { .. });
        assert!(!(after && refused), "the slot was writable: {outcome:?}");
        vm.finish(&[(0, frame(0))]);
    });
}

/// P2, P3, P5, P8: a fault that asked the host before a change does not install the answer, be it
/// before, during or after the change.
#[test]
fn p2_p3_p5_p8_what_the_host_said_before_a_change_is_not_installed() {
    check(None, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        let host = thread::spawn({
            let vm = vm.clone();
            move || vm.migrate(0, frame(0), spare())
        });
        vm.fault(&mut vm.memory.vcpu(), 0, Access::Read);
        host.join().expect("the host ends");
        vm.finish(&[(0, spare())]);
    });
}

/// P2: a leaf over two spans needs the sequences of both from before the question.
#[test]
fn p2_a_block_over_two_spans_is_asked_for_under_both_sequences() {
    check(None, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(2));
        let host = thread::spawn({
            let vm = vm.clone();
            move || {
                let change = vm.memory.invalidate(hva_pages(3, 1));
                vm.machine.take_frame(frame(3));
                vm.host.shape_block(3, 2, 0);
                vm.host.move_page(3, spare());
                drop(change);
            }
        });
        // Page 0 is in another span, and of another stripe, than page 3.
        vm.fault(&mut vm.memory.vcpu(), 0, Access::Read);
        host.join().expect("the host ends");
        vm.finish(&[(0, frame(0)), (3, spare())]);
    });
}

/// P2: the same with a second vCPU that faults on the other half of the block.
#[test]
fn p2_two_vcpus_ask_for_one_block_while_it_changes() {
    check(Some(2), || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(2));
        let other = thread::spawn({
            let vm = vm.clone();
            move || vm.fault(&mut vm.memory.vcpu(), 3, Access::Read)
        });
        let host = thread::spawn({
            let vm = vm.clone();
            move || {
                let change = vm.memory.invalidate(hva_pages(1, 1));
                vm.machine.take_frame(frame(1));
                vm.host.shape_block(1, 2, 0);
                vm.host.move_page(1, spare());
                drop(change);
            }
        });
        vm.fault(&mut vm.memory.vcpu(), 0, Access::Read);
        other.join().expect("the other vCPU ends");
        host.join().expect("the host ends");
        vm.finish(&[(0, frame(0)), (1, spare()), (3, frame(3))]);
    });
}

/// P3: nothing is installed for a slot that is gone.
#[test]
fn p3_a_slot_that_is_gone_gets_no_leaf() {
    check(None, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        let mut vcpu = vm.memory.vcpu();
        let remover = thread::spawn({
            let vm = vm.clone();
            move || {
                vm.memory.remove(SlotId(1)).expect("it exists");
                vm.machine.close(gpa_pages(0, 8));
            }
        });
        vm.fault(&mut vcpu, 0, Access::Read);
        drop(vcpu);
        remover.join().expect("the remover ends");
        vm.finish(&[]);
    });
}

/// P4: a fault in a slot that has just replaced another may meet the old one's leaf. It must not
/// overwrite it: break, flush, try again.
#[test]
fn p4_the_leaf_of_a_replaced_slot_is_not_overwritten() {
    check(None, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        vm.map(0);
        let mut vcpu = vm.memory.vcpu();
        let replacer = thread::spawn({
            let vm = vm.clone();
            move || {
                let change = vm.memory.transaction().delete(SlotId(1));
                let change = change.create(on_fault(1, 0, 2, 4));
                change.commit().expect("a slot");
                // The old slot is gone, and its pages may go elsewhere.
                vm.machine.take_frame(frame(0));
            }
        });
        vm.fault(&mut vcpu, 0, Access::Read);
        drop(vcpu);
        replacer.join().expect("the replacer ends");
        vm.finish(&[(0, frame(4))]);
    });
}

/// P4: a table of smaller leaves in the way of a block is broken and flushed, not overwritten,
/// and the next fault makes the block.
#[test]
fn p4_a_table_in_the_way_of_a_block_is_broken_first() {
    check(None, || {
        let host = ModelHost::with_blocks(1);
        let vm = Vm::with_slot(BREAKS, host.clone());
        host.shape_block(0, 1, 0);
        vm.map(0);
        host.shape_block(0, 1, 1);
        let other = thread::spawn({
            let vm = vm.clone();
            move || vm.fault(&mut vm.memory.vcpu(), 1, Access::Read)
        });
        vm.fault(&mut vm.memory.vcpu(), 0, Access::Read);
        other.join().expect("the other vCPU ends");
        vm.finish(&[(1, frame(1)), (0, frame(0))]);
    });
}

/// P4: when a leaf allows more, each vCPU that faulted on it forgets what it allowed before,
/// whether it changed the leaf or found it changed.
#[test]
fn p4_a_vcpu_forgets_the_permissions_that_made_it_fault() {
    check(None, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        let (frame, order) = (frame(0), 0);
        let at = |writable| Page {
            frame,
            order,
            writable,
        };
        vm.host.set(0, at(false));
        vm.map(0);
        // A gain of permission needs no notice.
        vm.host.set(0, at(true));
        both_get_on(vm, Access::Write);
    });
}

/// P4: where the hardware caches that nothing is mapped, each vCPU that faulted forgets it.
#[test]
fn p4_a_vcpu_forgets_that_nothing_was_mapped() {
    check(None, || {
        let features = TinyFeatures {
            caches_invalid: true,
            ..BREAKS
        };
        let vm = Vm::with_slot(features, ModelHost::with_blocks(0));
        both_get_on(vm, Access::Read);
    });
}

/// Two vCPUs fault on page 0 and go on.
fn both_get_on(vm: Vm, access: Access) {
    let one = move |vm: &Vm| {
        let outcome = vm.fault(&mut vm.memory.vcpu(), 0, access);
        vm.machine.access(page(0), access);
        outcome
    };
    let other = thread::spawn({
        let vm = vm.clone();
        move || one(&vm)
    });
    let outcomes = [one(&vm), other.join().expect("the other vCPU ends")];
    assert!(outcomes.iter().all(is_handled), "{outcomes:?}");
    vm.finish(&[(0, frame(0))]);
}

/// Two faults in different spans, under different stripes, need the same upper table: one makes
/// it, both use it.
#[test]
fn two_faults_that_need_the_same_table_agree_on_it() {
    check(None, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        let one = |vm: &Vm, number| vm.fault(&mut vm.memory.vcpu(), number, Access::Read);
        let other = thread::spawn({
            let vm = vm.clone();
            move || one(&vm, 2)
        });
        let outcomes = [one(&vm, 0), other.join().expect("the other vCPU ends")];
        let mapped = |outcome: &Outcome| matches!(outcome, Outcome::Mapped { .. });
        assert!(outcomes.iter().all(mapped), "{outcomes:?}");
        for number in [0, 2] {
            assert_eq!(vm.frame_at(number), Some(frame(number)));
        }
        vm.finish(&[]);
    });
}
