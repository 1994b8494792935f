//! Exception syndromes: what an exit from the guest means (`ESR_EL2`), and the syndrome that the
//! guest gets when an exception is handed back to it (`ESR_EL1`).
//!
//! Field positions are those of the Arm Architecture Reference Manual (DDI 0487), section D24.2
//! (`ESR_ELx`, `HPFAR_EL2`).

/// Exception classes (`ESR_ELx.EC`, bits 31:26).
mod class {
    pub(super) const UNKNOWN: u64 = 0x00;
    pub(super) const SMC: u64 = 0x17;
    pub(super) const SYSTEM_REGISTER: u64 = 0x18;
    pub(super) const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    pub(super) const INSTRUCTION_ABORT_SAME: u64 = 0x21;
    pub(super) const DATA_ABORT_LOWER: u64 = 0x24;
    pub(super) const DATA_ABORT_SAME: u64 = 0x25;
}

const EC_SHIFT: u32 = 26;
/// `IL`: the instruction had 32 bits.
const IL: u64 = 1 << 25;
/// `S1PTW`: the access was one of a stage-1 table walk.
const S1PTW: u64 = 1 << 7;
/// `CM`: the access was one of a cache maintenance instruction.
const CM: u64 = 1 << 8;
/// `WnR`: the access was a write.
const WNR: u64 = 1 << 6;
/// The fault status code of a synchronous external abort, not on a table walk.
const EXTERNAL_ABORT: u64 = 0b01_0000;

/// `ICC_SGI1R_EL1` (`S3_0_C12_C11_5`) in the form of a trapped write.
const ICC_SGI1R_WRITE: u64 = encoding(3, 0, 12, 11, 5);

/// Why the guest left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the one caller must handle every exit"
)]
pub enum Exit {
    /// An access that stage 2 did not let through.
    Abort(Abort),
    /// An `SMC` instruction.
    Smc,
    /// A write to `ICC_SGI1R_EL1` from general-purpose register `register` (31 is zero).
    SendSgi {
        /// The register's number.
        register: u64,
    },
    /// An access to another system register, which the hypervisor does not give the guest.
    SystemRegister,
    /// Anything else: the exception class.
    Other(u64),
}

/// An access that stage 2 did not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Abort {
    /// What the guest was doing.
    pub access: AccessKind,
    /// Why it was stopped.
    pub cause: Cause,
    /// Whether it was a walk of the guest's own tables that was stopped. Such an access counts as
    /// a read, or as a write if the walk was to update the accessed or dirty state.
    pub table_walk: bool,
}

/// What the guest was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these are the accesses there are")]
pub enum AccessKind {
    /// Reading data.
    Read,
    /// Writing data.
    Write,
    /// Fetching an instruction.
    Fetch,
}

/// Why stage 2 stopped an access (the fault status code).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the one caller must handle every cause"
)]
pub enum Cause {
    /// No translation.
    Translation,
    /// A translation whose access flag is clear.
    AccessFlag,
    /// A translation that does not allow the access.
    Permission,
    /// Something that is no matter of translation: the fault status code.
    Other(u64),
}

impl Exit {
    /// Decodes `ESR_EL2` after a synchronous exception from a lower exception level.
    pub const fn decode(esr: u64) -> Self {
        match esr >> EC_SHIFT & 0x3f {
            class::DATA_ABORT_LOWER => Self::Abort(Abort::decode(esr, false)),
            class::INSTRUCTION_ABORT_LOWER => Self::Abort(Abort::decode(esr, true)),
            class::SMC => Self::Smc,
            class::SYSTEM_REGISTER => Self::decode_register(esr),
            other => Self::Other(other),
        }
    }

    const fn decode_register(esr: u64) -> Self {
        // Bits 24:1 less Rt (9:5) name the register; bit 0 is the direction, 0 for a write.
        if esr & 0x01ff_fc1f == ICC_SGI1R_WRITE {
            Self::SendSgi {
                register: esr >> 5 & 0x1f,
            }
        } else {
            Self::SystemRegister
        }
    }
}

impl Abort {
    const fn decode(esr: u64, fetch: bool) -> Self {
        let table_walk = esr & S1PTW != 0;
        let cause = match esr & 0x3f {
            0b00_0100..=0b00_0111 => Cause::Translation,
            0b00_1000..=0b00_1011 => Cause::AccessFlag,
            0b00_1100..=0b00_1111 => Cause::Permission,
            other => Cause::Other(other),
        };
        // A walk that was let read and was stopped nevertheless was about to update an entry. A
        // cache maintenance instruction by address reports WnR, but reading is all that it needs
        // at stage 2 (DDI 0487, section D8.16.3).
        let update = table_walk && matches!(cause, Cause::Permission);
        let store = !fetch && !table_walk && esr & WNR != 0 && esr & CM == 0;
        let access = if update || store {
            AccessKind::Write
        } else if fetch && !table_walk {
            AccessKind::Fetch
        } else {
            AccessKind::Read
        };
        Self {
            access,
            cause,
            table_walk,
        }
    }

    /// Whether `HPFAR_EL2` holds the guest-physical address of this abort. For a permission fault
    /// that is not on a table walk it need not (DDI 0487, `HPFAR_EL2`).
    pub const fn has_guest_address(self) -> bool {
        self.table_walk || !matches!(self.cause, Cause::Permission)
    }
}

/// The guest-physical address of an abort: the page from `HPFAR_EL2`, the offset from `FAR_EL2`.
///
/// For an abort on a table walk the offset is that of the access, not of the entry; the page is
/// what counts.
pub const fn guest_address(hpfar: u64, far: u64) -> u64 {
    (hpfar & 0x0000_0fff_ffff_fff0) << 8 | far & 0xfff
}

/// Where an exception is taken to, and with what syndrome, when it is handed to the guest's EL1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Injection {
    /// The new `ESR_EL1`.
    pub esr: u64,
    /// The vector's offset from `VBAR_EL1`.
    pub vector: u64,
    /// The new processor state, in the format of an `SPSR`.
    pub pstate: u64,
}

/// What the processor state at EL1 depends on, besides the state that was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "built by the one program that uses it"
)]
pub struct Cpu {
    /// The guest's `SCTLR_EL1`.
    pub sctlr: u64,
    /// Whether the CPU has Privileged Access Never (`FEAT_PAN`).
    pub has_pan: bool,
    /// Whether the CPU has memory tagging (`FEAT_MTE2`).
    pub has_mte: bool,
}

impl Injection {
    /// The synchronous external abort that hardware gives for an access to an address where there
    /// is nothing: `esr` is the `ESR_EL2` of the stage-2 abort, `spsr` its `SPSR_EL2`.
    pub const fn external_abort(esr: u64, spsr: u64, cpu: Cpu) -> Self {
        let fetch = esr >> EC_SHIFT & 0x3f == class::INSTRUCTION_ABORT_LOWER;
        let class = match (fetch, is_el0(spsr)) {
            (true, true) => class::INSTRUCTION_ABORT_LOWER,
            (true, false) => class::INSTRUCTION_ABORT_SAME,
            (false, true) => class::DATA_ABORT_LOWER,
            (false, false) => class::DATA_ABORT_SAME,
        };
        let details = if fetch { 0 } else { esr & (WNR | CM) };
        let syndrome = class << EC_SHIFT | esr & IL | details | EXTERNAL_ABORT;
        Self::new(syndrome, spsr, cpu)
    }

    /// The exception of an undefined instruction: the guest used one that it does not have.
    pub const fn undefined(esr: u64, spsr: u64, cpu: Cpu) -> Self {
        Self::new(class::UNKNOWN << EC_SHIFT | esr & IL, spsr, cpu)
    }

    const fn new(esr: u64, spsr: u64, cpu: Cpu) -> Self {
        Self {
            esr,
            vector: vector(spsr),
            pstate: pstate(spsr, cpu),
        }
    }
}

/// `M` of an `SPSR`: exception level and stack pointer, or the mode of a 32-bit program.
const MODE: u64 = 0b1_1111;
const MODE_EL1_SP0: u64 = 0b0_0100;
const MODE_EL1_SPX: u64 = 0b0_0101;
const AARCH32: u64 = 1 << 4;

const fn is_el0(spsr: u64) -> bool {
    spsr & AARCH32 != 0 || spsr & MODE == 0
}

/// The synchronous vector for an exception from the state in `spsr` (DDI 0487, table D1-7).
const fn vector(spsr: u64) -> u64 {
    match spsr & MODE {
        MODE_EL1_SP0 => 0x000,
        MODE_EL1_SPX => 0x200,
        mode if mode & AARCH32 == 0 => 0x400,
        _ => 0x600,
    }
}

/// The state in which EL1 starts to handle an exception (DDI 0487, pseudocode function
/// `AArch64.TakeException`).
const fn pstate(spsr: u64, cpu: Cpu) -> u64 {
    /// NZCV (31:28) and DIT (24) stay as they were.
    const KEPT: u64 = 0xf << 28 | 1 << 24;
    const TCO: u64 = 1 << 25;
    const PAN: u64 = 1 << 22;
    const SSBS: u64 = 1 << 12;
    const DAIF: u64 = 0xf << 6;
    const SCTLR_SPAN: u64 = 1 << 23;
    const SCTLR_DSSBS: u64 = 1 << 44;

    let from_aarch32 = spsr & AARCH32 != 0;
    // DIT is bit 21 in the SPSR of AArch32, where bit 24 is a Jazelle bit that is always zero.
    let kept = if from_aarch32 {
        spsr & 0xf << 28 | (spsr >> 21 & 1) << 24
    } else {
        spsr & KEPT
    };
    let mut state = kept | DAIF | MODE_EL1_SPX;
    if cpu.has_pan && (spsr & PAN != 0 || cpu.sctlr & SCTLR_SPAN == 0) {
        state |= PAN;
    }
    if cpu.sctlr & SCTLR_DSSBS != 0 {
        state |= SSBS;
    }
    if cpu.has_mte {
        state |= TCO;
    }
    state
}

/// A system register's name in the syndrome of a trapped access (`ESR_EL2.ISS` for class 0x18).
const fn encoding(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const EL1H: u64 = 0x3c5;
    const NO_EXTENSIONS: Cpu = Cpu {
        sctlr: 0x30d0_1985,
        has_pan: false,
        has_mte: false,
    };

    fn abort(esr: u64) -> Abort {
        match Exit::decode(esr) {
            Exit::Abort(abort) => abort,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn data_aborts_say_access_and_cause() {
        let read = abort(0x9200_0006);
        assert_eq!(
            (read.access, read.cause),
            (AccessKind::Read, Cause::Translation)
        );
        let write = abort(0x9200_004f);
        assert_eq!(
            (write.access, write.cause),
            (AccessKind::Write, Cause::Permission)
        );
        assert_eq!(abort(0x9200_000b).cause, Cause::AccessFlag);
        assert_eq!(abort(0x9200_0010).cause, Cause::Other(0x10));
    }

    #[test]
    fn fetches_and_table_walks_are_told_apart() {
        assert_eq!(abort(0x8200_0007).access, AccessKind::Fetch);
        let walk = abort(0x8200_0087);
        assert_eq!((walk.access, walk.table_walk), (AccessKind::Read, true));
        let update = abort(0x9200_00cf);
        assert_eq!(
            (update.access, update.table_walk),
            (AccessKind::Write, true)
        );
    }

    #[test]
    fn cache_maintenance_is_no_write() {
        assert_eq!(abort(0x9200_0146).access, AccessKind::Read);
    }

    #[test]
    fn only_permission_faults_outside_table_walks_lack_an_address() {
        assert!(abort(0x9200_0006).has_guest_address());
        assert!(!abort(0x9200_004f).has_guest_address());
        assert!(abort(0x9200_008f).has_guest_address());
    }

    #[test]
    fn addresses_are_put_together_from_both_registers() {
        assert_eq!(
            guest_address(0x9_0000 << 4, 0xffff_8000_0000_0018),
            0x9000_0018
        );
        assert_eq!(guest_address(1 << 63 | 0x80_0000 << 4, 0), 0x8_0000_0000);
    }

    #[test]
    fn trapped_instructions_are_recognised() {
        assert_eq!(Exit::decode(0x5e00_0000), Exit::Smc);
        // MSR ICC_SGI1R_EL1, X3 and MRS X3, ICC_SGI1R_EL1: the second is no such register.
        let write = 0x18 << 26 | 1 << 25 | encoding(3, 0, 12, 11, 5) | 3 << 5;
        assert_eq!(Exit::decode(write), Exit::SendSgi { register: 3 });
        assert_eq!(Exit::decode(write | 1), Exit::SystemRegister);
        assert_eq!(Exit::decode(0x0200_0000), Exit::Other(0));
    }

    #[test]
    fn an_external_abort_goes_where_hardware_would_take_it() {
        let data = 0x9300_0046;
        let from_el1 = Injection::external_abort(data, EL1H, NO_EXTENSIONS);
        assert_eq!((from_el1.esr, from_el1.vector), (0x9600_0050, 0x200));
        let from_el0 = Injection::external_abort(data, 0, NO_EXTENSIONS);
        assert_eq!((from_el0.esr, from_el0.vector), (0x9200_0050, 0x400));
        let fetch = Injection::external_abort(0x8200_0007, 0, NO_EXTENSIONS);
        assert_eq!((fetch.esr, fetch.vector), (0x8200_0010, 0x400));
        let fetch = Injection::external_abort(0x8200_0007, 0x3c4, NO_EXTENSIONS);
        assert_eq!((fetch.esr, fetch.vector), (0x8600_0010, 0x000));
        let aarch32 = Injection::external_abort(data, 0x10, NO_EXTENSIONS);
        assert_eq!((aarch32.esr, aarch32.vector), (0x9200_0050, 0x600));
    }

    #[test]
    fn the_handler_starts_in_the_state_of_a_new_exception() {
        let nzcv = 0x6000_0000;
        let state = |spsr, cpu| Injection::undefined(1 << 25, spsr, cpu).pstate;
        assert_eq!(state(nzcv, NO_EXTENSIONS), nzcv | EL1H);
        // Single step, illegal state and branch type are cleared.
        assert_eq!(state(1 << 21 | 1 << 20 | 3 << 10, NO_EXTENSIONS), EL1H);
        let max = Cpu {
            has_pan: true,
            has_mte: true,
            ..NO_EXTENSIONS
        };
        assert_eq!(state(0, max), EL1H | 1 << 25, "SPAN set: PAN stays clear");
        assert_eq!(
            state(1 << 22, max),
            EL1H | 1 << 25 | 1 << 22,
            "PAN stays set"
        );
        let setting = Cpu {
            sctlr: 1 << 44,
            ..max
        };
        assert_eq!(state(0, setting), EL1H | 1 << 25 | 1 << 22 | 1 << 12);
    }
}
