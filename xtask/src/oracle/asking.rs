//! A script and the checks that belong to it, written together so that they stay in step.

use std::rc::Rc;

use slat_oracle_protocol::script::{Action, Probe, Regime, Script};
use slat_oracle_protocol::tree::TreeOptions;

use super::judge::{Check, Outcome, Plan, Question};

/// A plan being written.
#[derive(Debug)]
pub(crate) struct Asking {
    script: Script,
    checks: Vec<Check>,
    accesses: usize,
    tables: Rc<str>,
}

impl Default for Asking {
    fn default() -> Self {
        Self {
            script: Script::default(),
            checks: Vec::new(),
            accesses: 0,
            tables: Rc::from(""),
        }
    }
}

impl Asking {
    /// The script, for whatever needs no answer.
    pub(crate) fn script(&mut self) -> &mut Script {
        &mut self.script
    }

    /// Puts the guest on tables that are called `tables` from here on.
    pub(crate) fn enter(&mut self, tables: &str, regime: Regime) {
        self.tables = Rc::from(tables);
        self.script.push(&Action::Enter(regime));
    }

    /// Has the payload make a tree that is called `tables` from here on.
    pub(crate) fn tree(&mut self, tables: &str, options: TreeOptions) {
        self.tables = Rc::from(tables);
        self.script.push(&Action::Tree(options));
    }

    /// Puts a word, given as a little-endian number, into the machine's memory.
    pub(crate) fn put(&mut self, at: u64, word: u64) {
        let bytes = &word.to_le_bytes();
        self.script.push(&Action::Copy { at, bytes });
    }

    /// Puts bytes there.
    pub(crate) fn put_bytes(&mut self, at: u64, bytes: &[u8]) {
        self.script.push(&Action::Copy { at, bytes });
    }

    /// Asks what comes of an access.
    pub(crate) fn access(&mut self, probe: Probe, expected: Outcome) {
        self.script.push(&Action::Probe(probe));
        self.accesses += 1;
        self.check(Question::Access(probe), expected);
    }

    /// Asks what is in the machine's memory.
    pub(crate) fn memory(&mut self, at: u64, word: u64) {
        self.script.push(&Action::Peek { at });
        self.check(Question::Memory(at), Outcome::Word(word));
    }

    /// Accesses asked about so far.
    pub(crate) const fn accesses(&self) -> usize {
        self.accesses
    }

    /// The plan, for this CPU.
    pub(crate) fn into_plan(self, cpu: &'static str) -> Plan {
        Plan {
            cpu,
            script: self.script,
            checks: self.checks,
        }
    }

    fn check(&mut self, question: Question, expected: Outcome) {
        self.checks.push(Check {
            tables: self.tables.clone(),
            question,
            expected,
        });
    }
}
