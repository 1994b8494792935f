//! The table of regions: one row each, and below it why the region was not mapped, or not larger.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use super::{QUIET, TITLE, blocks};
use crate::size::Size;
use crate::{Kind, Region};

const HEAD: [&str; 10] = [
    "name",
    "kind",
    "gpa",
    "hpa",
    "size",
    "mapped",
    "at creation",
    "at end",
    "in blocks",
    "faults",
];

pub(super) fn write(f: &mut fmt::Formatter<'_>, regions: &[Region]) -> fmt::Result {
    writeln!(f, "\n{TITLE}Regions{TITLE:#}")?;
    let rows: Vec<_> = regions.iter().map(cells).collect();
    let widths: [usize; 10] = core::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].len());
        cells.chain([HEAD[column].len()]).max().unwrap_or_default()
    });
    write!(f, "{QUIET}")?;
    row(f, &HEAD, &widths)?;
    write!(f, "{QUIET:#}")?;
    for (region, cells) in regions.iter().zip(&rows) {
        row(f, &cells.each_ref().map(String::as_str), &widths)?;
        for reason in &region.why_not_larger {
            writeln!(f, "  {QUIET}  {reason}{QUIET:#}")?;
        }
    }
    Ok(())
}

fn cells(region: &Region) -> [String; 10] {
    let address = |value: u64| format!("{value:#014x}");
    [
        region.name.clone(),
        kind(region.kind).to_owned(),
        address(region.gpa),
        region.hpa.map_or_else(|| "-".to_owned(), address),
        Size(region.size).to_string(),
        when(region).to_owned(),
        Size(region.mapped_at_creation).to_string(),
        Size(region.mapped_bytes).to_string(),
        blocks(&region.blocks),
        region.faults.to_string(),
    ]
}

/// When something of the region was mapped first. That is what happened, which can differ from
/// what was asked for ([`Region::mapped`]).
fn when(region: &Region) -> &'static str {
    // What is mapped at the end can be nothing although faults mapped something: the host takes
    // memory away again. Where the host has nothing, no fault maps anything.
    let faulted_in = region.faults > 0 && region.kind != Kind::Hole;
    if region.mapped_at_creation > 0 {
        "at creation"
    } else if region.mapped_bytes > 0 || faulted_in {
        "on fault"
    } else {
        "never"
    }
}

/// One row of the table: numbers to the right, words to the left.
fn row(f: &mut fmt::Formatter<'_>, cells: &[&str; 10], widths: &[usize; 10]) -> fmt::Result {
    for (column, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        match column {
            4 | 6 | 7 | 9 => write!(f, "  {cell:>width$}")?,
            _ => write!(f, "  {cell:<width$}")?,
        }
    }
    writeln!(f)
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Ram => "ram",
        Kind::Device => "device",
        Kind::Revocable => "revocable",
        Kind::Rom => "rom",
        Kind::Hole => "hole",
    }
}
