//! The guest: what it executes, its own table, and running it until it comes back.

use slat_oracle_protocol::script::{Access, Probe, Who};

use crate::memory;

/// Its code page: exception vectors, which come to Hyp mode with a number; then a load and a store,
/// each followed by `SVC`, whose vector has the number 0.
const CODE: [u32; 12] = [
    OWN_EXCEPTION, // reset
    OWN_EXCEPTION, // undefined instruction
    0xe140_0070,   // SVC: hvc #0
    OWN_EXCEPTION, // prefetch abort
    OWN_EXCEPTION, // data abort
    OWN_EXCEPTION,
    OWN_EXCEPTION, // IRQ
    OWN_EXCEPTION, // FIQ
    0xe1c0_20d0,   // ldrd r2, r3, [r0]
    0xef00_0000,   // svc #0
    0xe1c0_20f0,   // strd r2, r3, [r0]
    0xef00_0000,   // svc #0
];
/// `hvc #0xfffe`.
const OWN_EXCEPTION: u32 = 0xe14f_ff7e;
const LOAD: u32 = 0x20;
const STORE: u32 = 0x28;

/// Where in the code page the guest's own table is: behind the code, aligned to its size.
const TABLE: u32 = 0xc00;

/// Virtual address of the GiB that is asked about, and the table's entry for it.
const WINDOW: u32 = 0x8000_0000;
const WINDOW_ENTRY: u64 = 2 * 8;
const GIB: u64 = 1 << 30;

/// A block of the first level for everyone, inner shareable, accessed, of the first type in `MAIR0`.
const BLOCK: u64 = 0x741;

unsafe extern "C" {
    /// In `start.s`.
    fn enter_guest(pc: u32, spsr: u32, registers: &mut [u32; 6]);
}

/// Writes the code page, with a table that shows the first GiB.
pub(crate) fn write_code(at: u64) {
    for (at, instruction) in (at..).step_by(4).zip(CODE) {
        memory::copy(at, &instruction.to_le_bytes());
    }
    memory::fill(at + u64::from(TABLE), 4 * 8, 0);
    memory::copy(at + u64::from(TABLE), &BLOCK.to_le_bytes());
}

/// The guest physical address of its table.
pub(crate) const fn table(code_gpa: u32) -> u32 {
    code_gpa + TABLE
}

/// Has the guest's table show the GiB around `gpa`. Returns the virtual address of `gpa`.
pub(crate) fn show(gpa: u64, code_hpa: u64) -> u32 {
    let entry = (gpa / GIB * GIB) | BLOCK;
    memory::copy(
        code_hpa + u64::from(TABLE) + WINDOW_ENTRY,
        &entry.to_le_bytes(),
    );
    let offset = u32::try_from(gpa % GIB).expect("less than a GiB");
    WINDOW | offset
}

/// Has the guest make an access to the virtual address `at`. Returns `HSR`, `HPFAR`, the virtual
/// address that faulted, and what was loaded.
pub(crate) fn access(probe: &Probe, at: u32, code_gpa: u32) -> [u64; 4] {
    /// SVC mode and User mode, asynchronous exceptions masked.
    const KERNEL: u32 = 0x1d3;
    const USER: u32 = 0x1d0;
    let pc = match probe.access {
        Access::Read => code_gpa + LOAD,
        Access::Write => code_gpa + STORE,
        Access::Execute => at,
    };
    let spsr = match probe.who {
        Who::Kernel => KERNEL,
        Who::User => USER,
    };
    let [low, high] = halves(probe.stored());
    let mut registers = [at, 0, low, high, 0, 0];
    // SAFETY: the guest reaches only what the tables show it, which is nothing of ours, and
    // changes only registers that are saved or that a call may change.
    unsafe { enter_guest(pc, spsr, &mut registers) };
    let [syndrome, page, data, instruction, low, high] = registers.map(u64::from);
    let faulting = match probe.access {
        Access::Execute => instruction,
        Access::Read | Access::Write => data,
    };
    [syndrome, page, faulting, high << 32 | low]
}

/// The lower and the upper half of a word, as registers hold it.
pub(crate) fn halves(word: u64) -> [u32; 2] {
    let half = |word: u64| u32::try_from(word & 0xffff_ffff).expect("half of a word");
    [half(word), half(word >> 32)]
}
