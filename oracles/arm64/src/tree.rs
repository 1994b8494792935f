//! Trees of the payload's own: 4 KiB pages, and `slat-table`'s TLB maintenance executed.

use core::arch::asm;
use core::ops::Range;

use slat_oracle_protocol::payload::Refused;
use slat_oracle_protocol::tree::{Omission, TreeOptions};
use slat_oracle_tree::heap::Heap;
use slat_oracle_tree::memory::PhysicalMemory;
use slat_oracle_tree::{self as tree, VMID};
use slat_table::address::GpaRange;
use slat_table::format::arm64::maintenance::{self, Instruction};
use slat_table::format::arm64::{Arm64, Arm64Features, Arm64Root, Granule4K};
use slat_table::platform::{Tlb, TlbWork};

#[global_allocator]
static HEAP: Heap = Heap::new();

/// Memory for tables; `xtask/src/oracle/arm64.rs` keeps it free.
const TABLES: Range<u64> = 0x6000_0000..0x7000_0000;

/// A tree whose maintenance is executed, but for what is left out.
pub(crate) type Tree = tree::Tree<Arm64, Maintenance>;

/// Makes a tree and returns what points to it.
pub(crate) fn make(options: &TreeOptions) -> Result<(Tree, Arm64Root), Refused> {
    // SAFETY: nothing else uses this memory, and the tree before this one is gone.
    let memory = unsafe { PhysicalMemory::new(TABLES) };
    let maintenance = Maintenance {
        omission: options.omission,
    };
    let tree = Tree::new(Arm64Features::NONE, options, memory, maintenance)?;
    let root = tree.root()?;
    debug_assert_eq!(root.vttbr >> 48, u64::from(VMID));
    Ok((tree, root))
}

/// The CPU's translation caches.
#[derive(Debug)]
pub(crate) struct Maintenance {
    omission: Omission,
}

impl Tlb for Maintenance {
    fn flush(&self, work: &TlbWork) {
        let mut addresses = 0;
        maintenance::flush::<Granule4K>(work, |instruction| {
            let by_address = matches!(instruction, Instruction::Ipas2e1is(_));
            addresses += u64::from(by_address);
            let left_out = match self.omission {
                Omission::None => false,
                Omission::Removal => true,
                Omission::ByAddress => by_address,
                Omission::Combined => instruction == Instruction::Vmalle1is,
                Omission::Everything => instruction == Instruction::Vmalls12e1is,
                Omission::AllButTheFirst => by_address && addresses > 1,
            };
            if !left_out {
                execute(instruction);
            }
        });
    }

    fn flush_local(&self, range: GpaRange) {
        maintenance::flush_local::<Granule4K>(range, execute);
    }

    fn publish(&self) {
        maintenance::publish(execute);
    }
}

/// Executes an instruction.
macro_rules! instruction {
    ($text:literal) => {
        // SAFETY: barriers and invalidations of the guest's translations change no memory.
        unsafe { asm!($text, options(nostack)) }
    };
    ($text:literal, $operand:expr) => {{
        let operand: u64 = $operand;
        // SAFETY: as above.
        unsafe { asm!(concat!($text, ", {}"), in(reg) operand, options(nostack)) }
    }};
}

fn execute(instruction: Instruction) {
    match instruction {
        Instruction::DsbIshst => instruction!("dsb ishst"),
        Instruction::DsbIsh => instruction!("dsb ish"),
        Instruction::DsbNshst => instruction!("dsb nshst"),
        Instruction::DsbNsh => instruction!("dsb nsh"),
        Instruction::Isb => instruction!("isb"),
        Instruction::Ipas2e1is(operand) => instruction!("tlbi ipas2e1is", operand.value()),
        Instruction::Ipas2e1(operand) => instruction!("tlbi ipas2e1", operand.value()),
        Instruction::Vmalle1is => instruction!("tlbi vmalle1is"),
        Instruction::Vmalle1 => instruction!("tlbi vmalle1"),
        Instruction::Vmalls12e1is => instruction!("tlbi vmalls12e1is"),
        Instruction::Vmalls12e1 => instruction!("tlbi vmalls12e1"),
    }
}
