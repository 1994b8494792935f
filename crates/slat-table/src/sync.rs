//! The atomics that the crates use: `core`'s, or `loom`'s when the protocol is model-checked
//! (`--cfg slat_loom`).

#[cfg(not(slat_loom))]
pub use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(slat_loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering};

/// A number that is only reported: nothing is decided by it, and it orders nothing. So it is
/// `core`'s always: that two threads count in one order or the other would double the schedules
/// to explore, and show nothing.
pub use core::sync::atomic::AtomicU64 as Counter;
