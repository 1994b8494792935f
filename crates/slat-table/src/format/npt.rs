//! AMD nested paging: 4 KiB pages, 2 MiB and 1 GiB blocks, in the format of the host's own long-mode
//! tables; 4 levels for guest addresses of up to 48 bits, or 5 for up to 57.
//!
//! The rules are those of the AMD64 Architecture Programmer's Manual, volume 2: 5.3 and 5.4 for
//! entries, 7.8 for the PAT, 7.10 for memory encryption, 15.25 for nested paging. The host is
//! expected to run in long mode with `EFER.NXE` set, which its own tables need too; the 3-level
//! tables of a 32-bit host are not carried.

pub mod maintenance;

use super::{ByteOrder, EncodeError, FlushKind, Format, GeometryError, Rules};
use crate::address::Hpa;
use crate::attributes::{Attributes, Execute, MemoryType, Permissions};
use crate::geometry::{Geometry, Level, LevelShape, level_shifts};

/// AMD nested paging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Npt;

/// What of nested paging the CPU at hand has and how the host has set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NptFeatures {
    /// Bits of a physical address (CPUID `8000_0008`, EAX 7:0), at most 52. What memory encryption
    /// takes of them is said in `encryption`.
    pub physical_bits: u8,
    /// `CR4.LA57` of the host at `VMRUN`: every nested walk has 5 levels rather than 4.
    pub five_levels: bool,
    /// CPUID `8000_0001`, EDX 26: 1 GiB blocks.
    pub blocks_1g: bool,
    /// CPUID `8000_000A`, EDX 6: translations of one ASID can be flushed alone.
    pub flush_by_asid: bool,
    /// The host's PAT, MSR `0277`: nested entries choose their memory type from it (15.25.8).
    pub pat: u64,
    /// Memory encryption, if it is turned on.
    pub encryption: Option<Encryption>,
}

/// Memory encryption of the host (SME): one address bit of an entry says that what it points to is
/// encrypted, and the physical address space becomes smaller (7.10).
///
/// With it turned on, tables and cached memory are encrypted; memory of other types is taken to be a
/// device's, which cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encryption {
    bit: u8,
    address_reduction: u8,
}

impl Encryption {
    /// Encryption by this bit (CPUID `8000_001F`, EBX 5:0), which costs so many physical address
    /// bits (EBX 11:6). `None` if that is no bit of an address, or one that every guest needs: 32
    /// to 51 can be.
    pub const fn new(bit: u8, address_reduction: u8) -> Option<Self> {
        if bit < GUEST_BITS_MIN || bit >= ADDRESS_BITS {
            return None;
        }
        Some(Self {
            bit,
            address_reduction,
        })
    }

    /// The bit.
    pub const fn bit(self) -> u8 {
        self.bit
    }

    /// How many physical address bits it costs.
    pub const fn address_reduction(self) -> u8 {
        self.address_reduction
    }
}

/// PAT after reset (7.8.2): write-back, write-through, UC-, UC; and the same again.
pub const PAT_AFTER_RESET: u64 = 0x0007_0406_0007_0406;

impl NptFeatures {
    /// A CPU with 52-bit addresses and every feature but memory encryption, whose host has a PAT with
    /// every type and walks of 4 levels.
    pub const ALL: Self = Self {
        physical_bits: 52,
        five_levels: false,
        blocks_1g: true,
        flush_by_asid: true,
        // Write-back, write combining, UC-, UC, write-back, write-protect, UC-, write-through.
        pat: 0x0407_0506_0007_0106,
        encryption: None,
    };

    /// The same with walks of 5 levels.
    pub const FIVE_LEVELS: Self = Self {
        five_levels: true,
        ..Self::ALL
    };

    /// The same as [`ALL`](Self::ALL) with 48-bit addresses and memory encryption by bit 47.
    pub const ENCRYPTED: Self = Self {
        physical_bits: 48,
        encryption: Encryption::new(47, 5),
        ..Self::ALL
    };

    /// A CPU with 48-bit addresses and no feature, whose host has left the PAT alone.
    pub const NONE: Self = Self {
        physical_bits: 48,
        five_levels: false,
        blocks_1g: false,
        flush_by_asid: false,
        pat: PAT_AFTER_RESET,
        encryption: None,
    };

    /// Bits of an address that an entry can hold and the CPU has. They end below the encryption
    /// bit even if that costs fewer.
    #[inline]
    const fn address_bits(self) -> u8 {
        let bits = match self.encryption {
            None => self.physical_bits,
            Some(Encryption {
                bit,
                address_reduction,
            }) => {
                let left = self.physical_bits.saturating_sub(address_reduction);
                if left < bit { left } else { bit }
            }
        };
        if bits < ADDRESS_BITS {
            bits
        } else {
            ADDRESS_BITS
        }
    }

    /// The encryption bit as it stands in an entry; 0 without encryption.
    #[inline]
    const fn encrypted(self) -> u64 {
        match self.encryption {
            Some(Encryption { bit, .. }) => 1 << bit,
            None => 0,
        }
    }

    /// Whether a leaf may stand at `level`.
    #[inline]
    const fn has_leaf(self, level: Level) -> bool {
        match level.index() {
            0 | 1 => true,
            2 => self.blocks_1g,
            _ => false,
        }
    }

    /// The type in the PAT at this index.
    #[inline]
    const fn pat_type(self, index: u32) -> u64 {
        self.pat >> (index * 8) & 0b111
    }
}

/// What points to a nested tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NptRoot {
    /// `N_CR3`, a field of the VMCB.
    pub n_cr3: u64,
}

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
/// Every access of a guest counts as a user's (15.25.5).
const USER: u64 = 1 << 2;
/// Bits 1:0 of the index into the PAT.
const PAT_LOW_SHIFT: u32 = 3;
const PAT_LOW_MASK: u64 = 0b11 << PAT_LOW_SHIFT;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// Above the pages: a leaf. In a page: bit 2 of the index into the PAT.
const BLOCK_OR_PAGE_PAT: u64 = 1 << 7;
/// Bit 2 of the index into the PAT above the pages.
const BLOCK_PAT: u64 = 1 << 12;
const SOFTWARE_SHIFT: u32 = 9;
const SOFTWARE_MASK: u64 = 0b111 << SOFTWARE_SHIFT;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const NO_EXECUTE: u64 = 1 << 63;
/// Every bit that our encoder may set in a leaf, beside the address, the encryption bit and bit 2 of
/// the index into the PAT.
const LEAF_BITS: u64 =
    PRESENT | WRITE | USER | PAT_LOW_MASK | ACCESSED | DIRTY | SOFTWARE_MASK | NO_EXECUTE;

const PAGE_SHIFT: u8 = 12;
const INDEX_BITS: u8 = 9;
const TABLE_BYTES: u32 = 4096;
const ADDRESS_BITS: u8 = 52;
/// The narrowest physical address that a CPU with long mode reports, for guests too.
const GUEST_BITS_MIN: u8 = 32;
const GUEST_BITS_FOUR_LEVELS: u8 = 48;
const GUEST_BITS_FIVE_LEVELS: u8 = 57;

impl Format for Npt {
    type Features = NptFeatures;
    type Root = NptRoot;

    const NAME: &'static str = "AMD nested paging";
    const BYTE_ORDER: ByteOrder = ByteOrder::Little;
    const SHIFTS: &'static [u8] = &level_shifts::<5>(PAGE_SHIFT, INDEX_BITS);

    fn rules(_: &NptFeatures) -> Rules {
        Rules {
            flush: FlushKind::Ipi,
            // A changed entry needs no invalid one in between, only the flush after it (5.5.3).
            break_before_make: false,
            // An entry that is not present is never cached (5.5).
            caches_invalid: false,
            hardware_accessed: true,
            hardware_dirty: true,
        }
    }

    fn geometry(features: &NptFeatures, bits: u8) -> Result<Geometry, GeometryError> {
        let (levels, highest) = if features.five_levels {
            (5, GUEST_BITS_FIVE_LEVELS)
        } else {
            (4, GUEST_BITS_FOUR_LEVELS)
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
        Geometry::new(&shapes[..levels], bits).ok_or(error)
    }

    /// The VM's name is an ASID, another field of the VMCB, which may differ from CPU to CPU.
    fn root(features: &NptFeatures, _: &Geometry, table: Hpa, _: u16) -> NptRoot {
        NptRoot {
            n_cr3: table.raw() & ADDRESS | features.encrypted(),
        }
    }

    #[inline]
    fn empty(_: Level) -> u64 {
        0
    }

    /// A pointer that restricts nothing: leaves decide. The walker may set its accessed bit.
    #[inline]
    fn table(features: &NptFeatures, _: Level, table: Hpa) -> u64 {
        table.raw() & ADDRESS | features.encrypted() | USER | WRITE | PRESENT
    }

    #[inline]
    fn leaf(
        features: &NptFeatures,
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
        if attributes.software > 0b111 {
            return Err(EncodeError::Software(attributes.software));
        }
        let block = if level == Level::PAGE {
            0
        } else {
            BLOCK_OR_PAGE_PAT
        };
        let accessed = if attributes.accessed { ACCESSED } else { 0 };
        let dirty = if attributes.dirty { DIRTY } else { 0 };
        Ok(hpa.raw()
            | PRESENT
            | USER
            | block
            | accessed
            | dirty
            | memory_bits(*features, level, attributes.memory)?
            | permission_bits(attributes.permissions)?
            | u64::from(attributes.software) << SOFTWARE_SHIFT)
    }

    #[inline]
    fn leaf_step(level: Level) -> u64 {
        1 << (usize::from(PAGE_SHIFT) + usize::from(INDEX_BITS) * level.index())
    }

    #[inline]
    fn decode_leaf(features: &NptFeatures, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
        decode_leaf(*features, level, raw)
    }

    #[inline]
    fn is_empty(_: Level, raw: u64) -> bool {
        raw & PRESENT == 0
    }

    #[inline]
    fn is_table(level: Level, raw: u64) -> bool {
        level != Level::PAGE && raw & (BLOCK_OR_PAGE_PAT | PRESENT) == PRESENT
    }

    #[inline]
    fn address(features: &NptFeatures, level: Level, raw: u64) -> Hpa {
        let address = raw & ADDRESS & !features.encrypted();
        let is_block = level != Level::PAGE && raw & BLOCK_OR_PAGE_PAT != 0;
        Hpa::new(if is_block {
            address & !BLOCK_PAT
        } else {
            address
        })
    }

    #[inline]
    fn is_in_run(_: Level, _: u64) -> bool {
        false
    }

    fn forces(_: &NptFeatures, memory: MemoryType) -> bool {
        match memory {
            // The guest's PAT is combined with ours and may bypass caches (15.25.8).
            MemoryType::WriteBack | MemoryType::WriteThrough => false,
            // But it makes nothing cacheable that is not.
            MemoryType::NonCacheable | MemoryType::Device | MemoryType::DeviceStrict => true,
        }
    }
}

/// The memory types as the PAT encodes them (7.8.1). UC is the one that the guest cannot weaken, so
/// UC- is left alone; so is write-protect, which no memory type here asks for.
const fn pat_encoding(memory: MemoryType) -> Option<u64> {
    match memory {
        MemoryType::Device => Some(0),
        MemoryType::NonCacheable => Some(1),
        MemoryType::WriteThrough => Some(4),
        MemoryType::WriteBack => Some(6),
        // Would be UC like `Device`, and could not be told from it.
        MemoryType::DeviceStrict => None,
    }
}

/// The index into the PAT: the first entry of that type.
#[inline]
fn pat_index(features: NptFeatures, memory: MemoryType) -> Option<u32> {
    let encoding = pat_encoding(memory)?;
    (0..8).find(|&index| features.pat_type(index) == encoding)
}

/// The index into the PAT as it stands in a leaf of `level`, and the encryption bit, which memory
/// that is cached gets: a device's cannot be encrypted (7.10.5).
#[inline]
fn memory_bits(
    features: NptFeatures,
    level: Level,
    memory: MemoryType,
) -> Result<u64, EncodeError> {
    let index = pat_index(features, memory).ok_or(EncodeError::MemoryType(memory))?;
    let low = u64::from(index & 0b11) << PAT_LOW_SHIFT;
    let high = if index & 0b100 == 0 {
        0
    } else {
        page_attribute_table_bit(level)
    };
    let encrypted = match memory {
        MemoryType::WriteBack | MemoryType::WriteThrough => features.encrypted(),
        _ => 0,
    };
    Ok(low | high | encrypted)
}

/// Bit 2 of the index into the PAT in a leaf of `level`.
#[inline]
const fn page_attribute_table_bit(level: Level) -> u64 {
    if level.index() == 0 {
        BLOCK_OR_PAGE_PAT
    } else {
        BLOCK_PAT
    }
}

/// The type behind the index in a leaf; `None` if our encoder would have written it differently.
fn decode_memory(features: NptFeatures, level: Level, raw: u64) -> Option<MemoryType> {
    let ours = PAT_LOW_MASK | page_attribute_table_bit(level) | features.encrypted();
    let types = [
        MemoryType::WriteBack,
        MemoryType::WriteThrough,
        MemoryType::NonCacheable,
        MemoryType::Device,
    ];
    types
        .into_iter()
        .find(|&memory| memory_bits(features, level, memory) == Ok(raw & ours))
}

/// A present page can be read, and execution is the same for all of the guest.
#[inline]
fn permission_bits(permissions: Permissions) -> Result<u64, EncodeError> {
    let no_execute = match permissions.execute {
        Execute::Always => 0,
        Execute::Never => NO_EXECUTE,
        Execute::Privileged | Execute::Unprivileged => {
            return Err(EncodeError::Permissions(permissions));
        }
    };
    if !permissions.read {
        return Err(EncodeError::Permissions(permissions));
    }
    let write = if permissions.write { WRITE } else { 0 };
    Ok(write | no_execute)
}

fn decode_leaf(features: NptFeatures, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
    let hpa = Npt::address(&features, level, raw);
    let ours = LEAF_BITS | ADDRESS | BLOCK_OR_PAGE_PAT;
    let shaped = features.has_leaf(level)
        && hpa.is_aligned(Npt::leaf_step(level))
        && hpa.raw() >> features.address_bits() == 0
        && raw & !ours == 0
        && raw & USER != 0;
    if !shaped {
        return None;
    }
    let execute = if raw & NO_EXECUTE == 0 {
        Execute::Always
    } else {
        Execute::Never
    };
    let attributes = Attributes {
        permissions: Permissions {
            read: true,
            write: raw & WRITE != 0,
            execute,
        },
        memory: decode_memory(features, level, raw)?,
        accessed: raw & ACCESSED != 0,
        dirty: raw & DIRTY != 0,
        software: u8::try_from((raw & SOFTWARE_MASK) >> SOFTWARE_SHIFT).ok()?,
        contiguous: false,
    };
    Some((hpa, attributes))
}
