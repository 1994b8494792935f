//! What the x86 payloads share.
//!
//! [`start`] is firmware and start-up code in one: the emulator loads the image to 1 MiB and the
//! ROM below 4 GiB, and `main` begins in 64-bit mode with the lowest 4 GiB mapped one to one.
//! [`cpu`] wraps the instructions that have no name in Rust, [`guest`] is what the guest needs to
//! run.

#![no_std]
#![expect(
    clippy::cast_possible_truncation,
    reason = "pointers have 64 bits, and registers are split into halves on purpose"
)]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "steps of one sequence on the CPU are justified together"
)]

pub mod cpu;
pub mod guest;
pub mod start;

use slat_oracle_physical as physical;

/// The script, at the start of a ROM that ends with our own, and whatever comes behind it.
/// `xtask/src/oracle/x86.rs` knows the place too.
pub fn script() -> &'static [u8] {
    // SAFETY: the ROM is there.
    unsafe { physical::script(0xffe0_0000, 0x1f_0000) }
}
