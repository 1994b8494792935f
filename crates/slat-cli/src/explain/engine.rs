//! What the engine does with a layout, found by having it do it.
//!
//! [`examine`] makes the layout's mappings on a host without memory ([`PaperFrames`]), its slots on
//! real stage-2 tables, and touches everything. So block sizes, tables and faults are not
//! predicted but counted. Two passes are made. The first is the guest's life: slots are created
//! over what is resident, then every page is touched. The second creates the slots again over
//! what is now all there; the engine then says of every part why its blocks are not larger.

use std::sync::Arc;

use slat::region::Mapping as When;
use slat::report::{Backing as Behind, Part, Reason, RegionReport};
use slat::table::address::{Gpa, GpaRange, Hpa, HpaRange, Hva};
use slat::table::attributes::{Access, MemoryType};
use slat::table::format::arm64::{Arm64, Arm64Features};
use slat::table::geometry::Level;
use slat::table::lock::StdLocks;
use slat::table::simulated::SimulatedPlatform;
use slat::table::table::NewTableError;
use slat::transaction::TransactionError;
use slat::{Config, GuestMemory, Region, SlotId};
use slat_mm::interpose::Interposed;
use slat_mm::{AddressSpace, Backing, DriverDevice, MapError, Protection};
use slat_report::Blocks;
use slat_report::size::Size;

use super::paper::PaperFrames;
use super::zones::{BLOCKS, Zones, hva_range, largest_block};
use crate::layout::{Kind, Layout, Mapping, Pages, Resident, Slot};

/// The most leaves that are made: 8 Mi, whose tables take 64 MiB.
const MOST_LEAVES: u64 = 8 << 20;

/// What became of a layout.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// One for each slot, in the layout's order.
    pub(crate) slots: Vec<SlotFacts>,
    /// Bytes of all tables, the root's included.
    pub(crate) table_bytes: u64,
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

type Space = AddressSpace<PaperFrames, StdLocks>;
type Memory = GuestMemory<Arm64, Interposed<Space, Zones>, SimulatedPlatform<StdLocks>>;

/// What becomes of `layout`.
pub(crate) fn examine(layout: &Layout) -> Result<Facts, ExamineError> {
    if !layout.is_sound() {
        return Err(ExamineError::Unsound);
    }
    let pages = table_pages(layout)?;
    let space = host(layout)?;
    let (mut facts, reports) = live(layout, &space, pages)?;
    let (_, warm) = create(layout, space.clone(), Zones::new(layout, true), pages, true)?;
    for ((slot, cold), warm) in facts.slots.iter_mut().zip(&reports).zip(&warm) {
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
    Ok(facts)
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
    /// Pages of tables, with room to spare.
    pages: u64,
    /// The smallest block that most of a mapping gets.
    block: u64,
}

fn estimate(layout: &Layout, slot: &Slot) -> Estimate {
    let mut sum = Estimate {
        leaves: 0,
        pages: 8,
        block: BLOCKS[0],
    };
    for mapping in &layout.mappings {
        let (ours, theirs) = (slot.hva_range(), mapping.range());
        let start = ours.start.max(theirs.start);
        let end = ours.end.min(theirs.end);
        if start >= end || mapping.kind == Kind::NoAccess {
            continue;
        }
        let (bytes, block) = (end - start, likely_block(slot, mapping));
        sum.block = sum.block.min(block);
        // A block size down at either end; what is resident in small pages comes on top.
        sum.leaves += (bytes / block + 2 * 512).min(bytes / 4096);
        sum.pages += bytes / (block * 512) + 8;
        if let Resident::Some { small, .. } = mapping.resident {
            sum.leaves += small.min(bytes) / 4096;
            sum.pages += small.min(bytes) / (2 << 20);
        }
    }
    sum
}

/// About how many leaves `layout` takes.
pub(crate) fn estimated_leaves(layout: &Layout) -> u64 {
    let slots = layout.slots.iter();
    slots.map(|slot| estimate(layout, slot).leaves).sum()
}

/// Room for the tables, or an error if it would be absurd.
fn table_pages(layout: &Layout) -> Result<usize, ExamineError> {
    let mut pages: u64 = 64;
    let mut total: u64 = 0;
    for (index, slot) in layout.slots.iter().enumerate() {
        let estimate = estimate(layout, slot);
        total += estimate.leaves;
        pages += estimate.pages;
        if total > MOST_LEAVES + 2048 {
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
fn likely_block(slot: &Slot, mapping: &Mapping) -> u64 {
    let congruent = |block: &u64| slot.gpa % block == slot.hva % block;
    let mut blocks = BLOCKS
        .into_iter()
        .filter(|block| *block <= largest_block(mapping));
    blocks.find(congruent).unwrap_or(4096)
}

/// The layout's mappings, with what is resident brought.
fn host(layout: &Layout) -> Result<Space, ExamineError> {
    let space = Space::new(PaperFrames::new());
    for mapping in &layout.mappings {
        let Some(range) = hva_range(&mapping.range()).filter(|_| mapping.kind != Kind::NoAccess)
        else {
            continue;
        };
        let protection = if mapping.writable {
            Protection::ReadWrite
        } else {
            Protection::ReadOnly
        };
        let backing = backing(mapping, &space);
        let failed = |error| ExamineError::Map {
            name: mapping.name.clone(),
            error,
        };
        space
            .map(range, protection, backing.map_err(failed)?)
            .map_err(failed)?;
    }
    let zones = Zones::new(layout, false);
    for zone in zones.iter().filter(|zone| zone.resident) {
        let mut at = zone.range.start;
        while at < zone.range.end {
            // What cannot be brought is found missing later, and reported then.
            let page = slat::host::Host::fault(&space, Hva::new(at), Access::Read);
            at = page.map_or(zone.range.end, |page| page.block.end().raw());
        }
    }
    Ok(space)
}

fn backing(mapping: &Mapping, space: &Space) -> Result<Backing<StdLocks>, MapError> {
    Ok(match (mapping.kind, mapping.pages) {
        (Kind::Pfnmap { hpa }, _) => Backing::Linear {
            hpa: Hpa::new(hpa),
            memory: MemoryType::Device,
        },
        // An address space has no frames of 1 GiB. Memory that appears when it is touched, and is
        // linear, is what a driver maps.
        (_, Pages::Gigantic) => {
            let frames = space.frames().gigantic(mapping.bytes);
            let range = HpaRange::new(frames, mapping.bytes).map_err(MapError::Physical)?;
            Backing::Driver {
                device: DriverDevice::new(range, MemoryType::WriteBack),
                offset: 0,
            }
        }
        _ => Backing::Anonymous,
    })
}

/// Guest memory over `space` with the layout's slots, and what became of them at creation.
fn create(
    layout: &Layout,
    space: Space,
    zones: Zones,
    pages: usize,
    warm: bool,
) -> Result<(Arc<Memory>, Vec<RegionReport>), ExamineError> {
    let features = Arm64Features {
        physical_bits: 48,
        force_write_back: true,
        execute_never_extended: true,
        hardware_accessed: false,
        hardware_dirty: false,
        vmid16: true,
        coherent_instruction_cache: true,
    };
    let config = Config::new()
        .address_bits(layout.address_bits)
        .slot_ids(u32::MAX)
        .slot_pages(u64::MAX)
        .write_check(slat::config::WriteCheck::Lenient);
    let host = Interposed::new(space, Arc::new(zones));
    let platform = SimulatedPlatform::with_pages(pages);
    let memory = Memory::new(host, platform, features, config)?;
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
    Ok((memory, reports))
}

/// The first pass: the slots are created, and the guest touches everything.
fn live(
    layout: &Layout,
    space: &Space,
    pages: usize,
) -> Result<(Facts, Vec<RegionReport>), ExamineError> {
    let zones = Zones::new(layout, false);
    let (memory, reports) = create(layout, space.clone(), zones, pages, false)?;
    let mut slots = Vec::new();
    for (slot, report) in layout.slots.iter().zip(&reports) {
        let parts = report.parts().iter();
        let parts: Result<Vec<_>, _> = parts
            .map(|part| touch(layout, &memory, slot, part))
            .collect();
        slots.push(SlotFacts {
            parts: parts?,
            table_bytes: tables_of(&memory, report),
        });
    }
    let facts = Facts {
        slots,
        table_bytes: memory.stats().table_bytes,
    };
    Ok((facts, reports))
}

/// Touches every page of a part.
fn touch(
    layout: &Layout,
    memory: &Memory,
    slot: &Slot,
    part: &Part,
) -> Result<PartFacts, ExamineError> {
    let range = part.range();
    let mut vcpu = memory.vcpu();
    if let Behind::Vma(_) = part.backing() {
        let failed = |why: String| ExamineError::Touch {
            slot: slot.name.clone(),
            gpa: range.start(),
            why,
        };
        let done = vcpu
            .prefault(&range)
            .map_err(|error| failed(error.to_string()))?;
        if let Some(outcome) = done.stopped {
            return Err(failed(format!("{outcome:?} after {} bytes", done.bytes)));
        }
    }
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
        unmapped: Vec::new(),
        limited: Vec::new(),
    })
}

/// Bytes of the tables below the root that a slot's leaves need.
fn tables_of(memory: &Memory, report: &RegionReport) -> u64 {
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
