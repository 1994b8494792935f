//! AMD nested paging, as the AMD64 Architecture Programmer's Manual (volume 2) has it.
//!
//! Nested tables are in the format of the host's own (5.3, 5.4), walked as the host walks at the moment
//! of `VMRUN` (15.25): `N_CR3` points to the root, the host's `CR4.LA57` gives the number of levels, its
//! PAT the memory types. The host is in long mode with `EFER.NXE` set. The manual numbers no levels;
//! here, as everywhere in this crate, level 0 maps pages.
//!
//! The walker always keeps accessed and dirty bits, accessed ones in every entry that it uses, pointers
//! to tables included (5.4.2): [`with_accessed`](Architecture::with_accessed) means the same for both.
//!
//! What the model does not follow:
//! * permissions of pointers to tables, which take from what the leaves below allow: one that takes
//!   anything away is called reserved, so that nobody mistakes it for one that does not;
//! * that a walk of the guest's own tables counts as a write to them (15.25.6): the guest's first stage
//!   is taken to be the identity;
//! * what the encryption bit does to data.

use serde::{Deserialize, Serialize};

use crate::address::{Hpa, hexadecimal};
use crate::architecture::{
    Architecture, Descriptor, Effect, Effects, Forgotten, Leaf, LevelShape, Reach,
};
use crate::event::{self, Vm};

/// What points a CPU to a tree, and what the host's registers say of its walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// The VM.
    pub vm: Vm,
    /// `N_CR3`, of the VMCB.
    #[serde(with = "hexadecimal")]
    pub n_cr3: u64,
    /// `CR4.LA57`.
    pub five_levels: bool,
    /// The PAT, MSR `0277`.
    #[serde(with = "hexadecimal")]
    pub pat: u64,
    /// Bits of a physical address (CPUID `8000_0008`, EAX 7:0).
    pub physical_bits: u8,
    /// 1 GiB blocks (CPUID `8000_0001`, EDX 26).
    pub blocks_1g: bool,
    /// CPUID `8000_001F`, EBX, if memory encryption is turned on: the encryption bit in 5:0, the
    /// physical address bits that it costs in 11:6.
    #[serde(default)]
    pub encryption: Option<u32>,
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
    /// `MFENCE`.
    Mfence,
    /// `VMRUN` with `TLB_CONTROL` 3, as far as it flushes: everything of the guest's ASID.
    FlushAsid,
    /// `VMRUN` with `TLB_CONTROL` 1, as far as it flushes: everything of every ASID.
    FlushAll,
}

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const MAPS_A_PAGE: u64 = 1 << 7;
/// Bits 51:12, of which those from the width of a physical address up are reserved.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const NO_EXECUTE: u64 = 1 << 63;

const PAGE_SHIFT: u8 = 12;
const INDEX_BITS: u8 = 9;

/// The second stage of one VM.
#[derive(Clone, Debug)]
pub struct NestedPaging {
    root: Hpa,
    levels: Vec<LevelShape>,
    pat: u64,
    blocks_1g: bool,
    /// Width of a physical address, without what encryption takes.
    physical_bits: u32,
    /// The encryption bit in an entry; 0 without encryption.
    encrypted: u64,
}

impl NestedPaging {
    /// What these registers describe.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn new(registers: &Registers) -> Result<Self, String> {
        let Registers {
            n_cr3,
            physical_bits,
            ..
        } = *registers;
        if !(32..=52).contains(&physical_bits) {
            return Err(format!(
                "{physical_bits} physical address bits, not 32 to 52"
            ));
        }
        let (encrypted, taken) = match registers.encryption {
            None => (0, 0),
            Some(ebx) => {
                let bit = ebx & 0x3f;
                if !(32..52).contains(&bit) {
                    return Err(format!(
                        "bit {bit} of an entry cannot be the encryption bit"
                    ));
                }
                (1_u64 << bit, ebx >> 6 & 0x3f)
            }
        };
        let physical_bits = u32::from(physical_bits).saturating_sub(taken);
        let types = registers.pat.to_le_bytes();
        // 2 and 3 are reserved, and so is all above 7 (7.8.1).
        if let Some(reserved) = types.iter().find(|&&it| matches!(it, 2 | 3 | 8..)) {
            return Err(format!("the PAT has the reserved type {reserved:#x}"));
        }
        let root = n_cr3 & ADDRESS & !encrypted;
        let walk_type = 0b11 << 3;
        if n_cr3 & !(root | encrypted | walk_type) != 0 || root >> physical_bits != 0 {
            return Err(format!("N_CR3 {n_cr3:#x} has reserved bits set"));
        }
        let shape = |level| LevelShape {
            shift: PAGE_SHIFT + INDEX_BITS * level,
            index_bits: INDEX_BITS,
        };
        let levels = if registers.five_levels { 5 } else { 4 };
        Ok(Self {
            root: Hpa(root),
            levels: (0..levels).map(shape).collect(),
            pat: registers.pat,
            blocks_1g: registers.blocks_1g,
            physical_bits,
            encrypted,
        })
    }

    /// The address that `bits` of an entry hold, and whether it is one.
    fn address(&self, bits: u64) -> Result<Hpa, Descriptor> {
        let address = bits & ADDRESS & !self.encrypted;
        if address >> self.physical_bits == 0 {
            Ok(Hpa(address))
        } else {
            Err(Descriptor::Reserved(
                "an entry with address bits that the CPU does not have",
            ))
        }
    }

    fn leaf(&self, level: usize, raw: u64) -> Descriptor {
        let size = 1_u64 << self.levels[level].shift;
        // A page's third index bit stands where a block has the bit that makes it one (5.4.1).
        let pat_bit = if level == 0 { 1 << 7 } else { 1 << 12 };
        let hpa = match self.address(raw & !pat_bit) {
            Ok(hpa) => hpa,
            Err(reserved) => return reserved,
        };
        if !hpa.0.is_multiple_of(size) {
            return Descriptor::Reserved("a block with address bits below its size");
        }
        let index = raw >> 3 & 0b11 | u64::from(raw & pat_bit != 0) << 2;
        let memory = (self.pat >> (8 * index) & 0b111) as u8;
        // Every access of a guest is a user's, even its kernel's (15.25.5).
        let reached = raw & USER != 0;
        let writable = reached && raw & WRITE != 0;
        let dirty = raw & DIRTY != 0;
        Descriptor::Leaf(Leaf {
            hpa,
            read: reached,
            write: writable && dirty,
            becomes_dirty: writable && !dirty,
            dirty,
            execute: reached && raw & NO_EXECUTE == 0,
            accessed: raw & ACCESSED != 0,
            memory: u8::from(raw & self.encrypted != 0) << 3 | memory,
            // UC and UC-, which the guest can make write-combining, but not cached (15.25.8).
            device: matches!(memory, 0 | 7),
            run_bits: 0,
        })
    }

    fn table(&self, level: usize, raw: u64) -> Descriptor {
        // Bit 8 too must be zero in the two highest levels that there can be (5.3.3).
        if level >= 3 && raw & 1 << 8 != 0 {
            return Descriptor::Reserved("a pointer to a table with bit 8 set");
        }
        if raw & (NO_EXECUTE | USER | WRITE) != USER | WRITE {
            return Descriptor::Reserved("a pointer to a table that takes permissions away");
        }
        self.address(raw)
            .map_or_else(|reserved| reserved, Descriptor::Table)
    }
}

/// The second stage that these registers describe.
///
/// # Errors
///
/// What is wrong with them.
pub fn second_stage(registers: &Registers) -> Result<Box<dyn Architecture>, String> {
    Ok(Box::new(NestedPaging::new(registers)?))
}

impl Architecture for NestedPaging {
    fn name(&self) -> &'static str {
        "AMD nested paging"
    }

    fn root(&self) -> Hpa {
        self.root
    }

    fn levels(&self) -> &[LevelShape] {
        &self.levels
    }

    fn address_bits(&self) -> u8 {
        self.levels
            .last()
            .map_or(0, |shape| shape.shift + shape.index_bits)
    }

    fn decode(&self, level: usize, raw: u64) -> Descriptor {
        if raw & PRESENT == 0 {
            return Descriptor::Invalid;
        }
        match (level, raw & MAPS_A_PAGE != 0) {
            // In a page, bit 7 is part of the memory type.
            (0, _) | (1, true) => self.leaf(level, raw),
            (2, true) if self.blocks_1g => self.leaf(level, raw),
            (_, false) => self.table(level, raw),
            (_, true) => Descriptor::Reserved("a block at a level without blocks"),
        }
    }

    fn with_accessed(&self, _level: usize, raw: u64) -> Option<u64> {
        Some(raw | ACCESSED)
    }

    fn table_with_accessed(&self, level: usize, raw: u64) -> Option<u64> {
        self.with_accessed(level, raw)
    }

    fn with_dirty(&self, _level: usize, raw: u64) -> Option<u64> {
        (raw & WRITE != 0).then_some(raw | DIRTY)
    }

    fn break_before_make(&self) -> bool {
        // A present entry may be changed, and is flushed afterwards (5.5.3).
        false
    }

    fn caches_invalid(&self) -> bool {
        // Nothing is cached of an entry that is not present (5.5).
        false
    }

    fn astray(&self, target: Hpa) -> u64 {
        // Bits that pointers to tables reserve are clear, which makes a page write-back under every
        // usual PAT.
        target.0 & ADDRESS | self.encrypted | DIRTY | ACCESSED | USER | WRITE | PRESENT
    }

    fn effects(&self, instruction: &event::Instruction) -> Effects {
        let event::Instruction::Npt(instruction) = instruction else {
            return Effects::new();
        };
        match instruction {
            // Buffered stores are drained into caches that all CPUs and their walkers see (7.5.1).
            Instruction::Mfence => core::iter::once(Effect::Complete {
                reach: Reach::All,
                invalidations: false,
            })
            .collect(),
            // The flush is part of VMRUN: the guest's first access comes after it (15.16). That the
            // second kind reaches other VMs too is nothing to rely on.
            Instruction::FlushAsid | Instruction::FlushAll => {
                let forget = Effect::Forget {
                    reach: Reach::Local,
                    what: Forgotten::All,
                };
                let complete = Effect::Complete {
                    reach: Reach::Local,
                    invalidations: true,
                };
                [forget, complete].into_iter().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests;
