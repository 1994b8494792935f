//! Rules that the corpus does not show, most of them about several CPUs and nested changes.

use slat_machine::address::{Gpa, Hpa};
use slat_machine::event::{AccessKind, Event, WriteKind};
use slat_machine::judge::{Judge, Rule};
use slat_machine::machine::Witness;

use crate::scenario::*;

#[test]
fn a_second_flusher_who_took_the_lock_need_not_wait_for_the_first() {
    let mut s = Scenario::hosted();
    s.on(1)
        .enter_with(0)
        .on(0)
        .locked()
        .write(LAST, 0)
        .unlocked();
    s.op(I::DsbIsh).op(I::Ipas2e1is {
        operand: operand(GPA),
    });
    s.on(1)
        .beginning(HVA, KIB4)
        .locked()
        .unlocked()
        .flush_all()
        .begun();
    s.is_fine();
}

#[test]
fn a_second_flusher_who_did_not_take_the_lock_does_not_help() {
    let mut s = Scenario::hosted();
    s.on(1)
        .enter_with(0)
        .on(0)
        .locked()
        .write(LAST, 0)
        .unlocked();
    s.on(1).beginning(HVA, KIB4).flush_all().begun();
    s.ends_with(Rule::MappedAfterNotice);
}

#[test]
fn an_exchange_of_the_same_entry_orders_as_a_lock_does() {
    for (kind, fine) in [(WriteKind::Exchange, true), (WriteKind::Release, false)] {
        let mut s = Scenario::mapped();
        s.on(1)
            .enter_with(0)
            .on(0)
            .write(LAST, 0)
            .on(1)
            .write_as(kind, LAST, 1 << 11);
        s.flush(GPA).write(LAST, OTHER_FRAME | PAGE);
        assert_eq!(s.verdict().is_ok(), fine, "{kind:?}");
    }
}

#[test]
fn an_answer_counts_until_the_notifier_has_returned() {
    let mut s = Scenario::hosted();
    let (hva, gpa) = (HVA + KIB4, GPA + KIB4);
    s.beginning(hva, KIB4).answered(hva, KIB4, FRAME + KIB4);
    s.write(LAST + 8, (FRAME + KIB4) | PAGE)
        .access(AccessKind::Write, gpa, FRAME + KIB4);
    s.write(LAST + 8, 0).flush(gpa).begun();
    s.is_fine();
    s.access(AccessKind::Read, gpa, FRAME + KIB4)
        .ends_with(Rule::AccessWithoutGrant);
}

#[test]
fn an_answer_during_an_outer_change_counts_for_nothing_though_an_inner_one_is_over() {
    let mut s = Scenario::boot();
    s.slot(1, GPA, MIB2, HVA).frame(FRAME, MIB2).tables();
    s.beginning(HVA, MIB2).begun();
    s.beginning(HVA, KIB4).begun().notice_ended();
    s.answered(HVA, KIB4, FRAME).write(LAST, FRAME | PAGE);
    s.ends_with(Rule::LeafWithoutGrant);
}

#[test]
fn a_notice_over_part_of_a_block_needs_the_block_gone() {
    let mut s = Scenario::boot();
    s.slot(1, GPA, MIB2, HVA)
        .frame(FRAME, MIB2)
        .answered(HVA, MIB2, FRAME);
    s.allocate(MIDDLE)
        .write(ROOT + 8, MIDDLE | TABLE)
        .write(MIDDLE, FRAME | BLOCK);
    s.beginning(HVA + 7 * KIB4, KIB4)
        .begun()
        .ends_with(Rule::MappedAfterNotice);
}

#[test]
fn any_address_in_a_block_invalidates_it() {
    let mut s = Scenario::boot();
    s.allocate(MIDDLE)
        .write(ROOT + 8, MIDDLE | TABLE)
        .write(MIDDLE, FRAME | BLOCK);
    s.write(MIDDLE, 0).flush(GPA + 7 * KIB4);
    s.allocate(LAST)
        .write(LAST, OTHER_FRAME | PAGE)
        .write(MIDDLE, LAST | TABLE);
    s.is_fine();
}

#[test]
fn a_split_without_flush_conflicts_with_the_block() {
    let mut s = Scenario::boot();
    s.allocate(MIDDLE)
        .write(ROOT + 8, MIDDLE | TABLE)
        .write(MIDDLE, FRAME | BLOCK);
    s.write(MIDDLE, 0)
        .allocate(LAST)
        .write(LAST, FRAME | PAGE)
        .write(MIDDLE, LAST | TABLE);
    s.ends_with(Rule::ConflictingEntries);
}

#[test]
fn a_permission_that_was_lost_stays_with_cpus_until_it_is_flushed() {
    let read_only = |s: &mut Scenario| {
        let mut slot = slot(2, GPA, MIB2, HVA);
        slot.read_only = true;
        s.changing(&[1], &[slot]).write(LAST, FRAME | PAGE & !WRITE);
    };
    let mut s = Scenario::hosted();
    read_only(&mut s);
    s.changed(true).ends_with(Rule::MappedAfterSlotRemoval);
    let mut s = Scenario::hosted();
    read_only(&mut s);
    s.flush(GPA).changed(true).is_fine();
}

#[test]
fn a_failed_change_of_slots_leaves_nothing_behind() {
    let mut s = Scenario::hosted();
    let (gpa, hva) = (GPA + MIB2, HVA + MIB2);
    s.frame(OTHER_FRAME, MIB2).answered(hva, MIB2, OTHER_FRAME);
    s.changing(&[], &[slot(2, gpa, MIB2, hva)])
        .write(MIDDLE + 8, OTHER_FRAME | BLOCK);
    s.changed(false).ends_with(Rule::MappedAfterSlotRemoval);
}

#[test]
fn a_translation_that_is_the_same_in_the_new_slot_may_stay() {
    let mut s = Scenario::hosted();
    let halves = [
        slot(2, GPA, KIB4, HVA),
        slot(3, GPA + KIB4, MIB2 - KIB4, HVA + KIB4),
    ];
    s.changing(&[1], &halves)
        .changed(true)
        .access(AccessKind::Write, GPA, FRAME)
        .is_fine();
}

#[test]
fn a_moved_slot_takes_its_old_translations_away() {
    let mut s = Scenario::hosted();
    s.changing(&[1], &[slot(1, GPA + MIB2, MIB2, HVA)])
        .changed(true);
    s.ends_with(Rule::MappedAfterSlotRemoval);
}

#[test]
fn a_frame_that_a_cpu_may_still_reach_is_not_freed() {
    let mut s = Scenario::mapped();
    s.write(LAST, 0).op(I::DsbIsh).frame_freed(FRAME, KIB4);
    s.ends_with(Rule::FrameFreedWhileMapped);
}

#[test]
fn memory_that_nobody_allocated_is_not_mapped() {
    let mut s = Scenario::hosted();
    let hva = HVA + KIB4;
    s.answered(hva, KIB4, OTHER_FRAME)
        .write(LAST + 8, OTHER_FRAME | PAGE);
    s.ends_with(Rule::LeafToUnallocatedMemory);
}

#[test]
fn an_access_to_a_freed_frame_is_told_apart_from_one_to_another_page() {
    let mut s = Scenario::hosted();
    s.frame(OTHER_FRAME, KIB4)
        .access(AccessKind::Read, GPA, OTHER_FRAME);
    s.ends_with(Rule::AccessWithoutGrant);
    let mut s = Scenario::hosted();
    s.access(AccessKind::Read, GPA, OTHER_FRAME)
        .ends_with(Rule::AccessToFreeMemory);
}

#[test]
fn an_access_outside_every_slot_is_told() {
    let mut s = Scenario::hosted();
    s.access(AccessKind::Read, 0, FRAME)
        .ends_with(Rule::AccessOutsideSlots);
}

#[test]
fn the_number_of_an_ended_vm_is_flushed_before_it_is_another_ones() {
    const GIB: u64 = 1 << 30;
    let again = |flush: bool| {
        let mut s = Scenario::mapped();
        s.ended();
        if flush {
            s.flush_all();
        }
        s.allocate(OTHER).write(OTHER + 8, GIB | BLOCK);
        s.enter_root(OTHER, 0);
        s.verdict().map_err(|violation| violation.rule)
    };
    assert_eq!(again(true), Ok(()));
    assert_eq!(again(false), Err(Rule::ConflictingEntries));
}

#[test]
fn a_table_of_another_size_is_not_freed() {
    let mut s = Scenario::boot();
    s.free(LAST).ends_with(Rule::NoSuchTable);
    let mut s = Scenario::boot();
    s.allocate(ROOT).ends_with(Rule::NoSuchTable);
}

#[test]
fn registers_that_the_architecture_refuses_are_refused() {
    Scenario::default()
        .enter_with(0b11 << 14)
        .ends_with(Rule::BadRegisters);
    Scenario::default()
        .enter_with(0)
        .ends_with(Rule::PointerToNoTable);
}

#[test]
fn an_installed_leaf_may_be_dirty_only_after_a_write() {
    let dirty = FRAME | PAGE | MODIFIER;
    let mut s = Scenario::boot_with(HARDWARE_ACCESSED | HARDWARE_DIRTY);
    s.tables()
        .access(AccessKind::Write, GPA, FRAME)
        .write(LAST, dirty)
        .is_fine();
    s.write(LAST + 8, dirty + KIB4)
        .ends_with(Rule::InventedDirtyBit);
}

#[test]
fn what_hardware_wrote_to_an_entry_that_software_just_stored_is_not_believed() {
    let mut s = Scenario::boot_with(HARDWARE_ACCESSED);
    let old = FRAME | PAGE & !ACCESSED;
    s.tables()
        .write(LAST, old)
        .write(LAST, 0)
        .write_as(WriteKind::Hardware, LAST, old | ACCESSED);
    s.flush(GPA).write(LAST, OTHER_FRAME | PAGE).is_fine();
}

#[test]
fn nothing_is_left_when_everything_was_taken_away() {
    let mut s = Scenario::mapped();
    let mut judge = Judge::new();
    for index in 1..512 {
        s.write(LAST + index * 8, (FRAME + index * KIB4) | PAGE);
    }
    s.write(MIDDLE, 0);
    let count = |judge: &mut Judge, s: &mut Scenario| {
        for record in s.records.drain(..) {
            judge.judge(&record).unwrap();
        }
        judge.residues()
    };
    assert_eq!(count(&mut judge, &mut s), 513);
    s.flush(GPA);
    assert_eq!(count(&mut judge, &mut s), 511);
    s.flush_all();
    assert_eq!(count(&mut judge, &mut s), 0);
}

#[test]
fn a_machine_is_told_of_the_first_violation_only() {
    let mut s = Scenario::mapped();
    s.free(LAST).free(OTHER);
    let mut witness: Box<dyn Witness> = Box::new(Judge::new());
    let objections: Vec<String> = s
        .records
        .iter()
        .filter_map(|record| Some(witness.observe(record).err()?.to_string()))
        .collect();
    assert_eq!(objections.len(), 1, "{objections:?}");
    assert!(objections[0].starts_with("table-freed-while-reachable: "));
}

#[test]
fn a_replay_gets_the_same_verdict_whatever_was_cached() {
    let cached = |s: &mut Scenario, cpu| {
        let (gpa, entry, value) = (Gpa(GPA), Hpa(LAST), FRAME | PAGE);
        let (vm, bytes, combined) = (VM, KIB4, false);
        s.on(cpu)
            .event(Event::Cached {
                vm,
                gpa,
                bytes,
                entry,
                value,
                combined,
            })
            .on(0);
    };
    let verdict = |by: Option<u8>| {
        let mut s = Scenario::hosted();
        if let Some(cpu) = by {
            cached(&mut s, cpu);
        }
        s.beginning(HVA, KIB4).write(LAST, 0).begun();
        s.verdict()
            .map_err(|violation| (violation.rule, violation.missing))
    };
    assert!(verdict(None).is_err());
    assert_eq!(verdict(None), verdict(Some(0)));
    assert_eq!(verdict(None), verdict(Some(3)));
}

#[test]
fn a_table_that_was_cut_off_is_forgotten_before_it_is_linked_elsewhere_or_filled() {
    let elsewhere = MIDDLE + 8;
    for (entry, value) in [(elsewhere, LAST | TABLE), (LAST + 8, OTHER_FRAME | PAGE)] {
        let mut s = Scenario::mapped();
        s.write(MIDDLE, 0)
            .write(entry, value)
            .ends_with(Rule::TableReusedWhileCached);
        let mut s = Scenario::mapped();
        s.write(MIDDLE, 0).flush_all().write(entry, value).is_fine();
    }
    let mut s = Scenario::mapped();
    s.write(MIDDLE, 0)
        .write(LAST, 0)
        .write(MIDDLE, LAST | TABLE)
        .is_fine();
}
