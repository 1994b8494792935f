//! s390 dynamic address translation (DAT), as the z/Architecture Principles of Operation (SA22-7832),
//! chapter 3, has it.
//!
//! The address-space-control element (ASCE) names the root, its type and its length. Tables are
//! big-endian: the entry with the number *n* in the manual's bit numbering, which counts from the
//! most significant bit, has its bit *b* at 63 − *b* here, after the bytes are swapped.
//!
//! What the model does not follow:
//! * tables of which only part is there, other than the root, protection and offsets in pointers to
//!   tables, common segments, access control in entries: such entries are taken for reserved;
//! * which entry an invalidation names: IPTE and IDTE say it by its place in a table, and a cache
//!   here is searched by guest address, so they forget everything of the VM.

use serde::{Deserialize, Serialize};

use crate::address::{Hpa, hexadecimal};
use crate::architecture::{
    Architecture, Descriptor, Effect, Effects, Forgotten, Leaf, LevelShape, Reach,
};
use crate::event::{self, Vm};

/// What points a CPU to a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// The VM: there is no register that numbers it.
    pub vm: Vm,
    /// The ASCE.
    #[serde(with = "hexadecimal")]
    pub asce: u64,
    /// Enhanced DAT applies: control register 0, bit 40.
    pub enhanced_dat_1: bool,
    /// Enhanced-DAT facility 2 is installed; counts only together with `enhanced_dat_1`.
    pub enhanced_dat_2: bool,
    /// Instruction-execution protection is on: control register 0, bit 20.
    pub instruction_execution_protection: bool,
}

impl Registers {
    /// The VM that they name.
    pub const fn vm(&self) -> Vm {
        self.vm
    }
}

/// Barriers and invalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Instruction {
    /// `BCR 15,0`.
    Serialize,
    /// `IPTE`, without additional entries, on all CPUs.
    Ipte {
        /// First operand: the page table's origin.
        #[serde(with = "hexadecimal")]
        origin: u64,
        /// Second operand: an address with the page index.
        #[serde(with = "hexadecimal")]
        address: u64,
    },
    /// `IDTE`, on all CPUs, whatever address space the entry is used in.
    Idte {
        /// First operand: the table's origin and type.
        #[serde(with = "hexadecimal")]
        table: u64,
        /// Second operand: an address with the index.
        #[serde(with = "hexadecimal")]
        address: u64,
    },
    /// `IDTE` with the clearing-by-ASCE option and the VM's ASCE, on all CPUs.
    IdteByAsce,
}

/// Bits of an entry, numbered as the manual does.
const fn bit(number: u32) -> u64 {
    1 << (63 - number)
}

/// Page-table entry: I.
const PAGE_INVALID: u64 = bit(53);
/// Page-table entry: must be zero.
const PAGE_ZERO: u64 = bit(52);
/// P.
const PROTECTION: u64 = bit(54);
/// IEP.
const EXECUTION_PROTECTION: u64 = bit(55);
/// Segment- and region-table entries: I.
const INVALID: u64 = bit(58);
/// FC.
const FORMAT_CONTROL: u64 = bit(53);
/// AV: the access-control bits of a large frame count.
const ACCESS_CONTROL_VALID: u64 = bit(47);
/// CS or CR.
const COMMON: u64 = bit(59);
/// TF.
const OFFSET: u64 = bit(56) | bit(57);
/// TL.
const LENGTH: u64 = bit(62) | bit(63);
/// ASCE: R, real space.
const REAL_SPACE: u64 = bit(58);

/// What an entry of each level translates, and the index bits of a full table.
const LEVELS: [LevelShape; 5] = [
    shape(12, 8),
    shape(20, 11),
    shape(31, 11),
    shape(42, 11),
    shape(53, 11),
];

const fn shape(shift: u8, index_bits: u8) -> LevelShape {
    LevelShape { shift, index_bits }
}

/// A VM's tables.
#[derive(Clone, Debug)]
pub struct Dat {
    root: Hpa,
    levels: Vec<LevelShape>,
    address_bits: u8,
    /// The highest level with leaves.
    largest: usize,
    execution_protection: bool,
}

impl Dat {
    /// What these registers describe.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn new(registers: &Registers) -> Result<Self, String> {
        let asce = registers.asce;
        if asce & REAL_SPACE != 0 {
            return Err(format!("ASCE {asce:#x} designates the real space"));
        }
        // DT, bits 60 and 61: the root is a segment, region-third, -second or -first table.
        let root_level = (asce >> 2 & 0b11) as usize + 1;
        // TL: so many quarters of a full table, less one.
        let index_bits = match asce & LENGTH {
            0 => 9,
            1 => 10,
            3 => 11,
            _ => return Err(format!("ASCE {asce:#x}: three quarters of a table")),
        };
        let mut levels = LEVELS[..=root_level].to_vec();
        levels[root_level].index_bits = index_bits;
        let address_bits = levels[root_level].shift + index_bits;
        if address_bits > 63 {
            return Err(format!("ASCE {asce:#x}: addresses of 64 bits"));
        }
        Ok(Self {
            root: Hpa(asce & !0xfff),
            levels,
            address_bits,
            largest: match (registers.enhanced_dat_1, registers.enhanced_dat_2) {
                (false, _) => 0,
                (true, false) => 1,
                (true, true) => 2,
            },
            execution_protection: registers.instruction_execution_protection,
        })
    }

    /// A page-table entry.
    fn page(&self, entry: u64) -> Descriptor {
        if entry & PAGE_INVALID != 0 {
            Descriptor::Invalid
        } else if entry & PAGE_ZERO != 0 {
            Descriptor::Reserved("a page-table entry with bit 52 set")
        } else {
            self.leaf(0, entry)
        }
    }

    /// A segment- or region-table entry.
    fn upper(&self, level: usize, entry: u64) -> Descriptor {
        if entry & INVALID != 0 {
            return Descriptor::Invalid;
        }
        // A translation-specification exception, whatever else the entry says.
        if (entry >> 2 & 0b11) as usize != level - 1 {
            return Descriptor::Reserved("an entry of another table's type");
        }
        if level <= 2 && entry & COMMON != 0 {
            return Descriptor::Reserved("a common segment or region");
        }
        if level <= 2 && entry & FORMAT_CONTROL != 0 {
            if level > self.largest {
                return Descriptor::Reserved("format control without enhanced DAT");
            }
            if entry & ACCESS_CONTROL_VALID != 0 {
                return Descriptor::Reserved("a large frame with access control");
            }
            return self.leaf(level, entry);
        }
        if entry & PROTECTION != 0 {
            return Descriptor::Reserved("a protected table");
        }
        if level == 1 {
            return Descriptor::Table(Hpa(entry & !0x7ff));
        }
        if entry & (OFFSET | LENGTH) != LENGTH {
            return Descriptor::Reserved("a table of which only part is there");
        }
        Descriptor::Table(Hpa(entry & !0xfff))
    }

    fn leaf(&self, level: usize, entry: u64) -> Descriptor {
        if entry & EXECUTION_PROTECTION != 0 && !self.execution_protection {
            return Descriptor::Reserved("execution protection, which is off");
        }
        let size = 1_u64 << LEVELS[level].shift;
        // Between a large frame's address and AV.
        if level > 0 && entry & (size - 1) >> 17 << 17 != 0 {
            return Descriptor::Reserved("a large frame with address bits below its size");
        }
        Descriptor::Leaf(Leaf {
            hpa: Hpa(entry & !(size - 1)),
            read: true,
            write: entry & PROTECTION == 0,
            becomes_dirty: false,
            dirty: false,
            execute: entry & EXECUTION_PROTECTION == 0,
            // What is valid may be accessed: there is no bit that says whether it was.
            accessed: true,
            memory: 0,
            device: false,
            run_bits: 0,
        })
    }
}

impl Architecture for Dat {
    fn name(&self) -> &'static str {
        "s390 DAT tables"
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
        let entry = raw.swap_bytes();
        if level == 0 {
            self.page(entry)
        } else {
            self.upper(level, entry)
        }
    }

    fn with_accessed(&self, _level: usize, _raw: u64) -> Option<u64> {
        // Reference and change are recorded in storage keys, which are not in the tables.
        None
    }

    fn with_dirty(&self, _level: usize, _raw: u64) -> Option<u64> {
        None
    }

    fn break_before_make(&self) -> bool {
        // "Modification of Translation Tables": a valid entry that is in use is changed only by
        // instructions that have it forgotten.
        true
    }

    fn caches_invalid(&self) -> bool {
        // A TLB entry is formed from valid entries only ("Formation of TLB Entries").
        false
    }

    fn astray(&self, target: Hpa) -> u64 {
        // A page, or a segment's page table. Entries of regions need another type.
        (target.0 & !0xfff).swap_bytes()
    }

    fn effects(&self, instruction: &event::Instruction) -> Effects {
        let event::Instruction::S390(instruction) = instruction else {
            return Effects::new();
        };
        let reach = Reach::All;
        let complete = |invalidations| Effect::Complete {
            reach,
            invalidations,
        };
        match instruction {
            Instruction::Serialize => core::iter::once(complete(false)).collect(),
            // They serialize before and after, and are complete when all CPUs have forgotten.
            Instruction::Ipte { .. } | Instruction::Idte { .. } | Instruction::IdteByAsce => {
                let what = Forgotten::All;
                let forget = Effect::Forget { reach, what };
                [complete(true), forget, complete(true)]
                    .into_iter()
                    .collect()
            }
        }
    }
}

/// The second stage that these registers describe.
///
/// # Errors
///
/// What is wrong with them.
pub fn second_stage(registers: &Registers) -> Result<Box<dyn Architecture>, String> {
    Ok(Box::new(Dat::new(registers)?))
}

#[cfg(test)]
mod tests;
