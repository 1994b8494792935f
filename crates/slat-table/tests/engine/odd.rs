//! A format that no hardware has, with everything that Arm's 4 KiB format has not: big-endian
//! entries, an empty entry that is not zero, 16 KiB pages below tables of 2048 entries, blocks
//! that are replaced without a break, invalid entries that may be cached.

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::{ByteOrder, EncodeError, Entry, FlushKind, Format, GeometryError, Rules};
use slat_table::geometry::{Geometry, Level, LevelShape};

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Odd;

const VALID: u64 = 1;
const TABLE: u64 = 1 << 1;
const READ: u64 = 1 << 2;
const WRITE: u64 = 1 << 3;
const EXECUTE_SHIFT: u32 = 4;
const MEMORY_SHIFT: u32 = 6;
const ACCESSED: u64 = 1 << 9;
const DIRTY: u64 = 1 << 10;
const SOFTWARE_SHIFT: u32 = 11;
const ADDRESS: u64 = 0x0000_ffff_ffff_c000;
/// What an empty entry holds, together with its level.
const NOTHING: u64 = 0x7a00_0000_0000_0400;
const PAGE_SHIFT: u8 = 14;
const INDEX_BITS: u8 = 11;

const EXECUTE: [Execute; 4] = [
    Execute::Never,
    Execute::Privileged,
    Execute::Unprivileged,
    Execute::Always,
];
const MEMORY: [MemoryType; 5] = [
    MemoryType::WriteBack,
    MemoryType::WriteThrough,
    MemoryType::NonCacheable,
    MemoryType::Device,
    MemoryType::DeviceStrict,
];

fn number<T: PartialEq, const N: usize>(values: &[T; N], value: &T) -> u64 {
    values
        .iter()
        .position(|known| known == value)
        .expect("a known value") as u64
}

fn field(raw: u64, shift: u32, mask: u64) -> usize {
    usize::try_from(raw >> shift & mask).expect("a few bits")
}

impl Format for Odd {
    type Features = ();
    type Root = u64;

    const NAME: &'static str = "odd";
    const BYTE_ORDER: ByteOrder = ByteOrder::Big;

    fn rules((): &()) -> Rules {
        Rules {
            flush: FlushKind::Ipi,
            break_before_make: false,
            caches_invalid: true,
            hardware_accessed: true,
            hardware_dirty: true,
        }
    }

    fn geometry((): &(), bits: u8) -> Result<Geometry, GeometryError> {
        let error = GeometryError {
            bits,
            format: Self::NAME,
            lowest: 37,
            highest: 47,
        };
        let shape = |number: u8| LevelShape {
            shift: PAGE_SHIFT + number * INDEX_BITS,
            index_bits: INDEX_BITS,
            table_bytes: 16384,
            leaf: true,
            run_bits: 0,
        };
        let root = LevelShape {
            index_bits: bits.checked_sub(shape(2).shift).ok_or(error)?,
            table_bytes: 1024,
            ..shape(2)
        };
        let root = LevelShape {
            table_bytes: (8 << root.index_bits).max(1024),
            ..root
        };
        Geometry::new(&[shape(0), shape(1), root], bits).ok_or(error)
    }

    fn root((): &(), _: &Geometry, table: Hpa, _: u16) -> u64 {
        table.raw()
    }

    fn empty(level: Level) -> u64 {
        NOTHING | (level.index() as u64) << 4
    }

    fn table((): &(), _: Level, table: Hpa) -> u64 {
        // Tables may be smaller than a page, so their addresses have their low bits elsewhere.
        table.raw() & ADDRESS | (table.raw() & 0x3c00) << 48 | TABLE | VALID
    }

    fn leaf((): &(), level: Level, hpa: Hpa, a: Attributes) -> Result<u64, EncodeError> {
        if level.index() > 2 {
            return Err(EncodeError::NoLeaf(level));
        }
        if !hpa.is_aligned(Self::leaf_step(level)) {
            return Err(EncodeError::Unaligned { hpa, level });
        }
        if hpa.raw() >> 48 != 0 {
            return Err(EncodeError::AddressWidth { hpa, bits: 48 });
        }
        if a.software > 7 {
            return Err(EncodeError::Software(a.software));
        }
        let flag = |set, bit| if set { bit } else { 0 };
        Ok(hpa.raw()
            | VALID
            | flag(a.permissions.read, READ)
            | flag(a.permissions.write, WRITE)
            | number(&EXECUTE, &a.permissions.execute) << EXECUTE_SHIFT
            | number(&MEMORY, &a.memory) << MEMORY_SHIFT
            | flag(a.accessed, ACCESSED)
            | flag(a.dirty, DIRTY)
            | u64::from(a.software) << SOFTWARE_SHIFT)
    }

    fn leaf_step(level: Level) -> u64 {
        1 << (usize::from(PAGE_SHIFT) + usize::from(INDEX_BITS) * level.index())
    }

    fn decode(features: &(), level: Level, raw: u64) -> Entry {
        if Self::is_empty(level, raw) {
            return Entry::Empty;
        }
        let hpa = Self::address(features, level, raw);
        if Self::is_table(level, raw) {
            return Entry::Table(hpa);
        }
        let Some(&memory) = MEMORY.get(field(raw, MEMORY_SHIFT, 7)) else {
            return Entry::Foreign(raw);
        };
        let aligned = hpa.is_aligned(Self::leaf_step(level));
        if raw & TABLE != 0 || raw >> 48 != 0 || !aligned {
            return Entry::Foreign(raw);
        }
        let permissions = Permissions {
            read: raw & READ != 0,
            write: raw & WRITE != 0,
            execute: EXECUTE[field(raw, EXECUTE_SHIFT, 3)],
        };
        let attributes = Attributes {
            permissions,
            memory,
            accessed: raw & ACCESSED != 0,
            dirty: raw & DIRTY != 0,
            software: u8::try_from(field(raw, SOFTWARE_SHIFT, 7)).expect("three bits"),
            contiguous: false,
        };
        Entry::Leaf { hpa, attributes }
    }

    fn is_empty(_: Level, raw: u64) -> bool {
        raw & VALID == 0
    }

    fn is_table(level: Level, raw: u64) -> bool {
        level != Level::PAGE && raw & (TABLE | VALID) == TABLE | VALID
    }

    fn address((): &(), level: Level, raw: u64) -> Hpa {
        let low = if Self::is_table(level, raw) {
            raw >> 48 & 0x3c00
        } else {
            0
        };
        Hpa::new(raw & ADDRESS | low)
    }

    fn forces((): &(), _: MemoryType) -> bool {
        true
    }
}
