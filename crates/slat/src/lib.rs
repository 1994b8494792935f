//! Guest memory for hypervisors: slots, preparation, faults, invalidation.
//!
//! This crate gives a guest its memory. A VMM says which guest physical addresses are backed by
//! which host virtual ones ([`Region`]); the crate keeps the second-level page tables true to
//! what the host has mapped there, and never lets the guest reach a page that the host has taken
//! back.
//!
//! * [`region`] and [`slots`]: what a VMM asks for, and the set of what it got;
//! * [`host`]: the contract with the host's memory manager, and [`notifier`]: how the host tells
//!   of its changes;
//! * [`transaction`]: creating and deleting slots, all or nothing; [`prepare`]: the checks that
//!   come first; [`report`]: what was mapped, and why not more;
//! * [`populate`]: the one path by which anything is ever mapped, whether at creation, on a
//!   fault, or ahead of one; [`vcpu`]: a vCPU's faults;
//! * [`memory`]: it all put together; [`view`]: a look at the tables;
//! * [`invalidate`]: taking pages away before the host changes them.
//!
//! A VMM's life with it: make a [`GuestMemory`], [`insert`](GuestMemory::insert) regions and read
//! what the [report](report::RegionReport) says, give each vCPU thread a [`Vcpu`] and do what the
//! [`Outcome`] of each [`fault`](Vcpu::fault) asks for; and have the host call
//! [`invalidate`](GuestMemory::invalidate) before each change of its own. The example `embed`
//! shows all of it in under 100 lines, `platform` what a machine of one's own needs.
//!
//! It is generic over the table [`Format`](slat_table::format::Format), the
//! [`Host`](host::Host) and the [`Platform`](slat_table::platform::Platform), and contains no
//! unsafe code. Comments cite the rules P1 to P14 of the protocol in ARCHITECTURE.md.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub use slat_table as table;

pub mod config;
pub mod errno;
pub mod host;
mod index;
pub mod invalidate;
pub mod memory;
pub mod notifier;
pub mod populate;
pub mod prepare;
pub mod region;
pub mod report;
pub mod slots;
pub mod stats;
#[cfg(test)]
mod testing;
pub mod transaction;
pub mod vcpu;
pub mod view;

pub use config::Config;
pub use memory::GuestMemory;
pub use region::{Region, SlotId};
pub use vcpu::{Fault, Outcome, Vcpu};
