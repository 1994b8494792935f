//! Rubbish does not upset the judge, nor what reads traces.

use proptest::collection::vec;
use proptest::prelude::*;
use slat_machine::address::{Gpa, Hpa, Hva};
use slat_machine::arm64;
use slat_machine::casemate;
use slat_machine::event::{AccessKind, Event, Instruction, Record, Registers, Slot, WriteKind};
use slat_machine::judge::Judge;
use slat_machine::trace;

use crate::scenario::{
    self, FRAME, GPA, HVA, I, KIB4, LAST, MIB2, MIDDLE, OTHER, PAGE, ROOT, Scenario,
};

/// Addresses that often meet each other, and some that are extreme.
fn address() -> impl Strategy<Value = u64> {
    const KNOWN: [u64; 10] = [
        ROOT,
        MIDDLE,
        LAST,
        OTHER,
        FRAME,
        GPA,
        HVA,
        0,
        u64::MAX,
        u64::MAX - 0xfff,
    ];
    const OFFSET: [u64; 7] = [0, 8, 16, KIB4, MIB2, 0xff8, 1];
    let near = (
        prop::sample::select(&KNOWN[..]),
        prop::sample::select(&OFFSET[..]),
    )
        .prop_map(|(base, offset): (u64, u64)| base.wrapping_add(offset));
    prop_oneof![9 => near, 1 => any::<u64>()]
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![8 => Just(KIB4), 2 => Just(MIB2), 1 => Just(0), 1 => any::<u64>()]
}

fn value() -> impl Strategy<Value = u64> {
    const BITS: [u64; 7] = [0, 1, 3, PAGE, PAGE & !3 | 1, 1 << 51, 1 << 16];
    let entry = (address(), prop::sample::select(&BITS[..]))
        .prop_map(|(address, bits)| address & 0x0000_ffff_ffff_f000 | bits);
    prop_oneof![9 => entry, 1 => any::<u64>()]
}

fn write_kind() -> impl Strategy<Value = WriteKind> {
    use WriteKind::{Exchange, Hardware, Plain, Release};
    prop::sample::select(&[Plain, Release, Exchange, Exchange, Exchange, Hardware][..])
}

fn access_kind() -> impl Strategy<Value = AccessKind> {
    use AccessKind::{Execute, Read, Write};
    prop::sample::select(&[Read, Write, Execute][..])
}

fn instruction() -> impl Strategy<Value = Instruction> {
    const SIMPLE: [I; 9] = [
        I::DsbIsh,
        I::DsbIshst,
        I::DsbNsh,
        I::DsbNshst,
        I::Isb,
        I::Vmalle1is,
        I::Vmalle1,
        I::Vmalls12e1is,
        I::Vmalls12e1,
    ];
    // Often without a hint of a level.
    let hint = prop_oneof![Just(0), 0..16u64];
    let by_address = (address(), hint).prop_flat_map(|(gpa, hint)| {
        let operand = hint << 44 | gpa >> 12;
        let all = [
            I::Ipas2e1is { operand },
            I::Ipas2le1is { operand },
            I::Ipas2e1 { operand },
        ];
        prop::sample::select(all.to_vec())
    });
    prop_oneof![prop::sample::select(&SIMPLE[..]), by_address].prop_map(Instruction::Arm64)
}

fn slot() -> impl Strategy<Value = Slot> {
    (0..4u32, address(), size(), address(), any::<bool>()).prop_map(
        |(id, gpa, bytes, hva, read_only)| {
            let (gpa, hva) = (Gpa(gpa), Hva(hva));
            Slot {
                id,
                gpa,
                bytes,
                hva,
                read_only,
            }
        },
    )
}

fn registers() -> impl Strategy<Value = Registers> {
    (address(), any::<u64>(), any::<bool>(), any::<bool>()).prop_map(|(root, vtcr, odd, fwb)| {
        let usual = scenario::vtcr(39) | vtcr & 0b11 << 21;
        Registers::Arm64(arm64::Registers {
            vttbr: root,
            vtcr: if odd { vtcr } else { usual },
            force_write_back: fwb,
        })
    })
}

fn table_event() -> impl Strategy<Value = Event> {
    let vm = 0..3u16;
    prop_oneof![
        1 => (vm.clone(), registers()).prop_map(|(vm, registers)| Event::Registers { vm, registers }),
        1 => vm.clone().prop_map(|vm| Event::VmEnded { vm }),
        3 => (address(), size())
            .prop_map(|(table, bytes)| Event::TableAllocated { table: Hpa(table), bytes }),
        1 => (address(), size())
            .prop_map(|(table, bytes)| Event::TableFreed { table: Hpa(table), bytes }),
        9 => (address(), value(), write_kind())
            .prop_map(|(entry, value, kind)| Event::Write { entry: Hpa(entry), value, kind }),
        5 => (vm.clone(), instruction())
            .prop_map(|(vm, instruction)| Event::Instruction { vm, instruction }),
        1 => (0..3u64).prop_map(|lock| Event::Locked { lock }),
        1 => (0..3u64).prop_map(|lock| Event::Unlocked { lock }),
        1 => (vm, address(), size(), address(), value(), any::<bool>()).prop_map(
            |(vm, gpa, bytes, entry, value, combined)| {
                let (gpa, entry) = (Gpa(gpa), Hpa(entry));
                Event::Cached { vm, gpa, bytes, entry, value, combined }
            }
        ),
    ]
}

fn answer() -> impl Strategy<Value = Event> {
    let allowed = (any::<bool>(), any::<bool>());
    (0..3u16, address(), size(), address(), allowed).prop_map(
        |(vm, hva, bytes, hpa, (writable, device))| Event::Answered {
            vm,
            hva: Hva(hva),
            bytes,
            hpa: Hpa(hpa),
            writable,
            device,
        },
    )
}

fn host_event() -> impl Strategy<Value = Event> {
    let vm = 0..3u16;
    let number = 0..3u64;
    let change = (
        number.clone(),
        vm.clone(),
        vec(0..4u32, 0..3),
        vec(slot(), 0..3),
    );
    prop_oneof![
        (address(), size()).prop_map(|(at, bytes)| Event::FrameAllocated {
            frame: Hpa(at),
            bytes
        }),
        (address(), size()).prop_map(|(at, bytes)| Event::FrameFreed {
            frame: Hpa(at),
            bytes
        }),
        answer(),
        (number.clone(), vm.clone(), address(), size()).prop_map(|(notice, vm, hva, bytes)| {
            Event::NoticeBeginning {
                notice,
                vm,
                hva: Hva(hva),
                bytes,
            }
        }),
        number
            .clone()
            .prop_map(|notice| Event::NoticeBegun { notice }),
        number
            .clone()
            .prop_map(|notice| Event::NoticeEnded { notice }),
        change.prop_map(|(change, vm, remove, add)| {
            Event::SlotsChanging {
                change,
                vm,
                remove,
                add,
            }
        }),
        (number, any::<bool>()).prop_map(|(change, done)| Event::SlotsChanged { change, done }),
        (vm.clone(), address(), access_kind(), address()).prop_map(|(vm, gpa, kind, hpa)| {
            let (gpa, hpa) = (Gpa(gpa), Hpa(hpa));
            Event::Accessed {
                vm,
                gpa,
                kind,
                hpa,
                cached: false,
            }
        }),
        (vm, address(), access_kind()).prop_map(|(vm, gpa, kind)| Event::Faulted {
            vm,
            gpa: Gpa(gpa),
            kind
        }),
    ]
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let event = prop_oneof![3 => table_event(), 1 => host_event()];
    vec((any::<u64>(), 0..6u8, event), 0..60).prop_map(|records| {
        let record = |(step, cpu, event)| Record { step, cpu, event };
        records.into_iter().map(record).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 250,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Every record is judged after a few sound ones and by a judge of its own, so that the first
    /// violation does not end the test of the rest.
    #[test]
    fn random_records_never_upset_the_judge(records in records(), mapped in any::<bool>()) {
        let mut rest = &records[..];
        while !rest.is_empty() {
            let mut judge = Judge::new();
            let sound = if mapped { Scenario::hosted() } else { Scenario::boot() };
            for record in &sound.records {
                prop_assert!(judge.judge(record).is_ok());
            }
            let judged = rest.iter().position(|record| match judge.judge(record) {
                Ok(()) => false,
                Err(violation) => !violation.to_string().is_empty(),
            });
            rest = &rest[judged.map_or(rest.len(), |at| at + 1)..];
        }
    }

    #[test]
    fn random_records_are_read_as_they_were_written(records in records()) {
        let mut text = Vec::new();
        let mut writer = trace::Writer::new(&mut text);
        for record in &records {
            writer.write(record).unwrap();
        }
        writer.flush().unwrap();
        drop(writer);
        let read: Vec<Record> = trace::read(&text[..]).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(read, records);
    }

    #[test]
    fn random_records_can_be_exported_or_not_but_what_was_can_be_read(records in records()) {
        let mut text = Vec::new();
        if casemate::export(&records, &mut text).is_ok() {
            prop_assert!(casemate::read(&text[..]).all(|record| record.is_ok()));
        }
    }

    #[test]
    fn random_bytes_are_no_trace(text in vec(any::<u8>(), 0..200)) {
        let _ = trace::check(&text[..]);
    }

    #[test]
    fn random_parentheses_are_no_trace(text in "\\([-a-z0-9 ()\"!\n]{0,100}") {
        let _ = trace::check(text.as_bytes());
    }
}
