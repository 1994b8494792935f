//! The memory report, for people and as JSON.
//!
//! The hypervisor reports counts and addresses ([`slat_report::Report`], whose docs explain each
//! field); the guest adds when its init ran. The JSON file holds the report's fields and these:
//!
//! * `init_ns`: from the guest's entry to its init in nanoseconds, or null;
//! * `guest`: what the guest said of itself, in order: a `word` and `fields` for each line;
//! * `wall_ms`: from the start of the machine to its end in milliseconds.

use core::fmt::{self, Display};
use core::time::Duration;

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use slat_report::{Blocks, Churn, Kind, Mapped, Outcome, Region, Report};

use crate::console::Marker;
use crate::guest::Run;
use crate::size::Size;

/// The report and what the guest said.
#[derive(Debug, Serialize)]
pub(crate) struct Full<'a> {
    #[serde(flatten)]
    report: Option<&'a Report>,
    init_ns: Option<u64>,
    guest: Vec<Marker>,
    wall_ms: u128,
}

impl<'a> Full<'a> {
    /// Collects what is known of `run`.
    pub(crate) fn new(run: &'a Run) -> Self {
        let report = run.report.as_ref();
        let init = report.zip(run.ticks_to_init());
        Self {
            report,
            init_ns: init.map(|(report, ticks)| nanoseconds(ticks, report.times.counter_hz)),
            guest: run.console.markers().collect(),
            wall_ms: run.elapsed.as_millis(),
        }
    }
}

/// Ticks of a counter in nanoseconds.
pub(crate) fn nanoseconds(ticks: u64, hertz: u64) -> u64 {
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(hertz.max(1));
    u64::try_from(nanoseconds).unwrap_or(u64::MAX)
}

const TITLE: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const QUIET: Style = Style::new().dimmed();

impl Display for Full<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(report) = self.report else {
            return Ok(());
        };
        writeln!(f, "{TITLE}Memory report{TITLE:#}")?;
        summary(f, report)?;
        regions(f, &report.regions)?;
        counts(f, report)?;
        times(f, report, self.init_ns)?;
        report
            .churn
            .iter()
            .try_for_each(|churn| write_churn(f, churn))
    }
}

/// One labelled line.
fn line(f: &mut fmt::Formatter<'_>, label: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "  {label:<14}{value}")
}

fn summary(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let memory = Size(report.guest_memory);
    let (ram, mmio) = (mapped(report.ram), mapped(report.mmio));
    line(
        f,
        "guest",
        format_args!("{memory} of RAM mapped {ram}, devices {mmio}"),
    )?;
    match &report.outcome {
        Outcome::Off => line(f, "ended", format_args!("{GOOD}powered off{GOOD:#}")),
        Outcome::Reset => line(f, "ended", format_args!("{BAD}reset itself{BAD:#}")),
        Outcome::Failed(why) => line(f, "ended", format_args!("{BAD}{why}{BAD:#}")),
        other => line(f, "ended", format_args!("{other:?}")),
    }
}

fn mapped(when: Mapped) -> &'static str {
    match when {
        Mapped::Create => "at creation",
        Mapped::Fault => "on fault",
    }
}

fn regions(f: &mut fmt::Formatter<'_>, regions: &[Region]) -> fmt::Result {
    writeln!(f, "\n{TITLE}Regions{TITLE:#}")?;
    let address = |value: u64| format!("{value:#014x}");
    let rows: Vec<_> = regions
        .iter()
        .map(|region| {
            [
                region.name.clone(),
                kind(region.kind).to_owned(),
                address(region.gpa),
                region.hpa.map_or_else(|| "-".to_owned(), address),
                Size(region.size).to_string(),
                mapped(region.mapped).to_owned(),
                Size(region.mapped_at_creation).to_string(),
                Size(region.mapped_bytes).to_string(),
                blocks(region.blocks),
                region.faults.to_string(),
            ]
        })
        .collect();
    let head = [
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
    let widths: [usize; 10] = core::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].len());
        cells.chain([head[column].len()]).max().unwrap_or_default()
    });
    write!(f, "{QUIET}")?;
    row(f, &head, &widths)?;
    write!(f, "{QUIET:#}")?;
    for (region, cells) in regions.iter().zip(&rows) {
        row(f, &cells.each_ref().map(String::as_str), &widths)?;
        for reason in &region.why_not_larger {
            writeln!(f, "  {QUIET}  {reason}{QUIET:#}")?;
        }
    }
    Ok(())
}

/// One row of the table of regions: numbers to the right, words to the left.
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
        _ => "other",
    }
}

/// Leaves by size, such as `3 x 2M + 5 x 4K`.
fn blocks(blocks: Blocks) -> String {
    let sizes = [
        ("1G", blocks.blocks_1g),
        ("2M", blocks.blocks_2m),
        ("4K", blocks.pages_4k),
    ];
    let parts: Vec<_> = sizes
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(size, count)| format!("{count} x {size}"))
        .collect();
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(" + ")
    }
}

fn counts(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let Report {
        faults,
        tables,
        flushes,
        notifiers,
        ..
    } = report;
    writeln!(f, "\n{TITLE}Counts{TITLE:#}")?;
    line(
        f,
        "faults",
        format_args!(
            "RAM {}, MMIO {}, permission {}, access flag {}, spurious {}, retried {}, \
             injected {}",
            faults.ram,
            faults.mmio,
            faults.permission,
            faults.access_flag,
            faults.spurious,
            faults.retried,
            faults.injected,
        ),
    )?;
    line(f, "faults made", blocks(faults.by_size))?;
    line(
        f,
        "loader",
        format_args!("populated {} frames, no faults", faults.populated_by_loader),
    )?;
    let exits = report
        .exits
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"));
    let total: u64 = report.exits.values().sum();
    line(
        f,
        "exits",
        format_args!("{total}: {}", exits.collect::<Vec<_>>().join(", ")),
    )?;
    line(
        f,
        "tables",
        format_args!(
            "{} pages, {} bytes (the format's minimum: {})",
            tables.pages, tables.bytes, tables.minimum_bytes
        ),
    )?;
    line(
        f,
        "flushes",
        format_args!(
            "{} of ranges ({} entries), {} of everything, {} local",
            flushes.ranges, flushes.entries, flushes.all, flushes.local
        ),
    )?;
    let (calls, hits) = (notifiers.invalidations, notifiers.hits);
    line(
        f,
        "notifier",
        format_args!("{calls} calls, {hits} found something to remove"),
    )
}

fn times(f: &mut fmt::Formatter<'_>, report: &Report, init_ns: Option<u64>) -> fmt::Result {
    let times = &report.times;
    writeln!(f, "\n{TITLE}Guest time from entry{TITLE:#}")?;
    if let Some(init) = init_ns {
        line(
            f,
            "to init",
            format_args!("{:.3?}", Duration::from_nanos(init)),
        )?;
    }
    line(
        f,
        "to the end",
        format_args!("{:.3?}", Duration::from_nanos(times.guest_ns)),
    )?;
    let el2 = Duration::from_nanos(nanoseconds(times.el2, times.counter_hz));
    let (percent, hundredths) = (times.el2_share_bp / 100, times.el2_share_bp % 100);
    line(
        f,
        "in EL2",
        format_args!("{el2:.3?}, {percent}.{hundredths:02} %"),
    )
}

fn write_churn(f: &mut fmt::Formatter<'_>, churn: &Churn) -> fmt::Result {
    writeln!(
        f,
        "\n{TITLE}Changes by the host under the running guest{TITLE:#}"
    )?;
    for (kind, count) in &churn.changes {
        writeln!(f, "  {count:>9}  {kind}")?;
    }
    writeln!(
        f,
        "  {:>9}  in all, {} of them migrations of 2M",
        churn.total, churn.migrations_2m
    )?;
    let Churn {
        skipped, throttled, ..
    } = churn;
    line(
        f,
        "left out",
        format_args!("{skipped} impossible, {throttled} for lack of time"),
    )?;
    let (before, after) = (churn.frames_before, churn.frames_after);
    let style = if before == after { GOOD } else { BAD };
    line(
        f,
        "free frames",
        format_args!("{style}{before} before, {after} after{style:#}"),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sample() -> Report {
        let region = |name: &str, kind, gpa, size, faults| Region {
            name: name.to_owned(),
            kind,
            gpa,
            hpa: Some(gpa + 0x800_0000),
            size,
            mapped: Mapped::Create,
            mapped_at_creation: size,
            mapped_bytes: size,
            blocks: Blocks {
                pages_4k: 1,
                blocks_2m: 2,
                blocks_1g: 0,
            },
            why_not_larger: vec!["too small for 2M".to_owned()],
            faults,
        };
        Report {
            guest_memory: 512 << 20,
            seed: Some(7),
            mmio: Mapped::Create,
            ram: Mapped::Fault,
            outcome: Outcome::Off,
            regions: vec![
                region("uart", Kind::Device, 0x900_0000, 0x1000, 0),
                region("ram", Kind::Ram, 0x4000_0000, 512 << 20, 15),
            ],
            faults: slat_report::Faults {
                ram: 15,
                ..Default::default()
            },
            exits: BTreeMap::from([("data abort".to_owned(), 15), ("psci off".to_owned(), 1)]),
            tables: slat_report::Tables {
                pages: 7,
                bytes: 28672,
                minimum_bytes: 28672,
            },
            flushes: slat_report::Flushes::default(),
            notifiers: slat_report::Notifiers::default(),
            times: slat_report::Times {
                counter_hz: 62_500_000,
                guest_ns: 2_500_000_000,
                el2: 625_000,
                el2_share_bp: 104,
                ..Default::default()
            },
            churn: Some(Churn {
                changes: BTreeMap::from([("migrate 2M".to_owned(), 3)]),
                total: 3,
                migrations_2m: 3,
                frames_before: 10,
                frames_after: 9,
                ..Default::default()
            }),
            model: None,
        }
    }

    fn full(report: &Report) -> Full<'_> {
        Full {
            report: Some(report),
            init_ns: Some(1_500_000_000),
            guest: Vec::new(),
            wall_ms: 3000,
        }
    }

    #[test]
    fn the_table_of_regions_is_aligned() {
        let report = sample();
        let text = anstream::adapter::strip_str(&full(&report).to_string()).to_string();
        let position = |name: &str, word: &str| {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(name))
                .unwrap();
            line.find(word)
                .unwrap_or_else(|| panic!("no `{word}` in `{line}`"))
        };
        assert_eq!(position("name", "gpa"), position("uart", "0x000009000000"));
        assert_eq!(position("name", "gpa"), position("ram ", "0x000040000000"));
        assert_eq!(position("name", "hpa"), position("ram ", "0x000048000000"));
        for expected in [
            "512M of RAM mapped on fault, devices at creation",
            "2 x 2M + 1 x 4K",
            "16: data abort 15, psci off 1",
            "to init       1.500s",
            "in EL2        10.000ms, 1.04 %",
            "10 before, 9 after",
        ] {
            assert!(text.contains(expected), "no `{expected}` in\n{text}");
        }
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let report = sample();
        let json = serde_json::to_value(full(&report)).unwrap();
        assert_eq!(json["guest_memory"], 512 << 20);
        assert_eq!(json["regions"][1]["faults"], 15);
        assert_eq!(json["init_ns"], 1_500_000_000_u64);
        assert_eq!(json["outcome"], "off");
    }
}
