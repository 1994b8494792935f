//! The order of locks: rule P12 of the protocol. Transactions, then the wait for invalidations,
//! then the host's mmap lock, then stripes by index; and `begin` waits for no transaction. Where
//! it is broken, the checker finds threads that wait for each other, or one that waits for ever.

#![cfg(slat_loom)]

mod loom_model;

use loom::thread;
use slat::notifier::Notifier;
use slat_table::attributes::Access;

use loom_model::host::{ModelHost, frame, hva_pages};
use loom_model::{BREAKS, Vm, check, on_fault, spare};

/// A transaction waits for an invalidation, and that for the mmap lock: so the transaction has let
/// go of the mmap lock.
#[test]
fn p12_a_transaction_waits_for_invalidations_without_the_mmap_lock() {
    check(None, || {
        let host = ModelHost::with_blocks(0).with_mmap_lock();
        let vm = Vm::new(BREAKS, host);
        let host = thread::spawn({
            let vm = vm.clone();
            move || {
                let change = vm.memory.invalidate(hva_pages(0, 1));
                vm.machine.take_frame(frame(0));
                vm.host.change_mappings(|| vm.host.move_page(0, spare()));
                drop(change);
            }
        });
        vm.memory.insert(on_fault(1, 0, 2, 0)).expect("a slot");
        host.join().expect("the host ends");
        vm.finish(&[(0, spare())]);
    });
}

/// A transaction waits for an invalidation, inside of which another begins: so that one waits for
/// no transaction.
#[test]
fn p12_an_invalidation_inside_another_waits_for_no_transaction() {
    check(None, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        let host = thread::spawn({
            let vm = vm.clone();
            move || {
                let outer = vm.memory.invalidate(hva_pages(0, 1));
                vm.migrate(1, frame(1), frame(10));
                drop(outer);
            }
        });
        vm.memory.insert(on_fault(1, 0, 2, 0)).expect("a slot");
        host.join().expect("the host ends");
        vm.finish(&[(0, frame(0)), (1, frame(10))]);
    });
}

/// Who holds one stripe and meets a block over several lets go before it takes them all.
#[test]
fn p12_who_needs_more_stripes_lets_go_first() {
    check(None, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(2));
        vm.map(0);
        let host = thread::spawn({
            let vm = vm.clone();
            // Of the block's two stripes this one is the second.
            move || vm.memory.age(hva_pages(3, 1))
        });
        vm.fault(&mut vm.memory.vcpu(), 0, Access::Read);
        assert!(host.join().expect("the host ends"), "it was young");
        vm.finish(&[(0, frame(0)), (3, frame(3))]);
    });
}

/// Two who need the same stripes take them in the same order, whatever happened before.
#[test]
fn p12_stripes_are_taken_in_the_order_of_their_indexes() {
    check(None, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(2));
        let other = thread::spawn({
            let vm = vm.clone();
            move || {
                drop(vm.memory.invalidate(hva_pages(0, 4)));
                vm.fault(&mut vm.memory.vcpu(), 3, Access::Read);
            }
        });
        vm.fault(&mut vm.memory.vcpu(), 0, Access::Read);
        other.join().expect("the other vCPU ends");
        vm.finish(&[(0, frame(0)), (3, frame(3))]);
    });
}
