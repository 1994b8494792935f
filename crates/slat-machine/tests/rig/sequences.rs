//! Sequences of deeds on a small guest, on every format, which shrink to the shortest that fails.

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestError, TestRunner};
use slat_machine::event::AccessKind;
use slat_machine::rig::action::Action;
use slat_machine::rig::plan::{Backing, Plan, Slot};
use slat_machine::rig::script::{Deed, Step};
use slat_machine::rig::{Options, run};

use crate::scenario::{DEVICE, FRAME, GPA, HVA, MIB, On, mapping, slot};

/// Where the second mapping is.
const SECOND: u64 = HVA + 4 * FRAME;

/// Two frames of RAM behind one slot, one of a revocable device behind another.
fn plan(on: &On) -> Plan {
    let revocable = if on.has_devices() {
        Backing::Revocable { hpa: DEVICE }
    } else {
        Backing::Anonymous
    };
    Plan {
        mappings: vec![
            mapping(HVA, 2 * FRAME, Backing::Anonymous),
            mapping(SECOND, FRAME, revocable),
        ],
        slots: vec![
            slot(1, GPA, 2 * FRAME, HVA),
            slot(2, GPA + 2 * FRAME, FRAME, SECOND),
        ],
        steps: u64::MAX,
        ..on.nothing()
    }
}

/// Pages at the edges of frames, of `frames` frames.
fn page(of: u64, frames: u64) -> impl Strategy<Value = u64> {
    let places = prop_oneof![Just(0), Just(of), Just(FRAME - of)];
    (0..frames, places).prop_map(|(frame, place)| frame * FRAME + place)
}

fn bytes(page: u64) -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(page), 1 => Just(3 * page), 1 => Just(FRAME)]
}

fn kind() -> impl Strategy<Value = AccessKind> {
    prop_oneof![
        Just(AccessKind::Read),
        Just(AccessKind::Write),
        Just(AccessKind::Execute)
    ]
}

fn replaced(page: u64) -> impl Strategy<Value = Slot> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(move |(moved, half, read_only)| Slot {
        hva: HVA + if moved { FRAME } else { 0 },
        bytes: if half { MIB + page } else { FRAME },
        read_only,
        ..slot(1, GPA, FRAME, HVA)
    })
}

fn action(of: u64) -> impl Strategy<Value = Action> {
    let hva = || page(of, 2).prop_map(|offset| HVA + offset);
    let change = || (page(of, 2), bytes(of), 0..3usize);
    prop_oneof![
        (hva(), any::<bool>()).prop_map(|(hva, huge)| Action::Migrate { hva, huge }),
        (hva(), bytes(of)).prop_map(|(hva, bytes)| Action::Discard { hva, bytes }),
        change().prop_map(|(offset, bytes, pause)| Action::Protect {
            mapping: 0,
            hva: HVA + offset,
            bytes: bytes.min(2 * FRAME - offset),
            pause,
        }),
        change().prop_map(|(offset, bytes, pause)| Action::Remap {
            mapping: 0,
            hva: HVA + offset,
            bytes: bytes.min(2 * FRAME - offset),
            pause,
        }),
        hva().prop_map(|hva| Action::Split { hva }),
        (page(of, 3), bytes(of)).prop_map(|(offset, bytes)| Action::SplitTables {
            gpa: GPA + offset,
            bytes,
            level: 0,
        }),
        (0..3usize).prop_map(|pause| Action::Revoke { mapping: 1, pause }),
        (hva(), bytes(of), any::<bool>()).prop_map(|(hva, bytes, clear)| Action::Age {
            hva,
            bytes,
            clear
        }),
        (hva(), any::<bool>()).prop_map(move |(hva, write)| Action::Populate {
            hva,
            bytes: of,
            write,
        }),
        (page(of, 3), bytes(of)).prop_map(|(offset, bytes)| Action::Prefault {
            gpa: GPA + offset,
            bytes,
        }),
        (1..3u32).prop_map(|slot| Action::Delete { slot }),
        replaced(of).prop_map(|slot| Action::Create { slot }),
    ]
}

fn step(of: u64) -> impl Strategy<Value = Step> {
    let deed = prop_oneof![
        3 => (page(of, 3), kind()).prop_map(|(offset, kind)| Deed::Access(GPA + offset, kind)),
        2 => action(of).prop_map(Deed::Act),
    ];
    (0..4u8, deed).prop_map(|(cpu, deed)| Step { cpu, deed })
}

/// One sequence, the seed of its schedule, and how often allocations fail.
type Case = (Vec<Step>, u64, Option<usize>);

/// What is found in a case, the rule first.
fn found(on: &On, (script, seed, failing): &Case) -> Result<(), String> {
    let options = Options {
        format: on.format,
        seed: *seed,
        failing: *failing,
        script: script.clone(),
        ..Options::default()
    };
    let outcome = run(&plan(on), &options).map_err(|error| error.to_string())?;
    outcome.finding.map_or(Ok(()), Err)
}

fn nothing_is_found_in_any_sequence(on: &On) {
    let config = ProptestConfig {
        cases: u32::try_from(on.seeds(400)).unwrap_or(u32::MAX),
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x51a7),
        ..ProptestConfig::default()
    };
    let failing = prop::option::of(10..40usize);
    let cases = (
        prop::collection::vec(step(on.page), 1..60),
        0..1000u64,
        failing,
    );
    let tested =
        TestRunner::new(config).run(&cases, |case| found(on, &case).map_err(TestCaseError::fail));
    match tested {
        Ok(()) => {}
        Err(TestError::Fail(_, case)) => {
            let story = found(on, &case).expect_err("a run replays");
            let rule = story.split(':').next().unwrap_or_default();
            panic!("caught: {rule}\n{story}\nby {case:#?}");
        }
        Err(error) => panic!("{error}"),
    }
}

crate::scenario::for_every_format! {
    nothing_is_found_in_any_sequence,
}
