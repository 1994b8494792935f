//! What one layout costs with the tables of every format, side by side.
//!
//! Each format is examined twice: as the layout says, with what can be mapped at creation mapped
//! then, and with nothing mapped before the guest touches it.

use core::fmt::{self, Display};

use serde::Serialize;
use slat_report::Flushes;
use slat_report::size::Size;

use super::engine::{Facts, PartFacts, SlotFacts, examine};
use super::error::ExamineError;
use crate::columns::columns;
use crate::format::{ROWS, Row};
use crate::layout::{self, Layout};

/// A layout with the tables of every format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// The formats that can have it, in the order of [`ROWS`].
    pub formats: Vec<Cost>,
    /// The formats that cannot.
    pub left_out: Vec<LeftOut>,
}

/// What a layout costs with one format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cost {
    /// The format.
    pub format: &'static str,
    /// Width of a guest physical address in bits.
    pub address_bits: u8,
    /// Levels of tables.
    pub levels: usize,
    /// Entries that map memory, once everything is mapped.
    pub entries: u64,
    /// How many of them lie in runs.
    pub entries_in_runs: u64,
    /// Bytes of all tables then.
    pub table_bytes: u64,
    /// With what can be mapped at creation mapped then.
    pub at_creation: Life,
    /// With nothing mapped before it is touched.
    pub on_fault: Life,
    /// TLB maintenance when the host takes every mapping away, one after the other. Entries have
    /// then been mapped in either way.
    pub removal_flushes: Flushes,
}

/// What it costs to have everything mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Life {
    /// Faults of a guest that touches everything.
    pub faults: u64,
    /// TLB maintenance until then.
    pub flushes: Flushes,
}

/// A format that cannot have a layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// The format.
    pub format: &'static str,
    /// Why not.
    pub reason: String,
}

impl Comparison {
    /// The layout in `text` with the tables of every format. What the file says of its own format
    /// does not count.
    pub fn of(text: &str) -> Self {
        let mut comparison = Self {
            formats: Vec::new(),
            left_out: Vec::new(),
        };
        for row in ROWS {
            match cost(text, row) {
                Ok(cost) => comparison.formats.push(cost),
                Err(reason) => comparison.left_out.push(LeftOut {
                    format: row.name(),
                    reason,
                }),
            }
        }
        comparison
    }
}

fn cost(text: &str, format: &'static Row) -> Result<Cost, String> {
    let parsed = layout::parse_with_places(text, Some(format));
    let (layout, _) = parsed.map_err(|problems| problems.to_string())?;
    let mut late = layout.clone();
    for slot in &mut late.slots {
        slot.on_fault = true;
    }
    both(&layout, &late).map_err(|error| error.to_string())
}

fn both(layout: &Layout, late: &Layout) -> Result<Cost, ExamineError> {
    let (facts, late) = (examine(layout)?, examine(late)?);
    let geometry = layout.format.geometry(layout.address_bits);
    Ok(Cost {
        format: layout.format.name(),
        address_bits: layout.address_bits,
        levels: geometry.map_or(0, |geometry| geometry.root().index() + 1),
        entries: facts.slots.iter().map(SlotFacts::entries).sum(),
        entries_in_runs: parts(&facts).map(|part| part.in_runs).sum(),
        table_bytes: facts.table_bytes,
        at_creation: life(&facts),
        on_fault: life(&late),
        removal_flushes: facts.removal_flushes,
    })
}

fn parts(facts: &Facts) -> impl Iterator<Item = &PartFacts> {
    facts.slots.iter().flat_map(|slot| &slot.parts)
}

fn life(facts: &Facts) -> Life {
    Life {
        faults: parts(facts).map(|part| part.faults).sum(),
        flushes: facts.flushes,
    }
}

/// The head of the table.
const HEAD: [[&str; 10]; 2] = [
    [
        "",
        "",
        "",
        "",
        "in",
        "",
        "faults,",
        "faults,",
        "own flushes,",
        "flushes,",
    ],
    [
        "format",
        "bits",
        "levels",
        "entries",
        "runs",
        "tables",
        "at creation",
        "on fault",
        "creation/fault",
        "taken away",
    ],
];

impl Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = self.formats.iter().map(cells).collect();
        f.write_str(&columns(&HEAD, &rows, &[]))?;
        for LeftOut { format, reason } in &self.left_out {
            writeln!(f, "{format} is left out: {reason}")?;
        }
        Ok(())
    }
}

fn cells(cost: &Cost) -> [String; 10] {
    let removal = &cost.removal_flushes;
    let taken = match (removal.entries, removal.all) {
        (0, all) => format!("all x {all}"),
        (entries, 0) => entries.to_string(),
        (entries, all) => format!("{entries} + all x {all}"),
    };
    [
        cost.format.to_owned(),
        cost.address_bits.to_string(),
        cost.levels.to_string(),
        cost.entries.to_string(),
        cost.entries_in_runs.to_string(),
        Size(cost.table_bytes).to_string(),
        cost.at_creation.faults.to_string(),
        cost.on_fault.faults.to_string(),
        format!(
            "{}/{}",
            cost.at_creation.flushes.local, cost.on_fault.flushes.local
        ),
        taken,
    ]
}
