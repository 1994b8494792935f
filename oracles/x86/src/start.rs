//! The way from the reset vector to `main`, and what it leaves behind.

use core::arch::{asm, global_asm};

global_asm!(include_str!("start.s"), options(att_syntax));

unsafe extern "C" {
    fn set_la57(la57: u64);
}

/// Address of the global descriptor table.
pub fn global_descriptors() -> u64 {
    let mut register = [0u8; 10];
    // SAFETY: `sgdt` stores 10 bytes in 64-bit mode.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut register, options(nostack)) }
    let base = register.last_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(base)
}

/// Walks our own tables in 4 or 5 levels from now on. On AMD the nested tables have as many levels
/// as the host's own (APM volume 2, 15.25.3).
///
/// # Safety
///
/// The CPU has `LA57` if it is asked for.
pub unsafe fn walk_levels(levels: u64) {
    const LA57: u64 = 1 << 12;
    // SAFETY: both sets of tables map the same one to one; the function saves our registers.
    unsafe { set_la57(if levels == 5 { LA57 } else { 0 }) }
}
