//! Proof that an oracle would notice: something is done wrong on purpose, and must make a
//! difference.

use core::fmt;

use anyhow::Result;
use serde::Serialize;

use super::emulate::Bench;
use super::judge::{Drawing, Judge, Plan};
use super::verdict::Verdict;
use crate::journal::Journal;

/// Accesses that a flipped bit has to show in.
const ACCESSES: usize = 1000;

/// Something done wrong.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Proof {
    /// What.
    what: String,
    /// How many differences it made.
    differences: usize,
}

impl Proof {
    /// Whether it went unnoticed.
    pub(crate) fn fails(&self) -> bool {
        self.differences == 0
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, differences } = self;
        match differences {
            0 => write!(f, "NOT NOTICED: {what}"),
            _ => write!(f, "noticed {differences} times: {what}"),
        }
    }
}

/// Does everything wrong that the judge names, one at a time.
pub(crate) fn all(
    judge: &dyn Judge,
    bench: &Bench,
    drawing: &Drawing,
    journal: &Journal,
) -> Result<Vec<Proof>> {
    let mut proofs = Vec::new();
    for bit in judge.bits() {
        let flipped = Drawing {
            seed: drawing.seed,
            checks: ACCESSES,
            flip: Some(*bit),
        };
        let what = format!("bit {bit} of every leaf flipped");
        proofs.push(proof(what, judge, bench, &judge.plans(&flipped)?, journal));
    }
    for omission in judge.omissions() {
        let plans = Vec::from_iter(judge.rehearsal(drawing.seed, *omission)?);
        let what = format!("left out of TLB maintenance: {omission:?}");
        proofs.push(proof(what, judge, bench, &plans, journal));
    }
    Ok(proofs)
}

/// Carries out plans in which something is wrong. What is wrong may have the guest overwrite the
/// payload: one that stops has noticed too.
fn proof(
    what: String,
    judge: &dyn Judge,
    bench: &Bench,
    plans: &[Plan],
    journal: &Journal,
) -> Proof {
    let mut verdict = Verdict::default();
    for plan in plans {
        if let Err(error) = verdict.carry_out(judge, bench, plan, journal) {
            journal.say(format_args!("{what}: {error:#}"));
            verdict.differences += 1;
        }
    }
    Proof {
        what,
        differences: verdict.differences,
    }
}
