//! A format that no hardware has, with everything that Arm's 4 KiB format has not: big-endian
//! entries, an empty entry that is not zero, 16 KiB pages below tables of 2048 entries, blocks
//! that are replaced without a break, invalid entries that may be cached, runs at two levels: of
//! eight pages that tell their own addresses, and of four blocks that repeat one entry.

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::{ByteOrder, EncodeError, FlushKind, Format, GeometryError, Rules};
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
const CONTIGUOUS: u64 = 1 << 48;
const ADDRESS: u64 = 0x0000_ffff_ffff_c000;
/// What an empty entry holds, together with its level.
const NOTHING: u64 = 0x7a00_0000_0000_0400;
const PAGE_SHIFT: u8 = 14;
const INDEX_BITS: u8 = 11;

/// log2 of the leaves of a run of `level`.
const fn run_bits(level: Level) -> u8 {
    match level.index() {
        0 => 3,
        1 => 2,
        _ => 0,
    }
}

/// Bytes that a run of `level` maps.
const fn run_bytes(level: Level) -> u64 {
    let shift =
        PAGE_SHIFT as usize + INDEX_BITS as usize * level.index() + run_bits(level) as usize;
    1 << (shift & 63)
}

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
    const SHIFTS: &'static [u8] = &[
        PAGE_SHIFT,
        PAGE_SHIFT + INDEX_BITS,
        PAGE_SHIFT + 2 * INDEX_BITS,
    ];

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
            shift: Self::SHIFTS[usize::from(number)],
            index_bits: INDEX_BITS,
            table_bytes: 16384,
            leaf: true,
            run_bits: run_bits(Level::new(number)),
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
        if a.contiguous && run_bits(level) == 0 {
            return Err(EncodeError::Contiguous(level));
        }
        let repeated = a.contiguous && Self::run_step(level) == 0;
        let hpa = if repeated {
            hpa.align_down(run_bytes(level))
        } else {
            hpa
        };
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
            | flag(a.contiguous, CONTIGUOUS)
            | u64::from(a.software) << SOFTWARE_SHIFT)
    }

    fn leaf_step(level: Level) -> u64 {
        // Wraps for levels that no tree has.
        1 << ((usize::from(PAGE_SHIFT) + usize::from(INDEX_BITS) * level.index()) & 63)
    }

    fn run_step(level: Level) -> u64 {
        if level == Level::PAGE {
            Self::leaf_step(level)
        } else {
            0
        }
    }

    fn decode_leaf(features: &(), level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
        let memory = *MEMORY.get(field(raw, MEMORY_SHIFT, 7))?;
        let contiguous = raw & CONTIGUOUS != 0;
        let repeated = contiguous && Self::run_step(level) == 0;
        let aligned = Hpa::new(raw & ADDRESS).is_aligned(if repeated {
            run_bytes(level)
        } else {
            Self::leaf_step(level)
        });
        let no_run = contiguous && run_bits(level) == 0;
        if raw & TABLE != 0 || raw >> 49 != 0 || !aligned || no_run {
            return None;
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
            contiguous,
        };
        Some((Self::address(features, level, raw), attributes))
    }

    fn is_empty(_: Level, raw: u64) -> bool {
        raw & VALID == 0
    }

    fn is_table(level: Level, raw: u64) -> bool {
        level != Level::PAGE && raw & (TABLE | VALID) == TABLE | VALID
    }

    fn address((): &(), level: Level, raw: u64) -> Hpa {
        let hpa = Hpa::new(raw & ADDRESS);
        if Self::is_table(level, raw) {
            Hpa::new(hpa.raw() | raw >> 48 & 0x3c00)
        } else if raw & CONTIGUOUS != 0 {
            hpa.align_down(run_bytes(level))
        } else {
            hpa
        }
    }

    fn is_in_run(_: Level, raw: u64) -> bool {
        raw & CONTIGUOUS != 0
    }

    fn forces((): &(), _: MemoryType) -> bool {
        true
    }
}
