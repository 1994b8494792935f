//! Descriptors: what their bits mean, beside the address (D8.3).
//!
//! | bits | field | from |
//! |---|---|---|
//! | 0, 1 | valid, table or page | every descriptor |
//! | 5:2 | `MemAttr` | [`Attributes::memory`] |
//! | 7:6 | `S2AP` | read, write; write of a leaf that is not dirty only without dirty tracking |
//! | 9:8 | `SH` | always inner shareable; with `FEAT_LPA2` bits 51:50 of the address |
//! | 10 | `AF` | [`Attributes::accessed`] |
//! | 51 | `DBM` | write, where the hardware keeps dirty bits |
//! | 52 | Contiguous | [`Attributes::contiguous`] |
//! | 54:53 | `XN` | execute; bit 53 only with `FEAT_XNX` |
//! | 58:55 | for software | [`Attributes::software`] |
//!
//! Left alone on purpose; a descriptor that has one of them set decodes as foreign:
//!
//! | bits | field | why not |
//! |---|---|---|
//! | 5 with `FEAT_S2FWB` | `MemAttr[3]`, `NoTagAccess` with `FEAT_MTE_PERM` | no attribute asks for it |
//! | 11 | `FnXS` | only tells invalidations that skip some accesses (`nXS`); none of ours does |
//! | 16 of a block | `nT` | a way round break-before-make, which is always done here |
//! | 50 (49:48 too without `FEAT_LPA2`) | reserved | |
//! | 62:59 | `PBHA` | what it does differs from CPU to CPU |
//! | 63 | ignored | by the hardware, and by us |
//!
//! `MemAttr` of `Device-GRE` and `Device-nGRE`, of inner and outer cacheability that differ, and
//! of "as the guest says" with `FEAT_S2FWB` name memory types that
//! [`MemoryType`] does not have.

use super::features::Arm64Features;
use super::granule::{
    Granule, address_bits, bytes, largest_block, pack, run_bits, run_bytes, unpack,
};
use crate::address::Hpa;
use crate::attributes::{Attributes, Execute, MemoryType, Permissions};
use crate::format::EncodeError;
use crate::geometry::Level;

pub(super) const VALID: u64 = 1 << 0;
/// Set in table pointers and pages, clear in blocks.
pub(super) const TABLE_OR_PAGE: u64 = 1 << 1;
const MEMORY_SHIFT: u32 = 2;
const MEMORY_MASK: u64 = 0xf << MEMORY_SHIFT;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const ACCESS_FLAG: u64 = 1 << 10;
const DIRTY_BIT_MODIFIER: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;
const EXECUTE_NEVER_SHIFT: u32 = 53;
const EXECUTE_NEVER_MASK: u64 = 0b11 << EXECUTE_NEVER_SHIFT;
const SOFTWARE_SHIFT: u32 = 55;
const SOFTWARE_MASK: u64 = 0xf << SOFTWARE_SHIFT;
/// Every bit that the encoder may set in a leaf, beside address and shareability.
const LEAF_BITS: u64 = VALID
    | TABLE_OR_PAGE
    | MEMORY_MASK
    | READ
    | WRITE
    | ACCESS_FLAG
    | DIRTY_BIT_MODIFIER
    | CONTIGUOUS
    | EXECUTE_NEVER_MASK
    | SOFTWARE_MASK;

/// The descriptor of a leaf.
#[inline]
pub(super) fn leaf<G: Granule>(
    features: Arm64Features,
    level: Level,
    hpa: Hpa,
    attributes: Attributes,
) -> Result<u64, EncodeError> {
    if level > largest_block::<G>(features) {
        return Err(EncodeError::NoLeaf(level));
    }
    if !hpa.is_aligned(bytes::<G>(level)) {
        return Err(EncodeError::Unaligned { hpa, level });
    }
    let bits = address_bits::<G>(features);
    if hpa.raw() >> bits != 0 {
        return Err(EncodeError::AddressWidth { hpa, bits });
    }
    let kind = if level == Level::PAGE {
        TABLE_OR_PAGE
    } else {
        0
    };
    let accessed = if attributes.accessed { ACCESS_FLAG } else { 0 };
    let contiguous = match (attributes.contiguous, run_bits::<G>(level)) {
        (false, _) => 0,
        (true, 0) => return Err(EncodeError::Contiguous(level)),
        (true, _) => CONTIGUOUS,
    };
    if attributes.software > 0xf {
        return Err(EncodeError::Software(attributes.software));
    }
    Ok(pack::<G>(hpa)
        | VALID
        | kind
        | memory_bits(features, attributes.memory)?
        | permission_bits(features, attributes)?
        | G::SHAREABILITY
        | accessed
        | contiguous
        | u64::from(attributes.software) << SOFTWARE_SHIFT)
}

/// The address in a table pointer or leaf; of a leaf that is one of a run, the run's first.
#[inline]
pub(super) fn address<G: Granule>(level: Level, raw: u64) -> Hpa {
    let hpa = unpack::<G>(raw);
    let is_leaf = level == Level::PAGE || raw & TABLE_OR_PAGE == 0;
    if raw & CONTIGUOUS != 0 && is_leaf {
        hpa.align_down(run_bytes::<G>(level))
    } else {
        hpa
    }
}

/// What a valid descriptor that is no table pointer says; `None` if no leaf of ours says it.
pub(super) fn decode_leaf<G: Granule>(
    features: Arm64Features,
    level: Level,
    raw: u64,
) -> Option<(Hpa, Attributes)> {
    let is_page = raw & TABLE_OR_PAGE != 0;
    let hpa = unpack::<G>(raw);
    let contiguous = raw & CONTIGUOUS != 0;
    let shaped = is_page == (level == Level::PAGE)
        && level <= largest_block::<G>(features)
        && hpa.is_aligned(bytes::<G>(level))
        && hpa.raw() >> address_bits::<G>(features) == 0
        && raw & !(LEAF_BITS | G::ADDRESS | G::SHAREABILITY) == 0
        && raw & G::SHAREABILITY == G::SHAREABILITY
        && !(contiguous && run_bits::<G>(level) == 0);
    if !shaped {
        return None;
    }
    let (writes, modifier) = (raw & WRITE != 0, raw & DIRTY_BIT_MODIFIER != 0);
    // Where dirty bits are kept, a leaf that is writable without the modifier could be written
    // without a trace; where they are not, the modifier means nothing. We make neither.
    if (writes && !modifier && features.keeps_dirty()) || (modifier && !features.keeps_dirty()) {
        return None;
    }
    let execute = match (raw & EXECUTE_NEVER_MASK) >> EXECUTE_NEVER_SHIFT {
        0b00 => Execute::Always,
        0b10 => Execute::Never,
        0b01 if features.execute_never_extended => Execute::Unprivileged,
        0b11 if features.execute_never_extended => Execute::Privileged,
        _ => return None,
    };
    let permissions = Permissions {
        read: raw & READ != 0,
        write: writes || modifier,
        execute,
    };
    let attributes = Attributes {
        permissions,
        memory: decode_memory(features, raw)?,
        accessed: raw & ACCESS_FLAG != 0,
        dirty: writes && modifier,
        software: u8::try_from((raw & SOFTWARE_MASK) >> SOFTWARE_SHIFT).ok()?,
        contiguous,
    };
    // What decodes to something the encoder refuses (executable device memory, say) is foreign.
    permission_bits(features, attributes)
        .is_ok()
        .then_some((address::<G>(level, raw), attributes))
}

/// `MemAttr`: D8.6.5 without, D8.6.6 with `FEAT_S2FWB`.
#[inline]
fn memory_bits(features: Arm64Features, memory: MemoryType) -> Result<u64, EncodeError> {
    let bits = match (memory, features.force_write_back) {
        (MemoryType::DeviceStrict, _) => 0b0000,
        (MemoryType::Device, _) => 0b0001,
        (MemoryType::NonCacheable, _) => 0b0101,
        (MemoryType::WriteBack, false) => 0b1111,
        (MemoryType::WriteBack, true) => 0b0110,
        (MemoryType::WriteThrough, false) => 0b1010,
        (MemoryType::WriteThrough, true) => return Err(EncodeError::MemoryType(memory)),
    };
    Ok(bits << MEMORY_SHIFT)
}

fn decode_memory(features: Arm64Features, raw: u64) -> Option<MemoryType> {
    let bits = (raw & MEMORY_MASK) >> MEMORY_SHIFT;
    Some(match (bits, features.force_write_back) {
        (0b0000, _) => MemoryType::DeviceStrict,
        (0b0001, _) => MemoryType::Device,
        (0b0101, _) => MemoryType::NonCacheable,
        (0b1111, false) | (0b0110, true) => MemoryType::WriteBack,
        (0b1010, false) => MemoryType::WriteThrough,
        _ => return None,
    })
}

/// `S2AP`, `DBM` and `XN` (D8.4).
#[inline]
fn permission_bits(features: Arm64Features, attributes: Attributes) -> Result<u64, EncodeError> {
    let Attributes {
        permissions,
        memory,
        dirty,
        ..
    } = attributes;
    let device = matches!(memory, MemoryType::Device | MemoryType::DeviceStrict);
    if device && permissions.execute != Execute::Never {
        return Err(EncodeError::ExecutableDevice(memory));
    }
    if dirty && !(features.keeps_dirty() && permissions.write) {
        return Err(EncodeError::Dirty);
    }
    let read = if permissions.read { READ } else { 0 };
    let write = match (permissions.write, features.keeps_dirty(), dirty) {
        (false, _, _) => 0,
        (true, false, _) => WRITE,
        (true, true, true) => WRITE | DIRTY_BIT_MODIFIER,
        (true, true, false) => DIRTY_BIT_MODIFIER,
    };
    let extended = features.execute_never_extended;
    let execute_never = match permissions.execute {
        Execute::Always => 0b00,
        Execute::Never => 0b10,
        Execute::Unprivileged if extended => 0b01,
        Execute::Privileged if extended => 0b11,
        Execute::Privileged | Execute::Unprivileged => {
            return Err(EncodeError::Permissions(permissions));
        }
    };
    Ok(read | write | execute_never << EXECUTE_NEVER_SHIFT)
}
