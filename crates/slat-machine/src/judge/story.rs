//! How a story is made: who did what, in words.

use super::order::Moment;
use super::ranges::Span;
use super::rule::{Line, Rule, Violation};
use crate::architecture::{Descriptor, Leaf};

/// A record worth remembering.
#[derive(Clone, Copy, Debug)]
pub(super) struct Did {
    pub(super) step: u64,
    pub(super) moment: Moment,
}

impl Did {
    pub(super) fn line(self, text: impl Into<String>) -> Line {
        Line {
            step: self.step,
            cpu: self.moment.cpu,
            text: text.into(),
        }
    }

    /// The violation that this record is, with what led to it.
    pub(super) fn breaks(
        self,
        rule: Rule,
        mut story: Vec<Line>,
        text: impl Into<String>,
        missing: impl Into<String>,
    ) -> Violation {
        story.push(self.line(text));
        story.sort_by_key(|line| line.step);
        story.dedup();
        Violation {
            rule,
            step: self.step,
            story,
            missing: missing.into(),
        }
    }
}

/// A leaf in words.
pub(super) fn leaf(gpa: Span, leaf: &Leaf) -> String {
    let flag = |set: bool, letter: char| if set { letter } else { '-' };
    format!(
        "GPA {gpa} to HPA {}, {}{}{}{}, memory type {:#x}",
        leaf.hpa,
        flag(leaf.read, 'r'),
        flag(leaf.write || leaf.becomes_dirty, 'w'),
        flag(leaf.execute, 'x'),
        if leaf.dirty { " dirty" } else { "" },
        leaf.memory,
    )
}

/// An entry in words.
pub(super) fn descriptor(gpa: Span, what: &Descriptor) -> String {
    match what {
        Descriptor::Invalid => format!("nothing for GPA {gpa}"),
        Descriptor::Table(table) => format!("GPA {gpa} to the table at {table}"),
        Descriptor::Leaf(it) => leaf(gpa, it),
        Descriptor::Reserved(why) => format!("for GPA {gpa} a reserved encoding ({why})"),
    }
}
