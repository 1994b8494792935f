//! Proof that an oracle would notice: something is done wrong on purpose, and must make a
//! difference.

use core::fmt;

use anyhow::Result;
use serde::Serialize;

use super::emulate::Bench;
use super::judge::{Drawing, Judge};
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
        let mut verdict = Verdict::default();
        for plan in judge.plans(&flipped)? {
            verdict.carry_out(judge, bench, &plan, journal)?;
        }
        proofs.push(Proof {
            what: format!("bit {bit} of every leaf flipped"),
            differences: verdict.differences,
        });
    }
    for omission in judge.omissions() {
        let mut verdict = Verdict::default();
        if let Some(plan) = judge.rehearsal(drawing.seed, *omission)? {
            verdict.carry_out(judge, bench, &plan, journal)?;
        }
        proofs.push(Proof {
            what: format!("left out of TLB maintenance: {omission:?}"),
            differences: verdict.differences,
        });
    }
    Ok(proofs)
}
