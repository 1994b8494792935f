//! Armv7 LPAE stage 2, as the Arm Architecture Reference Manual for Armv7 (DDI 0406) has it.
//!
//! Tables of 4 KiB with descriptors of 64 bits, addresses of 40 bits (B3.6). `VTCR` (B4.1) gives the
//! shape of the tree: `T0SZ` the width of a guest address, `SL0` the level of the root, the manual's
//! 2 or 1, which may be up to 16 tables side by side. The manual counts levels from the root, 3 maps
//! pages; here, as everywhere in this crate, level 0 maps pages.
//!
//! The hardware sets no bits: an access to a page whose access flag is clear faults. Nor can it
//! invalidate by guest physical address.

use serde::{Deserialize, Serialize};

use crate::address::{Hpa, hexadecimal};
use crate::architecture::{
    Architecture, Descriptor, Effect, Effects, Forgotten, Leaf, LevelShape, Reach,
};
use crate::event::{self, Vm};

/// What points a CPU to a stage-2 tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// `VTTBR`.
    #[serde(with = "hexadecimal")]
    pub vttbr: u64,
    /// `VTCR`, in the lower half.
    #[serde(with = "hexadecimal")]
    pub vtcr: u64,
}

impl Registers {
    /// The VM that they name: the VMID in `VTTBR`.
    pub const fn vm(&self) -> Vm {
        (self.vttbr >> 48 & 0xff) as Vm
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
    /// `TLBIALLIS`.
    Tlbiallis,
    /// `TLBIALL`.
    Tlbiall,
}

/// The second stage that these registers describe.
///
/// # Errors
///
/// What is wrong with them.
pub fn second_stage(registers: &Registers) -> Result<Box<dyn Architecture>, String> {
    Ok(Box::new(StageTwo::new(registers)?))
}

const VALID: u64 = 1 << 0;
/// Tells a table or page from a block.
const TABLE_OR_PAGE: u64 = 1 << 1;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const ACCESS_FLAG: u64 = 1 << 10;
const ADDRESS: u64 = 0x00ff_ffff_f000;
/// Between the address and the contiguous hint.
const ABOVE_ADDRESS: u64 = 0xfff << 40;
const CONTIGUOUS: u64 = 1 << 52;
const EXECUTE_NEVER: u64 = 1 << 54;

const PAGE_SHIFT: u8 = 12;
const INDEX_BITS: u8 = 9;
/// A run of the contiguous hint: 16 entries of any level.
const RUN_BITS: u8 = 4;

/// Stage 2 of one VM.
#[derive(Clone, Debug)]
struct StageTwo {
    root: Hpa,
    levels: Vec<LevelShape>,
    address_bits: u8,
}

impl StageTwo {
    fn new(registers: &Registers) -> Result<Self, String> {
        let vtcr = u32::try_from(registers.vtcr)
            .map_err(|_| format!("VTCR is {:#x}: it has 32 bits", registers.vtcr))?;
        let address_bits = address_bits(vtcr)?;
        let levels = levels(address_bits, vtcr >> 6 & 0b11)?;
        Ok(Self {
            root: root(registers.vttbr, &levels)?,
            levels,
            address_bits,
        })
    }

    fn leaf(&self, level: usize, raw: u64) -> Descriptor {
        let below_size = (1_u64 << self.levels[level].shift) - 1;
        if raw & ABOVE_ADDRESS != 0 {
            return Descriptor::Reserved("a leaf with bits 51:40 set");
        }
        if raw & ADDRESS & below_size != 0 {
            return Descriptor::Reserved("a block with address bits below its size");
        }
        let memory = (raw >> 2 & 0xf) as u8;
        let device = match memory {
            // Strongly-ordered and device memory.
            0b0000 | 0b0001 => true,
            // Outer and inner cacheability, each not cacheable, write-through, write-back.
            0b0101..=0b1111 if memory & 0b11 != 0 => false,
            _ => return Descriptor::Reserved("a leaf with a reserved MemAttr"),
        };
        if !device && raw >> 8 & 0b11 == 0b01 {
            return Descriptor::Reserved("a leaf with the reserved shareability 0b01");
        }
        let contiguous = raw & CONTIGUOUS != 0;
        if contiguous && self.levels[level].index_bits < RUN_BITS {
            return Descriptor::Reserved("a contiguous run larger than its table");
        }
        Descriptor::Leaf(Leaf {
            hpa: Hpa(raw & ADDRESS),
            read: raw & READ != 0,
            write: raw & WRITE != 0,
            becomes_dirty: false,
            dirty: false,
            execute: raw & EXECUTE_NEVER == 0,
            accessed: raw & ACCESS_FLAG != 0,
            memory,
            device,
            run_bits: if contiguous { RUN_BITS } else { 0 },
        })
    }
}

/// The width of a guest address: 32 less `T0SZ`, which is signed: bits 3:0, with the sign once more
/// in bit 4.
fn address_bits(vtcr: u32) -> Result<u8, String> {
    let t0sz = (vtcr & 0b1111) as u8;
    let negative = t0sz & 0b1000 != 0;
    if negative != (vtcr & 0b1_0000 != 0) {
        return Err("VTCR.S is not the sign of VTCR.T0SZ".to_owned());
    }
    Ok(if negative {
        32 + (16 - t0sz)
    } else {
        32 - t0sz
    })
}

/// The levels, from `SL0` and the width of a guest address.
fn levels(address_bits: u8, start: u32) -> Result<Vec<LevelShape>, String> {
    // SL0 0 and 1 start at the manual's levels 2 and 1: our 1 and 2.
    let root = match start {
        0b00 => 1,
        0b01 => 2,
        other => return Err(format!("VTCR.SL0 is {other:#b}, which is reserved")),
    };
    let below = PAGE_SHIFT + INDEX_BITS * root;
    // At most 16 tables side by side.
    let fits = |index_bits: &u8| (1..=INDEX_BITS + 4).contains(index_bits);
    let index_bits = address_bits
        .checked_sub(below)
        .filter(fits)
        .ok_or_else(|| format!("VTCR.SL0 {start:#b} does not fit {address_bits} address bits"))?;
    let shape = |level, index_bits| LevelShape {
        shift: PAGE_SHIFT + INDEX_BITS * level,
        index_bits,
    };
    let mut levels: Vec<LevelShape> = (0..root).map(|level| shape(level, INDEX_BITS)).collect();
    levels.push(shape(root, index_bits));
    Ok(levels)
}

/// The root table, from `VTTBR`: aligned to its size, all of its tables together.
fn root(vttbr: u64, levels: &[LevelShape]) -> Result<Hpa, String> {
    if vttbr >> 56 != 0 || vttbr >> 40 & 0xff != 0 {
        return Err(format!(
            "VTTBR is {vttbr:#x}: bits 63:56 and 47:40 are reserved"
        ));
    }
    let root = vttbr & 0xff_ffff_ffff;
    let alignment = 8_u64 << levels.last().map_or(0, |shape| shape.index_bits);
    if !root.is_multiple_of(alignment) {
        return Err(format!(
            "VTTBR points to {root:#x}, which is not aligned to {alignment:#x}"
        ));
    }
    Ok(Hpa(root))
}

impl Architecture for StageTwo {
    fn name(&self) -> &'static str {
        "Armv7 LPAE stage 2"
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
            (true, 0) | (false, 1..=2) => self.leaf(level, raw),
            (true, _) if raw & ABOVE_ADDRESS != 0 => {
                Descriptor::Reserved("a table pointer with bits 51:40 set")
            }
            (true, _) => Descriptor::Table(Hpa(raw & ADDRESS)),
            // A block at the pages' level is reserved and behaves as an invalid entry.
            (false, _) => Descriptor::Invalid,
        }
    }

    fn with_accessed(&self, _level: usize, _raw: u64) -> Option<u64> {
        None
    }

    fn with_dirty(&self, _level: usize, _raw: u64) -> Option<u64> {
        None
    }

    fn break_before_make(&self) -> bool {
        // "TLB maintenance requirements" (B3.10).
        true
    }

    fn caches_invalid(&self) -> bool {
        // An entry that causes a translation or access flag fault is never cached (B3.9).
        false
    }

    fn astray(&self, target: Hpa) -> u64 {
        /// Everything allowed, accessed, inner shareable, normal non-cacheable.
        const ANYTHING_GOES: u64 = 0b111 << 8 | WRITE | READ | 0b0101 << 2 | TABLE_OR_PAGE | VALID;
        target.0 & ADDRESS | ANYTHING_GOES
    }

    fn effects(&self, instruction: &event::Instruction) -> Effects {
        let event::Instruction::Armv7(instruction) = instruction else {
            return Effects::new();
        };
        let complete = |reach, invalidations| Effect::Complete {
            reach,
            invalidations,
        };
        let forget = |reach| Effect::Forget {
            reach,
            what: Forgotten::All,
        };
        let effect = match instruction {
            // A DSB for stores makes them visible; an invalidation is complete only after one for
            // all accesses (B3.10).
            Instruction::DsbIsh => complete(Reach::All, true),
            Instruction::DsbIshst => complete(Reach::All, false),
            Instruction::DsbNsh => complete(Reach::Local, true),
            Instruction::DsbNshst => complete(Reach::Local, false),
            Instruction::Isb => Effect::Synchronise,
            // In Hyp mode: everything of the guest that VTTBR names, of both stages.
            Instruction::Tlbiallis => forget(Reach::All),
            Instruction::Tlbiall => forget(Reach::Local),
        };
        core::iter::once(effect).collect()
    }
}

#[cfg(test)]
mod tests;
