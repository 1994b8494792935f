//! Arm VMSAv8-64 stage 2 with a 4 KiB granule: 4 KiB pages, 2 MiB and 1 GiB blocks, guest
//! addresses of 32 to 48 bits.
//!
//! The rules are those of the Arm Architecture Reference Manual (DDI 0487): D8.3 for descriptor
//! formats, D8.4 and D8.6 for stage-2 permissions and memory attributes, D8.2.3 for the start level and
//! concatenated tables, D8.16 for break-before-make, D24.2 for `VTCR_EL2` and `VTTBR_EL2`. The
//! manual counts levels from the root (3 maps pages); this crate counts from the pages.

pub mod maintenance;

use super::{ByteOrder, EncodeError, Entry, FlushKind, Format, GeometryError, Rules};
use crate::address::Hpa;
use crate::attributes::{Attributes, Execute, MemoryType, Permissions};
use crate::geometry::{Geometry, Level, LevelShape};

/// Arm stage 2, 4 KiB granule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arm64;

/// What of stage 2 the CPU at hand has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent CPU feature"
)]
pub struct Arm64Features {
    /// Bits of a physical address (`ID_AA64MMFR0_EL1.PARange`): 32, 36, 40, 42, 44, 48 or more.
    pub physical_bits: u8,
    /// `FEAT_S2FWB` with `HCR_EL2.FWB` set: memory types are forced rather than combined with
    /// the guest's, and encoded differently.
    pub force_write_back: bool,
    /// `FEAT_XNX`: execution can be allowed to EL0 and EL1 separately.
    pub execute_never_extended: bool,
    /// `FEAT_HAFDBS` with `VTCR_EL2.HA` set: the hardware sets the access flag.
    pub hardware_accessed: bool,
    /// `FEAT_HAFDBS` level 2 with `VTCR_EL2.HD` set: the hardware makes writable-clean leaves
    /// writable-dirty. Counts only together with `hardware_accessed`.
    pub hardware_dirty: bool,
    /// `FEAT_VMID16` with `VTCR_EL2.VS` set: 16-bit VMIDs.
    pub vmid16: bool,
    /// `CTR_EL0.DIC`: instruction caches need no invalidation for new code.
    pub coherent_instruction_cache: bool,
}

impl Arm64Features {
    /// A CPU with 48-bit addresses and every feature.
    pub const ALL: Self = Self {
        physical_bits: 48,
        force_write_back: true,
        execute_never_extended: true,
        hardware_accessed: true,
        hardware_dirty: true,
        vmid16: true,
        coherent_instruction_cache: true,
    };

    /// A CPU with 48-bit addresses and no feature.
    pub const NONE: Self = Self {
        physical_bits: 48,
        force_write_back: false,
        execute_never_extended: false,
        hardware_accessed: false,
        hardware_dirty: false,
        vmid16: false,
        coherent_instruction_cache: false,
    };

    /// Bits of an address that an entry of this format can hold and the CPU has.
    #[inline]
    const fn address_bits(self) -> u8 {
        if self.physical_bits < ADDRESS_BITS_MAX {
            self.physical_bits
        } else {
            ADDRESS_BITS_MAX
        }
    }

    /// Whether the hardware keeps dirty bits. `VTCR_EL2.HD` does nothing while `HA` is clear, and
    /// a leaf with `DBM` would then never become writable (D8.5).
    #[inline]
    const fn keeps_dirty(self) -> bool {
        self.hardware_accessed && self.hardware_dirty
    }
}

/// The registers that point to a stage-2 tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arm64Root {
    /// `VTTBR_EL2`: root address and VMID.
    pub vttbr: u64,
    /// `VTCR_EL2`: geometry and walk attributes.
    pub vtcr: u64,
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
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const DIRTY_BIT_MODIFIER: u64 = 1 << 51;
const EXECUTE_NEVER_SHIFT: u32 = 53;
const EXECUTE_NEVER_MASK: u64 = 0b11 << EXECUTE_NEVER_SHIFT;
const SOFTWARE_SHIFT: u32 = 55;
const SOFTWARE_MASK: u64 = 0xf << SOFTWARE_SHIFT;
/// Every bit that our encoder may set in a leaf, beside the address.
const LEAF_BITS: u64 = VALID
    | TABLE_OR_PAGE
    | MEMORY_MASK
    | READ
    | WRITE
    | INNER_SHAREABLE
    | ACCESS_FLAG
    | DIRTY_BIT_MODIFIER
    | EXECUTE_NEVER_MASK
    | SOFTWARE_MASK;

const PAGE_SHIFT: u8 = 12;
const INDEX_BITS: u8 = 9;
const TABLE_BYTES: u32 = 4096;
const ADDRESS_BITS_MIN: u8 = 32;
const ADDRESS_BITS_MAX: u8 = 48;
/// A root may be up to 16 tables side by side (D8.2.3): 4 more index bits.
const CONCATENATION_BITS: u8 = 4;
const LARGEST_BLOCK: Level = Level::new(2);

impl Format for Arm64 {
    type Features = Arm64Features;
    type Root = Arm64Root;

    const NAME: &'static str = "arm64 stage 2, 4K granule";
    const BYTE_ORDER: ByteOrder = ByteOrder::Little;

    fn rules(features: &Arm64Features) -> Rules {
        Rules {
            flush: FlushKind::Broadcast,
            break_before_make: true,
            caches_invalid: false,
            hardware_accessed: features.hardware_accessed,
            hardware_dirty: features.keeps_dirty(),
        }
    }

    fn geometry(features: &Arm64Features, bits: u8) -> Result<Geometry, GeometryError> {
        // The guest's physical addresses may not outgrow the CPU's (D8.2.1).
        let highest = features.address_bits();
        let error = GeometryError {
            bits,
            format: Self::NAME,
            lowest: ADDRESS_BITS_MIN,
            highest,
        };
        if bits < ADDRESS_BITS_MIN || bits > highest {
            return Err(error);
        }
        let full = |number: u8| LevelShape {
            shift: PAGE_SHIFT + number * INDEX_BITS,
            index_bits: INDEX_BITS,
            table_bytes: TABLE_BYTES,
            leaf: Level::new(number) <= LARGEST_BLOCK,
            run_bits: 0,
        };
        // Concatenation is used as far as it goes: one level of walk less.
        let widest = INDEX_BITS + CONCATENATION_BITS;
        let root = (1..4u8)
            .find(|&number| full(number).shift + widest >= bits)
            .ok_or(error)?;
        let mut shapes = [full(0), full(1), full(2), full(3)];
        let index_bits = bits - full(root).shift;
        shapes[usize::from(root)].index_bits = index_bits;
        shapes[usize::from(root)].table_bytes =
            TABLE_BYTES << index_bits.saturating_sub(INDEX_BITS);
        Geometry::new(&shapes[..=usize::from(root)], bits).ok_or(error)
    }

    fn root(features: &Arm64Features, geometry: &Geometry, table: Hpa, vmid: u16) -> Arm64Root {
        const WRITE_BACK_WRITE_ALLOCATE: u64 = 0b01;
        const RES1: u64 = 1 << 31;
        let vmid = if features.vmid16 { vmid } else { vmid & 0xff };
        let t0sz = 64 - u64::from(geometry.address_bits());
        // SL0 for the 4K granule counts like our levels, less one: 0, 1, 2 for roots at the
        // manual's levels 2, 1, 0.
        let sl0 = geometry.root().index() as u64 - 1;
        let vtcr = RES1
            | t0sz
            | sl0 << 6
            | WRITE_BACK_WRITE_ALLOCATE << 8
            | WRITE_BACK_WRITE_ALLOCATE << 10
            | 0b11 << 12
            | physical_size(features.physical_bits) << 16
            | u64::from(features.vmid16) << 19
            | u64::from(features.hardware_accessed) << 21
            | u64::from(features.keeps_dirty()) << 22;
        Arm64Root {
            vttbr: u64::from(vmid) << 48 | table.raw(),
            vtcr,
        }
    }

    #[inline]
    fn empty(_: Level) -> u64 {
        0
    }

    #[inline]
    fn table(_: &Arm64Features, _: Level, table: Hpa) -> u64 {
        table.raw() & ADDRESS | TABLE_OR_PAGE | VALID
    }

    #[inline]
    fn leaf(
        features: &Arm64Features,
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
        let bits = features.address_bits();
        if hpa.raw() >> bits != 0 {
            return Err(EncodeError::AddressWidth { hpa, bits });
        }
        if attributes.contiguous {
            return Err(EncodeError::Contiguous(level));
        }
        let kind = if level == Level::PAGE {
            TABLE_OR_PAGE
        } else {
            0
        };
        let accessed = if attributes.accessed { ACCESS_FLAG } else { 0 };
        if attributes.software > 0xf {
            return Err(EncodeError::Software(attributes.software));
        }
        Ok(hpa.raw()
            | VALID
            | kind
            | memory_bits(*features, attributes.memory)?
            | permission_bits(*features, attributes)?
            | INNER_SHAREABLE
            | accessed
            | u64::from(attributes.software) << SOFTWARE_SHIFT)
    }

    #[inline]
    fn leaf_step(level: Level) -> u64 {
        1 << (usize::from(PAGE_SHIFT) + usize::from(INDEX_BITS) * level.index())
    }

    #[inline]
    fn decode(features: &Arm64Features, level: Level, raw: u64) -> Entry {
        if Self::is_empty(level, raw) {
            return Entry::Empty;
        }
        if Self::is_table(level, raw) {
            return Entry::Table(Self::address(features, level, raw));
        }
        match decode_leaf(*features, level, raw) {
            Some((hpa, attributes)) => Entry::Leaf { hpa, attributes },
            None => Entry::Foreign(raw),
        }
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
    fn address(_: &Arm64Features, _: Level, raw: u64) -> Hpa {
        Hpa::new(raw & ADDRESS)
    }

    fn forces(features: &Arm64Features, memory: MemoryType) -> bool {
        match memory {
            // Without forced write-back the guest may bypass caches, and without a coherent
            // instruction cache new code needs maintenance; both need a host mapping that
            // device memory may lack.
            MemoryType::WriteBack | MemoryType::WriteThrough => {
                features.force_write_back && features.coherent_instruction_cache
            }
            MemoryType::NonCacheable | MemoryType::Device | MemoryType::DeviceStrict => true,
        }
    }
}

/// `VTCR_EL2.PS` for so many physical address bits. More than 48 need `FEAT_LPA2` tables.
fn physical_size(bits: u8) -> u64 {
    match bits {
        0..=35 => 0,
        36..=39 => 1,
        40..=41 => 2,
        42..=43 => 3,
        44..=47 => 4,
        _ => 5,
    }
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
    Some(
        match (
            (raw & MEMORY_MASK) >> MEMORY_SHIFT,
            features.force_write_back,
        ) {
            (0b0000, _) => MemoryType::DeviceStrict,
            (0b0001, _) => MemoryType::Device,
            (0b0101, _) => MemoryType::NonCacheable,
            (0b1111, false) | (0b0110, true) => MemoryType::WriteBack,
            (0b1010, false) => MemoryType::WriteThrough,
            _ => return None,
        },
    )
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

fn decode_leaf(features: Arm64Features, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
    let is_page = raw & TABLE_OR_PAGE != 0;
    let hpa = Arm64::address(&features, level, raw);
    let shaped = is_page == (level == Level::PAGE)
        && level <= LARGEST_BLOCK
        && hpa.is_aligned(Arm64::leaf_step(level))
        && hpa.raw() >> features.address_bits() == 0
        && raw & !(LEAF_BITS | ADDRESS) == 0
        && raw & INNER_SHAREABLE == INNER_SHAREABLE;
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
        contiguous: false,
    };
    // What decodes to something the encoder refuses (executable device memory, say) is foreign.
    permission_bits(features, attributes)
        .is_ok()
        .then_some((hpa, attributes))
}
