//! The parts of the hypervisor that need no hardware: what they decide depends on their arguments
//! alone, so they are tested on any machine.
//!
//! * [`options`] reads the hypervisor's command line,
//! * [`machine`] reads the device tree of the machine that the hypervisor runs on,
//! * [`division`] says what the machine's memory is used for,
//! * [`image`] reads the header of the guest's kernel,
//! * [`layout`] says where in the guest's memory kernel, initramfs and device tree go,
//! * [`guest_tree`] builds the device tree that the guest gets,
//! * [`syndrome`] says what an exit from the guest means, and builds the one the guest gets back,
//! * [`psci`] answers the guest's firmware calls,
//! * [`plan`] draws the next change that churn makes,
//! * [`random`] makes the same choices from the same seed.
//!
//! Everything that touches a register or a device is in the program (`main.rs` and `el2/`).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod division;
pub mod guest_tree;
pub mod image;
pub mod layout;
pub mod machine;
pub mod options;
pub mod plan;
pub mod psci;
pub mod random;
pub mod span;
pub mod syndrome;
#[cfg(test)]
mod testing;
