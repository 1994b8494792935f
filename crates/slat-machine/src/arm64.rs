//! Arm VMSAv8-64 stage 2, as the Arm Architecture Reference Manual (DDI 0487) has it.
//!
//! Tables with granules of 4, 16 and 64 KiB, and addresses of up to 52 bits. `VTCR_EL2` (D24.2)
//! gives the shape of the tree: `TG0` the granule, `T0SZ` the width of a guest address, `SL0` the
//! level of the root, which may be up to 16 tables side by side (D8.2.3), `DS` whether descriptors are
//! laid out for 52 bits (`FEAT_LPA2`). The manual counts levels from the root, 3 maps pages; here,
//! as everywhere in this crate, level 0 maps pages.
//!
//! What the model does not follow are the features of one CPU or another:
//! * `FEAT_TTL` is taken to be there, so an invalidation whose operand names a level need find
//!   nothing of other levels, nor a pointer to a table;
//! * `FEAT_XNX` is taken to be there, so both bits of `XN` count;
//! * `FEAT_TTST`, smaller trees, is taken not to be there; and `FEAT_LPA`, blocks of 4 TiB with
//!   64 KiB pages, only where `VTCR_EL2.PS` asks for 52 bits.

mod descriptor;
mod instruction;
mod shape;

use serde::{Deserialize, Serialize};

use self::descriptor::{ACCESS_FLAG, DIRTY_BIT_MODIFIER, Reader, WRITE};
pub use self::instruction::Instruction;
use self::shape::{Granule, Shape};
use crate::address::{Hpa, hexadecimal};
use crate::architecture::{Architecture, Descriptor, Effects, LevelShape};
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

/// Stage 2 of one VM.
#[derive(Clone, Debug)]
pub struct StageTwo {
    root: Hpa,
    shape: Shape,
    levels: Vec<LevelShape>,
    reader: Reader,
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
        let flag = |bit: u32| registers.vtcr >> bit & 1 != 0;
        let shape = Shape::new(registers.vtcr)?;
        let root = shape.root(registers, flag(19))?;
        let hardware_accessed = flag(21);
        // HD does nothing while HA is clear (D8.5).
        let hardware_dirty = hardware_accessed && flag(22);
        Ok(Self {
            root,
            shape,
            levels: shape.levels(),
            reader: Reader::new(shape, registers.force_write_back, hardware_dirty),
            hardware_accessed,
            hardware_dirty,
        })
    }
}

impl Architecture for StageTwo {
    fn name(&self) -> &'static str {
        match (self.shape.granule, self.shape.lpa2) {
            (Granule::K4, false) => "Arm VMSAv8-64 stage 2, 4K granule",
            (Granule::K4, true) => "Arm VMSAv8-64 stage 2, 4K granule, LPA2",
            (Granule::K16, false) => "Arm VMSAv8-64 stage 2, 16K granule",
            (Granule::K16, true) => "Arm VMSAv8-64 stage 2, 16K granule, LPA2",
            (Granule::K64, _) => "Arm VMSAv8-64 stage 2, 64K granule",
        }
    }

    fn root(&self) -> Hpa {
        self.root
    }

    fn levels(&self) -> &[LevelShape] {
        &self.levels
    }

    fn address_bits(&self) -> u8 {
        self.shape.address_bits
    }

    fn decode(&self, level: usize, raw: u64) -> Descriptor {
        self.reader.read(level, raw)
    }

    fn with_accessed(&self, level: usize, raw: u64) -> Option<u64> {
        // Table pointers have no access flag without FEAT_HAFT.
        let is_table = matches!(self.decode(level, raw), Descriptor::Table(_));
        (self.hardware_accessed && !is_table).then_some(raw | ACCESS_FLAG)
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
        self.reader.anything_goes(target)
    }

    fn effects(&self, instruction: &event::Instruction) -> Effects {
        let event::Instruction::Arm64(instruction) = instruction else {
            return Effects::new();
        };
        let effect = instruction.effect(self.shape.granule, self.shape.lpa2);
        core::iter::once(effect).collect()
    }
}

#[cfg(test)]
mod tests;
