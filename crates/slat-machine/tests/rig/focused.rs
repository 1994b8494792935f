//! Scenarios for what random plans seldom meet, each explored with several schedules.

use std::sync::Arc;

use slat_machine::event::AccessKind;
use slat_machine::rig::action::Action;
use slat_machine::rig::plan::{Backing, Churn, Features, Plan, Slot};
use slat_machine::rig::script::{Deed, Step};

use crate::scenario::{
    GIB, GPA, HVA, KIB, MIB, device, explore, explore_script, mapping, nothing, ram, slot, times,
    touch,
};

#[test]
fn a_block_of_1_gib_is_split_by_an_invalidation_of_a_part() {
    let mut plan = device(GIB, 4 * GIB);
    plan.churn.protect = 1;
    let outcomes = explore(&plan);
    assert!(times(&outcomes, "protect") > 0);
    let regions = outcomes.iter().map(|outcome| &outcome.report.regions[0]);
    assert!(
        regions
            .clone()
            .all(|region| region.mapped_at_creation == GIB)
    );
    assert!(regions.clone().any(|region| region.blocks.of(1 << 30) == 0));
}

#[test]
fn a_split_keeps_the_memory_type_of_a_device() {
    let mut plan = device(4 * MIB, 4 * GIB);
    plan.churn.split = 1;
    plan.churn.protect = 1;
    let outcomes = explore(&plan);
    assert!(times(&outcomes, "split") > 0);
    let regions = outcomes.iter().map(|outcome| &outcome.report.regions[0]);
    assert!(regions.clone().any(|region| region.blocks.of(4 << 10) > 0));
}

#[test]
fn a_block_at_the_slots_edge_is_not_mapped_beyond_it() {
    // The host has 4 MiB in blocks; the slot ends in the middle of the second.
    let mut plan = ram(4 * MIB);
    plan.slots = vec![slot(1, GPA, 3 * MIB, HVA), slot(2, GPA + 3 * MIB, MIB, HVA)];
    plan.churn = Churn {
        migrate: 2,
        discard: 1,
        populate: 1,
        ..Churn::default()
    };
    let outcomes = explore(&plan);
    assert!(times(&outcomes, "migrate") > 0);
    let regions = outcomes.iter().map(|outcome| &outcome.report.regions[0]);
    assert!(regions.clone().any(|region| region.blocks.of(2 << 20) == 1));
    assert!(regions.clone().all(|region| region.blocks.of(2 << 20) <= 1));
}

#[test]
fn two_slots_in_one_span_do_not_disturb_each_other() {
    let mut plan = ram(2 * MIB);
    plan.slots = vec![
        slot(1, GPA, 64 * KIB, HVA),
        slot(2, GPA + 64 * KIB, 64 * KIB, HVA + MIB),
        slot(3, GPA + 128 * KIB, 64 * KIB, HVA + 64 * KIB),
    ];
    plan.slots[1].replaceable = true;
    plan.churn = Churn {
        slots: 2,
        discard: 1,
        ..Churn::default()
    };
    assert!(times(&explore(&plan), "slots") > 0);
}

#[test]
fn a_leaf_over_several_stripes_is_taken_away_while_it_is_made() {
    // Mapped on fault, so that faults make the 1 GiB leaf again and again.
    let mut plan = device(GIB, 4 * GIB);
    plan.slots[0].on_fault = true;
    plan.churn.remap = 1;
    let outcomes = explore(&plan);
    assert!(times(&outcomes, "remap") > 0);
    let faults = outcomes.iter().map(|outcome| &outcome.report.faults);
    assert!(faults.clone().any(|faults| faults.by_size.of(1 << 30) > 0));
}

#[test]
fn a_device_is_revoked_while_the_guest_faults_on_it() {
    let mut plan = nothing();
    plan.mappings = vec![mapping(HVA, 2 * MIB, Backing::Revocable { hpa: 4 * GIB })];
    plan.slots = vec![slot(1, GPA, 2 * MIB, HVA)];
    plan.churn.revoke = 1;
    let outcomes = explore(&plan);
    assert!(times(&outcomes, "revoke") > 0);
    let denied = |name: &str| name == "denied by the host";
    let mut exits = outcomes.iter().flat_map(|outcome| &outcome.report.exits);
    assert!(exits.any(|(name, count)| denied(name) && *count > 0));
}

#[test]
fn permission_lost_and_gained_again_reaches_the_guest() {
    let mut plan = ram(2 * MIB);
    plan.churn.protect = 1;
    let outcomes = explore(&plan);
    assert!(times(&outcomes, "protect") > 0);
    let mut faults = outcomes.iter().map(|outcome| &outcome.report.faults);
    assert!(faults.any(|faults| faults.permission > 0));
}

#[test]
fn a_slot_replaced_by_one_over_other_memory_shows_that() {
    let mut plan = ram(8 * MIB);
    plan.slots = vec![slot(1, GPA, 2 * MIB, HVA)];
    plan.slots[0].replaceable = true;
    plan.churn = Churn {
        slots: 4,
        migrate: 1,
        ..Churn::default()
    };
    assert!(times(&explore(&plan), "slots") > 0);
}

#[test]
fn a_slot_is_deleted_while_a_fault_makes_its_tables_ready() {
    // Between looking at the slots and asking the host, a fault does nothing but replace a table
    // that the fault before it has used. A slot of just one table, mapped in pages, has that table
    // made anew after each deletion; a device beside it keeps the table above, so that a deletion is
    // short enough to happen meanwhile.
    let mut plan = nothing();
    (plan.guest_cpus, plan.host_cpus) = (2, 1);
    let (gpa, hva) = (GPA + 2 * MIB, HVA + 2 * MIB + 4 * KIB);
    let whole = Slot {
        on_fault: true,
        ..slot(2, gpa, 2 * MIB, hva)
    };
    plan.mappings = vec![
        mapping(HVA, 4 * KIB, Backing::Device { hpa: 4 * GIB }),
        mapping(hva, 2 * MIB, Backing::Anonymous),
    ];
    plan.slots = vec![slot(1, GPA, 4 * KIB, HVA), whole.clone()];
    let read = |turn: u64| Deed::Access(gpa + turn % 7 * 4 * KIB, AccessKind::Read);
    let lives = (0..400).flat_map(|_| {
        let slot = whole.clone();
        let create = [Deed::Act(Action::Create { slot })];
        let delete = [Deed::Act(Action::Delete { slot: 2 })];
        // For a while the slot stays, and the guest uses it.
        let rest = (0..20).map(|_| Deed::Access(GPA, AccessKind::Read));
        create.into_iter().chain(rest).chain(delete)
    });
    let host = lives.map(|deed| Step { cpu: 2, deed });
    let guest = (0..12_000).map(|turn| Step {
        cpu: u8::from(turn % 2 == 0),
        deed: read(turn),
    });
    let script: Vec<Step> = host.chain(guest).collect();
    let outcomes = explore_script(&plan, &script, 100);
    let mut exits = outcomes.iter().flat_map(|outcome| &outcome.report.exits);
    assert!(exits.any(|(name, count)| name == "no slot" && *count > 0));
}

#[test]
fn a_slot_is_deleted_while_others_look_at_what_its_table_maps() {
    // A deletion cuts off the one table below the root that maps all of the slot. Whoever asks which
    // pages were used holds another stripe of the same table between two loads.
    let mut plan = nothing();
    (plan.guest_cpus, plan.host_cpus) = (1, 3);
    let whole = Slot {
        on_fault: true,
        ..slot(1, GPA, GIB, HVA)
    };
    plan.mappings = vec![mapping(HVA, GIB, Backing::Anonymous)];
    plan.slots = vec![whole.clone()];
    let lives = (0..200).flat_map(|turn| {
        let gpa = GPA + turn % 5 * 2 * MIB;
        let slot = whole.clone();
        [
            Deed::Access(gpa, AccessKind::Write),
            Deed::Act(Action::Delete { slot: 1 }),
            Deed::Act(Action::Create { slot }),
        ]
    });
    let lives = lives.map(|deed| Step { cpu: 0, deed });
    let age = |turn: u64| Action::Age {
        hva: HVA + turn % 32 * 2 * MIB,
        bytes: 16 * MIB,
        clear: turn.is_multiple_of(2),
    };
    let looks = (0..3_000).map(|turn: u64| Step {
        cpu: u8::try_from(1 + turn % 3).expect("one of three"),
        deed: Deed::Act(age(turn)),
    });
    let script: Vec<Step> = lives.chain(looks).collect();
    let outcomes = explore_script(&plan, &script, 20);
    // A new slot is mapped anew: each was really deleted.
    let faults = outcomes.iter().map(|outcome| outcome.report.faults.ram);
    assert!(faults.clone().all(|faults| faults >= 200));
}

/// One CPU replaces a slot by one over other memory, read-only and writable in turn; the others
/// read and write its first pages all the time.
fn replacing(pages: u64) -> Vec<Step> {
    let shown = |turn: u64| Slot {
        hva: HVA + turn % 2 * 64 * KIB,
        read_only: turn.is_multiple_of(2),
        on_fault: true,
        ..slot(1, GPA, 64 * KIB, HVA)
    };
    let replace = |turn| Step {
        cpu: 4,
        deed: Deed::Act(Action::Create { slot: shown(turn) }),
    };
    let access = |turn: u64, cpu: u8| Step {
        cpu,
        deed: Deed::Access(
            GPA + turn % pages * 4 * KIB,
            if (turn / pages).is_multiple_of(2) {
                AccessKind::Read
            } else {
                AccessKind::Write
            },
        ),
    };
    let accesses = (0..400).flat_map(|turn| (0..4).map(move |cpu| access(turn, cpu)));
    (0..40).map(replace).chain(accesses).collect()
}

#[test]
fn a_fault_in_a_new_slot_meets_what_the_old_one_had_mapped() {
    let plan = ram(128 * KIB);
    for pages in [1, 4] {
        let outcomes = explore_script(&plan, &replacing(pages), 20);
        let mut faults = outcomes.iter().map(|outcome| &outcome.report.faults);
        assert!(faults.any(|faults| faults.retried > 0));
    }
}

#[test]
fn writes_to_a_read_only_slot_and_a_read_only_mapping_never_arrive() {
    let image: Arc<[u8]> = vec![0x5a; 64 << 10].into();
    let mut plan = ram(2 * MIB);
    plan.slots[0].read_only = true;
    let mut rom = mapping(HVA + 4 * MIB, 64 * KIB, Backing::Image(image));
    rom.writable = false;
    plan.mappings.push(rom);
    plan.slots
        .push(slot(2, GPA + 2 * MIB, 64 * KIB, HVA + 4 * MIB));
    plan.slots[1].read_only = true;
    plan.churn.migrate = 1;
    let outcomes = explore(&plan);
    let mut exits = outcomes.iter().flat_map(|outcome| &outcome.report.exits);
    assert!(exits.any(|(name, count)| name == "write to a read-only slot" && *count > 0));
}

#[test]
fn ranges_that_are_aligned_to_pages_only_are_served_and_taken_away() {
    let mut plan = nothing();
    let (bytes, hva, gpa) = (5 * MIB + 12 * KIB, HVA + 4 * KIB, GPA + 20 * KIB);
    plan.mappings = vec![mapping(hva, bytes, Backing::Anonymous)];
    plan.slots = vec![slot(1, gpa, bytes, hva)];
    plan.churn = Churn {
        migrate: 1,
        discard: 1,
        protect: 1,
        remap: 1,
        populate: 1,
        ..Churn::default()
    };
    assert!(times(&explore(&plan), "discard") > 0);
}

#[test]
fn memory_that_runs_out_is_given_back_whole() {
    let mut plan = ram(32 * MIB);
    plan.ram = 8 * MIB;
    plan.churn = Churn {
        discard: 2,
        migrate: 1,
        populate: 1,
        ..Churn::default()
    };
    explore(&plan);
}

fn ageing(features: Features) -> Plan {
    let mut plan = ram(4 * MIB);
    plan.features = features;
    plan.churn = Churn {
        age: 4,
        migrate: 1,
        protect: 1,
        ..Churn::default()
    };
    plan
}

#[test]
fn ageing_works_where_the_access_flag_faults() {
    let features = nothing().features;
    let outcomes = explore(&ageing(features));
    assert!(times(&outcomes, "age") > 0);
    // An aged page faults when it is used again.
    let mut faults = outcomes.iter().map(|outcome| &outcome.report.faults);
    assert!(faults.any(|faults| faults.permission > 0));
}

#[test]
fn ageing_works_where_the_hardware_sets_the_access_flag() {
    let features = Features {
        hardware_accessed: true,
        ..nothing().features
    };
    assert!(times(&explore(&ageing(features)), "age") > 0);
}

#[test]
fn ageing_and_protecting_work_where_the_hardware_keeps_dirty_bits() {
    let features = Features {
        hardware_accessed: true,
        hardware_dirty: true,
        ..nothing().features
    };
    assert!(times(&explore(&ageing(features)), "protect") > 0);
}

#[test]
fn what_was_written_at_boot_is_there_after_everything_moved() {
    let mut plan = ram(4 * MIB);
    plan.boot = (0..4)
        .map(|cpu| touch(cpu, GPA, MIB, AccessKind::Write))
        .collect();
    plan.churn = Churn {
        migrate: 4,
        split: 1,
        ..Churn::default()
    };
    assert!(times(&explore(&plan), "migrate") > 0);
}
