//! `slat check`.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use clap::Args;
use slat_machine::trace::{self, Verdict};

use super::{Ending, Failure, print, print_json};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The trace, as `slat run --trace` writes it
    trace: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Result<Ending, Failure> {
    let name = options.trace.display();
    let failed = |error: &dyn core::fmt::Display| Failure::Other(format!("{name}: {error}"));
    let file = File::open(&options.trace).map_err(|error| failed(&error))?;
    let verdict = trace::check(BufReader::new(file)).map_err(|error| failed(&error))?;
    tell(&verdict, options.json)?;
    Ok(match verdict.violation {
        None => Ending::Good,
        Some(_) => Ending::Violation,
    })
}

fn tell(verdict: &Verdict, json: bool) -> Result<(), Failure> {
    let Verdict { records, violation } = verdict;
    if json {
        return print_json(verdict);
    }
    match violation {
        None => print(format_args!("{records} records: 0 violations\n")),
        Some(story) => print(format_args!("{records} records: 1 violation\n\n{story}\n")),
    }
}
