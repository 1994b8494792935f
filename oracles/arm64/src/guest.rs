//! The guest: what it executes, and running it until it comes back.

use core::iter;

use slat_oracle_protocol::script::{Access, Probe, Who};

use crate::memory;

/// Bytes of the guest's exception vectors, with which its code page begins.
const VECTORS: u64 = 0x800;
const LOAD: u64 = VECTORS;
const STORE: u64 = VECTORS + 8;

/// A load and a store, each followed by `BRK #0`.
const CODE: [u32; 4] = [
    0xf940_0000, // ldr x0, [x0]
    0xd420_0000, // brk #0
    0xf900_0001, // str x1, [x0]
    0xd420_0000, // brk #0
];

/// `BRK #0xfffe`, in all vectors: the guest took an exception of its own.
const OWN_EXCEPTION: u32 = 0xd420_0000 | 0xfffe << 5;

/// Where in the code page the guest's own table is: behind the code, aligned to its size.
pub(crate) const TABLE: u64 = 0xc00;

/// Maps the first four GiB to themselves: blocks of level 1, for the guest's kernel, with the
/// first type in `MAIR_EL1`, inner shareable, accessed.
const OWN_TABLE: [u64; 4] = [0x701, 0x4000_0701, 0x8000_0701, 0xc000_0701];

/// Writes the code page.
pub(crate) fn write_code(at: u64) {
    let vectors = iter::repeat_n(OWN_EXCEPTION, (VECTORS / 4) as usize);
    for (at, instruction) in (at..).step_by(4).zip(vectors.chain(CODE)) {
        memory::copy(at, &instruction.to_le_bytes());
    }
    for (at, entry) in (at + TABLE..).step_by(8).zip(OWN_TABLE) {
        memory::copy(at, &entry.to_le_bytes());
    }
}

/// `SPSR_EL2` for the guest's kernel: `EL1h`, interrupts masked.
const KERNEL: u64 = 0x3c5;
/// `SPSR_EL2` for the guest's programs: `EL0t`, interrupts masked.
const USER: u64 = 0x3c0;

unsafe extern "C" {
    /// In `start.s`.
    fn enter_guest(pc: u64, spsr: u64, x0: u64, x1: u64, results: &mut [u64; 4]);
}

/// Has the guest make an access. Returns `ESR_EL2`, `HPFAR_EL2`, `FAR_EL2` and the guest's `x0`
/// as the exception that ended it left them.
pub(crate) fn access(probe: &Probe, code_gpa: u64) -> [u64; 4] {
    let pc = match probe.access {
        Access::Read => code_gpa + LOAD,
        Access::Write => code_gpa + STORE,
        Access::Execute => probe.gpa,
    };
    let spsr = match probe.who {
        Who::Kernel => KERNEL,
        Who::User => USER,
    };
    let mut results = [0; 4];
    // SAFETY: the guest reaches only what the tables show it, which is nothing of ours, and
    // changes only the registers that a call may change: it executes one instruction of `CODE`,
    // or one that the script put there.
    unsafe { enter_guest(pc, spsr, probe.gpa, probe.stored(), &mut results) };
    results
}
