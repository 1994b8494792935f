//! s390 dynamic address translation (DAT): 4 KiB pages, 1 MiB segments and 2 GiB regions, guest
//! addresses of 31 to 63 bits.
//!
//! A guest's absolute addresses are translated by tables of the same form as any other address
//! space's. The rules are those of the z/Architecture Principles of Operation (SA22-7832), chapter
//! 3, "Dynamic Address Translation" and "Translation Tables". That manual counts bits from the most
//! significant one; here bit *n* is its bit 63 − *n*.
//!
//! Three things differ from other formats:
//! * No hardware keeps accessed or dirty bits in entries. A leaf that was not used is *invalid* to the
//!   hardware but carries a mark of ours, so an access faults and makes it young again; what was
//!   written is found by write protection.
//! * The hardware may keep a valid entry until one of its own instructions invalidates it, so
//!   whoever carries out [`swap`](crate::platform::TableMemory::swap) and
//!   [`compare_exchange`](crate::platform::TableMemory::compare_exchange) issues that instruction
//!   with every change of a valid entry ([`maintenance`]).
//! * An address and the old value must suffice to know which instruction, so every entry of a page
//!   table carries a bit that no other entry has.

pub mod maintenance;

use super::{ByteOrder, EncodeError, FlushKind, Format, GeometryError, Rules};
use crate::address::Hpa;
use crate::attributes::{Attributes, Execute, MemoryType, Permissions};
use crate::geometry::{Geometry, Level, LevelShape};

/// s390 DAT tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct S390;

/// What of DAT the CPU at hand has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct S390Features {
    /// Enhanced-DAT facility 1: segments of 1 MiB as leaves.
    pub enhanced_dat_1: bool,
    /// Enhanced-DAT facility 2: regions of 2 GiB as leaves.
    pub enhanced_dat_2: bool,
    /// Instruction-execution-protection facility, enabled in control register 0: execution can be
    /// forbidden.
    pub instruction_execution_protection: bool,
}

impl S390Features {
    /// A CPU with every facility.
    pub const ALL: Self = Self {
        enhanced_dat_1: true,
        enhanced_dat_2: true,
        instruction_execution_protection: true,
    };

    /// A CPU with none.
    pub const NONE: Self = Self {
        enhanced_dat_1: false,
        enhanced_dat_2: false,
        instruction_execution_protection: false,
    };

    const fn has_leaves(self, level: Level) -> bool {
        match level.index() {
            0 => true,
            1 => self.enhanced_dat_1,
            2 => self.enhanced_dat_2,
            _ => false,
        }
    }
}

/// What points to a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct S390Root {
    /// The address-space-control element (ASCE), for the guest's state description or a control
    /// register.
    pub asce: u64,
}

/// Page-table entry: invalid.
const PAGE_INVALID: u64 = 1 << 10;
/// Segment- and region-table entry: invalid.
const INVALID: u64 = 1 << 5;
/// Segment- and region-third-table entry: format control, set in leaves.
const FORMAT_CONTROL: u64 = 1 << 10;
/// DAT protection: no stores.
const PROTECTED: u64 = 1 << 9;
/// Instruction-execution protection: no fetches.
const EXECUTE_NEVER: u64 = 1 << 8;
/// Ours, in leaves: maps something, even if invalid to the hardware.
const MAPPED: u64 = 1 << 0;
/// Ours, in every entry of a page table, empty ones included. In tables of segments and regions
/// this is the common-segment or common-region bit, which a guest's tables never set.
const PAGE_TABLE_MARK: u64 = 1 << 4;
/// Table type of a segment- or region-table entry.
const TYPE_SHIFT: u32 = 2;
/// Table length of a region-table entry, or of the root in the ASCE: all four quarters are there.
const FULL_LENGTH: u64 = 0b11;
const SOFTWARE_BITS: u64 = 0b111;
const SOFTWARE_SHIFT_PAGE: u32 = 5;
/// In larger leaves, where the access-control bits stand, which count only if bit 16 is set.
const SOFTWARE_SHIFT_LARGE: u32 = 12;

const SEGMENT: Level = Level::new(1);
const REGION_FIRST: Level = Level::new(4);
/// log2 of what one entry of each level maps.
const SHIFTS: [u8; 5] = [12, 20, 31, 42, 53];
const PAGE_INDEX_BITS: u8 = 8;
const INDEX_BITS: u8 = 11;
/// 256 entries, and as much again for the PGSTEs: what the machine and the hypervisor keep of
/// each guest page (storage key, state) stands behind the entries.
const PAGE_TABLE_BYTES: u32 = 4096;
const TABLE_BYTES: u32 = 16384;
const ADDRESS_BITS_MIN: u8 = 31;
/// The end of the last page must be a number.
const ADDRESS_BITS_MAX: u8 = 63;

impl Format for S390 {
    type Features = S390Features;
    type Root = S390Root;

    const NAME: &'static str = "s390 DAT tables";
    const BYTE_ORDER: ByteOrder = ByteOrder::Big;
    const SHIFTS: &'static [u8] = &SHIFTS;

    fn rules(_: &S390Features) -> Rules {
        Rules {
            flush: FlushKind::Broadcast,
            break_before_make: true,
            caches_invalid: false,
            hardware_accessed: false,
            hardware_dirty: false,
        }
    }

    fn geometry(features: &S390Features, bits: u8) -> Result<Geometry, GeometryError> {
        let error = GeometryError {
            bits,
            format: Self::NAME,
            lowest: ADDRESS_BITS_MIN,
            highest: ADDRESS_BITS_MAX,
        };
        if !(ADDRESS_BITS_MIN..=ADDRESS_BITS_MAX).contains(&bits) {
            return Err(error);
        }
        let shape = |number: u8| LevelShape {
            shift: shift(Level::new(number)),
            index_bits: if number == 0 {
                PAGE_INDEX_BITS
            } else if Level::new(number) == REGION_FIRST {
                ADDRESS_BITS_MAX - shift(REGION_FIRST)
            } else {
                INDEX_BITS
            },
            table_bytes: if number == 0 {
                PAGE_TABLE_BYTES
            } else {
                TABLE_BYTES
            },
            leaf: features.has_leaves(Level::new(number)),
            run_bits: 0,
        };
        let shapes = [0, 1, 2, 3, 4].map(shape);
        let root = (1..shapes.len())
            .find(|&number| shapes[number].shift + shapes[number].index_bits >= bits)
            .ok_or(error)?;
        Geometry::new(&shapes[..=root], bits).ok_or(error)
    }

    fn root(_: &S390Features, geometry: &Geometry, table: Hpa, _: u16) -> S390Root {
        // The designation type counts up from segment tables. The length is in quarters of a full
        // table, less one: of a region-first table only the lower half is there.
        let root = geometry.root();
        let quarters = 1 << geometry.shape(root).index_bits >> (INDEX_BITS - 2);
        S390Root {
            asce: table.raw() | table_type(root) | (quarters - 1),
        }
    }

    #[inline]
    fn empty(level: Level) -> u64 {
        if level == Level::PAGE {
            PAGE_INVALID | PAGE_TABLE_MARK
        } else {
            INVALID | table_type(level)
        }
    }

    #[inline]
    fn table(_: &S390Features, level: Level, table: Hpa) -> u64 {
        table.raw() & !below_origin(level) | table_bits(level)
    }

    #[inline]
    fn leaf(
        features: &S390Features,
        level: Level,
        hpa: Hpa,
        attributes: Attributes,
    ) -> Result<u64, EncodeError> {
        if !features.has_leaves(level) {
            return Err(EncodeError::NoLeaf(level));
        }
        if !hpa.is_aligned(Self::leaf_step(level)) {
            return Err(EncodeError::Unaligned { hpa, level });
        }
        if attributes.contiguous {
            return Err(EncodeError::Contiguous(level));
        }
        Ok(hpa.raw() | leaf_bits(level) | attribute_bits(*features, level, attributes)?)
    }

    #[inline]
    fn leaf_step(level: Level) -> u64 {
        1 << shift(level)
    }

    #[inline]
    fn decode_leaf(features: &S390Features, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
        decode_leaf(*features, level, raw)
    }

    #[inline]
    fn is_empty(level: Level, raw: u64) -> bool {
        // An invalid entry with our mark is a leaf that was not used. In region-table entries
        // without format control, the mark's bit is one of the length.
        match level.index() {
            0 => raw & (PAGE_INVALID | MAPPED) == PAGE_INVALID,
            1 | 2 => {
                let leaf = FORMAT_CONTROL | MAPPED;
                raw & INVALID != 0 && raw & leaf != leaf
            }
            _ => raw & INVALID != 0,
        }
    }

    #[inline]
    fn is_table(level: Level, raw: u64) -> bool {
        level != Level::PAGE && raw & below_origin(level) == table_bits(level)
    }

    #[inline]
    fn address(_: &S390Features, level: Level, raw: u64) -> Hpa {
        if Self::is_table(level, raw) {
            Hpa::new(raw & !below_origin(level))
        } else {
            Hpa::new(raw & !(Self::leaf_step(level) - 1))
        }
    }

    #[inline]
    fn is_in_run(_: Level, _: u64) -> bool {
        false
    }

    fn forces(_: &S390Features, memory: MemoryType) -> bool {
        // There is one memory type, and nothing by which a guest could ask for another.
        memory == MemoryType::WriteBack
    }
}

#[inline]
const fn shift(level: Level) -> u8 {
    let last = SHIFTS.len() - 1;
    let index = level.index();
    SHIFTS[if index < last { index } else { last }]
}

/// The bits of a table pointer that are no part of the table's address: a segment-table entry's
/// origin ends at 2 KiB, the others' at 4 KiB.
#[inline]
const fn below_origin(level: Level) -> u64 {
    if level.index() == SEGMENT.index() {
        0x7ff
    } else {
        0xfff
    }
}

/// Table type, in entries of segment and region tables, and designation type, in the ASCE.
#[inline]
const fn table_type(level: Level) -> u64 {
    (level.index() as u64).wrapping_sub(1) << TYPE_SHIFT & 0b11 << TYPE_SHIFT
}

/// A table pointer without its address. Region-table entries have the length of the table that
/// they point to: it is always a full one, with no entries left out at its start.
#[inline]
const fn table_bits(level: Level) -> u64 {
    if level.index() == SEGMENT.index() {
        table_type(level)
    } else {
        table_type(level) | FULL_LENGTH
    }
}

/// What makes an entry of this level a leaf of ours.
#[inline]
const fn leaf_bits(level: Level) -> u64 {
    if level.index() == 0 {
        MAPPED | PAGE_TABLE_MARK
    } else {
        MAPPED | FORMAT_CONTROL | table_type(level)
    }
}

#[inline]
const fn invalid_bit(level: Level) -> u64 {
    if level.index() == 0 {
        PAGE_INVALID
    } else {
        INVALID
    }
}

#[inline]
const fn software_shift(level: Level) -> u32 {
    if level.index() == 0 {
        SOFTWARE_SHIFT_PAGE
    } else {
        SOFTWARE_SHIFT_LARGE
    }
}

#[inline]
fn attribute_bits(
    features: S390Features,
    level: Level,
    attributes: Attributes,
) -> Result<u64, EncodeError> {
    let Attributes {
        permissions,
        memory,
        accessed,
        dirty,
        software,
        ..
    } = attributes;
    if memory != MemoryType::WriteBack {
        return Err(EncodeError::MemoryType(memory));
    }
    if dirty {
        return Err(EncodeError::Dirty);
    }
    if u64::from(software) & !SOFTWARE_BITS != 0 {
        return Err(EncodeError::Software(software));
    }
    let execute_never = match permissions.execute {
        Execute::Always => 0,
        Execute::Never if features.instruction_execution_protection => EXECUTE_NEVER,
        Execute::Never | Execute::Privileged | Execute::Unprivileged => {
            return Err(EncodeError::Permissions(permissions));
        }
    };
    // What is valid can be read.
    if !permissions.read {
        return Err(EncodeError::Permissions(permissions));
    }
    let protected = if permissions.write { 0 } else { PROTECTED };
    let invalid = if accessed { 0 } else { invalid_bit(level) };
    Ok(execute_never | protected | invalid | u64::from(software) << software_shift(level))
}

fn decode_leaf(features: S390Features, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
    let below = raw & (S390::leaf_step(level) - 1);
    let software = SOFTWARE_BITS << software_shift(level);
    let known = leaf_bits(level) | EXECUTE_NEVER | PROTECTED | invalid_bit(level) | software;
    let shaped = features.has_leaves(level)
        && below & leaf_bits(level) == leaf_bits(level)
        && below & !known == 0;
    if !shaped {
        return None;
    }
    let execute = match raw & EXECUTE_NEVER {
        0 => Execute::Always,
        _ if features.instruction_execution_protection => Execute::Never,
        _ => return None,
    };
    let attributes = Attributes {
        permissions: Permissions {
            read: true,
            write: raw & PROTECTED == 0,
            execute,
        },
        memory: MemoryType::WriteBack,
        accessed: raw & invalid_bit(level) == 0,
        dirty: false,
        software: u8::try_from((raw & software) >> software_shift(level)).ok()?,
        contiguous: false,
    };
    Some((Hpa::new(raw - below), attributes))
}
