//! Scenarios: what `slat run` runs, read from a TOML file.
//!
//! A scenario becomes a [`Plan`] of the rig: the modelled machine, what the host has mapped, the
//! guest's slots, what the guest touches first, and what the host changes meanwhile. [`DEFAULT`] is
//! the one that is run when no file is given; it explains the keys.

mod file;

use slat_machine::rig::Plan;

use crate::format::Row;
use crate::problem::Problems;

/// The built-in scenario.
pub const DEFAULT: &str = include_str!("../examples/default.toml");

/// Reads a scenario.
///
/// # Errors
///
/// [`Problems`]: everything that is wrong with it, each with its place in `text`.
pub fn parse(text: &str) -> Result<Plan, Problems> {
    file::parse(text, None).map(|(plan, _)| plan)
}

/// Reads a scenario for tables of `format`, or if that is `None` of the format that the scenario
/// says, which is returned too.
///
/// # Errors
///
/// As of [`parse`].
pub fn parse_for(
    text: &str,
    format: Option<&'static Row>,
) -> Result<(Plan, &'static Row), Problems> {
    file::parse(text, format)
}
