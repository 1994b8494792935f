//! `slat explain`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Ending, Failure, print, print_json};
use crate::explain::{Advise, Comparison, ExamineError, Explanation, explain};
use crate::format::{Row, UnknownFormat};
use crate::layout::{self, Places};
use crate::problem::{Problem, Problems};
use crate::source::Source;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The layout: a TOML file with the host's mappings and the guest's slots
    #[arg(required_unless_present = "pid")]
    layout: Option<PathBuf>,
    /// Take the mappings of a running process instead, each as a slot at its own address
    #[arg(long, conflicts_with = "layout", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// The format of the guest's tables, whatever the layout says: see `slat formats`; or `all`, to
    /// compare what the layout costs with each
    #[arg(long, value_name = "NAME", value_parser = Formats::named)]
    format: Option<Formats>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which formats are explained.
#[derive(Debug, Clone, Copy)]
enum Formats {
    One(&'static Row),
    All,
}

impl Formats {
    fn named(name: &str) -> Result<Self, UnknownFormat> {
        if name == "all" {
            return Ok(Self::All);
        }
        Row::named(name).map(Self::One)
    }
}

pub(super) fn run(options: &Options) -> Result<Ending, Failure> {
    let format = match options.format {
        Some(Formats::All) => return compare(options),
        Some(Formats::One(row)) => Some(row),
        None => None,
    };
    let explanation = match (&options.layout, options.pid) {
        (Some(path), _) => of_file(path, format)?,
        (None, Some(pid)) => of_process(pid, format.unwrap_or_default())?,
        (None, None) => return Err(Failure::other("neither a layout nor a process is given")),
    };
    if options.json {
        print_json(&explanation)?;
    } else {
        print(&explanation)?;
    }
    Ok(Ending::Good)
}

/// The layout with every format.
fn compare(options: &Options) -> Result<Ending, Failure> {
    let Some(path) = &options.layout else {
        let why = "a process has addresses and pages of one architecture: only a layout can be \
                   compared with `--format all`";
        return Err(Failure::other(why));
    };
    let file = Source::read(path)?;
    // What is wrong whatever the format is shown with its place.
    if let Err(problems) = layout::parse(&file.text) {
        return Err(Failure::Input { file, problems });
    }
    let comparison = Comparison::of(&file.text);
    if options.json {
        print_json(&comparison)?;
    } else {
        print(&comparison)?;
    }
    Ok(Ending::Good)
}

fn of_file(path: &Path, format: Option<&'static Row>) -> Result<Explanation, Failure> {
    let file = Source::read(path)?;
    let (layout, places) = match layout::parse_with_places(&file.text, format) {
        Ok(parsed) => parsed,
        Err(problems) => return Err(Failure::Input { file, problems }),
    };
    explain(&layout, Advise::Everything).map_err(|error| refused(file, &places, &error))
}

/// What the engine refuses, shown at the line that it is about.
fn refused(file: Source, places: &Places, error: &ExamineError) -> Failure {
    let (place, help) = match error {
        ExamineError::TooManyLeaves { index, .. } => (
            &places.sizes[*index],
            "make the slot smaller, or let it have larger blocks: congruent addresses, larger \
             `pages`",
        ),
        ExamineError::Room { index, .. } => (
            &places.mappings[*index],
            "make mappings smaller, move devices together, or take another format",
        ),
        ExamineError::NoDevices { index, .. } => (
            &places.mappings[*index],
            "leave the device out, or take another format",
        ),
        error => return Failure::Other(format!("{}: {error}", file.name)),
    };
    let problem = Problem::new(place.clone(), error.to_string()).help(help);
    let problems = Problems::one(problem);
    Failure::Input { file, problems }
}

#[cfg(target_os = "linux")]
fn of_process(pid: i32, format: &'static Row) -> Result<Explanation, Failure> {
    let (layout, notes) = crate::explain::process::layout(pid, format).map_err(Failure::other)?;
    let mut explanation = explain(&layout, Advise::PagesOnly).map_err(Failure::other)?;
    explanation.notes.extend(notes);
    Ok(explanation)
}

#[cfg(not(target_os = "linux"))]
fn of_process(_: i32, _: &'static Row) -> Result<Explanation, Failure> {
    Err(Failure::other(
        "the mappings of a process can be read only on Linux, from /proc/PID/smaps",
    ))
}
