//! `slat run`.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;
use slat_machine::rig::{self, Outcome, Plan};
use slat_report::Report;
use slat_report::text::Text;

use super::{Ending, Failure, print, print_json};
use crate::format::{Row, UnknownFormat};
use crate::scenario;
use crate::source::Source;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The scenario: a TOML file; without one, the built-in scenario is run
    scenario: Option<PathBuf>,
    /// The format of the guest's tables, whatever the scenario says: see `slat formats`
    #[arg(long, value_name = "NAME", value_parser = Row::named)]
    format: Option<&'static Row>,
    /// Where every choice of the machine, the guest and the host comes from; from the clock if
    /// left out, and printed
    #[arg(long)]
    seed: Option<u64>,
    /// Run so many steps, whatever the scenario says
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Write all that happens to this file, one JSON record a line, for `slat check`
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the built-in scenario and do nothing
    #[arg(long, conflicts_with_all = ["scenario", "format", "seed", "steps", "trace", "json"])]
    print_default: bool,
}

/// What is printed with `--json`.
#[derive(Debug, Serialize)]
struct Full<'a> {
    #[serde(flatten)]
    report: &'a Report,
    violations: u32,
    /// What was wrong, as a story; null if nothing was.
    finding: Option<&'a str>,
}

pub(super) fn run(options: &Options) -> Result<Ending, Failure> {
    if options.print_default {
        print(scenario::DEFAULT)?;
        return Ok(Ending::Good);
    }
    let (mut plan, format) = plan(options.scenario.as_deref(), options.format)?;
    if let Some(steps) = options.steps {
        plan.steps = steps;
    }
    let seed = options.seed.unwrap_or_else(seed_from_clock);
    let named = rig::Row::named(format.name());
    let watched = rig::Options {
        format: named.ok_or_else(|| Failure::other(UnknownFormat(format.name().to_owned())))?,
        seed,
        trace: options.trace.clone(),
        ..rig::Options::default()
    };
    let outcome = rig::run(&plan, &watched).map_err(Failure::other)?;
    tell(&outcome, options.json)?;
    Ok(match outcome.finding {
        None => Ending::Good,
        Some(_) => Ending::Violation,
    })
}

/// The scenario's plan, and the format to run it with.
fn plan(
    path: Option<&Path>,
    format: Option<&'static Row>,
) -> Result<(Plan, &'static Row), Failure> {
    let file = match path {
        Some(path) => Source::read(path)?,
        None => Source {
            name: "the built-in scenario".to_owned(),
            text: scenario::DEFAULT.to_owned(),
        },
    };
    scenario::parse_for(&file.text, format).map_err(|problems| Failure::Input { file, problems })
}

fn tell(outcome: &Outcome, json: bool) -> Result<(), Failure> {
    let Outcome {
        report, finding, ..
    } = outcome;
    if json {
        return print_json(&Full {
            report,
            violations: finding.is_some().into(),
            finding: finding.as_deref(),
        });
    }
    print(Text::new(report))?;
    match finding {
        None => print("\n0 violations\n"),
        Some(story) => print(format_args!("\n1 violation\n\n{story}\n")),
    }
}

/// Any number; it is printed with the report, so that the run can be repeated.
fn seed_from_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |time| time.as_secs())
}
