//! Every question to the host refused in turn, in every way that the contract knows.

use slat::table::format::arm64::{Arm64, Arm64Features};

use crate::operations::{Operation, check_reach, check_reads_arrive, scene};
use crate::rows::Row;
use crate::scripted_host::Failure;

const FAILURES: [Failure; 5] = [
    Failure::Busy,
    Failure::NoMemory,
    Failure::Poisoned,
    Failure::DeviceGone,
    Failure::NotPermitted,
];

#[test]
fn whichever_answer_is_a_refusal_nothing_is_half_done() {
    let row = Row::<Arm64>::new(Arm64Features::ALL, 48);
    let (mut refused, mut done) = (0, 0);
    for operation in Operation::ALL {
        let vm = scene(&row);
        operation.run(&row, &vm).unwrap();
        let questions = vm.host.questions();
        let whole = vm.state();
        vm.end();
        for question in questions {
            for failure in FAILURES {
                let vm = scene(&row);
                let before = vm.state();
                vm.host.fail(question.hva, failure);
                let result = operation.run(&row, &vm);
                let what = format!("{operation:?}, {failure:?} at {:#x}", question.hva);
                check_reach(&vm);
                vm.host.heal();
                if result.is_err() {
                    refused += 1;
                    assert_eq!(vm.state(), before, "{what}: {result:?}");
                    let again = operation.run(&row, &vm);
                    assert!(again.is_ok(), "{what}, again: {again:?}");
                    assert_eq!(vm.state(), whole, "{what}, again");
                } else {
                    done += 1;
                    assert_eq!(vm.state().slots, whole.slots, "{what}");
                }
                check_reads_arrive(&vm, &whole.leaves);
                vm.end();
            }
        }
    }
    assert!(refused >= 20, "{refused} operations were refused");
    assert!(done >= 10, "{done} operations went on without the page");
}
