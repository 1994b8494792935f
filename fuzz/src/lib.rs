//! What the fuzz targets do with an input.
//!
//! Each module is one target: an `Input`, which `arbitrary` makes of any bytes, and a function
//! `run`, which panics if something is wrong. The programs in `fuzz_targets` hand them to
//! libFuzzer, `tests/inputs.rs` runs them on a few thousand random inputs with an ordinary
//! compiler. `cargo xtask fuzz` runs the former.

pub mod decode_entry;
pub mod region;
pub mod transactions;
