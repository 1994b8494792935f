//! RISC-V G-stage of a 32-bit hart: `Sv32x4`, with entries of 4 bytes, 4 KiB pages and 4 MiB
//! megapages, and 34 bits of guest and of host physical address.
//!
//! Privileged Architecture, "Sv32: Page-Based 32-bit Virtual-Memory Systems" and "Guest Physical
//! Address Translation". An entry has the ten flags of the wider modes and a page number of 22
//! bits; it has no room for memory types or runs.

use super::{Hardware, flags};
use crate::address::Hpa;
use crate::attributes::{Attributes, MemoryType};
use crate::format::{ByteOrder, EncodeError, Format, GeometryError, Rules};
use crate::geometry::{Geometry, Level, LevelShape, level_shifts};
use flags::VALID;

/// RISC-V G-stage, `Sv32x4`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sv32x4;

/// What of the G-stage the hart at hand has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sv32x4Features {
    /// Svadu with `menvcfg.ADUE` set: the hardware sets A and D.
    pub svadu: bool,
    /// Svvptc: an entry that becomes valid is seen soon without a fence.
    pub svvptc: bool,
}

impl Sv32x4Features {
    /// A hart with both.
    pub const ALL: Self = Self {
        svadu: true,
        svvptc: true,
    };

    /// A hart with neither.
    pub const NONE: Self = Self {
        svadu: false,
        svvptc: false,
    };

    const fn hardware(self) -> Hardware {
        Hardware {
            svadu: self.svadu,
            svvptc: self.svvptc,
        }
    }
}

/// The page number: bits 31:10.
const PAGE_NUMBER: u64 = 0xffff_fc00;
/// Page numbers stand two bits lower in an entry than in an address.
const ADDRESS_TO_ENTRY: u8 = 2;
/// Bits of a guest or host physical address.
const ADDRESS_BITS: u8 = 34;
const PAGE_SHIFT: u8 = 12;
const INDEX_BITS: u8 = 10;
const LARGEST_LEAF: Level = Level::new(1);

impl Format for Sv32x4 {
    type Features = Sv32x4Features;
    /// `hgatp`, in the lower half.
    type Root = u64;

    const NAME: &'static str = "RISC-V G-stage, Sv32x4";
    const BYTE_ORDER: ByteOrder = ByteOrder::Little;
    const SHIFTS: &'static [u8] = &level_shifts::<2>(PAGE_SHIFT, INDEX_BITS);
    const ENTRY_BYTES: u64 = 4;

    fn rules(features: &Sv32x4Features) -> Rules {
        features.hardware().rules()
    }

    /// Fewer than 34 bits leave a part of the root empty.
    fn geometry(_: &Sv32x4Features, bits: u8) -> Result<Geometry, GeometryError> {
        let error = GeometryError {
            bits,
            format: Self::NAME,
            lowest: PAGE_SHIFT,
            highest: ADDRESS_BITS,
        };
        if !(PAGE_SHIFT..=ADDRESS_BITS).contains(&bits) {
            return Err(error);
        }
        let pages = LevelShape {
            shift: Self::SHIFTS[0],
            index_bits: INDEX_BITS,
            table_bytes: 4096,
            leaf: true,
            run_bits: 0,
        };
        // Four tables side by side.
        let root = LevelShape {
            shift: Self::SHIFTS[1],
            index_bits: INDEX_BITS + 2,
            table_bytes: 4 * 4096,
            ..pages
        };
        Geometry::new(&[pages, root], bits).ok_or(error)
    }

    fn vmid_bits(_: &Sv32x4Features) -> u8 {
        // As for the larger modes.
        7
    }

    fn root(_: &Sv32x4Features, _: &Geometry, table: Hpa, vmid: u16) -> u64 {
        const SV32X4: u64 = 1 << 31;
        /// Bits 28:22; a hart may have fewer, and then keeps the lower ones.
        const VMID_MASK: u16 = 0x7f;
        SV32X4 | u64::from(vmid & VMID_MASK) << 22 | table.raw() >> PAGE_SHIFT
    }

    #[inline]
    fn empty(_: Level) -> u64 {
        0
    }

    #[inline]
    fn table(_: &Sv32x4Features, _: Level, table: Hpa) -> u64 {
        page_number(table) | VALID
    }

    #[inline]
    fn leaf(
        features: &Sv32x4Features,
        level: Level,
        hpa: Hpa,
        attributes: Attributes,
    ) -> Result<u64, EncodeError> {
        if level > LARGEST_LEAF {
            return Err(EncodeError::NoLeaf(level));
        }
        if !hpa.is_aligned(leaf_bytes(level)) {
            return Err(EncodeError::Unaligned { hpa, level });
        }
        if hpa.raw() >> ADDRESS_BITS != 0 {
            let bits = ADDRESS_BITS;
            return Err(EncodeError::AddressWidth { hpa, bits });
        }
        if attributes.memory != MemoryType::WriteBack {
            return Err(EncodeError::MemoryType(attributes.memory));
        }
        if attributes.contiguous {
            return Err(EncodeError::Contiguous(level));
        }
        Ok(page_number(hpa) | flags::encode(features.svadu, attributes)?)
    }

    #[inline]
    fn leaf_step(level: Level) -> u64 {
        leaf_bytes(level) >> ADDRESS_TO_ENTRY
    }

    #[inline]
    fn decode_leaf(features: &Sv32x4Features, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
        let hpa = Self::address(features, level, raw);
        let known = raw & !(flags::ALL | PAGE_NUMBER) == 0;
        if !known || level > LARGEST_LEAF || !hpa.is_aligned(leaf_bytes(level)) {
            return None;
        }
        Some((hpa, flags::decode(features.svadu, raw)?))
    }

    #[inline]
    fn is_empty(_: Level, raw: u64) -> bool {
        raw & VALID == 0
    }

    /// A pointer has no bit set but V: the rest is reserved in it.
    #[inline]
    fn is_table(level: Level, raw: u64) -> bool {
        level != Level::PAGE && raw & !PAGE_NUMBER == VALID
    }

    #[inline]
    fn address(_: &Sv32x4Features, _: Level, raw: u64) -> Hpa {
        Hpa::new((raw & PAGE_NUMBER) << ADDRESS_TO_ENTRY)
    }

    #[inline]
    fn is_in_run(_: Level, _: u64) -> bool {
        false
    }

    /// The guest's entries have no memory types either.
    fn forces(_: &Sv32x4Features, _: MemoryType) -> bool {
        true
    }
}

/// Bytes that a leaf of this level maps.
pub(super) const fn leaf_bytes(level: Level) -> u64 {
    1 << (PAGE_SHIFT as usize + INDEX_BITS as usize * level.index())
}

/// The page number of an aligned address, where an entry has it.
const fn page_number(hpa: Hpa) -> u64 {
    hpa.raw() >> ADDRESS_TO_ENTRY & PAGE_NUMBER
}
