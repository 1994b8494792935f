//! What a bare-metal oracle is asked, and what it answers.
//!
//! An oracle lets an MMU that somebody else wrote judge our tables. A host program writes a
//! [`script`]: memory to fill, registers to load, guest accesses to try. The emulator loads
//! the script into the memory of a machine, where a small payload carries it out action by action
//! and reports what the MMU did, one [line of text](answer) for each question. The payload judges
//! nothing: registers go into the report as the hardware left them, and the host program compares.
//!
//! Scripts are little-endian and answers are text whatever the machine is.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(feature = "std", test))]
extern crate std;

pub mod answer;
pub mod payload;
pub mod script;
pub mod tree;
