//! The payload's side: carrying out a script.
//!
//! A payload implements [`Machine`] for its architecture; [`carry_out`] does the rest.

use core::fmt::{self, Display, Write};

use crate::answer::{Answer, End, HELLO};
use crate::script::{Action, Actions, Malformed, Probe, Regime};
use crate::tree::{Mapping, Removal, TreeOptions};

/// What a payload can do on its machine.
pub trait Machine {
    /// Fills `bytes` bytes of memory at `at` with `word`.
    fn fill(&mut self, at: u64, bytes: u64, word: u64);

    /// Copies `bytes` to `at`, so that guest and table walker see them.
    fn copy(&mut self, at: u64, bytes: &[u8]);

    /// Puts the guest on other tables, forgets all translations, and writes the guest's code.
    fn enter(&mut self, regime: &Regime);

    /// Tries an access.
    fn probe(&mut self, probe: &Probe) -> Answer;

    /// The 8 bytes at `at`, as a little-endian number.
    fn peek(&mut self, at: u64) -> u64;

    /// Makes a tree of the payload's own and puts the guest on it.
    ///
    /// # Errors
    ///
    /// [`Refused`] if this payload keeps no trees or cannot make this one.
    fn tree(&mut self, options: &TreeOptions) -> Result<(), Refused> {
        let _ = options;
        Err(Refused("this payload keeps no trees"))
    }

    /// Maps a range in that tree.
    ///
    /// # Errors
    ///
    /// [`Refused`] if there is no tree or the range cannot be mapped.
    fn map(&mut self, mapping: &Mapping) -> Result<(), Refused> {
        let _ = mapping;
        Err(Refused("this payload keeps no trees"))
    }

    /// Takes a range out of that tree.
    ///
    /// # Errors
    ///
    /// [`Refused`] if there is no tree or the range is none.
    fn remove(&mut self, removal: &Removal) -> Result<(), Refused> {
        let _ = removal;
        Err(Refused("this payload keeps no trees"))
    }
}

/// Why a payload cannot do what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub &'static str);

/// Why a script was not carried out to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the console failed")]
    Console(#[from] fmt::Error),
}

/// Carries out the script that `script` begins with and writes what comes of it to `console`, the
/// reason for stopping early included.
pub fn carry_out(script: &[u8], machine: &mut impl Machine, console: &mut impl Write) {
    if let Err(reason) = actions(script, machine, console) {
        stop(console, &reason);
    }
}

/// Says that the payload cannot go on.
pub fn stop(console: &mut impl Write, reason: &impl Display) {
    // There is nobody else to tell if the console fails.
    let _ = writeln!(console, "error {reason}");
}

fn actions(
    script: &[u8],
    machine: &mut impl Machine,
    console: &mut impl Write,
) -> Result<(), Stopped> {
    writeln!(console, "{HELLO}")?;
    let mut answers = 0;
    for action in Actions::new(script)? {
        let answer = match action? {
            Action::Fill { at, bytes, word } => {
                machine.fill(at, bytes, word);
                continue;
            }
            Action::Copy { at, bytes } => {
                machine.copy(at, bytes);
                continue;
            }
            Action::Enter(regime) => {
                machine.enter(&regime);
                continue;
            }
            Action::Tree(options) => {
                machine.tree(&options)?;
                continue;
            }
            Action::Map(mapping) => {
                machine.map(&mapping)?;
                continue;
            }
            Action::Remove(removal) => {
                machine.remove(&removal)?;
                continue;
            }
            Action::Probe(probe) => machine.probe(&probe),
            Action::Peek { at } => Answer::Completed([machine.peek(at), 0, 0, 0]),
        };
        answers += 1;
        writeln!(console, "{answer}")?;
    }
    writeln!(console, "{}", End(answers))?;
    Ok(())
}
