//! The memory report of a run, in the form that a real boot gives it.

use core::sync::atomic::Ordering::Relaxed;
use std::collections::BTreeMap;

use slat::report::{Part, RegionReport};
use slat::stats::FaultStats;
use slat_report::{
    Blocks, Faults, Flushes, Kind, Mapped, Model, Notifiers, Outcome, Region, Report, Tables, Times,
};
use slat_table::address::{Gpa, GpaRange, PAGE_SIZE};
use slat_table::geometry::Geometry;

use super::plan::{Backing, Churn, Plan, Slot};
use super::setup::Rig;
use crate::lock::brief;
use crate::modelled::Modelled;

/// The report of a run whose tasks are done and of which nothing was taken apart yet.
pub(crate) fn of_rig<F: Modelled>(rig: &Rig<F>, seed: u64) -> Report {
    let counts = brief(&rig.counts);
    let stats = rig.memory.stats();
    let geometry = rig.memory.table().geometry();
    let faults = counts
        .faults
        .iter()
        .fold(Faults::default(), |sum, stats| add(sum, stats, geometry));
    let sum = |count: fn(&FaultStats) -> u64| counts.faults.iter().map(count).sum();
    let exits: [(&str, u64); 4] = [
        ("fault", sum(FaultStats::total)),
        ("no slot", sum(|stats| stats.mmio)),
        ("write to a read-only slot", sum(|stats| stats.read_only)),
        ("denied by the host", sum(|stats| stats.denied)),
    ];
    let exits = exits.iter().filter(|(_, count)| *count != 0);
    Report {
        regions: rig
            .plan
            .slots
            .iter()
            .map(|slot| region(rig, slot))
            .collect(),
        faults,
        exits: exits.map(|(name, n)| ((*name).into(), *n)).collect(),
        tables: Tables {
            pages: stats.table_bytes / PAGE_SIZE,
            bytes: stats.table_bytes,
            minimum_bytes: rig.memory.minimum_table_bytes(),
        },
        flushes: rig.memory.table().platform().flushes(),
        notifiers: Notifiers {
            invalidations: stats.invalidations,
            hits: stats.invalidations_hit,
        },
        churn: (rig.plan.churn != Churn::default()).then(|| counts.churn.clone()),
        model: Some(Model {
            steps: rig.machine.steps(),
            accesses: rig.accesses.load(Relaxed),
            ..model(&rig.plan, seed)
        }),
        ..of_plan(&rig.plan, seed)
    }
}

/// Fills in what was free before there was anything, and what is after everything was taken apart.
pub(crate) fn count_frames(report: &mut Report, bytes_before: u64, bytes_after: u64) {
    if let Some(churn) = &mut report.churn {
        churn.frames_before = bytes_before / PAGE_SIZE;
        churn.frames_after = bytes_after / PAGE_SIZE;
    }
}

/// The report of a run that could not be looked at.
pub(crate) fn of_plan(plan: &Plan, seed: u64) -> Report {
    let ram = plan
        .slots
        .iter()
        .filter(|slot| kind(plan, slot) == Kind::Ram);
    Report {
        guest_memory: ram.map(|slot| slot.bytes).sum(),
        seed: Some(seed),
        mmio: Mapped::Create,
        ram: Mapped::Fault,
        outcome: Outcome::Off,
        regions: Vec::new(),
        faults: Faults::default(),
        exits: BTreeMap::new(),
        tables: Tables::default(),
        flushes: Flushes::default(),
        notifiers: Notifiers::default(),
        times: Times::default(),
        churn: None,
        model: Some(model(plan, seed)),
    }
}

fn model(plan: &Plan, seed: u64) -> Model {
    Model {
        seed,
        guest_cpus: plan.guest_cpus,
        host_cpus: plan.host_cpus,
        ..Model::default()
    }
}

fn add(sum: Faults, stats: &FaultStats, geometry: &Geometry) -> Faults {
    let mut by_size = sum.by_size;
    by_size.add_all(&geometry.by_size(stats.leaves).collect());
    Faults {
        ram: sum.ram + stats.ram,
        mmio: sum.mmio + stats.pfnmap,
        permission: sum.permission + stats.extended,
        access_flag: 0,
        spurious: sum.spurious + stats.spurious,
        retried: sum.retried + stats.retried,
        injected: sum.injected + stats.mmio,
        populated_by_loader: 0,
        by_size,
    }
}

fn region<F: Modelled>(rig: &Rig<F>, planned: &Slot) -> Region {
    let slot = rig.slots.get(planned.id);
    let slot = slot.as_ref().unwrap_or(planned);
    let (faults, report) = rig.slots.summary(slot.id);
    let range = GpaRange::new(Gpa::new(slot.gpa), slot.bytes);
    let mut blocks = Blocks::default();
    if let Ok(range) = range {
        let table = rig.memory.table();
        table.for_each_leaf(&range, |leaf, _| blocks.add(leaf.bytes(), 1));
    }
    let first = rig.memory.translate(Gpa::new(slot.gpa));
    Region {
        name: slot.name.clone(),
        kind: kind(&rig.plan, slot),
        gpa: slot.gpa,
        hpa: first.map(|translation| translation.hpa.raw()),
        size: slot.bytes,
        mapped: if planned.on_fault {
            Mapped::Fault
        } else {
            Mapped::Create
        },
        mapped_at_creation: report.as_ref().map_or(0, RegionReport::mapped_bytes),
        mapped_bytes: blocks.bytes(),
        blocks,
        why_not_larger: report.as_ref().map(reasons).unwrap_or_default(),
        faults,
    }
}

fn reasons(report: &RegionReport) -> Vec<String> {
    let parts = report.parts().iter();
    parts
        .flat_map(Part::reasons)
        .map(|(reason, bytes)| format!("{reason} ({bytes} bytes)"))
        .collect()
}

/// What is behind a slot's first byte, or behind the first of it that is mapped.
fn kind(plan: &Plan, slot: &Slot) -> Kind {
    let end = slot.hva + slot.bytes;
    let overlaps = |hva: u64, bytes: u64| hva < end && slot.hva < hva + bytes;
    let mut behind: Vec<_> = plan
        .mappings
        .iter()
        .filter(|mapping| overlaps(mapping.hva, mapping.bytes))
        .collect();
    behind.sort_by_key(|mapping| mapping.hva);
    match behind.first().map(|mapping| &mapping.backing) {
        None => Kind::Hole,
        Some(Backing::Image(_)) if slot.read_only => Kind::Rom,
        Some(Backing::Anonymous | Backing::Image(_)) => Kind::Ram,
        Some(Backing::Device { .. }) => Kind::Device,
        Some(Backing::Revocable { .. }) => Kind::Revocable,
    }
}
