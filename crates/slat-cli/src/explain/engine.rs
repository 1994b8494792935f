//! What the engine does with a layout, found by having it do it.
//!
//! [`examine`] makes the layout's mappings on a host whose memory is on paper ([`host`]), its slots
//! on real tables of the layout's format, and touches everything. So block sizes, tables, faults
//! and flushes are not predicted but counted. Two passes are made. The first is the guest's life:
//! slots are created over what is resident, every page that is not mapped then is touched, and in
//! the end the host takes all of it away. Before that end, a second pass creates the slots again
//! over what is now all there; the engine then says of every part why its blocks are not larger.

use std::sync::Arc;

use slat::region::Mapping as When;
use slat::report::{Backing as Behind, Part, Reason, RegionReport};
use slat::table::address::{Gpa, GpaRange, Hva};
use slat::table::attributes::Access;
use slat::table::geometry::Level;
use slat::table::table::NewTableError;
use slat::vcpu::{Fault, Outcome};
use slat::{Config, GuestMemory, Region, SlotId};
use slat_machine::modelled::Modelled;
use slat_mm::interpose::Interposed;
use slat_report::{Blocks, Flushes};

use super::error::ExamineError;
use super::estimate::table_pages;
use super::host::{Space, host, mapped_range};
use super::platform::{Counting, Counts};
use super::zones::Zones;
use crate::layout::{Layout, Mapping, Slot};

/// What became of a layout.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// One for each slot, in the layout's order.
    pub(crate) slots: Vec<SlotFacts>,
    /// Bytes of all tables, the root's included.
    pub(crate) table_bytes: u64,
    /// TLB maintenance while everything was mapped.
    pub(crate) flushes: Flushes,
    /// TLB maintenance when the host took every mapping away, one after the other.
    pub(crate) removal_flushes: Flushes,
}

/// What became of a slot.
#[derive(Debug, Clone)]
pub(crate) struct SlotFacts {
    pub(crate) parts: Vec<PartFacts>,
    /// Bytes of tables that it needs below the root, if it had no neighbours to share them with.
    pub(crate) table_bytes: u64,
}

/// What became of a part of a slot behind which one mapping lies, or none.
#[derive(Debug, Clone)]
pub(crate) struct PartFacts {
    pub(crate) gpa: u64,
    pub(crate) hva: u64,
    pub(crate) bytes: u64,
    /// The index of the mapping behind it.
    pub(crate) mapping: Option<usize>,
    pub(crate) at_creation: Blocks,
    pub(crate) on_fault: Blocks,
    /// Faults that mapped those.
    pub(crate) faults: u64,
    /// Faults that would map everything: a run, like a leaf alone, takes one.
    pub(crate) faults_for_all: u64,
    /// Leaves that lie in runs which hardware may keep as one translation.
    pub(crate) in_runs: u64,
    /// Why not mapped at creation, with the bytes concerned.
    pub(crate) unmapped: Vec<(Reason, u64)>,
    /// Why not in larger blocks, with the bytes concerned.
    pub(crate) limited: Vec<(Reason, u64)>,
}

impl PartFacts {
    /// Leaves once everything is mapped.
    pub(crate) fn entries(&self) -> u64 {
        self.at_creation.count() + self.on_fault.count()
    }
}

impl SlotFacts {
    /// Leaves once everything is mapped.
    pub(crate) fn entries(&self) -> u64 {
        self.parts.iter().map(PartFacts::entries).sum()
    }
}

type Memory<F> = GuestMemory<F, Interposed<Space, Zones>, Counting<F>>;

/// What becomes of `layout`.
pub(crate) fn examine(layout: &Layout) -> Result<Facts, ExamineError> {
    (layout.format.examine)(layout)
}

/// What becomes of `layout` with tables of the format `F` on hardware with `features`.
pub(crate) fn examine_as<F: Modelled>(
    layout: &Layout,
    features: F::Features,
) -> Result<Facts, ExamineError> {
    if !layout.is_sound() {
        return Err(ExamineError::Unsound);
    }
    let geometry = layout.format.geometry(layout.address_bits);
    let geometry = geometry.map_err(NewTableError::from)?;
    let pages = table_pages(layout, &geometry)?;
    let space = host::<F>(layout, &geometry, &features)?;
    let zones = |warm| Zones::new(layout, warm);
    let cold = create::<F>(layout, &space, zones(false), pages, features)?;
    let mut facts = live(layout, &cold.memory, &cold.reports)?;
    facts.flushes = cold.counts.take();
    let warm = create::<F>(layout, &space, zones(true), pages, features)?.reports;
    explain_parts(&mut facts, &cold.reports, &warm);
    for range in layout.mappings.iter().filter_map(mapped_range) {
        space.unmap(range);
    }
    facts.removal_flushes = cold.counts.take();
    Ok(facts)
}

/// Adds why not more was mapped at creation, and why not larger.
fn explain_parts(facts: &mut Facts, reports: &[RegionReport], warm: &[RegionReport]) {
    for ((slot, cold), warm) in facts.slots.iter_mut().zip(reports).zip(warm) {
        let parts = slot.parts.iter_mut().zip(cold.parts()).zip(warm.parts());
        for ((facts, cold), warm) in parts {
            facts.unmapped = reasons(cold, true);
            // Of what no fault maps either, the second pass says why.
            if facts.entries() == 0 && facts.unmapped.is_empty() {
                facts.unmapped = reasons(warm, true);
            }
            facts.limited = reasons(warm, false);
        }
    }
}

fn reasons(part: &Part, unmapped: bool) -> Vec<(Reason, u64)> {
    let all = part.reasons().iter().copied();
    all.filter(|(reason, _)| reason.is_unmapped() == unmapped)
        .collect()
}

/// Guest memory with a layout's slots.
struct Created<F: Modelled> {
    memory: Arc<Memory<F>>,
    /// What its tables cost in flushes.
    counts: Arc<Counts>,
    /// What became of the slots at creation.
    reports: Vec<RegionReport>,
}

/// Guest memory over `space` with the layout's slots.
fn create<F: Modelled>(
    layout: &Layout,
    space: &Space,
    zones: Zones,
    pages: usize,
    features: F::Features,
) -> Result<Created<F>, ExamineError> {
    let config = Config::new()
        .address_bits(layout.address_bits)
        .slot_ids(u32::MAX)
        .slot_pages(u64::MAX)
        .write_check(slat::config::WriteCheck::Lenient);
    let warm = zones.is_warm();
    let host = Interposed::new(space.clone(), Arc::new(zones));
    let (platform, counts) = Counting::<F>::new(features, pages);
    let memory = Memory::<F>::new(host, platform, features, config)?;
    let mut transaction = memory.transaction();
    for slot in &layout.slots {
        let (id, gpa, hva) = (SlotId(slot.id), Gpa::new(slot.gpa), Hva::new(slot.hva));
        let mut region = Region::new(id, gpa, slot.bytes, hva);
        if slot.read_only {
            region = region.read_only();
        }
        if slot.on_fault && !warm {
            region = region.mapping(When::OnFault);
        }
        transaction = transaction.create(region);
    }
    let reports = transaction.commit()?;
    Ok(Created {
        memory,
        counts,
        reports,
    })
}

/// The guest's life: it touches everything that is not mapped yet.
fn live<F: Modelled>(
    layout: &Layout,
    memory: &Memory<F>,
    reports: &[RegionReport],
) -> Result<Facts, ExamineError> {
    let mut slots = Vec::new();
    for (slot, report) in layout.slots.iter().zip(reports) {
        let parts = report.parts().iter();
        let parts: Result<Vec<_>, _> = parts
            .map(|part| touch(layout, memory, slot, part))
            .collect();
        slots.push(SlotFacts {
            parts: parts?,
            table_bytes: tables_of(memory, report),
        });
    }
    Ok(Facts {
        slots,
        table_bytes: memory.stats().table_bytes,
        flushes: Flushes::default(),
        removal_flushes: Flushes::default(),
    })
}

/// Touches every page of a part that is not mapped.
fn touch<F: Modelled>(
    layout: &Layout,
    memory: &Memory<F>,
    slot: &Slot,
    part: &Part,
) -> Result<PartFacts, ExamineError> {
    let range = part.range();
    let mut vcpu = memory.vcpu();
    let mut faults = 0;
    if let Behind::Vma(_) = part.backing() {
        for gap in unmapped_in(memory, &range) {
            let mut at = gap.start();
            while at < gap.end() {
                let access = Access::Read;
                let outcome = vcpu.fault(Fault { gpa: at, access });
                let why = match outcome {
                    Ok(Outcome::Mapped { range, .. }) => {
                        faults += 1;
                        at = range.end();
                        continue;
                    }
                    Ok(other) => format!("{other:?}"),
                    Err(error) => error.to_string(),
                };
                return Err(ExamineError::Touch {
                    slot: slot.name.clone(),
                    gpa: at,
                    why,
                });
            }
        }
    }
    let (faults_for_all, in_runs) = units(memory, &range);
    let geometry = memory.table().geometry();
    let hva = part.hva().start().raw();
    let behind = |mapping: &Mapping| mapping.range().contains(&hva);
    Ok(PartFacts {
        gpa: range.start().raw(),
        hva,
        bytes: range.bytes(),
        mapping: layout.mappings.iter().position(behind),
        at_creation: geometry.by_size(*part.leaves()).collect(),
        on_fault: geometry.by_size(vcpu.stats().leaves).collect(),
        faults,
        faults_for_all,
        in_runs,
        unmapped: Vec::new(),
        limited: Vec::new(),
    })
}

/// What of `range` the tables do not map.
fn unmapped_in<F: Modelled>(memory: &Memory<F>, range: &GpaRange) -> Vec<GpaRange> {
    let mut gaps = Vec::new();
    let mut from = range.start();
    memory.table().for_each_leaf(range, |leaf, _| {
        gaps.extend(GpaRange::between(from, leaf.start()));
        from = leaf.end();
    });
    gaps.extend(GpaRange::between(from, range.end()));
    gaps
}

/// How many leaves `range` has if a run counts as one, and how many lie in runs.
fn units<F: Modelled>(memory: &Memory<F>, range: &GpaRange) -> (u64, u64) {
    let table = memory.table();
    let (mut units, mut in_runs) = (0, 0);
    table.for_each_leaf(range, |leaf, level| {
        units += 1;
        let alone = table.geometry().entry_bytes(level);
        if leaf.bytes() > alone {
            in_runs += leaf.bytes() / alone;
        }
    });
    (units, in_runs)
}

/// Bytes of the tables below the root that a slot's leaves need.
fn tables_of<F: Modelled>(memory: &Memory<F>, report: &RegionReport) -> u64 {
    let table = memory.table();
    let mut runs: Vec<(GpaRange, Level)> = Vec::new();
    table.for_each_leaf(&report.range(), |range, level| match runs.last_mut() {
        Some((run, same)) if *same == level && run.end() == range.start() => {
            *run = run.hull(&range);
        }
        _ => runs.push((range, level)),
    });
    let geometry = table.geometry();
    geometry.minimum_table_bytes(&runs) - geometry.minimum_table_bytes(&[])
}
