//! A machine made from its manuals, and the rig that makes bugs confess.

#![forbid(unsafe_code)]

pub mod address;
mod allocator;
pub mod architecture;
pub mod arm64;
mod barrier;
pub mod casemate;
pub mod event;
pub mod frames;
mod hardware;
pub mod host;
pub mod judge;
pub mod lock;
pub mod machine;
mod memory;
pub mod platform;
mod random;
pub mod rig;
pub mod schedule;
mod speculation;
mod store;
mod tlb;
pub mod trace;
mod walk;
