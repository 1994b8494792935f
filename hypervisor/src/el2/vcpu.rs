//! The virtual CPU: the guest's general-purpose registers while it is out, and the EL2 registers
//! that say what it may do without the hypervisor.
//!
//! There is one guest with one CPU, so all EL1 and EL0 state stays in the CPU: entering and
//! leaving the guest swaps nothing but the general-purpose registers.

use slat::table::format::arm64::Arm64Root;
use slat_hypervisor::syndrome::{Cpu, Injection};

use super::cpu::Features;
use super::registers::{read, write};

core::arch::global_asm!(include_str!("vectors.s"));

unsafe extern "C" {
    fn enter_guest(context: *mut Context) -> u64;
}

/// `HCR_EL2` for every guest: stage 2 on; EL1 is 64-bit; `SMC` traps (the guest's firmware calls
/// are ours); `HVC` is undefined, as on a machine without EL2; set/way cache maintenance is made
/// harmless (`SWIO`).
const HCR: u64 = 1 | 1 << 1 | 1 << 19 | 1 << 29 | 1 << 31;
const HCR_FMO: u64 = 1 << 3;
const HCR_APK_API: u64 = 1 << 40 | 1 << 41;
const HCR_FWB: u64 = 1 << 46;
const HCR_ENSCXT: u64 = 1 << 53;
const HCR_ATA: u64 = 1 << 56;

/// `CPTR_EL2` bits that are RES1, and so trap, where SVE and SME are not there.
const CPTR_RES1: u64 = 0x22ff;
const CPTR_TZ: u64 = 1 << 8;
const CPTR_TSM: u64 = 1 << 12;

/// `SCTLR_EL1` at the start: MMU and caches off, RES1 bits set.
const SCTLR_EL1_START: u64 = 0x30d0_0800;
/// EL1 with its own stack pointer, all exceptions masked.
const SPSR_START: u64 = 0x3c5;

/// The registers that the guest leaves behind. The assembly in `vectors.s` knows this layout.
#[repr(C)]
#[derive(Debug)]
struct Context {
    general: [u64; 31],
    pc: u64,
    pstate: u64,
}

/// The guest's one CPU.
#[derive(Debug)]
pub(super) struct Vcpu {
    context: Context,
    features: Features,
}

/// What brought the guest out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Exception {
    /// A synchronous exception, with its `ESR_EL2`, `FAR_EL2` and `HPFAR_EL2`.
    Synchronous { esr: u64, far: u64, hpfar: u64 },
    /// An interrupt (IRQ or FIQ) for the hypervisor.
    Interrupt,
    /// A system error.
    SError { esr: u64 },
}

impl Vcpu {
    /// A CPU that starts at guest-physical `entry` with its MMU off, as the boot protocol wants
    /// it: the device tree's guest-physical address in x0.
    pub(super) fn new(entry: u64, tree: u64, features: Features) -> Self {
        let mut general = [0; 31];
        general[0] = tree;
        Self {
            context: Context {
                general,
                pc: entry,
                pstate: SPSR_START,
            },
            features,
        }
    }

    /// Lets the guest run until it comes back.
    pub(super) fn run(&mut self) -> Exception {
        // SAFETY: `prepare` has confined the guest to its own memory, and the context is ours for
        // the whole call.
        let kind = unsafe { enter_guest(&raw mut self.context) };
        match kind {
            0 => Exception::Synchronous {
                esr: read!("esr_el2"),
                far: read!("far_el2"),
                hpfar: read!("hpfar_el2"),
            },
            3 => Exception::SError {
                esr: read!("esr_el2"),
            },
            _ => Exception::Interrupt,
        }
    }

    /// General-purpose register `number`; 31 is the zero register.
    pub(super) fn register(&self, number: u64) -> u64 {
        usize::try_from(number)
            .ok()
            .and_then(|number| self.context.general.get(number).copied())
            .unwrap_or(0)
    }

    /// Sets x0: the answer to a call.
    pub(super) fn set_answer(&mut self, value: i64) {
        self.context.general[0] = value.cast_unsigned();
    }

    /// Steps over the instruction that trapped. Those that do have four bytes each.
    pub(super) fn skip_instruction(&mut self) {
        self.context.pc = self.context.pc.wrapping_add(4);
    }

    /// The address of the instruction at which the guest left.
    pub(super) fn pc(&self) -> u64 {
        self.context.pc
    }

    /// Gives the guest the external abort that hardware gives for an access to nothing. `esr` and
    /// `far` are those of the stage-2 abort.
    pub(super) fn inject_external_abort(&mut self, esr: u64, far: u64) {
        let injection = Injection::external_abort(esr, self.context.pstate, self.cpu());
        // SAFETY: FAR_EL1 belongs to the guest, which is out and is being given an exception.
        unsafe { write!("far_el1", far) };
        self.take(injection);
    }

    /// Gives the guest the exception of an undefined instruction.
    pub(super) fn inject_undefined(&mut self, esr: u64) {
        let injection = Injection::undefined(esr, self.context.pstate, self.cpu());
        self.take(injection);
    }

    #[expect(
        clippy::multiple_unsafe_ops_per_block,
        reason = "one reason holds for all of these registers"
    )]
    fn take(&mut self, injection: Injection) {
        // SAFETY: these registers belong to the guest, which is out; this is what the CPU does to
        // them when it takes an exception to EL1.
        unsafe {
            write!("esr_el1", injection.esr);
            write!("elr_el1", self.context.pc);
            write!("spsr_el1", self.context.pstate);
        }
        self.context.pc = read!("vbar_el1").wrapping_add(injection.vector);
        self.context.pstate = injection.pstate;
    }

    fn cpu(&self) -> Cpu {
        Cpu {
            sctlr: read!("sctlr_el1"),
            has_pan: self.features.privileged_access_never,
            has_mte: self.features.memory_tagging,
        }
    }
}

/// Sets up this CPU's EL2 registers for the guest. `root` is the stage-2 tree's.
/// With `take_fiq` FIQs come to the hypervisor; IRQs are always the guest's own.
///
/// # Safety
///
/// The tree must keep the guest away from all memory that is not its own.
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one reason holds for all of these registers"
)]
pub(super) unsafe fn prepare(features: Features, root: Arm64Root, take_fiq: bool) {
    let optional = |on, bits| if on { bits } else { 0 };
    let hcr = HCR
        | optional(take_fiq, HCR_FMO)
        | optional(features.pointer_authentication, HCR_APK_API)
        | optional(features.force_write_back, HCR_FWB)
        | optional(features.context_numbers, HCR_ENSCXT)
        | optional(features.memory_tagging, HCR_ATA);
    open_vectors(features);
    open_extensions(features);
    open_devices(features);
    let (model, number) = (read!("midr_el1"), read!("mpidr_el1"));
    // SAFETY: the caller vouches for the tree; the rest concerns EL1 and EL0 only, which do
    // not run yet.
    unsafe {
        write!("vtcr_el2", root.vtcr);
        write!("vttbr_el2", root.vttbr);
        write!("vpidr_el2", model);
        write!("vmpidr_el2", number);
        write!("hstr_el2", 0_u64);
        write!("sctlr_el1", SCTLR_EL1_START);
        write!("hcr_el2", hcr);
        core::arch::asm!(
            "isb",
            "tlbi vmalls12e1",
            "ic iallu",
            "dsb nsh",
            "isb",
            options(nostack, preserves_flags)
        );
    }
}

/// Floating point, SVE and SME.
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one reason holds for all of these registers"
)]
fn open_vectors(features: Features) {
    let mut cptr = CPTR_RES1;
    if !features.sve {
        cptr |= CPTR_TZ;
    }
    if !features.sme {
        cptr |= CPTR_TSM;
    }
    // SMCR_EL2.FA64 (bit 31), from ID_AA64SMFR0_EL1.FA64 (bit 63).
    let full_matrix_set = read!("S3_0_C0_C4_5") >> 63 << 31;
    // SAFETY: EL2 is built without floating point, so only the guest is affected. The traps must
    // be seen to be open before the vector lengths can be written.
    unsafe {
        write!("cptr_el2", cptr);
        core::arch::asm!("isb", options(nostack, preserves_flags));
        if features.sve {
            // ZCR_EL2.LEN: the longest that there is.
            write!("S3_4_C1_C2_0", 0xf_u64);
        }
        if features.sme {
            // SMCR_EL2: the longest, with the full instruction set where the CPU has it.
            write!("S3_4_C1_C2_6", 0xf | full_matrix_set);
        }
    }
}

/// Extensions that are closed until EL2 opens them.
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one reason holds for all of these registers"
)]
fn open_extensions(features: Features) {
    const HCRX_MSCEN: u64 = 1 << 11;
    const HCRX_TCR2EN: u64 = 1 << 14;
    const HCRX_SCTLR2EN: u64 = 1 << 15;
    // Traps whose sense is turned round: clear means trap (nSMPRI_EL1, nTPIDR2_EL0).
    const HFGTR_SME: u64 = 1 << 54 | 1 << 55;
    let optional = |on, bits| if on { bits } else { 0 };
    // SAFETY: these registers are there when the feature is, and concern EL1 and EL0 only.
    unsafe {
        if features.hcrx {
            let hcrx = optional(features.memory_copy, HCRX_MSCEN)
                | optional(features.tcr2, HCRX_TCR2EN)
                | optional(features.sctlr2, HCRX_SCTLR2EN);
            write!("S3_4_C1_C2_2", hcrx);
        }
        if features.fine_grained_traps {
            let registers = optional(features.sme, HFGTR_SME);
            write!("S3_4_C1_C1_4", registers); // HFGRTR_EL2
            write!("S3_4_C1_C1_5", registers); // HFGWTR_EL2
            write!("S3_4_C1_C1_6", 0_u64); // HFGITR_EL2
            write!("S3_4_C3_C1_4", 0_u64); // HDFGRTR_EL2
            write!("S3_4_C3_C1_5", 0_u64); // HDFGWTR_EL2
        }
    }
}

/// Timers, interrupt controller interface, performance monitor.
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one reason holds for all of these registers"
)]
fn open_devices(features: Features) {
    const ICC_SRE_ALL: u64 = 0xf;
    const CNTHCTL_EL1_COUNTER_AND_TIMER: u64 = 3;
    let mut mdcr = 0;
    if features.performance_monitor {
        // MDCR_EL2.HPMN: all counters are the guest's.
        mdcr |= read!("pmcr_el0") >> 11 & 0x1f;
    }
    if features.profiling {
        // MDCR_EL2.E2PB: the profiling buffer is EL1's.
        mdcr |= 3 << 12;
    }
    // SAFETY: these registers concern EL1 and EL0, and no interrupt is enabled yet.
    unsafe {
        write!("mdcr_el2", mdcr);
        write!("cnthctl_el2", CNTHCTL_EL1_COUNTER_AND_TIMER);
        write!("cntvoff_el2", 0_u64);
        write!("S3_4_C12_C9_5", ICC_SRE_ALL); // ICC_SRE_EL2
        core::arch::asm!("isb", options(nostack, preserves_flags));
        write!("S3_4_C12_C11_0", 0_u64); // ICH_HCR_EL2
    }
}
