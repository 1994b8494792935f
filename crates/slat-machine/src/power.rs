//! POWER radix tables, partition-scoped, as the Power ISA, version 3.1, Book III, has them.
//!
//! A partition-table entry names the root. Tables are big-endian: a bit that the manual numbers *b*,
//! from the most significant one, is bit 63 − *b* here, after the bytes are swapped.
//!
//! What the model does not follow:
//! * trees of other shapes than the processors have: 13, 9, 9 and 9 index bits with pages of 4 KiB, 13,
//!   9, 9 and 5 with 64 KiB. Hardware learns from each pointer how large the next table is; here a
//!   pointer that says otherwise is taken for reserved;
//! * `tlbsync`, which only orders: here it is what completes the `tlbie`s before it, and a `ptesync`
//!   alone completes those of its own CPU.

use serde::{Deserialize, Serialize};

use crate::address::{Gpa, Hpa, hexadecimal};
use crate::architecture::{
    Architecture, Descriptor, Effect, Effects, Forgotten, Leaf, LevelShape, Reach,
};
use crate::event::{self, Vm};

/// What points a CPU to a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// `LPIDR`: the number of the partition.
    pub lpid: Vm,
    /// The first doubleword of its entry in the partition table. The second concerns the guest's
    /// own tables.
    #[serde(with = "hexadecimal")]
    pub partition: u64,
    /// log2 of the bytes of a page: 12 or 16.
    pub page_shift: u8,
}

impl Registers {
    /// The VM that they name.
    pub const fn vm(&self) -> Vm {
        self.lpid
    }
}

/// Barriers and invalidations. Those of translations are partition-scoped and radix (`PRS` 0, `R` 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Instruction {
    /// `ptesync`.
    Ptesync,
    /// `eieio`.
    Eieio,
    /// `tlbsync`.
    Tlbsync,
    /// `tlbie`.
    Tlbie {
        /// The field `RIC`.
        ric: u8,
        /// Register `RB`.
        #[serde(with = "hexadecimal")]
        rb: u64,
    },
    /// `tlbiel`.
    Tlbiel {
        /// The field `RIC`.
        ric: u8,
        /// Register `RB`.
        #[serde(with = "hexadecimal")]
        rb: u64,
    },
}

/// Bits of an entry, numbered as the manual does.
const fn bit(number: u32) -> u64 {
    1 << (63 - number)
}

const VALID: u64 = bit(0);
const LEAF: u64 = bit(1);
/// Bits 3 to 6 of a leaf.
const LEAF_RESERVED: u64 = bit(3) | bit(4) | bit(5) | bit(6);
/// Bits 2, 3 and 56 to 58 of a pointer to a table.
const POINTER_RESERVED: u64 = bit(2) | bit(3) | bit(56) | bit(57) | bit(58);
const REFERENCE: u64 = bit(55);
const CHANGE: u64 = bit(56);
/// EAA: read, read and write, execute. The privilege bit is not looked at.
const READ: u64 = bit(61);
const READ_WRITE: u64 = bit(62);
const EXECUTE: u64 = bit(63);
/// RPN, bits 7 to 51.
const REAL_PAGE: u64 = bit(6) - bit(51);
/// NLB, bits 4 to 55.
const NEXT_TABLE: u64 = bit(3) - bit(55);
/// ATT, bits 58 and 59.
const NON_IDEMPOTENT: u8 = 0b10;

const ADDRESS_BITS: u8 = 52;
const ROOT_INDEX_BITS: u8 = 13;

/// A partition's tables.
#[derive(Clone, Debug)]
pub struct Radix {
    root: Hpa,
    levels: [LevelShape; 4],
}

impl Radix {
    /// What these registers describe.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn new(registers: &Registers) -> Result<Self, String> {
        let entry = registers.partition;
        if entry & bit(0) == 0 {
            return Err(format!("partition-table entry {entry:#x} has HR clear"));
        }
        // RTS is bits 1 and 2, then 56 to 58: the width of an address, less 31.
        let width = 31 + ((entry >> 61 & 0b11) << 3 | entry >> 5 & 0b111);
        if width != u64::from(ADDRESS_BITS) {
            return Err(format!("RTS of {entry:#x} gives {width} address bits"));
        }
        let index_bits = entry & 0x1f;
        if index_bits != u64::from(ROOT_INDEX_BITS) {
            return Err(format!("RPDS of {entry:#x} gives {index_bits} index bits"));
        }
        let root = Hpa(entry & NEXT_TABLE);
        if root.0 & 0xffff != 0 {
            return Err(format!("RPDB of {entry:#x} is not aligned to 64 KiB"));
        }
        let page_shift = registers.page_shift;
        if !matches!(page_shift, 12 | 16) {
            return Err(format!("pages of {page_shift} bits are not modelled"));
        }
        let shape = |shift, index_bits| LevelShape { shift, index_bits };
        Ok(Self {
            root,
            levels: [
                shape(page_shift, 21 - page_shift),
                shape(21, 9),
                shape(30, 9),
                shape(39, ROOT_INDEX_BITS),
            ],
        })
    }

    fn leaf(&self, level: usize, entry: u64) -> Descriptor {
        if level > 2 {
            return Descriptor::Reserved("a leaf among the entries of the root");
        }
        let size = 1_u64 << self.levels[level].shift;
        let hpa = entry & REAL_PAGE;
        if hpa & (size - 1) != 0 {
            return Descriptor::Reserved("a leaf with address bits below its size");
        }
        if entry & LEAF_RESERVED != 0 {
            return Descriptor::Reserved("a leaf with one of bits 3 to 6 set");
        }
        let memory = (entry >> 4 & 0b11) as u8;
        let device = memory == NON_IDEMPOTENT;
        let (writes, changed) = (entry & READ_WRITE != 0, entry & CHANGE != 0);
        Descriptor::Leaf(Leaf {
            hpa: Hpa(hpa),
            read: entry & (READ | READ_WRITE) != 0,
            write: writes && changed,
            becomes_dirty: writes && !changed,
            dirty: changed,
            // Non-idempotent memory is guarded.
            execute: entry & EXECUTE != 0 && !device,
            accessed: entry & REFERENCE != 0,
            memory,
            device,
            run_bits: 0,
        })
    }

    fn table(&self, level: usize, entry: u64) -> Descriptor {
        if level == 0 {
            return Descriptor::Reserved("a pointer to a table among pages");
        }
        if entry & POINTER_RESERVED != 0 {
            return Descriptor::Reserved("a pointer with reserved bits set");
        }
        // NLS.
        let index_bits = self.levels[level - 1].index_bits;
        if entry & 0x1f != u64::from(index_bits) {
            return Descriptor::Reserved("a pointer to a table of another size");
        }
        let table = entry & NEXT_TABLE;
        if table & ((8 << index_bits) - 1) != 0 {
            return Descriptor::Reserved("a pointer to a table that is not aligned to its size");
        }
        Descriptor::Table(Hpa(table))
    }

    /// What an invalidation does: RIC 0 forgets translations, 2 those, pointers to tables and the
    /// partition-table entry; IS, bits 52 and 53 of RB, is 0 for one address and 2 for all of the
    /// partition.
    fn invalidation(&self, reach: Reach, ric: u8, rb: u64) -> Effects {
        let forget = |what| Effect::Forget { reach, what };
        match (rb >> 10 & 0b11, ric) {
            (0, 0) => {
                // One address, by a page of one size, and what was combined from it: a translation
                // is gone before another could be combined from it.
                let address = forget(Forgotten::Address {
                    gpa: Gpa(rb & !0xfff),
                    leaf_only: true,
                    level: Some(self.level_of_size(rb >> 5 & 0b111)),
                });
                let gone = Effect::Complete {
                    reach,
                    invalidations: true,
                };
                [address, gone, forget(Forgotten::Combined)]
                    .into_iter()
                    .collect()
            }
            (2, 2) => core::iter::once(forget(Forgotten::All)).collect(),
            _ => Effects::new(),
        }
    }

    /// The level whose pages AP names. None of a page size that no leaf has is ever found.
    fn level_of_size(&self, size: u64) -> usize {
        let shift = match size {
            0b000 => 12,
            0b101 => 16,
            0b001 => 21,
            0b010 => 30,
            _ => 0,
        };
        let level = self.levels.iter().position(|shape| shape.shift == shift);
        level.unwrap_or(usize::MAX)
    }
}

impl Architecture for Radix {
    fn name(&self) -> &'static str {
        "POWER radix tables, partition-scoped"
    }

    fn root(&self) -> Hpa {
        self.root
    }

    fn levels(&self) -> &[LevelShape] {
        &self.levels
    }

    fn address_bits(&self) -> u8 {
        ADDRESS_BITS
    }

    fn decode(&self, level: usize, raw: u64) -> Descriptor {
        let entry = raw.swap_bytes();
        if entry & VALID == 0 {
            Descriptor::Invalid
        } else if entry & LEAF != 0 {
            self.leaf(level, entry)
        } else {
            self.table(level, entry)
        }
    }

    fn with_accessed(&self, _level: usize, raw: u64) -> Option<u64> {
        Some(raw | REFERENCE.swap_bytes())
    }

    fn with_dirty(&self, _level: usize, raw: u64) -> Option<u64> {
        let writes = raw & READ_WRITE.swap_bytes() != 0;
        writes.then_some(raw | (REFERENCE | CHANGE).swap_bytes())
    }

    fn break_before_make(&self) -> bool {
        // "Translation Table Update Synchronization Requirements": a valid entry is made invalid
        // and forgotten before another takes its place.
        true
    }

    fn caches_invalid(&self) -> bool {
        false
    }

    fn astray(&self, target: Hpa) -> u64 {
        // A page; where pointers to tables are expected it is a block that is not aligned, or a
        // leaf where there are none.
        let anything = VALID | LEAF | REFERENCE | CHANGE | READ | READ_WRITE | EXECUTE;
        let page = 1_u64 << self.levels[0].shift;
        (target.0 & REAL_PAGE & !(page - 1) | anything).swap_bytes()
    }

    fn effects(&self, instruction: &event::Instruction) -> Effects {
        let event::Instruction::Power(instruction) = instruction else {
            return Effects::new();
        };
        let complete = |reach, invalidations| Effect::Complete {
            reach,
            invalidations,
        };
        match *instruction {
            Instruction::Ptesync => [complete(Reach::All, false), complete(Reach::Local, true)]
                .into_iter()
                .collect(),
            Instruction::Eieio => core::iter::once(Effect::Synchronise).collect(),
            Instruction::Tlbsync => core::iter::once(complete(Reach::All, true)).collect(),
            Instruction::Tlbie { ric, rb } => self.invalidation(Reach::All, ric, rb),
            Instruction::Tlbiel { ric, rb } => self.invalidation(Reach::Local, ric, rb),
        }
    }
}

/// The second stage that these registers describe.
///
/// # Errors
///
/// What is wrong with them.
pub fn second_stage(registers: &Registers) -> Result<Box<dyn Architecture>, String> {
    Ok(Box::new(Radix::new(registers)?))
}

#[cfg(test)]
mod tests;
