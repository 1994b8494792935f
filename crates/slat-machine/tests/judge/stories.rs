//! What a violation tells.

use slat_machine::address::{Gpa, Hpa};
use slat_machine::event::Event;
use slat_machine::judge::{Line, Rule, Violation};

use crate::scenario::{FRAME, GPA, HVA, I, KIB4, LAST, OTHER_FRAME, PAGE, Scenario, VM, operand};

fn tells(violation: &Violation, text: &str) -> bool {
    violation
        .story
        .iter()
        .any(|line: &Line| line.text.contains(text))
}

/// A page is unmapped, `ops` are executed, and another frame is mapped there.
fn remap(ops: &[I]) -> Violation {
    let mut s = Scenario::mapped();
    s.write(LAST, 0).ops(ops).write(LAST, OTHER_FRAME | PAGE);
    s.ends_with(Rule::ConflictingEntries)
}

#[test]
fn a_wrong_address_is_named() {
    let operand = operand(GPA + 5 * KIB4);
    let violation = remap(&[I::DsbIsh, I::Ipas2e1is { operand }, I::DsbIsh]);
    assert!(
        tells(&violation, "invalidated GPA 0x40005000, which is not in"),
        "{violation}"
    );
    assert!(
        violation
            .missing
            .starts_with("an invalidation of GPA 0x40000000..0x40001000")
    );
}

#[test]
fn an_early_invalidation_is_told() {
    let violation = remap(&[I::Vmalls12e1is, I::DsbIsh]);
    assert!(
        tells(&violation, "before the removal was visible"),
        "{violation}"
    );
}

#[test]
fn an_incomplete_invalidation_is_told() {
    let violation = remap(&[I::DsbIsh, I::Vmalls12e1is, I::DsbIshst]);
    assert!(
        tells(&violation, "completes no invalidation"),
        "{violation}"
    );
    assert!(
        violation.missing.contains("barrier of CPU 0"),
        "{violation}"
    );
}

#[test]
fn combined_copies_are_told_of() {
    let operand = operand(GPA);
    let violation = remap(&[I::DsbIsh, I::Ipas2e1is { operand }, I::DsbIsh]);
    assert!(
        violation.missing.contains("combined with the guest's own"),
        "{violation}"
    );
    let early = remap(&[I::DsbIsh, I::Ipas2e1is { operand }, I::Vmalle1is, I::DsbIsh]);
    assert!(tells(&early, "can be combined anew"), "{early}");
}

#[test]
fn maintenance_for_one_cpu_is_told() {
    let mut s = Scenario::mapped();
    s.on(1).enter_with(0).on(0).write(LAST, 0);
    s.ops(&[I::DsbNsh, I::Vmalls12e1, I::DsbNsh]);
    s.write(LAST, OTHER_FRAME | PAGE);
    let violation = s.ends_with(Rule::ConflictingEntries);
    assert!(tells(&violation, "on its own CPU only"), "{violation}");
    assert!(violation.missing.ends_with("by CPU 1"), "{violation}");
}

#[test]
fn maintenance_without_having_seen_the_removal_is_told() {
    let mut s = Scenario::mapped();
    s.beginning(HVA, KIB4)
        .on(1)
        .enter_with(0)
        .on(0)
        .write(LAST, 0)
        .on(1)
        .flush_all();
    s.on(0).write(LAST, OTHER_FRAME | PAGE);
    let violation = s.ends_with(Rule::ConflictingEntries);
    assert!(
        tells(&violation, "without having seen the removal"),
        "{violation}"
    );
}

#[test]
fn the_cpu_that_was_seen_to_cache_it_is_named() {
    let mut s = Scenario::mapped();
    let (gpa, entry, value) = (Gpa(GPA), Hpa(LAST), FRAME | PAGE);
    let cached = Event::Cached {
        vm: VM,
        gpa,
        bytes: KIB4,
        entry,
        value,
        combined: true,
    };
    s.on(3)
        .event(cached)
        .on(0)
        .write(LAST, 0)
        .write(LAST, OTHER_FRAME | PAGE);
    let violation = s.ends_with(Rule::ConflictingEntries);
    let by = violation
        .story
        .iter()
        .find(|line| line.text.starts_with("cached it"));
    assert_eq!(by.map(|line| line.cpu), Some(3), "{violation}");
    assert!(!tells(&violation, "any CPU may hold it"));
}

#[test]
fn a_story_is_told_in_lines_that_end_with_what_is_missing() {
    let mut s = Scenario::mapped();
    s.locked()
        .write(LAST, 0)
        .op(I::DsbIsh)
        .write(LAST, OTHER_FRAME | PAGE);
    let violation = s.ends_with(Rule::ConflictingEntries);
    let expected = "\
conflicting-entries: an entry that differs is made only when every CPU has forgotten the old one
  step      7  cpu 0  wrote entry 0x41002000: GPA 0x40000000..0x40001000 to HPA 0x80000000, \
rwx, memory type 0xf
  step     11  cpu 0  made entry 0x41002000 invalid; any CPU may hold it
  step     13  cpu 0  made entry 0x41002000 valid: GPA 0x40000000..0x40001000 to HPA 0x90000000, \
rwx, memory type 0xf
  missing: an invalidation of GPA 0x40000000..0x40001000, issued by a CPU that knows the removal \
is visible";
    assert_eq!(violation.to_string(), expected);
}

#[test]
fn a_violation_can_be_written_and_read() {
    let violation = remap(&[I::DsbIsh]);
    let text = serde_json::to_string(&violation).unwrap();
    assert!(text.contains("\"rule\":\"conflicting-entries\""), "{text}");
    assert_eq!(serde_json::from_str::<Violation>(&text).unwrap(), violation);
}
