//! The `slat` command, as a library: its parsers and what it does, for the binary, for tests and
//! for fuzzing.
//!
//! * [`scenario::parse`] and [`layout::parse`] read what people write. They take any text and answer
//!   with values or with [`problem::Problems`]; they never panic.
//! * [`explain::explain`] says what of a layout is mapped when, in which blocks, and why not better.
//! * [`format::ROWS`] are the formats of tables that all of this can be done for.
//! * [`command`] is the command line.

#![forbid(unsafe_code)]

mod columns;
pub mod command;
pub mod explain;
pub mod format;
pub mod layout;
mod number;
pub mod problem;
mod ranges;
pub mod scenario;
mod slots;
pub mod source;
