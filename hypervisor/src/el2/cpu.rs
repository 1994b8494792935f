//! What the CPU can do, as far as EL2 must open it to the guest: a feature that EL2 leaves closed
//! traps at its first use, in the middle of the guest's boot.
//!
//! Field positions are those of the Arm Architecture Reference Manual (DDI 0487), section D24.2.

use super::registers::read;

/// The features that matter here.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent CPU feature"
)]
pub(super) struct Features {
    /// Pointer authentication: keys and instructions (`HCR_EL2.APK`, `API`).
    pub(super) pointer_authentication: bool,
    /// Scalable vectors (`CPTR_EL2.TZ`, `ZCR_EL2`).
    pub(super) sve: bool,
    /// Scalable matrices (`CPTR_EL2.TSM`, `SMCR_EL2`).
    pub(super) sme: bool,
    /// Memory tagging at EL0 and EL1 (`HCR_EL2.ATA`).
    pub(super) memory_tagging: bool,
    /// Context numbers against speculation (`HCR_EL2.EnSCXT`).
    pub(super) context_numbers: bool,
    /// Stage 2 can force write-back (`HCR_EL2.FWB`).
    pub(super) force_write_back: bool,
    /// Execute-never at stage 2 for EL0 and EL1 apart.
    pub(super) execute_split: bool,
    /// Instruction fetches see new code without cache maintenance (`CTR_EL0.DIC`).
    pub(super) coherent_instruction_cache: bool,
    /// The table walker can set the access flag (`VTCR_EL2.HA`).
    pub(super) hardware_accessed: bool,
    /// Privileged Access Never.
    pub(super) privileged_access_never: bool,
    /// A second hypervisor configuration register (`HCRX_EL2`).
    pub(super) hcrx: bool,
    /// Memory copy and set instructions (`HCRX_EL2.MSCEn`).
    pub(super) memory_copy: bool,
    /// Second translation control register (`HCRX_EL2.TCR2En`).
    pub(super) tcr2: bool,
    /// Second system control register (`HCRX_EL2.SCTLR2En`).
    pub(super) sctlr2: bool,
    /// Fine-grained traps (`HFGxTR_EL2` and their kin).
    pub(super) fine_grained_traps: bool,
    /// A performance monitor.
    pub(super) performance_monitor: bool,
    /// Statistical profiling (`MDCR_EL2.E2PB`).
    pub(super) profiling: bool,
    /// Physical addresses have at most this many bits.
    pub(super) physical_bits: u8,
}

impl Features {
    /// Asks the CPU.
    pub(super) fn read() -> Self {
        let isar1 = read!("id_aa64isar1_el1");
        let isar2 = read!("S3_0_C0_C6_2");
        let pfr0 = read!("id_aa64pfr0_el1");
        let pfr1 = read!("id_aa64pfr1_el1");
        let mmfr0 = read!("id_aa64mmfr0_el1");
        let mmfr1 = read!("id_aa64mmfr1_el1");
        let mmfr2 = read!("S3_0_C0_C7_2");
        let mmfr3 = read!("S3_0_C0_C7_3");
        let dfr0 = read!("id_aa64dfr0_el1");
        Self {
            pointer_authentication: [4, 8, 24, 28].iter().any(|shift| field(isar1, *shift) != 0)
                || field(isar2, 8) != 0
                || field(isar2, 12) != 0,
            sve: field(pfr0, 32) != 0,
            sme: field(pfr1, 24) != 0,
            memory_tagging: field(pfr1, 8) >= 2,
            context_numbers: field(pfr0, 56) >= 2 || field(pfr1, 32) >= 2,
            force_write_back: field(mmfr2, 40) != 0,
            execute_split: field(mmfr1, 28) != 0,
            coherent_instruction_cache: read!("ctr_el0") >> 29 & 1 != 0,
            hardware_accessed: field(mmfr1, 0) != 0,
            privileged_access_never: field(mmfr1, 20) != 0,
            hcrx: field(mmfr1, 40) != 0,
            memory_copy: field(isar2, 16) != 0,
            tcr2: field(mmfr3, 0) != 0,
            sctlr2: field(mmfr3, 4) != 0,
            fine_grained_traps: field(mmfr0, 56) != 0,
            performance_monitor: !matches!(field(dfr0, 8), 0 | 0xf),
            profiling: field(dfr0, 32) != 0,
            physical_bits: [32, 36, 40, 42, 44, 48]
                .get(field(mmfr0, 0) as usize)
                .copied()
                // Beyond 48 bits need FEAT_LPA or LPA2, which the tables here do not use.
                .unwrap_or(48),
        }
    }
}

/// The affinity fields of this CPU, as its node in the device tree has them.
pub(super) fn affinity() -> u64 {
    read!("mpidr_el1") & 0xff_00ff_ffff
}

fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}
