//! A machine made from its manuals, and the rig that makes bugs confess.

#![forbid(unsafe_code)]

pub mod address;
mod allocator;
pub mod architecture;
pub mod arm64;
pub mod armv7;
mod barrier;
pub mod casemate;
mod entry;
pub mod ept;
pub mod event;
pub mod frames;
mod hardware;
pub mod host;
pub mod judge;
pub mod lock;
pub mod machine;
mod memory;
pub mod modelled;
pub mod npt;
pub mod platform;
pub mod power;
mod random;
pub mod rig;
pub mod riscv;
pub mod s390;
pub mod schedule;
mod speculation;
mod store;
mod tlb;
pub mod trace;
mod walk;
