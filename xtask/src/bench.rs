//! `cargo xtask bench`: what the operations of the engine cost, counted in instructions.
//!
//! Instructions are counted by callgrind, exactly and alike on every run, so a figure can be held
//! against a budget where a time could not. The program `slat-bench` carries one operation out
//! inside one function; what callgrind counts there, less what an empty operation costs, is the
//! figure, and for operations on ranges it is divided by their pages.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use crate::host;
use crate::journal::{Journal, capture};
use crate::workspace::Workspace;

/// Options of `cargo xtask bench`.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Fail if a figure is above its budget
    #[arg(long)]
    check: bool,

    /// Print the figures as JSON
    #[arg(long)]
    json: bool,

    /// Formats to count, by name; `all` for every one
    #[arg(value_name = "FORMAT", default_values = FORMATS)]
    formats: Vec<String>,
}

/// The formats that budgets are for.
const FORMATS: [&str; 3] = ["arm64-4k", "ept-4", "sv39x4"];

/// An operation and what it may cost.
struct Budget {
    operation: &'static str,
    about: &'static str,
    /// Instructions, for a page.
    most: f64,
}

/// What ARCHITECTURE.md ("Budgets") explains.
const BUDGETS: [Budget; 7] = [
    Budget {
        operation: "install-page",
        about: "put one page into an existing table, its lock included",
        most: 120.0,
    },
    Budget {
        operation: "map-page",
        about: "the same, encoded and checked against changes of the host",
        most: 165.0,
    },
    Budget {
        operation: "map-range",
        about: "map a range, for each page",
        most: 12.0,
    },
    Budget {
        operation: "unmap-range",
        about: "unmap a range, for each page",
        most: 2.0,
    },
    Budget {
        operation: "translate",
        about: "translate one address, its lock included",
        most: 95.0,
    },
    Budget {
        operation: "fault",
        about: "a fault, from looking up the slot to the installed leaf",
        most: 350.0,
    },
    Budget {
        operation: "invalidate-no-slot",
        about: "an invalidation that meets no slot",
        most: 60.0,
    },
];

/// What one operation costs in one format.
#[derive(Debug, Serialize)]
struct Figure {
    format: String,
    operation: &'static str,
    about: &'static str,
    /// For a page.
    instructions: f64,
    budget: f64,
}

/// What `cargo xtask test` runs: every format that has budgets, held against them.
pub(crate) fn check(workspace: &Workspace, journal: &Journal) -> Result<String> {
    let options = Options {
        check: true,
        json: false,
        formats: FORMATS.map(str::to_owned).to_vec(),
    };
    let figures = run(workspace, &options, journal)?;
    Ok(format!("{figures} figures, each within its budget"))
}

impl Figure {
    fn is_within(&self) -> bool {
        self.instructions <= self.budget
    }
}

/// Counts, prints, and compares with the budgets if asked. Says how many figures there are.
pub(crate) fn run(workspace: &Workspace, options: &Options, journal: &Journal) -> Result<usize> {
    let program = build(workspace, journal)?;
    let valgrind = valgrind(journal)?;
    let known = capture(Command::new(&program).arg("--list"))?;
    let formats = chosen(&options.formats, known.lines().nth(1).unwrap_or_default())?;
    let mut figures = Vec::new();
    for format in formats {
        let count = |operation| count(&valgrind, &program, operation, &format);
        let (nothing, _) = count("nothing")?;
        for budget in &BUDGETS {
            let (instructions, pages) = count(budget.operation)?;
            #[expect(clippy::cast_precision_loss, reason = "both are far below 2^52")]
            let each = instructions.saturating_sub(nothing) as f64 / pages as f64;
            let figure = Figure {
                format: format.clone(),
                operation: budget.operation,
                about: budget.about,
                instructions: each,
                budget: budget.most,
            };
            if !options.json {
                journal.say(line(&figure));
            }
            figures.push(figure);
        }
    }
    if options.json {
        journal.say(serde_json::to_string_pretty(&figures)?);
    }
    let above = figures.iter().filter(|figure| !figure.is_within()).count();
    ensure!(
        !options.check || above == 0,
        "{above} of {} figures are above their budgets",
        figures.len()
    );
    Ok(figures.len())
}

fn line(figure: &Figure) -> String {
    let (colour, word) = if figure.is_within() {
        (anstyle::AnsiColor::Green, "within")
    } else {
        (anstyle::AnsiColor::Red, "above ")
    };
    let style = colour.on_default();
    format!(
        "{:<16} {:<19} {:>8.1} {style}{word}{style:#} {:>4}  {}",
        figure.format, figure.operation, figure.instructions, figure.budget, figure.about
    )
}

/// The formats asked for, of those that the program knows.
fn chosen(asked: &[String], known: &str) -> Result<Vec<String>> {
    if asked.iter().any(|name| name == "all") {
        return Ok(known.split_whitespace().map(str::to_owned).collect());
    }
    for name in asked {
        ensure!(
            known.split_whitespace().any(|known| known == name),
            "no format `{name}`: there are {known}"
        );
    }
    Ok(asked.to_vec())
}

fn build(workspace: &Workspace, journal: &Journal) -> Result<std::path::PathBuf> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--quiet", "--release", "--package=slat-bench"]);
    journal.run(&mut cargo)?;
    Ok(workspace.target.join("release/slat-bench"))
}

fn valgrind(journal: &Journal) -> Result<std::path::PathBuf> {
    if let Some(valgrind) = host::find_program("valgrind") {
        return Ok(valgrind);
    }
    host::install(&["valgrind"], journal)?;
    host::find_program("valgrind").context("there is no valgrind; install it")
}

/// Instructions inside the measured function, and the pages that they were for.
fn count(
    valgrind: &std::path::Path,
    program: &std::path::Path,
    operation: &str,
    format: &str,
) -> Result<(u64, u64)> {
    let output = Command::new(valgrind)
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=slat_bench::count::measured*")
        .arg(program)
        .args([operation, format])
        .output()
        .context("cannot run valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("counting {operation} in {format} failed:\n{said}");
    }
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .and_then(|(_, number)| number.trim().parse().ok())
        .filter(|&instructions: &u64| instructions != 0)
        .with_context(|| format!("callgrind counted nothing:\n{said}"))?;
    let pages = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    Ok((collected, pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_format_is_an_error_that_names_the_known_ones() {
        let asked = ["arm64-4k".to_owned(), "vax".to_owned()];
        let error = chosen(&asked, "arm64-4k ept-4").unwrap_err().to_string();
        assert!(error.contains("vax") && error.contains("ept-4"), "{error}");
        let all = chosen(&["all".to_owned()], "arm64-4k ept-4").unwrap();
        assert_eq!(all, ["arm64-4k", "ept-4"]);
    }

    #[test]
    fn a_figure_above_its_budget_says_so() {
        let figure = |instructions| Figure {
            format: "arm64-4k".to_owned(),
            operation: "translate",
            about: "translate one address",
            instructions,
            budget: 40.0,
        };
        assert!(line(&figure(40.0)).contains("within"));
        assert!(line(&figure(40.1)).contains("above"));
    }
}
