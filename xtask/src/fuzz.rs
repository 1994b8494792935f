//! `cargo xtask fuzz`: the fuzz targets, each for a while.
//!
//! The targets are files in `fuzz/fuzz_targets`; what they do is in the library of that package,
//! which `cargo test` also runs, on a few inputs. Here `cargo-fuzz` searches for inputs, with a
//! nightly compiler. What it finds worth keeping goes below the target directory, and an input
//! that breaks something too; inputs that are part of the project are in `fuzz/corpus`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::host::find_program;
use crate::journal::Journal;
use crate::nightly;
use crate::workspace::Workspace;

/// Files of the project that are inputs of a target.
const EXAMPLES: [(&str, &str); 3] = [
    ("layout", "crates/slat-cli/examples"),
    ("scenario", "crates/slat-cli/examples"),
    ("trace", "crates/slat-machine/tests/corpus"),
];

/// Options of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which targets; all of them if none is named
    targets: Vec<String>,

    /// How long each of them is run
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,

    /// List the targets and run none
    #[arg(long)]
    list: bool,
}

/// Runs the targets that the options ask for, all of them even if one fails.
pub(crate) fn run(workspace: &Workspace, options: &Options, journal: &Journal) -> Result<()> {
    let targets = chosen(
        targets(&workspace.root.join("fuzz/fuzz_targets"))?,
        &options.targets,
    )?;
    if options.list {
        for target in &targets {
            anstream::println!("{target}");
        }
        return Ok(());
    }
    ensure!(
        find_program("cargo-fuzz").is_some(),
        "cargo-fuzz is not installed: cargo install cargo-fuzz (it needs a C++ compiler)"
    );
    nightly::install(journal).context("without a nightly compiler there is no fuzzing")?;
    let mut failed = Vec::new();
    for target in targets {
        match fuzz(workspace, &target, options.seconds, journal) {
            Ok(()) => journal.say(format_args!("{target}: nothing found")),
            Err(error) => {
                journal.say(format_args!("{target}: {error:#}"));
                failed.push(target);
            }
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Runs one target. What it found in earlier runs is where it starts.
fn fuzz(workspace: &Workspace, target: &str, seconds: u64, journal: &Journal) -> Result<()> {
    let found = workspace.directory(Path::new("fuzz/corpus").join(target))?;
    let broken = workspace.directory(Path::new("fuzz/artifacts").join(target))?;
    let mut command = nightly::cargo(workspace);
    command
        .args(["fuzz", "run", "--features=libfuzzer", "--target-dir"])
        .arg(workspace.directory("fuzz/target")?)
        .arg(target)
        .arg(found);
    // libFuzzer writes to the first directory and only reads the others.
    let own = Path::new("fuzz/corpus").join(target);
    let examples = EXAMPLES.iter().filter(|(of, _)| *of == target);
    let given = examples.map(|(_, directory)| Path::new(directory));
    for directory in given.chain([own.as_path()]) {
        let directory = workspace.root.join(directory);
        if directory.is_dir() {
            command.arg(directory);
        }
    }
    command
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg("-timeout=10")
        .arg(format!("-artifact_prefix={}/", broken.display()));
    journal.run(&mut command)
}

/// The targets that there are, sorted.
fn targets(directory: &Path) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem()
        {
            targets.push(name.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

/// Those of `all` that are asked for; all if none is.
fn chosen(all: Vec<String>, asked: &[String]) -> Result<Vec<String>> {
    for name in asked {
        ensure!(
            all.contains(name),
            "there is no fuzz target {name}; there are {}",
            all.join(", ")
        );
    }
    if asked.is_empty() {
        Ok(all)
    } else {
        Ok(asked.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_the_targets() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b.rs", "a.rs", "notes.md"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(targets(directory.path()).unwrap(), ["a", "b"]);
    }

    #[test]
    fn all_targets_are_run_if_none_is_named() {
        let all = ["a".to_owned(), "b".to_owned()];
        assert_eq!(chosen(all.to_vec(), &[]).unwrap(), all);
        assert_eq!(chosen(all.to_vec(), &all[1..]).unwrap(), ["b"]);
        let error = chosen(all.to_vec(), &["c".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("there are a, b"), "{error}");
    }
}
