//! What the bits of a descriptor mean (D8.3).

use super::shape::{Granule, Shape};
use crate::address::Hpa;
use crate::architecture::{Descriptor, Leaf};

const VALID: u64 = 1 << 0;
/// Tells a table or page from a block.
const TABLE_OR_PAGE: u64 = 1 << 1;
pub(super) const READ: u64 = 1 << 6;
pub(super) const WRITE: u64 = 1 << 7;
pub(super) const ACCESS_FLAG: u64 = 1 << 10;
/// `nT`, which is no part of a block's address.
const BLOCK_NO_TRANSLATION: u64 = 1 << 16;
pub(super) const DIRTY_BIT_MODIFIER: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;

/// Where a descriptor holds what of an address.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Every address bit that stands in its own place.
    in_place: u64,
    /// The others: the lowest, where in a descriptor it is, how many there are.
    moved: (u32, u32, u32),
    /// Reserved bits that are zero.
    reserved: u64,
}

impl Layout {
    fn of(shape: Shape) -> Self {
        let bits = |high: u32, low: u32| (1_u64 << (high + 1)) - (1 << low);
        match (shape.granule, shape.lpa2) {
            (Granule::K4, false) => Self {
                in_place: bits(47, 12),
                moved: (48, 0, 0),
                reserved: bits(50, 48),
            },
            (Granule::K16, false) => Self {
                in_place: bits(47, 14),
                moved: (48, 0, 0),
                reserved: bits(50, 48) | bits(13, 12),
            },
            (Granule::K4, true) => Self {
                in_place: bits(49, 12),
                moved: (50, 8, 2),
                reserved: bits(50, 50),
            },
            (Granule::K16, true) => Self {
                in_place: bits(49, 14),
                moved: (50, 8, 2),
                reserved: bits(50, 50) | bits(13, 12),
            },
            // Without 52-bit addresses bits 15:12 are reserved; as an address they are then beyond
            // its size, which comes to the same.
            (Granule::K64, _) => Self {
                in_place: bits(47, 16),
                moved: (48, 12, 4),
                reserved: bits(50, 48),
            },
        }
    }

    fn address(&self, raw: u64) -> u64 {
        let (lowest, place, count) = self.moved;
        raw & self.in_place | (raw >> place & ((1 << count) - 1)) << lowest
    }

    fn holding(&self, address: u64) -> u64 {
        let (lowest, place, count) = self.moved;
        address & self.in_place | (address >> lowest & ((1 << count) - 1)) << place
    }
}

/// Reads descriptors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    shape: Shape,
    layout: Layout,
    force_write_back: bool,
    hardware_dirty: bool,
}

impl Reader {
    pub(super) fn new(shape: Shape, force_write_back: bool, hardware_dirty: bool) -> Self {
        Self {
            shape,
            layout: Layout::of(shape),
            force_write_back,
            hardware_dirty,
        }
    }

    /// What a descriptor of a level says.
    pub(super) fn read(&self, level: usize, raw: u64) -> Descriptor {
        if raw & VALID == 0 {
            return Descriptor::Invalid;
        }
        let has_blocks = 0 < level && level <= self.shape.largest_block();
        match (raw & TABLE_OR_PAGE != 0, level) {
            (true, 0) => self.leaf(level, raw),
            (true, _) => self.table(raw),
            (false, _) if has_blocks => self.leaf(level, raw),
            // A block where there are none, such as at the pages' level, is reserved and behaves as
            // an invalid entry.
            (false, _) => Descriptor::Invalid,
        }
    }

    fn leaf(&self, level: usize, raw: u64) -> Descriptor {
        let shift = self.shape.granule.bits_below(level);
        if raw & self.layout.reserved != 0 {
            return Descriptor::Reserved("a leaf with reserved address bits set");
        }
        let below_size = (1 << shift) - 1;
        let ignored = if level > 0 { BLOCK_NO_TRANSLATION } else { 0 };
        if raw & self.layout.in_place & below_size & !ignored != 0 {
            return Descriptor::Reserved("a block with address bits below its size");
        }
        let hpa = self.layout.address(raw) & !below_size;
        // An address size fault ("MMU faults", D8): never translated, whatever else the entry says.
        if hpa >> self.shape.physical_bits != 0 {
            return Descriptor::Reserved("a leaf beyond the physical address size");
        }
        let memory = (raw >> 2 & 0xf) as u8;
        let device = match self.memory(memory) {
            Ok(device) => device,
            Err(reserved) => return Descriptor::Reserved(reserved),
        };
        // Device memory is outer shareable, whatever the entry says (D8.6). FEAT_LPA2 has no
        // shareability in descriptors.
        if !device && !self.shape.lpa2 && raw >> 8 & 0b11 == 0b01 {
            return Descriptor::Reserved("a leaf with the reserved shareability 0b01");
        }
        let run_bits = match self.run_bits(level, shift, raw) {
            Ok(run_bits) => run_bits,
            Err(reserved) => return Descriptor::Reserved(reserved),
        };
        let modified = self.hardware_dirty && raw & DIRTY_BIT_MODIFIER != 0;
        let write = raw & WRITE != 0;
        Descriptor::Leaf(Leaf {
            hpa: Hpa(hpa),
            read: raw & READ != 0,
            write,
            becomes_dirty: modified && !write,
            dirty: modified && write,
            // XN (D8.4): 0b10 is for nobody, the other three for EL1, EL0 or both.
            execute: raw >> 53 & 0b11 != 0b10,
            accessed: raw & ACCESS_FLAG != 0,
            memory,
            device,
            run_bits,
        })
    }

    /// log2 of the run that a leaf is one of. A run beyond the guest's addresses is constrained
    /// unpredictable (D8.7).
    fn run_bits(&self, level: usize, shift: usize, raw: u64) -> Result<u8, &'static str> {
        if raw & CONTIGUOUS == 0 {
            return Ok(0);
        }
        match self.shape.run_bits(level) {
            None => Err("a contiguous leaf of a level without runs"),
            Some(bits) if shift + usize::from(bits) > usize::from(self.shape.address_bits) => {
                Err("a contiguous run larger than the guest's addresses")
            }
            Some(bits) => Ok(bits),
        }
    }

    /// Whether `MemAttr` is a device's: D8.6.5, or D8.6.6 with forced write-back.
    fn memory(&self, attribute: u8) -> Result<bool, &'static str> {
        match (self.force_write_back, attribute) {
            (_, 0b0000..=0b0011) => Ok(true),
            (true, 0b0101..=0b0111) => Ok(false),
            (false, 0b0101..=0b1111) if attribute & 0b11 != 0 => Ok(false),
            _ => Err("a leaf with a reserved MemAttr"),
        }
    }

    fn table(&self, raw: u64) -> Descriptor {
        if raw & self.layout.reserved != 0 {
            return Descriptor::Reserved("a table pointer with reserved address bits set");
        }
        let table = self.layout.address(raw);
        if table >> self.shape.physical_bits != 0 {
            return Descriptor::Reserved("a table beyond the physical address size");
        }
        Descriptor::Table(Hpa(table))
    }

    /// A descriptor that is a table pointer, and at the pages' level a page, of everything allowed:
    /// accessed, inner shareable, normal non-cacheable, which is the same `MemAttr` with and without
    /// forced write-back.
    pub(super) fn anything_goes(&self, target: Hpa) -> u64 {
        let shareability = if self.shape.lpa2 { 0 } else { 0b11 << 8 };
        let permissions = ACCESS_FLAG | WRITE | READ;
        self.layout.holding(target.0)
            | shareability
            | permissions
            | 0b0101 << 2
            | TABLE_OR_PAGE
            | VALID
    }
}
