//! A slow host: in the middle of each question, any other operation may be carried out whole.
//!
//! That includes changes of the host's mind: a page that is moved, with proper notice, after the
//! host has made up its answer and before the answer is used.

use std::sync::Arc;

use slat::table::format::Format;
use slat::table::format::arm64::{Arm64, Arm64Features};

use crate::operations::{Operation, check_reach, check_reads_arrive, scene};
use crate::rows::Row;
use crate::scripted_host::ScriptedHost;
use crate::vm::Vm;

/// Does `act` in the middle of the question after `skip` others.
fn during_question(host: &ScriptedHost, skip: usize, act: impl FnOnce() + Send + 'static) {
    if skip == 0 {
        host.during_next_question(move |_| act());
    } else {
        let then = host.clone();
        host.during_next_question(move |_| during_question(&then, skip - 1, act));
    }
}

fn same<F: Format>(vm: &Vm<F>) -> Vm<F> {
    Vm {
        memory: Arc::clone(&vm.memory),
        host: vm.host.clone(),
        machine: vm.machine.clone(),
    }
}

#[test]
fn whatever_happens_in_the_middle_of_a_question_the_guest_sees_the_truth() {
    let row = Row::<Arm64>::new(Arm64Features::ALL, 48);
    let (mut undisturbed, mut disturbed) = (0, 0);
    for outer in Operation::ALL {
        let vm = scene(&row);
        outer.run(&row, &vm).unwrap();
        let questions = vm.host.questions().len();
        vm.end();
        for inner in Operation::ALL {
            if outer.is_transaction() && inner.is_transaction() {
                // The host may not start a transaction from inside of another (P12).
                continue;
            }
            for skip in 0..questions {
                let vm = scene(&row);
                let before = vm.state();
                let other = same(&vm);
                during_question(&vm.host, skip, move || {
                    let _ = inner.run(&row, &other);
                });
                let result = outer.run(&row, &vm);
                check_reach(&vm);
                if result.is_ok() {
                    undisturbed += 1;
                } else {
                    disturbed += 1;
                }
                check_reads_arrive(&vm, &before.leaves);
                vm.end();
            }
        }
    }
    assert!(undisturbed >= 20, "{undisturbed} operations went through");
    assert!(disturbed >= 20, "{disturbed} operations had to be repeated");
}
