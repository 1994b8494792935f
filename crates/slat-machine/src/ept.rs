//! Intel EPT, as the Intel Software Developer's Manual has it (volume 3, in the numbering in which
//! chapter 29 is "VMX Support for Address Translation").
//!
//! The EPT pointer (25.6.11) gives the root, the length of the walk and whether the CPU keeps accessed
//! and dirty flags; the MSR `IA32_VMX_EPT_VPID_CAP` (A.10) what the CPU can do at all. An entry that
//! the CPU answers with a misconfiguration (29.3.3.1) is [`Descriptor::Reserved`]. The manual numbers
//! no levels; here, as everywhere in this crate, level 0 maps pages.
//!
//! With accessed flags, the walker sets them in every entry that it uses, pointers to tables included
//! (29.3.5): [`with_accessed`](Architecture::with_accessed) means the same for both.
//!
//! What the model does not follow:
//! * permissions of pointers to tables, which take from what the leaves below allow: one that takes
//!   anything away is called reserved, so that nobody mistakes it for one that does not;
//! * bits of features that a hypervisor must turn on and no [`Registers`] do: the virtualization
//!   exception, sub-page permissions, guest-paging verification, shadow stacks. Such bits are ignored,
//!   as the manual has it for CPUs without;
//! * that a violation makes the CPU forget the translation that it came from (29.4.3.1).

use serde::{Deserialize, Serialize};

use crate::address::{Hpa, hexadecimal};
use crate::architecture::{
    Architecture, Descriptor, Effect, Effects, Forgotten, Leaf, LevelShape, Reach,
};
use crate::event::{self, Vm};

/// What points a CPU to a tree, and what the CPU can do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// The VM.
    pub vm: Vm,
    /// The EPT pointer, of the VMCS.
    #[serde(with = "hexadecimal")]
    pub eptp: u64,
    /// The MSR `IA32_VMX_EPT_VPID_CAP`.
    #[serde(with = "hexadecimal")]
    pub capabilities: u64,
    /// `MAXPHYADDR`, of CPUID.
    pub physical_bits: u8,
    /// The VM-execution control "mode-based execute control for EPT".
    pub mode_based_execute: bool,
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
    /// `INVEPT` of type 1, single-context, with the VM's EPT pointer.
    InveptSingleContext,
    /// `INVEPT` of type 2, all-context.
    InveptAllContext,
}

/// Bits of `IA32_VMX_EPT_VPID_CAP` (A.10).
mod capability {
    pub(super) const EXECUTE_ONLY: u64 = 1 << 0;
    pub(super) const FOUR_LEVELS: u64 = 1 << 6;
    pub(super) const FIVE_LEVELS: u64 = 1 << 7;
    pub(super) const WALK_UNCACHED: u64 = 1 << 8;
    pub(super) const WALK_WRITE_BACK: u64 = 1 << 14;
    pub(super) const BLOCK_2M: u64 = 1 << 16;
    pub(super) const BLOCK_1G: u64 = 1 << 17;
    pub(super) const ACCESSED_AND_DIRTY: u64 = 1 << 21;
}

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const IGNORE_PAT: u64 = 1 << 6;
const MAPS_A_PAGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const EXECUTE_USER: u64 = 1 << 10;
/// Bits 51:12, of which those from `MAXPHYADDR` up are reserved.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const PAGE_SHIFT: u8 = 12;
const INDEX_BITS: u8 = 9;

/// The second stage of one VM.
#[derive(Clone, Debug)]
pub struct ExtendedPageTables {
    root: Hpa,
    levels: Vec<LevelShape>,
    registers: Registers,
    accessed_and_dirty: bool,
}

impl ExtendedPageTables {
    /// What these registers describe, if a VM entry accepts them (27.2.1.1).
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn new(registers: &Registers) -> Result<Self, String> {
        let Registers {
            eptp,
            capabilities,
            physical_bits,
            ..
        } = *registers;
        if !(32..=52).contains(&physical_bits) {
            return Err(format!("MAXPHYADDR is {physical_bits}, not 32 to 52"));
        }
        let has = |bit: u64| capabilities & bit != 0;
        let memory = eptp & 0b111;
        let walkable = match memory {
            0 => has(capability::WALK_UNCACHED),
            6 => has(capability::WALK_WRITE_BACK),
            _ => false,
        };
        if !walkable {
            return Err(format!("the CPU does no walks of memory type {memory}"));
        }
        let levels = match eptp >> 3 & 0b111 {
            3 if has(capability::FOUR_LEVELS) => 4,
            4 if has(capability::FIVE_LEVELS) => 5,
            other => return Err(format!("the CPU does no walks of length {other} + 1")),
        };
        let accessed_and_dirty = eptp & 1 << 6 != 0;
        if accessed_and_dirty && !has(capability::ACCESSED_AND_DIRTY) {
            return Err("the CPU keeps no accessed and dirty flags".to_owned());
        }
        if eptp >> 7 & 0b1_1111 != 0 || eptp >> physical_bits != 0 {
            return Err(format!("the EPT pointer {eptp:#x} has reserved bits set"));
        }
        let shape = |level| LevelShape {
            shift: PAGE_SHIFT + INDEX_BITS * level,
            index_bits: INDEX_BITS,
        };
        Ok(Self {
            root: Hpa(eptp & ADDRESS),
            levels: (0..levels).map(shape).collect(),
            registers: *registers,
            accessed_and_dirty,
        })
    }

    /// Whether the CPU takes an entry of this level, with bit 7 set, for a leaf.
    fn has_leaf(&self, level: usize) -> bool {
        let has = |bit: u64| self.registers.capabilities & bit != 0;
        match level {
            1 => has(capability::BLOCK_2M),
            2 => has(capability::BLOCK_1G),
            _ => false,
        }
    }

    /// What makes an entry present, and can be allowed by it (29.3.2).
    fn permissions(&self) -> u64 {
        if self.registers.mode_based_execute {
            READ | WRITE | EXECUTE | EXECUTE_USER
        } else {
            READ | WRITE | EXECUTE
        }
    }

    /// What makes any present entry a misconfiguration (29.3.3.1).
    fn misconfiguration(&self, raw: u64) -> Option<&'static str> {
        let allowed = raw & self.permissions();
        if allowed & (READ | WRITE) == WRITE {
            return Some("an entry that can be written but not read");
        }
        let execute_only = self.registers.capabilities & capability::EXECUTE_ONLY != 0;
        if allowed & READ == 0 && !execute_only {
            return Some("an entry that can be executed but not read, on a CPU without such");
        }
        if (raw & ADDRESS) >> self.registers.physical_bits != 0 {
            return Some("an entry with address bits beyond MAXPHYADDR");
        }
        None
    }

    fn leaf(&self, level: usize, raw: u64) -> Descriptor {
        let size = 1_u64 << self.levels[level].shift;
        if raw & ADDRESS & (size - 1) != 0 {
            return Descriptor::Reserved("a block with address bits below its size");
        }
        let memory = (raw >> 3 & 0b111) as u8;
        if !matches!(memory, 0 | 1 | 4 | 5 | 6) {
            return Descriptor::Reserved("a leaf with a reserved memory type");
        }
        let ignore_pat = u8::from(raw & IGNORE_PAT != 0);
        let writable = raw & WRITE != 0;
        let clean = self.accessed_and_dirty && raw & DIRTY == 0;
        Descriptor::Leaf(Leaf {
            hpa: Hpa(raw & ADDRESS),
            read: raw & READ != 0,
            write: writable && !clean,
            becomes_dirty: writable && clean,
            dirty: self.accessed_and_dirty && !clean,
            execute: raw & self.permissions() & (EXECUTE | EXECUTE_USER) != 0,
            accessed: !self.accessed_and_dirty || raw & ACCESSED != 0,
            memory: ignore_pat << 3 | memory,
            // UC: whatever the guest's PAT says, it is never cached (29.3.7.2).
            device: memory == 0,
            run_bits: 0,
        })
    }

    fn table(&self, raw: u64) -> Descriptor {
        if raw & 0b0111_1000 != 0 {
            return Descriptor::Reserved("a pointer to a table with bits 6:3 set");
        }
        if raw & self.permissions() != self.permissions() {
            return Descriptor::Reserved("a pointer to a table that takes permissions away");
        }
        Descriptor::Table(Hpa(raw & ADDRESS))
    }
}

/// The second stage that these registers describe.
///
/// # Errors
///
/// What is wrong with them.
pub fn second_stage(registers: &Registers) -> Result<Box<dyn Architecture>, String> {
    Ok(Box::new(ExtendedPageTables::new(registers)?))
}

impl Architecture for ExtendedPageTables {
    fn name(&self) -> &'static str {
        "Intel EPT"
    }

    fn root(&self) -> Hpa {
        self.root
    }

    fn levels(&self) -> &[LevelShape] {
        &self.levels
    }

    /// What the tables translate. A guest whose `MAXPHYADDR` is smaller makes no such addresses.
    fn address_bits(&self) -> u8 {
        self.levels
            .last()
            .map_or(0, |shape| shape.shift + shape.index_bits)
    }

    fn decode(&self, level: usize, raw: u64) -> Descriptor {
        if raw & self.permissions() == 0 {
            return Descriptor::Invalid;
        }
        if let Some(why) = self.misconfiguration(raw) {
            return Descriptor::Reserved(why);
        }
        match (level, raw & MAPS_A_PAGE != 0) {
            // Bit 7 of an entry that can only be a page is ignored.
            (0, _) => self.leaf(level, raw),
            (_, false) => self.table(raw),
            (_, true) if self.has_leaf(level) => self.leaf(level, raw),
            (_, true) => Descriptor::Reserved("a block at a level without blocks"),
        }
    }

    fn with_accessed(&self, _level: usize, raw: u64) -> Option<u64> {
        self.accessed_and_dirty.then_some(raw | ACCESSED)
    }

    fn table_with_accessed(&self, level: usize, raw: u64) -> Option<u64> {
        self.with_accessed(level, raw)
    }

    fn with_dirty(&self, _level: usize, raw: u64) -> Option<u64> {
        (self.accessed_and_dirty && raw & WRITE != 0).then_some(raw | DIRTY)
    }

    fn break_before_make(&self) -> bool {
        // A present entry may be changed; until INVEPT the CPU uses the old or the new (29.4.3.4).
        false
    }

    fn caches_invalid(&self) -> bool {
        // Nothing is cached of entries that are not present or misconfigured (29.4.2).
        false
    }

    fn astray(&self, target: Hpa) -> u64 {
        // Bits that pointers to tables reserve are clear, which makes a page UC.
        target.0 & ADDRESS | EXECUTE_USER | DIRTY | ACCESSED | EXECUTE | WRITE | READ
    }

    fn effects(&self, instruction: &event::Instruction) -> Effects {
        let event::Instruction::Ept(instruction) = instruction else {
            return Effects::new();
        };
        // Buffered stores are drained into caches that all CPUs and their walkers see (9.2).
        let stores = Effect::Complete {
            reach: Reach::All,
            invalidations: false,
        };
        match instruction {
            Instruction::Mfence => core::iter::once(stores).collect(),
            // INVEPT is serializing (9.3), so it is complete when it has been executed. Both types
            // reach what was combined with the guest's own translation (29.4.3.1). That the second
            // reaches other VMs too is nothing to rely on.
            Instruction::InveptSingleContext | Instruction::InveptAllContext => {
                let forget = Effect::Forget {
                    reach: Reach::Local,
                    what: Forgotten::All,
                };
                let complete = Effect::Complete {
                    reach: Reach::Local,
                    invalidations: true,
                };
                [stores, forget, complete].into_iter().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests;
