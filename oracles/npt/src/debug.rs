//! Debug exceptions in the host, which are ignored.
//!
//! The guest executes in single steps. When such a step ends in a nested page fault, Bochs keeps the
//! debug exception for later, and it hits us after the `#VMEXIT`.

use core::arch::{asm, global_asm};

global_asm!(".global ignore", "ignore:", "iretq");

unsafe extern "C" {
    fn ignore();
}

const DEBUG_VECTOR: usize = 1;

/// A gate for each vector up to that of debug exceptions (APM volume 2, 4.8.4).
static mut GATES: [[u64; 2]; DEBUG_VECTOR + 1] = [[0; 2]; DEBUG_VECTOR + 1];

/// What `lidt` loads.
#[repr(C, packed)]
struct Register {
    limit: u16,
    base: u64,
}

/// Lets debug exceptions pass.
pub(crate) fn ignore_exceptions() {
    const CODE: u64 = 0x08;
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00;
    let handler = (ignore as *const ()).expose_provenance() as u64;
    let gate = [
        (handler & 0xffff_0000) << 32
            | PRESENT_INTERRUPT_GATE << 32
            | CODE << 16
            | handler & 0xffff,
        handler >> 32,
    ];
    let gates = &raw mut GATES;
    let register = Register {
        limit: (size_of::<[u64; 2]>() * (DEBUG_VECTOR + 1) - 1) as u16,
        base: gates.expose_provenance() as u64,
    };
    // SAFETY: nobody else uses the table, whose one gate leads to code that returns.
    unsafe {
        (*gates)[DEBUG_VECTOR] = gate;
        asm!("lidt [{}]", in(reg) &raw const register, options(nostack));
    }
}
