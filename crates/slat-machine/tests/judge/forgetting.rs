//! What an invalidation leaves: pointers to tables, what can be read again through them, and what a
//! level hint does not name.

use slat_machine::address::{Gpa, Hpa};
use slat_machine::event::{AccessKind, Event};
use slat_machine::judge::{Judge, Rule};

use crate::scenario::*;

const NEXT: u64 = GPA + KIB4;

/// A whole flush by address with this instruction.
fn flush_by(s: &mut Scenario, invalidation: I) -> &mut Scenario {
    s.ops(&[I::DsbIsh, invalidation, I::DsbIsh, I::Vmalle1is, I::DsbIsh])
}

/// The operand for `gpa` with a hint of the manual's level.
fn hinted(gpa: u64, level: u64) -> u64 {
    operand(gpa) | (0b0100 | level) << 44
}

/// Whether the judge takes it that the page at `GPA` may be cached.
fn may_be_cached(s: &Scenario) -> bool {
    let mut judge = Judge::new();
    for record in &s.records {
        judge.judge(record).expect("nothing is objected to");
    }
    judge.expects(&Event::Cached {
        vm: VM,
        gpa: Gpa(GPA),
        bytes: KIB4,
        entry: Hpa(LAST),
        value: FRAME | PAGE,
        combined: false,
    })
}

/// `FRAME` at `GPA`, and the host begins to take it.
fn taken() -> Scenario {
    let mut s = Scenario::hosted();
    s.beginning(HVA, KIB4);
    s
}

#[test]
fn a_leaf_cut_off_with_its_table_is_read_again_through_a_pointer_that_was_not_invalidated() {
    let leaf_only = I::Ipas2le1is {
        operand: operand(GPA),
    };
    let mut s = taken();
    s.write(MIDDLE, 0);
    flush_by(&mut s, leaf_only);
    let violation = s.begun().ends_with(Rule::MappedAfterNotice).to_string();
    assert!(
        violation.contains("read it anew through a table pointer"),
        "{violation}"
    );
    // The pointer higher up is as good.
    let mut s = taken();
    s.write(ROOT + 8, 0);
    flush_by(&mut s, leaf_only);
    s.begun().ends_with(Rule::MappedAfterNotice);
}

#[test]
fn leaves_alone_are_enough_once_no_pointer_leads_to_the_leaf() {
    // Another address of the same table takes the pointer along.
    let (pointer, leaf) = (operand(NEXT), operand(GPA));
    let mut s = taken();
    s.write(MIDDLE, 0);
    s.ops(&[I::DsbIsh, I::Ipas2e1is { operand: pointer }, I::DsbIsh]);
    flush_by(&mut s, I::Ipas2le1is { operand: leaf });
    s.begun().is_fine();
    // Before that has completed, they are not.
    let mut s = taken();
    s.write(MIDDLE, 0);
    s.ops(&[I::DsbIsh, I::Ipas2e1is { operand: pointer }]);
    s.ops(&[I::Ipas2le1is { operand: leaf }, I::DsbIsh]);
    s.ops(&[I::Vmalle1is, I::DsbIsh]);
    s.begun().ends_with(Rule::MappedAfterNotice);
    // A leaf that was emptied itself is not there to be read.
    let mut s = taken();
    s.write(LAST, 0);
    flush_by(&mut s, I::Ipas2le1is { operand: leaf });
    s.begun().is_fine();
}

#[test]
fn a_hint_of_the_wrong_level_forgets_nothing() {
    for (level, fine) in [(3, true), (2, false), (1, false)] {
        let operand = hinted(GPA, level);
        let mut s = taken();
        s.write(LAST, 0);
        flush_by(&mut s, I::Ipas2e1is { operand });
        s.begun();
        if fine {
            s.is_fine();
        } else {
            let violation = s.ends_with(Rule::MappedAfterNotice);
            assert!(violation.to_string().contains("hint of another level"));
        }
    }
}

#[test]
fn a_hint_leaves_pointers_to_tables() {
    for level in 1..=3 {
        let operand = hinted(GPA, level);
        let mut s = Scenario::mapped();
        s.write(LAST, 0).flush(GPA).write(MIDDLE, 0);
        flush_by(&mut s, I::Ipas2e1is { operand });
        s.free(LAST).ends_with(Rule::TableFreedWhileCached);
    }
}

#[test]
fn a_hint_of_another_granule_is_a_wrong_one() {
    let operand = operand(GPA) | 0b1011 << 44;
    let mut s = taken();
    s.write(LAST, 0);
    flush_by(&mut s, I::Ipas2e1is { operand });
    s.begun().ends_with(Rule::MappedAfterNotice);
}

#[test]
fn what_is_mapped_or_not_yet_forgotten_may_be_cached_and_nothing_else() {
    let mut s = Scenario::boot();
    assert!(!may_be_cached(&s));
    s.tables().write(LAST, OTHER_FRAME | PAGE);
    assert!(!may_be_cached(&s));
    let mut s = Scenario::mapped();
    assert!(may_be_cached(&s));
    s.write(LAST, 0);
    assert!(may_be_cached(&s));
    s.flush(GPA);
    assert!(!may_be_cached(&s));
    s.write(LAST, FRAME | PAGE & !WRITE);
    assert!(may_be_cached(&s));
    s.write(MIDDLE, 0);
    assert!(may_be_cached(&s));
    s.flush_all().free(LAST);
    assert!(!may_be_cached(&s));
}

#[test]
fn a_vm_that_ended_is_forgotten_before_another_runs_under_its_number() {
    // The translation went before the VM did, or with it.
    for emptied in [true, false] {
        for flushed in [true, false] {
            let mut s = Scenario::mapped();
            if emptied {
                s.write(LAST, 0);
            }
            s.ended().allocate(OTHER).enter_root(OTHER, 0);
            if flushed {
                s.flush_all();
            }
            s.event(Event::Faulted {
                vm: VM,
                gpa: Gpa(0),
                kind: AccessKind::Read,
            });
            if flushed {
                s.is_fine();
            } else {
                s.ends_with(Rule::VmReusedWhileCached);
            }
        }
    }
}
