//! What a layout will cost, before anything is made: none is examined that would take too long, and
//! the machine under the tables is told how much room they need.

use slat::table::geometry::{Geometry, Level};
use slat_report::size::Size;

use super::error::ExamineError;
use super::zones::largest_block;
use crate::layout::{Kind, Layout, Mapping, Resident, Slot};

/// The most leaves that are made: 8 Mi, whose tables take 64 MiB.
const MOST_LEAVES: u64 = 8 << 20;

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
pub(crate) fn table_pages(layout: &Layout, geometry: &Geometry) -> Result<usize, ExamineError> {
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
