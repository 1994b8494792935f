//! What a VMM asks for, and the rules it must keep.
//!
//! A [`Region`] is an unchecked request: any numbers. [`Region::validate`] applies KVM's rules
//! for `KVM_SET_USER_MEMORY_REGION` in KVM's order and turns it into a [`Slot`], whose ranges are
//! known to be sound. Rules about other slots come with the [`transaction`](crate::transaction).

use core::fmt;

use slat_table::address::{Gpa, GpaRange, Hva, HvaRange, RangeError};
use slat_table::geometry::{Geometry, Level};

use crate::config::Config;
use crate::errno::Errno;

/// Names a slot within a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

/// When a region's pages are mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// At creation, whatever the host can translate without doing anything; the rest on fault.
    #[default]
    AtCreation,
    /// On fault only.
    OnFault,
}

/// A request to back guest physical addresses with host virtual ones. Nothing is checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    id: SlotId,
    gpa: Gpa,
    bytes: u64,
    hva: Hva,
    read_only: bool,
    log_dirty: bool,
    mapping: Mapping,
}

impl Region {
    /// A writable region of `bytes` bytes at `gpa`, backed from `hva` on.
    pub const fn new(id: SlotId, gpa: Gpa, bytes: u64, hva: Hva) -> Self {
        Self {
            id,
            gpa,
            bytes,
            hva,
            read_only: false,
            log_dirty: false,
            mapping: Mapping::AtCreation,
        }
    }

    /// The guest may not write; its writes are reported to the VMM.
    #[must_use]
    pub const fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The guest's writes are to be logged.
    #[must_use]
    pub const fn log_dirty(mut self) -> Self {
        self.log_dirty = true;
        self
    }

    /// When the region's pages are mapped.
    #[must_use]
    pub const fn mapping(mut self, mapping: Mapping) -> Self {
        self.mapping = mapping;
        self
    }

    /// The slot asked for.
    pub const fn id(&self) -> SlotId {
        self.id
    }

    /// Applies every rule that concerns this region alone.
    ///
    /// # Errors
    ///
    /// [`RegionError`] names the first rule broken, in KVM's order.
    pub fn validate(&self, config: &Config, geometry: &Geometry) -> Result<Slot, RegionError> {
        let slot = self.validate_numbers(config, geometry)?;
        slot.validate_width(geometry)?;
        Ok(slot)
    }

    /// All but the address width: what KVM judges before the other slots.
    pub(crate) fn validate_numbers(
        &self,
        config: &Config,
        geometry: &Geometry,
    ) -> Result<Slot, RegionError> {
        if self.id.0 >= config.slot_ids {
            return Err(RegionError::Id {
                id: self.id,
                limit: config.slot_ids,
            });
        }
        let range = GpaRange::new(self.gpa, self.bytes).map_err(RegionError::Guest)?;
        let hva = HvaRange::new(self.hva, self.bytes).map_err(RegionError::Host)?;
        if hva.end().raw() > config.host_end {
            return Err(RegionError::HostEnd {
                range: hva,
                end: config.host_end,
            });
        }
        let page = geometry.entry_bytes(Level::PAGE);
        let aligned = range.start().is_aligned(page) && range.end().is_aligned(page);
        if !aligned || !self.hva.is_aligned(page) {
            return Err(RegionError::Page { range, hva, page });
        }
        if range.pages() > config.slot_pages {
            return Err(RegionError::TooManyPages {
                pages: range.pages(),
                limit: config.slot_pages,
            });
        }
        Ok(Slot {
            id: self.id,
            range,
            hva,
            read_only: self.read_only,
            log_dirty: self.log_dirty,
            mapping: self.mapping,
        })
    }
}

/// Which rule a region breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The slot id is too large.
    #[error("{id}: ids must be below {limit}")]
    Id {
        /// The id asked for.
        id: SlotId,
        /// Number of ids.
        limit: u32,
    },
    /// The guest range is empty, unaligned, or wraps. (A size of 0 deletes in KVM; here a
    /// transaction does.)
    #[error("guest range: {0}")]
    Guest(RangeError),
    /// The host range is unaligned or wraps.
    #[error("host range: {0}")]
    Host(RangeError),
    /// The host range lies beyond what a region may name.
    #[error("host range {range} lies beyond {end:#x}")]
    HostEnd {
        /// The range asked for.
        range: HvaRange,
        /// First address that may not be named.
        end: u64,
    },
    /// The ranges are not made of whole pages of the format, which are larger than 4 KiB.
    #[error("guest range {range} or host range {hva} is not made of pages of {page:#x} bytes")]
    Page {
        /// The guest range asked for.
        range: GpaRange,
        /// The host range asked for.
        hva: HvaRange,
        /// The format's page in bytes.
        page: u64,
    },
    /// The region has too many pages.
    #[error("{pages} pages: a slot has at most {limit}")]
    TooManyPages {
        /// Pages asked for.
        pages: u64,
        /// Most pages.
        limit: u64,
    },
    /// The guest range lies beyond the guest's address width.
    #[error("guest range {range} lies beyond {bits} address bits")]
    AddressWidth {
        /// The range asked for.
        range: GpaRange,
        /// Bits of a guest physical address.
        bits: u8,
    },
}

impl RegionError {
    /// What KVM on arm64 answers.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::AddressWidth { .. } => Errno::EFAULT,
            Self::Id { .. }
            | Self::Guest(_)
            | Self::Host(_)
            | Self::HostEnd { .. }
            | Self::Page { .. }
            | Self::TooManyPages { .. } => Errno::EINVAL,
        }
    }
}

/// A region that keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    id: SlotId,
    range: GpaRange,
    /// As large as `range`.
    hva: HvaRange,
    read_only: bool,
    log_dirty: bool,
    mapping: Mapping,
}

impl Slot {
    /// The rule that KVM leaves to the architecture and judges after the other slots.
    pub(crate) fn validate_width(&self, geometry: &Geometry) -> Result<(), RegionError> {
        // Not `>=`: a region may end exactly where the guest's addresses do. KVM on Arm refused
        // that until 2021, on RISC-V it still does.
        if !geometry.contains(&self.range) {
            let (range, bits) = (self.range, geometry.address_bits());
            return Err(RegionError::AddressWidth { range, bits });
        }
        Ok(())
    }

    /// Its name.
    pub const fn id(&self) -> SlotId {
        self.id
    }

    /// The guest physical addresses it backs.
    pub const fn range(&self) -> GpaRange {
        self.range
    }

    /// The host virtual address behind its first byte.
    pub fn hva(&self) -> Hva {
        self.hva.start()
    }

    /// The host virtual addresses it backs them with.
    pub const fn hva_range(&self) -> HvaRange {
        self.hva
    }

    /// Whether the guest may only read.
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the guest's writes are logged. A read-only slot logs none.
    pub const fn logs_dirty(&self) -> bool {
        self.log_dirty && !self.read_only
    }

    /// When its pages are mapped.
    pub const fn mapping(&self) -> Mapping {
        self.mapping
    }

    /// The host addresses behind `range`, or `None` if that is not inside the slot.
    #[inline]
    pub fn hva_of(&self, range: &GpaRange) -> Option<HvaRange> {
        self.range.image_of(range, &self.hva)
    }

    /// The guest addresses backed by the part of `range` that belongs to the slot.
    #[inline]
    pub fn gpa_of(&self, range: &HvaRange) -> Option<GpaRange> {
        let part = self.hva.intersection(range)?;
        self.hva.image_of(&part, &self.range)
    }
}
