//! The memory of a machine whose payload runs without a translation of its own: addresses are
//! physical ones.
//!
//! Everything is volatile: guest and table walker look at the same memory. Making what was written
//! visible to them is up to the payload, which knows the instructions.

#![no_std]

#[cfg(target_os = "linux")]
mod hosted;

use core::ptr;
use core::slice;

/// The script at `at`, and whatever comes behind it.
///
/// # Safety
///
/// There are `bytes` bytes of memory that nobody ever writes to.
pub const unsafe fn script(at: usize, bytes: usize) -> &'static [u8] {
    let start = ptr::with_exposed_provenance(at);
    // SAFETY: by the caller's promise.
    unsafe { slice::from_raw_parts(start, bytes) }
}

/// Fills `bytes` bytes, a multiple of 8, with a word.
///
/// # Safety
///
/// There is that much memory, and nothing of the payload's is in it.
pub unsafe fn fill(at: u64, bytes: u64, word: u64) {
    for at in (at..at + bytes).step_by(8) {
        let to = ptr::with_exposed_provenance_mut::<u64>(address(at));
        // SAFETY: by the caller's promise.
        unsafe { to.write_volatile(word) };
    }
}

/// Copies bytes.
///
/// # Safety
///
/// There is that much memory, and nothing of the payload's is in it.
pub unsafe fn copy(at: u64, bytes: &[u8]) {
    for (at, byte) in (at..).zip(bytes) {
        let to = ptr::with_exposed_provenance_mut::<u8>(address(at));
        // SAFETY: by the caller's promise.
        unsafe { to.write_volatile(*byte) };
    }
}

/// Reads a word.
///
/// # Safety
///
/// There is memory.
pub unsafe fn peek(at: u64) -> u64 {
    let from = ptr::with_exposed_provenance::<u64>(address(at));
    // SAFETY: by the caller's promise.
    unsafe { from.read_volatile() }
}

fn address(at: u64) -> usize {
    usize::try_from(at).expect("the script names only memory that a pointer reaches")
}
