//! The guest: what it executes, running it until it traps, and accesses on its behalf.

use slat_oracle_protocol::answer::Answer;
use slat_oracle_protocol::script::{Access, Probe, Who};

use crate::memory;

/// Its code page: a load and a store, each followed by `ECALL`.
const CODE: [u32; 4] = [
    0x0005_3503, // ld a0, 0(a0)
    0x0000_0073, // ecall
    0x00b5_3023, // sd a1, 0(a0)
    0x0000_0073, // ecall
];
const LOAD: u64 = 0;
const STORE: u64 = 8;

unsafe extern "C" {
    /// In `start.s`.
    fn enter_guest(pc: u64, mstatus: u64, a0: u64, a1: u64, results: &mut [u64; 4]);
    /// In `start.s`.
    fn load_for_guest(address: u64, results: &mut [u64; 4]) -> u64;
    /// In `start.s`.
    fn store_for_guest(address: u64, value: u64) -> u64;
}

/// Writes the code page.
pub(crate) fn write_code(at: u64) {
    for (at, instruction) in (at..).step_by(4).zip(CODE) {
        memory::copy(at, &instruction.to_le_bytes());
    }
}

/// Has the guest make an access. Returns `mcause`, `mtval`, `mtval2` and the guest's `a0` as the
/// trap that ended it left them.
pub(crate) fn access(probe: &Probe, code_gpa: u64) -> [u64; 4] {
    /// `mstatus.MPV`: `MRET` enters the guest.
    const MPV: u64 = 1 << 39;
    /// `mstatus.MPP`: ... its kernel.
    const MPP_SUPERVISOR: u64 = 1 << 11;
    let pc = match probe.access {
        Access::Read => code_gpa + LOAD,
        Access::Write => code_gpa + STORE,
        Access::Execute => probe.gpa,
    };
    let mstatus = match probe.who {
        Who::Kernel => MPV | MPP_SUPERVISOR,
        Who::User => MPV,
    };
    let mut results = [0; 4];
    // SAFETY: the guest reaches only what the tables show it, which is nothing of ours, and
    // changes only the registers that a call may change: it executes one instruction of `CODE`,
    // or one that the script put there.
    unsafe { enter_guest(pc, mstatus, probe.gpa, probe.stored(), &mut results) };
    results
}

/// Makes an access on the guest's behalf. `hstatus.SPVP` says as whom.
pub(crate) fn on_behalf(probe: &Probe) -> Answer {
    let mut results = [0; 4];
    let trapped = match probe.access {
        Access::Read | Access::Execute => {
            // SAFETY: the guest's tables show nothing of ours.
            unsafe { load_for_guest(probe.gpa, &mut results) }
        }
        Access::Write => {
            // SAFETY: as above.
            unsafe { store_for_guest(probe.gpa, probe.stored()) }
        }
    };
    if trapped == 0 {
        Answer::Completed([results[3], 0, 0, 0])
    } else {
        Answer::Trapped(crate::machine::trap_registers())
    }
}
