//! Intel EPT, the extended page tables: 4 KiB pages, 2 MiB and 1 GiB blocks, 4 levels for guest
//! addresses of up to 48 bits and 5 for up to 57.
//!
//! The rules are those of the Intel Software Developer's Manual, volume 3, in the numbering in which
//! chapter 29 is "VMX Support for Address Translation": 29.3.2 for the walk and the formats of
//! entries, 29.3.3.1 for what is a misconfiguration, 29.3.5 for accessed and dirty flags, 29.3.7 for
//! memory types, 25.6.11 for the EPT pointer. An entry that would be a misconfiguration is never
//! made: the encoder refuses what would need one.

pub mod maintenance;

use super::{ByteOrder, EncodeError, FlushKind, Format, GeometryError, Rules};
use crate::address::Hpa;
use crate::attributes::{Attributes, Execute, MemoryType, Permissions};
use crate::geometry::{Geometry, Level, LevelShape, level_shifts};

/// Intel EPT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ept;

/// What of EPT the CPU at hand has and the hypervisor has turned on. "Capability" is a bit of the
/// MSR `IA32_VMX_EPT_VPID_CAP` (appendix A.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent CPU feature"
)]
pub struct EptFeatures {
    /// Bits of a physical address (`MAXPHYADDR`), at most 52.
    pub physical_bits: u8,
    /// Capability 7: a walk of 5 levels, used for guest addresses of more than 48 bits.
    pub five_levels: bool,
    /// Capability 16: 2 MiB blocks.
    pub blocks_2m: bool,
    /// Capability 17: 1 GiB blocks.
    pub blocks_1g: bool,
    /// Capability 0: pages that can be executed but not read.
    pub execute_only: bool,
    /// The VM-execution control "mode-based execute control for EPT" is 1: execution can be
    /// allowed to the guest's kernel and its user programs separately.
    pub mode_based_execute: bool,
    /// Capability 21, and bit 6 of the EPT pointer is to be set: the hardware keeps accessed and
    /// dirty bits.
    pub accessed_dirty: bool,
    /// The guest's PAT is ignored for memory that is cached. Without, it is combined with ours, and
    /// the guest can bypass caches. For what is never cached, the guest's PAT always chooses
    /// between UC and WC: drivers ask for write combining there.
    pub ignore_pat: bool,
}

impl EptFeatures {
    /// A CPU with 52-bit addresses and every feature.
    pub const ALL: Self = Self {
        physical_bits: 52,
        five_levels: true,
        blocks_2m: true,
        blocks_1g: true,
        execute_only: true,
        mode_based_execute: true,
        accessed_dirty: true,
        ignore_pat: true,
    };

    /// A CPU with 48-bit addresses and what the first one with EPT had: 2 MiB blocks.
    pub const NONE: Self = Self {
        physical_bits: 48,
        five_levels: false,
        blocks_2m: true,
        blocks_1g: false,
        execute_only: false,
        mode_based_execute: false,
        accessed_dirty: false,
        ignore_pat: false,
    };

    /// Bits of an address that an entry can hold and the CPU has; those above are reserved.
    #[inline]
    const fn address_bits(self) -> u8 {
        if self.physical_bits < ADDRESS_BITS {
            self.physical_bits
        } else {
            ADDRESS_BITS
        }
    }

    /// Whether a leaf may stand at `level`.
    #[inline]
    const fn has_leaf(self, level: Level) -> bool {
        match level.index() {
            0 => true,
            1 => self.blocks_2m,
            2 => self.blocks_1g,
            _ => false,
        }
    }

    /// What a pointer to a table allows: everything, its leaves decide.
    #[inline]
    const fn everything(self) -> u64 {
        if self.mode_based_execute {
            READ | WRITE | EXECUTE | EXECUTE_USER
        } else {
            READ | WRITE | EXECUTE
        }
    }

    /// Whether the guest's PAT is ignored for this type.
    #[inline]
    const fn ignores_pat(self, memory: MemoryType) -> bool {
        self.ignore_pat && matches!(memory, MemoryType::WriteBack | MemoryType::WriteThrough)
    }
}

/// What points to an EPT tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptRoot {
    /// The EPT pointer, a field of the VMCS.
    pub eptp: u64,
}

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
/// With mode-based execute control this is the guest's kernel alone.
const EXECUTE: u64 = 1 << 2;
const MEMORY_SHIFT: u32 = 3;
const MEMORY_MASK: u64 = 0b111 << MEMORY_SHIFT;
const IGNORE_PAT: u64 = 1 << 6;
/// Set in leaves above the pages.
const BLOCK: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// Execution by user programs, with mode-based execute control; ignored without.
const EXECUTE_USER: u64 = 1 << 10;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const SOFTWARE_SHIFT: u32 = 52;
const SOFTWARE_MAX: u64 = 0x1f;
/// Violations reach the hypervisor, even if the guest was given the virtualization exception for
/// them (26.5.7.1).
const SUPPRESS_EXCEPTION: u64 = 1 << 63;
/// One of these makes an entry present (29.3.2).
const PRESENT: u64 = READ | WRITE | EXECUTE | EXECUTE_USER;
/// Every bit that our encoder may set in a leaf, beside the address.
const LEAF_BITS: u64 = PRESENT
    | MEMORY_MASK
    | IGNORE_PAT
    | BLOCK
    | ACCESSED
    | DIRTY
    | SOFTWARE_MAX << SOFTWARE_SHIFT
    | SUPPRESS_EXCEPTION;

const PAGE_SHIFT: u8 = 12;
const INDEX_BITS: u8 = 9;
const TABLE_BYTES: u32 = 4096;
const ADDRESS_BITS: u8 = 52;
/// The narrowest physical address that a CPU with long mode reports, for guests too.
const GUEST_BITS_MIN: u8 = 32;
const GUEST_BITS_FOUR_LEVELS: u8 = 48;
const GUEST_BITS_FIVE_LEVELS: u8 = 57;

impl Format for Ept {
    type Features = EptFeatures;
    type Root = EptRoot;

    const NAME: &'static str = "Intel EPT";
    const BYTE_ORDER: ByteOrder = ByteOrder::Little;
    const SHIFTS: &'static [u8] = &level_shifts::<5>(PAGE_SHIFT, INDEX_BITS);

    fn rules(features: &EptFeatures) -> Rules {
        Rules {
            flush: FlushKind::Ipi,
            // Until INVEPT the processor uses what was there before or what is there now (29.4.3.4).
            break_before_make: false,
            // Neither a violation nor a misconfiguration leaves anything cached (29.4.2).
            caches_invalid: false,
            hardware_accessed: features.accessed_dirty,
            hardware_dirty: features.accessed_dirty,
        }
    }

    fn geometry(features: &EptFeatures, bits: u8) -> Result<Geometry, GeometryError> {
        let highest = if features.five_levels {
            GUEST_BITS_FIVE_LEVELS
        } else {
            GUEST_BITS_FOUR_LEVELS
        };
        let error = GeometryError {
            bits,
            format: Self::NAME,
            lowest: GUEST_BITS_MIN,
            highest,
        };
        if !(GUEST_BITS_MIN..=highest).contains(&bits) {
            return Err(error);
        }
        let shapes = [0, 1, 2, 3, 4].map(|number| LevelShape {
            shift: Self::SHIFTS[usize::from(number)],
            index_bits: INDEX_BITS,
            table_bytes: TABLE_BYTES,
            leaf: features.has_leaf(Level::new(number)),
            run_bits: 0,
        });
        let levels = if bits > GUEST_BITS_FOUR_LEVELS { 5 } else { 4 };
        Geometry::new(&shapes[..levels], bits).ok_or(error)
    }

    /// The VM is named by the root itself: cached translations are tagged with its address.
    fn root(features: &EptFeatures, geometry: &Geometry, table: Hpa, _: u16) -> EptRoot {
        const WALK_WRITE_BACK: u64 = 6;
        let length_less_one = geometry.root().index() as u64;
        let eptp = table.raw() & ADDRESS
            | u64::from(features.accessed_dirty) << 6
            | length_less_one << 3
            | WALK_WRITE_BACK;
        EptRoot { eptp }
    }

    #[inline]
    fn empty(_: Level) -> u64 {
        SUPPRESS_EXCEPTION
    }

    #[inline]
    fn table(features: &EptFeatures, _: Level, table: Hpa) -> u64 {
        table.raw() & ADDRESS | features.everything()
    }

    #[inline]
    fn leaf(
        features: &EptFeatures,
        level: Level,
        hpa: Hpa,
        attributes: Attributes,
    ) -> Result<u64, EncodeError> {
        if !features.has_leaf(level) {
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
        if u64::from(attributes.software) > SOFTWARE_MAX {
            return Err(EncodeError::Software(attributes.software));
        }
        let block = if level == Level::PAGE { 0 } else { BLOCK };
        Ok(hpa.raw()
            | SUPPRESS_EXCEPTION
            | block
            | memory_bits(*features, attributes.memory)?
            | permission_bits(*features, attributes.permissions)?
            | usage_bits(*features, attributes)?
            | u64::from(attributes.software) << SOFTWARE_SHIFT)
    }

    #[inline]
    fn leaf_step(level: Level) -> u64 {
        1 << (usize::from(PAGE_SHIFT) + usize::from(INDEX_BITS) * level.index())
    }

    #[inline]
    fn decode_leaf(features: &EptFeatures, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
        decode_leaf(*features, level, raw)
    }

    #[inline]
    fn is_empty(_: Level, raw: u64) -> bool {
        // Without mode-based execute control the hardware ignores the user's bit, and no encoder
        // sets it.
        raw & PRESENT == 0
    }

    #[inline]
    fn is_table(level: Level, raw: u64) -> bool {
        level != Level::PAGE && raw & PRESENT != 0 && raw & BLOCK == 0
    }

    #[inline]
    fn address(_: &EptFeatures, _: Level, raw: u64) -> Hpa {
        Hpa::new(raw & ADDRESS)
    }

    #[inline]
    fn is_in_run(_: Level, _: u64) -> bool {
        false
    }

    fn forces(features: &EptFeatures, memory: MemoryType) -> bool {
        match memory {
            MemoryType::WriteBack | MemoryType::WriteThrough => features.ignores_pat(memory),
            // No PAT makes UC or WC cacheable (12.5.2.2, to which 29.3.7.2 refers).
            MemoryType::NonCacheable | MemoryType::Device | MemoryType::DeviceStrict => true,
        }
    }
}

/// The memory type in bits 5:3 (29.3.7) and whether the guest's PAT is ignored. `DeviceStrict`
/// would be UC like `Device`, and could not be told from it.
#[inline]
fn memory_bits(features: EptFeatures, memory: MemoryType) -> Result<u64, EncodeError> {
    let bits: u64 = match memory {
        MemoryType::Device => 0,
        MemoryType::NonCacheable => 1,
        MemoryType::WriteThrough => 4,
        MemoryType::WriteBack => 6,
        MemoryType::DeviceStrict => return Err(EncodeError::MemoryType(memory)),
    };
    let ignore_pat = if features.ignores_pat(memory) {
        IGNORE_PAT
    } else {
        0
    };
    Ok(bits << MEMORY_SHIFT | ignore_pat)
}

/// What bits 5:3 name, by their value (29.3.7).
const MEMORY: [Option<MemoryType>; 8] = [
    Some(MemoryType::Device),
    Some(MemoryType::NonCacheable),
    None,
    None,
    Some(MemoryType::WriteThrough),
    None,
    Some(MemoryType::WriteBack),
    None,
];

#[inline]
fn decode_memory(features: EptFeatures, raw: u64) -> Option<MemoryType> {
    let memory = MEMORY[((raw & MEMORY_MASK) >> MEMORY_SHIFT) as usize]?;
    (features.ignores_pat(memory) == (raw & IGNORE_PAT != 0)).then_some(memory)
}

/// Whether a leaf can allow this. What it refuses is a misconfiguration (29.3.3.1), or allows
/// nothing: that would not be present.
#[inline]
fn can_allow(features: EptFeatures, permissions: Permissions) -> bool {
    let Permissions {
        read,
        write,
        execute,
    } = permissions;
    read || (features.execute_only && !write && execute != Execute::Never)
}

#[inline]
fn permission_bits(features: EptFeatures, permissions: Permissions) -> Result<u64, EncodeError> {
    let split = features.mode_based_execute;
    let whole = matches!(permissions.execute, Execute::Never | Execute::Always);
    if !(split || whole) || !can_allow(features, permissions) {
        return Err(EncodeError::Permissions(permissions));
    }
    let execute = match permissions.execute {
        Execute::Never => 0,
        Execute::Privileged => EXECUTE,
        Execute::Unprivileged => EXECUTE_USER,
        Execute::Always => EXECUTE | EXECUTE_USER,
    };
    let read = if permissions.read { READ } else { 0 };
    let write = if permissions.write { WRITE } else { 0 };
    // Without mode-based execute control the user's bit is nothing (29.3.2).
    Ok(read | write | execute & features.everything())
}

#[inline]
fn decode_permissions(features: EptFeatures, raw: u64) -> Option<Permissions> {
    let (kernel, user) = (raw & EXECUTE != 0, raw & EXECUTE_USER != 0);
    let execute = if features.mode_based_execute {
        match (kernel, user) {
            (false, false) => Execute::Never,
            (true, false) => Execute::Privileged,
            (false, true) => Execute::Unprivileged,
            (true, true) => Execute::Always,
        }
    } else {
        match (kernel, user) {
            (false, false) => Execute::Never,
            (true, false) => Execute::Always,
            (_, true) => return None,
        }
    };
    let permissions = Permissions {
        read: raw & READ != 0,
        write: raw & WRITE != 0,
        execute,
    };
    can_allow(features, permissions).then_some(permissions)
}

/// Accessed and dirty. The hardware ignores both bits where it does not keep them (29.3.5).
#[inline]
fn usage_bits(features: EptFeatures, attributes: Attributes) -> Result<u64, EncodeError> {
    if !features.accessed_dirty {
        return match attributes {
            Attributes { dirty: true, .. } => Err(EncodeError::Dirty),
            Attributes {
                accessed: false, ..
            } => Err(EncodeError::Unaccessed),
            _ => Ok(0),
        };
    }
    let accessed = if attributes.accessed { ACCESSED } else { 0 };
    let dirty = if attributes.dirty { DIRTY } else { 0 };
    Ok(accessed | dirty)
}

#[inline]
fn decode_leaf(features: EptFeatures, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
    let hpa = Ept::address(&features, level, raw);
    let shaped = features.has_leaf(level)
        && (raw & BLOCK != 0) == (level != Level::PAGE)
        && hpa.is_aligned(Ept::leaf_step(level))
        && hpa.raw() >> features.address_bits() == 0
        && raw & !(LEAF_BITS | ADDRESS) == 0
        && raw & SUPPRESS_EXCEPTION != 0;
    let unkept = !features.accessed_dirty && raw & (ACCESSED | DIRTY) != 0;
    if !shaped || unkept {
        return None;
    }
    let attributes = Attributes {
        permissions: decode_permissions(features, raw)?,
        memory: decode_memory(features, raw)?,
        accessed: raw & ACCESSED != 0 || !features.accessed_dirty,
        dirty: raw & DIRTY != 0,
        software: (raw >> SOFTWARE_SHIFT & SOFTWARE_MAX) as u8,
        contiguous: false,
    };
    Some((hpa, attributes))
}
