//! What the engine does with a layout, found by having it do it.
//!
//! [`examine`] makes the layout's mappings on a host whose memory is on paper ([`Ground`]), its slots
//! on real tables of the layout's format, and touches everything. So block sizes, tables, faults
//! and flushes are not predicted but counted. Two passes are made. The first is the guest's life:
//! slots are created over what is resident, every page that is not mapped then is touched, and in
//! the end the host takes all of it away. Before that end, a second pass creates the slots again
//! over what is now all there; the engine then says of every part why its blocks are not larger.

use std::sync::Arc;

use slat::host::Host as _;
use slat::region::Mapping as When;
use slat::report::{Backing as Behind, Part, Reason, RegionReport};
use slat::table::address::{Gpa, GpaRange, Hpa, HpaRange, Hva, HvaRange};
use slat::table::attributes::Access;
use slat::table::geometry::{Geometry, Level};
use slat::table::lock::StdLocks;
use slat::table::table::NewTableError;
use slat::transaction::TransactionError;
use slat::vcpu::{Fault, Outcome};
use slat::{Config, GuestMemory, Region, SlotId};
use slat_machine::modelled::Modelled;
use slat_mm::interpose::Interposed;
use slat_mm::{AddressSpace, Backing, DriverDevice, MapError, Protection};
use slat_report::size::Size;
use slat_report::{Blocks, Flushes};

use super::paper::{Ground, NoFrames};
use super::platform::{Counting, Counts};
use super::zones::{Zones, hva_range, largest_block};
use crate::format::device_memory;
use crate::layout::{Kind, Layout, Mapping, Resident, Slot};

/// The most leaves that are made: 8 Mi, whose tables take 64 MiB.
const MOST_LEAVES: u64 = 8 << 20;

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

/// Why a layout could not be examined.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ExamineError {
    /// Its ranges are not sound: see [`Layout::is_sound`].
    #[error("the layout's ranges are not sound: not pages, out of bounds, or overlapping")]
    Unsound,
    /// It would take more leaves than are made.
    #[error(
        "slot `{slot}` would take about {leaves} entries of {block}, with the others more than the \
         {most} that are examined"
    )]
    TooManyLeaves {
        /// The slot's index in the layout.
        index: usize,
        /// The slot's name.
        slot: String,
        /// About so many leaves.
        leaves: u64,
        /// The size of most of them.
        block: Size,
        /// The most that are made.
        most: u64,
    },
    /// A mapping cannot be made.
    #[error("mapping `{name}`: {error}")]
    Map {
        /// The mapping's name.
        name: String,
        /// Why.
        error: MapError,
    },
    /// There is a device, of whose memory the format has no leaf.
    #[error(
        "mapping `{name}` is a device: `{format}` has no leaf that shows a device's memory and \
         holds against the guest"
    )]
    NoDevices {
        /// The mapping's index in the layout.
        index: usize,
        /// The mapping's name.
        name: String,
        /// The format.
        format: &'static str,
    },
    /// There is no room for a mapping's RAM in the host's physical addresses.
    #[error(
        "mapping `{name}`: {} of RAM do not fit beside the rest into the {bits} bits of a host \
         physical address that `{format}` has", Size(*.bytes)
    )]
    Room {
        /// The mapping's index in the layout.
        index: usize,
        /// The mapping's name.
        name: String,
        /// Its size.
        bytes: u64,
        /// Bits of a host physical address.
        bits: u8,
        /// The format.
        format: &'static str,
    },
    /// The guest cannot have the address width.
    #[error(transparent)]
    Table(#[from] NewTableError),
    /// The slots cannot be created.
    #[error("the slots cannot be created: {0}")]
    Slots(#[from] TransactionError),
    /// The model's memory ran out.
    #[error("slot `{slot}` at {gpa}: {why}")]
    Touch {
        /// The slot's name.
        slot: String,
        /// Where.
        gpa: Gpa,
        /// What the engine said.
        why: String,
    },
}

type Space = AddressSpace<NoFrames, StdLocks>;
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

/// What a slot will cost, at least about: no layout is examined that cannot be.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    leaves: u64,
    /// Pages of tables (4 KiB each), with room to spare.
    pages: u64,
    /// The smallest block that most of a mapping gets.
    block: u64,
}

/// Leaves that a block of the next size takes the place of, at most, in any format.
const MOST_IN_A_TABLE: u64 = 1 << 13;

fn estimate(layout: &Layout, geometry: &Geometry, slot: &Slot) -> Estimate {
    let page = layout.format.sizes().small();
    let mut sum = Estimate {
        leaves: 0,
        pages: 0,
        block: layout.format.sizes().largest(),
    };
    for mapping in &layout.mappings {
        let (ours, theirs) = (slot.hva_range(), mapping.range());
        let start = ours.start.max(theirs.start);
        let end = ours.end.min(theirs.end);
        if start >= end || mapping.kind == Kind::NoAccess {
            continue;
        }
        let (bytes, block) = (end - start, likely_block(layout, slot, mapping));
        sum.block = sum.block.min(block);
        // A block size down at either end; what is resident in small pages comes on top.
        sum.leaves += (bytes / block + 2 * MOST_IN_A_TABLE).min(bytes / page);
        sum.pages += pages_of_tables(geometry, bytes, block);
        if let Resident::Some { small, .. } = mapping.resident {
            sum.leaves += small.min(bytes) / page;
            sum.pages += pages_of_tables(geometry, small.min(bytes), page);
        }
    }
    sum
}

/// Pages of the tables that map `bytes` bytes in blocks, with some at either end.
fn pages_of_tables(geometry: &Geometry, bytes: u64, block: u64) -> u64 {
    let pages = |level: Level| u64::from(geometry.shape(level).table_bytes).div_ceil(4096);
    let of = |level: Level| {
        let dense = geometry.table_maps(level) > block;
        let tables = if dense {
            bytes / geometry.table_maps(level)
        } else {
            0
        };
        (tables + 4) * pages(level)
    };
    geometry.levels_down().map(of).sum()
}

/// About how many leaves `layout` takes.
pub(crate) fn estimated_leaves(layout: &Layout) -> u64 {
    let Ok(geometry) = layout.format.geometry(layout.address_bits) else {
        return 0;
    };
    let slots = layout.slots.iter();
    slots
        .map(|slot| estimate(layout, &geometry, slot).leaves)
        .sum()
}

/// Room for the tables, or an error if it would be absurd.
fn table_pages(layout: &Layout, geometry: &Geometry) -> Result<usize, ExamineError> {
    // The root, and what a vCPU keeps ready, once more than there will be.
    let mut pages = 16 + 2 * pages_of_tables(geometry, 0, 1);
    let mut total: u64 = 0;
    for (index, slot) in layout.slots.iter().enumerate() {
        let estimate = estimate(layout, geometry, slot);
        total += estimate.leaves;
        pages += estimate.pages;
        if total > MOST_LEAVES + 4 * MOST_IN_A_TABLE {
            return Err(ExamineError::TooManyLeaves {
                index,
                slot: slot.name.clone(),
                leaves: estimate.leaves,
                block: Size(estimate.block),
                most: MOST_LEAVES,
            });
        }
    }
    Ok(usize::try_from(pages).unwrap_or(usize::MAX))
}

/// The block in which most of `mapping` will be mapped into `slot`.
fn likely_block(layout: &Layout, slot: &Slot, mapping: &Mapping) -> u64 {
    let sizes = layout.format.sizes();
    let largest = largest_block(mapping, &sizes);
    let congruent = |block: &u64| slot.gpa % block == slot.hva % block;
    let mut blocks = sizes.largest_first().filter(|block| *block <= largest);
    blocks.find(congruent).unwrap_or(sizes.small())
}

/// The layout's mappings, with what is resident brought.
fn host<F: Modelled>(
    layout: &Layout,
    geometry: &Geometry,
    features: &F::Features,
) -> Result<Space, ExamineError> {
    let space = Space::new(NoFrames);
    let largest = geometry.leaf_levels().next();
    let step = largest.map_or(1, |level| geometry.entry_bytes(level));
    let mut ground = Ground::of(layout, step);
    for (index, mapping) in layout.mappings.iter().enumerate() {
        let Some(range) = mapped_range(mapping) else {
            continue;
        };
        let protection = if mapping.writable {
            Protection::ReadWrite
        } else {
            Protection::ReadOnly
        };
        let failed = |error| ExamineError::Map {
            name: mapping.name.clone(),
            error,
        };
        let range_of = |hpa| HpaRange::new(hpa, mapping.bytes).map_err(MapError::Physical);
        let device = if let Kind::Pfnmap { hpa } = mapping.kind {
            let memory = device_memory::<F>(features).ok_or_else(|| no_devices(layout, index))?;
            DriverDevice::new(range_of(Hpa::new(hpa)).map_err(failed)?, memory)
        } else {
            let hpa = ground.take(mapping.hva, mapping.bytes);
            let hpa = hpa.ok_or_else(|| no_room(layout, index))?;
            DriverDevice::ram(range_of(hpa).map_err(failed)?)
        };
        // Linear, and there once it is touched. An address space has no frames of all the sizes
        // that hosts have.
        let backing = Backing::Driver { device, offset: 0 };
        space.map(range, protection, backing).map_err(failed)?;
    }
    let zones = Zones::new(layout, false);
    for zone in zones.iter().filter(|zone| zone.resident) {
        let mut at = zone.range.start;
        while at < zone.range.end {
            // What cannot be brought is found missing later, and reported then.
            let page = space.fault(Hva::new(at), Access::Read);
            at = page.map_or(zone.range.end, |page| page.block.end().raw());
        }
    }
    Ok(space)
}

/// Where the host has `mapping`, unless nobody may access it.
fn mapped_range(mapping: &Mapping) -> Option<HvaRange> {
    hva_range(&mapping.range()).filter(|_| mapping.kind != Kind::NoAccess)
}

fn no_devices(layout: &Layout, index: usize) -> ExamineError {
    ExamineError::NoDevices {
        index,
        name: layout.mappings[index].name.clone(),
        format: layout.format.name(),
    }
}

fn no_room(layout: &Layout, index: usize) -> ExamineError {
    let Mapping { name, bytes, .. } = &layout.mappings[index];
    ExamineError::Room {
        index,
        name: name.clone(),
        bytes: *bytes,
        bits: layout.format.host_bits(),
        format: layout.format.name(),
    }
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
