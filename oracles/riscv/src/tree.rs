//! Trees of the payload's own: `slat-table`'s fences executed.

use core::arch::asm;
use core::ops::Range;

use slat_oracle_protocol::payload::Refused;
use slat_oracle_protocol::tree::{Omission, TreeOptions};
use slat_oracle_tree::heap::Heap;
use slat_oracle_tree::memory::PhysicalMemory;
use slat_oracle_tree::{self as tree, VMID};
use slat_table::address::GpaRange;
use slat_table::format::riscv::maintenance::{self, Instruction};
use slat_table::format::riscv::{RiscV, RiscVFeatures};
use slat_table::platform::{Tlb, TlbWork};

#[global_allocator]
static HEAP: Heap = Heap::new();

/// Memory for tables; `xtask/src/oracle/riscv.rs` keeps it free.
const TABLES: Range<u64> = 0xa000_0000..0xb000_0000;

/// A hart without extensions: it may remember even that an entry was invalid.
const FEATURES: RiscVFeatures = RiscVFeatures::NONE;

/// A tree whose maintenance is executed, but for what is left out.
pub(crate) type Tree = tree::Tree<RiscV, Fences>;

/// Makes a tree and returns what points to it.
pub(crate) fn make(options: &TreeOptions) -> Result<(Tree, u64), Refused> {
    // SAFETY: nothing else uses this memory, and the tree before this one is gone.
    let memory = unsafe { PhysicalMemory::new(TABLES) };
    let fences = Fences {
        omission: options.omission,
    };
    let tree = Tree::new(FEATURES, options, memory, fences)?;
    let hgatp = tree.root()?;
    Ok((tree, hgatp))
}

/// The one hart's translation caches.
#[derive(Debug)]
pub(crate) struct Fences {
    omission: Omission,
}

impl Tlb for Fences {
    fn flush(&self, work: &TlbWork) {
        let mut addresses = 0;
        maintenance::publish(execute);
        maintenance::flush::<RiscV>(work, VMID, |instruction| {
            let by_address = matches!(instruction, Instruction::HfenceGvmaAddress { .. });
            let everything = matches!(instruction, Instruction::HfenceGvmaAll { .. });
            addresses += u64::from(by_address);
            let left_out = match self.omission {
                // One fence covers what was combined with the guest's own translation too.
                Omission::None | Omission::Combined => false,
                Omission::Removal => true,
                Omission::ByAddress => by_address,
                Omission::Everything => everything,
                Omission::AllButTheFirst => by_address && addresses > 1,
            };
            if !left_out {
                execute(instruction);
            }
        });
    }

    fn flush_local(&self, range: GpaRange) {
        maintenance::flush_local::<RiscV>(&FEATURES, range, VMID, execute);
    }

    fn publish(&self) {
        maintenance::publish(execute);
    }
}

/// Executes an instruction. `HFENCE.GVMA` is written by its encoding: the target does not promise
/// the hypervisor extension.
fn execute(instruction: Instruction) {
    match instruction {
        // SAFETY: fences change no memory.
        Instruction::Fence => unsafe { asm!("fence rw, rw", options(nostack)) },
        Instruction::HfenceGvmaAddress { operand, vmid } => {
            // SAFETY: as above.
            unsafe {
                asm!(
                    ".insn r 0x73, 0, 0x31, x0, {}, {}",
                    in(reg) operand.value(),
                    in(reg) u64::from(vmid),
                    options(nostack)
                );
            }
        }
        Instruction::HfenceGvmaAll { vmid } => {
            // SAFETY: as above.
            unsafe {
                asm!(
                    ".insn r 0x73, 0, 0x31, x0, x0, {}",
                    in(reg) u64::from(vmid),
                    options(nostack)
                );
            }
        }
    }
}

/// Has the hart forget everything of every guest: `HFENCE.GVMA` and `HFENCE.VVMA`.
pub(crate) fn forget_everything() {
    // SAFETY: fences change no memory.
    unsafe {
        asm!(
            ".insn r 0x73, 0, 0x31, x0, x0, x0",
            ".insn r 0x73, 0, 0x11, x0, x0, x0",
            options(nostack)
        );
    }
}
