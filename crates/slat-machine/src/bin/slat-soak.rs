//! Runs slat on the machine model for as long as one likes, each run drawn from another seed.

use core::error::Error;
use core::num::NonZero;
use core::time::Duration;
use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal as _, Write as _, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use clap::Parser;
use slat_machine::event::{Event, Record};
use slat_machine::rig::draw::{self, Drawn};
use slat_machine::rig::soak::{Limits, Totals, soak};
use slat_machine::rig::{self, Row, formats};
use slat_machine::{casemate, trace};

/// Runs slat's whole stack on a modelled machine with hostile TLBs, a guest that accesses memory
/// and a host that takes it away, and has a judge watch. Each seed is another run.
///
/// Ends with 0 if nothing was found, with 1 and the story of what was, with 2 if a run cannot be
/// set up.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// The format of the guest's tables, or `all`, which then take turns.
    #[arg(long, default_value = "arm64-4k", value_name = "NAME", value_parser = formats_called)]
    format: Formats,

    /// Go on for so many seconds.
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,

    /// Stop after so many steps of the machine, summed over all runs of a format.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// Run at least so many seeds, those of all formats together, however long that takes.
    #[arg(long, default_value_t = 100, value_name = "N")]
    seeds: u64,

    /// The first seed; the others follow it.
    #[arg(long, default_value_t = 1, value_name = "N")]
    first_seed: u64,

    /// Run this seed alone.
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "steps", "first_seed", "jobs"])]
    seed: Option<u64>,

    /// With --seed: draw a plan whose trace external checkers can follow.
    #[arg(long, requires = "seed", conflicts_with = "format")]
    for_export: bool,

    /// With --seed: write its trace here, one record a line.
    #[arg(long, value_name = "FILE", requires = "seed")]
    trace: Option<PathBuf>,

    /// With --trace: write the trace here too, as the external checker casemate reads it. The run is
    /// judged when it is over, so that both see all of it. Goes with --for-export: of other plans
    /// there is more than the checker can be told.
    #[arg(long, value_name = "FILE", requires = "trace", requires = "for_export")]
    casemate: Option<PathBuf>,

    /// Runs at once; as many as there are cores if not given.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,

    /// Say now and then how far it is, where standard error is a terminal.
    #[arg(long)]
    progress: bool,
}

/// The formats to run.
#[derive(Clone, Debug)]
struct Formats(Vec<&'static Row>);

fn formats_called(name: &str) -> Result<Formats, String> {
    if name == "all" {
        return Ok(Formats(formats::ROWS.iter().collect()));
    }
    let known = || formats::ROWS.iter().map(Row::name).collect::<Vec<_>>();
    let row = Row::named(name).ok_or_else(|| format!("known are {}, all", known().join(", ")))?;
    Ok(Formats(vec![row]))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let formats = &arguments.format.0;
    let found = match arguments.seed {
        Some(seed) => formats.iter().try_fold(false, |found, format| {
            Ok(one(format, seed, &arguments)? || found)
        }),
        None => many(&arguments),
    };
    match found {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(1),
        Err(error) => {
            eprintln!("slat-soak: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs one seed. Returns whether something was found.
fn one(format: &'static Row, seed: u64, arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let Drawn { plan, mut options } = if arguments.for_export {
        draw::draw_for_export(seed)
    } else {
        draw::draw(format, seed)
    };
    options.trace.clone_from(&arguments.trace);
    options.unjudged = arguments.casemate.is_some();
    let began = Instant::now();
    let outcome = rig::run(&plan, &options)?;
    let seconds = began.elapsed().as_secs_f64();
    let mut finding = outcome.finding;
    if let (Some(trace), Some(to)) = (&arguments.trace, &arguments.casemate) {
        export(trace, to)?;
        let verdict = trace::check(BufReader::new(File::open(trace)?))?;
        let violation = verdict.violation.map(|violation| violation.to_string());
        finding = violation.or(finding);
    }
    if let Some(story) = &finding {
        println!("{story}");
    }
    let model = outcome.report.model.unwrap_or_default();
    let found = u8::from(finding.is_some());
    println!(
        "{format:?}, seed {seed}: {} steps, {} accesses: {found} violations in {seconds:.1} s",
        model.steps, model.accesses
    );
    Ok(finding.is_some())
}

/// Writes the trace in `from` to `to`, as casemate reads it. Locks are left out: it knows neither
/// readers that share one nor a table's stripes all held at once, and its lock discipline is off
/// for such traces anyway.
fn export(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let records = trace::read(BufReader::new(File::open(from)?));
    let records: Vec<Record> = records.collect::<Result<_, _>>()?;
    let is_lock = |event: &Event| matches!(event, Event::Locked { .. } | Event::Unlocked { .. });
    let told = records.iter().filter(|record| !is_lock(&record.event));
    casemate::export(told, BufWriter::new(File::create(to)?))?;
    Ok(())
}

/// Runs many seeds. Returns whether something was found.
fn many(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let limits = Limits {
        formats: arguments.format.0.clone(),
        first_seed: arguments.first_seed,
        least_seeds: arguments.seeds,
        time: Duration::from_secs(arguments.seconds),
        steps: arguments.steps,
        jobs: arguments.jobs.unwrap_or(cores),
    };
    let talks = arguments.progress && stderr().is_terminal();
    let last = Mutex::new(Instant::now());
    let progress = |totals: &Totals| {
        let Ok(mut last) = last.lock() else { return };
        if talks && last.elapsed() >= Duration::from_secs(1) {
            *last = Instant::now();
            // Nothing is lost if a terminal does not take it.
            _ = write!(stderr(), "\r{totals} ");
        }
    };
    let soaked = soak(&limits, &progress)?;
    if talks {
        eprintln!();
    }
    if let Some((_, story)) = &soaked.finding {
        println!("{story}");
    }
    let Totals {
        accesses,
        faults,
        changes,
        ..
    } = soaked.totals();
    if soaked.formats.len() > 1 {
        for (format, totals) in &soaked.formats {
            println!("{format:?}: {totals}");
        }
    }
    println!("{accesses} accesses, {faults} faults, {changes} changes of the host");
    println!("{soaked}");
    Ok(soaked.finding.is_some())
}
