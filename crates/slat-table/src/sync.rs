//! The atomics that the crates use: `core`'s, or `loom`'s when the protocol is model-checked
//! (`--cfg slat_loom`).

#[cfg(not(slat_loom))]
pub use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(slat_loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering};
