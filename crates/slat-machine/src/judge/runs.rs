//! Runs: neighbouring leaves that hardware may keep as one translation.
//!
//! Whoever reads one entry of a run may translate the whole run by it. So a leaf of a run counts
//! for all pages of the run, whatever is written in its neighbours: one that stays keeps those
//! reachable that were taken out. Entries of which hardware may use either for one page must say
//! the same; only accessed and dirty bits may differ, which hardware sets in any of them.

use super::ranges::Span;
use super::rule::{Rule, Violation};
use super::story::{self, Did};
use super::tree::{At, Reached};
use super::write::Allows;
use super::{Judge, Judged};
use crate::architecture::{Architecture, Descriptor, Leaf, whole_run};

/// All that hardware may translate by one leaf: a run, or the page or block of a leaf that stands
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) gpa: Span,
    /// The leaf, as it leads to the first byte of all.
    pub(super) leaf: Leaf,
}

impl Whole {
    pub(super) fn of(architecture: &dyn Architecture, at: &At, leaf: &Leaf) -> Self {
        let bytes = at.gpa.bytes() << leaf.run_bits;
        Self {
            gpa: Span::new(at.gpa.start & !(bytes - 1), bytes),
            leaf: whole_run(architecture, at.level, at.entry, leaf),
        }
    }

    /// The host physical addresses.
    pub(super) fn target(&self) -> Span {
        Span::new(self.leaf.hpa.0, self.gpa.bytes())
    }

    fn agrees_with(&self, other: &Self) -> bool {
        self.gpa == other.gpa
            && self.leaf.hpa == other.leaf.hpa
            && self.leaf.memory == other.leaf.memory
            && Allows::of(&self.leaf) == Allows::of(&other.leaf)
    }
}

impl Judge {
    /// All that hardware may translate by the leaf at `at`.
    pub(super) fn whole(&self, at: &At, leaf: &Leaf) -> Whole {
        match self.trees.get(&at.vm) {
            Some(tree) => Whole::of(&*tree.architecture, at, leaf),
            None => Whole {
                gpa: at.gpa,
                leaf: *leaf,
            },
        }
    }

    /// An entry became valid or says something else: the leaves whose runs it lies in, and those
    /// that lie in its own, must say the same.
    pub(super) fn check_runs(&self, at: &At, what: &Descriptor, did: Did) -> Judged {
        let Some(tree) = self.trees.get(&at.vm) else {
            return Ok(());
        };
        let whole = match what {
            Descriptor::Leaf(leaf) => Some(self.whole(at, leaf)),
            Descriptor::Table(_) => None,
            Descriptor::Invalid | Descriptor::Reserved(_) => return Ok(()),
        };
        let span = whole.map_or(at.gpa, |whole| whole.gpa);
        let disagrees = |(range, other): &(Span, &Reached)| {
            let in_ours = span.intersection(*range).is_some();
            let in_theirs = other.whole.gpa.intersection(at.gpa).is_some();
            let alike = whole.is_some_and(|whole| whole.agrees_with(&other.whole));
            *range != at.gpa && (in_ours || in_theirs) && !alike
        };
        // Without runs, leaves do not overlap.
        match tree.leaves_near(span).find(disagrees) {
            Some((range, other)) => Err(disagreement(at, what, did, range, other)),
            None => Ok(()),
        }
    }
}

fn disagreement(at: &At, what: &Descriptor, did: Did, range: Span, other: &Reached) -> Violation {
    let run = other.whole.gpa;
    let wrote = format!(
        "wrote entry {}: {}, which hardware may take for all of GPA {run}",
        other.entry,
        story::leaf(range, &other.leaf)
    );
    let text = format!(
        "made of entry {}: {}",
        at.entry,
        story::descriptor(at.gpa, what)
    );
    let missing = "an invalid entry in place of every other one of the run, and their invalidation";
    did.breaks(
        Rule::RunDisagrees,
        vec![other.written.line(wrote)],
        text,
        missing,
    )
}
