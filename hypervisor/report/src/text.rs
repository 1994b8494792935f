//! The report for people.
//!
//! [`Text`] displays a [`Report`] in sections, with styles as escape sequences: print it through
//! something that removes those where they are not wanted (`anstream`). Sections about what a run
//! did not have (a counter, a loader, churn) are left out.

mod regions;

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Display};
use core::time::Duration;

use anstyle::{AnsiColor, Style};

use crate::size::Size;
use crate::{Blocks, Churn, Mapped, Model, Outcome, Report, Times};

const TITLE: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const QUIET: Style = Style::new().dimmed();

/// Displays a report.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    report: &'a Report,
    to_init: Option<Duration>,
}

impl<'a> Text<'a> {
    /// The text of `report`.
    pub const fn new(report: &'a Report) -> Self {
        Self {
            report,
            to_init: None,
        }
    }

    /// Says also how long the guest took to its init, if that is known.
    #[must_use]
    pub const fn to_init(mut self, time: Option<Duration>) -> Self {
        self.to_init = time;
        self
    }
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        writeln!(f, "{TITLE}Memory report{TITLE:#}")?;
        summary(f, report)?;
        regions::write(f, &report.regions)?;
        counts(f, report)?;
        if report.times.counter_hz != 0 {
            times(f, &report.times, self.to_init)?;
        }
        if let Some(churn) = &report.churn {
            write_churn(f, churn)?;
        }
        if let Some(model) = &report.model {
            write_model(f, model)?;
        }
        Ok(())
    }
}

/// Leaves by size, such as `3 x 2M + 5 x 4K`, or `-` if there are none.
pub fn blocks(blocks: &Blocks) -> String {
    let parts: Vec<_> = blocks
        .largest_first()
        .map(|(bytes, count)| format!("{count} x {}", Size(bytes)))
        .collect();
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(" + ")
    }
}

/// Ticks of a counter in nanoseconds. A counter that stands still is taken to tick once a second.
pub fn nanoseconds(ticks: u64, hertz: u64) -> u64 {
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(hertz.max(1));
    u64::try_from(nanoseconds).unwrap_or(u64::MAX)
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
        // A modelled guest runs for its number of steps, and has no power to switch off.
        Outcome::Off if report.model.is_some() => {
            line(f, "ended", format_args!("{GOOD}after its steps{GOOD:#}"))
        }
        Outcome::Off => line(f, "ended", format_args!("{GOOD}powered off{GOOD:#}")),
        Outcome::Reset => line(f, "ended", format_args!("{BAD}reset itself{BAD:#}")),
        Outcome::Failed(why) => line(f, "ended", format_args!("{BAD}{why}{BAD:#}")),
    }
}

fn mapped(when: Mapped) -> &'static str {
    match when {
        Mapped::Create => "at creation",
        Mapped::Fault => "on fault",
    }
}

fn counts(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    writeln!(f, "\n{TITLE}Counts{TITLE:#}")?;
    faults(f, report)?;
    if !report.exits.is_empty() {
        let exits = report.exits.iter();
        let exits: Vec<_> = exits
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        let total: u64 = report.exits.values().sum();
        line(f, "exits", format_args!("{total}: {}", exits.join(", ")))?;
    }
    let tables = &report.tables;
    line(
        f,
        "tables",
        format_args!(
            "{} pages, {} bytes (the format's minimum: {})",
            tables.pages, tables.bytes, tables.minimum_bytes
        ),
    )?;
    let flushes = &report.flushes;
    line(
        f,
        "flushes",
        format_args!(
            "{} of ranges ({} entries), {} of everything, {} local",
            flushes.ranges, flushes.entries, flushes.all, flushes.local
        ),
    )?;
    let (calls, hits) = (report.notifiers.invalidations, report.notifiers.hits);
    line(
        f,
        "notifier",
        format_args!("{calls} calls, {hits} found something to remove"),
    )
}

fn faults(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let faults = &report.faults;
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
    line(f, "faults made", blocks(&faults.by_size))?;
    match faults.populated_by_loader {
        0 => Ok(()),
        frames => line(
            f,
            "loader",
            format_args!("populated {frames} frames, no faults"),
        ),
    }
}

fn times(f: &mut fmt::Formatter<'_>, times: &Times, to_init: Option<Duration>) -> fmt::Result {
    writeln!(f, "\n{TITLE}Guest time from entry{TITLE:#}")?;
    if let Some(init) = to_init {
        line(f, "to init", format_args!("{init:.3?}"))?;
    }
    let guest = Duration::from_nanos(times.guest_ns);
    line(f, "to the end", format_args!("{guest:.3?}"))?;
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

fn write_model(f: &mut fmt::Formatter<'_>, model: &Model) -> fmt::Result {
    writeln!(f, "\n{TITLE}Model{TITLE:#}")?;
    line(f, "seed", model.seed)?;
    line(
        f,
        "CPUs",
        format_args!(
            "{} run the guest, {} the host",
            model.guest_cpus, model.host_cpus
        ),
    )?;
    line(f, "steps", model.steps)?;
    line(f, "accesses", model.accesses)
}

#[cfg(test)]
mod tests;
