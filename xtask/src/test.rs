//! `cargo xtask test`: every check that the project has, one line for each.
//!
//! Checks run one after the other, since some of them measure time. What a check prints goes into
//! its own log below the target directory; the end of it is shown if the check fails. The last
//! line is `N passed, N failed`.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;

use crate::bench;
use crate::boots;
use crate::journal::Journal;
use crate::mutants;
use crate::omissions;
use crate::oracle;
use crate::soak;
use crate::toolchain::BareMetal;
use crate::workspace::Workspace;

/// Options of `cargo xtask test`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run only checks whose name contains one of these words
    #[arg(long, value_name = "WORD,...", value_delimiter = ',')]
    only: Vec<String>,

    /// List the checks and run none
    #[arg(long)]
    list: bool,

    /// Seeds of the boots under churn
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "1,2,3"
    )]
    pub(crate) seeds: Vec<u64>,

    /// How long each of them lasts; the number of changes asked for goes with it
    #[arg(
        long, value_name = "N", default_value = "60",
        value_parser = clap::value_parser!(u64).range(5..=3600)
    )]
    pub(crate) churn_seconds: u64,
}

/// What a check does, and what it saw if it passed.
type Run<'a> = Box<dyn FnOnce(&Log) -> Result<String> + 'a>;

/// Something that can pass or fail.
pub(crate) struct Check<'a> {
    name: String,
    run: Run<'a>,
}

impl<'a> Check<'a> {
    /// A check that passes with a few words about what it saw.
    pub(crate) fn new(
        name: impl Into<String>,
        run: impl FnOnce(&Log) -> Result<String> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
        }
    }
}

/// The log of one check.
#[derive(Debug)]
pub(crate) struct Log {
    /// Where the check and the programs that it runs write to.
    pub(crate) journal: Journal,
    path: PathBuf,
}

impl Log {
    fn create(path: PathBuf) -> Result<Self> {
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            journal: Journal::File(file),
            path,
        })
    }

    fn text(&self) -> String {
        fs::read(&self.path).map_or_else(
            |error| format!("cannot read {}: {error}", self.path.display()),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }
}

/// Runs the checks that the options ask for.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let kits = boots::Kits::new(workspace);
    let mut checks = code_checks(workspace);
    checks.extend(oracle::checks(workspace));
    checks.extend(boots::checks(&kits, options));
    if !options.only.is_empty() {
        checks.retain(|check| options.only.iter().any(|word| check.name.contains(word)));
        ensure!(
            !checks.is_empty(),
            "--only {}: no check has such a name",
            options.only.join(",")
        );
    }
    if options.list {
        for check in &checks {
            anstream::println!("{}", check.name);
        }
        return Ok(ExitCode::SUCCESS);
    }

    let logs = workspace.directory("test-logs")?;
    let (passed, failed) = run_all(checks, &logs)?;
    anstream::println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs `checks` in order and returns how many passed and failed.
fn run_all(checks: Vec<Check<'_>>, logs: &Path) -> Result<(usize, usize)> {
    const GOOD: Style = AnsiColor::Green.on_default();
    const BAD: Style = AnsiColor::Red.on_default().bold();
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or_default();
    let total = checks.len();
    let (mut passed, mut failed) = (0, 0);
    for (number, Check { name, run }) in checks.into_iter().enumerate() {
        announce(&format!(
            "        {name:<width$}  {} of {total} ...",
            number + 1
        ));
        let log = Log::create(logs.join(format!("{:02}-{}.log", number + 1, file_name(&name))))?;
        let start = Instant::now();
        let verdict = run(&log);
        let seconds = start.elapsed().as_secs_f64();
        announce("");
        match verdict {
            Ok(detail) => {
                passed += 1;
                anstream::println!(
                    "{GOOD}ok{GOOD:#}      {name:<width$}  {seconds:>6.1} s  {detail}"
                );
            }
            Err(error) => {
                failed += 1;
                anstream::println!(
                    "{BAD}FAILED{BAD:#}  {name:<width$}  {seconds:>6.1} s  {error:#}"
                );
                show_end(&log);
            }
        }
    }
    Ok((passed, failed))
}

/// Replaces the line under the cursor, where there is one.
fn announce(text: &str) {
    let mut out = io::stdout();
    if out.is_terminal() {
        // Progress that cannot be shown is no reason to stop.
        let _ = write!(out, "\r\x1b[2K{text}").and_then(|()| out.flush());
    }
}

/// Shows the end of a failed check's log.
fn show_end(log: &Log) {
    const LINES: usize = 40;
    let text = log.text();
    let lines: Vec<_> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        anstream::println!("        | {line}");
    }
    anstream::println!("        whole log: {}", log.path.display());
}

/// The name of a check as part of a file's name.
fn file_name(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let words: String = name.chars().map(plain).collect();
    words
        .split('-')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("-")
}

/// The checks that need no machine.
fn code_checks(workspace: &Workspace) -> Vec<Check<'_>> {
    let cargo = |words: &str| {
        let mut command = workspace.cargo();
        command.args(words.split_ascii_whitespace());
        command
    };
    let run = |mut command: Command| {
        move |log: &Log| log.journal.run(&mut command).map(|()| String::new())
    };
    let mut documentation = cargo("doc --workspace --no-deps");
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    vec![
        Check::new("format", run(cargo("fmt --all --check"))),
        Check::new(
            "lints",
            run(cargo("clippy --workspace --all-targets -- -D warnings")),
        ),
        Check::new("lints, bare metal", |log| lint_bare_metal(workspace, log)),
        Check::new("tests", move |log| {
            // The same cases every time, so that a failure here is a change's doing. `cargo test`
            // draws new ones.
            let mut tests = cargo("test --workspace");
            run_tests(tests.env("PROPTEST_RNG_SEED", "2014"), log)
        }),
        Check::new("tests under loom", |log| loom_tests(workspace, log)),
        Check::new("omissions", |log| {
            let caught = omissions::run_all(workspace, &[], &log.journal)?;
            Ok(format!("{caught} rules left out, each noticed"))
        }),
        Check::new("soak", |log| soak(workspace, log)),
        Check::new("planted bugs", |log| {
            mutants::check(workspace, &log.journal)
        }),
        Check::new("instruction budgets", |log| {
            bench::check(workspace, &log.journal)
        }),
        Check::new("fuzz targets", |log| fuzz_targets(workspace, log)),
        Check::new("documentation", run(documentation)),
    ]
}

/// Runs the whole stack on the modelled machine for a moment.
fn soak(workspace: &Workspace, log: &Log) -> Result<String> {
    const SECONDS: u64 = 20;
    soak::run(workspace, &soak::Options::lasting(SECONDS), &log.journal)?;
    let text = log.text();
    let result = text.lines().rfind(|line| line.contains(" steps over "));
    let result = result.ok_or_else(|| anyhow!("the soak did not say how far it came"))?;
    Ok(result.to_owned())
}

/// Lints the fuzz package and runs the bodies of its targets, for which an ordinary compiler will
/// do. It has a workspace of its own, so nothing else reaches it.
fn fuzz_targets(workspace: &Workspace, log: &Log) -> Result<String> {
    let output = workspace.directory("fuzz/checks")?;
    let cargo = |words: &str| {
        let mut command = workspace.cargo();
        command
            .current_dir(workspace.root.join("fuzz"))
            .args(words.split_ascii_whitespace())
            .env("CARGO_TARGET_DIR", &output);
        command
    };
    log.journal.run(&mut cargo("fmt --check"))?;
    log.journal
        .run(&mut cargo("clippy --all-targets -- -D warnings"))?;
    run_tests(&mut cargo("test"), log)
}

/// Lints what is built for bare metal. Debian's compiler comes without clippy, so there the
/// compiler's own warnings have to do.
fn lint_bare_metal(workspace: &Workspace, log: &Log) -> Result<String> {
    const PACKAGES: [&str; 2] = ["--package=slat-hypervisor", "--package=slat-agent"];
    let bare_metal = BareMetal::find_or_install(&log.journal)?;
    let (mut command, detail) = match bare_metal {
        BareMetal::Installed { .. } => {
            let mut command = bare_metal.cargo(workspace, "clippy", "bare-metal");
            command.args(PACKAGES).args(["--", "-D", "warnings"]);
            (command, String::new())
        }
        BareMetal::DebianSources { .. } => {
            let mut command = bare_metal.cargo(workspace, "check", "bare-metal-lint");
            command.args(PACKAGES).env("RUSTFLAGS", "-D warnings");
            (
                command,
                "compiler warnings only: Debian's compiler has no clippy".to_owned(),
            )
        }
    };
    log.journal.run(&mut command)?;
    Ok(detail)
}

/// Runs the tests that explore every interleaving, which are compiled apart.
fn loom_tests(workspace: &Workspace, log: &Log) -> Result<String> {
    let packages = loom_packages(&workspace.root.join("crates"))?;
    ensure!(!packages.is_empty(), "no package has tests/loom*.rs");
    let mut command = workspace.cargo();
    command.args(["test", "--release", "--test", "loom*", "--target-dir"]);
    command.arg(workspace.target.join("loom"));
    for package in &packages {
        command.args(["--package", package]);
    }
    command.env("RUSTFLAGS", "--cfg slat_loom");
    run_tests(&mut command, log)
}

/// The packages below `crates` that have loom tests.
fn loom_packages(crates: &Path) -> Result<Vec<String>> {
    let mut packages = Vec::new();
    for package in fs::read_dir(crates)? {
        let package = package?;
        let Ok(tests) = fs::read_dir(package.path().join("tests")) else {
            continue;
        };
        if tests
            .flatten()
            .any(|test| test.file_name().to_string_lossy().starts_with("loom"))
        {
            packages.push(package.file_name().to_string_lossy().into_owned());
        }
    }
    packages.sort();
    Ok(packages)
}

/// Runs a `cargo test` and counts what passed; none at all is a failure.
fn run_tests(command: &mut Command, log: &Log) -> Result<String> {
    log.journal.run(command)?;
    let passed = count_passed(&log.text());
    if passed == 0 {
        return Err(anyhow!("no test ran"));
    }
    Ok(format!("{passed} tests"))
}

/// The sum over all of cargo's `test result: ok. N passed; ...` lines.
pub(crate) fn count_passed(log: &str) -> u64 {
    log.lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("test result: ok. ")?
                .split_once(" passed")
        })
        .filter_map(|(count, _)| count.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_check_is_counted_and_the_others_still_run() {
        let directory = tempfile::tempdir().unwrap();
        let seen = core::cell::Cell::new(0);
        let pass = |_: &Log| {
            seen.set(seen.get() + 1);
            Ok("fine".to_owned())
        };
        let checks = vec![
            Check::new("first", pass),
            Check::new("second, which fails", |log| {
                log.journal.say("what it did");
                Err(anyhow!("no"))
            }),
            Check::new("third", pass),
        ];
        assert_eq!(run_all(checks, directory.path()).unwrap(), (2, 1));
        assert_eq!(seen.get(), 2);
        let log = directory.path().join("02-second-which-fails.log");
        assert!(fs::read_to_string(log).unwrap().contains("what it did"));
    }

    #[test]
    fn passed_tests_are_added_up() {
        let log = "test a ... ok\ntest result: ok. 3 passed; 0 failed\n\
                   test result: FAILED. 9 passed; 1 failed\n  test result: ok. 4 passed; 0 failed\n";
        assert_eq!(count_passed(log), 7);
    }

    #[test]
    fn packages_with_loom_tests_are_found() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["a/tests/loom_faults.rs", "b/tests/api.rs", "c/src/loom.rs"] {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        assert_eq!(loom_packages(directory.path()).unwrap(), ["a"]);
    }
}
