//! What the script asks for, done with the registers of EL2.

use core::arch::asm;

use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::payload::{Machine, Refused};
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};
use slat_oracle_protocol::tree::{Mapping, Removal, TreeOptions};

use crate::guest;
use crate::memory;
use crate::tree::{self, Tree};

/// Writes a system register.
macro_rules! write_register {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the register concerns the guest only.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nomem, nostack)) };
    }};
}

/// Asks the MMU what an access would meet. Evaluates to `PAR_EL1`, and to the syndrome if the walk
/// itself failed.
macro_rules! ask {
    ($operation:literal, $address:expr) => {{
        let result: u64;
        let syndrome: u64;
        // SAFETY: the instruction changes PAR_EL1, and accessed and dirty bits of guest tables. A
        // walk into memory that is not there ends at the label, by way of `own_exception`.
        unsafe {
            asm!(
                "adr x17, 2f",
                "msr tpidr_el2, x17",
                "mov x16, xzr",
                "isb",
                concat!("at ", $operation, ", {address}"),
                "isb",
                "2: msr tpidr_el2, xzr",
                "mrs {result}, par_el1",
                address = in(reg) $address,
                result = out(reg) result,
                out("x16") syndrome,
                out("x17") _,
                options(nostack),
            );
        }
        (result, syndrome)
    }};
}

/// `HCR_EL2` for the payload's own trees: VM, RW and TEA. The guest's own first stage is on.
const HCR_OF_OWN_TREES: u64 = 1 | 1 << 31 | 1 << 37;

/// The machine.
#[derive(Debug)]
pub(crate) struct Arm64Machine {
    code_gpa: u64,
    tree: Option<Tree>,
}

impl Arm64Machine {
    /// Readies what no regime changes.
    pub(crate) fn start() -> Self {
        // TDE: BRK in the guest comes to EL2.
        write_register!("mdcr_el2", 1 << 8);
        write_register!("vmpidr_el2", 1 << 31);
        Self {
            code_gpa: 0,
            tree: None,
        }
    }
}

impl Machine for Arm64Machine {
    fn fill(&mut self, at: u64, bytes: u64, word: u64) {
        memory::fill(at, bytes, word);
    }

    fn copy(&mut self, at: u64, bytes: &[u8]) {
        memory::copy(at, bytes);
    }

    fn enter(&mut self, regime: &Regime) {
        self.put_on(regime, false);
    }

    fn probe(&mut self, probe: &Probe) -> Answer {
        match probe.means {
            Means::Question => match question(probe) {
                (result, 0) => Answer::Completed([result, 0, 0, 0]),
                (_, syndrome) => Answer::Trapped([syndrome, 0, 0, 0]),
            },
            Means::Guest | Means::OnBehalf => Answer::Trapped(guest::access(probe, self.code_gpa)),
            Means::GuestTable => Answer::Trapped(self.through_table(probe)),
        }
    }

    fn peek(&mut self, at: u64) -> u64 {
        memory::peek(at)
    }

    fn tree(&mut self, options: &TreeOptions) -> Result<(), Refused> {
        // The one before goes first: it forgets its translations while its registers are loaded.
        self.tree = None;
        let (tree, root) = tree::make(options)?;
        let regime = Regime {
            registers: [root.vttbr, root.vtcr, HCR_OF_OWN_TREES, 0],
            code_gpa: options.code_gpa,
            code_hpa: options.code_hpa,
        };
        self.put_on(&regime, true);
        self.tree = Some(tree);
        Ok(())
    }

    fn map(&mut self, mapping: &Mapping) -> Result<(), Refused> {
        self.own_tree()?.map(mapping)
    }

    fn remove(&mut self, removal: &Removal) -> Result<(), Refused> {
        self.own_tree()?.remove(removal)
    }
}

impl Arm64Machine {
    /// Puts the guest on tables, with or without tables of its own, and nothing remembered.
    fn put_on(&mut self, regime: &Regime, with_tables: bool) {
        let [vttbr, vtcr, hcr, _] = regime.registers;
        guest::write_code(regime.code_hpa);
        write_register!("vbar_el1", regime.code_gpa);
        write_register!("vttbr_el2", vttbr);
        write_register!("vtcr_el2", vtcr);
        write_register!("hcr_el2", hcr);
        guest_mmu(with_tables, regime.code_gpa);
        self.code_gpa = regime.code_gpa;
        // SAFETY: forgetting translations of the guest concerns nobody else.
        unsafe {
            asm!(
                "isb",
                "dsb sy",
                "tlbi alle1",
                "dsb sy",
                "isb",
                options(nostack)
            );
        };
    }

    fn own_tree(&self) -> Result<&Tree, Refused> {
        self.tree.as_ref().ok_or(Refused("there is no tree"))
    }

    /// Has the guest read from its code page through the table of its own at the address asked
    /// about. As a guest does that changes to another table, it forgets what it had of the old one,
    /// which leaves what the MMU remembers of stage 2 alone.
    fn through_table(&self, probe: &Probe) -> [u64; 4] {
        let read = Probe {
            gpa: self.code_gpa,
            access: Access::Read,
            ..*probe
        };
        write_register!("ttbr0_el1", probe.gpa);
        forget_first_stage();
        let result = guest::access(&read, self.code_gpa);
        write_register!("ttbr0_el1", self.code_gpa + guest::TABLE);
        forget_first_stage();
        result
    }
}

/// Switches the guest's own first stage on, with the table in its code page, or off.
fn guest_mmu(on: bool, code_gpa: u64) {
    /// As reset leaves it (RES1), with MMU and caches off.
    const OFF: u64 = 0x30d0_0800;
    /// Addresses of 32 bits, whose walk begins at level 1 with a table of four entries; inner and
    /// outer write-back, inner shareable; no `TTBR1_EL1`.
    const TCR: u64 = 32 | 0b01 << 8 | 0b01 << 10 | 0b11 << 12 | 1 << 23;
    write_register!("mair_el1", 0xff);
    write_register!("tcr_el1", TCR);
    write_register!("ttbr0_el1", code_gpa + guest::TABLE);
    write_register!("sctlr_el1", OFF | u64::from(on));
}

fn forget_first_stage() {
    // SAFETY: forgetting translations of the guest concerns nobody else.
    unsafe { asm!("isb", "tlbi vmalle1", "dsb nsh", "isb", options(nostack)) };
}

/// `PAR_EL1` after asking the MMU, and a syndrome if that failed. There is no question about
/// execution.
fn question(probe: &Probe) -> (u64, u64) {
    let gpa = probe.gpa;
    match (probe.access, probe.who) {
        (Access::Write, Who::Kernel) => ask!("s12e1w", gpa),
        (Access::Write, Who::User) => ask!("s12e0w", gpa),
        (_, Who::Kernel) => ask!("s12e1r", gpa),
        (_, Who::User) => ask!("s12e0r", gpa),
    }
}
