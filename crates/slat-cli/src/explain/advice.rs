//! What to change so that a slot is mapped in larger blocks, each proposal checked.
//!
//! Candidates come from arithmetic: a block of some size can stand only where guest, host virtual
//! and host physical address agree modulo that size. Each is then applied to the layout, and the
//! result examined by the engine. Only what really needs fewer entries is proposed, with the
//! number of entries before and after as counted.

use super::change::{Change, ChangeKind, Changed, overlap};
use super::engine::{Facts, PartFacts, examine};
use super::estimate::estimated_leaves;
use super::zones::largest_block;
use crate::format::Sizes;
use crate::layout::{Kind, Layout, Mapping, Pages};

/// The most proposals for one part.
const MOST: usize = 3;

/// With more entries than this, only changes that may halve them are tried.
const DEAR: u64 = 1 << 20;

/// What may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "where a layout can come from")]
pub enum Advise {
    /// Everything: the layout is a plan.
    Everything,
    /// Only the pages in which the host maps it: addresses are as they are.
    PagesOnly,
}

/// A change that gains something.
#[derive(Debug, Clone)]
pub(crate) struct Fix {
    pub(crate) change: Change,
    /// The change in words.
    pub(crate) text: String,
    /// Entries of the slots concerned, now.
    pub(crate) before: u64,
    /// The same with the change made.
    pub(crate) after: u64,
}

/// What would let `part`, a part of the slot numbered `slot`, be mapped better, the best first.
pub(crate) fn fixes(
    layout: &Layout,
    facts: &Facts,
    slot: usize,
    part: &PartFacts,
    advise: Advise,
) -> Vec<Fix> {
    let Some(mapping) = part.mapping else {
        return Vec::new();
    };
    if layout.mappings[mapping].kind == Kind::NoAccess || part.entries() <= 1 {
        return Vec::new();
    }
    let mut candidates = Vec::new();
    if advise == Advise::Everything {
        moves(layout, slot, mapping, part, &mut candidates);
        growth(layout, slot, mapping, &mut candidates);
    }
    let sizes = layout.format.sizes();
    pages(&layout.mappings[mapping], mapping, &sizes, &mut candidates);
    let mut tried: Vec<Change> = Vec::new();
    let mut fixes = Vec::new();
    for candidate in candidates {
        if !tried.contains(&candidate) {
            tried.push(candidate);
            fixes.extend(verify(layout, facts, candidate));
        }
    }
    best(fixes)
}

/// Moves after which the addresses agree modulo a block.
fn moves(
    layout: &Layout,
    slot: usize,
    mapping: usize,
    part: &PartFacts,
    candidates: &mut Vec<Change>,
) {
    let behind = &layout.mappings[mapping];
    // A slot over more than one mapping need not be moved whole.
    let shown = layout.slots[slot].hva_range();
    let mut others = layout.mappings.iter().enumerate();
    let several = others.any(|(index, other)| index != mapping && overlap(&other.range(), &shown));
    let only = several.then_some(mapping);
    let sizes = layout.format.sizes();
    for block in sizes.largest_first().filter(|block| *block > sizes.small()) {
        if part.bytes < block {
            continue;
        }
        let (gpa, hva) = (part.gpa % block, part.hva % block);
        // Where the block must start, modulo its size: a device is where it is. RAM is wherever
        // its mapping is aligned to.
        let fixed = match behind.kind {
            Kind::Pfnmap { hpa } => (hpa % block + (part.hva - behind.hva) % block) % block,
            _ => hva,
        };
        for by in [up(hva, fixed, block), down(hva, fixed, block)] {
            candidates.push(Change::Hva { mapping, by });
        }
        for by in [up(gpa, fixed, block), down(gpa, fixed, block)] {
            candidates.push(Change::Gpa { slot, only, by });
        }
        if !matches!(behind.kind, Kind::Pfnmap { .. }) {
            for by in [up(hva, gpa, block), down(hva, gpa, block)] {
                candidates.push(Change::Hva { mapping, by });
                // Where the host's pages are too small as well, neither helps without the other.
                if sizes.huge() == Some(block) && largest_block(behind, &sizes) < block {
                    candidates.push(Change::HvaAndPages { mapping, by });
                }
            }
        }
        // Both: to where the device is, or to where a block of RAM begins.
        let both = match behind.kind {
            Kind::Pfnmap { .. } => fixed,
            _ => 0,
        };
        for (hva, gpa) in [
            (up(hva, both, block), up(gpa, both, block)),
            (down(hva, both, block), down(gpa, both, block)),
        ] {
            candidates.push(Change::Both { mapping, hva, gpa });
        }
    }
    candidates.retain(|change| change.distance() != 0);
    // A move of both that moves only one is that one's.
    candidates.retain(|change| {
        !matches!(
            change,
            Change::Both { hva: 0, .. } | Change::Both { gpa: 0, .. }
        )
    });
}

/// The distance up from `from` to `to`, modulo `block`, which both are smaller than.
fn up(from: u64, to: u64, block: u64) -> i64 {
    ((to + block - from) % block).cast_signed()
}

/// The same down: zero or negative.
fn down(from: u64, to: u64, block: u64) -> i64 {
    -up(to, from, block)
}

/// Larger mappings, where the slot goes on after the mapping's end and nothing else is there.
fn growth(layout: &Layout, slot: usize, mapping: usize, candidates: &mut Vec<Change>) {
    let range = layout.mappings[mapping].range();
    let slot_end = layout.slots[slot].hva_range().end;
    let others = layout.mappings.iter().map(|other| other.hva);
    let next = others.filter(|hva| *hva >= range.end).min();
    let limit = slot_end.min(next.unwrap_or(u64::MAX));
    for (_, block) in layout.format.sizes().above_small() {
        let Some(end) = range.end.checked_next_multiple_of(block) else {
            continue;
        };
        if range.end < end && end <= limit {
            let bytes = end - range.start;
            candidates.push(Change::Grow { mapping, bytes });
        }
    }
}

/// Larger pages, where the host's are what limits.
fn pages(behind: &Mapping, mapping: usize, sizes: &Sizes, candidates: &mut Vec<Change>) {
    for (pages, block) in sizes.above_small() {
        let range = behind.range();
        // Pages of this size are whole, unless transparent ones are meant.
        let whole = range.start.is_multiple_of(block) && range.end.is_multiple_of(block);
        let fits = pages == Pages::Huge || whole;
        let pfnmap = matches!(behind.kind, Kind::Pfnmap { .. });
        let partly = matches!(behind.resident, crate::layout::Resident::Some { .. });
        let smaller = largest_block(behind, sizes) < block;
        if fits && !pfnmap && (smaller || partly) && behind.bytes >= block {
            candidates.push(Change::Pages { mapping, pages });
        }
    }
}

/// The gain of a change, if it can be made and gains anything.
fn verify(layout: &Layout, facts: &Facts, change: Change) -> Option<Fix> {
    let changed = change.apply(layout)?;
    let old = changed
        .slots
        .iter()
        .filter_map(|slot| facts.slots.get(*slot));
    let (before, mapped) = sums(old.flat_map(|slot| &slot.parts));
    let concerned = concerned(&changed);
    // To try what surely gains little would take longer than everything else.
    if before > DEAR && estimated_leaves(&concerned) > before / 2 {
        return None;
    }
    let after = examine(&concerned).ok()?;
    let (after, still_mapped) = sums(after.slots.iter().flat_map(|slot| &slot.parts));
    (after < before && still_mapped >= mapped).then(|| Fix {
        change,
        text: change.describe(layout, &changed.splits),
        before,
        after,
    })
}

/// Entries and bytes mapped.
fn sums<'a>(parts: impl Iterator<Item = &'a PartFacts>) -> (u64, u64) {
    parts.fold((0, 0), |(entries, mapped), part| {
        let more = part.at_creation.bytes() + part.on_fault.bytes();
        (entries + part.entries(), mapped + more)
    })
}

/// As much of a changed layout as the change concerns.
fn concerned(changed: &Changed) -> Layout {
    let layout = &changed.layout;
    let slots: Vec<_> = changed
        .slots
        .iter()
        .map(|slot| layout.slots[*slot].clone())
        .collect();
    let shown = |mapping: &&Mapping| {
        let range = mapping.range();
        slots.iter().any(|slot| overlap(&slot.hva_range(), &range))
    };
    Layout {
        format: layout.format,
        address_bits: layout.address_bits,
        mappings: layout.mappings.iter().filter(shown).cloned().collect(),
        slots: slots.clone(),
    }
}

/// The most useful of `fixes`: fewest entries first, then what moves least.
fn best(mut fixes: Vec<Fix>) -> Vec<Fix> {
    fixes.sort_by_key(|fix| (fix.after, fix.change.kind(), fix.change.distance()));
    let mut kept: Vec<Fix> = Vec::new();
    for fix in fixes {
        let way = |fix: &Fix| (fix.change.kind(), fix.change.is_up());
        // One that moves farther in the same direction and gains no more is no alternative; to move
        // two things is none where moving one gains as much.
        let beaten = kept.iter().any(|better| {
            let same_way = way(better) == way(&fix);
            let farther = better.change.distance() <= fix.change.distance();
            let single = better.change.kind() != fix.change.kind();
            let more = matches!(
                fix.change.kind(),
                ChangeKind::MoveHvaAndGpa | ChangeKind::MoveHvaAndLargerPages
            );
            (same_way && farther) || (single && more)
        });
        if !beaten {
            kept.push(fix);
        }
    }
    kept.truncate(MOST);
    kept
}
