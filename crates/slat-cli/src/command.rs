//! The command line: what there is to do, and how it ends.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done; nothing was found |
//! | 1 | a violation was found |
//! | 2 | the input is bad, or something could not be read or written |

mod check;
mod explain;
mod formats;
mod manual;
mod run;

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{Parser, Subcommand};

use crate::problem::Problems;
use crate::source::{Source, SourceError};

const EXAMPLES: &str = "\
Examples:
  slat run                                  the built-in scenario: a VM on a hostile machine
  slat run --print-default > vm.toml        the same as a file, to change
  slat run vm.toml --seed 7 --trace vm.trace
  slat check vm.trace                       judge what happened, again
  slat explain layout.toml                  what is mapped when, why not in larger blocks
  slat explain --pid $$                     the same of a running process
  slat explain layout.toml --format ept-4   the same with the tables of another architecture
  slat explain layout.toml --format all     what it costs with each of them
  slat formats                              which there are

Exit codes: 0 nothing was found, 1 a violation was found, 2 the input is bad or something could \
not be read or written.";

/// Second-level address translation: run it, explain it, check it
#[derive(Debug, Parser)]
#[command(name = "slat", version, after_help = EXAMPLES)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a VM on a modelled machine with hostile TLBs, and judge every access
    Run(run::Options),
    /// Explain what of a memory layout would be mapped when, and why not better
    Explain(explain::Options),
    /// List the formats that a guest's tables can have
    Formats(formats::Options),
    /// Judge a trace
    Check(check::Options),
    /// Print a completion script for a shell
    Completions(manual::Options),
    /// Print the manual page
    Man,
}

/// How a command that did its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Nothing was found.
    Good,
    /// A violation was found.
    Violation,
}

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Bad lines in a file.
    #[error("{}", .problems.render(.file))]
    Input { file: Source, problems: Problems },
    /// A file that cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Whatever else; the text says what.
    #[error("{0}")]
    Other(String),
    /// Nobody reads what is printed any more.
    #[error("nobody reads the output")]
    OutputClosed,
}

impl Failure {
    fn other(error: impl fmt::Display) -> Self {
        Self::Other(error.to_string())
    }
}

/// Runs the command that the process's arguments ask for.
pub fn main() -> ExitCode {
    match execute(&Line::parse().command) {
        // A reader that has seen enough (`| head`) is no failure.
        Ok(Ending::Good) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Ok(Ending::Violation) => ExitCode::from(1),
        Err(failure) => {
            complain(&failure);
            ExitCode::from(2)
        }
    }
}

fn execute(command: &Command) -> Result<Ending, Failure> {
    match command {
        Command::Run(options) => run::run(options),
        Command::Explain(options) => explain::run(options),
        Command::Formats(options) => formats::run(options),
        Command::Check(options) => check::run(options),
        Command::Completions(options) => manual::completions(options),
        Command::Man => manual::page(),
    }
}

/// Says what failed. What concerns lines of a file is shown with them.
fn complain(failure: &Failure) {
    let style: Style = AnsiColor::Red.on_default().bold();
    let mut out = anstream::stderr().lock();
    let said = match failure {
        Failure::Input { .. } => write!(out, "{failure}"),
        _ => writeln!(out, "{style}error{style:#}: {failure}"),
    };
    // Where even this cannot be said, the exit code says it.
    drop(said);
}

/// Prints `text`, with its styles only on a terminal.
fn print(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    let written = write!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::Other(format!("standard output: {error}")),
    })
}

/// Prints `value` as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::other)?;
    print(text + "\n")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Line::command().debug_assert();
    }
}
