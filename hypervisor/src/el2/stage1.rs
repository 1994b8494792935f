//! The guest's own translation, asked of the hardware.

use super::registers::{read, write};

/// The guest-physical address behind the guest's virtual `address`, or `None` if its tables do not
/// translate that (any more).
///
/// The abort that makes this necessary comes from a read, a write or a fetch at EL1 or EL0; what
/// is asked here is a read at EL1. Linux maps nothing for EL0 that EL1 cannot read.
pub(super) fn translate(address: u64) -> Option<u64> {
    const FAILED: u64 = 1;
    const PAGE: u64 = 0x000f_ffff_ffff_f000;
    let saved = read!("par_el1");
    // SAFETY: the instruction writes PAR_EL1 and nothing else.
    unsafe {
        core::arch::asm!("at s1e1r, {}", "isb", in(reg) address, options(nostack, preserves_flags));
    }
    let result = read!("par_el1");
    // SAFETY: the register is the guest's, which may be about to read the answer to a question of
    // its own: it gets back what it had.
    unsafe { write!("par_el1", saved) };
    (result & FAILED == 0).then_some(result & PAGE | address & 0xfff)
}
