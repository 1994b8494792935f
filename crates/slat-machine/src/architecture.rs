//! What the model knows of an architecture: how its tables are walked, and what its barriers and
//! invalidations do.
//!
//! An [`Architecture`] is written from the manual and shares nothing with `slat-table`. It is made
//! from what a hypervisor writes into registers ([`Registers`]), not from what the hypervisor
//! meant.

use core::fmt;

use arrayvec::ArrayVec;

use crate::address::{Gpa, Hpa};
use crate::event::{AccessKind, Instruction, Registers, Vm};
use crate::{arm64, armv7, ept, npt, power, riscv, s390};

/// An entry, as the walker reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Translates nothing: an access faults.
    Invalid,
    /// Points to a table of the next level down.
    Table(Hpa),
    /// Translates a page or block.
    Leaf(Leaf),
    /// Valid, but with bits that the architecture reserves: what hardware does is not known.
    Reserved(&'static str),
}

/// A page or block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent bits of an entry, not a state"
)]
pub struct Leaf {
    /// Its first byte.
    pub hpa: Hpa,
    /// Loads are allowed.
    pub read: bool,
    /// Stores are allowed now. With a hardware dirty bit: stores will be allowed once the walker
    /// has set it, which is [`becomes_dirty`](Self::becomes_dirty).
    pub write: bool,
    /// The walker turns this writable-clean leaf into a writable-dirty one at the first store.
    pub becomes_dirty: bool,
    /// The hardware (or the hypervisor) has noted that the page was written.
    pub dirty: bool,
    /// Fetches are allowed to somebody.
    pub execute: bool,
    /// The page was used; where the hardware does not set this, an access without it faults.
    pub accessed: bool,
    /// The memory type as the architecture encodes it. Two leaves with different ones conflict.
    pub memory: u8,
    /// Whether that is a device's type.
    pub device: bool,
    /// log2 of how many neighbouring entries the walker may take for one, of which this is one:
    /// then `hpa` is still this entry's own. 0: it stands alone.
    pub run_bits: u8,
}

impl Leaf {
    /// Whether an access of this kind is allowed, the walker having set what it may set.
    pub fn allows(&self, kind: AccessKind) -> bool {
        match kind {
            AccessKind::Read => self.read,
            AccessKind::Write => self.write || self.becomes_dirty,
            AccessKind::Execute => self.execute,
        }
    }
}

/// The tables of one level. Levels count up from the pages, which are level 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelShape {
    /// log2 of the bytes that one entry translates.
    pub shift: u8,
    /// log2 of the number of entries of a table.
    pub index_bits: u8,
}

/// Which CPUs' caches an instruction reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The CPU that executes it.
    Local,
    /// All CPUs.
    All,
}

/// What is to be forgotten of a VM's translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgotten {
    /// Second-stage translations of one guest physical address: the leaf and, unless `leaf_only`,
    /// the pointers to tables on the way to it. What was combined with the guest's own
    /// translation stays.
    Address {
        /// The address, as the operand encodes it.
        gpa: Gpa,
        /// Whether pointers to tables stay.
        leaf_only: bool,
        /// The one level whose leaves are found, where the instruction says which it is: leaves of
        /// others may stay, and so may all pointers to tables. `None`: leaves of every level.
        level: Option<usize>,
    },
    /// What was combined with the guest's own translation. Second-stage translations stay.
    Combined,
    /// Everything.
    All,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Every write that this CPU made or has seen is visible to the walkers reached; and, if
    /// `invalidations`, every invalidation that this CPU issued before is complete there.
    Complete {
        /// Whose walkers.
        reach: Reach,
        /// Whether it also completes invalidations.
        invalidations: bool,
    },
    /// Translations are to be forgotten. It is complete only after a [`Complete`](Self::Complete)
    /// of the same CPU.
    Forget {
        /// Whose.
        reach: Reach,
        /// Which.
        what: Forgotten,
    },
    /// The CPU fetches its instructions anew.
    Synchronise,
}

/// Effects that one instruction has at most.
pub const MOST_EFFECTS: usize = 4;

/// What one instruction does, in order.
pub type Effects = ArrayVec<Effect, MOST_EFFECTS>;

/// An architecture's second stage, set up for one VM.
pub trait Architecture: fmt::Debug + Send + Sync {
    /// For people, such as `Arm VMSAv8-64 stage 2, 4K granule`.
    fn name(&self) -> &'static str;

    /// The root table.
    fn root(&self) -> Hpa;

    /// The levels, pages first; the last is the root, with its true number of index bits.
    fn levels(&self) -> &[LevelShape];

    /// Width of a guest physical address in bits; beyond it an access faults.
    fn address_bits(&self) -> u8;

    /// Bytes of an entry: 8 or 4.
    fn entry_bytes(&self) -> u64 {
        8
    }

    /// Reads an entry of `level`: its bytes, as a little-endian number.
    fn decode(&self, level: usize, raw: u64) -> Descriptor;

    /// Reads the entry at `entry`, as [`decode`](Self::decode) does. It differs where all entries
    /// of a run are the same (RISC-V): then its place says which page of the run it translates,
    /// and `decode`, which does not know it, gives the address of the run's first.
    fn decode_at(&self, level: usize, entry: Hpa, raw: u64) -> Descriptor {
        let _ = entry;
        self.decode(level, raw)
    }

    /// The entry with its accessed bit set by hardware; `None` where the hardware does not do so
    /// and the access faults instead.
    fn with_accessed(&self, level: usize, raw: u64) -> Option<u64>;

    /// The pointer to a table with its accessed bit set by hardware; `None` where pointers have none.
    fn table_with_accessed(&self, level: usize, raw: u64) -> Option<u64> {
        let _ = (level, raw);
        None
    }

    /// The entry made dirty by hardware; `None` where the hardware does not do so.
    fn with_dirty(&self, level: usize, raw: u64) -> Option<u64>;

    /// Whether a valid entry must not be changed in address, size or memory type without being
    /// invalid, and forgotten, in between.
    fn break_before_make(&self) -> bool;

    /// Whether invalid entries may be cached.
    fn caches_invalid(&self) -> bool;

    /// An entry that leads to `target` and allows everything, whatever the level at which it is
    /// read: what freed tables are filled with, so that a walker that still uses one goes astray
    /// instead of stopping. 0 where no such entry exists.
    fn astray(&self, target: Hpa) -> u64 {
        let _ = target;
        0
    }

    /// What an instruction does, in this order; nothing if it belongs to another architecture.
    fn effects(&self, instruction: &Instruction) -> Effects;
}

/// The leaf of the whole run that the one at `entry`, of `level`, belongs to; the same leaf if it
/// stands alone.
pub(crate) fn whole_run(
    architecture: &dyn Architecture,
    level: usize,
    entry: Hpa,
    leaf: &Leaf,
) -> Leaf {
    let place = (entry.0 / architecture.entry_bytes()) & ((1 << leaf.run_bits) - 1);
    let skipped = place << architecture.levels()[level].shift;
    Leaf {
        hpa: Hpa(leaf.hpa.0.wrapping_sub(skipped)),
        ..*leaf
    }
}

/// The VM whose registers these are.
pub fn vm(registers: &Registers) -> Vm {
    match registers {
        Registers::Arm64(registers) => registers.vmid(),
        Registers::Armv7(registers) => registers.vm(),
        Registers::Ept(registers) => registers.vm(),
        Registers::Npt(registers) => registers.vm(),
        Registers::Power(registers) => registers.vm(),
        Registers::RiscV(registers) => registers.vm(),
        Registers::S390(registers) => registers.vm(),
    }
}

/// The second stage that registers describe.
///
/// # Errors
///
/// What is wrong with them.
pub fn from_registers(registers: &Registers) -> Result<Box<dyn Architecture>, String> {
    match registers {
        Registers::Arm64(registers) => Ok(Box::new(arm64::StageTwo::new(registers)?)),
        Registers::Armv7(registers) => armv7::second_stage(registers),
        Registers::Ept(registers) => ept::second_stage(registers),
        Registers::Npt(registers) => npt::second_stage(registers),
        Registers::Power(registers) => power::second_stage(registers),
        Registers::RiscV(registers) => riscv::second_stage(registers),
        Registers::S390(registers) => s390::second_stage(registers),
    }
}
