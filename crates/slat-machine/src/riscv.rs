//! RISC-V G-stage, as the Privileged Architecture has it: `Sv32x4`, `Sv39x4`, `Sv48x4`, `Sv57x4`.
//!
//! `hgatp` gives the mode, and with it the shape of the tree: two to five levels, the root four
//! tables side by side ("Hypervisor Guest Address Translation and Protection Register"). The manual
//! counts levels up from the pages, as everywhere in this crate. Entries are those of the host's own
//! modes; every access of the guest counts as one of user mode ("Guest Physical Address
//! Translation").
//!
//! What the model does not follow:
//! * physical memory attributes and protection: every address is memory of any type;
//! * Svrsw60t59b, which would let software have bits 60:59: they are reserved here;
//! * `HINVAL.GVMA` (Svinval), which does piece by piece what `HFENCE.GVMA` does;
//! * `FENCE` is taken to let this hart's own walks see what it wrote; the manual promises that of
//!   `HFENCE.GVMA` alone. It makes for fewer spurious faults and changes nothing else.

mod entry;
mod hgatp;

use serde::{Deserialize, Serialize};

use crate::address::{Gpa, Hpa, hexadecimal};
use crate::architecture::{
    Architecture, Descriptor, Effect, Effects, Forgotten, LevelShape, Reach,
};
use crate::event::{self, Vm};
use entry::Entries;
use hgatp::Mode;

/// Width of a hart's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Width {
    /// RV32.
    Rv32,
    /// RV64.
    Rv64,
}

/// What points a hart to a tree, and what of its extensions is there and on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent extension of the hart"
)]
pub struct Registers {
    /// Width of the registers.
    pub width: Width,
    /// `hgatp`.
    #[serde(with = "hexadecimal")]
    pub hgatp: u64,
    /// `menvcfg.PBMTE`: entries name memory types (Svpbmt).
    pub memory_types: bool,
    /// `menvcfg.ADUE`: the hardware sets A and D (Svadu). Otherwise it faults (Svade).
    pub hardware_updates: bool,
    /// The hart has Svnapot.
    pub svnapot: bool,
    /// The hart has Svvptc.
    pub svvptc: bool,
}

impl Registers {
    /// The VMID in `hgatp`.
    pub const fn vm(&self) -> Vm {
        hgatp::vmid(self.width, self.hgatp)
    }
}

/// Fences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Instruction {
    /// `FENCE RW, RW`.
    Fence,
    /// `HFENCE.GVMA x0, rs2`.
    HfenceGvma {
        /// `rs2`: a VMID; absent where it is `x0`, which means all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vmid: Option<Vm>,
    },
    /// `HFENCE.GVMA rs1, rs2`.
    HfenceGvmaAddress {
        /// `rs1`: a guest physical address without its lowest two bits.
        #[serde(with = "hexadecimal")]
        operand: u64,
        /// `rs2`: a VMID; absent where it is `x0`, which means all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vmid: Option<Vm>,
    },
}

/// The second stage that these registers describe.
///
/// # Errors
///
/// What is wrong with them.
pub fn second_stage(registers: &Registers) -> Result<Box<dyn Architecture>, String> {
    Ok(Box::new(GStage::new(registers)?))
}

/// G-stage of one VM.
#[derive(Clone, Debug)]
pub struct GStage {
    mode: Mode,
    root: Hpa,
    vmid: Vm,
    levels: Vec<LevelShape>,
    entries: Entries,
    svvptc: bool,
}

impl GStage {
    /// What these registers describe.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn new(registers: &Registers) -> Result<Self, String> {
        let (mode, root) = hgatp::read(registers.width, registers.hgatp)?;
        let entries = Entries::new(registers, mode)?;
        Ok(Self {
            mode,
            root,
            vmid: registers.vm(),
            levels: mode.levels(),
            entries,
            svvptc: registers.svvptc,
        })
    }

    /// What `HFENCE.GVMA` makes this hart forget, of all addresses or of one: nothing, if it names
    /// another VM.
    fn fenced(&self, gpa: Option<Gpa>, vmid: Option<Vm>) -> Effects {
        let ours = vmid.is_none_or(|vmid| vmid == self.vmid);
        let mut effects = Effects::new();
        effects.push(complete(false));
        match gpa {
            _ if !ours => {}
            None => effects.push(forget(Forgotten::All)),
            Some(gpa) => {
                // With an address it orders leaf entries only.
                effects.push(forget(Forgotten::Address {
                    gpa,
                    leaf_only: true,
                    level: None,
                }));
                // It reaches what was combined with the guest's own translation through that
                // address too. Such an entry does not say which address that was, so all of them
                // go, as the manual says that implementations commonly do.
                effects.push(forget(Forgotten::Combined));
            }
        }
        effects.push(complete(true));
        effects
    }
}

const fn complete(invalidations: bool) -> Effect {
    Effect::Complete {
        reach: Reach::Local,
        invalidations,
    }
}

const fn forget(what: Forgotten) -> Effect {
    Effect::Forget {
        reach: Reach::Local,
        what,
    }
}

impl Architecture for GStage {
    fn name(&self) -> &'static str {
        match self.mode {
            Mode::Sv32x4 => "RISC-V G-stage, Sv32x4",
            Mode::Sv39x4 => "RISC-V G-stage, Sv39x4",
            Mode::Sv48x4 => "RISC-V G-stage, Sv48x4",
            Mode::Sv57x4 => "RISC-V G-stage, Sv57x4",
        }
    }

    fn root(&self) -> Hpa {
        self.root
    }

    fn levels(&self) -> &[LevelShape] {
        &self.levels
    }

    fn address_bits(&self) -> u8 {
        self.mode.address_bits()
    }

    fn entry_bytes(&self) -> u64 {
        self.mode.entry_bytes()
    }

    fn decode(&self, level: usize, raw: u64) -> Descriptor {
        let shift = self.levels.get(level).map_or(0, |shape| shape.shift);
        self.entries.decode(level, shift, raw)
    }

    fn decode_at(&self, level: usize, entry: Hpa, raw: u64) -> Descriptor {
        let mut descriptor = self.decode(level, raw);
        if let Descriptor::Leaf(leaf) = &mut descriptor {
            // "Svnapot": the low bits of the page number are replaced by those of the guest's,
            // which are the entry's place in its table.
            let page = (entry.0 / self.entry_bytes()) & ((1 << leaf.run_bits) - 1);
            leaf.hpa.0 += page << hgatp::PAGE_SHIFT;
        }
        descriptor
    }

    fn with_accessed(&self, _level: usize, raw: u64) -> Option<u64> {
        self.entries.with_accessed(raw)
    }

    fn with_dirty(&self, _level: usize, raw: u64) -> Option<u64> {
        self.entries.with_dirty(raw)
    }

    fn break_before_make(&self) -> bool {
        // A walk may use any value that the entry had since the last fence: the old, or the new
        // ("Supervisor Memory-Management Fence Instruction").
        false
    }

    fn caches_invalid(&self) -> bool {
        // Those values include invalid ones, but for Svvptc.
        !self.svvptc
    }

    fn astray(&self, target: Hpa) -> u64 {
        // No entry is a pointer and a leaf. A leaf leads astray who reads it as a page, or as a
        // larger block if `target` is aligned to that.
        Entries::leaf_to(target)
    }

    fn effects(&self, instruction: &event::Instruction) -> Effects {
        let event::Instruction::RiscV(instruction) = instruction else {
            return Effects::new();
        };
        match *instruction {
            Instruction::Fence => core::iter::once(complete(false)).collect(),
            Instruction::HfenceGvma { vmid } => self.fenced(None, vmid),
            Instruction::HfenceGvmaAddress { operand, vmid } => {
                self.fenced(Some(Gpa(operand << 2)), vmid)
            }
        }
    }
}

#[cfg(test)]
mod tests;
