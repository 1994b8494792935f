//! `slat formats`.

use clap::Args;

use super::{Ending, Failure, print, print_json};
use crate::format::{About, ROWS, Row};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Result<Ending, Failure> {
    let all: Vec<_> = ROWS.iter().map(Row::about).collect();
    if options.json {
        print_json(&all)?;
    } else {
        print(About::table(&all))?;
    }
    Ok(Ending::Good)
}
