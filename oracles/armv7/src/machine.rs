//! What the script asks for, done with the registers of Hyp mode.

use core::arch::asm;

use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::payload::Machine;
use slat_oracle_protocol::script::{Access, Means, Probe, Regime, Who};

use crate::guest;
use crate::memory;

/// Writes a register of the system control coprocessor, named as `MCR` names it.
macro_rules! write_register {
    ($opc1:literal, $crn:literal, $crm:literal, $opc2:literal, $value:expr) => {{
        let value: u32 = $value;
        // SAFETY: the register concerns the guest only.
        unsafe {
            asm!(
                concat!("mcr p15, ", $opc1, ", {}, ", $crn, ", ", $crm, ", ", $opc2),
                in(reg) value,
                options(nostack),
            );
        }
    }};
}

/// Writes a register of 64 bits, named as `MCRR` names it.
macro_rules! write_wide_register {
    ($opc1:literal, $crm:literal, $value:expr) => {{
        let [low, high] = guest::halves($value);
        // SAFETY: the register concerns the guest only.
        unsafe {
            asm!(
                concat!("mcrr p15, ", $opc1, ", {}, {}, ", $crm),
                in(reg) low,
                in(reg) high,
                options(nostack),
            );
        }
    }};
}

/// Asks the MMU what an access would meet.
macro_rules! ask {
    ($operation:literal, $address:expr) => {{
        let (low, high, syndrome): (u32, u32, u32);
        // SAFETY: the instruction changes PAR alone. A walk into memory that is not there ends at
        // the label, by way of `own_exception`.
        unsafe {
            asm!(
                "adr r12, 2f",
                "mcr p15, 4, r12, c13, c0, 2",
                "mov r12, #0",
                "isb",
                concat!("mcr p15, 0, {address}, c7, c8, ", $operation),
                "isb",
                "2: mov {low}, #0",
                "mcr p15, 4, {low}, c13, c0, 2",
                "mrrc p15, 0, {low}, {high}, c7",
                address = in(reg) $address,
                low = out(reg) low,
                high = out(reg) high,
                out("r12") syndrome,
                options(nostack),
            );
        }
        (u64::from(high) << 32 | u64::from(low), syndrome)
    }};
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Armv7Machine {
    code_gpa: u32,
    code_hpa: u64,
}

impl Armv7Machine {
    /// Readies what no regime changes: registers of the guest's own first stage (B4.1).
    pub(crate) fn start() -> Self {
        /// The long-descriptor format, 32-bit addresses, write-back, inner shareable.
        const TTBCR: u32 = 1 << 31 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8;
        /// The guest's MMU on, its caches off, other bits as reset leaves them.
        const SCTLR: u32 = 0x00c5_0078 | 1;
        write_register!("0", "c2", "c0", "2", TTBCR);
        write_register!("0", "c10", "c2", "0", 0xff); // MAIR0
        write_register!("0", "c1", "c0", "0", SCTLR);
        Self {
            code_gpa: 0,
            code_hpa: 0,
        }
    }

    /// `PAR` after asking the MMU, and a syndrome if the walk itself failed. There is no question
    /// about execution.
    fn question(probe: &Probe, at: u32) -> (u64, u32) {
        // ATS12NSOPR, ATS12NSOPW, ATS12NSOUR, ATS12NSOUW.
        match (probe.access, probe.who) {
            (Access::Write, Who::Kernel) => ask!("5", at),
            (Access::Write, Who::User) => ask!("7", at),
            (_, Who::Kernel) => ask!("4", at),
            (_, Who::User) => ask!("6", at),
        }
    }
}

impl Machine for Armv7Machine {
    fn fill(&mut self, at: u64, bytes: u64, word: u64) {
        memory::fill(at, bytes, word);
    }

    fn copy(&mut self, at: u64, bytes: &[u8]) {
        memory::copy(at, bytes);
    }

    fn enter(&mut self, regime: &Regime) {
        let [vttbr, vtcr, hcr, _] = regime.registers;
        let narrow = |word: u64| u32::try_from(word).expect("a register of 32 bits");
        self.code_gpa = narrow(regime.code_gpa);
        self.code_hpa = regime.code_hpa;
        guest::write_code(regime.code_hpa);
        write_register!("0", "c12", "c0", "0", self.code_gpa); // VBAR
        write_wide_register!("0", "c2", guest::table(self.code_gpa).into()); // TTBR0
        write_register!("4", "c2", "c1", "2", narrow(vtcr));
        write_wide_register!("6", "c2", vttbr);
        write_register!("4", "c1", "c1", "0", narrow(hcr));
        forget_everything();
    }

    fn probe(&mut self, probe: &Probe) -> Answer {
        let at = guest::show(probe.gpa, self.code_hpa);
        forget_everything();
        match probe.means {
            Means::Question => match Self::question(probe, at) {
                (result, 0) => Answer::Completed([result, 0, 0, 0]),
                (_, syndrome) => Answer::Trapped([syndrome.into(), 0, 0, 0]),
            },
            Means::Guest | Means::OnBehalf | Means::GuestTable => {
                Answer::Trapped(guest::access(probe, at, self.code_gpa))
            }
        }
    }

    fn peek(&mut self, at: u64) -> u64 {
        memory::peek(at)
    }
}

/// `TLBIALLNSNH`: forgets all translations of guests.
fn forget_everything() {
    write_register!("4", "c8", "c7", "4", 0);
    // SAFETY: barriers change no memory.
    unsafe { asm!("dsb", "isb", options(nostack)) };
}
