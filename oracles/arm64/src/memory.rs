//! The machine's memory by physical address: the MMU of EL2 is off.

use core::arch::asm;

use slat_oracle_physical as physical;

/// Where the script is loaded, and how long it can be; `xtask/src/oracle/arm64.rs` knows too.
const SCRIPT: usize = 0x4400_0000;
const SCRIPT_BYTES: usize = 0x0c00_0000;

/// The script, and whatever comes behind it.
pub(crate) fn script() -> &'static [u8] {
    // SAFETY: this memory is the script's alone and is never written to.
    unsafe { physical::script(SCRIPT, SCRIPT_BYTES) }
}

/// Fills memory with a word.
pub(crate) fn fill(at: u64, bytes: u64, word: u64) {
    // SAFETY: the script fills only memory that it has for itself.
    unsafe { physical::fill(at, bytes, word) };
    visible();
}

/// Copies bytes, which may be instructions.
pub(crate) fn copy(at: u64, bytes: &[u8]) {
    // SAFETY: as above; the guest's code page is its own too.
    unsafe { physical::copy(at, bytes) };
    visible();
}

/// Reads a word.
pub(crate) fn peek(at: u64) -> u64 {
    // SAFETY: the script looks only at memory that is there.
    unsafe { physical::peek(at) }
}

/// Makes what was written visible to table walker and instruction fetch.
fn visible() {
    // SAFETY: barriers and an invalidation change no memory.
    unsafe { asm!("dsb sy", "ic iallu", "dsb sy", "isb", options(nostack)) };
}
