//! Looking at the tree: translate, list, age.

use arrayvec::ArrayVec;

use crate::address::{Gpa, GpaRange, Hpa};
use crate::attributes::Attributes;
use crate::format::{Entry, Format};
use crate::geometry::{Level, MAX_LEVELS};
use crate::hold::{Place, Tree};
use crate::platform::Platform;
use crate::run::Run;
use crate::stripe::span_around;
use crate::table::PageTable;

/// How many leaves are looked at in one hold of a stripe.
const SEEN_AT_ONCE: usize = 64;

/// A translation found in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The host physical address of the byte asked for.
    pub hpa: Hpa,
    /// The level of the leaf.
    pub level: Level,
    /// What the leaf says; whether it was used or written, for one of a run, is what any leaf of
    /// the run says.
    pub attributes: Attributes,
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// What the tree says about `gpa`, or `None` if it maps nothing there.
    #[inline]
    pub fn translate(&self, gpa: Gpa) -> Option<Translation> {
        if gpa >= self.geometry.end() {
            return None;
        }
        let hold = self.hold_span(gpa);
        let place = hold.descend(gpa, Level::PAGE);
        let Entry::Leaf {
            hpa,
            mut attributes,
        } = self.decode(place.level, place.raw)
        else {
            return None;
        };
        if attributes.contiguous
            && let Some(run) = self.run_at(place, gpa)
        {
            attributes = self.with_notes(&run, attributes);
        }
        Some(Translation {
            hpa: self.hpa_behind(gpa, place.level, hpa, attributes),
            level: place.level,
            attributes,
        })
    }

    /// The host physical address behind `gpa`, or `None` if the tree maps nothing there: what
    /// [`translate`](Self::translate) finds, at less cost, as nothing else that the leaf says is
    /// looked at.
    #[inline]
    pub fn gpa_to_hpa(&self, gpa: Gpa) -> Option<Hpa> {
        if gpa >= self.geometry.end() {
            return None;
        }
        let hold = self.hold_span(gpa);
        let Place { level, raw, .. } = hold.descend(gpa, Level::PAGE);
        if F::is_empty(level, raw) {
            return None;
        }
        let bytes = self.leaf_bytes(level, F::is_in_run(level, raw));
        let hpa = F::address(&self.features, level, raw);
        Some(Hpa::new(hpa.raw() | gpa.raw() & (bytes - 1)))
    }

    /// Calls `visit` for every leaf that maps part of `range`, in ascending order, with what it
    /// maps and its level. A run counts as one leaf. Each was seen under its stripe, which is let go before `visit` is
    /// called; together they are no snapshot.
    pub fn for_each_leaf(&self, range: &GpaRange, mut visit: impl FnMut(GpaRange, Level)) {
        let mut rest = self.within_address_width(range);
        while let Some(todo) = rest {
            let mut seen: ArrayVec<(GpaRange, Level), SEEN_AT_ONCE> = ArrayVec::new();
            rest = self.look_at_span(&todo, &mut seen);
            for (leaf, level) in seen {
                visit(leaf, level);
            }
        }
    }

    /// Collects leaves from the start of `todo` to the end of its span, or until `seen` is full.
    /// Returns what is left to look at.
    fn look_at_span(
        &self,
        todo: &GpaRange,
        seen: &mut ArrayVec<(GpaRange, Level), SEEN_AT_ONCE>,
    ) -> Option<GpaRange> {
        let hold = self.hold_span(todo.start());
        let span = span_around::<F>(todo.start())?;
        let mut rest = *todo;
        while span.contains(rest.start()) && !seen.is_full() {
            // A place above the span is seen under one of its stripes only, which is enough to
            // know that it is a leaf or empty.
            let place = hold.descend(rest.start(), Level::PAGE);
            let run = self.run_at(place, rest.start())?;
            if !F::is_empty(place.level, place.raw) {
                seen.push((run.range, place.level));
            }
            rest = rest.from(run.range.end())?;
        }
        Some(rest)
    }

    /// Number of leaves by level that map part of `range`; of a run that does, all of its leaves.
    pub fn count_leaves(&self, range: &GpaRange) -> [u64; MAX_LEVELS] {
        let mut counts = [0; MAX_LEVELS];
        self.for_each_leaf(range, |leaf, level| {
            counts[level.index()] += leaf.bytes() >> self.geometry.shape(level).shift;
        });
        counts
    }

    /// Whether a page of `range` was used since [`age`](Self::age) last looked. A hint.
    pub fn test_young(&self, range: &GpaRange) -> bool {
        self.visit_accessed(range, false)
    }

    /// Whether a page of `range` was used since the last call, and forgets that it was. A hint:
    /// translations in TLBs stay, so a use through them is not seen.
    pub fn age(&self, range: &GpaRange) -> bool {
        self.visit_accessed(range, true)
    }

    fn visit_accessed(&self, range: &GpaRange, clear: bool) -> bool {
        let mut young = false;
        let mut rest = self.within_address_width(range);
        while let Some(todo) = rest {
            let at = todo.start();
            let mut hold = self.hold_stripes(self.stripes.of(at));
            let mut place = hold.descend(at, Level::PAGE);
            let Some(run) = self.run_at(place, at) else {
                return young;
            };
            let used = !F::is_empty(place.level, place.raw);
            if used && !hold.stripes().covers(self.stripes.covering(&run.range)) {
                drop(hold);
                hold = self.hold(&run.range);
                place = hold.descend(at, Level::PAGE);
            }
            // Where it is another leaf by now, it may reach beyond what is held. That is harmless:
            // no table above `at` vanishes, and marks are changed by compare-exchange.
            let Some(run) = self.run_at(place, at) else {
                return young;
            };
            rest = todo.from(run.range.end());
            young |= hold.tree().accessed(place, &run, clear);
        }
        young
    }
}

impl<F: Format, P: Platform> Tree<'_, F, P> {
    /// Whether the leaf at `place`, which is one of `run`, was used; clears that if asked.
    fn accessed(self, place: Place, run: &Run, clear: bool) -> bool {
        let Entry::Leaf { attributes, .. } = self.table.decode(place.level, place.raw) else {
            return false;
        };
        let young = self.table.with_notes(run, attributes).accessed;
        if young && clear {
            // Where the format cannot say so, it stays young.
            self.change_run(run, |of| Attributes {
                accessed: false,
                ..of
            });
        }
        young
    }
}
