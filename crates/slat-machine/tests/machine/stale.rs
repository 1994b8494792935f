//! What a removed translation does when something of the sequence that retires it is missing.

use core::sync::atomic::Ordering;

use slat_machine::address::Hpa;
use slat_machine::arm64::Instruction::{self, *};
use slat_machine::event::Event;

use crate::rig::{BLOCK, CPUS, GPA, PAGE, PAGE_BITS, Rig, VTCR, operand};

const SEEDS: u64 = 500;

const ONE: Instruction = Ipas2e1is {
    operand: operand(GPA),
};

/// Maps a page, lets everybody use it, removes it, executes the sequence; gives whether anybody
/// still reaches the page afterwards.
fn survives(seed: u64, sequence: &[Instruction]) -> bool {
    let rig = Rig::new(seed, VTCR);
    let frame = rig.frame(PAGE);
    rig.map(0, frame, PAGE_BITS);
    rig.everybody_reads();
    rig.store(0, rig.entry(2), 0);
    for instruction in sequence {
        rig.execute(0, *instruction);
    }
    rig.anybody_reaches(frame, PAGE)
}

fn never_survives(sequence: &[Instruction]) {
    for seed in 0..SEEDS {
        assert!(!survives(seed, sequence), "seed {seed}");
    }
}

fn may_survive(sequence: &[Instruction]) {
    let seeds = (0..SEEDS).filter(|seed| survives(*seed, sequence)).count();
    assert!(seeds > 0, "{sequence:?} hides everything");
}

#[test]
fn nothing_survives_the_whole_sequence() {
    never_survives(&[DsbIshst, ONE, DsbIsh, Vmalle1is, DsbIsh]);
    never_survives(&[DsbIsh, ONE, DsbIsh, Vmalle1is, DsbIsh]);
    never_survives(&[DsbIshst, Vmalls12e1is, DsbIsh]);
}

#[test]
fn a_leaf_needs_no_more_than_a_leaf_invalidation() {
    let operand = operand(GPA);
    never_survives(&[DsbIshst, Ipas2le1is { operand }, DsbIsh, Vmalle1is, DsbIsh]);
}

#[test]
fn a_translation_survives_without_invalidation() {
    may_survive(&[DsbIsh]);
    may_survive(&[DsbIsh, Isb]);
}

#[test]
fn combined_translations_survive_an_invalidation_by_address() {
    may_survive(&[DsbIshst, ONE, DsbIsh]);
}

#[test]
fn second_stage_translations_survive_an_invalidation_of_combined_ones() {
    may_survive(&[DsbIshst, Vmalle1is, DsbIsh]);
}

#[test]
fn a_translation_survives_an_invalidation_that_the_write_was_not_visible_for() {
    may_survive(&[ONE, DsbIsh, Vmalle1is, DsbIsh]);
    may_survive(&[Vmalls12e1is, DsbIsh]);
    may_survive(&[DsbNsh, Vmalls12e1is, DsbIsh]);
}

#[test]
fn a_translation_survives_an_invalidation_that_was_not_completed() {
    may_survive(&[DsbIshst, ONE, DsbIsh, Vmalle1is]);
    may_survive(&[DsbIshst, Vmalls12e1is]);
    may_survive(&[DsbIshst, Vmalls12e1is, DsbIshst]);
    may_survive(&[DsbIshst, Vmalls12e1is, DsbNsh]);
}

#[test]
fn a_combined_translation_is_made_anew_between_two_invalidations_without_a_barrier() {
    may_survive(&[DsbIshst, ONE, Vmalle1is, DsbIsh]);
}

#[test]
fn a_translation_survives_an_invalidation_of_another_address() {
    let operand = operand(BLOCK);
    may_survive(&[DsbIshst, Ipas2e1is { operand }, DsbIsh, Vmalle1is, DsbIsh]);
    // The address itself instead of its bits from 12 up.
    let operand = GPA.0;
    may_survive(&[DsbIshst, Ipas2e1is { operand }, DsbIsh, Vmalle1is, DsbIsh]);
}

#[test]
fn a_local_invalidation_leaves_other_cpus_alone() {
    may_survive(&[DsbIsh, Vmalls12e1, DsbIsh]);
    let operand = operand(GPA);
    may_survive(&[DsbIsh, Ipas2e1 { operand }, DsbIsh, Vmalle1, DsbIsh]);
}

#[test]
fn a_local_sequence_is_enough_for_the_cpu_that_executes_it() {
    let operand = operand(GPA);
    for seed in 0..SEEDS {
        let rig = Rig::new(seed, VTCR);
        let frame = rig.frame(PAGE);
        rig.map(0, frame, PAGE_BITS);
        rig.everybody_reads();
        rig.store(0, rig.entry(2), 0);
        for instruction in [DsbNshst, Ipas2e1 { operand }, DsbNsh, Vmalle1, DsbNsh] {
            rig.execute(0, instruction);
        }
        let ending = rig.read(0, GPA);
        assert_eq!(ending, slat_machine::machine::Ending::Fault, "seed {seed}");
    }
}

/// One CPU removes the page, another flushes; with or without a lock from the one to the other.
fn another_cpu_flushes(seed: u64, locked: bool) -> bool {
    let rig = Rig::new(seed, VTCR);
    let frame = rig.frame(PAGE);
    rig.map(0, frame, PAGE_BITS);
    rig.everybody_reads();
    rig.store(0, rig.entry(2), 0);
    rig.machine.release(0);
    if locked {
        rig.machine.note(0, Event::Unlocked { lock: 9 });
        rig.machine.note(1, Event::Locked { lock: 9 });
    }
    for instruction in [DsbIshst, Vmalls12e1is, DsbIsh] {
        rig.execute(1, instruction);
    }
    rig.anybody_reaches(frame, PAGE)
}

#[test]
fn a_flush_covers_what_its_cpu_has_seen_through_a_lock_and_nothing_else() {
    assert!(!(0..SEEDS).any(|seed| another_cpu_flushes(seed, true)));
    assert!((0..SEEDS).any(|seed| another_cpu_flushes(seed, false)));
}

/// Unlinks and frees the last table, after the sequence; gives whether a walker read an entry of it
/// later and cached what it found there.
fn freed_table_is_used(seed: u64, sequence: &[Instruction]) -> bool {
    let rig = Rig::new(seed, VTCR);
    let frame = rig.frame(PAGE);
    rig.map(0, frame, PAGE_BITS);
    rig.everybody_reads();
    rig.store(0, rig.entry(1), 0);
    for instruction in sequence {
        rig.execute(0, *instruction);
    }
    rig.machine.free_table(0, rig.tables[2], PAGE);
    let before = rig.events().len();
    rig.everybody_reads();
    let inside = |entry: Hpa| (rig.tables[2].0..rig.tables[2].0 + PAGE).contains(&entry.0);
    rig.events()[before..]
        .iter()
        .any(|event| matches!(event, Event::Cached { entry, .. } if inside(*entry)))
}

#[test]
fn a_pointer_to_a_freed_table_is_used_until_it_is_invalidated() {
    let used = |sequence: &[Instruction]| {
        let seeds = 0..SEEDS;
        seeds
            .filter(|seed| freed_table_is_used(*seed, sequence))
            .count()
    };
    assert!(used(&[DsbIsh]) > 0);
    let leaf = Ipas2le1is {
        operand: operand(GPA),
    };
    assert!(
        used(&[DsbIsh, leaf, DsbIsh, Vmalle1is, DsbIsh]) > 0,
        "an invalidation of leaves keeps pointers"
    );
    assert_eq!(used(&[DsbIshst, ONE, DsbIsh, Vmalle1is, DsbIsh]), 0);
    assert_eq!(used(&[DsbIshst, Vmalls12e1is, DsbIsh]), 0);
}

#[test]
fn a_freed_table_leads_the_guest_astray() {
    // Without any flush, some seed gets the guest into the memory of the freed table itself.
    let astray = |seed: u64| {
        let rig = Rig::new(seed, VTCR);
        rig.everybody_reads();
        rig.store(0, rig.entry(1), 0);
        rig.execute(0, DsbIsh);
        rig.machine.free_table(0, rig.tables[2], PAGE);
        rig.anybody_reaches(rig.tables[2], PAGE)
    };
    assert!((0..SEEDS).any(astray));
}

#[test]
fn a_stale_store_really_hits_who_has_the_memory_now() {
    let hit = |seed: u64| {
        let rig = Rig::new(seed, VTCR);
        let frame = rig.frame(PAGE);
        rig.map(0, frame, PAGE_BITS);
        rig.everybody_reads();
        rig.machine.swap(0, rig.entry(2), 0);
        rig.execute(0, DsbIsh);
        rig.machine.free_frame(0, frame, PAGE);
        let table = rig.machine.allocate_table(0, PAGE).unwrap();
        (0..CPUS).any(|cpu| {
            rig.write(cpu, GPA, 0xbad);
            rig.machine.load(0, table, Ordering::Relaxed) == 0xbad
        })
    };
    assert!((0..SEEDS).any(hit));
}

#[test]
fn a_removed_translation_is_almost_surely_cached_by_somebody() {
    let survivors = (0..SEEDS).filter(|seed| survives(*seed, &[DsbIsh])).count() as u64;
    assert!(survivors * 10 > SEEDS * 9, "{survivors} of {SEEDS}");
    // Even if nobody used it: walkers run ahead.
    let unused = |seed: &u64| {
        let rig = Rig::new(*seed, VTCR);
        let frame = rig.frame(PAGE);
        rig.map(0, frame, PAGE_BITS);
        assert!(rig.machine.swap(0, rig.entry(2), 0) != 0);
        rig.execute(0, DsbIsh);
        rig.anybody_reaches(frame, PAGE)
    };
    let survivors = (0..SEEDS).filter(unused).count() as u64;
    assert!(survivors * 10 > SEEDS * 7, "{survivors} of {SEEDS}");
}
