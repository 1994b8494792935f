//! What the script asks for, done with the registers of M-mode.

use core::arch::asm;

use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::payload::{Machine, Refused};
use slat_oracle_protocol::script::{Means, Probe, Regime, Who};
use slat_oracle_protocol::tree::{Mapping, Removal, TreeOptions};

use crate::guest;
use crate::memory;
use crate::tree::{self, Tree};

/// Numbers of control and status registers (Privileged Architecture, "CSR Listing"): the assembler
/// knows the names of those of the hypervisor extension only where the target has it.
mod csr {
    pub(super) const MENVCFG: u16 = 0x30a;
    pub(super) const MEDELEG: u16 = 0x302;
    pub(super) const PMPCFG0: u16 = 0x3a0;
    pub(super) const PMPADDR0: u16 = 0x3b0;
    pub(super) const HSTATUS: u16 = 0x600;
    pub(super) const HGATP: u16 = 0x680;
    pub(super) const VSATP: u16 = 0x280;
    pub(super) const MCAUSE: u16 = 0x342;
    pub(super) const MTVAL: u16 = 0x343;
    pub(super) const MTVAL2: u16 = 0x34b;
}

/// Writes a control and status register.
macro_rules! write_csr {
    ($number:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the register concerns the guest, or M-mode's hold on it.
        unsafe { asm!("csrw {}, {}", const $number, in(reg) value, options(nomem, nostack)) };
    }};
}

/// Reads a control and status register.
macro_rules! read_csr {
    ($number:expr) => {{
        let value: u64;
        // SAFETY: reading changes nothing.
        unsafe { asm!("csrr {}, {}", out(reg) value, const $number, options(nomem, nostack)) };
        value
    }};
}

/// `mcause`, `mtval` and `mtval2`.
pub(crate) fn trap_registers() -> [u64; 4] {
    [
        read_csr!(csr::MCAUSE),
        read_csr!(csr::MTVAL),
        read_csr!(csr::MTVAL2),
        0,
    ]
}

/// The machine.
#[derive(Debug)]
pub(crate) struct RiscVMachine {
    code_gpa: u64,
    tree: Option<Tree>,
}

impl RiscVMachine {
    /// Readies what no regime changes.
    pub(crate) fn start() -> Self {
        /// Memory types in entries (Svpbmt).
        const PBMTE: u64 = 1 << 62;
        /// One region over all addresses that allows everything.
        const NAPOT_READ_WRITE_EXECUTE: u64 = 0x1f;
        write_csr!(csr::PMPADDR0, u64::MAX);
        write_csr!(csr::PMPCFG0, NAPOT_READ_WRITE_EXECUTE);
        write_csr!(csr::MEDELEG, 0);
        write_csr!(csr::MENVCFG, PBMTE);
        write_csr!(csr::VSATP, 0);
        Self {
            code_gpa: 0,
            tree: None,
        }
    }

    fn own_tree(&self) -> Result<&Tree, Refused> {
        self.tree.as_ref().ok_or(Refused("there is no tree"))
    }
}

impl Machine for RiscVMachine {
    fn fill(&mut self, at: u64, bytes: u64, word: u64) {
        memory::fill(at, bytes, word);
    }

    fn copy(&mut self, at: u64, bytes: &[u8]) {
        memory::copy(at, bytes);
    }

    fn enter(&mut self, regime: &Regime) {
        let [hgatp, ..] = regime.registers;
        guest::write_code(regime.code_hpa);
        write_csr!(csr::HGATP, hgatp);
        self.code_gpa = regime.code_gpa;
        tree::forget_everything();
    }

    fn probe(&mut self, probe: &Probe) -> Answer {
        /// `hstatus.SPVP`: `HLV` and `HSV` act as the guest's kernel.
        const SPVP: u64 = 1 << 8;
        match probe.means {
            Means::OnBehalf | Means::Question => {
                write_csr!(
                    csr::HSTATUS,
                    if probe.who == Who::Kernel { SPVP } else { 0 }
                );
                guest::on_behalf(probe)
            }
            Means::Guest | Means::GuestTable => {
                Answer::Trapped(guest::access(probe, self.code_gpa))
            }
        }
    }

    fn peek(&mut self, at: u64) -> u64 {
        memory::peek(at)
    }

    fn tree(&mut self, options: &TreeOptions) -> Result<(), Refused> {
        // The one before goes first: it forgets its translations.
        self.tree = None;
        let (tree, hgatp) = tree::make(options)?;
        self.enter(&Regime {
            registers: [hgatp, 0, 0, 0],
            code_gpa: options.code_gpa,
            code_hpa: options.code_hpa,
        });
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
