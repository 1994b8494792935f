//! Every allocation of a table made to fail in turn, in every operation.

use slat::table::format::Format;

use crate::operations::{Operation, check_reach, check_reads_arrive, scene};
use crate::rows::Row;
use crate::vm::{Leaf, State, Vm};

/// What an operation does when nothing fails.
struct Whole {
    before: State,
    after: State,
    allocations: u64,
}

fn undisturbed<F: Format>(row: &Row<F>, operation: Operation) -> Whole {
    let vm = scene(row);
    let before = vm.state();
    let allocated = vm.machine.allocations();
    operation
        .run(row, &vm)
        .unwrap_or_else(|refused| panic!("{operation:?}: {refused:?}"));
    check_reach(&vm);
    let whole = Whole {
        before,
        after: vm.state(),
        allocations: vm.machine.allocations() - allocated,
    };
    vm.end();
    whole
}

/// Whether one of `leaves` maps what `leaf` maps, and allows the same.
fn is_part_of(leaf: &Leaf, leaves: &[Leaf]) -> bool {
    leaves.iter().any(|whole| {
        let offset = leaf.gpa.wrapping_sub(whole.gpa);
        let rights = (whole.write, whole.execute) == (leaf.write, leaf.execute);
        offset < whole.bytes
            && offset + leaf.bytes <= whole.bytes
            && whole.hpa + offset == leaf.hpa
            && rights
    })
}

/// The operation with the allocation after `skip` others failing. Whether it was refused.
fn one_fails<F: Format>(
    row: &Row<F>,
    operation: Operation,
    whole: &Whole,
    skip: u64,
    and_all_after: bool,
) -> bool {
    let what = format!("{operation:?}, allocation {skip}, all after: {and_all_after}");
    let vm = scene(row);
    assert_eq!(vm.state(), whole.before, "the scene is always the same");
    if and_all_after {
        vm.machine.fail_allocations_from(skip);
    } else {
        vm.machine.fail_allocation(skip);
    }
    let result = operation.run(row, &vm);
    vm.machine.allow_allocations();
    check_reach(&vm);
    if result.is_err() {
        assert_eq!(vm.state(), whole.before, "{what}: {result:?}");
        operation
            .run(row, &vm)
            .unwrap_or_else(|refused| panic!("{what}, again: {refused:?}"));
        assert_eq!(vm.state(), whole.after, "{what}, again");
    } else {
        check_part_of(&vm, whole, &what);
    }
    check_reads_arrive(&vm, &whole.before.leaves);
    check_reads_arrive(&vm, &whole.after.leaves);
    vm.end();
    result.is_err()
}

/// An operation that went through without memory has done all that counts: the slots are the new
/// ones, and what is mapped is what was or would be, or a part of it.
fn check_part_of<F: Format>(vm: &Vm<F>, whole: &Whole, what: &str) {
    let state = vm.state();
    assert_eq!(state.slots, whole.after.slots, "{what}");
    for leaf in &state.leaves {
        let known = is_part_of(leaf, &whole.before.leaves) || is_part_of(leaf, &whole.after.leaves);
        assert!(known, "{what}: {leaf:x?}");
    }
}

fn whichever_allocation_fails_everything_is_as_before_or_as_after<F: Format>(row: Row<F>) {
    let (mut refused, mut done) = (0, 0);
    for operation in Operation::ALL {
        let whole = undisturbed(&row, operation);
        for skip in 0..whole.allocations {
            // Large tables take long to look at: there, one of the two ways in turn.
            let small = row.span / row.page <= 512;
            let ways = [false, true].into_iter();
            for and_all_after in ways.filter(|way| small || *way == (skip % 2 == 0)) {
                if one_fails(&row, operation, &whole, skip, and_all_after) {
                    refused += 1;
                } else {
                    done += 1;
                }
            }
        }
    }
    // As many as a tree of two levels has.
    assert!(refused >= 5, "{refused} operations were refused");
    assert!(done >= 5, "{done} operations did without");
}

fn what_takes_memory_away_needs_none<F: Format>(row: Row<F>) {
    for operation in [
        Operation::Remove,
        Operation::MigratePage,
        Operation::MigratePartOfBlock,
        Operation::RevokePartOfDevice,
        Operation::Split,
        Operation::Age,
        Operation::Release,
    ] {
        let vm = scene(&row);
        vm.machine.fail_allocations_from(0);
        let result = operation.run(&row, &vm);
        assert!(result.is_ok(), "{operation:?}: {result:?}");
        vm.machine.allow_allocations();
        check_reach(&vm);
        vm.end();
    }
}

crate::rows::for_every_format! {
    whichever_allocation_fails_everything_is_as_before_or_as_after,
    what_takes_memory_away_needs_none,
}
