//! Hardware that writes to entries by itself, against every change of a live one: rule P9 of the
//! protocol. It sets accessed and dirty bits in one step, at any moment, without any lock of
//! ours; what it has noted must not be written over.

#![cfg(slat_loom)]

mod loom_model;

use loom::thread;
use slat::notifier::Notifier;
use slat_table::attributes::Access;
use slat_table::geometry::Level;

use loom_model::host::{ModelHost, frame, hva_pages};
use loom_model::tiny::TinyFeatures;
use loom_model::{BREAKS, Vm, check, gpa_pages, is_handled, page};

/// Maps page 0 for writing in a block of `1 << order` pages, lets `prepare` do something to it,
/// and then has the hardware note a write while `change` is made. Where the hardware found a
/// leaf to note it in, the note is still there afterwards.
fn note_during(
    features: TinyFeatures,
    order: u32,
    prepare: impl Fn(&Vm) + Send + Sync + 'static,
    change: impl Fn(&Vm) + Send + Sync + 'static,
) {
    check(None, move || {
        let vm = Vm::with_slot(features, ModelHost::with_blocks(order));
        let outcome = vm.fault(&mut vm.memory.vcpu(), 0, Access::Write);
        assert!(is_handled(&outcome), "{outcome:?}");
        prepare(&vm);
        let hardware = thread::spawn({
            let vm = vm.clone();
            move || vm.machine.note_write(page(0))
        });
        change(&vm);
        let noted = hardware.join().expect("the hardware ends");
        let kept = vm
            .memory
            .translate(page(0))
            .map(|found| found.attributes.dirty);
        // What is not mapped any more tells whoever took it away, which is nobody here.
        assert!(!noted || kept != Some(false), "the hardware's note is lost");
        vm.finish(&[(0, frame(0))]);
    });
}

#[test]
fn p9_a_note_of_the_hardware_survives_aging() {
    note_during(
        BREAKS,
        0,
        |_| (),
        |vm| {
            assert!(vm.memory.age(hva_pages(0, 1)));
        },
    );
}

#[test]
fn p9_a_note_of_the_hardware_survives_a_fault_that_extends_the_leaf() {
    let make_old = |vm: &Vm| assert!(vm.memory.age(hva_pages(0, 1)));
    note_during(BREAKS, 0, make_old, |vm| {
        let outcome = vm.fault(&mut vm.memory.vcpu(), 0, Access::Read);
        assert!(is_handled(&outcome), "{outcome:?}");
    });
}

#[test]
fn p9_a_note_of_the_hardware_survives_a_split() {
    let split = |vm: &Vm| vm.memory.split(&gpa_pages(0, 2), Level::PAGE);
    note_during(BREAKS, 1, |_| (), split);
}

/// The same where a block may become a table without passing through an invalid entry.
#[test]
fn p9_a_note_of_the_hardware_survives_a_split_in_place() {
    let in_place = TinyFeatures {
        break_before_make: false,
        ..BREAKS
    };
    let split = |vm: &Vm| vm.memory.split(&gpa_pages(0, 2), Level::PAGE);
    note_during(in_place, 1, |_| (), split);
}
