//! What a bare machine's memory is to a payload: all of it, addressed one to one.

#![no_std]
#![expect(
    clippy::cast_possible_truncation,
    reason = "pointers have 64 bits on every machine that there is a payload for"
)]

#[cfg(target_os = "linux")]
mod hosted;

use core::ptr::with_exposed_provenance_mut as pointer;

/// The memory that a script names.
///
/// A value says that the script is trusted: that whatever it names is memory, mapped one to one,
/// which the program uses for nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Memory(());

impl Memory {
    /// # Safety
    ///
    /// The addresses that the methods will be called with are memory, mapped one to one, which the
    /// program uses for nothing else.
    pub const unsafe fn new() -> Self {
        Self(())
    }

    /// `bytes` bytes at `at`, which are never written to.
    pub fn script(self, at: u64, bytes: usize) -> &'static [u8] {
        // SAFETY: by the promise made for this value.
        unsafe { core::slice::from_raw_parts(pointer(at as usize), bytes) }
    }

    /// Fills `bytes` bytes at `at` with a word in the machine's byte order.
    pub fn fill(self, at: u64, bytes: u64, word: u64) {
        for offset in (0..bytes).step_by(8) {
            self.write(at + offset, word);
        }
    }

    /// Copies bytes to `at`.
    pub fn copy(self, at: u64, bytes: &[u8]) {
        for (place, byte) in (at..).zip(bytes) {
            // SAFETY: by the promise made for this value.
            unsafe { pointer::<u8>(place as usize).write_volatile(*byte) }
        }
    }

    /// Writes a word in the machine's byte order.
    pub fn write(self, at: u64, word: u64) {
        // SAFETY: by the promise made for this value.
        unsafe { pointer::<u64>(at as usize).write_volatile(word) }
    }

    /// The 8 bytes at `at`, as a little-endian number.
    pub fn peek(self, at: u64) -> u64 {
        // SAFETY: by the promise made for this value.
        u64::from_le(unsafe { pointer::<u64>(at as usize).read_volatile() })
    }
}
