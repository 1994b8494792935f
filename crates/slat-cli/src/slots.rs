//! Checks of slots as files give them: scenarios and layouts have the same rules.

use toml::Spanned;

use crate::format::Row;
use crate::number::Number;
use crate::problem::Problem;
use crate::ranges::{Given, check_all, label};

/// Slot ids are below it, as in KVM.
const SLOT_IDS: u32 = 32_767;

/// What a file says of a slot.
pub(crate) struct GivenSlot<'a> {
    pub(crate) id: &'a Spanned<u32>,
    pub(crate) name: Option<&'a str>,
    pub(crate) gpa: &'a Spanned<Number>,
    pub(crate) hva: &'a Spanned<Number>,
    pub(crate) size: &'a Spanned<Number>,
}

/// Checks ids and ranges, for tables of `format`, guest addresses of `bits` bits and host virtual ones below `host_end`.
pub(crate) fn check_slots(
    format: &Row,
    slots: &[GivenSlot<'_>],
    bits: u8,
    host_end: u64,
    problems: &mut Vec<Problem>,
) {
    let mut placed = Vec::new();
    for (index, slot) in slots.iter().enumerate() {
        check_id(slot.id, &slots[..index], problems);
        let label = label("slot", slot.name, slot.id.get_ref());
        let at = |key, start| Given {
            label: &label,
            key,
            start,
            bytes: slot.size,
        };
        placed.extend(at("gpa", slot.gpa).check(format, 1 << bits, problems));
        // A wrong size is told once.
        let mut found = Vec::new();
        at("hva", slot.hva).check(format, host_end, &mut found);
        problems.extend(found.into_iter().filter(|p| p.span == slot.hva.span()));
    }
    check_all(&placed, problems);
}

fn check_id(given: &Spanned<u32>, before: &[GivenSlot<'_>], problems: &mut Vec<Problem>) {
    let id = *given.get_ref();
    if id >= SLOT_IDS {
        let message = format!("the slot id {id} is too large: ids are below {SLOT_IDS}");
        problems.push(Problem::new(given.span(), message));
    }
    if let Some(first) = before.iter().find(|other| *other.id.get_ref() == id) {
        let problem = Problem::new(given.span(), format!("two slots have the id {id}"));
        problems.push(problem.related(first.id.span(), "the first of them"));
    }
}
