//! The machine as a whole: it is a function of its seed, and it says no where it must.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use slat_machine::address::Hpa;
use slat_machine::arm64::Instruction::*;
use slat_machine::event::{Event, Record};
use slat_machine::machine::Machine;

use crate::rig::*;

/// A busy run: pages come and go on all CPUs.
fn run(seed: u64) -> (Vec<Record>, u64) {
    let rig = Rig::new(seed, VTCR | HARDWARE_ACCESSED | HARDWARE_DIRTY);
    for turn in 0..50 {
        let cpu = turn % CPUS;
        let frame = rig.frame(PAGE);
        rig.machine.zero(frame, PAGE);
        rig.map(cpu, frame, PAGE_BITS & !ACCESSED);
        rig.everybody_reads();
        rig.write((cpu + 1) % CPUS, GPA, 5);
        rig.machine.swap(cpu, rig.entry(2), 0);
        for instruction in [DsbIshst, Vmalls12e1is, DsbIsh] {
            rig.execute(cpu, instruction);
        }
        rig.machine.free_frame(cpu, frame, PAGE);
    }
    let records = rig.records.lock().unwrap().clone();
    (records, rig.machine.steps())
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    assert_eq!(run(3), run(3));
    assert_ne!(run(3).0, run(4).0);
}

#[test]
fn records_are_numbered_and_steps_are_more() {
    let (records, steps) = run(1);
    assert!(
        (0..)
            .zip(&records)
            .all(|(step, record)| step == record.step)
    );
    assert!(steps > records.len() as u64);
}

#[test]
fn memory_that_was_freed_is_given_out_again_uncleared() {
    for seed in 0..20 {
        let rig = Rig::new(seed, VTCR);
        let frame = rig.frame(RAM.1 / 2);
        rig.machine.write(frame, &[7; 8]);
        rig.machine.free_frame(0, frame, RAM.1 / 2);
        assert_eq!(rig.machine.allocate_frame(0, RAM.1), None);
        assert_eq!(rig.frame(RAM.1 / 2), frame);
        let mut bytes = [0; 8];
        rig.machine.read(frame, &mut bytes);
        assert_eq!(bytes, [7; 8]);
    }
}

#[test]
fn a_table_is_zeroed_whatever_was_there() {
    for seed in 0..50 {
        let rig = Rig::new(seed, VTCR);
        rig.machine.store(0, rig.tables[2], 9, Ordering::Relaxed);
        rig.store(0, rig.entry(1), 0);
        for instruction in [DsbIshst, Vmalls12e1is, DsbIsh] {
            rig.execute(0, instruction);
        }
        rig.machine.free_table(0, rig.tables[2], PAGE);
        for _ in 0..100 {
            let table = rig.machine.allocate_table(1, PAGE).unwrap();
            for offset in (0..PAGE).step_by(8) {
                let entry = Hpa(table.0 + offset);
                assert_eq!(rig.machine.load(1, entry, Ordering::Relaxed), 0);
            }
            if table == rig.tables[2] {
                break;
            }
        }
    }
}

#[test]
fn after_an_objection_the_machine_goes_on_and_tells_no_more() {
    let recorder = Recorder {
        object_after: Some(2),
        ..Recorder::default()
    };
    let records = Arc::clone(&recorder.records);
    let machine = machine(1, recorder);
    assert!(machine.allocate_table(0, PAGE).is_some());
    assert!(!machine.has_objection());
    assert!(machine.allocate_table(0, PAGE).is_some());
    assert!(machine.has_objection());
    assert!(machine.allocate_table(0, PAGE).is_some());
    assert_eq!(records.lock().unwrap().len(), 2);
    assert_eq!(machine.objection().unwrap().to_string(), "enough");
    assert!(machine.objection().is_none());
    assert!(machine.has_objection());
}

#[test]
fn notes_are_told_as_they_are() {
    let rig = Rig::new(1, VTCR);
    let event = Event::NoticeBegun { notice: 5 };
    rig.machine.note(2, event.clone());
    let records = rig.records.lock().unwrap();
    let record = records.iter().find(|record| record.event == event);
    assert_eq!(record.map(|record| record.cpu), Some(2));
}

#[test]
fn registers_must_name_their_vm_and_make_sense() {
    let machine = machine(1, Recorder::default());
    let root = machine.allocate_table(0, PAGE).unwrap();
    let error = machine.enter(0, 2, registers(root, 1, VTCR)).unwrap_err();
    assert_eq!(error, "the registers name VM 1, not VM 2");
    assert!(machine.enter(0, 1, registers(root, 1, 0)).is_err());
    assert!(machine.enter(0, 1, registers(root, 1, VTCR)).is_ok());
}

#[test]
#[should_panic(expected = "which lies in no allocated table")]
fn a_store_to_a_freed_table_panics() {
    let rig = Rig::new(1, VTCR);
    rig.machine.free_table(0, rig.tables[2], PAGE);
    rig.store(0, rig.tables[2], 1);
}

#[test]
#[should_panic(expected = "never entered VM 7")]
fn an_access_of_a_vm_that_was_never_entered_panics() {
    let rig = Rig::new(1, VTCR);
    rig.machine
        .access(0, 7, GPA, slat_machine::event::AccessKind::Read, 0);
}

#[test]
fn the_machine_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Machine>();
}
