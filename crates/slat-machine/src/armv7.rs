//! Armv7 LPAE stage 2.

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::event::Vm;

/// What points a CPU to a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// The VM.
    pub vm: Vm,
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
pub enum Instruction {}

/// The second stage that these registers describe.
///
/// # Errors
///
/// What is wrong with them.
pub fn second_stage(registers: &Registers) -> Result<Box<dyn Architecture>, String> {
    Err(format!("VM {}: not modelled", registers.vm))
}
