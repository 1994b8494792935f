//! The system counter, the clock that guest and hypervisor share.

use core::arch::asm;

/// The virtual counter (`CNTVCT_EL0`; Arm ARM D24.9, readable at EL0 because Linux sets
/// `CNTKCTL_EL1.EL0VCTEN`).
pub(crate) fn ticks() -> u64 {
    let ticks;
    // SAFETY: reads a register and touches nothing else. Without `nomem` it is not moved across
    // memory accesses; `isb` keeps the CPU from reading it ahead of time.
    unsafe {
        asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nostack, preserves_flags));
    }
    ticks
}

/// Ticks in a second (`CNTFRQ_EL0`).
pub(crate) fn frequency() -> u64 {
    let hertz;
    // SAFETY: reads a register and touches nothing else.
    unsafe {
        asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack, preserves_flags));
    }
    hertz
}
