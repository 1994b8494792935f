//! `slat explain`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Ending, Failure, print, print_json};
use crate::explain::{Advise, ExamineError, Explanation, explain};
use crate::layout;
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
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Result<Ending, Failure> {
    let explanation = match (&options.layout, options.pid) {
        (Some(path), _) => of_file(path)?,
        (None, Some(pid)) => of_process(pid)?,
        (None, None) => return Err(Failure::other("neither a layout nor a process is given")),
    };
    if options.json {
        print_json(&explanation)?;
    } else {
        print(&explanation)?;
    }
    Ok(Ending::Good)
}

fn of_file(path: &Path) -> Result<Explanation, Failure> {
    let file = Source::read(path)?;
    let (layout, sizes) = match layout::parse_with_places(&file.text) {
        Ok(parsed) => parsed,
        Err(problems) => return Err(Failure::Input { file, problems }),
    };
    explain(&layout, Advise::Everything).map_err(|error| match error {
        ExamineError::TooManyLeaves { index, .. } => {
            let problem = Problem::new(sizes[index].clone(), error.to_string());
            let problems = Problems::one(problem.help(
                "make the slot smaller, or let it have larger blocks: congruent addresses, \
                 larger `pages`",
            ));
            Failure::Input { file, problems }
        }
        error => Failure::Other(format!("{}: {error}", file.name)),
    })
}

#[cfg(target_os = "linux")]
fn of_process(pid: i32) -> Result<Explanation, Failure> {
    let (layout, notes) = crate::explain::process::layout(pid).map_err(Failure::other)?;
    let mut explanation = explain(&layout, Advise::PagesOnly).map_err(Failure::other)?;
    explanation.notes.extend(notes);
    Ok(explanation)
}

#[cfg(not(target_os = "linux"))]
fn of_process(_: i32) -> Result<Explanation, Failure> {
    Err(Failure::other(
        "the mappings of a process can be read only on Linux, from /proc/PID/smaps",
    ))
}
