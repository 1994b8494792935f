//! What a checker that others wrote says of the planted Arm bugs.
//!
//! [casemate](https://github.com/rems-project/casemate) watches the Arm page-table protocol with a
//! model of its own. It is not part of this project: where the environment variable
//! `CASEMATE_CHECK` names its program, `cargo xtask mutants` records a run of the rig in which
//! nobody objects to anything, and has both our judge and casemate look at all of it.
//!
//! casemate objects to some sound runs too (a table cut off whose own entries were cut off just
//! before). So it is asked only about seeds whose sound run it accepts.

use core::fmt::{self, Display};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::journal::Journal;
use crate::trial::Copy;

/// The variable that names the checker.
const VARIABLE: &str = "CASEMATE_CHECK";

/// How many seeds are tried on the sound sources, and how many of them are enough.
const SEEDS: core::ops::RangeInclusive<u64> = 1..=20;
const ENOUGH: usize = 3;

/// The checker, and the seeds whose sound runs it accepts.
#[derive(Debug)]
pub(crate) struct Checker {
    program: PathBuf,
    seeds: Vec<u64>,
}

/// What two judges said of a planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opinions {
    /// Runs looked at.
    runs: usize,
    /// Those that our judge objects to.
    ours: usize,
    /// Those that casemate objects to.
    casemate: usize,
}

impl Display for Opinions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            runs,
            ours,
            casemate,
        } = self;
        write!(
            f,
            "recorded: our judge objects to {ours} of {runs} runs, casemate to {casemate}"
        )
    }
}

/// What was said of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdicts {
    ours: bool,
    casemate: bool,
}

impl Opinions {
    /// Whether both judges object.
    pub(crate) const fn agree(&self) -> bool {
        self.ours > 0 && self.casemate > 0
    }

    fn of(verdicts: &[Verdicts]) -> Self {
        let count =
            |objects: fn(&Verdicts) -> bool| verdicts.iter().filter(|it| objects(it)).count();
        Self {
            runs: verdicts.len(),
            ours: count(|it| it.ours),
            casemate: count(|it| it.casemate),
        }
    }
}

impl Checker {
    /// The checker that the environment names, if it does, with seeds whose runs on the sound
    /// sources in `copy` it accepts. It is an error if our judge does not, or if there are none.
    pub(crate) fn find(copy: &Copy, journal: &Journal) -> Result<Option<Self>> {
        let Some(program) = env::var_os(VARIABLE).map(PathBuf::from) else {
            journal.say(format_args!(
                "{VARIABLE} names no program: no second opinion on the Arm bugs"
            ));
            return Ok(None);
        };
        let mut checker = Self {
            program,
            seeds: Vec::new(),
        };
        let soak = copy.build_program("slat-machine", "slat-soak", journal)?;
        for seed in SEEDS {
            let verdicts = checker.judge(&soak, copy, seed)?;
            ensure!(
                !verdicts.ours,
                "our judge objects to the sound run of seed {seed}"
            );
            if !verdicts.casemate {
                checker.seeds.push(seed);
            }
            if checker.seeds.len() == ENOUGH {
                break;
            }
        }
        ensure!(
            !checker.seeds.is_empty(),
            "casemate accepts no sound run of the seeds {SEEDS:?}"
        );
        journal.say(format_args!(
            "casemate and our judge accept the sound runs of seeds {:?}",
            checker.seeds
        ));
        Ok(Some(checker))
    }

    /// What both say of the sources in `copy` as they are now.
    pub(crate) fn ask(&self, copy: &Copy, journal: &Journal) -> Result<Opinions> {
        let soak = copy.build_program("slat-machine", "slat-soak", journal)?;
        let judge = |seed: &u64| self.judge(&soak, copy, *seed);
        let verdicts: Vec<_> = self.seeds.iter().map(judge).collect::<Result<_>>()?;
        Ok(Opinions::of(&verdicts))
    }

    /// Records the run of `seed` and asks both.
    fn judge(&self, soak: &Path, copy: &Copy, seed: u64) -> Result<Verdicts> {
        let file = |end: &str| copy.output().join(format!("recorded.{end}"));
        let (trace, exported) = (file("trace"), file("casemate"));
        let mut command = Command::new(soak);
        command
            .args(["--for-export", "--seed", &seed.to_string(), "--trace"])
            .arg(&trace)
            .arg("--casemate")
            .arg(&exported);
        let ours = match exit_code(&mut command)? {
            0 => false,
            1 => true,
            code => anyhow::bail!("slat-soak ended with {code} on seed {seed}"),
        };
        let mut command = Command::new(&self.program);
        // Quietly, for all address spaces, without its lock discipline: a table is under many locks.
        command.args(["-q", "-a", "-T", "-R"]).arg(&exported);
        let casemate = exit_code(&mut command)? != 0;
        Ok(Verdicts { ours, casemate })
    }
}

/// Runs a program, says nothing of what it prints, and returns how it ended.
fn exit_code(command: &mut Command) -> Result<i32> {
    let program = command.get_program().to_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok(status.code().unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opinions_are_counted_apart() {
        let verdict = |ours, casemate| Verdicts { ours, casemate };
        let both = Opinions::of(&[verdict(true, false), verdict(true, true)]);
        assert_eq!((both.runs, both.ours, both.casemate), (2, 2, 1));
        assert!(both.agree());
        assert!(!Opinions::of(&[verdict(true, false)]).agree());
        assert!(!Opinions::of(&[]).agree());
        assert_eq!(
            both.to_string(),
            "recorded: our judge objects to 2 of 2 runs, casemate to 1"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = exit_code(&mut Command::new("/no/such/program")).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
