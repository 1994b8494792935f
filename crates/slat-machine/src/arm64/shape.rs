//! The shape of a tree, as `VTCR_EL2` and `VTTBR_EL2` describe it (D24.2, D8.2).

use super::Registers;
use crate::address::Hpa;
use crate::architecture::LevelShape;

/// The size of a page, which is the size of a table too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Granule {
    /// 4 KiB.
    K4,
    /// 16 KiB.
    K16,
    /// 64 KiB.
    K64,
}

impl Granule {
    /// log2 of it.
    pub(super) const fn page_shift(self) -> u8 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// Bits of an address that one level translates: a table is full of entries of 8 bytes.
    const fn stride(self) -> u8 {
        self.page_shift() - 3
    }

    /// How many bits of an address an entry of a level leaves untranslated.
    pub(super) fn bits_below(self, level: usize) -> usize {
        usize::from(self.page_shift()) + usize::from(self.stride()) * level
    }

    /// The same for a level that there is.
    const fn shift(self, level: u8) -> u8 {
        self.page_shift() + self.stride() * level
    }
}

/// What `VTCR_EL2` says of the tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) granule: Granule,
    /// `DS`: descriptors are those of `FEAT_LPA2`.
    pub(super) lpa2: bool,
    /// Width of a guest physical address.
    pub(super) address_bits: u8,
    /// Width of an output address.
    pub(super) physical_bits: u8,
    /// The level of the root, counted from the pages.
    root_level: u8,
}

impl Shape {
    pub(super) fn new(vtcr: u64) -> Result<Self, String> {
        let field = |shift: u32, bits: u32| vtcr >> shift & ((1 << bits) - 1);
        let granule = match field(14, 2) {
            0b00 => Granule::K4,
            0b01 => Granule::K64,
            0b10 => Granule::K16,
            _ => return Err("VTCR_EL2.TG0 is 0b11, which is reserved".to_owned()),
        };
        let lpa2 = field(32, 1) != 0;
        if lpa2 && granule == Granule::K64 {
            return Err("VTCR_EL2.DS is set, which is reserved with 64 KiB pages".to_owned());
        }
        if field(12, 2) == 0b01 {
            return Err("VTCR_EL2.SH0 is 0b01, which is reserved".to_owned());
        }
        // With DS, or with 64 KiB pages, addresses have up to 52 bits.
        let most = if lpa2 || granule == Granule::K64 {
            52
        } else {
            48
        };
        let physical_bits = physical_bits(field(16, 3))?.min(most);
        let address_bits = 64 - (field(0, 6) & 0x3f) as u8;
        if !(25..=most).contains(&address_bits) {
            return Err(format!(
                "VTCR_EL2.T0SZ gives {address_bits} address bits, not 25 to {most}"
            ));
        }
        let start = field(33, 1) << 2 | field(6, 2);
        let root_level = root_level(granule, lpa2, start)?;
        // A level too many would translate nothing; more than 16 tables side by side there cannot
        // be (D8.2.3).
        let below = granule.shift(root_level);
        if address_bits <= below || address_bits - below > granule.stride() + 4 {
            return Err(format!(
                "VTCR_EL2.SL2 and SL0 {start:#b} do not fit {address_bits} address bits"
            ));
        }
        Ok(Self {
            granule,
            lpa2,
            address_bits,
            physical_bits,
            root_level,
        })
    }

    /// The levels, pages first. All tables but the root are full.
    pub(super) fn levels(self) -> Vec<LevelShape> {
        let granule = self.granule;
        let level = |level| LevelShape {
            shift: granule.shift(level),
            index_bits: if level == self.root_level {
                self.address_bits - granule.shift(level)
            } else {
                granule.stride()
            },
        };
        (0..=self.root_level).map(level).collect()
    }

    /// The highest level that has blocks (D8.3). The one that `FEAT_LPA` adds is known by the size
    /// of output addresses.
    pub(super) const fn largest_block(self) -> usize {
        let without = match self.granule {
            Granule::K4 => 2,
            Granule::K16 | Granule::K64 => 1,
        };
        let lpa = matches!(self.granule, Granule::K64) && self.physical_bits == 52;
        if self.lpa2 || lpa {
            without + 1
        } else {
            without
        }
    }

    /// log2 of the entries of a contiguous run ("The Contiguous bit", D8.7); `None` where that bit
    /// is reserved.
    pub(super) const fn run_bits(self, level: usize) -> Option<u8> {
        match (self.granule, level) {
            (Granule::K4, 0..=2) => Some(4),
            (Granule::K16, 0) => Some(7),
            (Granule::K16 | Granule::K64, 1) | (Granule::K64, 0) => Some(5),
            _ => None,
        }
    }

    /// The root table, from `VTTBR_EL2`.
    pub(super) fn root(self, registers: &Registers, wide_vmid: bool) -> Result<Hpa, String> {
        /// `CnP`.
        const COMMON_NOT_PRIVATE: u64 = 1;
        let vttbr = registers.vttbr;
        if !wide_vmid && vttbr >> 56 != 0 {
            return Err(format!(
                "VTTBR_EL2 has a 16-bit VMID {:#x}, but VTCR_EL2.VS is clear",
                vttbr >> 48
            ));
        }
        let base = vttbr & 0xffff_ffff_ffff & !COMMON_NOT_PRIVATE;
        // Bits 51:48 stand in 5:2 where there are any.
        let root = if self.physical_bits == 52 {
            base & !0b11_1100 | (base >> 2 & 0xf) << 48
        } else {
            base
        };
        // Concatenated tables are aligned to their size together, a small root to 64 bytes at least.
        let index_bits = self.address_bits - self.granule.shift(self.root_level);
        let alignment = (8_u64 << index_bits).max(64);
        if !root.is_multiple_of(alignment) {
            return Err(format!(
                "VTTBR_EL2 points to {root:#x}, which is not aligned to {alignment:#x}"
            ));
        }
        if root >> self.physical_bits != 0 {
            return Err(format!(
                "VTTBR_EL2 points to {root:#x}, beyond {} physical address bits",
                self.physical_bits
            ));
        }
        Ok(Hpa(root))
    }
}

/// `VTCR_EL2.PS`.
fn physical_bits(size: u64) -> Result<u8, String> {
    match size {
        0 => Ok(32),
        1 => Ok(36),
        2 => Ok(40),
        3 => Ok(42),
        4 => Ok(44),
        5 => Ok(48),
        6 => Ok(52),
        other => Err(format!("VTCR_EL2.PS is {other:#b}, which is reserved")),
    }
}

/// The root's level, from `SL2` and `SL0`: the manual's 2, 1, 0 with 4 KiB pages, and −1 with
/// `FEAT_LPA2`; 3, 2, 1 with larger ones, and 0 with 16 KiB and `FEAT_LPA2`. Ours count from the
/// pages.
fn root_level(granule: Granule, lpa2: bool, start: u64) -> Result<u8, String> {
    match (granule, start) {
        (Granule::K16 | Granule::K64, 0b000) => Ok(0),
        (Granule::K4, 0b000) | (Granule::K16 | Granule::K64, 0b001) => Ok(1),
        (Granule::K4, 0b001) | (Granule::K16 | Granule::K64, 0b010) => Ok(2),
        (Granule::K4, 0b010) => Ok(3),
        (Granule::K16, 0b011) if lpa2 => Ok(3),
        (Granule::K4, 0b100) if lpa2 => Ok(4),
        _ => Err(format!(
            "VTCR_EL2.SL2 and SL0 are {start:#b}, which is reserved with this granule"
        )),
    }
}
