//! What came of an oracle, and how it is shown.

use core::fmt;
use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use slat_oracle_protocol::tree::Omission;

use super::emulate::Bench;
use super::judge::{Check, Drawing, Emulator, Judge, KnownFault, Outcome, Plan, Question};
use super::proof::{self, Proof};
use crate::journal::Journal;

/// How many differences are shown for each architecture.
const SHOWN: usize = 12;

/// What came of one architecture.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Verdict {
    architecture: &'static str,
    /// Why nothing was tried.
    skipped: Option<String>,
    /// Accesses tried.
    accesses: usize,
    /// Words of memory looked at after them.
    words: usize,
    /// Where emulator and `slat` differ without a known reason.
    pub(crate) differences: usize,
    /// Where they differ because of a known fault of the emulator.
    known_faults: BTreeMap<&'static str, Met>,
    seconds: f64,
    /// The first differences, in words.
    shown: Vec<String>,
    /// What was done wrong on purpose, and how many differences that made.
    proofs: Vec<Proof>,
}

/// A known fault that was met.
#[derive(Debug, Serialize)]
struct Met {
    times: usize,
    /// What the manual says instead.
    manual: &'static str,
}

impl Verdict {
    /// Has one architecture judged, and, if asked, the judge too.
    pub(crate) fn of(
        judge: &dyn Judge,
        bench: &Bench,
        drawing: &Drawing,
        prove: bool,
        journal: &Journal,
    ) -> Result<Self> {
        let start = Instant::now();
        let mut verdict = Self {
            architecture: judge.name(),
            ..Self::default()
        };
        let mut plans = judge.plans(drawing)?;
        plans.extend(judge.rehearsal(drawing.seed, Omission::None)?);
        for plan in plans {
            verdict.carry_out(judge, bench, &plan, journal)?;
        }
        if prove {
            verdict.proofs = proof::all(judge, bench, drawing, journal)?;
        }
        verdict.seconds = start.elapsed().as_secs_f64();
        Ok(verdict)
    }

    /// Nothing was tried, for want of an emulator.
    pub(crate) fn skipped(architecture: &'static str, emulator: &Emulator) -> Self {
        let Emulator { program, packages } = emulator;
        Self {
            architecture,
            skipped: Some(format!(
                "{program} is not installed (Debian: {})",
                packages.join(" ")
            )),
            ..Self::default()
        }
    }

    /// Whether nothing speaks against our tables, nor against the judge.
    pub(crate) fn passes(&self) -> bool {
        self.differences == 0 && !self.proofs.iter().any(Proof::fails)
    }

    /// In a few words.
    pub(crate) fn words(&self) -> String {
        let known: usize = self.known_faults.values().map(|met| met.times).sum();
        let unnoticed = self.proofs.iter().filter(|proof| proof.fails()).count();
        format!(
            "{} accesses, {} differences, {known} known faults of the emulator, {} of {} mistakes \
             noticed",
            self.accesses,
            self.differences,
            self.proofs.len() - unnoticed,
            self.proofs.len()
        )
    }

    /// Carries out a plan and compares.
    pub(crate) fn carry_out(
        &mut self,
        judge: &dyn Judge,
        bench: &Bench,
        plan: &Plan,
        journal: &Journal,
    ) -> Result<()> {
        let answers = bench.run(judge, plan, journal)?;
        for (check, answer) in plan.checks.iter().zip(&answers) {
            self.take(judge, check, &judge.seen(&check.question, answer));
        }
        Ok(())
    }

    fn take(&mut self, judge: &dyn Judge, check: &Check, seen: &Outcome) {
        match check.question {
            Question::Access(_) => self.accesses += 1,
            Question::Memory(_) => self.words += 1,
        }
        if check.expected.agrees(seen) {
            return;
        }
        if let Some(KnownFault { name, manual }) = judge.known_fault(check, seen) {
            let met = self
                .known_faults
                .entry(name)
                .or_insert(Met { times: 0, manual });
            met.times += 1;
            return;
        }
        self.differences += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(format!(
                "{}: {}\n    slat says it {}\n    the MMU says it {seen}",
                check.tables, check.question, check.expected
            ));
        }
    }
}

/// Verdicts, aligned, with what there is to say about each below.
pub(crate) struct Table<'v>(pub(crate) &'v [Verdict]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<9}  {:>8}  {:>8}  {:>11}  {:>12}  {:>9}  {:>7}",
            "oracle", "accesses", "words", "differences", "known faults", "unnoticed", "time"
        )?;
        for verdict in self.0 {
            if let Some(reason) = &verdict.skipped {
                writeln!(f, "{:<9}  SKIPPED: {reason}", verdict.architecture)?;
                continue;
            }
            let known: usize = verdict.known_faults.values().map(|met| met.times).sum();
            let unnoticed = verdict.proofs.iter().filter(|proof| proof.fails()).count();
            writeln!(
                f,
                "{:<9}  {:>8}  {:>8}  {:>11}  {known:>12}  {unnoticed:>9}  {:>5.1} s",
                verdict.architecture,
                verdict.accesses,
                verdict.words,
                verdict.differences,
                verdict.seconds
            )?;
        }
        for verdict in self.0 {
            let name = verdict.architecture;
            for (fault, Met { times, manual }) in &verdict.known_faults {
                writeln!(
                    f,
                    "{name}: known fault, met {times} times: {fault}; but {manual}"
                )?;
            }
            for proof in &verdict.proofs {
                writeln!(f, "{name}: {proof}")?;
            }
            for difference in &verdict.shown {
                writeln!(f, "{name}: {difference}")?;
            }
        }
        Ok(())
    }
}
