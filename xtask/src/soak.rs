//! `cargo xtask soak`: the whole stack on the machine model, seed after seed.
//!
//! The program is `slat-soak` of `slat-machine`; this builds it with optimisation and passes the
//! options on. It prints what it does, and ends with failure and a story if the judge objects.
//! `cargo run --release -p slat-machine --bin slat-soak -- --help` shows what else it can do.

use anyhow::Result;
use clap::Args;

use crate::journal::Journal;
use crate::workspace::Workspace;

/// Options of `cargo xtask soak`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The format of the guest's tables, or `all`, which then take turns
    #[arg(long, value_name = "NAME")]
    format: Option<String>,

    /// How long to go on
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,

    /// Stop after so many steps of the machine, all runs of a format together
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// Run at least so many seeds, however long that takes
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,

    /// The first seed; the others follow it
    #[arg(long, value_name = "SEED")]
    first_seed: Option<u64>,

    /// Run this seed alone
    #[arg(long, value_name = "SEED", conflicts_with_all = ["steps", "seeds", "first_seed", "jobs"])]
    seed: Option<u64>,

    /// Runs side by side
    #[arg(long, value_name = "N")]
    jobs: Option<u64>,
}

impl Options {
    /// So many seconds of seeds from the first on.
    pub(crate) const fn lasting(seconds: u64) -> Self {
        Self {
            format: None,
            seconds,
            steps: None,
            seeds: None,
            first_seed: None,
            seed: None,
            jobs: None,
        }
    }
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, options: &Options, journal: &Journal) -> Result<()> {
    let mut command = workspace.cargo();
    command
        .args(["run", "--quiet", "--release", "--package=slat-machine"])
        .args(["--bin=slat-soak", "--", "--progress"])
        .args(passed_on(options));
    journal.run(&mut command)
}

/// The program's own options.
fn passed_on(options: &Options) -> Vec<String> {
    let Options {
        format,
        seconds,
        steps,
        seeds,
        first_seed,
        seed,
        jobs,
    } = options;
    let numbers = [
        ("--seconds", &Some(*seconds)),
        ("--steps", steps),
        ("--seeds", seeds),
        ("--first-seed", first_seed),
        ("--seed", seed),
        ("--jobs", jobs),
    ];
    let numbers = numbers
        .into_iter()
        .filter_map(|(name, value)| Some([name.to_owned(), value.as_ref()?.to_string()]));
    let format = format
        .iter()
        .map(|name| ["--format".to_owned(), name.clone()]);
    format.chain(numbers).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_passed_on() {
        let options = Options {
            format: Some("ept-4".into()),
            seconds: 5,
            steps: None,
            seeds: Some(7),
            first_seed: None,
            seed: None,
            jobs: Some(2),
        };
        let expected = "--format ept-4 --seconds 5 --seeds 7 --jobs 2";
        assert_eq!(passed_on(&options).join(" "), expected);
    }
}
