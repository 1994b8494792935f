//! Armv7 LPAE stage 2: 4 KiB pages, 2 MiB and 1 GiB blocks, guest addresses of 32 to 40 bits in
//! trees of two or three levels.
//!
//! The rules are those of the Arm Architecture Reference Manual for Armv7 (DDI 0406): B3.6 for the
//! long-descriptor format and concatenated tables, B3.7 for permissions, B3.8 for memory
//! attributes, B3.10 for TLB maintenance, B4.1 for `VTCR` and `VTTBR`. The manual counts levels
//! from the root (3 maps pages); this crate counts from the pages.
//!
//! | bits | field | from |
//! |---|---|---|
//! | 0, 1 | valid, table or page | every descriptor |
//! | 5:2 | `MemAttr` | [`Attributes::memory`] |
//! | 7:6 | `HAP` | read, write |
//! | 9:8 | `SH` | always inner shareable |
//! | 10 | `AF` | [`Attributes::accessed`]; an access to a leaf without it faults |
//! | 39:12 | output address | |
//! | 52 | contiguous hint | [`Attributes::contiguous`]: 16 leaves |
//! | 54 | `XN` | execute, for all or nobody |
//! | 58:55 | for software | [`Attributes::software`] |
//!
//! The others are reserved (11, 51:40, 53) or ignored by the hardware (63:59); a descriptor that
//! has one of them set decodes as foreign. Where inner and outer cacheability differ, `MemAttr`
//! names a type that [`MemoryType`] does not have.
//!
//! Descriptors have 64 bits on a 32-bit CPU. With LPAE an aligned `LDRD` or `STRD` is one access
//! to memory (A3.5.3), and `LDREXD` and `STREXD` make the exchanges.

pub mod maintenance;

use super::{ByteOrder, EncodeError, FlushKind, Format, GeometryError, Rules};
use crate::address::Hpa;
use crate::attributes::{Attributes, Execute, MemoryType, Permissions};
use crate::geometry::{Geometry, Level, LevelShape, level_shifts};

/// Armv7 LPAE stage 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Armv7;

/// What of stage 2 the CPU at hand has: all of it. Nothing that an entry or a register says
/// depends on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Armv7Features;

impl Armv7Features {
    /// A CPU with everything.
    pub const ALL: Self = Self;

    /// A CPU with nothing that could be missing.
    pub const NONE: Self = Self;
}

/// The registers that point to a stage-2 tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Armv7Root {
    /// `VTTBR`: root address and VMID.
    pub vttbr: u64,
    /// `VTCR`: geometry and walk attributes.
    pub vtcr: u32,
}

const VALID: u64 = 1 << 0;
/// Set in table pointers and pages, clear in blocks.
const TABLE_OR_PAGE: u64 = 1 << 1;
const MEMORY_SHIFT: u32 = 2;
const MEMORY_MASK: u64 = 0xf << MEMORY_SHIFT;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESS_FLAG: u64 = 1 << 10;
const ADDRESS: u64 = 0x00ff_ffff_f000;
const CONTIGUOUS: u64 = 1 << 52;
const EXECUTE_NEVER: u64 = 1 << 54;
const SOFTWARE_SHIFT: u32 = 55;
const SOFTWARE_MASK: u64 = 0xf << SOFTWARE_SHIFT;
/// Every bit that the encoder may set in a leaf.
const LEAF_BITS: u64 = VALID
    | TABLE_OR_PAGE
    | MEMORY_MASK
    | READ
    | WRITE
    | INNER_SHAREABLE
    | ACCESS_FLAG
    | ADDRESS
    | CONTIGUOUS
    | EXECUTE_NEVER
    | SOFTWARE_MASK;

const PAGE_SHIFT: u8 = 12;
const INDEX_BITS: u8 = 9;
const TABLE_BYTES: u32 = 4096;
const ADDRESS_BITS_MIN: u8 = 32;
const ADDRESS_BITS_MAX: u8 = 40;
/// A root may be up to 16 tables side by side (B3.6): 4 more index bits.
const CONCATENATION_BITS: u8 = 4;
const LARGEST_BLOCK: Level = Level::new(2);
/// The contiguous hint is for 16 leaves of any level (B3.6).
const RUN_BITS: u8 = 4;

impl Format for Armv7 {
    type Features = Armv7Features;
    type Root = Armv7Root;

    const NAME: &'static str = "Armv7 LPAE stage 2";
    const BYTE_ORDER: ByteOrder = ByteOrder::Little;
    const SHIFTS: &'static [u8] = &level_shifts::<3>(PAGE_SHIFT, INDEX_BITS);

    fn rules(_: &Armv7Features) -> Rules {
        Rules {
            flush: FlushKind::Broadcast,
            break_before_make: true,
            caches_invalid: false,
            hardware_accessed: false,
            hardware_dirty: false,
        }
    }

    fn geometry(_: &Armv7Features, bits: u8) -> Result<Geometry, GeometryError> {
        let error = GeometryError {
            bits,
            format: Self::NAME,
            lowest: ADDRESS_BITS_MIN,
            highest: ADDRESS_BITS_MAX,
        };
        if !(ADDRESS_BITS_MIN..=ADDRESS_BITS_MAX).contains(&bits) {
            return Err(error);
        }
        let shape = |number: u8, index_bits: u8| LevelShape {
            shift: Self::SHIFTS[usize::from(number)],
            index_bits,
            table_bytes: TABLE_BYTES << index_bits.saturating_sub(INDEX_BITS),
            leaf: true,
            run_bits: RUN_BITS,
        };
        // Concatenation is used as far as it goes: one level of walk less.
        let widest_of_two_levels = PAGE_SHIFT + 2 * INDEX_BITS + CONCATENATION_BITS;
        let root = if bits <= widest_of_two_levels { 1 } else { 2 };
        let mut shapes = [0, 1, 2].map(|number| shape(number, INDEX_BITS));
        shapes[usize::from(root)] = shape(root, bits - PAGE_SHIFT - root * INDEX_BITS);
        Geometry::new(&shapes[..=usize::from(root)], bits).ok_or(error)
    }

    fn vmid_bits(_: &Armv7Features) -> u8 {
        8
    }

    fn root(_: &Armv7Features, geometry: &Geometry, table: Hpa, vmid: u16) -> Armv7Root {
        const RES1: u32 = 1 << 31;
        const WRITE_BACK_WRITE_ALLOCATE: u32 = 0b01;
        const SHAREABLE_INNER: u32 = 0b11;
        // A signed number in bits 3:0, with its sign again in bit 4.
        let t0sz = 32_u32.wrapping_sub(geometry.address_bits().into()) & 0b1_1111;
        // The manual's levels 2 and 1, our 1 and 2, are SL0 0 and 1.
        let sl0 = u32::from(geometry.root() == LARGEST_BLOCK);
        Armv7Root {
            vttbr: u64::from(vmid & 0xff) << 48 | table.raw() & ADDRESS,
            vtcr: RES1
                | t0sz
                | sl0 << 6
                | WRITE_BACK_WRITE_ALLOCATE << 8
                | WRITE_BACK_WRITE_ALLOCATE << 10
                | SHAREABLE_INNER << 12,
        }
    }

    #[inline]
    fn empty(_: Level) -> u64 {
        0
    }

    #[inline]
    fn table(_: &Armv7Features, _: Level, table: Hpa) -> u64 {
        table.raw() & ADDRESS | TABLE_OR_PAGE | VALID
    }

    #[inline]
    fn leaf(
        _: &Armv7Features,
        level: Level,
        hpa: Hpa,
        attributes: Attributes,
    ) -> Result<u64, EncodeError> {
        if level > LARGEST_BLOCK {
            return Err(EncodeError::NoLeaf(level));
        }
        if !hpa.is_aligned(Self::leaf_step(level)) {
            return Err(EncodeError::Unaligned { hpa, level });
        }
        if hpa.raw() >> ADDRESS_BITS_MAX != 0 {
            let bits = ADDRESS_BITS_MAX;
            return Err(EncodeError::AddressWidth { hpa, bits });
        }
        if attributes.dirty {
            return Err(EncodeError::Dirty);
        }
        if attributes.software > 0xf {
            return Err(EncodeError::Software(attributes.software));
        }
        let set = |condition: bool, bits: u64| if condition { bits } else { 0 };
        Ok(hpa.raw()
            | VALID
            | set(level == Level::PAGE, TABLE_OR_PAGE)
            | memory_bits(attributes.memory)
            | permission_bits(attributes)?
            | INNER_SHAREABLE
            | set(attributes.accessed, ACCESS_FLAG)
            | set(attributes.contiguous, CONTIGUOUS)
            | u64::from(attributes.software) << SOFTWARE_SHIFT)
    }

    #[inline]
    fn leaf_step(level: Level) -> u64 {
        let shift = usize::from(PAGE_SHIFT) + usize::from(INDEX_BITS) * level.index();
        // Wraps for levels that no tree has.
        1 << (shift & 63)
    }

    #[inline]
    fn decode_leaf(features: &Armv7Features, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
        let attributes = decode_attributes(level, raw)?;
        Some((Self::address(features, level, raw), attributes))
    }

    #[inline]
    fn is_empty(_: Level, raw: u64) -> bool {
        raw & VALID == 0
    }

    #[inline]
    fn is_table(level: Level, raw: u64) -> bool {
        level != Level::PAGE && raw & (TABLE_OR_PAGE | VALID) == TABLE_OR_PAGE | VALID
    }

    #[inline]
    fn address(_: &Armv7Features, level: Level, raw: u64) -> Hpa {
        let hpa = Hpa::new(raw & ADDRESS);
        let is_leaf = level <= LARGEST_BLOCK && !Self::is_table(level, raw);
        if raw & CONTIGUOUS != 0 && is_leaf {
            hpa.align_down(Self::leaf_step(level) << RUN_BITS)
        } else {
            hpa
        }
    }

    #[inline]
    fn is_in_run(_: Level, raw: u64) -> bool {
        raw & CONTIGUOUS != 0
    }

    fn forces(_: &Armv7Features, memory: MemoryType) -> bool {
        match memory {
            // The guest may bypass caches, and new code needs cache maintenance; both need a host
            // mapping that device memory may lack.
            MemoryType::WriteBack | MemoryType::WriteThrough => false,
            MemoryType::NonCacheable | MemoryType::Device | MemoryType::DeviceStrict => true,
        }
    }
}

/// `MemAttr[3:0]` (B3.8): outer, then inner cacheability; or a kind of device.
#[inline]
const fn memory_bits(memory: MemoryType) -> u64 {
    let bits = match memory {
        MemoryType::DeviceStrict => 0b0000,
        MemoryType::Device => 0b0001,
        MemoryType::NonCacheable => 0b0101,
        MemoryType::WriteThrough => 0b1010,
        MemoryType::WriteBack => 0b1111,
    };
    bits << MEMORY_SHIFT
}

const fn decode_memory(raw: u64) -> Option<MemoryType> {
    match (raw & MEMORY_MASK) >> MEMORY_SHIFT {
        0b0000 => Some(MemoryType::DeviceStrict),
        0b0001 => Some(MemoryType::Device),
        0b0101 => Some(MemoryType::NonCacheable),
        0b1010 => Some(MemoryType::WriteThrough),
        0b1111 => Some(MemoryType::WriteBack),
        _ => None,
    }
}

/// `HAP` and `XN` (B3.7).
#[inline]
fn permission_bits(attributes: Attributes) -> Result<u64, EncodeError> {
    let Attributes {
        permissions,
        memory,
        ..
    } = attributes;
    let device = matches!(memory, MemoryType::Device | MemoryType::DeviceStrict);
    let execute_never = match permissions.execute {
        Execute::Never => EXECUTE_NEVER,
        _ if device => return Err(EncodeError::ExecutableDevice(memory)),
        Execute::Always => 0,
        Execute::Privileged | Execute::Unprivileged => {
            return Err(EncodeError::Permissions(permissions));
        }
    };
    let read = if permissions.read { READ } else { 0 };
    let write = if permissions.write { WRITE } else { 0 };
    Ok(read | write | execute_never)
}

/// What a valid descriptor that is no table pointer says beside its address; `None` if no leaf of
/// ours says it.
fn decode_attributes(level: Level, raw: u64) -> Option<Attributes> {
    let is_page = raw & TABLE_OR_PAGE != 0;
    let shaped = is_page == (level == Level::PAGE)
        && level <= LARGEST_BLOCK
        && Hpa::new(raw & ADDRESS).is_aligned(Armv7::leaf_step(level))
        && raw & !LEAF_BITS == 0
        && raw & INNER_SHAREABLE == INNER_SHAREABLE;
    if !shaped {
        return None;
    }
    let execute = if raw & EXECUTE_NEVER == 0 {
        Execute::Always
    } else {
        Execute::Never
    };
    let attributes = Attributes {
        permissions: Permissions {
            read: raw & READ != 0,
            write: raw & WRITE != 0,
            execute,
        },
        memory: decode_memory(raw)?,
        accessed: raw & ACCESS_FLAG != 0,
        dirty: false,
        software: u8::try_from((raw & SOFTWARE_MASK) >> SOFTWARE_SHIFT).ok()?,
        contiguous: raw & CONTIGUOUS != 0,
    };
    // What the encoder refuses, executable device memory, is foreign.
    permission_bits(attributes).is_ok().then_some(attributes)
}
