//! What of the oracles can be checked without an emulator.

use std::collections::BTreeMap;

use slat_oracle_protocol::script::{Action, Actions, Script};
use slat_oracle_protocol::tree::Omission;
use slat_table::format::Format;
use slat_table::format::arm64::{Arm64, Arm64Features};
use slat_table::format::riscv::{RiscV, RiscVFeatures};

use super::judge::{Drawing, Outcome, Question, Reason};
use super::random::Random;
use super::sheet::{Ground, Meets, Sheet};
use super::{attributes, judges, placement};

const DRAWING: Drawing = Drawing {
    seed: 3,
    checks: 500,
    flip: None,
};

fn ground() -> Ground {
    Ground {
        memory: 0x8000_0000..0x40_0000_0000,
        far_bits: Some(48),
        tables: 0x5000_0000..0x6000_0000,
        code_hpa: 0x4300_0000,
    }
}

/// A drawn sheet, and where its code is.
fn drawn<F: Format>(features: F::Features, address_bits: u8) -> (Sheet<F>, u64) {
    let mut random = Random::new(5);
    let mut sheet = Sheet::new(features, address_bits, &ground().tables).unwrap();
    let attributes = attributes::drawn(&mut random);
    let code_gpa = placement::draw(&mut sheet, &ground(), &attributes, &mut random).unwrap();
    (sheet, code_gpa)
}

/// The memory that a script leaves behind, as words.
fn memory(script: Script) -> BTreeMap<u64, u64> {
    let bytes = script.into_bytes();
    let mut memory = BTreeMap::new();
    for action in Actions::new(&bytes).unwrap() {
        if let Action::Copy { at, bytes } = action.unwrap() {
            for (at, word) in (at..).step_by(8).zip(bytes.as_chunks().0) {
                memory.insert(at, u64::from_le_bytes(*word));
            }
        }
    }
    memory
}

#[test]
fn every_answer_of_a_plan_has_its_check_and_every_kind_of_outcome_is_expected() {
    for judge in judges() {
        let name = judge.name();
        let mut plans = judge.plans(&DRAWING).unwrap();
        let expected: Vec<_> = plans
            .iter()
            .flat_map(|plan| &plan.checks)
            .map(|check| check.expected)
            .collect();
        let reached = |seen: &Outcome| matches!(seen, Outcome::Reached { .. });
        assert!(expected.iter().any(reached), "{name}");
        for reason in [Reason::NotMapped, Reason::NotAllowed] {
            let faults = expected.iter().filter(
                |seen| matches!(seen, Outcome::Fault { reason: its, .. } if *its == reason),
            );
            assert!(faults.count() > 10, "{name}: {reason:?}");
        }
        plans.extend(judge.rehearsal(1, Omission::None).unwrap());
        for plan in plans {
            let checks: Vec<_> = plan.checks.iter().map(|check| check.question).collect();
            assert!(questions(plan.script) == checks, "{name}");
        }
    }
}

/// What a script has answered.
fn questions(script: Script) -> Vec<Question> {
    let bytes = script.into_bytes();
    let actions = Actions::new(&bytes).unwrap();
    actions
        .filter_map(|action| match action.unwrap() {
            Action::Probe(probe) => Some(Question::Access(probe)),
            Action::Peek { at } => Some(Question::Memory(at)),
            _ => None,
        })
        .collect()
}

#[test]
fn rehearsals_meet_memory_before_and_faults_after() {
    for judge in judges() {
        let Some(plan) = judge.rehearsal(1, Omission::None).unwrap() else {
            assert!(judge.omissions().is_empty(), "{}", judge.name());
            continue;
        };
        let count = |is: fn(&Outcome) -> bool| {
            let expected = plan.checks.iter().map(|check| check.expected);
            expected.filter(is).count()
        };
        assert!(count(|seen| matches!(seen, Outcome::Reached { .. })) > 50);
        assert!(count(|seen| matches!(seen, Outcome::Fault { .. })) > 50);
    }
}

/// A flipped bit, counted in what the machine gets.
fn flipping_reaches_every_leaf<F: Format>(features: F::Features, address_bits: u8, bit: u32) {
    let (sheet, code_gpa) = drawn::<F>(features, address_bits);
    let [sound, flipped] = [None, Some(bit)].map(|flip| {
        let mut script = Script::default();
        sheet.write(&mut script, code_gpa, flip).unwrap();
        memory(script)
    });
    let entry_of = |gpa| match sheet.meets(gpa).unwrap() {
        Meets::Leaf { entry, .. } => entry,
        other => panic!("{gpa:#x}: {other:?}"),
    };
    let code = entry_of(code_gpa);
    let mut leaves = 0;
    for piece in sheet.pieces() {
        let bytes = sheet.table().geometry().entry_bytes(piece.level);
        let (start, end) = (piece.range.start().raw(), piece.range.end().raw());
        let step = usize::try_from(bytes).unwrap();
        for entry in (start..end).step_by(step).map(entry_of) {
            leaves += u64::from(entry != code);
            let changed = sound[&entry] ^ flipped[&entry];
            let expected = u32::from(entry != code);
            assert_eq!(changed.count_ones(), expected, "entry at {entry:#x}");
        }
    }
    let changed = sound.iter().filter(|(at, word)| flipped[at] != **word);
    assert_eq!(changed.count() as u64, leaves, "and nothing else changes");
}

#[test]
fn a_flipped_bit_is_in_every_leaf_but_that_of_the_code() {
    flipping_reaches_every_leaf::<Arm64>(Arm64Features::ALL, 40, 7);
    flipping_reaches_every_leaf::<RiscV>(RiscVFeatures::ALL, 41, 63);
}

#[test]
fn both_ends_of_the_guests_addresses_are_asked_about() {
    let (sheet, _) = drawn::<Arm64>(Arm64Features::ALL, 36);
    let addresses = placement::addresses(&sheet, 200, &mut Random::new(1));
    for gpa in [0, (1 << 36) - 1, 1 << 36] {
        assert!(addresses.contains(&gpa), "{gpa:#x}");
    }
    assert!(matches!(sheet.meets(0).unwrap(), Meets::Leaf { .. }));
    let last = sheet.meets((1 << 36) - 1).unwrap();
    assert!(matches!(last, Meets::Leaf { .. }));
    assert_eq!(sheet.meets(1 << 36).unwrap(), Meets::Beyond);
}

#[test]
fn outcomes_agree_only_where_both_say_the_same() {
    let reached = |hpa| Outcome::Reached { hpa, memory: None };
    let fault = |reason, level| Outcome::Fault {
        reason,
        gpa: Some(8),
        level,
    };
    assert!(reached(Some(8)).agrees(&reached(Some(8))));
    assert!(reached(Some(8)).agrees(&reached(None)));
    assert!(!reached(Some(8)).agrees(&reached(Some(16))));
    assert!(!reached(None).agrees(&fault(Reason::Untold, None)));
    assert!(fault(Reason::NotMapped, Some(1)).agrees(&fault(Reason::Untold, None)));
    assert!(!fault(Reason::NotMapped, None).agrees(&fault(Reason::NotAllowed, None)));
    assert!(!fault(Reason::NotMapped, Some(1)).agrees(&fault(Reason::NotMapped, Some(2))));
    assert!(!Outcome::Word(1).agrees(&Outcome::Word(2)));
    assert!(!Outcome::Executed(1).agrees(&Outcome::NoMemory));
}
