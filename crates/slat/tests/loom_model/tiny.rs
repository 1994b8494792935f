//! A format just large enough for every case of the protocol: tables of two entries, three levels
//! of them, leaves at each. A span is two pages, the root's entries cover two spans, and all of
//! the guest's memory is eight pages. With a bit of address less there are two levels and four
//! pages: enough where no entry but the root's needs to cover more than a page.

use slat_table::address::Hpa;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::format::{ByteOrder, EncodeError, FlushKind, Format, GeometryError, Rules};
use slat_table::geometry::{Geometry, Level, LevelShape};

/// Width of a guest physical address.
pub(crate) const ADDRESS_BITS: u8 = 15;

/// Width of one in the smaller tree.
pub(crate) const SMALL_ADDRESS_BITS: u8 = 14;

/// Entries of a table.
pub(crate) const ENTRIES: usize = 2;

const TABLE_BYTES: u32 = 16;

const VALID: u64 = 1 << 0;
const TABLE: u64 = 1 << 1;
const READ: u64 = 1 << 2;
const WRITE: u64 = 1 << 3;
const EXECUTE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DEVICE: u64 = 1 << 6;
const DIRTY: u64 = 1 << 7;
const ADDRESS: u64 = !0xfff;

/// The format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tiny;

/// What the hardware asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TinyFeatures {
    /// Changes of a valid entry must pass through an invalid one and a flush.
    pub(crate) break_before_make: bool,
    /// Invalid entries may be cached.
    pub(crate) caches_invalid: bool,
}

/// The level of the root where a guest physical address has `bits` bits: each level decodes one,
/// the pages have twelve.
pub(crate) fn root_level(bits: u8) -> Level {
    Level::new(bits.saturating_sub(13))
}

impl Format for Tiny {
    type Features = TinyFeatures;
    type Root = u64;

    const NAME: &'static str = "tiny";
    const BYTE_ORDER: ByteOrder = ByteOrder::Little;
    const SHIFTS: &'static [u8] = &[12, 13, 14];

    fn rules(features: &TinyFeatures) -> Rules {
        Rules {
            flush: FlushKind::Broadcast,
            break_before_make: features.break_before_make,
            caches_invalid: features.caches_invalid,
            // Only where a test says so: `Machine::note_write`.
            hardware_accessed: true,
            hardware_dirty: true,
        }
    }

    fn geometry(_: &TinyFeatures, bits: u8) -> Result<Geometry, GeometryError> {
        let shape = |shift| LevelShape {
            shift,
            index_bits: 1,
            table_bytes: TABLE_BYTES,
            leaf: true,
            run_bits: 0,
        };
        let levels = [shape(12), shape(13), shape(14)];
        let most = root_level(bits).index() + 1;
        let levels = levels.get(..most);
        let geometry = levels.and_then(|levels| Geometry::new(levels, bits));
        geometry.ok_or(GeometryError {
            bits,
            format: Self::NAME,
            lowest: SMALL_ADDRESS_BITS,
            highest: ADDRESS_BITS,
        })
    }

    fn root(_: &TinyFeatures, _: &Geometry, table: Hpa, _: u16) -> u64 {
        table.raw()
    }

    fn empty(_: Level) -> u64 {
        0
    }

    fn table(_: &TinyFeatures, _: Level, table: Hpa) -> u64 {
        table.raw() | TABLE | VALID
    }

    fn leaf(
        _: &TinyFeatures,
        level: Level,
        hpa: Hpa,
        attributes: Attributes,
    ) -> Result<u64, EncodeError> {
        if !hpa.is_aligned(Self::leaf_step(level)) {
            return Err(EncodeError::Unaligned { hpa, level });
        }
        let memory = match attributes.memory {
            MemoryType::WriteBack => 0,
            MemoryType::Device => DEVICE,
            other => return Err(EncodeError::MemoryType(other)),
        };
        let when = |yes: bool, bit: u64| if yes { bit } else { 0 };
        let Permissions {
            read,
            write,
            execute,
        } = attributes.permissions;
        Ok(hpa.raw()
            | VALID
            | memory
            | when(read, READ)
            | when(write, WRITE)
            | when(execute == Execute::Always, EXECUTE)
            | when(attributes.accessed, ACCESSED)
            | when(attributes.dirty, DIRTY))
    }

    fn leaf_step(level: Level) -> u64 {
        0x1000 << level.index()
    }

    fn decode_leaf(features: &TinyFeatures, level: Level, raw: u64) -> Option<(Hpa, Attributes)> {
        let hpa = Self::address(features, level, raw);
        let has = |bit: u64| raw & bit != 0;
        let permissions = Permissions {
            read: has(READ),
            write: has(WRITE),
            execute: if has(EXECUTE) {
                Execute::Always
            } else {
                Execute::Never
            },
        };
        let memory = if has(DEVICE) {
            MemoryType::Device
        } else {
            MemoryType::WriteBack
        };
        let attributes = Attributes {
            accessed: has(ACCESSED),
            dirty: has(DIRTY),
            ..Attributes::new(permissions, memory)
        };
        Some((hpa, attributes))
    }

    fn is_empty(_: Level, raw: u64) -> bool {
        raw & VALID == 0
    }

    fn is_table(_: Level, raw: u64) -> bool {
        raw & (TABLE | VALID) == TABLE | VALID
    }

    fn address(_: &TinyFeatures, _: Level, raw: u64) -> Hpa {
        Hpa::new(raw & ADDRESS)
    }

    fn is_in_run(_: Level, _: u64) -> bool {
        false
    }

    fn forces(_: &TinyFeatures, _: MemoryType) -> bool {
        true
    }
}
