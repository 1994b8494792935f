//! What the fuzz targets do with an input.
//!
//! Each module is one target: a function `run`, which panics if something is wrong, of an `Input`,
//! which `arbitrary` makes of any bytes, or of text or bytes as they are. The programs in `fuzz_targets` hand them to
//! libFuzzer, `tests/inputs.rs` runs them on a few thousand random inputs with an ordinary
//! compiler. `cargo xtask fuzz` runs the former.

pub mod decode_entry;
pub mod layout;
pub mod region;
pub mod scenario;
pub mod trace;
pub mod transactions;
