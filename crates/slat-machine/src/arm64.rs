//! Arm VMSAv8-64 stage 2, as the Arm Architecture Reference Manual (DDI 0487) has it.
//!
//! Tables with a 4 KiB granule and 48-bit output addresses. `VTCR_EL2` (D24.2) gives the shape of
//! the tree: `T0SZ` the width of a guest address, `SL0` the level of the root, which may be up to 16
//! tables side by side (D8.2.3). The manual counts levels from the root, 3 maps pages; here, as
//! everywhere in this crate, level 0 maps pages.
//!
//! What the model does not follow:
//! * other granules, and the wider addresses of `FEAT_LPA2`: such registers are refused;
//! * the *contiguous* hint (bit 52): entries that carry it are cached one by one;
//! * the features of one CPU or another: `FEAT_TTL` is taken to be there, so an invalidation whose
//!   operand names a level need find nothing of other levels, nor a pointer to a table;
//! * `FEAT_XNX` is taken to be there, so both bits of `XN` count.

use serde::{Deserialize, Serialize};

use crate::address::{Gpa, Hpa, hexadecimal};
use crate::architecture::{
    Architecture, Descriptor, Effect, Effects, Forgotten, Leaf, LevelShape, Reach,
};
use crate::event;

/// What points a CPU to a stage-2 tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// `VTTBR_EL2`.
    #[serde(with = "hexadecimal")]
    pub vttbr: u64,
    /// `VTCR_EL2`.
    #[serde(with = "hexadecimal")]
    pub vtcr: u64,
    /// `HCR_EL2.FWB`.
    pub force_write_back: bool,
}

impl Registers {
    /// The VMID in `VTTBR_EL2`.
    pub const fn vmid(&self) -> u16 {
        (self.vttbr >> 48) as u16
    }
}

/// Barriers and invalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Instruction {
    /// `DSB ISH`.
    DsbIsh,
    /// `DSB ISHST`.
    DsbIshst,
    /// `DSB NSH`.
    DsbNsh,
    /// `DSB NSHST`.
    DsbNshst,
    /// `ISB`.
    Isb,
    /// `TLBI IPAS2E1IS`.
    Ipas2e1is {
        /// The operand register.
        #[serde(with = "hexadecimal")]
        operand: u64,
    },
    /// `TLBI IPAS2LE1IS`.
    Ipas2le1is {
        /// The operand register.
        #[serde(with = "hexadecimal")]
        operand: u64,
    },
    /// `TLBI IPAS2E1`.
    Ipas2e1 {
        /// The operand register.
        #[serde(with = "hexadecimal")]
        operand: u64,
    },
    /// `TLBI VMALLE1IS`.
    Vmalle1is,
    /// `TLBI VMALLE1`.
    Vmalle1,
    /// `TLBI VMALLS12E1IS`.
    Vmalls12e1is,
    /// `TLBI VMALLS12E1`.
    Vmalls12e1,
}

const VALID: u64 = 1 << 0;
/// Tells a table or page from a block (D8.3).
const TABLE_OR_PAGE: u64 = 1 << 1;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const ACCESS_FLAG: u64 = 1 << 10;
/// `nT`, which is no part of a block's address (D8.3).
const BLOCK_NO_TRANSLATION: u64 = 1 << 16;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Above the 48 bits of an output address, and below `DBM`: reserved without `FEAT_LPA2`.
const ABOVE_ADDRESS: u64 = 0b111 << 48;
const DIRTY_BIT_MODIFIER: u64 = 1 << 51;

const PAGE_SHIFT: u8 = 12;
const INDEX_BITS: u8 = 9;
/// The largest block: 1 GiB (D8.3).
const LARGEST_BLOCK: usize = 2;
/// A root may be 16 tables side by side (D8.2.3).
const CONCATENATION_BITS: u8 = 4;

/// Stage 2 of one VM.
#[derive(Clone, Debug)]
pub struct StageTwo {
    root: Hpa,
    levels: Vec<LevelShape>,
    address_bits: u8,
    /// Bits of an output address, from `VTCR_EL2.PS`.
    physical_bits: u8,
    force_write_back: bool,
    hardware_accessed: bool,
    hardware_dirty: bool,
}

impl StageTwo {
    /// What these registers describe.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn new(registers: &Registers) -> Result<Self, String> {
        let vtcr = registers.vtcr;
        let field = |shift: u32, bits: u32| vtcr >> shift & ((1 << bits) - 1);
        if field(14, 2) != 0 {
            return Err(format!(
                "VTCR_EL2.TG0 is {:#b}: only the 4 KiB granule (0b00) is modelled",
                field(14, 2)
            ));
        }
        if field(32, 2) != 0 {
            return Err("VTCR_EL2.DS or SL2 is set: 52-bit addresses are not modelled".to_owned());
        }
        let physical_bits = physical_bits(field(16, 3))?;
        let address_bits = 64 - (field(0, 6) & 0x3f) as u8;
        let levels = levels(address_bits, field(6, 2))?;
        let root = root(registers, &levels, field(19, 1) != 0, physical_bits)?;
        let hardware_accessed = field(21, 1) != 0;
        Ok(Self {
            root,
            levels,
            address_bits,
            physical_bits,
            force_write_back: registers.force_write_back,
            hardware_accessed,
            // HD does nothing while HA is clear (D8.5).
            hardware_dirty: hardware_accessed && field(22, 1) != 0,
        })
    }

    fn leaf(&self, level: usize, raw: u64) -> Descriptor {
        let size = 1_u64 << self.levels[level].shift;
        let hpa = raw & ADDRESS & !(size - 1);
        let below = raw & ADDRESS & (size - 1);
        if below & !BLOCK_NO_TRANSLATION != 0 {
            return Descriptor::Reserved("a block with address bits below its size");
        }
        if raw & ABOVE_ADDRESS != 0 {
            return Descriptor::Reserved("a leaf with bits 50:48 set");
        }
        // An address size fault ("MMU faults", D8): never translated, whatever else the entry says.
        if hpa >> self.physical_bits != 0 {
            return Descriptor::Reserved("a leaf beyond the physical address size");
        }
        let memory = (raw >> 2 & 0xf) as u8;
        let device = match self.memory(memory) {
            Ok(device) => device,
            Err(reserved) => return Descriptor::Reserved(reserved),
        };
        // Device memory is outer shareable, whatever the entry says (D8.6).
        if !device && raw >> 8 & 0b11 == 0b01 {
            return Descriptor::Reserved("a leaf with the reserved shareability 0b01");
        }
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
            run_bits: 0,
        })
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
        let table = raw & ADDRESS;
        if raw & ABOVE_ADDRESS != 0 {
            return Descriptor::Reserved("a table pointer with bits 50:48 set");
        }
        if table >> self.physical_bits != 0 {
            return Descriptor::Reserved("a table beyond the physical address size");
        }
        Descriptor::Table(Hpa(table))
    }
}

/// `VTCR_EL2.PS` (D24.2). With the 4 KiB granule and without `FEAT_LPA2`, 52 bits mean 48.
fn physical_bits(size: u64) -> Result<u8, String> {
    match size {
        0 => Ok(32),
        1 => Ok(36),
        2 => Ok(40),
        3 => Ok(42),
        4 => Ok(44),
        5 | 6 => Ok(48),
        other => Err(format!("VTCR_EL2.PS is {other:#b}, which is reserved")),
    }
}

/// The levels, from `SL0` and the width of a guest address (D8.2.3).
fn levels(address_bits: u8, start: u64) -> Result<Vec<LevelShape>, String> {
    if !(25..=48).contains(&address_bits) {
        return Err(format!(
            "VTCR_EL2.T0SZ gives {address_bits} address bits, not 25 to 48"
        ));
    }
    // SL0 0, 1, 2 start at the manual's levels 2, 1, 0: our 1, 2, 3.
    let root = match start {
        0 => 1,
        1 => 2,
        2 => 3,
        _ => return Err("VTCR_EL2.SL0 is 0b11, which is reserved".to_owned()),
    };
    let shape = |level: u8, index_bits| LevelShape {
        shift: PAGE_SHIFT + INDEX_BITS * level,
        index_bits,
    };
    let below = shape(root, 0).shift;
    let widest = INDEX_BITS + CONCATENATION_BITS;
    if address_bits <= below || address_bits - below > widest {
        return Err(format!(
            "VTCR_EL2.SL0 {start:#b} does not fit {address_bits} address bits"
        ));
    }
    let mut levels: Vec<LevelShape> = (0..root).map(|level| shape(level, INDEX_BITS)).collect();
    levels.push(shape(root, address_bits - below));
    Ok(levels)
}

/// The root table, from `VTTBR_EL2`.
fn root(
    registers: &Registers,
    levels: &[LevelShape],
    wide_vmid: bool,
    physical_bits: u8,
) -> Result<Hpa, String> {
    const COMMON_NOT_PRIVATE: u64 = 1;
    let vttbr = registers.vttbr;
    if !wide_vmid && vttbr >> 56 != 0 {
        return Err(format!(
            "VTTBR_EL2 has a 16-bit VMID {:#x}, but VTCR_EL2.VS is clear",
            vttbr >> 48
        ));
    }
    let root = vttbr & 0x0000_ffff_ffff_ffff & !COMMON_NOT_PRIVATE;
    let index_bits = levels.last().map_or(0, |shape| shape.index_bits);
    // Concatenated tables are aligned to their size together, a small root to 64 bytes at least.
    let alignment = (8_u64 << index_bits).max(64);
    if !root.is_multiple_of(alignment) {
        return Err(format!(
            "VTTBR_EL2 points to {root:#x}, which is not aligned to {alignment:#x}"
        ));
    }
    if root >> physical_bits != 0 {
        return Err(format!(
            "VTTBR_EL2 points to {root:#x}, beyond {physical_bits} physical address bits"
        ));
    }
    Ok(Hpa(root))
}

impl Architecture for StageTwo {
    fn name(&self) -> &'static str {
        "Arm VMSAv8-64 stage 2, 4K granule"
    }

    fn root(&self) -> Hpa {
        self.root
    }

    fn levels(&self) -> &[LevelShape] {
        &self.levels
    }

    fn address_bits(&self) -> u8 {
        self.address_bits
    }

    fn decode(&self, level: usize, raw: u64) -> Descriptor {
        if raw & VALID == 0 {
            return Descriptor::Invalid;
        }
        match (raw & TABLE_OR_PAGE != 0, level) {
            (true, 0) | (false, 1..=LARGEST_BLOCK) => self.leaf(level, raw),
            (true, _) => self.table(raw),
            // A block where there are none, such as at the pages' level, is reserved and behaves as
            // an invalid entry (D8.3).
            (false, _) => Descriptor::Invalid,
        }
    }

    fn with_accessed(&self, _level: usize, raw: u64) -> Option<u64> {
        self.hardware_accessed.then_some(raw | ACCESS_FLAG)
    }

    fn with_dirty(&self, _level: usize, raw: u64) -> Option<u64> {
        (self.hardware_dirty && raw & DIRTY_BIT_MODIFIER != 0).then_some(raw | WRITE)
    }

    fn break_before_make(&self) -> bool {
        // "Using break-before-make" (D8.16). FEAT_BBM level 2, which relaxes it for sizes, is not
        // counted on.
        true
    }

    fn caches_invalid(&self) -> bool {
        // An entry that causes a translation, address size or access flag fault is never cached
        // ("Translation Lookaside Buffers", D8).
        false
    }

    fn astray(&self, target: Hpa) -> u64 {
        /// Everything allowed, accessed, inner shareable, normal non-cacheable, which is the same
        /// `MemAttr` with and without forced write-back.
        const ANYTHING_GOES: u64 = 0b111 << 8 | WRITE | READ | 0b0101 << 2 | TABLE_OR_PAGE | VALID;
        target.0 & ADDRESS | ANYTHING_GOES
    }

    fn effects(&self, instruction: &event::Instruction) -> Effects {
        let event::Instruction::Arm64(instruction) = instruction else {
            return Effects::new();
        };
        let complete = |reach, invalidations| Effect::Complete {
            reach,
            invalidations,
        };
        let forget = |reach, what| Effect::Forget { reach, what };
        let effect = match *instruction {
            // A DSB for stores only makes them visible; to complete an invalidation, loads must be
            // waited for too ("Ordering and completion of TLB maintenance instructions", D8).
            Instruction::DsbIsh => complete(Reach::All, true),
            Instruction::DsbIshst => complete(Reach::All, false),
            Instruction::DsbNsh => complete(Reach::Local, true),
            Instruction::DsbNshst => complete(Reach::Local, false),
            Instruction::Isb => Effect::Synchronise,
            Instruction::Ipas2e1is { operand } => forget(Reach::All, address(operand, false)),
            Instruction::Ipas2le1is { operand } => forget(Reach::All, address(operand, true)),
            Instruction::Ipas2e1 { operand } => forget(Reach::Local, address(operand, false)),
            Instruction::Vmalle1is => forget(Reach::All, Forgotten::Combined),
            Instruction::Vmalle1 => forget(Reach::Local, Forgotten::Combined),
            Instruction::Vmalls12e1is => forget(Reach::All, Forgotten::All),
            Instruction::Vmalls12e1 => forget(Reach::Local, Forgotten::All),
        };
        core::iter::once(effect).collect()
    }
}

/// The operand of an invalidation by guest physical address: bits 47:12 of it in bits 35:0, and a
/// hint of the level in bits 47:44 (C5.5).
const fn address(operand: u64, leaf_only: bool) -> Forgotten {
    Forgotten::Address {
        gpa: Gpa((operand & 0xf_ffff_ffff) << PAGE_SHIFT),
        leaf_only,
        level: hinted_level(operand >> 44 & 0xf),
    }
}

/// The level that a hint (`TTL`, C5.5) names: bits 3:2 are the granule, 1:0 the manual's level. An
/// invalidation with a wrong hint need find nothing, so one that names another granule names a
/// level that no tree here has.
const fn hinted_level(hint: u64) -> Option<usize> {
    match hint {
        0b0000..=0b0100 => None,
        0b0101 => Some(2),
        0b0110 => Some(1),
        0b0111 => Some(0),
        _ => Some(usize::MAX),
    }
}

#[cfg(test)]
mod tests;
