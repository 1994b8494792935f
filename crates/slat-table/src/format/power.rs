//! POWER radix tables, partition-scoped: guest real addresses of up to 52 bits, in pages of 4 KiB
//! or 64 KiB, blocks of 2 MiB and 1 GiB.
//!
//! The rules are those of the Power ISA, version 3.1, Book III, chapter "Storage Control": "Radix
//! Tree Translation" for the entries, "In-Memory Tables" for the partition table. That manual
//! counts bits from the most significant one; here bit *n* is its bit 63 − *n*. Entries are
//! big-endian whatever the CPU's mode.
//!
//! The processors have one shape of tree for each page size: 13, 9, 9 and 9 index bits with 4 KiB
//! pages, 13, 9, 9 and 5 with 64 KiB. A guest with fewer address bits uses the start of it.

pub mod maintenance;

use core::fmt::Debug;
use core::marker::PhantomData;

use super::{ByteOrder, EncodeError, FlushKind, Format, GeometryError, Rules};
use crate::address::Hpa;
use crate::attributes::{Attributes, Execute, MemoryType, Permissions};
use crate::geometry::{Geometry, Level, LevelShape};

/// The size of a page, as a type.
pub trait PageSize: Copy + Debug + Default + Send + Sync + 'static {
    /// log2 of the bytes of a page.
    const SHIFT: u8;
    /// [`Format::NAME`] of the tables with this page.
    const NAME: &'static str;
}

/// Pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page4K;

impl PageSize for Page4K {
    const SHIFT: u8 = 12;
    const NAME: &'static str = "POWER radix, 4K pages";
}

/// Pages of 64 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page64K;

impl PageSize for Page64K {
    const SHIFT: u8 = 16;
    const NAME: &'static str = "POWER radix, 64K pages";
}

/// POWER radix tables, partition-scoped, with pages of size `P`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Power<P: PageSize>(PhantomData<P>);

/// POWER radix tables with pages of 4 KiB.
pub type Power4K = Power<Page4K>;

/// POWER radix tables with pages of 64 KiB.
pub type Power64K = Power<Page64K>;

/// What of radix translation the CPU at hand has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerFeatures {
    /// Bits of a real address, at most 57.
    pub real_address_bits: u8,
}

impl PowerFeatures {
    /// A CPU with as many address bits as an entry has.
    pub const ALL: Self = Self {
        real_address_bits: REAL_ADDRESS_BITS_MAX,
    };

    #[inline]
    const fn address_bits(self) -> u8 {
        if self.real_address_bits < REAL_ADDRESS_BITS_MAX {
            self.real_address_bits
        } else {
            REAL_ADDRESS_BITS_MAX
        }
    }
}

/// A partition's entry in the partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerRoot {
    /// The logical partition's number: the entry's index.
    pub lpid: u16,
    /// The two doublewords, as numbers; in memory they are big-endian. The second points to the
    /// guest's process table, which is the guest's business: 0 until it registers one.
    pub entry: [u64; 2],
}

const VALID: u64 = 1 << 63;
const LEAF: u64 = 1 << 62;
/// The fourth software bit of a leaf (`SW0`); the other three (`SW1` to `SW3`) are 11:9.
const SOFTWARE_HIGH: u64 = 1 << 61;
const SOFTWARE_SHIFT: u32 = 9;
const SOFTWARE_LOW: u64 = 0b111 << SOFTWARE_SHIFT;
/// `RPN`, bits 56:12.
const REAL_PAGE: u64 = 0x01ff_ffff_ffff_f000;
const REFERENCE: u64 = 1 << 8;
const CHANGE: u64 = 1 << 7;
const ATTRIBUTE_SHIFT: u32 = 4;
const ATTRIBUTE_MASK: u64 = 0b11 << ATTRIBUTE_SHIFT;
const READ: u64 = 1 << 2;
/// Grants loads too.
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 0;
/// Every bit that our encoder may set in a leaf, beside the address.
const LEAF_BITS: u64 = VALID
    | LEAF
    | SOFTWARE_HIGH
    | SOFTWARE_LOW
    | REFERENCE
    | CHANGE
    | ATTRIBUTE_MASK
    | READ
    | WRITE
    | EXECUTE;
/// `NLB`, bits 59:8: the next table.
const NEXT_TABLE: u64 = 0x0fff_ffff_ffff_ff00;

const MIB2_SHIFT: u8 = 21;
const GIB1_SHIFT: u8 = 30;
const ROOT_SHIFT: u8 = 39;
const ROOT_INDEX_BITS: u8 = 13;
const LARGEST_BLOCK: Level = Level::new(2);
const REAL_ADDRESS_BITS_MAX: u8 = 57;
/// A tree's size in a partition-table entry is counted from here.
const ADDRESS_BITS_MIN: u8 = 31;
const ADDRESS_BITS_MAX: u8 = ROOT_SHIFT + ROOT_INDEX_BITS;

impl<P: PageSize> Power<P> {
    /// log2 of what an entry of each level maps.
    const SHIFTS: [u8; 4] = [P::SHIFT, MIB2_SHIFT, GIB1_SHIFT, ROOT_SHIFT];

    #[inline]
    const fn shift(level: Level) -> u8 {
        let last = Self::SHIFTS.len() - 1;
        let index = level.index();
        Self::SHIFTS[if index < last { index } else { last }]
    }

    /// Index bits of a table of `level`.
    #[inline]
    const fn index_bits(level: Level) -> u8 {
        if level.index() + 1 < Self::SHIFTS.len() {
            Self::shift(level.up()) - Self::shift(level)
        } else {
            ROOT_INDEX_BITS
        }
    }

    /// What points to a table of `level`, without its address: `NLS` is the table's index bits.
    #[inline]
    fn pointer_bits(level: Level) -> u64 {
        level
            .down()
            .map_or(0, |below| VALID | u64::from(Self::index_bits(below)))
    }
}

impl<P: PageSize> Format for Power<P> {
    type Features = PowerFeatures;
    type Root = PowerRoot;

    const NAME: &'static str = P::NAME;
    const BYTE_ORDER: ByteOrder = ByteOrder::Big;
    const SHIFTS: &'static [u8] = &Self::SHIFTS;

    fn rules(_: &PowerFeatures) -> Rules {
        Rules {
            flush: FlushKind::Broadcast,
            break_before_make: true,
            caches_invalid: false,
            hardware_accessed: true,
            hardware_dirty: true,
        }
    }

    fn geometry(_: &PowerFeatures, bits: u8) -> Result<Geometry, GeometryError> {
        let error = GeometryError {
            bits,
            format: Self::NAME,
            lowest: ADDRESS_BITS_MIN,
            highest: ADDRESS_BITS_MAX,
        };
        if !(ADDRESS_BITS_MIN..=ADDRESS_BITS_MAX).contains(&bits) {
            return Err(error);
        }
        let shapes = [0, 1, 2, 3].map(|number| {
            let level = Level::new(number);
            LevelShape {
                shift: Self::shift(level),
                index_bits: Self::index_bits(level),
                table_bytes: 8 << Self::index_bits(level),
                leaf: level <= LARGEST_BLOCK,
                run_bits: 0,
            }
        });
        Geometry::new(&shapes, bits).ok_or(error)
    }

    fn vmid_bits(_: &PowerFeatures) -> u8 {
        // LPIDR.
        12
    }

    fn root(_: &PowerFeatures, _: &Geometry, table: Hpa, vmid: u16) -> PowerRoot {
        const HOST_RADIX: u64 = 1 << 63;
        /// The tree's size, in two pieces.
        const SIZE: u64 = (ADDRESS_BITS_MAX - ADDRESS_BITS_MIN) as u64;
        const SIZE_BITS: u64 = SIZE >> 3 << 61 | (SIZE & 0b111) << 5;
        PowerRoot {
            lpid: vmid,
            entry: [
                HOST_RADIX | SIZE_BITS | table.raw() & NEXT_TABLE | u64::from(ROOT_INDEX_BITS),
                0,
            ],
        }
    }

    #[inline]
    fn empty(_: Level) -> u64 {
        0
    }

    #[inline]
    fn table(_: &PowerFeatures, level: Level, table: Hpa) -> u64 {
        table.raw() & NEXT_TABLE | Self::pointer_bits(level)
    }

    #[inline]
    fn leaf(
        features: &PowerFeatures,
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
        Ok(hpa.raw() | VALID | LEAF | attribute_bits(attributes)?)
    }

    #[inline]
    fn leaf_step(level: Level) -> u64 {
        1 << Self::shift(level)
    }

    #[inline]
    fn decode_leaf(features: &PowerFeatures, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
        let hpa = Self::address(features, level, raw);
        let shaped = raw & (LEAF | !(LEAF_BITS | REAL_PAGE)) == LEAF
            && level <= LARGEST_BLOCK
            && hpa.is_aligned(Self::leaf_step(level))
            && hpa.raw() >> features.address_bits() == 0;
        let attributes = decode_attributes(raw).filter(|_| shaped)?;
        Some((hpa, attributes))
    }

    #[inline]
    fn is_empty(_: Level, raw: u64) -> bool {
        raw & VALID == 0
    }

    #[inline]
    fn is_table(level: Level, raw: u64) -> bool {
        level != Level::PAGE && raw & !NEXT_TABLE == Self::pointer_bits(level)
    }

    #[inline]
    fn address(_: &PowerFeatures, _: Level, raw: u64) -> Hpa {
        Hpa::new(if raw & LEAF == 0 {
            raw & NEXT_TABLE
        } else {
            raw & REAL_PAGE
        })
    }

    #[inline]
    fn is_in_run(_: Level, _: u64) -> bool {
        false
    }

    fn forces(_: &PowerFeatures, memory: MemoryType) -> bool {
        // Normal memory the guest's own tables may make stricter, and so bypass the caches.
        matches!(memory, MemoryType::NonCacheable | MemoryType::Device)
    }
}

/// `ATT`. Strong access order (0b01) is normal memory with fewer reorderings: it is for a guest to
/// ask for in its own tables, and not used here.
#[inline]
const fn memory_bits(memory: MemoryType) -> Result<u64, EncodeError> {
    let attribute = match memory {
        MemoryType::WriteBack => 0b00,
        MemoryType::Device => 0b10,
        MemoryType::NonCacheable => 0b11,
        MemoryType::WriteThrough | MemoryType::DeviceStrict => {
            return Err(EncodeError::MemoryType(memory));
        }
    };
    Ok(attribute << ATTRIBUTE_SHIFT)
}

#[inline]
fn attribute_bits(attributes: Attributes) -> Result<u64, EncodeError> {
    let Attributes {
        permissions,
        memory,
        accessed,
        dirty,
        software,
        ..
    } = attributes;
    let Permissions {
        read,
        write,
        execute,
    } = permissions;
    let execute = match execute {
        Execute::Never => 0,
        // Non-idempotent memory is guarded: nothing is fetched from it.
        Execute::Always if memory == MemoryType::Device => {
            return Err(EncodeError::ExecutableDevice(memory));
        }
        Execute::Always => EXECUTE,
        // The privilege bit of a partition-scoped entry is not looked at.
        Execute::Privileged | Execute::Unprivileged => {
            return Err(EncodeError::Permissions(permissions));
        }
    };
    if write && !read {
        return Err(EncodeError::Permissions(permissions));
    }
    // Hardware makes nothing dirty that cannot be written.
    if dirty && !write {
        return Err(EncodeError::Dirty);
    }
    let software_low = u64::from(software & 0b111) << SOFTWARE_SHIFT;
    let software_high = match software >> 3 {
        0 => 0,
        1 => SOFTWARE_HIGH,
        _ => return Err(EncodeError::Software(software)),
    };
    let flag = |set: bool, bit: u64| if set { bit } else { 0 };
    Ok(memory_bits(memory)?
        | flag(read, READ)
        | flag(write, WRITE)
        | execute
        | flag(accessed, REFERENCE)
        | flag(dirty, CHANGE)
        | software_low
        | software_high)
}

fn decode_attributes(raw: u64) -> Option<Attributes> {
    let memory = match (raw & ATTRIBUTE_MASK) >> ATTRIBUTE_SHIFT {
        0b00 => MemoryType::WriteBack,
        0b10 => MemoryType::Device,
        0b11 => MemoryType::NonCacheable,
        _ => return None,
    };
    let software_low = u8::try_from((raw & SOFTWARE_LOW) >> SOFTWARE_SHIFT).ok()?;
    let attributes = Attributes {
        permissions: Permissions {
            read: raw & READ != 0,
            write: raw & WRITE != 0,
            execute: if raw & EXECUTE == 0 {
                Execute::Never
            } else {
                Execute::Always
            },
        },
        memory,
        accessed: raw & REFERENCE != 0,
        dirty: raw & CHANGE != 0,
        software: software_low | u8::from(raw & SOFTWARE_HIGH != 0) << 3,
        contiguous: false,
    };
    // What decodes to something that the encoder refuses is foreign.
    attribute_bits(attributes).is_ok().then_some(attributes)
}
