//! Changes to a layout that may let its slots be mapped in larger blocks.
//!
//! A [`Change`] can be said in words and applied to a layout. Whether it gains anything is found by
//! examining the layout with the change applied, never claimed.

use core::fmt;
use core::ops::Range;

use serde::Serialize;
use slat_report::size::Size;

use crate::format::Sizes;
use crate::layout::{Kind, Layout, Mapping, Pages, Resident, Slot};

/// Something to change. Mappings and slots are named by their index in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Move a mapping, and what slots show of it, to another host virtual address.
    Hva { mapping: usize, by: i64 },
    /// Move a slot to another guest physical address, or only what it shows of a mapping.
    Gpa {
        slot: usize,
        only: Option<usize>,
        by: i64,
    },
    /// Both, for a mapping and what slots show of it.
    Both { mapping: usize, hva: i64, gpa: i64 },
    /// Have the host map it in larger pages.
    Pages { mapping: usize, pages: Pages },
    /// Move a mapping to another host virtual address and have it mapped in huge pages.
    HvaAndPages { mapping: usize, by: i64 },
    /// Let a mapping reach to another end.
    Grow { mapping: usize, bytes: u64 },
}

/// A kind of change: alternatives of the same kind are compared with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ChangeKind {
    GrowMapping,
    MoveHva,
    MoveGpa,
    MoveHvaAndGpa,
    LargerPages,
    MoveHvaAndLargerPages,
}

/// A layout with a change applied.
pub(crate) struct Changed {
    pub(crate) layout: Layout,
    /// The slots concerned, by index; those beyond the original ones are new.
    pub(crate) slots: Vec<usize>,
    /// Where slots were split: the slot's name and the guest address.
    pub(crate) splits: Vec<(String, u64)>,
}

impl Change {
    pub(crate) const fn kind(&self) -> ChangeKind {
        match self {
            Self::Hva { .. } => ChangeKind::MoveHva,
            Self::Gpa { .. } => ChangeKind::MoveGpa,
            Self::Both { .. } => ChangeKind::MoveHvaAndGpa,
            Self::Pages { .. } => ChangeKind::LargerPages,
            Self::HvaAndPages { .. } => ChangeKind::MoveHvaAndLargerPages,
            Self::Grow { .. } => ChangeKind::GrowMapping,
        }
    }

    /// How far something is moved, in bytes.
    pub(crate) const fn distance(&self) -> u64 {
        match self {
            Self::Hva { by, .. } | Self::Gpa { by, .. } | Self::HvaAndPages { by, .. } => {
                by.unsigned_abs()
            }
            Self::Both { hva, gpa, .. } => hva.unsigned_abs().saturating_add(gpa.unsigned_abs()),
            Self::Pages { .. } | Self::Grow { .. } => 0,
        }
    }

    /// Whether it is moved up.
    pub(crate) const fn is_up(&self) -> bool {
        match self {
            Self::Hva { by, .. } | Self::Gpa { by, .. } | Self::HvaAndPages { by, .. } => *by > 0,
            Self::Both { gpa, .. } => *gpa > 0,
            Self::Pages { .. } | Self::Grow { .. } => true,
        }
    }

    /// The layout with this change, or `None` if it cannot be made.
    pub(crate) fn apply(&self, layout: &Layout) -> Option<Changed> {
        let mut changed = Changed {
            layout: layout.clone(),
            slots: Vec::new(),
            splits: Vec::new(),
        };
        match *self {
            Self::Hva { mapping, by } => changed.move_both(mapping, by, 0)?,
            Self::Gpa {
                slot,
                only: None,
                by,
            } => {
                let moved = changed.layout.slots.get_mut(slot)?;
                moved.gpa = moved.gpa.checked_add_signed(by)?;
                changed.slots.push(slot);
            }
            Self::Gpa {
                only: Some(mapping),
                by,
                ..
            } => changed.move_both(mapping, 0, by)?,
            Self::Both { mapping, hva, gpa } => changed.move_both(mapping, hva, gpa)?,
            Self::Pages { mapping, pages } => {
                changed.enlarge_pages(mapping, pages)?;
                let range = changed.layout.mappings[mapping].range();
                changed.touch(&range);
            }
            Self::HvaAndPages { mapping, by } => {
                changed.enlarge_pages(mapping, Pages::Huge)?;
                changed.move_both(mapping, by, 0)?;
            }
            Self::Grow { mapping, bytes } => {
                let mapping = changed.layout.mappings.get_mut(mapping)?;
                mapping.bytes = bytes;
                let range = mapping.range();
                changed.touch(&range);
            }
        }
        changed.slots.sort_unstable();
        changed.slots.dedup();
        changed.layout.is_sound().then_some(changed)
    }

    /// The change in words.
    pub(crate) fn describe(&self, layout: &Layout, splits: &[(String, u64)]) -> String {
        let sizes = layout.format.sizes();
        let splitting = splits.iter();
        let split: Vec<_> = splitting
            .map(|(slot, gpa)| format!("split {slot} at gpa {gpa:#x}, "))
            .collect();
        let split = split.concat();
        let hva = |mapping: usize, by: i64| {
            let Mapping { name, hva, .. } = &layout.mappings[mapping];
            let to = hva.wrapping_add_signed(by);
            format!("move the hva of {name} by {} to {to:#x}", Signed(by))
        };
        // What a split slot shows of a mapping has that mapping's name, and no address of its own.
        let part_gpa = |mapping: usize, by: i64| {
            let range = layout.mappings[mapping].range();
            let mut slots = layout.slots.iter();
            let alone = |slot: &&Slot| overlap(&slot.hva_range(), &range);
            if let (Some(slot), true) = (slots.find(alone), splits.is_empty()) {
                return slot_gpa(slot, by);
            }
            let name = &layout.mappings[mapping].name;
            format!("move the gpa of its part over {name} by {}", Signed(by))
        };
        match *self {
            Self::Hva { mapping, by } => split + &hva(mapping, by),
            Self::Gpa {
                slot,
                only: None,
                by,
            } => slot_gpa(&layout.slots[slot], by),
            Self::Gpa {
                only: Some(mapping),
                by,
                ..
            } => split + &part_gpa(mapping, by),
            Self::Both {
                mapping,
                hva: by,
                gpa,
            } => format!("{split}{} and {}", part_gpa(mapping, gpa), hva(mapping, by)),
            Self::Pages { mapping, pages } => {
                larger_pages(&layout.mappings[mapping], pages, &sizes)
            }
            Self::HvaAndPages { mapping, by } => {
                let pages = larger_pages(&layout.mappings[mapping], Pages::Huge, &sizes);
                format!("{split}{} and {pages}", hva(mapping, by))
            }
            Self::Grow { mapping, bytes } => {
                let mapping = &layout.mappings[mapping];
                let (name, by) = (&mapping.name, bytes - mapping.bytes);
                let end = mapping.hva + bytes;
                format!("grow the mapping {name} by {} to end at {end:#x}", Size(by))
            }
        }
    }
}

impl Changed {
    /// Notes which slots show something of `hva`.
    fn touch(&mut self, hva: &Range<u64>) {
        let slots = self.layout.slots.iter().enumerate();
        let touched = slots.filter(|(_, slot)| overlap(&slot.hva_range(), hva));
        self.slots.extend(touched.map(|(index, _)| index));
    }

    fn enlarge_pages(&mut self, mapping: usize, pages: Pages) -> Option<()> {
        let mapping = self.layout.mappings.get_mut(mapping)?;
        mapping.pages = pages;
        if let Resident::Some { .. } = mapping.resident {
            mapping.resident = Resident::All;
        }
        Some(())
    }

    /// Moves a mapping by `hva`, and what slots show of it by `gpa`.
    fn move_both(&mut self, mapping: usize, hva: i64, gpa: i64) -> Option<()> {
        let range = self.layout.mappings.get(mapping)?.range();
        self.split(range.start);
        self.split(range.end);
        self.touch(&range);
        for slot in &mut self.layout.slots {
            if overlap(&slot.hva_range(), &range) {
                slot.hva = slot.hva.checked_add_signed(hva)?;
                slot.gpa = slot.gpa.checked_add_signed(gpa)?;
            }
        }
        let moved = self.layout.mappings.get_mut(mapping)?;
        moved.hva = moved.hva.checked_add_signed(hva)?;
        Some(())
    }

    /// Makes two of each slot that has `hva` in its middle.
    fn split(&mut self, hva: u64) {
        let mut next = self
            .layout
            .slots
            .iter()
            .map(|slot| slot.id)
            .max()
            .unwrap_or(0);
        let mut pieces = Vec::new();
        for (index, slot) in self.layout.slots.iter_mut().enumerate() {
            if hva <= slot.hva || hva >= slot.hva_range().end {
                continue;
            }
            let first = hva - slot.hva;
            next = next.saturating_add(1);
            pieces.push(Slot {
                id: next,
                gpa: slot.gpa + first,
                bytes: slot.bytes - first,
                hva,
                ..slot.clone()
            });
            slot.bytes = first;
            self.slots.push(index);
            self.splits.push((slot.name.clone(), slot.gpa + first));
        }
        // What is split is compared as a whole.
        let new = self.layout.slots.len()..self.layout.slots.len() + pieces.len();
        self.slots.extend(new);
        self.layout.slots.append(&mut pieces);
    }
}

/// Whether the two share a byte.
pub(crate) fn overlap(left: &Range<u64>, right: &Range<u64>) -> bool {
    left.start < right.end && right.start < left.end
}

fn larger_pages(mapping: &Mapping, pages: Pages, sizes: &Sizes) -> String {
    let Mapping { name, kind, .. } = mapping;
    let (huge, gigantic) = (Size(sizes.huge_or_small()), Size(sizes.largest()));
    match (pages, kind) {
        (Pages::Gigantic, _) => format!("back {name} with {gigantic} pages of hugetlbfs"),
        (_, Kind::File) => format!("back {name} with {huge} pages of hugetlbfs"),
        _ => format!("back {name} with {huge} pages (hugetlbfs, or MADV_HUGEPAGE)"),
    }
}

fn slot_gpa(slot: &Slot, by: i64) -> String {
    let to = slot.gpa.wrapping_add_signed(by);
    format!("move the gpa of {} by {} to {to:#x}", slot.name, Signed(by))
}

/// A distance with its sign.
struct Signed(i64);

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { '-' } else { '+' };
        write!(f, "{sign}{:#x}", self.0.unsigned_abs())
    }
}
