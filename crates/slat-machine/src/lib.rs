//! A machine made from its manuals, and the rig that makes bugs confess.

#![forbid(unsafe_code)]

pub mod address;
mod allocator;
pub mod architecture;
pub mod arm64;
mod barrier;
pub mod casemate;
pub mod event;
mod hardware;
pub mod judge;
pub mod machine;
mod memory;
mod random;
mod speculation;
mod store;
mod tlb;
pub mod trace;
mod walk;
