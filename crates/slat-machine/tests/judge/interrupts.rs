//! CPUs that forget for themselves, each when it is interrupted: all have to.

use slat_machine::event::{Cpu, Event};
use slat_machine::judge::Rule;

use crate::scenario::*;

/// Stands for the interrupt from CPU 0 to another, and for its answer.
const MAILBOX: u64 = 0x20;

/// What each CPU executes: stores first, then everything is forgotten, and that is complete.
const FORGET: [I; 3] = [I::DsbNsh, I::Vmalls12e1, I::DsbNsh];

/// CPUs 0 to 2 in the guest, with `FRAME` at `GPA` unmapped by CPU 0 for a notice.
fn unmapped() -> Scenario {
    let mut s = Scenario::hosted();
    s.on(1).enter_with(0).on(2).enter_with(0).on(0);
    s.beginning(HVA, KIB4).write(LAST, 0);
    s
}

/// `cpu` is interrupted by CPU 0 and executes `instructions`.
fn interrupt<'s>(s: &'s mut Scenario, cpu: Cpu, instructions: &[I]) -> &'s mut Scenario {
    let lock = MAILBOX + u64::from(cpu);
    s.on(0).event(Event::Unlocked { lock });
    s.on(cpu).event(Event::Locked { lock }).ops(instructions);
    s.event(Event::Unlocked { lock });
    s.on(0).event(Event::Locked { lock })
}

#[test]
fn what_every_cpu_has_forgotten_for_itself_is_gone() {
    let mut s = unmapped();
    s.ops(&FORGET);
    interrupt(&mut s, 1, &FORGET);
    interrupt(&mut s, 2, &FORGET).begun().is_fine();
}

#[test]
fn one_cpu_left_out_holds_what_it_held() {
    let mut s = unmapped();
    s.ops(&FORGET);
    let violation = interrupt(&mut s, 2, &FORGET).begun();
    let violation = violation.ends_with(Rule::MappedAfterNotice);
    assert!(violation.missing.ends_with("by CPU 1"), "{violation}");
}

#[test]
fn a_cpu_that_has_not_seen_the_removal_reads_it_again() {
    let mut s = unmapped();
    s.ops(&FORGET);
    interrupt(&mut s, 1, &FORGET);
    // Nothing tells CPU 2 of the removal before it forgets.
    s.on(2).ops(&FORGET);
    s.on(0).begun().ends_with(Rule::MappedAfterNotice);
}

#[test]
fn what_a_cpu_has_not_completed_it_may_still_hold() {
    let mut s = unmapped();
    s.ops(&FORGET);
    interrupt(&mut s, 1, &FORGET);
    interrupt(&mut s, 2, &[I::DsbNsh, I::Vmalls12e1]);
    s.begun().ends_with(Rule::MappedAfterNotice);
}

#[test]
fn a_barrier_of_another_cpu_completes_nothing_that_one_issued_for_itself() {
    let mut s = unmapped();
    s.ops(&FORGET);
    interrupt(&mut s, 1, &FORGET);
    interrupt(&mut s, 2, &[I::DsbNsh, I::Vmalls12e1]);
    s.op(I::DsbIsh).begun().ends_with(Rule::MappedAfterNotice);
}

#[test]
fn each_cpu_forgets_what_was_combined_after_the_rest() {
    let operand = operand(GPA);
    let whole = [
        I::DsbNsh,
        I::Ipas2e1 { operand },
        I::DsbNsh,
        I::Vmalle1,
        I::DsbNsh,
    ];
    let early = [
        I::DsbNsh,
        I::Vmalle1,
        I::DsbNsh,
        I::Ipas2e1 { operand },
        I::DsbNsh,
    ];
    let flushed = |last: &[I]| {
        let mut s = unmapped();
        s.ops(&whole);
        interrupt(&mut s, 1, &whole);
        interrupt(&mut s, 2, last).begun();
        s
    };
    flushed(&whole).is_fine();
    flushed(&early).ends_with(Rule::MappedAfterNotice);
}

#[test]
fn a_cpu_that_enters_before_the_removal_is_visible_to_it_may_hold_what_was_removed() {
    let mut s = Scenario::hosted();
    s.beginning(HVA, KIB4).write(LAST, 0);
    s.on(1).enter_with(0).on(0).ops(&FORGET);
    s.begun().ends_with(Rule::MappedAfterNotice);
}

#[test]
fn a_table_is_freed_only_when_every_cpu_has_forgotten_it() {
    let freed = |cpus: &[Cpu]| {
        let mut s = Scenario::mapped();
        s.on(1).enter_with(0).on(2).enter_with(0).on(0);
        s.write(MIDDLE, 0).ops(&FORGET);
        for cpu in cpus {
            interrupt(&mut s, *cpu, &FORGET);
        }
        s.free(LAST);
        s
    };
    freed(&[1, 2]).is_fine();
    freed(&[1]).ends_with(Rule::TableFreedWhileCached);
}
