//! What the compiler takes for granted on targets that have an operating system in their name:
//! there the C library brings these functions, and here nobody else does.
//!
//! The loops are of volatile accesses, since the compiler would turn others into calls of the very
//! functions that they are in.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "an index is in bounds for reading and writing alike"
)]

use core::ffi::c_int;

/// # Safety
///
/// A byte can be read and written there.
unsafe fn copy_byte(to: *mut u8, from: *const u8) {
    // SAFETY: by the caller's promise.
    unsafe { to.write_volatile(from.read_volatile()) }
}

/// Copies `bytes` bytes that do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    for index in 0..bytes {
        // SAFETY: the caller promises as many bytes at both.
        unsafe { copy_byte(to.add(index), from.add(index)) }
    }
    to
}

/// Copies `bytes` bytes that may overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if to.addr() <= from.addr() {
        // SAFETY: as for us; copying upwards reads every byte before it is overwritten.
        return unsafe { memcpy(to, from, bytes) };
    }
    for index in (0..bytes).rev() {
        // SAFETY: the caller promises as many bytes at both.
        unsafe { copy_byte(to.add(index), from.add(index)) }
    }
    to
}

/// Fills `bytes` bytes with the lowest byte of `value`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: c_int, bytes: usize) -> *mut u8 {
    let [byte, ..] = value.to_le_bytes();
    for index in 0..bytes {
        // SAFETY: the caller promises as many bytes.
        unsafe { to.add(index).write_volatile(byte) }
    }
    to
}

/// Compares `bytes` bytes: negative, 0 or positive as the first is less, equal or more.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(first: *const u8, second: *const u8, bytes: usize) -> c_int {
    for index in 0..bytes {
        // SAFETY: the caller promises as many bytes at both.
        let (a, b) = unsafe {
            (
                first.add(index).read_volatile(),
                second.add(index).read_volatile(),
            )
        };
        if a != b {
            return c_int::from(a) - c_int::from(b);
        }
    }
    0
}

/// Compares `bytes` bytes: 0 if they are equal.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(first: *const u8, second: *const u8, bytes: usize) -> c_int {
    // SAFETY: as for us.
    unsafe { memcmp(first, second, bytes) }
}

/// What unwinding would call. Nothing unwinds: a panic ends the program.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
