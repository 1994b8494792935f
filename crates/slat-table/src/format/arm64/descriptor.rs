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
pub(super) const CONTIGUOUS: u64 = 1 << 52;
const EXECUTE_NEVER_SHIFT: u32 = 53;
const EXECUTE_NEVER_MASK: u64 = 0b11 << EXECUTE_NEVER_SHIFT;
const SOFTWARE_SHIFT: u32 = 55;
const SOFTWARE_MAX: u64 = 0xf;
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
    | SOFTWARE_MAX << SOFTWARE_SHIFT;

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
    if u64::from(attributes.software) > SOFTWARE_MAX {
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
#[inline]
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
    let execute_never = (raw & EXECUTE_NEVER_MASK) >> EXECUTE_NEVER_SHIFT;
    if execute_never & 1 != 0 && !features.execute_never_extended {
        return None;
    }
    let execute = EXECUTE[(execute_never & 0b11) as usize];
    let memory = decode_memory(features, raw)?;
    // What the encoder refuses is foreign.
    if is_executable_device(memory, execute) {
        return None;
    }
    let permissions = Permissions {
        read: raw & READ != 0,
        write: writes || modifier,
        execute,
    };
    let attributes = Attributes {
        permissions,
        memory,
        accessed: raw & ACCESS_FLAG != 0,
        dirty: writes && modifier,
        software: (raw >> SOFTWARE_SHIFT & SOFTWARE_MAX) as u8,
        contiguous,
    };
    Some((address::<G>(level, raw), attributes))
}

/// `MemAttr`: D8.6.5 without, D8.6.6 with `FEAT_S2FWB`.
#[inline]
fn memory_bits(features: Arm64Features, memory: MemoryType) -> Result<u64, EncodeError> {
    let (without, with) = match memory {
        MemoryType::DeviceStrict => (0b0000, Some(0b0000)),
        MemoryType::Device => (0b0001, Some(0b0001)),
        MemoryType::NonCacheable => (0b0101, Some(0b0101)),
        MemoryType::WriteBack => (0b1111, Some(0b0110)),
        MemoryType::WriteThrough => (0b1010, None),
    };
    let bits: Option<u64> = if features.force_write_back {
        with
    } else {
        Some(without)
    };
    let bits = bits.ok_or(EncodeError::MemoryType(memory))?;
    Ok(bits << MEMORY_SHIFT)
}

/// What `MemAttr` names, by its value: without `FEAT_S2FWB`, and with.
const MEMORY: [[Option<MemoryType>; 16]; 2] = {
    let mut without = [None; 16];
    without[0b0000] = Some(MemoryType::DeviceStrict);
    without[0b0001] = Some(MemoryType::Device);
    without[0b0101] = Some(MemoryType::NonCacheable);
    let mut with = without;
    without[0b1111] = Some(MemoryType::WriteBack);
    without[0b1010] = Some(MemoryType::WriteThrough);
    with[0b0110] = Some(MemoryType::WriteBack);
    [without, with]
};

#[inline]
const fn decode_memory(features: Arm64Features, raw: u64) -> Option<MemoryType> {
    let bits = (raw & MEMORY_MASK) >> MEMORY_SHIFT;
    MEMORY[features.force_write_back as usize][bits as usize]
}

/// What `XN` says, by its value (D8.4).
const EXECUTE: [Execute; 4] = [
    Execute::Always,
    Execute::Unprivileged,
    Execute::Never,
    Execute::Privileged,
];

/// `XN`: the inverse of [`EXECUTE`].
#[inline]
const fn execute_never(execute: Execute) -> u64 {
    match execute {
        Execute::Always => 0b00,
        Execute::Unprivileged => 0b01,
        Execute::Never => 0b10,
        Execute::Privileged => 0b11,
    }
}

/// Instructions may not be fetched from devices.
#[inline]
fn is_executable_device(memory: MemoryType, execute: Execute) -> bool {
    matches!(memory, MemoryType::Device | MemoryType::DeviceStrict) && execute != Execute::Never
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
    if is_executable_device(memory, permissions.execute) {
        return Err(EncodeError::ExecutableDevice(memory));
    }
    if dirty && !(features.keeps_dirty() && permissions.write) {
        return Err(EncodeError::Dirty);
    }
    let execute_never = execute_never(permissions.execute);
    if execute_never & 1 != 0 && !features.execute_never_extended {
        return Err(EncodeError::Permissions(permissions));
    }
    let read = if permissions.read { READ } else { 0 };
    let write = match (permissions.write, features.keeps_dirty()) {
        (false, _) => 0,
        (true, false) => WRITE,
        (true, true) => DIRTY_BIT_MODIFIER,
    };
    // A dirty leaf has the modifier by being writable.
    let dirty = if dirty { WRITE } else { 0 };
    Ok(read | write | dirty | execute_never << EXECUTE_NEVER_SHIFT)
}
