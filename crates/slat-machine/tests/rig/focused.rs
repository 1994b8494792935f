//! Scenarios for what random plans seldom meet, each explored with several schedules on every
//! format.

use std::sync::Arc;

use slat_machine::event::AccessKind;
use slat_machine::rig::action::Action;
use slat_machine::rig::plan::{Backing, Churn, Features, Plan, Slot};
use slat_machine::rig::script::{Deed, Step};
use slat_report::Region;
use slat_table::address::PAGE_SIZE;

use crate::scenario::{DEVICE, FEATURES, FRAME, GIB, GPA, HVA, MIB, On, mapping, slot, times};

fn a_large_block_is_split_by_an_invalidation_of_a_part(on: &On) {
    let Some(block) = on.block().filter(|_| on.has_devices()) else {
        return;
    };
    let mut plan = on.device(block);
    plan.churn.protect = 1;
    let outcomes = on.explore(&plan);
    on.expect(times(&outcomes, "protect") > 0);
    let regions = outcomes.iter().map(|outcome| &outcome.report.regions[0]);
    assert!(
        regions
            .clone()
            .all(|region| region.mapped_at_creation == block)
    );
    on.expect(regions.clone().any(|region| region.blocks.of(block) == 0));
}

fn a_split_keeps_the_memory_type_of_a_device(on: &On) {
    if !on.has_devices() {
        return;
    }
    let mut plan = on.device(2 * on.block().unwrap_or(FRAME).min(64 * MIB));
    plan.churn.split = 1;
    plan.churn.protect = 1;
    let outcomes = on.explore(&plan);
    on.expect(times(&outcomes, "split") > 0);
    let regions = outcomes.iter().map(|outcome| &outcome.report.regions[0]);
    on.expect(regions.clone().any(|region| region.blocks.of(on.page) > 0));
}

fn a_block_at_the_slots_edge_is_not_mapped_beyond_it(on: &On) {
    // The host has two frames; the slot ends in the middle of what a leaf of the second could map.
    let leaf = on.leaf_of_ram();
    let first = FRAME + (leaf / 2).max(on.page);
    let mut plan = on.ram(2 * FRAME);
    plan.slots = vec![
        slot(1, GPA, first, HVA),
        slot(2, GPA + first, 2 * FRAME - first, HVA + first),
    ];
    plan.churn = Churn {
        migrate: 2,
        discard: 1,
        populate: 1,
        ..Churn::default()
    };
    let outcomes = on.explore(&plan);
    on.expect(times(&outcomes, "migrate") > 0);
    let regions = outcomes.iter().map(|outcome| &outcome.report.regions[0]);
    let most = first / leaf;
    let entry = on.entry_of(leaf);
    let mapped = |region: &Region| region.blocks.of(entry) * entry / leaf;
    on.expect(regions.clone().any(|region| mapped(region) > 0));
    assert!(regions.clone().all(|region| mapped(region) <= most));
}

fn two_slots_in_one_span_do_not_disturb_each_other(on: &On) {
    let mut plan = on.ram(FRAME);
    plan.slots = vec![
        slot(1, GPA, on.few, HVA),
        slot(2, GPA + on.few, on.few, HVA + MIB),
        slot(3, GPA + 2 * on.few, on.few, HVA + on.few),
    ];
    plan.slots[1].replaceable = true;
    plan.churn = Churn {
        slots: 2,
        discard: 1,
        ..Churn::default()
    };
    on.expect(times(&on.explore(&plan), "slots") > 0);
}

fn a_leaf_over_several_stripes_is_taken_away_while_it_is_made(on: &On) {
    // Mapped on fault, so that faults make the leaf again and again.
    let Some(block) = on.wide_block().filter(|_| on.has_devices()) else {
        return;
    };
    let mut plan = on.device(block);
    plan.slots[0].on_fault = true;
    plan.churn.remap = 1;
    let outcomes = on.explore(&plan);
    on.expect(times(&outcomes, "remap") > 0);
    let faults = outcomes.iter().map(|outcome| &outcome.report.faults);
    on.expect(faults.clone().any(|faults| faults.by_size.of(block) > 0));
}

fn a_device_is_revoked_while_the_guest_faults_on_it(on: &On) {
    if !on.has_devices() {
        return;
    }
    let mut plan = on.nothing();
    plan.mappings = vec![mapping(HVA, FRAME, Backing::Revocable { hpa: DEVICE })];
    plan.slots = vec![slot(1, GPA, FRAME, HVA)];
    plan.churn.revoke = 1;
    let outcomes = on.explore(&plan);
    on.expect(times(&outcomes, "revoke") > 0);
    let denied = |name: &str| name == "denied by the host";
    let mut exits = outcomes.iter().flat_map(|outcome| &outcome.report.exits);
    on.expect(exits.any(|(name, count)| denied(name) && *count > 0));
}

fn permission_lost_and_gained_again_reaches_the_guest(on: &On) {
    let mut plan = on.ram(FRAME);
    plan.churn.protect = 1;
    let outcomes = on.explore(&plan);
    on.expect(times(&outcomes, "protect") > 0);
    let mut faults = outcomes.iter().map(|outcome| &outcome.report.faults);
    on.expect(faults.any(|faults| faults.permission > 0));
}

fn a_slot_replaced_by_one_over_other_memory_shows_that(on: &On) {
    let mut plan = on.ram(4 * FRAME);
    plan.slots = vec![slot(1, GPA, FRAME, HVA)];
    plan.slots[0].replaceable = true;
    plan.churn = Churn {
        slots: 4,
        migrate: 1,
        ..Churn::default()
    };
    on.expect(times(&on.explore(&plan), "slots") > 0);
}

fn a_slot_is_deleted_while_a_fault_makes_its_tables_ready(on: &On) {
    // Between looking at the slots and asking the host, a fault does nothing but replace a table
    // that the fault before it has used. A slot of just one table, mapped in pages, has that table
    // made anew after each deletion; a device beside it keeps the table above, so that a deletion is
    // short enough to happen meanwhile.
    let mut plan = on.nothing();
    (plan.guest_cpus, plan.host_cpus) = (2, 1);
    let (gpa, hva) = (GPA + FRAME, HVA + FRAME + on.page);
    // Where pages are larger than the host's small frames, the large ones that the slot lies in.
    let memory = if on.page == PAGE_SIZE {
        mapping(hva, FRAME, Backing::Anonymous)
    } else {
        mapping(HVA + FRAME, 2 * FRAME, Backing::Anonymous)
    };
    let beside = if on.has_devices() {
        mapping(HVA, on.page, Backing::Device { hpa: DEVICE })
    } else {
        mapping(HVA, on.page, Backing::Anonymous)
    };
    let whole = Slot {
        on_fault: true,
        ..slot(2, gpa, FRAME, hva)
    };
    plan.mappings = vec![beside, memory];
    plan.slots = vec![slot(1, GPA, on.page, HVA), whole.clone()];
    let read = |turn: u64| Deed::Access(gpa + turn % 7 * on.page, AccessKind::Read);
    let lives = (0..on.rounds(400)).flat_map(|_| {
        let slot = whole.clone();
        let create = [Deed::Act(Action::Create { slot })];
        let delete = [Deed::Act(Action::Delete { slot: 2 })];
        // For a while the slot stays, and the guest uses it.
        let rest = (0..20).map(|_| Deed::Access(GPA, AccessKind::Read));
        create.into_iter().chain(rest).chain(delete)
    });
    let host = lives.map(|deed| Step { cpu: 2, deed });
    let guest = (0..on.rounds(12_000)).map(|turn| Step {
        cpu: u8::from(turn % 2 == 0),
        deed: read(turn),
    });
    let script: Vec<Step> = host.chain(guest).collect();
    let outcomes = on.explore_script(&plan, &script, 100);
    let mut exits = outcomes.iter().flat_map(|outcome| &outcome.report.exits);
    on.expect(exits.any(|(name, count)| name == "no slot" && *count > 0));
}

fn a_slot_is_deleted_while_others_look_at_what_its_table_maps(on: &On) {
    // A deletion cuts off the one table below the root that maps all of the slot. Whoever asks which
    // pages were used holds another stripe of the same table between two loads.
    let mut plan = on.nothing();
    (plan.guest_cpus, plan.host_cpus) = (1, 3);
    let whole = Slot {
        on_fault: true,
        ..slot(1, GPA, GIB, HVA)
    };
    plan.mappings = vec![mapping(HVA, GIB, Backing::Anonymous)];
    plan.slots = vec![whole.clone()];
    let rounds = on.rounds(200);
    let lives = (0..rounds).flat_map(|turn| {
        let gpa = GPA + turn % 5 * FRAME;
        let slot = whole.clone();
        [
            Deed::Access(gpa, AccessKind::Write),
            Deed::Act(Action::Delete { slot: 1 }),
            Deed::Act(Action::Create { slot }),
        ]
    });
    let lives = lives.map(|deed| Step { cpu: 0, deed });
    let age = |turn: u64| Action::Age {
        hva: HVA + turn % 32 * FRAME,
        bytes: 16 * MIB,
        clear: turn.is_multiple_of(2),
    };
    let looks = (0..15 * rounds).map(|turn: u64| Step {
        cpu: u8::try_from(1 + turn % 3).expect("one of three"),
        deed: Deed::Act(age(turn)),
    });
    let script: Vec<Step> = lives.chain(looks).collect();
    let outcomes = on.explore_script(&plan, &script, 20);
    // A new slot is mapped anew: each was really deleted.
    let faults = outcomes.iter().map(|outcome| outcome.report.faults.ram);
    assert!(faults.clone().all(|faults| faults >= rounds));
}

/// One CPU replaces a slot by one over other memory, read-only and writable in turn; the others
/// read and write its first pages all the time.
fn replacing(on: &On, pages: u64) -> Vec<Step> {
    let shown = |turn: u64| Slot {
        hva: HVA + turn % 2 * on.few,
        read_only: turn.is_multiple_of(2),
        on_fault: true,
        ..slot(1, GPA, on.few, HVA)
    };
    let replace = |turn| Step {
        cpu: 4,
        deed: Deed::Act(Action::Create { slot: shown(turn) }),
    };
    let access = |turn: u64, cpu: u8| Step {
        cpu,
        deed: Deed::Access(
            GPA + turn % pages * on.page,
            if (turn / pages).is_multiple_of(2) {
                AccessKind::Read
            } else {
                AccessKind::Write
            },
        ),
    };
    let accesses = (0..on.rounds(400)).flat_map(|turn| (0..4).map(move |cpu| access(turn, cpu)));
    (0..on.rounds(400) / 10)
        .map(replace)
        .chain(accesses)
        .collect()
}

fn a_fault_in_a_new_slot_meets_what_the_old_one_had_mapped(on: &On) {
    let plan = on.ram(on.frames(2 * on.few));
    for pages in [1, 4] {
        let outcomes = on.explore_script(&plan, &replacing(on, pages), 20);
        let mut faults = outcomes.iter().map(|outcome| &outcome.report.faults);
        on.expect(faults.any(|faults| faults.retried > 0));
    }
}

fn writes_to_a_read_only_slot_and_a_read_only_mapping_never_arrive(on: &On) {
    let mut plan = on.ram(FRAME);
    plan.slots[0].read_only = true;
    // An image's frames are of 4 KiB.
    if on.page == PAGE_SIZE {
        let image: Arc<[u8]> = vec![0x5a; 64 << 10].into();
        let (bytes, hva) = (64 << 10, HVA + 2 * FRAME);
        let mut rom = mapping(hva, bytes, Backing::Image(image));
        rom.writable = false;
        plan.mappings.push(rom);
        plan.slots.push(slot(2, GPA + FRAME, bytes, hva));
        plan.slots[1].read_only = true;
    }
    plan.churn.migrate = 1;
    let outcomes = on.explore(&plan);
    let mut exits = outcomes.iter().flat_map(|outcome| &outcome.report.exits);
    on.expect(exits.any(|(name, count)| name == "write to a read-only slot" && *count > 0));
}

fn ranges_that_are_aligned_to_pages_only_are_served_and_taken_away(on: &On) {
    let mut plan = on.nothing();
    let (bytes, hva, gpa) = (5 * MIB + 3 * on.page, HVA + on.page, GPA + 5 * on.page);
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
    on.expect(times(&on.explore(&plan), "discard") > 0);
}

fn memory_that_runs_out_is_given_back_whole(on: &On) {
    let mut plan = on.ram(32 * MIB);
    plan.ram = 8 * MIB;
    plan.churn = Churn {
        discard: 2,
        migrate: 1,
        populate: 1,
        ..Churn::default()
    };
    on.explore(&plan);
}

fn ageing(on: &On, features: Features) -> Plan {
    let mut plan = on.ram(2 * FRAME);
    plan.features = features;
    plan.churn = Churn {
        age: 4,
        migrate: 1,
        protect: 1,
        ..Churn::default()
    };
    plan
}

fn ageing_works_where_the_access_flag_faults(on: &On) {
    let features = FEATURES;
    let outcomes = on.explore(&ageing(on, features));
    on.expect(times(&outcomes, "age") > 0);
    // An aged page faults when it is used again.
    let mut faults = outcomes.iter().map(|outcome| &outcome.report.faults);
    on.expect(faults.any(|faults| faults.permission > 0));
}

fn ageing_works_where_the_hardware_sets_the_access_flag(on: &On) {
    let features = Features {
        hardware_accessed: true,
        ..FEATURES
    };
    on.expect(times(&on.explore(&ageing(on, features)), "age") > 0);
}

fn ageing_and_protecting_work_where_the_hardware_keeps_dirty_bits(on: &On) {
    let features = Features {
        hardware_accessed: true,
        hardware_dirty: true,
        ..FEATURES
    };
    on.expect(times(&on.explore(&ageing(on, features)), "protect") > 0);
}

fn what_was_written_at_boot_is_there_after_everything_moved(on: &On) {
    let mut plan = on.ram(2 * FRAME);
    plan.boot = (0..4)
        .map(|cpu| on.touch(cpu, GPA, MIB, AccessKind::Write))
        .collect();
    plan.churn = Churn {
        migrate: 4,
        split: 1,
        ..Churn::default()
    };
    on.expect(times(&on.explore(&plan), "migrate") > 0);
}

crate::scenario::for_every_format! {
    a_large_block_is_split_by_an_invalidation_of_a_part,
    a_split_keeps_the_memory_type_of_a_device,
    a_block_at_the_slots_edge_is_not_mapped_beyond_it,
    two_slots_in_one_span_do_not_disturb_each_other,
    a_leaf_over_several_stripes_is_taken_away_while_it_is_made,
    a_device_is_revoked_while_the_guest_faults_on_it,
    permission_lost_and_gained_again_reaches_the_guest,
    a_slot_replaced_by_one_over_other_memory_shows_that,
    a_slot_is_deleted_while_a_fault_makes_its_tables_ready,
    a_slot_is_deleted_while_others_look_at_what_its_table_maps,
    a_fault_in_a_new_slot_meets_what_the_old_one_had_mapped,
    writes_to_a_read_only_slot_and_a_read_only_mapping_never_arrive,
    ranges_that_are_aligned_to_pages_only_are_served_and_taken_away,
    memory_that_runs_out_is_given_back_whole,
    ageing_works_where_the_access_flag_faults,
    ageing_works_where_the_hardware_sets_the_access_flag,
    ageing_and_protecting_work_where_the_hardware_keeps_dirty_bits,
    what_was_written_at_boot_is_there_after_everything_moved,
}
