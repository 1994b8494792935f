//! What became of a region when it was created: what was mapped, and why not more or larger.

use alloc::vec::Vec;
use core::fmt;

use arrayvec::ArrayVec;
use slat_table::address::{GpaRange, HvaRange};
use slat_table::geometry::{Geometry, Level, MAX_LEVELS};

use crate::host::{PageKind, ResolveError, Vma};
use crate::populate::{Mapped, PopulateError};
use crate::region::{Slot, SlotId};

/// Why something was not mapped, or not in a larger block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Not mapped: the host has no mapping there.
    Hole,
    /// Not mapped: the region asked for mapping on fault only.
    OnFault,
    /// Not mapped: the host would have to act (allocate, call a driver).
    NeedsHostFault,
    /// Not mapped: the host was changing it.
    Changing,
    /// Not mapped: the host's mapping does not permit it.
    NotPermitted,
    /// Not mapped: the memory type of a device page cannot be honoured.
    MemoryType,
    /// Not mapped: the memory has failed.
    Poisoned,
    /// Not mapped: no memory for a table.
    OutOfTables,
    /// Not mapped: the format cannot express the leaf.
    Unencodable,
    /// Not mapped: the host maps it in blocks smaller than the format's pages.
    SmallHostBlock,
    /// Mapped for reading only, or if it is mapped later: the host does not let it be written.
    NotWritable,
    /// Not larger: a larger block would leave the slot.
    SlotBoundary,
    /// Not larger: guest and host address differ modulo the larger block.
    NotCongruent,
    /// Not larger: a larger block would leave the host's mapping.
    VmaBoundary,
    /// Not larger: the host physical address is not aligned to the larger block.
    HostAddress,
    /// Not larger: the host itself maps it in smaller blocks.
    HostBlock,
    /// Not larger: writes are logged page by page.
    DirtyLogging,
}

impl Reason {
    /// How many there are: a report keeps one line for each.
    const COUNT: usize = 17;

    /// Whether the memory concerned was not mapped at all.
    pub const fn is_unmapped(self) -> bool {
        matches!(
            self,
            Self::Hole
                | Self::OnFault
                | Self::NeedsHostFault
                | Self::Changing
                | Self::NotPermitted
                | Self::MemoryType
                | Self::Poisoned
                | Self::OutOfTables
                | Self::Unencodable
                | Self::SmallHostBlock
        )
    }

    pub(crate) fn of_error(error: &PopulateError) -> Self {
        match error {
            PopulateError::Retry => Self::Changing,
            PopulateError::OutOfTables(_) => Self::OutOfTables,
            PopulateError::Leaves(_) => Self::Unencodable,
            PopulateError::HostBlock { .. } => Self::SmallHostBlock,
            PopulateError::NotExecutable(_) => Self::NotPermitted,
            PopulateError::MemoryType { .. } => Self::MemoryType,
            PopulateError::Host(error) => match error {
                ResolveError::NotPresent(_)
                | ResolveError::NoMemory(_)
                | ResolveError::DeviceGone(_) => Self::NeedsHostFault,
                ResolveError::NoVma(_) => Self::Hole,
                ResolveError::NotPermitted { .. } => Self::NotPermitted,
                ResolveError::Poisoned(_) => Self::Poisoned,
                ResolveError::Busy(_) => Self::Changing,
            },
        }
    }

    /// Why `mapped` is not one size larger, or `None` if nothing larger exists.
    pub(crate) fn not_larger(
        geometry: &Geometry,
        slot: &Slot,
        vma: &Vma,
        mapped: &Mapped,
    ) -> Option<Self> {
        let (_, bytes) = geometry
            .leaf_sizes()
            .filter(|(_, bytes)| *bytes > mapped.leaf)
            .last()?;
        let start = mapped.range.start();
        let Some(block) =
            GpaRange::block_around(start, bytes).and_then(|block| slot.hva_of(&block))
        else {
            return Some(Self::SlotBoundary);
        };
        // Where RAM is, the host chose together with its block, which is aligned alike in both of
        // the host's address spaces. A device is where it is; its virtual address does not matter.
        let congruent = slot.hva().raw() % bytes == slot.range().start().raw() % bytes;
        let aligned = mapped.hpa.raw() % bytes == start.raw() % bytes;
        Some(if slot.logs_dirty() {
            Self::DirtyLogging
        } else if !vma.range.covers(&block) {
            Self::VmaBoundary
        } else if mapped.kind == PageKind::Ram && !congruent {
            Self::NotCongruent
        } else if mapped.kind == PageKind::Pfnmap && !aligned {
            Self::HostAddress
        } else {
            Self::HostBlock
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hole => "the host maps nothing there",
            Self::OnFault => "mapping on fault was asked for",
            Self::NeedsHostFault => "the host would have to act first",
            Self::Changing => "the host was changing it",
            Self::NotPermitted => "the host's mapping does not permit it",
            Self::MemoryType => "its memory type cannot be honoured",
            Self::Poisoned => "the memory has failed",
            Self::OutOfTables => "no memory for a table",
            Self::Unencodable => "the format cannot express it",
            Self::SmallHostBlock => "the host maps it in blocks smaller than a page of the format",
            Self::NotWritable => "the host does not let it be written",
            Self::SlotBoundary => "a larger block would leave the slot",
            Self::NotCongruent => "guest and host address differ modulo the larger block",
            Self::VmaBoundary => "a larger block would leave the host's mapping",
            Self::HostAddress => "the host physical address is not aligned to a larger block",
            Self::HostBlock => "the host itself maps it in smaller blocks",
            Self::DirtyLogging => "writes are logged page by page",
        })
    }
}

/// What the host has behind a part of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// No mapping.
    Hole,
    /// This mapping.
    Vma(Vma),
}

/// A part of a region behind which the host has one mapping, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    range: GpaRange,
    hva: HvaRange,
    backing: Backing,
    leaves: [u64; MAX_LEVELS],
    mapped: u64,
    reasons: ArrayVec<(Reason, u64), { Reason::COUNT }>,
}

impl Part {
    pub(crate) fn new(range: GpaRange, hva: HvaRange, backing: Backing) -> Self {
        Self {
            range,
            hva,
            backing,
            leaves: [0; MAX_LEVELS],
            mapped: 0,
            reasons: ArrayVec::new(),
        }
    }

    /// Its guest physical addresses.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// The host virtual addresses behind it.
    pub fn hva(&self) -> HvaRange {
        self.hva
    }

    /// What the host has there.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// Leaves mapped at creation, by level, pages first.
    pub fn leaves(&self) -> &[u64; MAX_LEVELS] {
        &self.leaves
    }

    /// Bytes mapped at creation.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped
    }

    /// Why not more and not larger, with the bytes concerned.
    pub fn reasons(&self) -> &[(Reason, u64)] {
        &self.reasons
    }

    pub(crate) fn note(&mut self, reason: Reason, bytes: u64) {
        if let Some((_, sum)) = self.reasons.iter_mut().find(|(known, _)| *known == reason) {
            *sum += bytes;
        } else if let Err(full) = self.reasons.try_push((reason, bytes)) {
            debug_assert!(false, "more reasons than there are: {full:?}");
        }
    }

    pub(crate) fn note_mapped(&mut self, geometry: &Geometry, slot: &Slot, mapped: &Mapped) {
        let bytes = mapped.range.bytes();
        self.leaves[mapped.level.index()] += bytes >> geometry.shape(mapped.level).shift;
        self.mapped += bytes;
        if let Backing::Vma(vma) = self.backing {
            if let Some(reason) = Reason::not_larger(geometry, slot, &vma, mapped) {
                self.note(reason, bytes);
            }
            // Of a mapping that cannot be written at all, the whole part was noted already.
            if vma.writable && !mapped.writable && !slot.is_read_only() {
                self.note(Reason::NotWritable, bytes);
            }
        }
    }
}

/// What became of a region: it is live, and this is what it looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionReport {
    id: SlotId,
    range: GpaRange,
    parts: Vec<Part>,
    granules: [u64; MAX_LEVELS],
}

impl RegionReport {
    pub(crate) fn new(slot: &Slot, parts: Vec<Part>, geometry: &Geometry) -> Self {
        let mut granules = [0; MAX_LEVELS];
        for level in geometry.leaf_levels() {
            granules[level.index()] = geometry.entry_bytes(level);
        }
        Self {
            id: slot.id(),
            range: slot.range(),
            parts,
            granules,
        }
    }

    pub(crate) fn parts_mut(&mut self) -> &mut [Part] {
        &mut self.parts
    }

    /// The slot it is about.
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// The slot's guest physical addresses.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// Its parts in ascending order: one for each host mapping or hole behind it.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Bytes mapped at creation.
    pub fn mapped_bytes(&self) -> u64 {
        self.parts.iter().map(Part::mapped_bytes).sum()
    }

    /// Leaves mapped at creation, by level, pages first.
    pub fn leaves(&self) -> [u64; MAX_LEVELS] {
        let mut sums = [0; MAX_LEVELS];
        for part in &self.parts {
            for (sum, leaves) in sums.iter_mut().zip(part.leaves) {
                *sum += leaves;
            }
        }
        sums
    }

    /// Bytes that a leaf of `level` maps; 0 where leaves do not stand.
    pub fn granule(&self, level: Level) -> u64 {
        self.granules.get(level.index()).copied().unwrap_or(0)
    }
}

impl fmt::Display for RegionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mapped, size) = (Bytes(self.mapped_bytes()), Bytes(self.range.bytes()));
        write!(
            f,
            "{} at {}: {mapped} of {size} mapped",
            self.id, self.range
        )?;
        for part in &self.parts {
            write!(f, "\n  {} ", part.range)?;
            match part.backing {
                Backing::Hole => f.write_str("hole")?,
                Backing::Vma(vma) => write!(f, "{} {:?}", vma.kind, vma.memory)?,
            }
            for (index, count) in part.leaves.iter().enumerate().rev() {
                if *count != 0 {
                    write!(f, ", {count} x {}", Bytes(self.granules[index]))?;
                }
            }
            for (reason, bytes) in &part.reasons {
                let what = if reason.is_unmapped() {
                    "not mapped"
                } else {
                    "limited"
                };
                write!(f, "\n    {} {what}: {reason}", Bytes(*bytes))?;
            }
        }
        Ok(())
    }
}

/// Bytes for people: in the largest binary unit that divides them.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        for (shift, unit) in units {
            if self.0 != 0 && self.0 & ((1 << shift) - 1) == 0 {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::region::Region;
    use crate::testing::geometry;
    use alloc::string::ToString;
    use slat_table::address::{Gpa, Hpa, Hva};
    use slat_table::attributes::MemoryType;

    #[test]
    fn a_logged_slot_gives_logging_as_the_reason() {
        let (gpa, bytes) = (Gpa::new(0), 2 << 20);
        let region = Region::new(SlotId(1), gpa, bytes, Hva::new(0)).log_dirty();
        let slot = region.validate(&Config::new(), &geometry()).unwrap();
        let block = HvaRange::new(Hva::new(0), bytes).unwrap();
        let (kind, memory) = (PageKind::Ram, MemoryType::WriteBack);
        let vma = Vma {
            range: block,
            writable: true,
            kind,
            memory,
        };
        let mapped = Mapped {
            range: GpaRange::new(gpa, 4096).unwrap(),
            level: Level::PAGE,
            leaf: 4096,
            hpa: Hpa::new(0),
            kind,
            writable: true,
            new: 1,
            extended: 0,
        };
        let reason = Reason::not_larger(&geometry(), &slot, &vma, &mapped);
        assert_eq!(reason, Some(Reason::DirtyLogging));
    }

    #[test]
    fn bytes_are_given_in_the_largest_unit_that_divides_them() {
        let given = [0, 1, 4096, 1 << 20, 3 << 30, 5 << 40, (1 << 30) + 4096];
        let expected = [
            "0 B",
            "1 B",
            "4 KiB",
            "1 MiB",
            "3 GiB",
            "5 TiB",
            "1048580 KiB",
        ];
        assert_eq!(given.map(|bytes| Bytes(bytes).to_string()), expected);
    }
}
