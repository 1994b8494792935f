//! `cargo xtask oracle`: emulated MMUs judge the tables that `slat-table` builds.
//!
//! For each architecture a [judge](judge::Judge) draws layouts and accesses from a seed, builds
//! the tables on the host, and has a payload in an emulator put a real guest on them. What the
//! emulated MMU does is compared with what `slat` says: where an access ends, or why it does not.
//! `docs/oracles.md` lists what each emulator is known to do wrong.

mod arm;
mod arm64;
mod armv7;
mod asker;
mod asking;
mod attributes;
mod emulate;
mod ept;
mod image;
mod judge;
mod npt;
mod placement;
mod power;
mod proof;
mod random;
mod rehearsal;
mod riscv;
mod s390;
mod sheet;
mod survey;
#[cfg(test)]
mod tests;
mod verdict;
mod x86;

use std::process::{Command, ExitCode};

use anyhow::{Result, bail, ensure};
use clap::Args;

use self::emulate::{Bench, Payloads};
use self::judge::{Drawing, Judge};
use self::verdict::{Table, Verdict};
use crate::host;
use crate::journal::Journal;
use crate::test;
use crate::workspace::Workspace;

/// Accesses for each architecture if nothing else is asked for.
const ACCESSES: usize = 10_000;

/// Options of `cargo xtask oracle`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Architectures to judge; all of them if none is named
    #[arg(value_name = "ARCH")]
    architectures: Vec<String>,

    /// Seed of layouts and accesses
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,

    /// About so many accesses for each architecture
    #[arg(long, value_name = "N", default_value_t = ACCESSES)]
    checks: usize,

    /// Flip this bit of every leaf behind our back, so that differences must show
    #[arg(long, value_name = "BIT", value_parser = clap::value_parser!(u32).range(0..64))]
    flip: Option<u32>,

    /// Also show that the oracles notice: flip one bit of every leaf at a time, and leave out one
    /// piece of TLB maintenance at a time
    #[arg(long)]
    prove: bool,

    /// Leave out architectures whose emulator is not installed, instead of installing it
    #[arg(long)]
    skip_missing: bool,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// The judges there are.
fn judges() -> Vec<Box<dyn Judge>> {
    vec![
        Box::new(arm64::Arm64Judge),
        Box::new(armv7::Armv7Judge),
        Box::new(riscv::RiscVJudge),
        Box::new(npt::NptJudge::Qemu),
        Box::new(npt::NptJudge::Bochs),
        Box::new(ept::EptJudge),
        Box::new(power::PowerJudge),
        Box::new(s390::S390Judge),
    ]
}

/// Runs the oracles that the options ask for.
pub(crate) fn run(workspace: &Workspace, options: &Options, journal: &Journal) -> Result<ExitCode> {
    let judges = named(&options.architectures)?;
    let drawing = Drawing {
        seed: options.seed,
        checks: options.checks,
        flip: options.flip,
    };
    let mut verdicts = Vec::new();
    for judge in judges {
        let emulator = judge.emulator();
        let missing = host::find_program(emulator.program).is_none();
        verdicts.push(if missing && options.skip_missing {
            Verdict::skipped(judge.name(), &emulator)
        } else {
            let bench = Bench::set_up(workspace, &*judge, journal)?;
            Verdict::of(&*judge, &bench, &drawing, options.prove, journal)?
        });
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&verdicts)?);
    } else {
        print!("{}", Table(&verdicts));
    }
    Ok(if verdicts.iter().all(Verdict::passes) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The judges with these names; all of them if there are none.
fn named(names: &[String]) -> Result<Vec<Box<dyn Judge>>> {
    let mut judges = judges();
    let known: Vec<_> = judges.iter().map(|judge| judge.name()).collect();
    for name in names {
        ensure!(
            known.contains(&name.as_str()),
            "no oracle for {name}; there are {}",
            known.join(", ")
        );
    }
    let is_named = |judge: &dyn Judge| names.iter().any(|name| name == judge.name());
    judges.retain(|judge| names.is_empty() || is_named(&**judge));
    Ok(judges)
}

/// The checks of `cargo xtask test`: every oracle, with the proof that it notices, and the lints
/// of the payloads.
pub(crate) fn checks(workspace: &Workspace) -> Vec<test::Check<'_>> {
    let mut checks = vec![test::Check::new("lints, oracles", |log| {
        lint_payloads(workspace, &log.journal)
    })];
    for judge in judges() {
        let name = format!("oracle {}", judge.name());
        checks.push(test::Check::new(name, move |log| {
            let drawing = Drawing {
                seed: 1,
                checks: ACCESSES,
                flip: None,
            };
            let bench = Bench::set_up(workspace, &*judge, &log.journal)?;
            let verdict = Verdict::of(&*judge, &bench, &drawing, true, &log.journal)?;
            let verdicts = [verdict];
            log.journal.say(Table(&verdicts));
            if verdicts.iter().all(Verdict::passes) {
                Ok(verdicts[0].words())
            } else {
                bail!("{}", verdicts[0].words())
            }
        }));
    }
    checks
}

/// Lints every payload for its target.
fn lint_payloads(workspace: &Workspace, journal: &Journal) -> Result<String> {
    let payloads = Payloads::new(workspace);
    let mut format: Command = workspace.cargo();
    format
        .current_dir(payloads.directory())
        .args(["fmt", "--all", "--check"]);
    journal.run(&mut format)?;
    let mut packages = Vec::new();
    for judge in judges() {
        let payload = judge.payload();
        if !packages.contains(&payload.package) {
            payloads.lint(&payload, journal)?;
            packages.push(payload.package);
        }
    }
    Ok(format!("{} payloads", packages.len()))
}
