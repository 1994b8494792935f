//! Accesses of the guest: where they get, what hardware writes, when they fault.

use core::sync::atomic::Ordering;

use slat_machine::address::{Gpa, Hpa};
use slat_machine::arm64::Instruction::*;
use slat_machine::event::{AccessKind, Event, WriteKind};
use slat_machine::machine::Ending;

use crate::rig::*;

/// Reads until it works: walkers may see old values for a while.
fn reached(rig: &Rig, kind: AccessKind) -> Hpa {
    let mut endings = (0..100).map(|_| rig.machine.access(1, VM, GPA, kind, 0));
    let hpa = endings.find_map(|ending| match ending {
        Ending::Reached { hpa, .. } => Some(hpa),
        Ending::Fault => None,
    });
    hpa.expect("the access works in the end")
}

/// Normal memory was reached, and this was there.
fn in_memory(hpa: Hpa, value: u64) -> Ending {
    Ending::Reached {
        hpa,
        value,
        device: false,
    }
}

#[test]
fn a_guest_reads_what_it_wrote_and_the_host_sees_it() {
    for seed in 0..50 {
        let rig = Rig::new(seed, VTCR);
        let frame = rig.frame(PAGE);
        rig.map(0, frame, PAGE_BITS);
        let gpa = Gpa(GPA.0 + 0x123);
        let hpa = Hpa(frame.0 + 0x123);
        let Ending::Reached { hpa: got, .. } = rig.write(2, gpa, 77) else {
            panic!("seed {seed}: a visible translation faulted");
        };
        assert_eq!(got, hpa);
        assert_eq!(rig.read(3, gpa), in_memory(hpa, 77));
        let mut bytes = [0; 8];
        rig.machine.read(Hpa(frame.0 + 0x120), &mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), 77);
    }
}

#[test]
fn it_is_told_whether_a_translation_was_cached_before() {
    for seed in 0..50 {
        let rig = Rig::new(seed, VTCR);
        let frame = rig.frame(PAGE);
        rig.map(0, frame, PAGE_BITS);
        let mut has_cached = [false; CPUS as usize];
        for _ in 0..4 {
            rig.everybody_reads();
        }
        let records = rig.records.lock().unwrap();
        for record in records.iter() {
            let has = &mut has_cached[usize::from(record.cpu)];
            match record.event {
                Event::Cached { bytes: PAGE, .. } => *has = true,
                Event::Accessed { cached: true, .. } => assert!(*has, "seed {seed}: {record:?}"),
                _ => {}
            }
        }
        assert!(has_cached.contains(&true), "seed {seed}");
    }
}

#[test]
fn a_device_is_reached_like_memory() {
    let rig = Rig::new(1, VTCR);
    rig.store(0, rig.entry(1), 0x0040_0000_0000_04c1 | 0x1000_0000);
    for instruction in [DsbIsh, Vmalls12e1is, DsbIsh] {
        rig.execute(0, instruction);
    }
    let on_device = |value| Ending::Reached {
        hpa: Hpa(0x1000_3000),
        value,
        device: true,
    };
    assert_eq!(rig.write(0, GPA, 5), on_device(0));
    assert_eq!(rig.read(1, GPA), on_device(5));
}

#[test]
fn what_is_not_mapped_or_not_allowed_faults() {
    for seed in 0..50 {
        let rig = Rig::new(seed, VTCR);
        assert_eq!(rig.read(0, GPA), Ending::Fault);
        assert_eq!(rig.read(0, Gpa(1 << 39)), Ending::Fault, "too wide");
        let frame = rig.frame(PAGE);
        rig.map(0, frame, PAGE_BITS & !WRITABLE);
        assert_eq!(rig.write(0, GPA, 1), Ending::Fault);
        let execute = AccessKind::Execute;
        assert_eq!(rig.machine.access(0, VM, GPA, execute, 0), Ending::Fault);
        assert!(matches!(rig.read(0, GPA), Ending::Reached { .. }));
        let fault = Event::Faulted {
            vm: VM,
            gpa: GPA,
            kind: execute,
        };
        assert!(rig.events().contains(&fault));
    }
}

#[test]
fn a_new_translation_may_be_missed_until_it_is_published() {
    let missed = |seed| {
        let rig = Rig::new(seed, VTCR);
        let frame = rig.frame(PAGE);
        rig.store(0, rig.entry(2), frame.0 | PAGE_BITS);
        rig.machine.release(0);
        rig.read(1, GPA) == Ending::Fault
    };
    assert!((0..100).any(missed));
    assert!(!(0..100).all(missed));
}

#[test]
fn an_entry_not_accessed_faults_unless_the_hardware_sets_it() {
    for seed in 0..50 {
        let rig = Rig::new(seed, VTCR);
        let frame = rig.frame(PAGE);
        rig.map(0, frame, PAGE_BITS & !ACCESSED);
        assert_eq!(rig.read(1, GPA), Ending::Fault);

        let rig = Rig::new(seed, VTCR | HARDWARE_ACCESSED);
        let frame = rig.frame(PAGE);
        rig.map(0, frame, PAGE_BITS & !ACCESSED);
        assert_eq!(reached(&rig, AccessKind::Read), frame);
        let accessed = frame.0 | PAGE_BITS;
        let entry = rig.entry(2);
        assert_eq!(rig.machine.load(0, entry, Ordering::Relaxed), accessed);
        assert!(rig.events().contains(&Event::Write {
            entry,
            value: accessed,
            kind: WriteKind::Hardware,
        }));
    }
}

const CLEAN: u64 = PAGE_BITS & !WRITABLE | DIRTY_MODIFIER;

fn dirty_rig(seed: u64) -> (Rig, Hpa) {
    let rig = Rig::new(seed, VTCR | HARDWARE_ACCESSED | HARDWARE_DIRTY);
    let frame = rig.frame(PAGE);
    rig.map(0, frame, CLEAN);
    (rig, frame)
}

#[test]
fn hardware_makes_a_page_dirty_at_the_first_store_and_never_before() {
    for seed in 0..100 {
        let (rig, frame) = dirty_rig(seed);
        let entry = rig.entry(2);
        rig.everybody_reads();
        let load = || rig.machine.load(0, entry, Ordering::Relaxed);
        assert_eq!(load(), frame.0 | CLEAN, "seed {seed}");
        assert_eq!(reached(&rig, AccessKind::Write), frame);
        assert_eq!(load(), frame.0 | CLEAN | WRITABLE, "seed {seed}");
        // And by another CPU, which may have the clean page cached, not again.
        rig.write(2, GPA, 1);
        let dirtied = |event: &&Event| {
            matches!(event, Event::Write { kind: WriteKind::Hardware, value, .. }
                if value & WRITABLE != 0)
        };
        assert_eq!(rig.events().iter().filter(dirtied).count(), 1);
    }
}

#[test]
fn a_store_through_a_clean_page_that_is_gone_from_memory_faults() {
    // A cached translation is no licence to write an entry that has changed.
    for seed in 0..100 {
        let (rig, frame) = dirty_rig(seed);
        rig.everybody_reads();
        assert_eq!(rig.machine.swap(0, rig.entry(2), 0), frame.0 | CLEAN);
        rig.execute(0, DsbIsh);
        assert_eq!(rig.write(1, GPA, 1), Ending::Fault, "seed {seed}");
        assert_eq!(rig.machine.load(0, rig.entry(2), Ordering::Relaxed), 0);
    }
}

#[test]
fn several_vms_on_one_cpu_are_kept_apart() {
    for seed in 0..50 {
        let rig = Rig::new(seed, VTCR);
        let frame = rig.frame(PAGE);
        rig.map(0, frame, PAGE_BITS);
        let root = rig.machine.allocate_table(0, PAGE).unwrap();
        rig.machine.enter(0, 2, registers(root, 2, VTCR)).unwrap();
        for _ in 0..5 {
            assert!(matches!(rig.read(0, GPA), Ending::Reached { .. }));
            let other = rig.machine.access(0, 2, GPA, AccessKind::Read, 0);
            assert_eq!(other, Ending::Fault);
        }
    }
}

#[test]
fn a_spurious_permission_fault_is_possible_after_a_gain_and_a_success_too() {
    let faults = |seed| {
        let rig = Rig::new(seed, VTCR);
        let frame = rig.frame(PAGE);
        rig.map(0, frame, PAGE_BITS & !WRITABLE);
        rig.everybody_reads();
        rig.map(0, frame, PAGE_BITS);
        rig.write(1, GPA, 1) == Ending::Fault
    };
    assert!((0..100).any(faults));
    assert!(!(0..100).all(faults));
}
