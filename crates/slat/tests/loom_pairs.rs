//! Every pair of operations that can meet on a stripe: two faults, a fault and an invalidation, a
//! fault and a change of slots, two invalidations, an invalidation and a change of slots, a split
//! and a fault, a split and an invalidation, two faults that need the same upper table.
//!
//! Every pair is explored completely. Each test prints how many executions that took and how they
//! ended (`--nocapture` shows it). What must never be is judged by `loom_model::caches`; the rules
//! one by one are in the other loom tests.

#![cfg(slat_loom)]

mod loom_model;

use loom::thread;
use slat::SlotId;
use slat::vcpu::Outcome;
use slat_table::attributes::Access;
use slat_table::geometry::Level;

use loom_model::host::{ModelHost, frame, hva_pages};
use loom_model::{BREAKS, Vm, gpa_pages, is_handled, on_fault, pair, region, spare};

/// How a fault ended, in the words of the tests.
fn ending(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Mapped { hpa, .. } if *hpa == spare() => "the fault mapped the new frame",
        Outcome::Mapped { .. } => "the fault mapped the page",
        Outcome::Extended { .. } => "the fault extended the leaf",
        Outcome::Spurious { .. } => "the fault found the page mapped",
        Outcome::Retry => "the fault was told to try again",
        Outcome::Mmio { .. } => "the fault found no slot",
        other => panic!("{other:?}"),
    }
}

/// A fault on page `number` by a vCPU that looks at the slots anew.
fn read(vm: &Vm, number: u64) -> Outcome {
    vm.fault(&mut vm.memory.vcpu(), number, Access::Read)
}

#[test]
fn fault_and_fault_on_one_page() {
    let endings = ["the first mapped it", "the second mapped it"];
    pair("fault/fault", &endings, move || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        let mut vcpu = vm.ready_vcpu();
        let other = thread::spawn({
            let vm = vm.clone();
            move || read(&vm, 0)
        });
        let outcome = vm.fault(&mut vcpu, 0, Access::Read);
        let outcomes = [outcome, other.join().expect("the other vCPU ends")];
        drop(vcpu);
        assert!(outcomes.iter().all(is_handled), "{outcomes:?}");
        let mapped = outcomes.map(|outcome| matches!(outcome, Outcome::Mapped { .. }));
        vm.finish(&[(0, frame(0))]);
        match mapped {
            [true, false] => endings[0],
            [false, true] => endings[1],
            _ => panic!("one page, one who maps it: {outcomes:?}"),
        }
    });
}

#[test]
fn fault_and_fault_on_one_block_over_two_stripes() {
    let endings = ["the first mapped it", "the second mapped it"];
    pair("fault/fault in one block", &endings, move || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(2));
        let mut vcpu = vm.ready_vcpu();
        let other = thread::spawn({
            let vm = vm.clone();
            move || read(&vm, 3)
        });
        let outcome = vm.fault(&mut vcpu, 0, Access::Read);
        let outcomes = [outcome, other.join().expect("the other vCPU ends")];
        drop(vcpu);
        assert!(outcomes.iter().all(is_handled), "{outcomes:?}");
        let first = matches!(outcomes[0], Outcome::Mapped { .. });
        vm.finish(&[(0, frame(0)), (3, frame(3))]);
        endings[usize::from(!first)]
    });
}

#[test]
fn fault_and_invalidate_of_one_page() {
    let endings = [
        "the fault mapped the page",
        "the fault mapped the new frame",
        "the fault was told to try again",
    ];
    pair("fault/invalidate", &endings, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        let host = thread::spawn({
            let vm = vm.clone();
            move || vm.migrate(0, frame(0), spare())
        });
        let outcome = read(&vm, 0);
        host.join().expect("the host ends");
        vm.finish(&[(0, spare())]);
        ending(&outcome)
    });
}

#[test]
fn fault_and_invalidate_of_a_page_that_is_mapped() {
    let endings = [
        "the fault found the page mapped",
        "the fault mapped the new frame",
        "the fault was told to try again",
    ];
    pair("fault/invalidate of a mapped page", &endings, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        vm.map(0);
        let host = thread::spawn({
            let vm = vm.clone();
            move || vm.migrate(0, frame(0), spare())
        });
        let outcome = read(&vm, 0);
        host.join().expect("the host ends");
        vm.finish(&[(0, spare())]);
        ending(&outcome)
    });
}

#[test]
fn fault_and_creation_of_its_slot() {
    let endings = [
        "the fault found no slot",
        "the fault mapped the page",
        "the fault found the page mapped",
    ];
    pair("fault/slot creation", &endings, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        let creator = thread::spawn({
            let vm = vm.clone();
            move || vm.memory.insert(region(1, 0, 1, 0)).expect("a slot")
        });
        let outcome = read(&vm, 0);
        let report = creator.join().expect("the creator ends");
        assert_eq!(report.mapped_bytes(), gpa_pages(0, 1).bytes());
        vm.finish(&[(0, frame(0))]);
        ending(&outcome)
    });
}

#[test]
fn fault_and_removal_of_its_slot() {
    let endings = [
        "the fault found no slot",
        "the fault mapped the page",
        "the fault was told to try again",
    ];
    pair("fault/slot removal", &endings, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        let remover = thread::spawn({
            let vm = vm.clone();
            move || {
                vm.memory.remove(SlotId(1)).expect("it exists");
                vm.machine.close(gpa_pages(0, 8));
            }
        });
        let outcome = read(&vm, 0);
        remover.join().expect("the remover ends");
        vm.finish(&[]);
        ending(&outcome)
    });
}

#[test]
fn fault_and_replacement_of_its_slot() {
    let endings = [
        "the fault mapped the page",
        "the fault mapped the new frame",
        "the fault was told to try again",
    ];
    pair("fault/slot replacement", &endings, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        vm.host.move_page(4, spare());
        vm.memory.insert(on_fault(1, 0, 1, 0)).expect("a slot");
        let replacer = thread::spawn({
            let vm = vm.clone();
            move || {
                replace(&vm);
                vm.machine.take_frame(frame(0));
            }
        });
        let outcome = read(&vm, 0);
        replacer.join().expect("the replacer ends");
        vm.finish(&[(0, spare())]);
        ending(&outcome)
    });
}

/// Puts the host's page 4 where slot 1 has shown another.
fn replace(vm: &Vm) {
    let change = vm.memory.transaction().delete(SlotId(1));
    let change = change.create(on_fault(1, 0, 1, 4));
    change.commit().expect("a slot");
}

/// A small VM whose slot 1 shows the host's page 0, mapped, and whose slot 2 keeps the tables in
/// use: taking empty ones away is a matter between removals, and makes paths ten times as many.
fn shown_with_neighbour() -> Vm {
    let vm = Vm::small(BREAKS, ModelHost::with_blocks(0));
    vm.memory.insert(on_fault(1, 0, 1, 0)).expect("a slot");
    vm.memory.insert(on_fault(2, 1, 1, 1)).expect("a slot");
    vm.map(0);
    vm.map(1);
    vm
}

/// Whether the invalidation met a slot.
fn met_a_slot(vm: &Vm) -> &'static str {
    if vm.memory.stats().invalidations_hit == 0 {
        "the invalidation met no slot"
    } else {
        "the invalidation met a slot"
    }
}

#[test]
fn invalidate_and_creation_of_a_slot() {
    let endings = [
        "the invalidation met no slot",
        "the invalidation met a slot",
    ];
    pair("invalidate/slot creation", &endings, || {
        let vm = Vm::new(BREAKS, ModelHost::with_blocks(0));
        let creator = thread::spawn({
            let vm = vm.clone();
            move || vm.memory.insert(region(1, 0, 1, 0)).expect("a slot")
        });
        vm.migrate(0, frame(0), spare());
        creator.join().expect("the creator ends");
        let ending = met_a_slot(&vm);
        vm.finish(&[(0, spare())]);
        ending
    });
}

#[test]
fn invalidate_and_removal_of_a_slot() {
    let endings = [
        "the invalidation met no slot",
        "the invalidation met a slot",
    ];
    pair("invalidate/slot removal", &endings, || {
        let vm = shown_with_neighbour();
        let remover = thread::spawn({
            let vm = vm.clone();
            move || {
                vm.memory.remove(SlotId(1)).expect("it exists");
                vm.machine.close(gpa_pages(0, 1));
            }
        });
        vm.migrate(0, frame(0), spare());
        remover.join().expect("the remover ends");
        let ending = met_a_slot(&vm);
        vm.finish(&[]);
        ending
    });
}

#[test]
fn invalidate_and_replacement_of_a_slot() {
    let endings = [
        "the invalidation met no slot",
        "the invalidation met a slot",
    ];
    pair("invalidate/slot replacement", &endings, || {
        let vm = shown_with_neighbour();
        let replacer = thread::spawn({
            let vm = vm.clone();
            move || replace(&vm)
        });
        // Of the old slot's page.
        let change = vm.memory.invalidate(hva_pages(0, 1));
        vm.machine.take_frame(frame(0));
        drop(change);
        replacer.join().expect("the replacer ends");
        let ending = met_a_slot(&vm);
        vm.finish(&[(0, frame(4))]);
        ending
    });
}

#[test]
fn invalidate_and_invalidate_of_one_page() {
    let endings = ["one flush was enough", "each flushed"];
    pair("invalidate/invalidate", &endings, move || {
        let vm = shown_with_neighbour();
        let take = |vm: &Vm| {
            let change = vm.memory.invalidate(hva_pages(0, 1));
            vm.machine.take_frame(frame(0));
            drop(change);
        };
        let other = thread::spawn({
            let vm = vm.clone();
            move || take(&vm)
        });
        take(&vm);
        other.join().expect("the other host thread ends");
        let flushes = vm.memory.stats().flushes;
        // Neither asks the host, so it makes no difference when the page moved.
        vm.host.move_page(0, spare());
        vm.finish(&[(0, spare())]);
        // P6: who finds nothing flushes all the same while another has not.
        endings[usize::from(flushes == 2)]
    });
}

#[test]
fn split_and_invalidate_of_a_page_of_the_block() {
    let endings = ["the rest of the block stayed", "the rest of the block went"];
    pair("split/invalidate", &endings, move || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(1));
        vm.map(0);
        vm.host.shape_block(0, 1, 0);
        let splitter = thread::spawn({
            let vm = vm.clone();
            move || vm.memory.split(&gpa_pages(0, 2), Level::PAGE)
        });
        vm.migrate(0, frame(0), spare());
        splitter.join().expect("the splitter ends");
        assert_eq!(vm.frame_at(0), None);
        let stayed = vm.frame_at(1);
        assert!(stayed.is_none() || stayed == Some(frame(1)));
        vm.finish(&[(0, spare()), (1, frame(1))]);
        endings[usize::from(stayed.is_none())]
    });
}

#[test]
fn split_and_fault_in_one_block() {
    let endings = [
        "the fault found the page mapped",
        "the fault was told to try again",
    ];
    pair("split/fault", &endings, || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(1));
        vm.map(0);
        // The host may split its own block without a word, as long as the pages stay.
        vm.host.shape_block(0, 1, 0);
        let mut vcpu = vm.ready_vcpu();
        let splitter = thread::spawn({
            let vm = vm.clone();
            move || vm.memory.split(&gpa_pages(0, 2), Level::PAGE)
        });
        let outcome = vm.fault(&mut vcpu, 1, Access::Read);
        splitter.join().expect("the splitter ends");
        drop(vcpu);
        vm.finish(&[(0, frame(0)), (1, frame(1))]);
        ending(&outcome)
    });
}

#[test]
fn install_and_install_of_one_upper_table() {
    let endings = ["both mapped their page"];
    pair("upper-table install/install", &endings, move || {
        let vm = Vm::with_slot(BREAKS, ModelHost::with_blocks(0));
        // Pages 0 and 2 are of different spans and stripes, and below one upper table.
        let mut vcpu = vm.ready_vcpu();
        let other = thread::spawn({
            let vm = vm.clone();
            move || read(&vm, 2)
        });
        let outcome = vm.fault(&mut vcpu, 0, Access::Read);
        let outcomes = [outcome, other.join().expect("the other vCPU ends")];
        drop(vcpu);
        let mapped = |outcome: &Outcome| matches!(outcome, Outcome::Mapped { .. });
        assert!(outcomes.iter().all(mapped), "{outcomes:?}");
        for number in [0, 2] {
            assert_eq!(vm.frame_at(number), Some(frame(number)));
        }
        vm.finish(&[]);
        endings[0]
    });
}
