//! Runs of leaves: by the contiguous hint of Arm, sixteen pages.

use slat_machine::event::{AccessKind, WriteKind};
use slat_machine::judge::Rule;

use crate::scenario::*;

/// The contiguous hint.
const RUN: u64 = PAGE | 1 << 52;
const PAGES: u64 = 16;

const fn entry(page: u64) -> u64 {
    LAST + page * 8
}

/// A run of pages from `FRAME` on at `GPA`, that the host grants.
fn mapped() -> Scenario {
    let mut s = Scenario::boot();
    s.slot(1, GPA, MIB2, HVA).frame(FRAME, MIB2);
    s.answered(HVA, PAGES * KIB4, FRAME).locked().tables();
    for page in 0..PAGES {
        s.write(entry(page), (FRAME + page * KIB4) | RUN);
    }
    s.op(I::DsbIshst).unlocked();
    s
}

/// The entries of `pages` are made invalid and those of `flushed` invalidated.
fn removed(s: &mut Scenario, pages: core::ops::Range<u64>, flushed: core::ops::Range<u64>) {
    s.locked();
    for page in pages {
        s.write(entry(page), 0);
    }
    s.op(I::DsbIsh);
    for page in flushed {
        let operand = operand(GPA + page * KIB4);
        s.op(I::Ipas2e1is { operand });
    }
    s.ops(&[I::DsbIsh, I::Vmalle1is, I::DsbIsh]).unlocked();
}

#[test]
fn a_run_is_made_and_taken_away_whole() {
    let mut s = mapped();
    s.beginning(HVA, KIB4);
    removed(&mut s, 0..PAGES, 0..PAGES);
    s.begun().notice_ended().is_fine();
}

#[test]
fn the_entries_that_stay_keep_a_page_reachable_that_was_taken_out() {
    let mut s = mapped();
    s.beginning(HVA + 3 * KIB4, KIB4);
    removed(&mut s, 3..4, 0..PAGES);
    let violation = s.begun().ends_with(Rule::MappedAfterNotice);
    assert!(violation.missing.contains("makes entry"), "{violation}");
}

#[test]
fn every_page_of_a_run_is_invalidated() {
    let mut s = mapped();
    s.beginning(HVA, PAGES * KIB4);
    removed(&mut s, 0..PAGES, 0..1);
    s.begun().ends_with(Rule::MappedAfterNotice);
}

#[test]
fn a_frame_is_not_freed_while_its_neighbours_lead_there() {
    let mut s = Scenario::boot();
    s.locked().tables();
    for page in 0..PAGES {
        s.frame(FRAME + page * KIB4, KIB4);
        s.write(entry(page), (FRAME + page * KIB4) | RUN);
    }
    s.op(I::DsbIshst).unlocked();
    removed(&mut s, 5..6, 0..PAGES);
    let frame = FRAME + 5 * KIB4;
    s.frame_freed(frame, KIB4)
        .ends_with(Rule::FrameFreedWhileMapped);
}

#[test]
fn a_page_in_place_of_a_run_waits_until_the_run_is_forgotten() {
    let broken = |flushed| {
        let mut s = mapped();
        removed(&mut s, 0..PAGES, flushed);
        s.write(LAST, FRAME | PAGE);
        s
    };
    broken(0..PAGES).is_fine();
    // Entry 0 is forgotten; what was read from another may translate its page all the same.
    broken(0..1).ends_with(Rule::ConflictingEntries);
}

#[test]
fn a_run_put_back_conflicts_with_nothing_of_itself() {
    let mut s = mapped();
    s.locked();
    for page in 0..PAGES {
        s.write(entry(page), 0);
    }
    for page in 0..PAGES {
        s.write(entry(page), (FRAME + page * KIB4) | RUN);
    }
    s.is_fine();
}

#[test]
fn entries_of_one_run_that_say_different_things_disagree() {
    for other in [
        (OTHER_FRAME + KIB4) | RUN,
        (FRAME + 2 * KIB4) | RUN,
        (FRAME + KIB4) | PAGE,
        (FRAME + KIB4) | (RUN & !WRITE),
        (FRAME + KIB4) | 1 << 52 | 3 | NON_CACHEABLE | READ | WRITE | ACCESSED,
    ] {
        let mut s = Scenario::boot();
        s.locked().tables().write(LAST, FRAME | RUN);
        s.write(entry(1), other).ends_with(Rule::RunDisagrees);
    }
}

#[test]
fn accessed_bits_of_a_run_may_differ() {
    let mut s = Scenario::boot();
    s.locked().tables().write(LAST, FRAME | RUN);
    s.write(entry(1), (FRAME + KIB4) | (RUN & !ACCESSED))
        .is_fine();
}

#[test]
fn a_run_does_not_reach_beyond_what_the_host_grants() {
    let mut s = Scenario::boot();
    s.slot(1, GPA, MIB2, HVA).frame(FRAME, MIB2);
    s.answered(HVA, (PAGES - 1) * KIB4, FRAME).locked().tables();
    s.write(LAST, FRAME | RUN).ends_with(Rule::LeafWithoutGrant);
}

#[test]
fn a_hint_is_not_taken_from_a_valid_entry() {
    let mut s = Scenario::boot();
    s.locked().tables().write(LAST, FRAME | PAGE);
    s.write(LAST, FRAME | RUN)
        .ends_with(Rule::ChangedWhileValid);
}

#[test]
fn what_was_written_in_a_run_stays_written_whatever_hardware_notes_while_it_is_broken() {
    const CLEAN: u64 = (PAGE & !WRITE & !ACCESSED) | MODIFIER;
    const DIRTY: u64 = PAGE | MODIFIER;
    const CONTIGUOUS: u64 = RUN & !PAGE;
    let mut s = Scenario::boot_with(HARDWARE_ACCESSED | HARDWARE_DIRTY);
    s.slot(1, GPA, MIB2, HVA).frame(FRAME, MIB2);
    s.answered(HVA, PAGES * KIB4, FRAME).locked().tables();
    for page in 0..PAGES {
        s.write(entry(page), (FRAME + page * KIB4) | CLEAN | CONTIGUOUS);
    }
    s.op(I::DsbIshst).unlocked();
    // The page that was written is noted in the first entry.
    s.write_as(WriteKind::Hardware, entry(0), FRAME | DIRTY | CONTIGUOUS);
    s.access(AccessKind::Write, GPA, FRAME);
    s.locked().write_as(WriteKind::Exchange, entry(0), 0);
    // A walker marks the second one before it is taken out too.
    let second = FRAME + KIB4;
    let used = second | CLEAN | ACCESSED | CONTIGUOUS;
    s.write_as(WriteKind::Hardware, entry(1), used);
    for page in 1..PAGES {
        s.write_as(WriteKind::Exchange, entry(page), 0);
    }
    s.unlocked();
    removed(&mut s, 0..0, 0..PAGES);
    s.locked();
    for page in 0..PAGES {
        let leaf = (FRAME + page * KIB4) | DIRTY;
        s.write_as(WriteKind::Exchange, entry(page), leaf);
    }
    s.unlocked().is_fine();
}
