//! Sequences of deeds on a small guest, which shrink to the shortest that fails.

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestError, TestRunner};
use slat_machine::event::AccessKind;
use slat_machine::rig::action::Action;
use slat_machine::rig::plan::{Backing, Plan, Slot};
use slat_machine::rig::script::{Deed, Step};
use slat_machine::rig::{Options, run};

use crate::caught::scaled;
use crate::scenario::{GIB, GPA, HVA, MIB, mapping, nothing, slot};

const PAGE: u64 = 4096;
const DEVICE: u64 = HVA + 8 * MIB;

/// 4 MiB of RAM behind one slot, 2 MiB of a revocable device behind another.
fn plan() -> Plan {
    Plan {
        mappings: vec![
            mapping(HVA, 4 * MIB, Backing::Anonymous),
            mapping(DEVICE, 2 * MIB, Backing::Revocable { hpa: 4 * GIB }),
        ],
        slots: vec![
            slot(1, GPA, 4 * MIB, HVA),
            slot(2, GPA + 4 * MIB, 2 * MIB, DEVICE),
        ],
        steps: u64::MAX,
        ..nothing()
    }
}

/// Pages at the edges of blocks, of `blocks` blocks.
fn page(blocks: u64) -> impl Strategy<Value = u64> {
    (0..blocks, prop_oneof![Just(0), Just(1), Just(511)])
        .prop_map(|(block, page)| (block * 512 + page) * PAGE)
}

fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(PAGE), 1 => Just(3 * PAGE), 1 => Just(512 * PAGE)]
}

fn kind() -> impl Strategy<Value = AccessKind> {
    prop_oneof![
        Just(AccessKind::Read),
        Just(AccessKind::Write),
        Just(AccessKind::Execute)
    ]
}

fn replaced() -> impl Strategy<Value = Slot> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(moved, half, read_only)| Slot {
        hva: HVA + if moved { 2 * MIB } else { 0 },
        bytes: if half { MIB + PAGE } else { 2 * MIB },
        read_only,
        ..slot(1, GPA, 2 * MIB, HVA)
    })
}

fn action() -> impl Strategy<Value = Action> {
    let hva = || page(2).prop_map(|offset| HVA + offset);
    let change = || (page(2), bytes(), 0..3usize);
    prop_oneof![
        (hva(), any::<bool>()).prop_map(|(hva, huge)| Action::Migrate { hva, huge }),
        (hva(), bytes()).prop_map(|(hva, bytes)| Action::Discard { hva, bytes }),
        change().prop_map(|(offset, bytes, pause)| Action::Protect {
            mapping: 0,
            hva: HVA + offset,
            bytes: bytes.min(4 * MIB - offset),
            pause,
        }),
        change().prop_map(|(offset, bytes, pause)| Action::Remap {
            mapping: 0,
            hva: HVA + offset,
            bytes: bytes.min(4 * MIB - offset),
            pause,
        }),
        hva().prop_map(|hva| Action::Split { hva }),
        (page(3), bytes()).prop_map(|(offset, bytes)| Action::SplitTables {
            gpa: GPA + offset,
            bytes,
            level: 0,
        }),
        (0..3usize).prop_map(|pause| Action::Revoke { mapping: 1, pause }),
        (hva(), bytes(), any::<bool>()).prop_map(|(hva, bytes, clear)| Action::Age {
            hva,
            bytes,
            clear
        }),
        (hva(), any::<bool>()).prop_map(|(hva, write)| Action::Populate {
            hva,
            bytes: PAGE,
            write,
        }),
        (page(3), bytes()).prop_map(|(offset, bytes)| Action::Prefault {
            gpa: GPA + offset,
            bytes,
        }),
        (1..3u32).prop_map(|slot| Action::Delete { slot }),
        replaced().prop_map(|slot| Action::Create { slot }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let deed = prop_oneof![
        3 => (page(3), kind()).prop_map(|(offset, kind)| Deed::Access(GPA + offset, kind)),
        2 => action().prop_map(Deed::Act),
    ];
    (0..4u8, deed).prop_map(|(cpu, deed)| Step { cpu, deed })
}

/// One sequence, the seed of its schedule, and how often allocations fail.
type Case = (Vec<Step>, u64, Option<usize>);

/// What is found in a case, the rule first.
fn found((script, seed, failing): &Case) -> Result<(), String> {
    let options = Options {
        seed: *seed,
        failing: *failing,
        script: script.clone(),
        ..Options::default()
    };
    let outcome = run(&plan(), &options).map_err(|error| error.to_string())?;
    outcome.finding.map_or(Ok(()), Err)
}

#[test]
fn nothing_is_found_in_any_sequence() {
    let config = ProptestConfig {
        cases: u32::try_from(scaled(400)).unwrap_or(u32::MAX),
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x51a7),
        ..ProptestConfig::default()
    };
    let failing = prop::option::of(10..40usize);
    let cases = (prop::collection::vec(step(), 1..60), 0..1000u64, failing);
    let tested =
        TestRunner::new(config).run(&cases, |case| found(&case).map_err(TestCaseError::fail));
    match tested {
        Ok(()) => {}
        Err(TestError::Fail(_, case)) => {
            let story = found(&case).expect_err("a run replays");
            let rule = story.split(':').next().unwrap_or_default();
            panic!("caught: {rule}\n{story}\nby {case:#?}");
        }
        Err(error) => panic!("{error}"),
    }
}
